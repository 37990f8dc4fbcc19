//! From the workers' rings to the tasks, and who is told.

use super::again::Reason;
use super::{Pool, Seat, State};
use crate::events::{EventKind, How};
use crate::fail_point::fail_point;
use crate::output::Note;
use crate::protocol::{
    ASKED_TO_LAY_OPEN, FLAG_AGAIN, FLAG_MORE, FLAG_SECTIONS, Malformed, ResultHead, ResultKind,
    TaskKind,
};
use crate::scheduler::Slot;
use crate::seat::Worker;
use crate::task::{Breakage, Bytes, Entry, Outcome, Task};
use manyhands_shm::{Grant, QueueWord, Unwanted, Used};
use std::sync::Arc;

impl Pool {
    /// Takes all results that have come, gives their workers more, and tells who waits.
    pub(super) fn drain(&self, state: &mut State) -> bool {
        let (mut found, mut settled) = (false, false);
        for index in 0..state.seats.len() {
            if self.drain_seat(state, index) {
                found = true;
                // Before it is given more: it may have to rest.
                settled |= self.settle_if_due(state);
                self.refill(state, Slot(index as u32));
            }
        }
        if found {
            self.page.set_busy(state.scheduler.busy_count() as u32);
            state.drains += 1;
            // What waits for memory may go to others than to whom has given some back, and what runs again to
            // others than to whom has failed it, which may have to rest.
            let is_uneven = state.scheduler.queued() == 0 || state.scheduler.has_idle();
            if settled || state.is_held_back || is_uneven {
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
            let read = match self.take_request(worker, slot) {
                Ok(false) => match self.take_stopped(state, slot) {
                    Ok(false) if is_items => self.take_items(state, slot),
                    Ok(false) => self.take_record(state, slot),
                    Ok(true) => Ok(()),
                    Err(error) => Err(error),
                },
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            };
            if read.is_err() {
                if let Seat::Taken(worker) = &mut state.seats[index] {
                    worker.speaks_nonsense();
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
        if worker.last_stream.as_ptr() != Arc::as_ptr(&block.stream) {
            worker.last_stream = Arc::downgrade(&block.stream);
        }
        worker.taken(len);
        let nanos = self.nanos_of(worker, ended);
        fail_point("parent.result_taken");
        if ended > 0 {
            let about = self.about(state, slot, ended, nanos);
            self.say(about, EventKind::Ended(How::Value));
            self.ended(state, slot, ended)?;
        }
        Ok(())
    }

    /// Takes what stands first in the ring if it is of no task, but about the store, or for people.
    fn take_request(&self, worker: &mut Worker, slot: Slot) -> Result<bool, Malformed> {
        let unread = worker.reader.unread().ok_or(Malformed)?;
        if unread.get(3).is_some_and(|&tag| tag != 0) {
            return Ok(false); // the result of an item
        }
        let (head, payload) = ResultHead::decode(unread)?;
        match head.kind {
            ResultKind::Release => {
                let (blocks, _) = payload.as_chunks::<8>();
                for block in blocks {
                    worker.holdings.release(u64::from_ne_bytes(*block))?;
                }
                worker.taken(head.length as usize);
            }
            ResultKind::Ask => {
                worker.taken(head.length as usize);
                let writer = u64::from(worker.pid().cast_unsigned());
                let wanted = usize::try_from(head.duration).map_err(|_| Malformed)?;
                if wanted == 0 {
                    return Err(Malformed); // what has no bytes needs no room
                }
                let grant = match self.supervisor.store().reserve(wanted, writer) {
                    Ok(block) => {
                        let (offset, used) = (block.offset(), block.used());
                        if used == Used::Never {
                            self.supervisor.look_after_store();
                        }
                        if head.tag == ASKED_TO_LAY_OPEN {
                            block.set_laid_open();
                        }
                        worker.holdings.grant(block);
                        Grant::Block { offset, used }
                    }
                    Err(_full) => Grant::Refused,
                };
                fail_point("parent.block_granted");
                worker.control.grant().answer(grant);
                worker.wake();
            }
            ResultKind::Output => {
                // Nobody listens to workers that were told to send nothing.
                let output = self.output.as_ref().ok_or(Malformed)?;
                output.push(Note {
                    tag: head.tag,
                    slot: slot.0,
                    pid: worker.pid(),
                    bytes: Box::from(payload),
                    lost: head.duration,
                });
                worker.taken(head.length as usize);
                fail_point("parent.output_taken");
            }
            _ => return Ok(false),
        }
        Ok(true)
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
            if let Some(stream) = worker.last_stream.upgrade() {
                if let Some(definition) = &stream.options.definition {
                    definition.took(head.duration);
                }
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
        if head.kind == ResultKind::Error && head.flags & FLAG_SECTIONS != 0 {
            return Err(Malformed); // no error speaks of buffers
        }
        let payload = Bytes::copy_of(payload);
        let payload = worker.receive(payload, head.flags, state.scheduler.oldest_mut(slot))?;
        worker.taken(length);
        fail_point("parent.result_taken");
        let kind = match (&payload, head.kind) {
            (Ok(_), ResultKind::Value) => EventKind::Ended(How::Value),
            _ => EventKind::Ended(How::Error),
        };
        let more = head.flags & FLAG_MORE != 0;
        let about = if more {
            None
        } else {
            self.about(state, slot, 1, head.duration)
        };
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return Err(Malformed);
        };
        let entry = state.scheduler.oldest(slot).ok_or(Malformed)?;
        if let Some(definition) = &entry.definition {
            definition.took(head.duration);
        }
        if head.flags & FLAG_AGAIN != 0 && entry.retry.is_some() {
            worker.busy_nanos = worker.busy_nanos.saturating_add(head.duration);
            if let Some(entry) = self.taken_from(state, slot, 1)? {
                let Some(entry) = self.run_again(state, entry, Reason::Failure) else {
                    self.say(about, kind.again());
                    return Ok(());
                };
                let outcome = match payload {
                    Ok(payload) => Outcome::Error(head.tag, payload),
                    Err(why) => Outcome::Failed(why),
                };
                self.say(about, kind);
                self.end_one(state, &entry, outcome);
            }
            return Ok(());
        }
        self.say(about, kind);
        if let Some(block) = &entry.block {
            let outcome = match (payload, head.kind) {
                (Ok(payload), ResultKind::Value) => Outcome::Value(head.tag, payload),
                (Ok(payload), _) => Outcome::Error(head.tag, payload),
                (Err(why), _) => Outcome::Failed(why),
            };
            block.take_one(outcome, more);
            worker.last_stream = Arc::downgrade(&block.stream);
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
        if entry.kind != TaskKind::Discard {
            worker.finished += count as u64;
        }
        if let Some(number) = worker.unwanted
            && QueueWord::is_before(number, worker.oldest)
        {
            // Numbers come again.
            worker.unwanted = None;
            worker.control.set_unwanted(None);
        }
        (state.failed_births, state.killed_births) = (0, 0);
        let mut ended = state.scheduler.ended(slot, count);
        if let Some(entry) = &mut ended {
            worker.files_taken = worker.files_taken.max(entry.file);
            // The worker has seen the record: it releases what came with it.
            entry.leases = false;
        }
        self.came_on(state, slot);
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
    pub(super) fn complete(&self, state: &mut State, task: &Arc<Task>, outcome: Outcome) {
        if task.is_done() {
            return;
        }
        let is_failure = !matches!(outcome, Outcome::Value(..) | Outcome::Cancelled);
        if let Some(token) = task.complete(outcome) {
            state.observed -= 1;
            state.ended.push(token);
        }
        if let (Some(asker), Some(outcome)) = (task.asker, task.outcome()) {
            self.call_ended(state, asker, outcome);
        } else if is_failure {
            self.unseen.failed(&task.fate, || task.clone());
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
        // What is given out then may end at once, since it cannot be sent.
        while self.settle_if_due(state) {
            self.balance(state);
        }
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
