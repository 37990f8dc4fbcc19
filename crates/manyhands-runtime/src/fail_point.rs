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
    "worker.unwanted_seen",
    "worker.stack_written",
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
    "parent.unwanted_set",
    "parent.worker_killed",
    "parent.to_run_again",
    "parent.pause_ended",
    "parent.stack_asked",
    "zygote.request_read",
    "zygote.forked",
    "zygote.reported",
];

/// What the environment says.
#[cfg(feature = "fail-points")]
struct Chosen {
    name: String,
    /// At which time of coming there.
    nth: u64,
    /// Whether the process dies, or stands still.
    dies: bool,
    /// The file that only one process manages to create.
    once: Option<std::path::PathBuf>,
}

#[cfg(feature = "fail-points")]
impl Chosen {
    fn read() -> Option<Self> {
        let read = |variable| std::env::var(variable).ok();
        let (value, dies) = match read("MANYHANDS_CRASH_AT") {
            Some(value) => (value, true),
            None => (read("MANYHANDS_STALL_AT")?, false),
        };
        let (name, nth) = match value.split_once(':') {
            Some((name, nth)) => (name.to_owned(), nth.parse().unwrap_or(1)),
            None => (value, 1),
        };
        let once = std::env::var_os("MANYHANDS_CRASH_ONCE").map(Into::into);
        Some(Self {
            name,
            nth,
            dies,
            once,
        })
    }

    /// Whether no other process died in this one's place.
    fn is_the_one(&self) -> bool {
        self.once.as_ref().is_none_or(|path| {
            let file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(path);
            file.is_ok()
        })
    }
}

/// Dies here if the environment says so, or never goes on. Only the first call in a process takes memory: a later
/// one may be in a signal's handler.
#[cfg(feature = "fail-points")]
#[expect(clippy::disallowed_methods, reason = "tests do not fork here")]
pub fn fail_point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static CHOSEN: OnceLock<Option<Chosen>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);
    debug_assert!(
        FAIL_POINTS.contains(&name),
        "{name} has no row in the crash table"
    );
    if let Some(chosen) = CHOSEN.get_or_init(Chosen::read)
        && chosen.name == name
        // Relaxed: a count for tests.
        && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == chosen.nth
        && chosen.is_the_one()
    {
        if chosen.dies {
            manyhands_os::kill_self();
        }
        loop {
            std::thread::park();
        }
    }
}

/// Does nothing: the feature `fail-points` is off.
#[cfg(not(feature = "fail-points"))]
#[inline(always)]
pub fn fail_point(_name: &str) {}
