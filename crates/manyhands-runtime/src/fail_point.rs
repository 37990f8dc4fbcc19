//! Steps at which a test has a process killed.
//!
//! `MANYHANDS_CRASH_AT=name` (or `name:n` for the n-th time) kills the process with SIGKILL when it
//! reaches the step of that name. With `MANYHANDS_CRASH_ONCE=path` only the process that manages to
//! create that file dies, so that of many one does, and the file tells that it did. Without the
//! feature `fail-points` nothing of this is compiled.

/// The names of all steps; the crash table has a row for each.
pub const FAIL_POINTS: &[&str] = &[
    "worker.started",
    "worker.claimed",
    "worker.block_opened",
    "worker.finished",
    "worker.file_sent",
    "worker.record_written",
    "worker.published",
    "worker.lap_published",
    "worker.announced",
    "worker.before_park",
    "parent.block_made",
    "parent.fork_sent",
    "parent.record_written",
    "parent.task_published",
    "parent.result_taken",
    "parent.revoked",
    "parent.block_cut",
    "zygote.request_read",
    "zygote.forked",
    "zygote.reported",
];

/// Dies here if the environment says so.
#[cfg(feature = "fail-points")]
pub fn fail_point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static CHOSEN: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    debug_assert!(
        FAIL_POINTS.contains(&name),
        "{name} has no row in the crash table"
    );
    let chosen = CHOSEN.get_or_init(|| {
        let value = std::env::var("MANYHANDS_CRASH_AT").ok()?;
        Some(match value.split_once(':') {
            Some((name, count)) => (name.to_owned(), count.parse().unwrap_or(1)),
            None => (value, 1),
        })
    });
    if let Some((chosen, count)) = chosen
        && chosen == name
        // Relaxed: a count for tests.
        && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *count
        && is_the_one()
    {
        manyhands_os::kill_self();
    }
}

/// Whether no other process died in this one's place.
#[cfg(feature = "fail-points")]
fn is_the_one() -> bool {
    std::env::var_os("MANYHANDS_CRASH_ONCE").is_none_or(|path| {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path);
        file.is_ok()
    })
}

/// Does nothing: the feature `fail-points` is off.
#[cfg(not(feature = "fail-points"))]
#[inline(always)]
pub fn fail_point(_name: &str) {}
