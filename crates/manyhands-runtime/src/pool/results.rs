//! From the workers' rings to the tasks, and who is told.

use super::again::Reason;
use super::{Pool, Seat, State};
use crate::fail_point::fail_point;
use crate::protocol::{
    FLAG_AGAIN, FLAG_FILE, FLAG_MORE, FLAG_UNREAD, Malformed, ResultHead, ResultKind, TaskKind,
};
use crate::scheduler::Slot;
use crate::task::{Breakage, Bytes, Entry, Outcome, Task};
use manyhands_shm::{QueueWord, Unwanted};
use std::sync::Arc;

impl Pool {
    /// Takes all results that have come, gives their workers more, and tells who waits.
    pub(super) fn drain(&self, state: &mut State) -> bool {
        let mut found = false;
        for index in 0..state.seats.len() {
            if self.drain_seat(state, index) {
                found = true;
                self.refill(state, Slot(index as u32));
            }
        }
        if found {
            self.page.set_busy(state.scheduler.busy_count() as u32);
            state.drains += 1;
            if state.scheduler.queued() == 0 {
                self.balance(state);
            }
            self.tell(state);
        }
        found
    }

    /// Somebody wants results now: workers that were read no further, because nobody did, are.
    pub(super) fn read_on(&self, state: &mut State) {
        let is_paused = |seat: &Seat| matches!(seat, Seat::Taken(worker) if worker.paused);
        if state.seats.iter().any(is_paused) && !state.role.is_held() {
            self.drain(state);
        }
    }

    pub(super) fn drain_seat(&self, state: &mut State, index: usize) -> bool {
        let slot = Slot(index as u32);
        let nobody_waits = state.waiting == 0 && state.observed == 0;
        let mut found = false;
        loop {
            let Seat::Taken(worker) = &mut state.seats[index] else {
                return found;
            };
            if worker.violation {
                return found;
            }
            // A position that makes no sense decodes as little as a record that does not.
            let unread = worker.reader.unread();
            if unread.is_some_and(<[u8]>::is_empty) {
                return found;
            }
            let oldest = state.scheduler.oldest(slot);
            let stream = oldest.and_then(|entry| Some(&entry.block.as_ref()?.stream));
            let is_full = stream.is_some_and(|stream| stream.is_full());
            worker.paused = is_full && nobody_waits;
            if worker.paused {
                return found;
            }
            if is_full && stream.is_some_and(|stream| stream.is_left()) {
                // It would come to an end only when somebody takes, and never if it has none.
                worker.set_unwanted(worker.oldest, Unwanted::NoRoom);
            }
            let unread = worker.reader.unread().unwrap_or_default();
            let is_items = unread.get(3).is_some_and(|&tag| tag != 0);
            let read = match self.take_stopped(state, slot) {
                Ok(false) if is_items => self.take_items(state, slot),
                Ok(false) => self.take_record(state, slot),
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            };
            if read.is_err() {
                if let Seat::Taken(worker) = &mut state.seats[index] {
                    worker.violation = true;
                    if let Some(process) = &worker.process {
                        process.kill();
                    }
                }
                return found;
            }
            found = true;
        }
    }

    /// Takes the results of items that stand first in the ring, as far as they are of one block.
    fn take_items(&self, state: &mut State, slot: Slot) -> Result<(), Malformed> {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return Err(Malformed);
        };
        let unread = worker.reader.unread().ok_or(Malformed)?;
        let entry = state.scheduler.oldest(slot).ok_or(Malformed)?;
        let block = entry.block.as_ref().ok_or(Malformed)?;
        let started = QueueWord::distance(worker.oldest, worker.control.queue().state().next);
        let mut left = entry.left.min(started);
        if let Some(stop) = &worker.stop {
            left = left.min(QueueWord::distance(worker.oldest, stop.number));
        }
        let left = left as usize;
        if left == 0 {
            return Err(Malformed); // a result of what was never started
        }
        let (len, ended) = block.take_items(unread, left)?;
        let same = worker.last_stream.as_ref();
        if !same.is_some_and(|stream| Arc::ptr_eq(stream, &block.stream)) {
            worker.last_stream = Some(block.stream.clone());
        }
        worker.taken(len);
        fail_point("parent.result_taken");
        if ended > 0 {
            self.ended(state, slot, ended)?;
        }
        Ok(())
    }

    /// Takes the result record that stands first in the ring.
    fn take_record(&self, state: &mut State, slot: Slot) -> Result<(), Malformed> {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return Err(Malformed);
        };
        let unread = worker.reader.unread().ok_or(Malformed)?;
        let (head, payload) = ResultHead::decode(unread)?;
        let length = head.length as usize;
        if head.kind == ResultKind::Lap {
            let cpu = payload.try_into().map_err(|_| Malformed)?;
            worker.taken(length);
            worker.busy_nanos = worker.busy_nanos.saturating_add(head.duration);
            if let Some(stream) = &worker.last_stream {
                stream.add_busy(head.duration, u64::from_ne_bytes(cpu));
            }
            if head.number > 0 {
                state.scheduler.observe(head.number as usize, head.duration);
            }
            return Ok(());
        }
        let next = worker.control.queue().state().next;
        if head.number != worker.oldest || next == worker.oldest {
            return Err(Malformed); // not its turn, or never started
        }
        let payload = if head.flags & FLAG_FILE == 0 {
            Ok(Bytes::copy_of(payload))
        } else {
            worker.receive_file()?
        };
        worker.taken(length);
        fail_point("parent.result_taken");
        if head.flags & FLAG_UNREAD != 0 {
            // It never saw the definitions that came with the arguments. All are sent anew.
            worker.known.clear();
            worker.known_last = 0;
            worker.forget.clear();
        }
        let entry = state.scheduler.oldest(slot).ok_or(Malformed)?;
        if head.flags & FLAG_AGAIN != 0 && entry.retry.is_some() {
            worker.busy_nanos = worker.busy_nanos.saturating_add(head.duration);
            if let Some(entry) = self.taken_from(state, slot, 1)?
                && let Some(entry) = self.run_again(state, entry, Reason::Failure)
            {
                let outcome = match payload {
                    Ok(payload) => Outcome::Error(head.tag, payload),
                    Err(why) => Outcome::Failed(why),
                };
                self.end_one(state, &entry, outcome);
            }
            return Ok(());
        }
        if let Some(block) = &entry.block {
            let outcome = match (payload, head.kind) {
                (Ok(payload), ResultKind::Value) => Outcome::Value(head.tag, payload),
                (Ok(payload), _) => Outcome::Error(head.tag, payload),
                (Err(why), _) => Outcome::Failed(why),
            };
            let more = head.flags & FLAG_MORE != 0;
            block.take_one(outcome, more);
            worker.last_stream = Some(block.stream.clone());
            if head.duration > 0 {
                block.stream.add_busy(head.duration, 0);
                worker.busy_nanos = worker.busy_nanos.saturating_add(head.duration);
                state.scheduler.observe(1, head.duration);
            }
            if !more {
                self.ended(state, slot, 1)?;
            }
        } else {
            worker.busy_nanos = worker.busy_nanos.saturating_add(head.duration);
            state.scheduler.observe(1, head.duration);
            if let Some(entry) = self.ended(state, slot, 1)? {
                self.take_result(state, entry, head, payload);
            }
        }
        Ok(())
    }

    /// The oldest items of a worker have ended; gives its oldest entry if that has ended with them.
    pub(super) fn ended(
        &self,
        state: &mut State,
        slot: Slot,
        count: usize,
    ) -> Result<Option<Entry>, Malformed> {
        let of_block = state
            .scheduler
            .oldest(slot)
            .is_some_and(|entry| entry.block.is_some());
        let ended = self.taken_from(state, slot, count)?;
        if of_block {
            self.count_ended(state, count);
        }
        Ok(ended)
    }

    /// As `ended`, of what may run again: it is not counted.
    pub(super) fn taken_from(
        &self,
        state: &mut State,
        slot: Slot,
        count: usize,
    ) -> Result<Option<Entry>, Malformed> {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return Err(Malformed);
        };
        let entry = state.scheduler.oldest(slot).ok_or(Malformed)?;
        if worker.last_block != Some(entry.position) {
            worker.last_block = None;
        }
        if entry.kind == TaskKind::Block {
            worker.last_block = Some(entry.position);
        }
        worker.oldest = QueueWord::advance(worker.oldest, count as u32);
        worker.finished += count as u64;
        if let Some(number) = worker.unwanted
            && QueueWord::is_before(number, worker.oldest)
        {
            // Numbers come again.
            worker.unwanted = None;
            worker.control.set_unwanted(None);
        }
        (state.failed_births, state.killed_births) = (0, 0);
        let ended = state.scheduler.ended(slot, count);
        if let Some(entry) = &ended {
            worker.files_taken = worker.files_taken.max(entry.file);
        }
        Ok(ended)
    }

    /// Ends the one item of an entry that no worker has.
    pub(super) fn end_one(&self, state: &mut State, entry: &Entry, outcome: Outcome) {
        if let Some(block) = &entry.block {
            block.take_one(outcome, false);
            self.count_ended(state, 1);
        } else if let Some(task) = &entry.task {
            self.complete(state, task, outcome);
        }
    }

    pub(super) fn take_result(
        &self,
        state: &mut State,
        entry: Entry,
        head: ResultHead,
        payload: Result<Bytes, String>,
    ) {
        if entry.kind == TaskKind::Initialize {
            if head.kind == ResultKind::Error {
                let payload = payload.unwrap_or_default();
                self.break_down(state, Arc::new(Breakage::Initializer(head.tag, payload)));
            }
            return;
        }
        let Some(task) = entry.task else { return };
        let outcome = match (payload, head.kind) {
            (Ok(payload), ResultKind::Value) => Outcome::Value(head.tag, payload),
            (Ok(payload), _) => Outcome::Error(head.tag, payload),
            (Err(why), _) => Outcome::Failed(why),
        };
        self.complete(state, &task, outcome);
    }

    /// Ends a task.
    pub(super) fn complete(&self, state: &mut State, task: &Task, outcome: Outcome) {
        if task.is_done() {
            return;
        }
        if let Some(token) = task.complete(outcome) {
            state.observed -= 1;
            state.ended.push(token);
        }
        self.count_ended(state, 1);
    }

    /// So many tasks or items have ended.
    pub(super) fn count_ended(&self, state: &mut State, count: usize) {
        state.pending -= count;
        state.done += count as u64;
        if state.pending == 0 {
            self.quiet.notify_all();
            self.leave_if_closing(state);
        }
    }

    /// Tells observers and followers what ended (R2), and the draining thread to look again.
    pub(super) fn tell(&self, state: &mut State) {
        if !state.ended.is_empty() {
            self.supervisor.completions().push(&mut state.ended);
        }
        for follower in state.role.followers() {
            if follower.awaited.is_ready() {
                follower.tell();
            }
        }
    }

    /// After something ended by other means than a drain: also wakes the draining thread.
    pub(super) fn tell_all(&self, state: &mut State) {
        self.tell(state);
        if state.role.is_held() {
            // Woken even if the mark is gone: who took it may have died before it woke anybody.
            let _mark = self.page.parent().take_sleeper();
            self.page.parent().wake();
        }
    }
}
