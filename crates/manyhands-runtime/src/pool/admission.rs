//! Which tasks may start, in a pool whose memory is limited.
//!
//! A task *reserves* what it may add to its worker (`Limits::memory`), or without such a limit an equal share,
//! the pool's memory by its workers. What a worker holds it runs one after another and is of one reservation, so
//! that the worker's is that of what it holds. A task is published to a worker only if, with it,
//!
//! - what all workers reserve is within the pool's memory, and
//! - it is within the *capacity*: what is really left, on the machine and in each control group, and what the
//!   tasks that run have added already, since that is a part of what they reserve.
//!
//! Else it waits in the queue, and all behind it, so that large tasks get their turn. One task may always run,
//! however little is left: nothing would ever go on otherwise. Who waits for tasks that it has submitted does not
//! count as one that runs, since it may have to wait for just these; so each level of nesting may go past
//! the limit by one task.
//!
//! What waits is looked at again with each result, and now and then, since nothing tells when others give memory
//! back. Capacity is looked at anew only after a while: what a task gives back at its end was in it before.

use super::memory::{added, running_number};
use super::{Pool, State};
use crate::protocol::TaskKind;
use crate::scheduler::Slot;
use crate::task::Entry;
use manyhands_os::{memory_left, monotonic_nanos};

/// For how long it is relied on what capacity was found, in nanoseconds.
const CAPACITY_HOLDS: u64 = 20_000_000;
/// How often it is looked whether what waits for memory may start, in nanoseconds.
pub(super) const LOOK_FOR_MEMORY: u64 = 100_000_000;

/// How much memory the tasks of a pool may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// The most bytes.
    limit: u64,
    /// What a task without a limit of its own reserves.
    share: u64,
}

impl Budget {
    pub(super) fn new(limit: u64, workers: usize) -> Self {
        let share = (limit / workers.max(1) as u64).max(1);
        Self { limit, share }
    }

    /// What the task reserves; nothing for what is no task.
    fn reservation(&self, entry: &Entry) -> u64 {
        match entry.kind {
            TaskKind::Run | TaskKind::Block => entry.limits.memory.unwrap_or(self.share),
            TaskKind::Initialize | TaskKind::Exit | TaskKind::Discard => 0,
        }
    }

    /// What a worker reserves.
    fn reserved(&self, state: &State, slot: Slot) -> u64 {
        // The last: start-up comes first.
        let last = state.scheduler.held(slot).next_back();
        last.map_or(0, |entry| self.reservation(entry))
    }
}

/// What was found of it.
#[derive(Debug, Default)]
pub(super) struct Capacity {
    bytes: u64,
    /// When that was, in nanoseconds; 0 before the first time.
    at: u64,
}

impl Pool {
    /// How much memory its tasks may take together, if that is limited.
    pub fn memory_limit(&self) -> Option<u64> {
        self.budget.map(|budget| budget.limit)
    }

    /// Whether the task could never start, since it alone reserves more than the pool has.
    pub(super) fn is_too_large(&self, entry: &Entry) -> bool {
        let budget = self.budget.as_ref();
        budget.is_some_and(|budget| budget.reservation(entry) > budget.limit)
    }

    /// Whether there is memory for the worker to hold the task; if not, it is looked at again in time.
    #[inline]
    pub(super) fn admits(&self, state: &mut State, slot: Slot, entry: &Entry) -> bool {
        let Some(budget) = self.budget else {
            return true;
        };
        let wanted = budget.reservation(entry);
        let Some(is_short) = self.lack(state, &budget, slot, wanted) else {
            return true;
        };
        state.is_held_back = true;
        state.is_short |= is_short;
        self.watch(state, monotonic_nanos().saturating_add(LOOK_FOR_MEMORY));
        false
    }

    /// Whether there is memory for an idle worker to hold what this one has last.
    pub(super) fn may_share(&self, state: &mut State, slot: Slot) -> bool {
        let Some(budget) = self.budget else {
            return true;
        };
        let wanted = budget.reserved(state, slot);
        // As if to a worker that has none: nobody has this number.
        self.lack(state, &budget, Slot(u32::MAX), wanted).is_none()
    }

    /// Whether it is memory that the worker lacks to hold what reserves so much; none if it lacks nothing.
    fn lack(&self, state: &mut State, budget: &Budget, slot: Slot, wanted: u64) -> Option<bool> {
        if wanted == 0 {
            return None;
        }
        // What the worker has already, what others have, and what others have that run.
        let (mut here, mut others, mut running) = (0_u64, 0_u64, 0_u64);
        for (index, seat) in state.seats.iter().enumerate() {
            let other = Slot(index as u32);
            let reserved = budget.reserved(state, other);
            if other == slot {
                here = reserved;
                continue;
            }
            others = others.saturating_add(reserved);
            if !seat.lends() {
                running = running.saturating_add(reserved);
            }
        }
        if here != 0 && here != wanted {
            return Some(false); // what a worker holds is of one reservation
        }
        if running == 0 {
            return None;
        }
        let sum = others.saturating_add(wanted);
        let is_there = sum <= budget.limit && sum <= self.capacity(state, budget);
        (!is_there).then_some(true)
    }

    /// What all tasks can take together, those that run among them.
    fn capacity(&self, state: &mut State, budget: &Budget) -> u64 {
        let now = monotonic_nanos();
        if state.capacity.at == 0 || now.saturating_sub(state.capacity.at) > CAPACITY_HOLDS {
            let mut bytes = memory_left();
            for index in 0..state.seats.len() {
                let slot = Slot(index as u32);
                if budget.reserved(state, slot) > 0
                    && let Some(number) = running_number(state, slot)
                    && let Ok(added) = added(state, slot, number)
                {
                    bytes = bytes.saturating_add(added);
                }
            }
            state.capacity = Capacity { bytes, at: now };
        }
        state.capacity.bytes
    }
}
