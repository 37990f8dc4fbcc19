//! Calls of tasks: tasks that a task submits; see `nested.rs` for how they come.
//!
//! A call is a task like any other, but goes before what its asker's like were submitted with: the deepest
//! first. While a worker has calls that are open, its slot is *lent*:
//!
//! | while                        | its slot                                    | spares                            |
//! |------------------------------|---------------------------------------------|-----------------------------------|
//! | no call is open              | takes tasks                                 | as many as slots are lent         |
//! | calls are open               | takes none; what waited there goes elsewhere | one more may run                 |
//! | the last one was answered    | takes tasks again                           | the last takes none any more      |
//!
//! *Spares* are workers beyond the pool's own. Of those whose slots are not lent, the first take tasks, as many as the
//! pool has workers (but for those that come and go, see `recycling`); who is behind them *rests*: it ends what it runs and is given nothing. So at most as many
//! tasks begin that do not wait as the pool has workers; and since what is deepest goes first, and what a worker
//! holds is of one depth, about (depth x workers) wait at most.
//!
//! Whatever depends on which slots are lent is done by `settle`, where no record is half-published.
//!
//! Initializers submit nothing: each spare that their calls would need would run the initializer first.

use super::stopping::Why;
use super::{Phase, Pool, Seat, State};
use crate::definition::Definition;
use crate::events::EventKind;
use crate::fail_point::fail_point;
use crate::nested::packet::{self, Come, Packet, Reader};
use crate::nested::{answer, ask};
use crate::protocol::{Malformed, TaskKind, WorkerKey};
use crate::scheduler::Slot;
use crate::supervisor::Command;
use crate::task::{Asker, Entry, Outcome, Task};
use manyhands_os::{MessageFile, Socket};
use manyhands_shm::QueueWord;
use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// How deep tasks may be nested.
const DEEPEST: u8 = 10;
/// How many packets of a line are taken before others have their turn.
const PACKETS_AT_ONCE: usize = 64;

/// What the parent keeps of a worker that asks.
#[derive(Debug)]
pub(crate) struct Calls {
    line: Arc<Socket>,
    open: HashMap<u64, Arc<Task>>,
    /// What the worker has told of definitions, by its own numbers.
    definitions: HashMap<u32, Arc<Definition>>,
    /// Answers for which the line had no room.
    unsent: VecDeque<Packet>,
}

impl Pool {
    /// The socket by which workers send the parent's ends of their lines.
    pub(crate) fn requests(&self) -> &Socket {
        &self.requests
    }

    /// What workers are given to send by it.
    pub(crate) fn workers_requests(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.workers_requests.as_fd()
    }

    /// A worker's line has come; one of a worker that lives is kept (true).
    pub(crate) fn hear_hello(&self, key: WorkerKey, line: Arc<Socket>) -> bool {
        let mut state = self.lock();
        let Some(worker) = state.worker(key) else {
            return false;
        };
        let earlier = worker.calls.replace(Box::new(Calls {
            line,
            open: HashMap::new(),
            definitions: HashMap::new(),
            unsent: VecDeque::new(),
        }));
        if let Some(earlier) = earlier {
            self.end_calls(&mut state, *earlier);
            self.balance(&mut state);
            self.tell_all(&mut state);
        }
        true
    }

    /// Takes what has come by a worker's line; false if nothing more is to be heard of it.
    pub(crate) fn hear(&self, key: WorkerKey, line: &Socket) -> bool {
        for _ in 0..PACKETS_AT_ONCE {
            // Without the lock: a long packet is mapped here.
            match packet::receive(line, false) {
                Ok(Come::Packet(records, mut file)) => {
                    let mut state = self.lock();
                    let records = records.as_slice();
                    let heard = self.hear_records(&mut state, key, records, &mut file);
                    if heard.is_err() {
                        Self::speaks_nonsense(&mut state, key);
                    }
                    self.balance(&mut state);
                    self.tell_all(&mut state);
                    if heard.is_err() {
                        return false;
                    }
                }
                Ok(Come::Lost(call)) => {
                    let mut state = self.lock();
                    self.answer(&mut state, key, call, None);
                    self.tell_all(&mut state);
                }
                Ok(Come::Nothing) => return true,
                Ok(Come::Closed) => {
                    self.hang_up(key, line);
                    return false;
                }
                Err(_) => {
                    Self::speaks_nonsense(&mut self.lock(), key);
                    return false;
                }
            }
        }
        true // the poller tells again
    }

    /// The worker has closed its line, or says so: it waits for no call any more.
    fn hang_up(&self, key: WorkerKey, line: &Socket) {
        let mut state = self.lock();
        if let Some(worker) = state.worker(key)
            && let Some(calls) = worker
                .calls
                .take_if(|calls| std::ptr::eq(&raw const *calls.line, line))
        {
            self.end_calls(&mut state, *calls);
            self.balance(&mut state);
            self.tell_all(&mut state);
        }
    }

    /// What the worker says makes no sense.
    fn speaks_nonsense(state: &mut State, key: WorkerKey) {
        if let Some(worker) = state.worker(key) {
            worker.speaks_nonsense();
        }
    }

    fn hear_records(
        &self,
        state: &mut State,
        key: WorkerKey,
        records: &[u8],
        file: &mut Option<MessageFile>,
    ) -> Result<(), Malformed> {
        let mut reader = Reader(records);
        while !reader.is_empty() {
            let Some(worker) = state.worker(key) else {
                return Ok(()); // it died meanwhile
            };
            let Some(calls) = &mut worker.calls else {
                return Err(Malformed);
            };
            let asker = (key.slot, key.generation);
            let ask = ask::read(
                &mut reader,
                file,
                asker,
                &mut calls.definitions,
                &worker.holdings,
            )?;
            match ask {
                ask::Ask::Submit(entry) => self.called(state, key, *entry)?,
                ask::Ask::Cancel(call) => {
                    let task = calls.open.get(&call).cloned();
                    if let Some(task) = task {
                        self.cancel_call(state, &task);
                    }
                }
                ask::Ask::Unread(call) => self.answer(state, key, call, None),
            }
            fail_point("parent.call_heard");
        }
        Ok(())
    }

    /// A call has come.
    fn called(&self, state: &mut State, key: WorkerKey, mut entry: Entry) -> Result<(), Malformed> {
        let task = entry.task.clone().ok_or(Malformed)?;
        let call = task.asker.ok_or(Malformed)?.call;
        let slot = Slot(key.slot);
        let running = running(state, slot);
        let initializes = running.is_some_and(|running| running.kind == TaskKind::Initialize);
        entry.depth = 1 + running.map_or(0, |running| running.depth);
        let of_asker = running.and_then(|running| running.priority);
        entry.priority = entry.priority.or(of_asker);
        let refused = match &state.phase {
            Phase::Broken(why) => Some(Outcome::Broken(why.clone())),
            Phase::Closing(true) => Some(Outcome::Cancelled),
            _ if state.ends_early => Some(Outcome::Cancelled),
            _ if entry.depth > DEEPEST => Some(Outcome::Failed(format!(
                "tasks may submit tasks that submit tasks, and so on, up to {DEEPEST} deep"
            ))),
            _ if self.is_too_large(&entry) => Some(Outcome::Failed(
                "its task_memory is more than the memory_limit of the pool: it could never start"
                    .into(),
            )),
            _ if initializes => Some(Outcome::Failed(
                "an initializer cannot submit tasks to the pool whose workers it prepares: none of them \
                 runs a task before its own initializer has ended"
                    .into(),
            )),
            _ => None,
        };
        if let Some(outcome) = refused {
            self.answer(state, key, call, Some(&outcome));
            return Ok(());
        }
        let worker = state.worker(key).ok_or(Malformed)?;
        let calls = worker.calls.as_mut().ok_or(Malformed)?;
        if calls.open.contains_key(&call) {
            return Err(Malformed);
        }
        calls.open.insert(call, task);
        let is_first = calls.open.len() == 1;
        state.pending += 1;
        self.say_queued(state, &entry);
        if is_first {
            state.lent += 1;
            state.scheduler.close(slot);
            self.take_back_waiting(state, slot);
            self.settle(state);
        }
        self.limit(state, entry.limits);
        state.has_priorities |= entry.has_priority();
        state.scheduler.add(entry);
        self.ask_for_workers(state);
        Ok(())
    }

    /// Nobody wants the call any more: it never starts, or is ended.
    fn cancel_call(&self, state: &mut State, task: &Arc<Task>) {
        if task.is_done() {
            return;
        }
        self.take_back_from(state, task.place());
        if let Some((slot, number)) = task.place() {
            // Its result may be there.
            self.drain_seat(state, slot as usize);
            if task.is_done() {
                return;
            }
            let about = self.about_running(state, task);
            self.stop(state, Slot(slot), number, Why::Cancelled);
            self.say(about, EventKind::Cancelled);
        } else {
            self.say_unstarted(task, EventKind::Cancelled);
        }
        self.complete(state, task, Outcome::Cancelled);
    }

    /// The worker is gone, and with it whoever would want its calls.
    pub(super) fn end_calls(&self, state: &mut State, calls: Calls) {
        if calls.open.is_empty() {
            return;
        }
        state.lent -= 1;
        for task in calls.open.values() {
            self.cancel_call(state, task);
        }
        self.settle(state);
    }

    /// A task that a worker has submitted has ended so.
    pub(super) fn call_ended(&self, state: &mut State, asker: Asker, outcome: &Outcome) {
        let key = WorkerKey {
            pool: self.id,
            slot: asker.slot,
            generation: asker.generation,
        };
        self.answer(state, key, asker.call, Some(outcome));
    }

    /// Tells a worker how a call has ended; without an outcome it was lost on its way.
    fn answer(&self, state: &mut State, key: WorkerKey, call: u64, outcome: Option<&Outcome>) {
        let Some(worker) = state.worker(key) else {
            return; // nobody wants it any more
        };
        let Some(calls) = &mut worker.calls else {
            return;
        };
        let was_open = calls.open.remove(&call).is_some();
        let packet = match outcome {
            None => answer::unread(call),
            Some(outcome) => answer::answer(call, outcome)
                .inspect(|_| {
                    if let Outcome::Value(_, payload) = outcome {
                        worker.holdings.lend(payload.buffers());
                    }
                })
                .or_else(|error| {
                    let why = format!("its result could not be sent on: {error}");
                    answer::answer(call, &Outcome::Failed(why))
                }),
        };
        let kept = match packet {
            Ok(packet) if calls.unsent.is_empty() => match packet.send(&calls.line, false) {
                Ok(false) => Some(packet),
                // Sent; or it is dead, and buried in a moment.
                Ok(true) | Err(_) => None,
            },
            Ok(packet) => Some(packet),
            Err(error) => crate::bug(&format!("a short answer could not be packed: {error}")),
        };
        fail_point("parent.call_answered");
        let is_last = was_open && calls.open.is_empty();
        if let Some(packet) = kept {
            calls.unsent.push_back(packet);
            state.try_again = true;
            self.supervisor.command(Command::LookAgain(self.id));
        }
        if is_last {
            state.lent -= 1;
            state.is_unsettled = true;
        }
    }

    /// Sends answers for which there was no room.
    pub(super) fn send_answers(&self, state: &mut State) {
        for seat in &mut state.seats {
            let Seat::Taken(worker) = seat else { continue };
            let Some(calls) = &mut worker.calls else {
                continue;
            };
            while let Some(packet) = calls.unsent.front() {
                if let Ok(false) = packet.send(&calls.line, false) {
                    state.try_again = true;
                    break;
                }
                calls.unsent.pop_front();
            }
        }
    }

    /// Opens and closes slots if that is due; whether it was.
    pub(super) fn settle_if_due(&self, state: &mut State) -> bool {
        let is_due = state.is_unsettled;
        if is_due {
            self.settle(state);
        }
        is_due
    }

    /// Opens and closes slots as those that are lent say; see the table above.
    pub(super) fn settle(&self, state: &mut State) {
        state.is_unsettled = false;
        let uncounted = |seat: &&Seat| match seat {
            Seat::Taken(_) => !seat.counts(),
            Seat::Asked { spare } => *spare,
            Seat::Vacant => false,
        };
        let uncounted = state.seats.iter().filter(uncounted).count();
        while state.seats.len() < state.width + uncounted {
            state.add_seat();
        }
        let mut places = state.width;
        for index in 0..state.seats.len() {
            let slot = Slot(index as u32);
            let seat = &state.seats[index];
            if !seat.occupies() {
                continue; // closed since its first call, or since it is none of them
            }
            let rests = places == 0;
            places -= usize::from(!rests);
            let Seat::Taken(worker) = seat else {
                continue;
            };
            let is_open = state.scheduler.is_open(slot);
            if rests && is_open {
                state.scheduler.close(slot);
                self.take_back_waiting(state, slot);
            } else if !rests && !is_open && worker.may_take() {
                state.scheduler.reopen(slot);
            }
        }
        self.keep_fresh(state);
    }

    /// Whether the seat is one of which there is no need now.
    pub(super) fn rests(&self, state: &State, index: usize) -> bool {
        let before = state.seats.iter().take(index);
        let seat = &state.seats[index];
        !seat.lends()
            && (!seat.counts() || before.filter(|seat| seat.occupies()).count() >= state.width)
    }
}

impl Calls {
    pub(crate) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }
}

/// What the worker runs, as far as that is known.
fn running(state: &State, slot: Slot) -> Option<&Entry> {
    let Seat::Taken(worker) = &state.seats[slot.0 as usize] else {
        return None;
    };
    let number = QueueWord::distance(1, worker.control.queue().state().next);
    let running = super::stopping::entry_of(state, slot, number);
    running.or_else(|| state.scheduler.oldest(slot))
}
