//! From the queue to the workers, and back.

use super::{Pool, Seat, State};
use crate::block::Over;
use crate::fail_point::fail_point;
use crate::protocol::{
    BLOCK_PREFIX, FLAG_FILE, FLAG_GATHER, FLAG_RETRY, FLAG_SECTIONS, FLAG_STREAM, FLAG_WATCHED,
    LONGEST_RECORD, TASK_HEAD, TaskHead, TaskKind, padded,
};
use crate::ranked::Rank;
use crate::scheduler::{Revoked, Slot, Work};
use crate::supervisor::Command;
use crate::task::{Bytes, Entry};
use manyhands_os::monotonic_nanos;
use manyhands_shm::{QueueWord, TASK_AREA};
use std::io;
use std::sync::atomic::Ordering;

/// How long a worker may stand still with tasks while others idle, at least, in nanoseconds.
const RELIEVE_AFTER: u64 = 100_000_000;

impl Pool {
    /// Writes a task's record to a worker; gives the entry back if there is no room.
    pub(super) fn write(&self, state: &mut State, slot: Slot, mut entry: Entry) -> Option<Entry> {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            crate::bug("a task was given to an empty seat");
        };
        let left = state.scheduler.left(slot).max(1);
        if entry.left as usize > left {
            // The worker gives way to a fresh one before it would come to the rest.
            let rest = entry.cut(left);
            state.scheduler.put_first(rest);
        }
        if u32::try_from(entry.bytes().len()).is_err() {
            self.lose(state, slot, entry, "its arguments are larger than 4 GiB");
            return None;
        }
        let sections = worker.sections(&mut entry);
        let oldest = state.scheduler.oldest(slot).map(|e| e.position);
        let free_from = worker.last_block.or(oldest);
        let free_from = free_from.unwrap_or(worker.write_position);
        let is_block = entry.kind == TaskKind::Block;
        let prefix_len = if is_block { BLOCK_PREFIX } else { 0 };
        let payload_len = entry.bytes().len();
        let body_len = sections.as_ref().map_or(0, |sections| 4 + sections.len()) + payload_len;
        let head_len = TASK_HEAD + prefix_len;
        let by_file = head_len + body_len > LONGEST_RECORD || entry.bytes().file().is_some();
        let length = padded(head_len + if by_file { 8 } else { body_len });
        let room = TASK_AREA as u64 - (worker.write_position - free_from);
        if length as u64 > room {
            worker.unlearn(&mut entry);
            return Some(entry);
        }
        let mut flags = if sections.is_some() { FLAG_SECTIONS } else { 0 };
        if entry.block.is_some() {
            flags |= FLAG_STREAM;
        }
        if entry.gathers {
            flags |= FLAG_GATHER;
        }
        if entry.limits.are_any() || self.budget.is_some() {
            flags |= FLAG_WATCHED;
        }
        if entry
            .retry
            .as_ref()
            .is_some_and(|retry| entry.failures < retry.failures)
        {
            flags |= FLAG_RETRY;
        }
        if by_file {
            flags |= FLAG_FILE;
            match worker.send_body(sections.as_deref(), entry.bytes()) {
                Ok(true) => entry.file = worker.files_sent,
                // Its socket is full of files of tasks that run before, or were taken back.
                Ok(false) => {
                    worker.unlearn(&mut entry);
                    if worker.next == worker.oldest {
                        if worker.files_sent > worker.files_taken {
                            self.discard_files(state, slot);
                        } else {
                            // The kernel has no room; nothing that happens here will tell when it has.
                            state.try_again = true;
                            self.supervisor.command(Command::LookAgain(self.id));
                        }
                    }
                    return Some(entry);
                }
                // It is dead and not buried: whatever it holds returns to the queue in a moment.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    worker.unlearn(&mut entry);
                    state.scheduler.close(slot);
                    return Some(entry);
                }
                Err(error) => {
                    let why = format!("{body_len} bytes of arguments could not be sent: {error}");
                    self.lose(state, slot, entry, &why);
                    return None;
                }
            }
        }
        let head = TaskHead {
            length: length as u32,
            kind: entry.kind,
            tag: entry.tag,
            flags,
            attempt: entry.attempt(),
            definition: entry
                .definition
                .as_ref()
                .map_or(0, |definition| definition.id()),
            context: entry.context.as_ref().map_or(0, |context| context.id()),
            payload: payload_len as u32,
            index: entry.index(),
        };
        entry.position = worker.write_position;
        entry.length = length as u32;
        let mut prefix = [0; TASK_HEAD + BLOCK_PREFIX];
        prefix[..TASK_HEAD].copy_from_slice(&head.encode());
        prefix[TASK_HEAD..TASK_HEAD + 4].copy_from_slice(&entry.left.to_ne_bytes());
        let prefix = &prefix[..head_len];
        let position = worker.write_position;
        // SAFETY: the bytes from `write_position` on are beyond the last record and, as `room`
        // says, before the oldest one that the worker may still read.
        let written = unsafe {
            let control = &worker.control;
            if by_file {
                control.write_task(position, prefix, &entry.file.to_ne_bytes());
                Ok(())
            } else if let Some(sections) = &sections {
                control.write_task(position, prefix, &(sections.len() as u32).to_ne_bytes());
                let after = position + head_len as u64 + 4;
                entry
                    .bytes()
                    .with(|payload| control.write_task(after, sections, payload))
            } else {
                entry
                    .bytes()
                    .with(|payload| control.write_task(position, prefix, payload))
            }
        };
        if let Err(error) = written {
            // Only a message file can fail to map, and those go by file.
            crate::bug(&format!("a short payload could not be read: {error}"));
        }
        fail_point("parent.record_written");
        worker.write_position += length as u64;
        entry.set_place(Some((slot.0, worker.next)));
        worker.next = QueueWord::advance(worker.next, entry.left);
        worker.unpublished += entry.left;
        state.scheduler.published(slot, entry);
        None
    }

    /// Has idle workers drop the definitions that are gone whose buffers they look at: others hear of it
    /// with their next task.
    pub(crate) fn let_go(&self) {
        let mut state = self.lock();
        for index in 0..state.seats.len() {
            let slot = Slot(index as u32);
            if let Seat::Taken(worker) = &mut state.seats[index]
                && worker.process.is_some()
                && worker.may_take()
                && worker.holdings.count() > 0
                && worker.has_to_forget()
                && state.scheduler.held_count(slot) == 0
            {
                self.discard_files(&mut state, slot);
            }
        }
    }

    /// Has an idle worker empty its socket of the files of tasks that were taken back, and forget what it is
    /// to forget.
    pub(super) fn discard_files(&self, state: &mut State, slot: Slot) {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return;
        };
        let mut entry = Entry::new(
            None,
            TaskKind::Discard,
            None,
            Vec::new(),
            0,
            Bytes::default(),
        );
        entry.file = worker.files_sent;
        state.scheduler.give_free(slot);
        // It is idle, so there is room, and nothing is written that was not published.
        if self.write(state, slot, entry).is_none() {
            self.publish(state, slot);
        }
    }

    /// Ends a task that could not be given to a worker.
    pub(super) fn lose(&self, state: &mut State, slot: Slot, mut entry: Entry, why: &str) {
        if let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] {
            worker.unlearn(&mut entry);
        }
        self.end_entry(state, &entry, Over::Failed(why.to_owned()));
    }

    /// Lets the worker start what was written, and wakes it if it sleeps.
    pub(super) fn publish(&self, state: &mut State, slot: Slot) {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return;
        };
        let count = std::mem::take(&mut worker.unpublished);
        if count > 0 {
            self.page.set_busy(state.scheduler.busy_count() as u32);
            worker.control.queue().publish(count);
            fail_point("parent.task_published");
            worker.wake();
        }
    }

    /// Has what waits at workers give way to what is queued, where that is of a higher rank; whether anything
    /// did. What is queued then goes to whoever has ended what runs, and what gave way comes after it.
    #[inline]
    pub(super) fn give_way(&self, state: &mut State) -> bool {
        state.has_priorities && self.take_back_outranked(state)
    }

    #[cold]
    fn take_back_outranked(&self, state: &mut State) -> bool {
        let before = state.scheduler.queued();
        for index in 0..state.seats.len() {
            let slot = Slot(index as u32);
            if state.scheduler.is_outranked(slot) {
                self.take_back_waiting(state, slot);
            }
        }
        state.scheduler.queued() > before
    }

    /// Gives a worker more, if it is low and there is more.
    pub(super) fn refill(&self, state: &mut State, slot: Slot) {
        if state.scheduler.queued() == 0 {
            return;
        }
        self.give_way(state);
        if !state.scheduler.is_low(slot) {
            return;
        }
        let is_mixed = state.lent > 0 || state.has_priorities;
        if is_mixed && state.scheduler.held_count(slot) == 0 {
            while let Some((other, count)) = state.scheduler.higher_than_queue() {
                if self.take_back(state, other, count) == 0 {
                    break; // it has begun meanwhile
                }
            }
        }
        let open = state
            .seats
            .iter()
            .filter(|seat| matches!(seat, Seat::Taken(_)))
            .count();
        // Each round hands out half of the rest, so that the last tasks come in small portions.
        let share = state.scheduler.queued_first().div_ceil(2 * open.max(1));
        self.give(state, slot, share);
    }

    /// Gives a worker entries with about `count` items, as far as it may hold more and has room.
    fn give(&self, state: &mut State, slot: Slot, count: usize) {
        let mut wanted = state.scheduler.room(slot).min(count);
        while wanted > 0
            && let Some(entry) = state.next_entry()
        {
            if !state.scheduler.may_follow(slot, entry.rank()) || !self.admits(state, slot, &entry)
            {
                state.scheduler.put_first(entry);
                break;
            }
            wanted = wanted.saturating_sub(entry.left as usize);
            if let Some(entry) = self.write(state, slot, entry) {
                state.scheduler.put_first(entry);
                break;
            }
        }
        self.publish(state, slot);
    }

    /// Gives everybody work who can take some, taking it from others where nothing is queued.
    pub(super) fn balance(&self, state: &mut State) {
        (state.is_held_back, state.is_short) = (false, false);
        for index in 0..state.seats.len() {
            self.refill(state, Slot(index as u32));
        }
        while let Some((victim, count)) = state.scheduler.steal() {
            if !self.may_share(state, victim) {
                break;
            }
            let taken = self.take_back(state, victim, count);
            if taken == 0 {
                break;
            }
            self.fill_all_idle(state, taken);
            if state.scheduler.queued() > 0 {
                break;
            }
        }
    }

    /// What workers have that stand still goes to those that idle: who was stopped, or gets no
    /// processor, has started nothing of it since the last look, long ago.
    pub(super) fn relieve(&self, state: &mut State) {
        let now = monotonic_nanos();
        if now < state.relieve_at {
            return;
        }
        state.relieve_at = now + RELIEVE_AFTER;
        let mut taken = 0;
        for index in 0..state.seats.len() {
            let slot = Slot(index as u32);
            let is_work = state
                .scheduler
                .oldest(slot)
                .is_some_and(|entry| matches!(entry.kind, TaskKind::Run | TaskKind::Block));
            let Seat::Taken(worker) = &mut state.seats[index] else {
                continue;
            };
            let stands = is_work
                && !worker.leaving
                && worker.process.is_some()
                && worker.control.queue().state().next == worker.oldest;
            let number = stands.then_some(worker.oldest);
            let stood = std::mem::replace(&mut worker.stands_at, number);
            if number.is_some() && stood == number && state.scheduler.has_idle() {
                let held = state.scheduler.held_count(slot);
                taken += self.take_back(state, slot, held);
                state.scheduler.stands(slot);
            }
        }
        if taken > 0 {
            self.fill_all_idle(state, taken);
            self.balance(state);
        }
    }

    /// Gives each idle worker up to `count` tasks.
    fn fill_all_idle(&self, state: &mut State, count: usize) {
        while let Some(slot) = state.scheduler.choose(Rank::default())
            && state.scheduler.held_count(slot) == 0
            && state.scheduler.queued() > 0
        {
            self.give(state, slot, count);
            if state.is_held_back && state.scheduler.held_count(slot) == 0 {
                break; // nor is there memory for the next
            }
        }
    }

    /// Takes back all that a worker has not started, but for its start-up message and the word to leave,
    /// without which it would not be what it is.
    pub(super) fn take_back_waiting(&self, state: &mut State, slot: Slot) {
        if state.is_leaving(slot) {
            return;
        }
        let starts = |entry: &Entry| entry.kind == TaskKind::Initialize;
        let keeps = usize::from(state.scheduler.oldest(slot).is_some_and(starts));
        let held = state.scheduler.held_count(slot);
        self.take_back(state, slot, held - keeps);
    }

    /// Takes back up to `count` of the last items of a worker that have not started; gives how many.
    pub(super) fn take_back(&self, state: &mut State, slot: Slot, count: usize) -> usize {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            return 0;
        };
        debug_assert_eq!(worker.unpublished, 0);
        let count = count as u32;
        let from = QueueWord::distance(count, worker.next);
        let end = worker.control.queue().revoke(from);
        let taken = QueueWord::distance(end, worker.next);
        if taken > count {
            // The worker wrote nonsense to the word: who knows what it ran. Its death tells.
            worker.speaks_nonsense();
            return 0;
        }
        worker.next = end;
        fail_point("parent.revoked");
        state
            .scheduler
            .revoked(slot, taken as usize, |revoked| match revoked {
                Revoked::Whole(entry) => {
                    worker.write_position = entry.position;
                    worker.unlearn(entry);
                    entry.set_place(None);
                }
                Revoked::Cut(entry) => {
                    let count = entry.ended + entry.left;
                    let at = entry.position + TASK_HEAD as u64;
                    // SAFETY: the count of a record that was published and has no last result.
                    // Relaxed: it is read behind a claim of what is published after this.
                    unsafe { worker.control.task_word(at) }.store(count, Ordering::Relaxed);
                    fail_point("parent.block_cut");
                }
            });
        taken as usize
    }
}
