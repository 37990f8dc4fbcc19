//! Watching how much memory tasks take that may take only so much.
//!
//! A task's memory is by how much the private memory of its worker has grown since the task began: what the
//! worker notes at the start of each item that is watched, taken off what the supervisor sees from outside. So
//! what came before is nobody's: what the worker had imported, what an earlier task has left. Where a task
//! finds memory that an earlier one has given back to the allocator, it grows by less than it uses.
//!
//! The supervisor looks at a worker as often as that could matter: after the time in which what is left
//! could be filled at the pace `FASTEST`, within `SOONEST` and `LATEST`. A look is one system call for a worker
//! that runs an item with a limit, and none for all others. Nothing tells the supervisor that such an item has
//! begun, so while any is pending it comes at least as often as the smallest limit asks for.
//!
//! Who is above its limit is killed at once, its process group with it: what it was asked to do in its grace
//! it could do at two gigabytes a second. So the memory is free at once too, which an interpreter that lives on
//! would keep. What the worker had not started goes to others.

use super::stopping::{Why, limits_of};
use super::{Pool, Seat, State};
use crate::scheduler::Slot;
use crate::seat::Worker;
use manyhands_os::MemoryGauge;
use manyhands_shm::QueueWord;

/// How many bytes a process may add in a nanosecond: it writes zeros to fresh pages.
const FASTEST: u64 = 2;
/// The shortest and the longest time between two looks, in nanoseconds.
const SOONEST: u64 = 5_000_000;
const LATEST: u64 = 200_000_000;

/// After how many nanoseconds to look again at who may add so many bytes.
pub(super) fn look_after(left: u64) -> u64 {
    (left / FASTEST).clamp(SOONEST, LATEST)
}

/// What a worker runs that may add only so much memory.
#[derive(Debug, PartialEq, Eq)]
struct Running {
    /// Its number there.
    number: u32,
    limit: u64,
}

impl Pool {
    /// Ends what this worker runs if that takes too much memory; when to look again, if that is needed.
    pub(super) fn look_at_memory(&self, state: &mut State, index: usize, now: u64) -> Option<u64> {
        let slot = Slot(index as u32);
        let running = running(state, slot)?;
        let Running { number, limit } = running;
        let added = match added(state, slot, number) {
            Ok(added) => added,
            Err(again) => return again.then_some(now + SOONEST),
        };
        if added <= limit {
            return Some(now + look_after(limit - added));
        }
        // It takes too much, unless its result is there.
        if self.drain_seat(state, index) {
            self.settle_if_due(state);
            self.refill(state, slot);
        }
        if self::running(state, slot) == Some(running) {
            let why = Why::Memory { limit, peak: added };
            self.stop(state, slot, number, why);
        }
        Some(now + SOONEST)
    }
}

/// What this worker runs, if that has a limit and is not being ended.
fn running(state: &State, slot: Slot) -> Option<Running> {
    let Seat::Taken(worker) = &state.seats[slot.0 as usize] else {
        return None;
    };
    if worker.stop.is_some() {
        return None;
    }
    let number = running_number(state, slot)?;
    let limit = limits_of(state, slot, number)?.memory?;
    Some(Running { number, limit })
}

/// The number of what this worker runs, or has run last if that was not read.
pub(super) fn running_number(state: &State, slot: Slot) -> Option<u32> {
    let Seat::Taken(worker) = &state.seats[slot.0 as usize] else {
        return None;
    };
    let next = worker.control.queue().state().next;
    (next != worker.oldest).then(|| QueueWord::distance(1, next))
}

/// How much private memory this worker has now; none if nobody knows.
pub(super) fn own_memory(worker: &mut Worker) -> Option<u64> {
    let process = worker.process.as_ref()?;
    if worker.gauge.is_none() {
        worker.gauge = MemoryGauge::of(process.pid()).ok();
    }
    worker.gauge.as_ref()?.read()
}

/// How many bytes the worker has added since the item of this number began; where nobody knows, whether that may
/// change.
pub(super) fn added(state: &mut State, slot: Slot, number: u32) -> Result<u64, bool> {
    let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
        return Err(false);
    };
    if worker.process.is_none() {
        return Err(true); // it was forked just now
    }
    // In this order: if the item still runs afterwards, both are of its run.
    let before = worker.control.memory_before(number).ok_or(true)?;
    let now = own_memory(worker).ok_or(false)?;
    Ok(now.saturating_sub(before))
}
