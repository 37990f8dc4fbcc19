//! Cancelling tasks, closing pools, and what there is to know of them.

use super::{Phase, Pool, PoolStats, Seat, State, WorkerStats};
use crate::protocol::TaskKind;
use crate::scheduler::Slot;
use crate::supervisor::Command;
use crate::task::{Bytes, Entry, Outcome, Task};
use manyhands_os::monotonic_nanos;
use manyhands_shm::QueueWord;
use std::sync::Arc;
use std::time::Duration;

impl Pool {
    /// Cancels a task that has not started; whether it is cancelled now.
    pub fn cancel(&self, task: &Arc<Task>) -> bool {
        self.cancel_all(std::slice::from_ref(task));
        matches!(task.outcome(), Some(Outcome::Cancelled))
    }

    /// Cancels those of the tasks that have not started.
    pub fn cancel_all(&self, tasks: &[Arc<Task>]) {
        let mut state = self.lock();
        for task in tasks {
            if task.is_done() {
                continue;
            }
            if let Some((slot, number)) = task.place()
                && let Seat::Taken(worker) = &state.seats[slot as usize]
            {
                let slot = Slot(slot);
                let behind = QueueWord::distance(number, worker.next) as usize;
                if behind <= state.scheduler.held_count(slot) {
                    self.take_back(&mut state, slot, behind);
                }
            }
            if task.place().is_none() {
                self.complete(&mut state, task, Outcome::Cancelled);
            }
        }
        self.balance(&mut state);
        self.tell_all(&mut state);
    }

    /// Whether workers could take more than what is queued.
    pub fn wants_more(&self) -> bool {
        let state = self.lock();
        let workers = state.seats.len();
        state.scheduler.queued() < workers * state.scheduler.credit().max(2) * 2
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

    pub(super) fn cancel_waiting(&self, state: &mut State) {
        for index in 0..state.seats.len() {
            let slot = Slot(index as u32);
            if !state.is_leaving(slot) {
                let held = state.scheduler.held_count(slot);
                self.take_back(state, slot, held);
            }
        }
        for entry in state.scheduler.take_queue() {
            if let Some(task) = &entry.task {
                self.complete(state, task, Outcome::Cancelled);
            }
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
        if cancel || kill {
            self.cancel_waiting(&mut state);
        }
        if kill {
            for seat in &mut state.seats {
                if let Seat::Taken(worker) = seat {
                    worker.control.queue().freeze();
                    worker.leaving = true;
                    if let Some(process) = &worker.process {
                        process.kill();
                    }
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
        for index in 0..state.seats.len() {
            let slot = Slot(index as u32);
            match &mut state.seats[index] {
                Seat::Taken(worker) if !worker.leaving => {
                    worker.leaving = true;
                    state.scheduler.close(slot);
                    let exit =
                        Entry::new(None, TaskKind::Exit, None, Vec::new(), 0, Bytes::default());
                    if self.write(state, slot, exit).is_none() {
                        self.publish(state, slot);
                    }
                }
                seat @ Seat::Asked => *seat = Seat::Vacant,
                _ => {}
            }
        }
        self.quiet.notify_all();
    }

    /// Waits until all tasks have ended and, with `workers`, all workers are gone, or the time is
    /// up; whether that is so.
    pub fn wait_quiet(&self, workers: bool, time: Duration) -> bool {
        let state = self.lock();
        let busy = |state: &mut State| state.pending > 0 || (workers && state.has_workers());
        match self.quiet.wait_timeout_while(state, time, busy) {
            Ok((_, waited)) => !waited.timed_out(),
            Err(_) => crate::bug("a thread panicked while it held a pool"),
        }
    }

    /// Tasks that have not ended.
    pub fn pending(&self) -> usize {
        self.lock().pending
    }

    /// What there is to know.
    pub fn stats(&self) -> PoolStats {
        let state = self.lock();
        let now = monotonic_nanos();
        let mut workers = Vec::new();
        for (index, seat) in state.seats.iter().enumerate() {
            let Seat::Taken(worker) = seat else { continue };
            let slot = Slot(index as u32);
            let queue = worker.control.queue().state();
            let started = QueueWord::distance(worker.oldest, queue.next) as usize;
            let held = state.scheduler.held_count(slot);
            let running = (started > 0)
                .then(|| state.scheduler.held(slot).nth(started - 1))
                .flatten();
            workers.push(WorkerStats {
                slot: slot.0,
                // A worker may run before the zygote has told of it.
                pid: worker.pid(),
                restarts: worker.generation - 1,
                done: worker.finished,
                busy_nanos: worker.busy_nanos,
                task_age: running.map(|_| now.saturating_sub(worker.control.started_at())),
                task_index: running
                    .and_then(|entry| entry.task.as_ref())
                    .map(|task| task.index),
                waiting: held.saturating_sub(started),
                age: now.saturating_sub(worker.born_at),
            });
        }
        PoolStats {
            workers,
            queued: state.scheduler.queued(),
            pending: state.pending,
            done: state.done,
            deaths: state.deaths,
            late_wakes: state.late_wakes,
        }
    }
}
