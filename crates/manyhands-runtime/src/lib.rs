//! A process pool for tasks that are bytes.
//!
//! The parent alone schedules, allocates and counts (`pool`, `scheduler`); one thread looks after the
//! processes (`supervisor`); workers claim and publish (`worker`); a zygote forks them (`zygote`).
//! What they say to each other is in `protocol`. What the bytes mean is the business of the face on
//! top: nothing here knows a language.

mod completions;
mod definition;
mod drain_role;
mod fail_point;
mod pool;
mod protocol;
mod scheduler;
mod supervisor;
mod task;
mod worker;
mod zygote;

pub use completions::Completions;
pub use definition::Definition;
pub use fail_point::{FAIL_POINTS, fail_point};
pub use pool::{
    Initializer, Pool, PoolOptions, PoolStats, Refused, WorkerStats, close_life_lines_after_fork,
};
pub use protocol::{ResultKind, Section, TaskKind, WorkerKey};
pub use scheduler::{Loss, Scheduler, Slot};
pub use supervisor::{Launcher, LogLine, Supervisor};
pub use task::{Breakage, Bytes, Cause, Entry, Outcome, Task};
pub use worker::{Claimed, Unreadable, WorkerEnd};
pub use zygote::{Birth, Request, Zygote};

/// One of our own rules is broken: nothing can be trusted any more, so the process ends, saying what
/// happened.
pub(crate) fn bug(what: &str) -> ! {
    use std::io::Write;
    // If even standard error is closed, the abort still tells.
    let _written = writeln!(
        std::io::stderr(),
        "manyhands: internal error: {what}; please report it"
    );
    std::process::abort()
}
