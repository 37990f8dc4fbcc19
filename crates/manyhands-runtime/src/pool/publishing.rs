//! From the queue to the workers, and back.

use super::{Pool, Seat, State};
use crate::fail_point::fail_point;
use crate::protocol::{FLAG_FILE, FLAG_SECTIONS, HEAD, LONGEST_RECORD, TaskHead, TaskKind, padded};
use crate::scheduler::Slot;
use crate::supervisor::Command;
use crate::task::{Bytes, Entry, Outcome};
use manyhands_shm::{QueueWord, TASK_AREA};
use std::io;

impl Pool {
    /// Writes a task's record to a worker; gives the entry back if there is no room.
    pub(super) fn write(&self, state: &mut State, slot: Slot, mut entry: Entry) -> Option<Entry> {
        let Seat::Taken(worker) = &mut state.seats[slot.0 as usize] else {
            crate::bug("a task was given to an empty seat");
        };
        if u32::try_from(entry.payload.len()).is_err() {
            self.lose(state, slot, entry, "its arguments are larger than 4 GiB");
            return None;
        }
        let sections = worker.sections(&mut entry);
        let free_from = state
            .scheduler
            .oldest(slot)
            .map_or(worker.write_position, |e| e.position);
        let body_len = match &sections {
            Some(sections) => 4 + sections.len() + entry.payload.len(),
            None => entry.payload.len(),
        };
        let by_file = HEAD + body_len > LONGEST_RECORD || matches!(entry.payload, Bytes::File(_));
        let length = padded(HEAD + if by_file { 8 } else { body_len });
        let room = TASK_AREA as u64 - (worker.write_position - free_from);
        if length as u64 > room {
            worker.unlearn(&mut entry);
            return Some(entry);
        }
        let mut flags = if sections.is_some() { FLAG_SECTIONS } else { 0 };
        if by_file {
            flags |= FLAG_FILE;
            match worker.send_body(sections.as_deref(), &entry.payload) {
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
                            self.supervisor.command(Command::TryAgain(self.id));
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
            attempt: 1,
            definition: entry
                .definition
                .as_ref()
                .map_or(0, |definition| definition.id()),
            payload: entry.payload.len() as u32,
            index: entry.task.as_ref().map_or(entry.file, |task| task.index),
        };
        entry.position = worker.write_position;
        entry.length = length as u32;
        let head = head.encode();
        let position = worker.write_position;
        // SAFETY: the bytes from `write_position` on are beyond the last record and, as `room`
        // says, before the oldest one without a result.
        let written = unsafe {
            if by_file {
                let number = entry.file.to_ne_bytes();
                worker.control.write_task(position, &head, &number);
                Ok(())
            } else if let Some(sections) = &sections {
                worker
                    .control
                    .write_task(position, &head, &(sections.len() as u32).to_ne_bytes());
                let after = position + HEAD as u64 + 4;
                entry
                    .payload
                    .with(|payload| worker.control.write_task(after, sections, payload))
            } else {
                entry
                    .payload
                    .with(|payload| worker.control.write_task(position, &head, payload))
            }
        };
        if let Err(error) = written {
            // Only a message file can fail to map, and those go by file.
            crate::bug(&format!("a short payload could not be read: {error}"));
        }
        fail_point("parent.record_written");
        worker.write_position += length as u64;
        if let Some(task) = &entry.task {
            task.set_place(Some((slot.0, worker.next)));
        }
        worker.next = QueueWord::advance(worker.next, 1);
        worker.unpublished += 1;
        state.scheduler.published(slot, entry);
        None
    }

    /// Has an idle worker empty its socket of the files of tasks that were taken back.
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
        if let Some(task) = entry.task.take() {
            self.complete(state, &task, Outcome::Failed(why.to_owned()));
        }
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

    /// Gives a worker more, if it is low and there is more.
    pub(super) fn refill(&self, state: &mut State, slot: Slot) {
        if state.scheduler.queued() == 0 || !state.scheduler.is_low(slot) {
            return;
        }
        let open = state
            .seats
            .iter()
            .filter(|seat| matches!(seat, Seat::Taken(_)))
            .count();
        // Each round hands out half of the rest, so that the last tasks come in small portions.
        let share = state.scheduler.queued().div_ceil(2 * open.max(1));
        for _ in 0..state.scheduler.room(slot).min(share) {
            let Some(entry) = state.next_entry() else {
                break;
            };
            if let Some(entry) = self.write(state, slot, entry) {
                state.scheduler.put_first(entry);
                break;
            }
        }
        self.publish(state, slot);
    }

    /// Gives everybody work who can take some, taking it from others where nothing is queued.
    pub(super) fn balance(&self, state: &mut State) {
        for index in 0..state.seats.len() {
            self.refill(state, Slot(index as u32));
        }
        while let Some((victim, count)) = state.scheduler.steal() {
            let taken = self.take_back(state, victim, count);
            if taken == 0 {
                break;
            }
            while let Some(slot) = state.scheduler.choose()
                && state.scheduler.held_count(slot) == 0
                && state.scheduler.queued() > 0
            {
                self.fill_idle(state, slot, taken);
            }
            if state.scheduler.queued() > 0 {
                break;
            }
        }
    }

    /// Gives an idle worker up to `count` tasks.
    pub(super) fn fill_idle(&self, state: &mut State, slot: Slot, count: usize) {
        if !state.scheduler.is_open(slot) {
            return;
        }
        for _ in 0..count.min(state.scheduler.room(slot)) {
            let Some(entry) = state.next_entry() else {
                break;
            };
            if let Some(entry) = self.write(state, slot, entry) {
                state.scheduler.put_first(entry);
                break;
            }
        }
        self.publish(state, slot);
    }

    /// Takes back up to `count` of the last tasks of a worker that have not started; gives how many.
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
            worker.violation = true;
            if let Some(process) = &worker.process {
                process.kill();
            }
            return 0;
        }
        worker.next = end;
        fail_point("parent.revoked");
        state.scheduler.revoked(slot, taken as usize, |entry| {
            worker.write_position = entry.position;
            worker.unlearn(entry);
            if let Some(task) = &entry.task {
                task.set_place(None);
            }
        });
        taken as usize
    }
}
