//! From the workers' rings to the tasks, and who is told.

use super::{Pool, Seat, State};
use crate::fail_point::fail_point;
use crate::protocol::{FLAG_FILE, FLAG_UNREAD, Malformed, ResultHead, ResultKind, TaskKind};
use crate::scheduler::Slot;
use crate::task::{Breakage, Bytes, Entry, Outcome, Task};
use manyhands_shm::{QueueWord, RESULT_AREA};
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

    pub(super) fn drain_seat(&self, state: &mut State, index: usize) -> bool {
        let slot = Slot(index as u32);
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
            let unread = unread.unwrap_or_default();
            let taken = ResultHead::decode(unread).and_then(|(head, payload)| {
                if head.number != worker.oldest {
                    return Err(Malformed);
                }
                let payload = if head.flags & FLAG_FILE == 0 {
                    Ok(Bytes::copy_of(payload))
                } else {
                    worker.receive_file()?
                };
                Ok((head, payload))
            });
            let Ok((head, payload)) = taken else {
                worker.violation = true;
                if let Some(process) = &worker.process {
                    process.kill();
                }
                return found;
            };
            found = true;
            worker.reader.consume(head.length as usize);
            worker.oldest = QueueWord::advance(worker.oldest, 1);
            worker.finished += 1;
            worker.busy_nanos += head.duration;
            worker.consumed += head.length as usize;
            if worker.consumed > RESULT_AREA / 4 {
                // It may sleep because its ring was full.
                worker.consumed = 0;
                worker.wake();
            }
            fail_point("parent.result_taken");
            let Some(entry) = state.scheduler.finished(slot, Some(head.duration)) else {
                crate::bug("a result came for a task that nobody holds");
            };
            worker.files_taken = worker.files_taken.max(entry.file);
            if head.flags & FLAG_UNREAD != 0 {
                // It never saw the definitions that came with the arguments. All are sent anew.
                worker.known.clear();
                worker.known_last = 0;
                worker.forget.clear();
            }
            (state.failed_births, state.killed_births) = (0, 0);
            self.take_result(state, entry, head, payload);
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
            (Ok(payload), ResultKind::Error) => Outcome::Error(head.tag, payload),
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
            state.ended.push(token);
        }
        state.pending -= 1;
        state.done += 1;
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
            if follower.task.is_done() {
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
