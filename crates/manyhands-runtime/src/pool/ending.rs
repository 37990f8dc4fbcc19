//! Cancelling tasks, closing pools, and what there is to know of them.

use super::telling::kind_of;
use super::{Phase, Pool, PoolStats, Seat, State, WorkerStats};
use crate::block::{Block, Over};
use crate::events::EventKind;
use crate::protocol::TaskKind;
use crate::ranked::Rank;
use crate::scheduler::Slot;
use crate::supervisor::Command;
use crate::task::{Bytes, Entry, Outcome, Task};
use manyhands_os::monotonic_nanos;
use manyhands_shm::{QueueWord, Unwanted};
use std::sync::Arc;
use std::time::Duration;

impl Pool {
    /// Cancels those of the tasks that have not started.
    pub fn cancel_all(&self, tasks: &[Arc<Task>]) {
        let mut state = self.lock();
        for task in tasks {
            if task.is_done() {
                continue;
            }
            self.take_back_from(&mut state, task.place());
            if task.place().is_none() {
                self.say_unstarted(task, EventKind::Cancelled);
                self.complete(&mut state, task, Outcome::Cancelled);
            }
        }
        self.balance(&mut state);
        self.tell_all(&mut state);
    }

    /// Cancels the items of these blocks that have not started, and of what was cut off from them. Those
    /// that run go on, but if they yield results they end with the next one; with `kill` their workers
    /// are killed.
    pub fn cancel_blocks(&self, blocks: impl IntoIterator<Item = Arc<Block>>, kill: bool) {
        let mut state = self.lock();
        for block in blocks {
            let mut next = Some(block);
            while let Some(block) = next {
                if !block.is_over() {
                    self.take_back_from(&mut state, block.place());
                    if block.place().is_none() {
                        self.say_open(&block, EventKind::Cancelled);
                        let ended = block.end(Over::Cancelled);
                        self.count_ended(&mut state, ended);
                    } else {
                        self.end_running(&mut state, &block, kill);
                    }
                }
                next = block.rest();
            }
        }
        self.balance(&mut state);
        self.read_on(&mut state);
        self.tell_all(&mut state);
    }

    /// Ends the item of a cancelled block that runs, if one does.
    fn end_running(&self, state: &mut State, block: &Block, kill: bool) {
        let Some((slot, first)) = block.place() else {
            return;
        };
        let Seat::Taken(worker) = &mut state.seats[slot as usize] else {
            return;
        };
        // What had not started was taken back, so that nothing comes after the last that has.
        let last = QueueWord::advance(first, block.count() - 1);
        if QueueWord::distance(last, worker.control.queue().state().next) != 1 {
            return; // it runs another's
        }
        worker.set_unwanted(last, Unwanted::Dropped);
        if kill {
            // It claims nothing from here on, and is given nothing.
            worker.control.queue().freeze();
            worker.dismissed = true;
            // Who is not reported yet is killed then.
            if let Some(process) = &worker.process {
                process.kill();
            }
            state.scheduler.close(Slot(slot));
        }
    }

    /// Takes back what was published at this place and behind it, as far as it has not started.
    pub(super) fn take_back_from(&self, state: &mut State, place: Option<(u32, u32)>) {
        if let Some((slot, number)) = place
            && let Seat::Taken(worker) = &state.seats[slot as usize]
        {
            let slot = Slot(slot);
            let behind = QueueWord::distance(number, worker.next) as usize;
            let held = state.scheduler.held_count(slot);
            self.take_back(state, slot, behind.min(held));
        }
    }

    /// How many more items of that priority should be queued, so that workers find enough until the consumer is
    /// back, which stays away for so many nanoseconds; and the estimated duration of an item.
    pub fn appetite(&self, away: u64, priority: i32) -> (usize, Option<u64>) {
        let state = self.lock();
        let queued = state.scheduler.queued_from(Rank::new(0, priority));
        let (workers, estimate) = (state.width, state.scheduler.estimate());
        let ahead = workers * state.scheduler.credit().max(2) * 2;
        let meanwhile = 2 * workers as u64 * away / estimate.unwrap_or(u64::MAX);
        let wanted = ahead.max(meanwhile as usize);
        (wanted.saturating_sub(queued), estimate)
    }

    /// How many workers it has at most.
    pub fn width(&self) -> usize {
        self.page.width() as usize
    }

    /// For how long what is queued of at least that priority keeps the workers busy, about, halved; in
    /// nanoseconds.
    pub fn supply(&self, priority: i32) -> u64 {
        let state = self.lock();
        let queued = state.scheduler.queued_from(Rank::new(0, priority));
        let workers = state.width.max(1) as u64;
        let estimate = state.scheduler.estimate().unwrap_or(0);
        (queued as u64).saturating_mul(estimate) / workers / 2
    }

    /// Whether the task has been started by a worker.
    pub fn is_running(&self, task: &Task) -> bool {
        let state = self.lock();
        let (false, Some((slot, number))) = (task.is_done(), task.place()) else {
            return false;
        };
        match &state.seats[slot as usize] {
            Seat::Taken(worker) => {
                let next = worker.control.queue().state().next;
                QueueWord::distance(worker.oldest, number)
                    < QueueWord::distance(worker.oldest, next)
            }
            _ => false,
        }
    }

    /// Ends all tasks and items that have not started.
    pub(super) fn end_waiting(&self, state: &mut State, over: &Over) {
        state.ends_early = true;
        for index in 0..state.seats.len() {
            let slot = Slot(index as u32);
            if !state.is_leaving(slot) {
                let held = state.scheduler.held_count(slot);
                self.take_back(state, slot, held);
            }
        }
        let delayed = std::mem::take(&mut state.delayed).into_iter();
        let delayed = delayed.map(|(_, entry)| entry);
        for entry in delayed
            .chain(state.scheduler.take_queue())
            .collect::<Vec<_>>()
        {
            self.end_entry(state, &entry, over.clone());
        }
    }

    /// Ends what has not started.
    pub(super) fn end_entry(&self, state: &mut State, entry: &Entry, over: Over) {
        if let Some(block) = &entry.block {
            self.say_open(block, kind_of(&over));
            let ended = block.end(over);
            self.count_ended(state, ended);
        } else if let Some(task) = &entry.task {
            self.say_unstarted(task, kind_of(&over));
            let outcome = match over {
                Over::Cancelled => Outcome::Cancelled,
                Over::Broken(why) => Outcome::Broken(why),
                Over::Failed(why) => Outcome::Failed(why),
            };
            self.complete(state, task, outcome);
        }
    }

    /// Takes no more tasks. With `cancel` those that have not started never do; with `kill` those
    /// that run are ended too. The workers leave when all is done.
    pub fn close(&self, cancel: bool, kill: bool) {
        let mut state = self.lock();
        let was_killing = matches!(state.phase, Phase::Closing(true));
        if !matches!(state.phase, Phase::Broken(_)) {
            state.phase = Phase::Closing(kill || was_killing);
        }
        if kill {
            // First, so that no task is told of others that end with it.
            for seat in &mut state.seats {
                if let Seat::Taken(worker) = seat {
                    worker.control.queue().freeze();
                    if let Some(process) = &worker.process {
                        process.kill();
                    }
                }
            }
        }
        if cancel || kill {
            self.end_waiting(&mut state, &Over::Cancelled);
        }
        if kill {
            for seat in &mut state.seats {
                if let Seat::Taken(worker) = seat {
                    worker.leaving = true;
                }
            }
        }
        self.leave_if_closing(&mut state);
        self.tell_all(&mut state);
        drop(state);
        self.supervisor.command(Command::Closing(self.id));
    }

    pub(super) fn leave_if_closing(&self, state: &mut State) {
        if state.pending > 0 || matches!(state.phase, Phase::Open) {
            return;
        }
        self.supervisor.command(Command::Closing(self.id));
        // All that still stands there was cancelled, and nobody will come for it.
        drop(state.scheduler.take_queue());
        for index in 0..state.seats.len() {
            let slot = Slot(index as u32);
            match &mut state.seats[index] {
                Seat::Taken(worker) if !worker.leaving => {
                    worker.leaving = true;
                    state.scheduler.leaves(slot);
                    let exit =
                        Entry::new(None, TaskKind::Exit, None, Vec::new(), 0, Bytes::default());
                    if self.write(state, slot, exit).is_none() {
                        self.publish(state, slot);
                    }
                }
                seat @ Seat::Asked { .. } => *seat = Seat::Vacant,
                _ => {}
            }
        }
        self.quiet.notify_all();
    }

    /// Waits until all tasks have ended and, with `workers`, all workers are gone, or the time is
    /// up; whether that is so.
    pub fn wait_quiet(&self, workers: bool, time: Duration) -> bool {
        let mut state = self.lock();
        state.waiting += 1;
        self.read_on(&mut state);
        let busy = |state: &mut State| state.pending > 0 || (workers && state.has_workers());
        match self.quiet.wait_timeout_while(state, time, busy) {
            Ok((mut state, waited)) => {
                state.waiting -= 1;
                !waited.timed_out()
            }
            Err(_) => crate::bug("a thread panicked while it held a pool"),
        }
    }

    /// Nobody can ask what came of the task any more.
    pub fn dropped(&self, task: &Arc<Task>) {
        self.unseen.dropped(&task.fate, || task.clone());
    }

    /// Somebody asked what came of the task, which has failed.
    pub fn seen(&self, task: &Task) {
        self.unseen.seen(&task.fate);
    }

    /// How many tasks failed without anybody asking, and one of them; see `Unseen::take`.
    pub fn take_unseen(&self, all: bool) -> (u64, Option<Arc<Task>>) {
        self.unseen.take(all)
    }

    /// Tasks that have not ended.
    pub fn pending(&self) -> usize {
        self.lock().pending
    }

    /// What there is to know.
    pub fn stats(&self) -> PoolStats {
        self.stats_of(&self.lock())
    }

    pub(super) fn stats_of(&self, state: &State) -> PoolStats {
        let now = monotonic_nanos();
        let mut workers = Vec::new();
        for (index, seat) in state.seats.iter().enumerate() {
            let Seat::Taken(worker) = seat else { continue };
            let slot = Slot(index as u32);
            let queue = worker.control.queue().state();
            let started = QueueWord::distance(worker.oldest, queue.next) as usize;
            let held = state.scheduler.held_count(slot);
            let running = state.started_entry(slot, started as u32);
            let running = running.map(|(entry, at)| (entry.index() + at, entry.definition.clone()));
            let (task_index, definition) = running.unzip();
            workers.push(WorkerStats {
                slot: slot.0,
                // A worker may run before the zygote has told of it.
                pid: Some(worker.pid()).filter(|&pid| pid != 0),
                restarts: worker.generation - 1,
                done: worker.finished,
                busy_nanos: worker.busy_nanos,
                transfer_nanos: worker.control.transfer(),
                task_age: task_index.map(|_| now.saturating_sub(worker.control.started_at())),
                task_index,
                definition: definition.flatten(),
                waiting: held.saturating_sub(started),
                age: now.saturating_sub(worker.born_at),
                leases: worker.holdings.count(),
            });
        }
        PoolStats {
            workers,
            queued: state.scheduler.queued(),
            pending: state.pending,
            done: state.done,
            deaths: state.deaths,
            recycled: state.recycled,
            lent: state.lent,
            late_wakes: state.late_wakes,
        }
    }
}
