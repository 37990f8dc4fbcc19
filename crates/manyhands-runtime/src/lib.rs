//! A process pool for tasks that are bytes.
//!
//! The parent alone schedules, allocates and counts (`pool`, `scheduler`); one thread looks after the
//! processes (`supervisor`); workers claim and publish (`worker`); a zygote forks them (`zygote`).
//! What they say to each other is in `protocol`. What the bytes mean is the business of the face on
//! top: nothing here knows a language.

// Under loom only what has a model there is compiled.
#[cfg(not(manyhands_loom))]
mod block;
#[cfg(not(manyhands_loom))]
mod completions;
#[cfg(not(manyhands_loom))]
mod definition;
#[cfg_attr(
    manyhands_loom,
    allow(dead_code, reason = "only its model uses it there")
)]
mod drain_role;
#[cfg(not(manyhands_loom))]
mod dump;
#[cfg(not(manyhands_loom))]
mod events;
#[cfg(not(manyhands_loom))]
mod fail_point;
#[cfg(not(manyhands_loom))]
mod lease;
#[cfg(not(manyhands_loom))]
mod life_line;
#[cfg(not(manyhands_loom))]
mod nested;
#[cfg(not(manyhands_loom))]
mod oom_watch;
#[cfg(not(manyhands_loom))]
mod output;
#[cfg(not(manyhands_loom))]
mod pool;
#[cfg(not(manyhands_loom))]
mod protocol;
#[cfg(not(manyhands_loom))]
mod ranked;
#[cfg(not(manyhands_loom))]
mod scheduler;
#[cfg(not(manyhands_loom))]
mod seat;
#[cfg(not(manyhands_loom))]
mod store;
#[cfg(not(manyhands_loom))]
mod supervisor;
#[cfg(not(manyhands_loom))]
mod task;
#[cfg(not(manyhands_loom))]
mod unseen;
#[cfg(not(manyhands_loom))]
mod wakes;
#[cfg(not(manyhands_loom))]
mod worker;
#[cfg(not(manyhands_loom))]
mod zygote;
#[cfg(not(manyhands_loom))]
pub use block::{
    Block, Form, ITEM_WORD, LONGEST_ITEM, Over, Piece, Stream, StreamOptions, Taken, Tally,
    item_word, next_item,
};
#[cfg(not(manyhands_loom))]
pub use completions::Completions;
#[cfg(not(manyhands_loom))]
pub use definition::Definition;
#[cfg(not(manyhands_loom))]
pub use dump::{Answer, PoolDump, resume_dump};
#[cfg(not(manyhands_loom))]
pub use events::{Event, EventKind, Events, How, Label, Memory, Tasks, Who, Why, number_of_map};
#[cfg(not(manyhands_loom))]
pub use fail_point::{FAIL_POINTS, fail_point};
#[cfg(not(manyhands_loom))]
pub use lease::{Buffer, Hold};
#[cfg(not(manyhands_loom))]
pub use life_line::close_life_lines_after_fork;
#[cfg(not(manyhands_loom))]
pub use nested::caller::Caller;
#[cfg(not(manyhands_loom))]
pub use output::{LONGEST_NOTE, Note, Outlet, Output};
#[cfg(not(manyhands_loom))]
pub use pool::{
    Awaited, Initializer, Pool, PoolOptions, PoolStats, Recycling, Refused, STALLED_AFTER,
    WorkerStats,
};
#[cfg(not(manyhands_loom))]
pub use protocol::{ITEM_MORE, Reference, ResultKind, Section, TaskKind, WorkerKey};
#[cfg(not(manyhands_loom))]
pub use ranked::{Rank, Ranked, RankedQueue};
#[cfg(not(manyhands_loom))]
pub use scheduler::{Loss, Revoked, Scheduler, Slot, Work};
#[cfg(not(manyhands_loom))]
pub use store::{
    InFlight, NoDisk, NoRoom, Shortage, Store, StoreBlock, StoreStats, View, Views, Waited,
    memory_in_band, memory_to_take,
};
#[cfg(not(manyhands_loom))]
pub use supervisor::{Launcher, LogLine, Supervisor};
#[cfg(not(manyhands_loom))]
pub use task::{
    Breakage, Bytes, Cause, Death, Deaths, Entry, Limits, Outcome, Retry, Stored, Task,
};
#[cfg(not(manyhands_loom))]
pub use unseen::{Fate, Unseen};
#[cfg(not(manyhands_loom))]
pub use wakes::Wakes;
#[cfg(not(manyhands_loom))]
pub use worker::{Claimed, Filled, Next, Room, StopWord, Unreadable, Unwanted, WorkerEnd};
#[cfg(not(manyhands_loom))]
pub use zygote::{Birth, Request, Zygote};

#[cfg(not(manyhands_loom))]
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
