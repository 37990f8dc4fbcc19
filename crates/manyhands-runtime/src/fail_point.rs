//! Steps at which a test has a process killed.
//!
//! `MANYHANDS_CRASH_AT=name` (or `name:n` for the n-th time) kills the process with SIGKILL when it
//! reaches the step of that name. With `MANYHANDS_CRASH_ONCE=path` only the process that manages to
//! create that file dies, so that of many one does, and the file tells that it did. With
//! `MANYHANDS_STALL_AT` instead the process stands still there for ever. Without the
//! feature `fail-points` nothing of this is compiled.

/// The names of all steps; the crash table has a row for each.
pub const FAIL_POINTS: &[&str] = &[
    "worker.started",
    "worker.claimed",
    "worker.body_read",
    "worker.block_opened",
    "worker.block_asked",
    "worker.block_granted",
    "worker.released",
    "worker.output_given",
    "worker.output_published",
    "parent.block_granted",
    "worker.finished",
    "worker.file_sent",
    "worker.record_written",
    "worker.published",
    "worker.lap_published",
    "worker.announced",
    "worker.before_park",
    "worker.line_sent",
    "worker.call_packed",
    "worker.call_sent",
    "parent.call_heard",
    "parent.call_answered",
    "worker.woken",
    "parent.block_made",
    "parent.fork_sent",
    "parent.record_written",
    "parent.task_published",
    "parent.result_taken",
    "parent.output_taken",
    "parent.revoked",
    "parent.block_cut",
    "parent.relieved",
    "parent.told_to_leave",
    "zygote.request_read",
    "zygote.forked",
    "zygote.reported",
];

/// Dies here if the environment says so, or never goes on.
#[cfg(feature = "fail-points")]
pub fn fail_point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static CHOSEN: OnceLock<Option<(String, u64, bool)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    debug_assert!(
        FAIL_POINTS.contains(&name),
        "{name} has no row in the crash table"
    );
    let chosen = CHOSEN.get_or_init(|| {
        let read = |variable| std::env::var(variable).ok();
        let (value, dies) = match read("MANYHANDS_CRASH_AT") {
            Some(value) => (value, true),
            None => (read("MANYHANDS_STALL_AT")?, false),
        };
        Some(match value.split_once(':') {
            Some((name, count)) => (name.to_owned(), count.parse().unwrap_or(1), dies),
            None => (value, 1, dies),
        })
    });
    if let Some((chosen, count, dies)) = chosen
        && chosen == name
        // Relaxed: a count for tests.
        && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *count
        && is_the_one()
    {
        if *dies {
            manyhands_os::kill_self();
        }
        loop {
            std::thread::park();
        }
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
