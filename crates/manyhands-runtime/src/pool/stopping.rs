//! Ending tasks that run: their time is up, they take too much memory, or somebody cancels them.
//!
//! Only the one that is meant may be hit. The steps, each under the pool's lock:
//!
//! | step | what | what may have happened until then |
//! |---|---|---|
//! | FREEZE | the worker starts nothing any more; what it has not started goes elsewhere | it has gone on to the next task: nothing is done |
//! | ASK | the word of the unwanted names the task, and a signal has its main thread look there; again and again, since one that comes just before a system call is looked at only after that | it ends by itself: the result is dropped, the worker thawed |
//! | KILL | after the grace, the worker and its process group | the result is there and was not read: it is read first |
//!
//! A worker that is being stopped is given nothing. Whatever comes of the task from ASK on, it ends as
//! `TimedOut`, `OverMemory` or `Cancelled`, once: with its result, or with its worker. Who takes too much memory
//! is not asked, but killed at once: see `memory.rs`.
//!
//! The supervisor has the clock. It looks at a pool when the time of a running task may be up, and as
//! long as tasks with a limit wait at least as often as the shortest limit: nothing tells it that a task has started.

use super::admission::LOOK_FOR_MEMORY;
use super::again::Reason;
use super::telling::About;
use super::{Pool, Seat, State};
use crate::block::next_item;
use crate::events::EventKind;
use crate::fail_point::fail_point;
use crate::protocol::{FLAG_MORE, ITEM_MORE, Malformed, ResultHead, ResultKind};
use crate::scheduler::Slot;
use crate::supervisor::Command;
use crate::task::{Bytes, Entry, Limits, Outcome, Task};
use manyhands_os::monotonic_nanos;
use manyhands_shm::{QueueWord, Unwanted};
use std::sync::Arc;

/// After how long a task that is to end is asked for the second time, and at the latest for each later
/// one, in nanoseconds.
const ASK_AGAIN: u64 = 5_000_000;
const ASK_SELDOM: u64 = 1_000_000_000;
/// The shortest time between two looks, in nanoseconds.
const SHORTEST_LOOK: u64 = 500_000;

/// Why a task is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Somebody cancelled it.
    Cancelled,
    /// It has had so many nanoseconds.
    Time(u64),
    /// It may add so many bytes of memory, and has added so many.
    Memory { limit: u64, peak: u64 },
}

/// A task that is being ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    /// Its number at its worker.
    pub(crate) number: u32,
    why: Why,
    /// When its worker is killed; none once it was.
    kill_at: Option<u64>,
    /// When it is asked once more, and after how long the next time.
    ask_at: u64,
    ask_after: u64,
}

impl Stop {
    /// How the task ends.
    pub(crate) fn outcome(&self, pid: i32, attempts: u8) -> Outcome {
        match self.why {
            Why::Time(limit) => Outcome::TimedOut {
                limit,
                pid,
                attempts,
            },
            Why::Memory { limit, peak } => Outcome::OverMemory {
                limit,
                peak,
                pid,
                attempts,
            },
            Why::Cancelled => Outcome::Cancelled,
        }
    }

    /// Whether its worker was killed.
    pub(crate) fn has_killed(&self) -> bool {
        self.kill_at.is_none()
    }

    /// Why it may run again.
    pub(super) fn reason(&self) -> Option<Reason> {
        match self.why {
            Why::Time(_) => Some(Reason::Timeout),
            Why::Memory { .. } => Some(Reason::Memory),
            Why::Cancelled => None,
        }
    }
}

impl Pool {
    /// Cancels a task: one that has not started never does, one that runs is ended. Whether it is
    /// cancelled now.
    pub fn cancel(&self, task: &Arc<Task>) -> bool {
        let mut state = self.lock();
        while !task.is_done() {
            self.take_back_from(&mut state, task.place());
            let Some((slot, number)) = task.place() else {
                self.say_unstarted(task, EventKind::Cancelled);
                self.complete(&mut state, task, Outcome::Cancelled);
                break;
            };
            // Its result may be there. If it is a failure the task may be queued again.
            self.drain_seat(&mut state, slot as usize);
            if task.place() != Some((slot, number)) {
                continue;
            }
            if !task.is_done() && self.stop(&mut state, Slot(slot), number, Why::Cancelled) {
                let about = self.about_running(&state, task);
                self.say(about, EventKind::Cancelled);
                self.complete(&mut state, task, Outcome::Cancelled);
            }
            break;
        }
        self.balance(&mut state);
        self.tell_all(&mut state);
        drop(state);
        matches!(task.outcome(), Some(Outcome::Cancelled))
    }

    /// Cancels all that runs: each task is asked to end, and killed after its grace.
    pub fn stop_all(&self) {
        let mut state = self.lock();
        self.drain(&mut state);
        for index in 0..state.seats.len() {
            let Seat::Taken(worker) = &state.seats[index] else {
                continue;
            };
            let next = worker.control.queue().state().next;
            if next != worker.oldest {
                let number = QueueWord::distance(1, next);
                self.stop(&mut state, Slot(index as u32), number, Why::Cancelled);
            }
        }
        self.balance(&mut state);
        self.tell_all(&mut state);
    }

    /// Has the supervisor look at this pool until then: now, if it would look later.
    pub(super) fn watch(&self, state: &mut State, until: u64) {
        if state.looks_at == 0 || until < state.looks_at {
            state.looks_at = until.max(1);
            self.supervisor.command(Command::Watch(self.id));
        }
    }

    /// For the supervisor: ends what has run for too long, or takes too much; when to look again, if that is
    /// needed.
    pub(crate) fn look(&self) -> Option<u64> {
        let mut state = self.lock();
        let now = monotonic_nanos();
        let mut next = None;
        for index in 0..state.seats.len() {
            let at = self.look_at_seat(&mut state, index, now);
            let memory = self.look_at_memory(&mut state, index, now);
            next = next.into_iter().chain(at).chain(memory).min();
        }
        let pause = self.end_pauses(&mut state, now);
        next = next.into_iter().chain(pause).min();
        let starts = self.look_for_starts(&mut state, now);
        next = next.into_iter().chain(starts).min();
        self.balance(&mut state);
        self.tell_all(&mut state);
        self.say_memory(&mut state);
        let memory = state.is_held_back.then_some(now + LOOK_FOR_MEMORY);
        next = next.into_iter().chain(memory).min();
        if state.pending == 0 {
            state.shortest_limit = None;
        }
        let later = state.shortest_limit.map(|limit| now.saturating_add(limit));
        next = next.into_iter().chain(later).min();
        let next = next.map(|at| at.max(now + SHORTEST_LOOK));
        state.looks_at = next.unwrap_or(0);
        next
    }

    /// When to look at this worker again.
    fn look_at_seat(&self, state: &mut State, index: usize, now: u64) -> Option<u64> {
        let slot = Slot(index as u32);
        if let Some(due) = self.due(state, slot, now)
            && due > now
        {
            return Some(due);
        }
        self.due(state, slot, now)?;
        // Its time is up, unless its result is there.
        if self.drain_seat(state, index) {
            self.settle_if_due(state);
            self.refill(state, slot);
        }
        match self.due(state, slot, now) {
            Some(due) if due <= now => {}
            due => return due,
        }
        let Seat::Taken(worker) = &mut state.seats[index] else {
            return None;
        };
        if let Some(stop) = &mut worker.stop {
            match &worker.process {
                Some(process) if stop.kill_at.is_some_and(|at| at > now) => {
                    process.ask();
                    stop.ask_at = now + stop.ask_after;
                    stop.ask_after = (2 * stop.ask_after).min(ASK_SELDOM);
                    return self.due(state, slot, now);
                }
                Some(process) => {
                    process.kill();
                    fail_point("parent.worker_killed");
                    stop.kill_at = None;
                    return None;
                }
                // Nobody knows yet who it is.
                None => return Some(now),
            }
        }
        let number = QueueWord::distance(1, worker.control.queue().state().next);
        let time = limits_of(state, slot, number)?.time?;
        self.stop(state, slot, number, Why::Time(time));
        self.due(state, slot, now)
    }

    /// When there is something to do about what this worker runs.
    fn due(&self, state: &State, slot: Slot, now: u64) -> Option<u64> {
        let Seat::Taken(worker) = &state.seats[slot.0 as usize] else {
            return None;
        };
        if let Some(stop) = &worker.stop {
            return stop.kill_at.map(|at| at.min(stop.ask_at));
        }
        let next = worker.control.queue().state().next;
        if next == worker.oldest {
            return None; // nothing runs
        }
        let number = QueueWord::distance(1, next);
        let time = limits_of(state, slot, number)?.time?;
        // It was claimed just now, where its start is not known yet.
        let start = worker.control.running_since(number).unwrap_or(now);
        Some(start.saturating_add(time))
    }

    /// Steps FREEZE and ASK for the item of that number, or KILL at once if it takes too much memory; false if
    /// it has ended, or is being ended.
    pub(super) fn stop(&self, state: &mut State, slot: Slot, number: u32, why: Why) -> bool {
        let Some(limits) = limits_of(state, slot, number) else {
            return false;
        };
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return false;
        };
        if let Some(stop) = &mut worker.stop {
            // Who cancels what is being ended for another reason does not want it to run again.
            let takes_over = stop.number == number
                && matches!(why, Why::Cancelled)
                && matches!(stop.why, Why::Time(_));
            if takes_over {
                stop.why = why;
            }
            return takes_over;
        }
        if worker.leaving || worker.dismissed {
            return false;
        }
        let next = worker.control.queue().freeze().next;
        if QueueWord::distance(number, next) != 1 {
            worker.control.queue().thaw();
            return false; // it has gone on
        }
        let behind = QueueWord::distance(next, worker.next) as usize;
        let now = monotonic_nanos();
        let grace = match why {
            Why::Memory { .. } => 0,
            Why::Time(_) | Why::Cancelled => limits.grace,
        };
        let mut stop = Stop {
            number,
            why,
            kill_at: Some(now.saturating_add(grace)),
            ask_at: now + ASK_AGAIN,
            ask_after: 2 * ASK_AGAIN,
        };
        worker.set_unwanted(number, Unwanted::Stopped);
        fail_point("parent.unwanted_set");
        if let Some(process) = &worker.process {
            if matches!(why, Why::Memory { .. }) {
                process.kill();
                fail_point("parent.worker_killed");
                stop.kill_at = None;
            } else {
                process.ask();
            }
        }
        let stop_at = stop.kill_at.map_or(stop.ask_at, |at| at.min(stop.ask_at));
        worker.stop = Some(stop);
        state.scheduler.close(slot);
        self.take_back(state, slot, behind);
        self.watch(state, stop_at);
        true
    }

    /// Takes what stands first in the ring of a worker that is being stopped, if it is of the task that
    /// is to end; false if it is not.
    pub(super) fn take_stopped(&self, state: &mut State, slot: Slot) -> Result<bool, Malformed> {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return Ok(false);
        };
        let Some(stop) = worker.stop else {
            return Ok(false);
        };
        if stop.number != worker.oldest {
            return Ok(false); // one that ended before
        }
        let pid = worker.pid();
        let mut unread = worker.reader.unread().ok_or(Malformed)?;
        let (length, more, flags, payload);
        if unread.get(3).is_some_and(|&tag| tag != 0) {
            let all = unread.len();
            let (tag, _) = next_item(&mut unread).ok_or(Malformed)?;
            (length, more) = (all - unread.len(), tag & ITEM_MORE != 0);
            (flags, payload) = (0, &[][..]);
        } else {
            let (head, content) = ResultHead::decode(unread)?;
            if head.kind == ResultKind::Lap {
                return Ok(false);
            }
            if head.number != stop.number {
                return Err(Malformed);
            }
            (length, more) = (head.length as usize, head.flags & FLAG_MORE != 0);
            (flags, payload) = (head.flags, content);
        }
        // Nobody wants it; what it was granted for it is free again.
        let payload = Bytes::copy_of(payload);
        let _content = worker.receive(payload, flags, state.scheduler.oldest_mut(slot))?;
        worker.taken(length);
        if more {
            return Ok(true);
        }
        let about = self.about(state, slot, 1, 0);
        let entry = state.scheduler.oldest(slot).ok_or(Malformed)?;
        match entry.block.clone() {
            Some(block) if entry.retry.is_none() => {
                let outcome = stop.outcome(pid, entry.attempt());
                self.say(about, EventKind::of(&outcome));
                block.take_one(outcome, false);
                self.ended(state, slot, 1)?;
            }
            _ => {
                if let Some(entry) = self.taken_from(state, slot, 1)? {
                    self.end_stopped(state, entry, &stop, (pid, about));
                }
            }
        }
        self.stopped(state, slot);
        Ok(true)
    }

    /// A task was stopped, or an item that has an entry to itself.
    fn end_stopped(
        &self,
        state: &mut State,
        entry: Entry,
        stop: &Stop,
        (pid, about): (i32, About),
    ) {
        let outcome = stop.outcome(pid, entry.attempt());
        let kind = EventKind::of(&outcome);
        let entry = match stop.reason() {
            Some(reason) => self.run_again(state, entry, reason),
            None => Some(entry),
        };
        match entry {
            Some(entry) => {
                self.say(about, kind);
                self.end_one(state, &entry, outcome);
            }
            None => self.say(about, kind.again()),
        }
    }

    /// The task has ended by itself: its worker goes on, unless it was killed meanwhile or has processes
    /// of its own, which may be the task's.
    fn stopped(&self, state: &mut State, slot: Slot) {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return;
        };
        let Some(stop) = &mut worker.stop else { return };
        if stop.kill_at.is_none() {
            return;
        }
        if let Some(process) = &worker.process
            && process.may_have_children()
        {
            stop.kill_at = None;
            process.kill();
            return;
        }
        worker.stop = None;
        worker.control.queue().thaw();
        worker.wake();
        // It takes tasks again, unless it rests, its slot is lent, or it was told to leave: then it keeps the
        // exit record, which another worker would take from it.
        state.is_unsettled = true;
    }
}

/// What the item of that number, which the worker has, may take.
pub(super) fn limits_of(state: &State, slot: Slot, number: u32) -> Option<Limits> {
    entry_of(state, slot, number).map(|entry| entry.limits)
}

/// The entry of the item of that number, which the worker has.
pub(super) fn entry_of(state: &State, slot: Slot, number: u32) -> Option<&Entry> {
    let Seat::Taken(worker) = &state.seats[slot.0 as usize] else {
        return None;
    };
    let mut before = QueueWord::distance(worker.oldest, number);
    state.scheduler.held(slot).find(|entry| {
        let is_in = before < entry.left;
        before = before.wrapping_sub(entry.left);
        is_in
    })
}
