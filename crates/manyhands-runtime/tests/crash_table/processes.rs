//! Which processes of a case are there, by a mark in their environment.

use std::time::{Duration, Instant};

/// The variable that all processes started by a case's supervisor carry; forked workers inherit it.
pub(crate) const MARK: &str = "MANYHANDS_CASE";

/// Pids and states of the processes that carry the mark.
pub(crate) fn marked(mark: &str) -> Vec<(i32, String)> {
    let wanted = format!("{MARK}={mark}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // Gone meanwhile, or a zombie, whose environment is empty: not there any more.
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else {
            continue;
        };
        let mut variables = environment.split(|&byte| byte == 0);
        if variables.any(|variable| variable == wanted.as_bytes()) {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            found.push((pid, stat));
        }
    }
    found
}

/// Waits until no process carries the mark; an error names those that still do after `limit`.
pub(crate) fn wait_until_none(mark: &str, limit: Duration) -> Result<(), String> {
    let end = Instant::now() + limit;
    loop {
        let found = marked(mark);
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("still there: {found:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Children of this process that nobody has waited for, dead or alive.
pub(crate) fn children() -> Vec<String> {
    let own = format!("{}", std::process::id());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // "pid (name) state parent ...", where the name may hold anything.
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        if after_name.split(' ').nth(1) == Some(&own) {
            found.push(stat);
        }
    }
    found
}

/// What the descriptors of this process are; results that a test still holds are not counted.
pub(crate) fn descriptors() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let mut all: Vec<String> = entries
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .filter(|link| !link.contains("manyhands-message"))
        .collect();
    all.sort();
    all
}
