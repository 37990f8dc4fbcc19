//! The rows: a process dies at a fail point under some load, and this is left.

use crate::crash_table::again;
use crate::crash_table::blocks;
use crate::crash_table::case::Case;
use crate::crash_table::helpers::{cancel_waiting, until_stats, wait};
use crate::crash_table::memory;
use crate::crash_table::output;
use crate::crash_table::recycling;
use crate::crash_table::site::{Job, LARGE, Site};
use crate::crash_table::stalls;
use crate::crash_table::stopping;
use crate::crash_table::stored;
use crate::crash_table::stream::Items;
use crate::crash_table::taught;
use crate::crash_table::worker::THREAD_MODULE;
use manyhands_runtime::{Cause, Definition, FAIL_POINTS, Pool, Recycling};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

/// What the pool is doing when the process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// `Site::submit_mixture`, two workers.
    Mixture,
    /// The same, and every worker runs an initializer first.
    Initializer,
    /// The same by workers that are started one by one, since the zygote has threads.
    Spawned,
    /// The same, and the pool is closed while it runs.
    Closing,
    /// Tasks with large arguments.
    LargeArguments,
    /// Tasks with large results.
    LargeResults,
    /// Tasks with both, one worker.
    LargeBoth,
    /// One worker, one task, then the end of the pool.
    OneAndExit,
    /// The mixture, half of which is cancelled.
    Cancelling,
    /// Streams of short items in blocks, ordered and not, two workers.
    Blocks,
    /// The same by one worker.
    BlocksAlone,
    /// The same with all kinds of items, among them such that yield.
    BlocksOfAllKinds,
    /// Blocks that are cut again and again: workers without work get what waits elsewhere.
    BlocksStolen,
    /// Streams of which the end is cancelled.
    BlocksCancelled,
    /// Blocks with large definitions, one worker.
    BlocksByFile,
    /// Tasks that submit tasks that submit tasks, two workers.
    Nested,
    /// The same, and the pool is closed while it runs.
    NestedClosing,
    /// Tasks whose arguments and results are in blocks of the store, two workers.
    Stored,
    /// The same by one worker.
    StoredAlone,
    /// The same, and the pool is closed while it runs.
    StoredClosing,
    /// Tasks with definitions whose buffers are in blocks, two workers.
    Taught,
    /// Tasks that submit tasks whose results are in blocks.
    StoredNested,
    /// The mixture by workers that give way after seven tasks.
    Recycled,
    /// The same, after an initializer.
    RecycledInitializer,
    /// The same, and the pool is closed while it runs.
    RecycledClosing,
    /// Streams of short items by such workers.
    RecycledBlocks,
    /// Tasks that submit tasks, by such workers.
    RecycledNested,
    /// Tasks that put out something, two workers.
    Output,
    /// The mixture in a pool that becomes larger and smaller while it runs.
    Resized,
    /// Tasks and items that are ended while they run, two workers.
    Stopped,
    /// The same tasks by one worker.
    StoppedAlone,
    /// All of them, and the pool is closed while they run.
    StoppedClosing,
    /// Tasks that take too much memory, two workers.
    Swallowing,
    /// Tasks that run again, two workers.
    Again,
    /// The same, and the pool is closed while they run.
    AgainClosing,
    /// Two workers that run something are asked what it is.
    Asked,
}

/// What happens to the task that a worker had started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// Nothing is lost.
    None,
    /// One task, before its first instruction.
    Unstarted,
    /// One task that had run to its end.
    Finished,
    /// At most one task.
    AtMostOne,
}

pub(crate) struct Row {
    point: &'static str,
    /// At which time of coming there the process dies.
    nth: u32,
    load: Load,
    loss: Loss,
    /// How many deaths of workers the pool counts.
    deaths: RangeInclusive<u64>,
}

const fn row(
    point: &'static str,
    nth: u32,
    load: Load,
    loss: Loss,
    deaths: RangeInclusive<u64>,
) -> Row {
    Row {
        point,
        nth,
        load,
        loss,
        deaths,
    }
}

/// The table.
pub(crate) fn rows() -> Vec<Row> {
    use Load::{
        Again, AgainClosing, Asked, Blocks, BlocksAlone, BlocksByFile, BlocksCancelled,
        BlocksOfAllKinds, BlocksStolen, Cancelling, Closing, Initializer, LargeArguments,
        LargeBoth, LargeResults, Mixture, Nested, NestedClosing, OneAndExit, Output, Recycled,
        RecycledBlocks, RecycledClosing, RecycledInitializer, RecycledNested, Resized, Spawned,
        Stopped, StoppedAlone, StoppedClosing, Stored, StoredAlone, StoredClosing, StoredNested,
        Swallowing, Taught,
    };
    use Loss::{AtMostOne, Finished, None, Unstarted};
    vec![
        // A worker that starts has claimed nothing.
        row("worker.started", 1, Mixture, None, 1..=1),
        row("worker.started", 1, Initializer, None, 1..=1),
        row("worker.started", 1, Closing, None, 1..=1),
        row("worker.started", 1, Spawned, None, 1..=1),
        // From the claim on the task has started: it is lost, though it never ran.
        row("worker.claimed", 1, Mixture, Unstarted, 1..=1),
        row("worker.claimed", 17, Mixture, Unstarted, 1..=1),
        row("worker.claimed", 1, Initializer, None, 1..=1),
        row("worker.claimed", 2, Initializer, Unstarted, 1..=1),
        row("worker.claimed", 5, Closing, Unstarted, 1..=1),
        row("worker.claimed", 5, Spawned, Unstarted, 1..=1),
        row("worker.claimed", 2, LargeArguments, Unstarted, 1..=1),
        // The second claim is that of the message to leave.
        row("worker.claimed", 2, OneAndExit, None, 0..=0),
        row("worker.claimed", 1, Blocks, Unstarted, 1..=1),
        row("worker.claimed", 2, BlocksAlone, Unstarted, 1..=1),
        row("worker.claimed", 20, BlocksAlone, Unstarted, 1..=1),
        row("worker.claimed", 21, BlocksAlone, Unstarted, 1..=1),
        row("worker.claimed", 23, BlocksOfAllKinds, Unstarted, 1..=1),
        row("worker.claimed", 9, BlocksStolen, Unstarted, 1..=1),
        row("worker.claimed", 2, BlocksByFile, Unstarted, 1..=1),
        row("worker.claimed", 6, BlocksCancelled, Unstarted, 1..=1),
        // It has read what came along, such as definitions.
        row("worker.body_read", 1, Mixture, Unstarted, 1..=1),
        row("worker.body_read", 9, Mixture, Unstarted, 1..=1),
        row("worker.body_read", 2, BlocksByFile, Unstarted, 1..=1),
        row("worker.body_read", 1, Taught, Unstarted, 1..=1),
        row("worker.body_read", 4, Taught, Unstarted, 1..=1),
        row("worker.finished", 3, Taught, Finished, 1..=1),
        row("worker.released", 1, Taught, AtMostOne, 1..=1),
        row("worker.published", 4, Taught, None, 1..=1),
        row("worker.before_park", 1, Taught, None, 1..=1),
        // The first item of a block is claimed with it.
        row("worker.block_opened", 1, Blocks, Unstarted, 1..=1),
        row("worker.block_opened", 3, BlocksAlone, Unstarted, 1..=1),
        row("worker.block_opened", 2, BlocksStolen, Unstarted, 1..=1),
        row("worker.block_opened", 1, BlocksByFile, Unstarted, 1..=1),
        row("worker.block_opened", 3, BlocksByFile, Unstarted, 1..=1),
        // It ran, and nobody will know what it returned.
        row("worker.finished", 1, Blocks, Finished, 1..=1),
        row("worker.finished", 19, BlocksAlone, Finished, 1..=1),
        row("worker.finished", 40, BlocksOfAllKinds, AtMostOne, 1..=1),
        row("worker.finished", 9, BlocksStolen, Finished, 1..=1),
        row("worker.finished", 7, BlocksCancelled, Finished, 1..=1),
        row("worker.file_sent", 1, BlocksOfAllKinds, Finished, 1..=1),
        row("worker.file_sent", 2, BlocksOfAllKinds, Finished, 1..=1),
        row("worker.record_written", 20, BlocksAlone, Finished, 1..=1),
        row(
            "worker.record_written",
            45,
            BlocksOfAllKinds,
            AtMostOne,
            1..=1,
        ),
        row("worker.finished", 1, Mixture, Finished, 1..=1),
        row("worker.finished", 17, Mixture, Finished, 1..=1),
        row("worker.finished", 1, Initializer, None, 1..=1),
        row("worker.finished", 5, Closing, Finished, 1..=1),
        row("worker.finished", 2, LargeArguments, Finished, 1..=1),
        row("worker.file_sent", 1, Mixture, Finished, 1..=1),
        row("worker.file_sent", 2, LargeResults, Finished, 1..=1),
        row("worker.file_sent", 2, LargeBoth, Finished, 1..=1),
        row("worker.file_sent", 1, Closing, Finished, 1..=1),
        row("worker.file_sent", 1, Spawned, Finished, 1..=1),
        row("worker.record_written", 1, Mixture, Finished, 1..=1),
        row("worker.record_written", 17, Mixture, Finished, 1..=1),
        row("worker.record_written", 1, Initializer, None, 1..=1),
        row("worker.record_written", 2, LargeResults, Finished, 1..=1),
        row("worker.record_written", 5, Closing, Finished, 1..=1),
        // What is published counts, whoever was told.
        row("worker.published", 1, Mixture, None, 1..=1),
        row("worker.published", 17, Mixture, None, 1..=1),
        row("worker.published", 1, Initializer, None, 1..=1),
        row("worker.published", 1, LargeBoth, None, 1..=1),
        row("worker.published", 2, LargeBoth, None, 1..=1),
        row("worker.published", 2, LargeResults, None, 1..=1),
        row("worker.published", 5, Closing, None, 1..=1),
        row("worker.published", 1, OneAndExit, None, 0..=1),
        row("worker.published", 1, Blocks, None, 1..=1),
        row("worker.published", 19, BlocksAlone, None, 1..=1),
        row("worker.published", 20, BlocksAlone, None, 1..=1),
        row("worker.published", 44, BlocksOfAllKinds, AtMostOne, 1..=1),
        row("worker.published", 9, BlocksStolen, None, 1..=1),
        row("worker.published", 2, BlocksByFile, None, 1..=1),
        row("worker.lap_published", 1, Blocks, None, 1..=1),
        row("worker.lap_published", 4, BlocksAlone, None, 1..=1),
        row(
            "worker.lap_published",
            7,
            BlocksOfAllKinds,
            AtMostOne,
            1..=1,
        ),
        row("worker.announced", 19, BlocksAlone, None, 1..=1),
        row("worker.announced", 9, BlocksStolen, None, 1..=1),
        row("worker.before_park", 1, Blocks, None, 1..=1),
        row("worker.announced", 1, Mixture, None, 1..=1),
        row("worker.announced", 2, LargeResults, None, 1..=1),
        row("worker.announced", 1, Initializer, None, 1..=1),
        row("worker.announced", 2, Closing, None, 1..=1),
        row("worker.before_park", 1, Mixture, None, 1..=1),
        row("worker.woken", 1, Mixture, None, 1..=1),
        row("worker.before_park", 1, Initializer, None, 1..=1),
        // Who asks is lost with all its calls; whose call dies is told so.
        row("worker.line_sent", 1, Nested, AtMostOne, 1..=1),
        row("worker.line_sent", 1, NestedClosing, AtMostOne, 1..=1),
        row("worker.call_packed", 1, Nested, AtMostOne, 1..=1),
        row("worker.call_packed", 2, Nested, AtMostOne, 1..=1),
        row("worker.call_packed", 6, Nested, AtMostOne, 1..=1),
        row("worker.call_packed", 4, NestedClosing, AtMostOne, 1..=1),
        row("worker.call_sent", 1, Nested, AtMostOne, 1..=1),
        row("worker.call_sent", 3, Nested, AtMostOne, 1..=1),
        row("worker.call_sent", 9, Nested, AtMostOne, 1..=1),
        row("worker.call_sent", 5, NestedClosing, AtMostOne, 1..=1),
        row("worker.started", 1, Nested, AtMostOne, 1..=1),
        row("worker.claimed", 3, Nested, AtMostOne, 1..=1),
        row("worker.claimed", 9, Nested, AtMostOne, 1..=1),
        row("worker.finished", 6, Nested, AtMostOne, 1..=1),
        row("worker.file_sent", 1, Nested, AtMostOne, 1..=1),
        row("worker.published", 4, Nested, None, 1..=1),
        row("worker.published", 9, NestedClosing, None, 1..=1),
        // What it put out before is there, and nobody waits for what comes after.
        row("worker.output_given", 1, Output, Finished, 1..=1),
        row("worker.output_given", 5, Output, Finished, 1..=1),
        row("worker.output_published", 1, Output, Finished, 1..=1),
        row("worker.output_published", 6, Output, Finished, 1..=1),
        row("worker.published", 3, Output, None, 1..=1),
        row("worker.claimed", 4, Output, Unstarted, 1..=1),
        row("parent.output_taken", 1, Output, AtMostOne, 0..=0),
        row("parent.output_taken", 7, Output, AtMostOne, 0..=0),
        // What a worker may look at or write is free when it is dead; who asks for a block runs.
        row("worker.block_asked", 1, Stored, Finished, 1..=1),
        row("worker.block_asked", 4, StoredAlone, Finished, 1..=1),
        row("worker.block_asked", 2, StoredClosing, Finished, 1..=1),
        row("worker.block_asked", 2, StoredNested, AtMostOne, 1..=1),
        row("worker.block_granted", 1, Stored, Finished, 1..=1),
        row("worker.block_granted", 4, StoredAlone, Finished, 1..=1),
        row("worker.block_granted", 2, StoredClosing, Finished, 1..=1),
        row("worker.block_granted", 2, StoredNested, AtMostOne, 1..=1),
        row("worker.released", 1, Stored, AtMostOne, 1..=1),
        row("worker.released", 2, Stored, AtMostOne, 1..=1),
        row("worker.released", 3, StoredAlone, AtMostOne, 1..=1),
        row("worker.released", 1, StoredClosing, AtMostOne, 1..=1),
        row("worker.released", 1, StoredNested, AtMostOne, 1..=1),
        row("worker.claimed", 2, Stored, Unstarted, 1..=1),
        row("worker.claimed", 5, StoredAlone, Unstarted, 1..=1),
        row("worker.finished", 2, Stored, Finished, 1..=1),
        row("worker.record_written", 3, StoredAlone, Finished, 1..=1),
        row("worker.published", 3, Stored, None, 1..=1),
        row("worker.published", 4, StoredAlone, None, 1..=1),
        row("worker.published", 2, StoredNested, None, 1..=1),
        row("worker.announced", 5, Stored, AtMostOne, 1..=1),
        row("worker.before_park", 1, Stored, None, 1..=1),
        row("worker.call_sent", 1, StoredNested, AtMostOne, 1..=1),
        row("parent.block_granted", 1, Stored, AtMostOne, 0..=0),
        row("parent.block_granted", 4, StoredAlone, AtMostOne, 0..=0),
        row("parent.block_granted", 2, StoredNested, AtMostOne, 0..=0),
        row("parent.record_written", 4, Stored, AtMostOne, 0..=0),
        row("parent.result_taken", 4, Stored, AtMostOne, 0..=0),
        row("parent.call_answered", 1, StoredNested, AtMostOne, 0..=0),
        row("zygote.forked", 1, Stored, AtMostOne, 0..=1),
        // The parent's death takes everybody along, wherever it happens.
        row("parent.block_made", 1, Mixture, AtMostOne, 0..=0),
        row("parent.block_made", 2, Mixture, AtMostOne, 0..=0),
        row("parent.block_made", 2, Spawned, AtMostOne, 0..=0),
        row("parent.fork_sent", 1, Mixture, AtMostOne, 0..=0),
        row("parent.fork_sent", 2, Initializer, AtMostOne, 0..=0),
        row("parent.fork_sent", 1, Spawned, AtMostOne, 0..=0),
        row("parent.record_written", 1, Mixture, AtMostOne, 0..=0),
        row("parent.record_written", 30, Mixture, AtMostOne, 0..=0),
        row("parent.record_written", 2, LargeArguments, AtMostOne, 0..=0),
        row("parent.task_published", 1, Initializer, AtMostOne, 0..=0),
        row("parent.task_published", 9, Closing, AtMostOne, 0..=0),
        row("parent.result_taken", 1, Mixture, AtMostOne, 0..=0),
        row("parent.result_taken", 30, Mixture, AtMostOne, 0..=0),
        row("parent.result_taken", 2, LargeResults, AtMostOne, 0..=0),
        row("parent.result_taken", 1, OneAndExit, AtMostOne, 0..=0),
        row("parent.revoked", 1, Cancelling, AtMostOne, 0..=0),
        row("parent.revoked", 3, Cancelling, AtMostOne, 0..=0),
        row("parent.revoked", 1, BlocksCancelled, AtMostOne, 0..=0),
        row("parent.revoked", 2, BlocksStolen, AtMostOne, 0..=0),
        row("parent.block_cut", 1, BlocksCancelled, AtMostOne, 0..=0),
        row("parent.block_cut", 1, BlocksStolen, AtMostOne, 0..=0),
        row("parent.block_cut", 3, BlocksStolen, AtMostOne, 0..=0),
        row("parent.call_heard", 1, Nested, AtMostOne, 0..=0),
        row("parent.call_heard", 2, Nested, AtMostOne, 0..=0),
        row("parent.call_heard", 17, Nested, AtMostOne, 0..=0),
        row("parent.call_heard", 5, NestedClosing, AtMostOne, 0..=0),
        row("parent.call_answered", 1, Nested, AtMostOne, 0..=0),
        row("parent.call_answered", 9, Nested, AtMostOne, 0..=0),
        row("parent.call_answered", 5, NestedClosing, AtMostOne, 0..=0),
        row("parent.revoked", 2, Nested, AtMostOne, 0..=0),
        row("parent.record_written", 9, Nested, AtMostOne, 0..=0),
        row("parent.block_made", 3, Nested, AtMostOne, 0..=0),
        row("parent.record_written", 3, Blocks, AtMostOne, 0..=0),
        row("parent.record_written", 3, BlocksByFile, AtMostOne, 0..=0),
        row("parent.task_published", 4, Blocks, AtMostOne, 0..=0),
        row("parent.task_published", 6, BlocksStolen, AtMostOne, 0..=0),
        row("parent.result_taken", 5, Blocks, AtMostOne, 0..=0),
        row("parent.result_taken", 9, BlocksOfAllKinds, AtMostOne, 0..=0),
        // Without a zygote what was asked of it is asked of the next. A worker that it forked and
        // did not report may have started a task.
        row("zygote.request_read", 1, Mixture, None, 0..=0),
        row("zygote.request_read", 2, Mixture, None, 0..=0),
        row("zygote.request_read", 1, Initializer, None, 0..=0),
        row("zygote.request_read", 1, Closing, None, 0..=0),
        row("zygote.request_read", 1, OneAndExit, None, 0..=0),
        row("zygote.request_read", 1, Spawned, None, 0..=0),
        row("zygote.forked", 1, Mixture, AtMostOne, 0..=1),
        row("zygote.forked", 1, Initializer, AtMostOne, 0..=1),
        row("zygote.forked", 1, LargeResults, AtMostOne, 0..=1),
        row("zygote.forked", 1, Closing, AtMostOne, 0..=1),
        row("zygote.request_read", 1, Blocks, None, 0..=0),
        row("zygote.forked", 1, Blocks, AtMostOne, 0..=1),
        row("zygote.reported", 1, Blocks, None, 0..=0),
        row("zygote.reported", 1, Mixture, None, 0..=0),
        row("zygote.reported", 1, Initializer, None, 0..=0),
        row("zygote.reported", 1, Closing, None, 0..=0),
        row("zygote.reported", 1, OneAndExit, None, 0..=0),
        row("zygote.request_read", 3, Nested, None, 0..=0),
        row("zygote.forked", 3, Nested, AtMostOne, 0..=1),
        row("zygote.reported", 3, Nested, None, 0..=0),
        // Workers that give way: who was told to leave has nothing to lose, and is no death.
        row("worker.started", 1, Recycled, None, 0..=1),
        row("worker.started", 1, RecycledInitializer, None, 0..=1),
        row("worker.started", 1, RecycledBlocks, None, 0..=1),
        row("worker.started", 1, RecycledNested, None, 0..=1),
        row("worker.claimed", 7, Recycled, AtMostOne, 0..=1),
        row("worker.claimed", 8, Recycled, AtMostOne, 0..=1),
        row("worker.claimed", 8, RecycledInitializer, AtMostOne, 0..=1),
        row("worker.claimed", 7, RecycledClosing, AtMostOne, 0..=1),
        row("worker.claimed", 8, RecycledBlocks, AtMostOne, 0..=1),
        row("worker.claimed", 8, RecycledNested, AtMostOne, 0..=1),
        row("worker.claimed", 5, Resized, AtMostOne, 0..=1),
        row("worker.finished", 7, Recycled, AtMostOne, 0..=1),
        row("worker.finished", 7, RecycledBlocks, AtMostOne, 0..=1),
        row("worker.record_written", 7, Recycled, AtMostOne, 0..=1),
        row("worker.published", 7, Recycled, None, 0..=1),
        row("worker.published", 7, RecycledClosing, None, 0..=1),
        row("worker.published", 7, RecycledNested, AtMostOne, 0..=1),
        row("worker.published", 3, Resized, None, 0..=1),
        row("worker.before_park", 2, Resized, None, 0..=1),
        row("zygote.forked", 4, Recycled, None, 0..=1),
        row("zygote.reported", 4, Recycled, None, 0..=1),
        row("zygote.request_read", 4, RecycledBlocks, None, 0..=1),
        row("parent.relieved", 1, Recycled, AtMostOne, 0..=1),
        row("parent.relieved", 3, RecycledBlocks, AtMostOne, 0..=1),
        row("parent.relieved", 2, RecycledNested, AtMostOne, 0..=1),
        row("parent.told_to_leave", 1, Recycled, AtMostOne, 0..=1),
        row("parent.told_to_leave", 3, RecycledClosing, AtMostOne, 0..=1),
        row("parent.told_to_leave", 1, Resized, AtMostOne, 0..=1),
        // What is being ended ends so, wherever its worker dies: that is no death, and nothing else is lost.
        row("worker.unwanted_seen", 1, Stopped, None, 0..=0),
        row("worker.unwanted_seen", 1, StoppedAlone, None, 0..=0),
        row("worker.unwanted_seen", 2, StoppedAlone, None, 0..=0),
        row("worker.unwanted_seen", 1, StoppedClosing, None, 0..=0),
        row("worker.finished", 1, StoppedAlone, None, 0..=0),
        row("worker.finished", 2, StoppedAlone, None, 0..=0),
        row("worker.record_written", 1, StoppedAlone, None, 0..=0),
        row("worker.published", 1, StoppedAlone, None, 0..=1),
        row("worker.published", 2, StoppedAlone, None, 0..=1),
        row("worker.announced", 1, StoppedAlone, None, 0..=1),
        row("worker.claimed", 2, Stopped, AtMostOne, 0..=1),
        row("worker.claimed", 2, StoppedClosing, AtMostOne, 0..=1),
        row("worker.claimed", 2, Swallowing, AtMostOne, 0..=1),
        row("zygote.request_read", 3, Stopped, None, 0..=0),
        row("zygote.forked", 3, Stopped, AtMostOne, 0..=1),
        row("zygote.reported", 3, Stopped, None, 0..=0),
        row("parent.unwanted_set", 1, Stopped, AtMostOne, 0..=0),
        row("parent.unwanted_set", 4, Stopped, AtMostOne, 0..=0),
        row("parent.unwanted_set", 6, StoppedClosing, AtMostOne, 0..=0),
        row("parent.unwanted_set", 1, Swallowing, AtMostOne, 0..=0),
        row("parent.unwanted_set", 1, Again, AtMostOne, 0..=0),
        row("parent.revoked", 2, Stopped, AtMostOne, 0..=0),
        row("parent.worker_killed", 1, Stopped, AtMostOne, 0..=0),
        row("parent.worker_killed", 3, Stopped, AtMostOne, 0..=0),
        row("parent.worker_killed", 2, StoppedClosing, AtMostOne, 0..=0),
        row("parent.worker_killed", 1, Swallowing, AtMostOne, 0..=0),
        row("parent.worker_killed", 2, Again, AtMostOne, 0..=0),
        // What runs again is not lost with its worker. Two tasks kill theirs, unless that is dead already.
        row("worker.claimed", 3, Again, AtMostOne, 2..=3),
        row("worker.claimed", 3, AgainClosing, AtMostOne, 2..=3),
        row("worker.finished", 1, Again, AtMostOne, 2..=3),
        row("worker.finished", 3, Again, AtMostOne, 2..=3),
        row("worker.published", 1, Again, None, 2..=3),
        row("worker.published", 3, AgainClosing, None, 2..=3),
        row("zygote.request_read", 3, Again, None, 2..=2),
        row("zygote.forked", 3, Again, AtMostOne, 2..=3),
        row("zygote.reported", 3, Again, None, 2..=2),
        row("parent.to_run_again", 1, Again, AtMostOne, 0..=0),
        row("parent.to_run_again", 5, Again, AtMostOne, 0..=0),
        row("parent.to_run_again", 4, AgainClosing, AtMostOne, 0..=0),
        row("parent.pause_ended", 1, Again, AtMostOne, 0..=0),
        row("parent.pause_ended", 4, Again, AtMostOne, 0..=0),
        row("parent.pause_ended", 3, AgainClosing, AtMostOne, 0..=0),
        row("parent.result_taken", 9, Again, AtMostOne, 0..=0),
        // Who dies of a question is a death as any other.
        row("worker.stack_written", 1, Asked, Finished, 1..=1),
        row("parent.stack_asked", 1, Asked, AtMostOne, 0..=0),
        row("parent.stack_asked", 2, Asked, AtMostOne, 0..=0),
    ]
}

impl Load {
    /// How many of its tasks and items are ended by their time, for their memory, and by who cancels them.
    fn ended(self) -> [RangeInclusive<usize>; 3] {
        match self {
            Self::StoppedAlone => {
                [stopping::TIMED_OUT, 0, stopping::CANCELLED].map(|count| count..=count)
            }
            Self::Stopped | Self::StoppedClosing => {
                let (first, items) = (stopping::TIMED_OUT, stopping::TIMED_OUT_ITEMS);
                let timed_out = first + items.start()..=first + items.end();
                [timed_out, 0..=0, stopping::CANCELLED..=stopping::CANCELLED]
            }
            Self::Swallowing => [0..=0, memory::OVER_MEMORY..=memory::OVER_MEMORY, 0..=0],
            Self::Again | Self::AgainClosing => [again::TIMED_OUT..=again::TIMED_OUT, 0..=0, 0..=0],
            Self::BlocksCancelled => [0..=0, 0..=0, 0..=usize::MAX],
            _ => [0..=0, 0..=0, 0..=0],
        }
    }
}

/// Every fail point has a row, and every row a fail point.
pub(crate) fn assert_complete() {
    let rows = rows();
    for point in FAIL_POINTS {
        assert!(
            rows.iter().any(|row| row.point == *point),
            "{point} has no row"
        );
    }
    for row in &rows {
        assert!(
            FAIL_POINTS.contains(&row.point),
            "there is no fail point {}",
            row.point
        );
    }
}

impl Row {
    fn driver_dies(&self) -> bool {
        self.point.starts_with("parent.")
    }

    pub(crate) fn into_case(self) -> Case {
        let expectation = if self.driver_dies() {
            "no process left, no task run twice".to_owned()
        } else {
            let loss = match self.loss {
                Loss::None => "every task runs once",
                Loss::Unstarted => "one task lost that never ran",
                Loss::Finished => "one task lost that had run",
                Loss::AtMostOne => "at most one task lost",
            };
            format!("{loss}, {:?} deaths", self.deaths)
        };
        Case {
            name: format!("{}:{} {:?}", self.point, self.nth, self.load),
            expectation,
            driver_dies: self.driver_dies(),
            body: Box::new(move |site| self.drive(site)),
        }
    }

    fn drive(&self, site: &Site) {
        if self.driver_dies() {
            // SAFETY: this process has one thread that looks at its environment.
            unsafe {
                std::env::set_var("MANYHANDS_CRASH_AT", format!("{}:{}", self.point, self.nth));
                std::env::set_var("MANYHANDS_CRASH_ONCE", site.crash_mark());
            }
        } else {
            site.crash_at(self.point, self.nth);
        }
        if self.load == Load::Spawned {
            site.supervisor.preload(vec![THREAD_MODULE.into()]);
            site.supervisor.warm().unwrap();
        }
        let alone = matches!(
            self.load,
            Load::OneAndExit
                | Load::LargeBoth
                | Load::BlocksAlone
                | Load::BlocksByFile
                | Load::StoredAlone
                | Load::StoppedAlone
        );
        let workers = if alone { 1 } else { 2 };
        let initializes = matches!(self.load, Load::Initializer | Load::RecycledInitializer);
        let initializer = initializes.then_some("echo:ready");
        let recycles = matches!(
            self.load,
            Load::Recycled
                | Load::RecycledInitializer
                | Load::RecycledClosing
                | Load::RecycledBlocks
                | Load::RecycledNested
        );
        let recycling = if recycles {
            recycling::after(7)
        } else {
            Recycling::default()
        };
        let pool = site.pool_of_recycled(workers, initializer, recycling);
        let jobs = self.submit(site, &pool);
        let mut streams = self.submit_streams(site, &pool);
        if self.load == Load::Resized {
            for width in [4, 1, 3, 2] {
                assert!(pool.resize(width));
                std::thread::sleep(Duration::from_millis(3)); // for the workers to come and go
            }
        }
        let closed = matches!(
            self.load,
            Load::RecycledClosing
                | Load::Closing
                | Load::OneAndExit
                | Load::NestedClosing
                | Load::StoredClosing
                | Load::StoppedClosing
                | Load::AgainClosing
        );
        if closed {
            pool.close(false, false);
        }
        let mut tally = site.settle(&pool, &jobs);
        for items in &mut streams {
            tally.merge(items.settle(site, &pool));
        }
        site.wait_for_crash();
        let all = jobs.len() + streams.iter().map(Items::len).sum::<usize>();
        drop(jobs);
        // A death in a closed pool is counted before its last worker is gone.
        if !closed {
            until_stats(&pool, |stats| stats.deaths >= *self.deaths.start());
            site.assert_usable(&pool);
            if self.load == Load::Taught {
                site.assert_all_usable(&pool, workers);
            }
            site.assert_no_blocks();
            pool.close(false, false);
        }
        let lost = tally.died.len() + tally.calls_died;
        match self.loss {
            Loss::None => assert_eq!(lost, 0, "{tally:?}"),
            Loss::AtMostOne => assert!(lost <= 1, "{tally:?}"),
            Loss::Unstarted | Loss::Finished => {
                assert_eq!(lost, 1, "{tally:?}");
                let (number, pid, cause) = tally.died[0];
                assert!(pid > 0);
                assert_eq!(cause, Cause::Signal(libc::SIGKILL));
                let ran = site.runs().get(&number.to_string()).copied();
                let expected = (self.loss == Loss::Finished).then_some(1);
                assert_eq!(ran, expected, "runs of the lost task");
            }
        }
        let ended = [tally.timed_out, tally.over_memory, tally.cancelled];
        for (ended, expected) in ended.into_iter().zip(self.load.ended()) {
            // What is lost may have been one of them.
            let enough = ended + lost >= *expected.start();
            assert!(enough && ended <= *expected.end(), "{tally:?}");
        }
        let ended: usize = ended.into_iter().sum();
        assert_eq!(tally.values + ended, all - lost, "{tally:?}");
        let runs = match self.load {
            Load::BlocksCancelled => 0,
            _ => tally.cancelled,
        };
        assert_eq!(tally.cancelled_runs, runs, "{tally:?}");
        let stats = site.finish_closed(pool);
        assert_eq!(stats.lent, 0);
        let deaths = stats.deaths;
        assert!(self.deaths.contains(&deaths), "{deaths} deaths");
    }

    fn submit(&self, site: &Site, pool: &Pool) -> Vec<Job> {
        match self.load {
            Load::Mixture
            | Load::Initializer
            | Load::Spawned
            | Load::Closing
            | Load::Recycled
            | Load::RecycledInitializer
            | Load::RecycledClosing
            | Load::Resized => site.submit_mixture(pool),
            Load::LargeArguments => (0..8).map(|i| site.submit_bytes(pool, LARGE + i)).collect(),
            Load::LargeBoth => (0..8).map(|_| site.submit_mirror(pool, LARGE)).collect(),
            Load::LargeResults => (0..8)
                .map(|i| site.submit(pool, &format!("big:{}", LARGE + i)))
                .collect(),
            Load::Nested | Load::NestedClosing | Load::RecycledNested => {
                let mut jobs = vec![site.submit(pool, "ask:12 ask:2 echo:x")];
                jobs.extend((0..3).map(|_| site.submit(pool, "ask:2 ask:2 echo:x")));
                jobs.push(site.submit(pool, "ask_mirror:200000"));
                jobs.extend(site.submit_echoes(pool, 40));
                jobs.push(site.submit(pool, "ask_in_turn:3 ask:1 sleep:1"));
                jobs
            }
            Load::Stored | Load::StoredAlone | Load::StoredClosing => stored::submit(site, pool),
            Load::Taught => taught::submit(site, pool),
            Load::Output => output::submit(site, pool),
            Load::Stopped | Load::StoppedAlone | Load::StoppedClosing => {
                stopping::submit(site, pool)
            }
            Load::Swallowing => memory::submit(site, pool),
            Load::Again | Load::AgainClosing => again::submit(site, pool),
            Load::Asked => stalls::submit(site, pool),
            Load::StoredNested => {
                let mut jobs = stored::submit(site, pool);
                for count in [150_001, 150_003] {
                    let command = format!("ask:2 stored:{count} echo:x");
                    jobs.push(site.submit(pool, &command));
                }
                jobs
            }
            Load::OneAndExit => vec![site.submit(pool, "echo:alone")],
            Load::Cancelling => {
                let mut jobs = site.submit_mixture(pool);
                // Only what a worker has can be taken back from it.
                wait(pool, &jobs[0].task);
                // Longer than this thread may be kept from cancelling.
                jobs.push(site.submit(pool, "sleep:1000"));
                jobs.push(site.submit(pool, "sleep:1000"));
                jobs.extend(site.submit_echoes(pool, 20));
                for job in jobs.iter().rev().step_by(2) {
                    cancel_waiting(pool, &job.task);
                }
                jobs
            }
            _ => Vec::new(),
        }
    }

    fn submit_streams(&self, site: &Site, pool: &Pool) -> Vec<Items> {
        let mut streams = vec![Items::new(true), Items::new(false)];
        let echoes = ["echo:x"; 20];
        match self.load {
            Load::Blocks | Load::BlocksAlone | Load::RecycledBlocks => {
                for items in &mut streams {
                    for _ in 0..10 {
                        items.send(site, pool, &echoes);
                    }
                }
            }
            Load::BlocksOfAllKinds => {
                for items in &mut streams {
                    blocks::send_mixture(site, pool, items);
                }
            }
            Load::BlocksStolen => {
                // Both workers are there, and know that tasks are short.
                let folder = site.path("meeting");
                std::fs::create_dir(&folder).unwrap();
                let meet = format!("meet:{folder} 2");
                for items in &mut streams {
                    items.send(site, pool, &[&meet]);
                }
                for items in &mut streams {
                    items.take_until(pool, 1);
                }
                // One has something to do, of which the other gets half, again and again.
                streams[0].send(site, pool, &[&["sleep:100"][..], &["echo:x"; 60]].concat());
                for _ in 0..3 {
                    streams[1].send(site, pool, &echoes);
                }
            }
            Load::BlocksCancelled => {
                for items in &mut streams {
                    for _ in 0..5 {
                        items.send(site, pool, &[&["sleep:1"; 10][..], &echoes].concat());
                    }
                }
                // Only what a worker has can be taken back from it.
                streams[0].take_until(pool, 5);
                for items in &streams {
                    items.cancel(pool);
                }
                for items in &mut streams {
                    items.send(site, pool, &echoes);
                }
            }
            Load::BlocksByFile => {
                streams.clear();
                for seed in 0..4 {
                    let definition = Definition::new("d", vec![seed; 70_000].into(), [].into());
                    let mut items = Items::of(Some(definition), seed % 2 == 0);
                    items.send(site, pool, &["define:a", "define:b", "define:c"]);
                    items.send(site, pool, &["define:a", "define:b", "define:c"]);
                    streams.push(items);
                }
            }
            Load::Stopped | Load::StoppedClosing => streams = stopping::submit_streams(site, pool),
            _ => streams.clear(),
        }
        streams
    }
}

/// What a driver that died may have left: its mark, and no task of which one attempt ran twice.
pub(crate) fn check_after_death(folder: &Path) -> Result<(), String> {
    if !folder.join("crashed").exists() {
        return Err("the fail point was not reached".into());
    }
    let runs = std::fs::read_to_string(folder.join("runs")).unwrap();
    let mut counts = HashMap::new();
    for line in runs.lines() {
        let mut words = line.split(' ');
        let run = (words.next().unwrap(), words.nth(1).unwrap_or_default());
        *counts.entry(run).or_insert(0) += 1;
    }
    match counts
        .iter()
        .find(|&(run, &count)| run.0 != "init" && count > 1)
    {
        None => Ok(()),
        Some(((number, attempt), count)) => Err(format!(
            "attempt {attempt} of task {number} ran {count} times"
        )),
    }
}
