//! Births and deaths of workers, as the supervisor tells of them.

use super::again::Reason;
use super::{Phase, Pool, Seat, State, Stop, Term};
use crate::block::{LONGEST_ITEM, Over};
use crate::events::{EventKind, How};
use crate::fail_point::fail_point;
use crate::lease::Holdings;
use crate::life_line::LifeLine;
use crate::protocol::{TaskKind, WorkerKey};
use crate::scheduler::Slot;
use crate::seat::{Worker, WorkerEnds};
use crate::supervisor::Command;
use crate::task::{Breakage, Bytes, Cause, Death, Deaths, Entry, Outcome};
use manyhands_os::{Process, Socket, monotonic_nanos};
use manyhands_shm::{ControlBlock, PoolPage, QueueWord};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

/// After so many births in a row without a finished task, the pool gives up.
const MOST_FAILED_BIRTHS: u32 = 3;
/// After so many in a row that were killed from outside, which is no fault of the program's.
const MOST_KILLED_BIRTHS: u32 = 20;
/// The same on all architectures of Linux and the BSDs.
pub(super) const SIGKILL: i32 = 9;

impl Pool {
    /// Empties the rings for the supervisor; whether to look again soon. It looks again while
    /// results keep coming, so that a busy pool costs a poll now and then and not a system call
    /// per result; then it is armed.
    pub(crate) fn supervise(&self, last_drains: &mut u64) -> bool {
        let mut state = self.lock();
        if std::mem::take(&mut state.try_again)
            || state.balance_at.is_some_and(|at| at <= monotonic_nanos())
        {
            state.balance_at = None;
            self.send_answers(&mut state);
            self.balance(&mut state);
            self.tell_all(&mut state);
        }
        if state.role.is_held() {
            return state.is_to_be_looked_at();
        }
        self.page.parent().awake();
        self.drain(&mut state);
        if state.is_to_be_looked_at() {
            return true;
        }
        if state.drains != *last_drains && state.pending > 0 {
            *last_drains = state.drains;
            return true;
        }
        self.arm_supervisor(&mut state);
        false
    }

    /// Seats for which a worker was asked, with the generation that it will be.
    pub(crate) fn seats_asked(&self) -> Vec<WorkerKey> {
        let state = self.lock();
        let asked = state
            .seats
            .iter()
            .enumerate()
            .filter(|(_, seat)| matches!(seat, Seat::Asked { .. }));
        asked
            .map(|(index, _)| WorkerKey {
                pool: self.id,
                slot: index as u32,
                generation: state.generations[index] + 1,
            })
            .collect()
    }

    /// Makes the memory and the lines of a worker, and gives its first tasks to it; what the new
    /// process needs is returned.
    pub(crate) fn prepare(&self, key: WorkerKey) -> io::Result<Option<WorkerEnds>> {
        let control = ControlBlock::create()?;
        fail_point("parent.block_made");
        let (socket, workers_socket) = Socket::pair()?;
        let (life_line, workers_life_line) = LifeLine::new()?;
        let ends = WorkerEnds {
            control: control.as_fd().try_clone_to_owned()?,
            socket: workers_socket,
            life_line: workers_life_line,
        };
        // SAFETY: the only reader of this block, which lives in the same value.
        let reader = unsafe { control.result_reader() };
        let mut state = self.lock();
        let index = key.slot as usize;
        let Seat::Asked { spare } = state.seats[index] else {
            return Ok(None); // not wanted any more
        };
        state.generations[index] = key.generation;
        state.seats[index] = Seat::Taken(Box::new(Worker {
            control: Arc::new(control),
            reader,
            socket,
            life_line,
            process: None,
            generation: key.generation,
            known: HashMap::new(),
            known_changes: 0,
            known_last: 0,
            known_context: 0,
            known_limit: 64,
            forget: Vec::new(),
            holdings: Holdings::default(),
            oldest: 0,
            next: 0,
            write_position: 0,
            unpublished: 0,
            files_sent: 0,
            files_taken: 0,
            last_block: None,
            last_stream: Weak::new(),
            stop: None,
            gauge: None,
            calls: None,
            stands_at: None,
            unwanted: None,
            told_start: None,
            told_memory: 0,
            dismissed: false,
            paused: false,
            consumed: 0,
            finished: 0,
            busy_nanos: 0,
            born_at: monotonic_nanos(),
            leaving: false,
            violation: false,
            term: Term::new(spare),
        }));
        let slot = Slot(key.slot);
        state.scheduler.open(slot, self.initializer.is_some());
        if let Some(initializer) = &self.initializer {
            let entry = Entry::new(
                None,
                TaskKind::Initialize,
                initializer.definition.clone(),
                initializer.needs.clone(),
                initializer.tag,
                Bytes::copy_of(&initializer.payload),
            );
            let unwritten = self.write(&mut state, slot, entry);
            if unwritten.is_some() || state.scheduler.held_count(slot) != 1 {
                // A worker that was not initialized may run nothing.
                state.scheduler.close(slot);
                state.seats[index] = Seat::Vacant;
                return Err(io::Error::other("the initializer could not be sent"));
            }
            self.publish(&mut state, slot);
        }
        if spare {
            state.scheduler.close(slot);
        }
        self.look_after(&mut state);
        // A spare may have come too late.
        self.settle(&mut state);
        self.balance(&mut state);
        self.ask_for_workers(&mut state);
        self.tell_all(&mut state);
        Ok(Some(ends))
    }

    pub(crate) fn page(&self) -> &PoolPage {
        &self.page
    }

    /// The worker runs. If it is not wanted any more, it is told to leave or killed.
    pub(crate) fn born(&self, key: WorkerKey, process: Process) -> io::Result<Option<OwnedFd>> {
        let mut state = self.lock();
        let killing = matches!(state.phase, Phase::Closing(true));
        let Some(worker) = state.worker(key) else {
            process.kill();
            return Ok(None);
        };
        if worker.process.is_some() {
            return Ok(None); // it was found before it was reported
        }
        if killing || worker.violation || worker.dismissed {
            process.kill();
        }
        let watch = process
            .descriptor()
            .map(|pidfd| pidfd.try_clone_to_owned())
            .transpose()?;
        if worker.stop.is_some() {
            // What it runs already was to end before anybody could ask.
            process.ask();
        }
        worker.process = Some(Arc::new(process));
        self.say_born(worker, key.slot);
        state.scheduler.born(Slot(key.slot));
        self.came_on(&mut state, Slot(key.slot));
        self.look_after(&mut state);
        if state.pending == 0 {
            self.leave_if_closing(&mut state);
        } else {
            self.balance(&mut state);
        }
        self.tell_all(&mut state);
        Ok(watch)
    }

    /// The worker is gone: what it had started is lost, the rest goes on.
    pub(crate) fn died(&self, key: WorkerKey, cause: Cause) {
        self.bury(key, cause, true);
    }

    pub(super) fn bury(&self, key: WorkerKey, cause: Cause, again: bool) {
        let mut state = self.lock();
        if state.worker(key).is_none() {
            return;
        }
        let index = key.slot as usize;
        // Frozen first: a worker that lives unseen, its zygote dead, publishes nothing after that
        // but the result of what it runs.
        if let Some(worker) = state.worker(key) {
            worker.control.queue().freeze();
        }
        // All that it published counts, whoever waits: it is never read again.
        state.waiting += 1;
        self.drain_seat(&mut state, index);
        state.waiting -= 1;
        let seat = std::mem::replace(&mut state.seats[index], Seat::Vacant);
        let Seat::Taken(mut worker) = seat else {
            return;
        };
        self.page.end_spin(key.slot);
        let slot = Slot(key.slot);
        let queue = worker.control.queue().state();
        let started = QueueWord::distance(worker.oldest, queue.next) as usize;
        let loss = state.scheduler.died(slot, started, |entry| {
            worker.unlearn(entry);
            entry.set_place(None);
        });
        let cause = if worker.violation {
            Cause::Protocol
        } else {
            cause
        };
        let pid = worker.pid();
        let killing = worker.dismissed || matches!(state.phase, Phase::Closing(true));
        let (mut blamed, mut initializing) = (false, false);
        let mut leaving = worker.leaving;
        let unwanted = killing || worker.stop.as_ref().is_some_and(Stop::has_killed);
        let exits = |entry: &Entry| entry.kind == TaskKind::Exit;
        let runs = |entry: &Entry| matches!(entry.kind, TaskKind::Run | TaskKind::Block);
        let is_amid = loss.started.iter().any(runs);
        let leaves = leaving || loss.started.iter().any(exits);
        let mut about = loss
            .started
            .iter()
            .find_map(|entry| self.about_lost(entry, &worker, slot));
        self.say_gone(&worker, key.slot, cause, (unwanted, leaves, is_amid));
        for entry in loss.started {
            match entry.kind {
                TaskKind::Run | TaskKind::Block => {
                    blamed = true;
                    let reason = match &worker.stop {
                        Some(stop) => stop.reason(),
                        None => (!killing).then_some(Reason::Death(Death { pid, cause })),
                    };
                    let attempts = entry.attempt();
                    let entry = match reason {
                        Some(reason) => self.run_again(&mut state, entry, reason),
                        None => Some(entry),
                    };
                    let ended = match &worker.stop {
                        Some(stop) => Some(stop.outcome(pid, attempts)),
                        None => killing.then_some(Outcome::Cancelled),
                    };
                    let kind = EventKind::Ended(How::Died(cause));
                    let kind = ended.as_ref().map_or(kind, EventKind::of);
                    let Some(entry) = entry else {
                        self.say(about.take(), kind.again());
                        continue;
                    };
                    self.say(about.take(), kind);
                    self.lost_with_worker(&mut state, entry, Death { pid, cause }, ended);
                }
                TaskKind::Exit => leaving = true,
                TaskKind::Initialize => initializing = true,
                TaskKind::Discard => {}
            }
        }
        // Start-up and exit messages that were never read go with the worker.
        let mut returned = state.scheduler.take_queue();
        returned.retain(|entry| matches!(entry.kind, TaskKind::Run | TaskKind::Block));
        for entry in returned {
            state.scheduler.add(entry);
        }
        // A worker that was never born did not die, unless it ran unseen and a task is lost.
        if !leaving
            && !worker.dismissed
            && worker.stop.is_none()
            && (blamed || worker.process.is_some())
        {
            state.deaths += 1;
            self.log_death(pid, key.slot, cause);
            if worker.finished == 0 && !blamed {
                // Unknown: nobody is left who could tell what killed it, but something did.
                let was_killed =
                    matches!(cause, Cause::Signal(SIGKILL) | Cause::Oom | Cause::Unknown);
                state.count_failed_birth(was_killed && !initializing);
            }
        }
        // A pool that has finished tasks before can start workers: it is more patient.
        let most = if state.done > 0 && !initializing {
            MOST_KILLED_BIRTHS
        } else {
            MOST_FAILED_BIRTHS
        };
        let too_many = state.failed_births >= most || state.killed_births >= MOST_KILLED_BIRTHS;
        if too_many && matches!(state.phase, Phase::Open | Phase::Closing(false)) {
            let breakage = if self.initializer.is_some() {
                Breakage::InitializerDied(pid, cause)
            } else {
                Breakage::Start(format!(
                    "{} workers in a row died while they started ({cause:?})",
                    state.failed_births + state.killed_births
                ))
            };
            self.break_down(&mut state, Arc::new(breakage));
        }
        if let Some(calls) = worker.calls.take() {
            self.end_calls(&mut state, *calls);
        }
        let wanted = match state.phase {
            _ if state.occupied() >= state.width => false,
            // One that could not even be started is asked for again by the next task.
            Phase::Open => !leaving && again,
            Phase::Closing(false) => state.pending > 0,
            _ => false,
        };
        state.is_unsettled = true;
        if wanted && !state.promote_spare() {
            state.seats[index] = Seat::Asked { spare: false };
            self.supervisor.command(Command::Births(self.id));
        }
        if leaving && state.scheduler.queued() > 0 && !matches!(state.phase, Phase::Broken(_)) {
            // It went for want of work, which has come since.
            self.ask_for_workers(&mut state);
        }
        self.balance(&mut state);
        self.tell_all(&mut state);
        self.quiet.notify_all();
    }

    /// Ends the item that a worker had started when it died.
    fn lost_with_worker(
        &self,
        state: &mut State,
        mut entry: Entry,
        death: Death,
        ended: Option<Outcome>,
    ) {
        let attempts = entry.attempt();
        let earlier = entry.died.take();
        let died = |tag, payload| {
            ended.unwrap_or_else(|| Outcome::Died {
                deaths: Deaths::after(earlier, death),
                tag,
                payload,
                attempts,
            })
        };
        if let Some(block) = &entry.block {
            let of_stream = block.stream.options.tag;
            // A long one is no use in a message.
            let item = block.item(entry.index(), |tag, item| {
                (item.len() <= LONGEST_ITEM).then(|| (tag | of_stream, Bytes::copy_of(item)))
            });
            let (tag, payload) = item.flatten().unwrap_or_default();
            block.take_one(died(tag, payload), false);
            self.count_ended(state, 1);
        } else if let Some(task) = entry.task {
            self.complete(
                state,
                &task,
                died(entry.tag, entry.payload.without_buffers()),
            );
        }
    }

    /// A worker could not be started. While others run they do its work; else the pool breaks,
    /// after a few attempts.
    pub(crate) fn not_born(&self, key: WorkerKey, why: &str) {
        let mut state = self.lock();
        let index = key.slot as usize;
        if matches!(state.seats[index], Seat::Asked { .. }) {
            state.seats[index] = Seat::Vacant;
        }
        // Who waits for what it has submitted, or rests, does nobody's work.
        let others = state.seats.iter().enumerate().any(|(other, seat)| {
            other != index
                && matches!(seat, Seat::Taken(worker) if worker.process.is_some())
                && !seat.lends()
                && !self.rests(&state, other)
                && !self.is_spent(&state, other)
        });
        self.spare_failed(&mut state, !others);
        // Who rested may have a place now.
        self.tell_all(&mut state);
        drop(state);
        if !others {
            self.birth_failed(Cause::Start, why);
        }
        self.bury(key, Cause::Start, !others);
        if !others {
            let mut state = self.lock();
            if matches!(state.phase, Phase::Open | Phase::Closing(false)) {
                self.ask_for_workers(&mut state);
                self.tell_all(&mut state);
            }
        }
    }

    /// Counts a birth that failed; after a few in a row the pool breaks, after more if somebody killed what
    /// was starting.
    pub(crate) fn birth_failed(&self, cause: Cause, why: &str) {
        let mut state = self.lock();
        state.count_failed_birth(matches!(cause, Cause::Signal(SIGKILL) | Cause::Oom));
        if state.failed_births >= MOST_FAILED_BIRTHS || state.killed_births >= MOST_KILLED_BIRTHS {
            let why = format!("workers could not be started: {why}");
            self.break_down(&mut state, Arc::new(Breakage::Start(why)));
            self.tell_all(&mut state);
        }
    }

    pub(super) fn break_down(&self, state: &mut State, why: Arc<Breakage>) {
        if matches!(state.phase, Phase::Broken(_)) {
            return;
        }
        state.phase = Phase::Broken(why.clone());
        self.end_waiting(state, &Over::Broken(why));
        self.leave_if_closing(state);
    }

    /// Kills the workers that have not left, for the end of the time that they were given; those that
    /// are not even born are returned, to be buried: whoever was asked for them does not answer.
    #[must_use]
    pub(crate) fn kill_leaving(&self) -> Vec<WorkerKey> {
        let state = self.lock();
        let mut unborn = Vec::new();
        for (index, seat) in state.seats.iter().enumerate() {
            if let Seat::Taken(worker) = seat
                && worker.leaving
            {
                match &worker.process {
                    Some(process) => process.kill(),
                    None => unborn.push(WorkerKey {
                        pool: self.id,
                        slot: index as u32,
                        generation: worker.generation,
                    }),
                }
            }
        }
        unborn
    }

    /// Whether the pool is closing and its last task has ended.
    pub(crate) fn is_leaving(&self) -> bool {
        let state = self.lock();
        !matches!(state.phase, Phase::Open) && state.pending == 0
    }

    /// Whether the pool is closed and its last worker gone.
    pub(crate) fn is_gone(&self) -> bool {
        let state = self.lock();
        !matches!(state.phase, Phase::Open) && state.pending == 0 && !state.has_workers()
    }

    /// The process of a worker that nobody reported; see `Worker::unreported`.
    pub(crate) fn unreported(&self, key: WorkerKey) -> Option<Process> {
        self.lock().worker(key)?.unreported()
    }

    /// What a worker says of its own process; 0 before it says it.
    pub(crate) fn said_pid(&self, key: WorkerKey) -> i32 {
        self.lock().worker(key).map_or(0, |worker| worker.pid())
    }

    /// Workers without a process: nobody has reported their birth yet.
    pub(crate) fn unborn(&self) -> Vec<WorkerKey> {
        let state = self.lock();
        let mut keys = Vec::new();
        for (index, seat) in state.seats.iter().enumerate() {
            if let Seat::Taken(worker) = seat
                && worker.process.is_none()
            {
                let (slot, generation) = (index as u32, worker.generation);
                keys.push(WorkerKey {
                    pool: self.id,
                    slot,
                    generation,
                });
            }
        }
        keys
    }
}
