//! Asking workers what they do; see `dump`.

use super::{Pool, PoolStats, Seat, State};
use crate::dump::{PoolDump, Question};
use manyhands_os::Process;
use manyhands_shm::ControlBlock;
use std::sync::Arc;

/// How a worker can be asked.
pub(super) type Reach = (Arc<ControlBlock>, Arc<Process>);

impl Pool {
    /// What all workers do now. Those that run something are asked for their stacks, all at once; who does
    /// not answer within a second is shown as the kernel sees it.
    pub fn dump(&self) -> PoolDump {
        let (stats, mut reaches) = self.reach_all();
        for (worker, reach) in stats.workers.iter().zip(&mut reaches) {
            if worker.task_age.is_none() {
                *reach = None;
            }
        }
        let questions: Vec<_> = reaches.into_iter().map(ask).collect();
        let wait = |question: Option<Question>| question.map(|question| question.wait());
        let answers = questions
            .into_iter()
            .map(wait)
            .map(Option::unwrap_or_default);
        PoolDump {
            stats,
            answers: answers.collect(),
        }
    }

    /// What there is to know of the workers, and how each of them can be asked.
    pub(super) fn reach_all(&self) -> (PoolStats, Vec<Option<Reach>>) {
        let state = self.lock();
        let stats = self.stats_of(&state);
        let slots = stats.workers.iter().map(|worker| worker.slot);
        let reaches = slots.map(|slot| state.reach(slot as usize)).collect();
        (stats, reaches)
    }
}

/// Asks a worker that can be.
pub(super) fn ask(reach: Option<Reach>) -> Option<Question> {
    reach.map(|(control, process)| Question::new(control, process))
}

impl State {
    /// How the worker of that seat can be asked; none before it is born. It may run a task before its birth is
    /// reported.
    pub(super) fn reach(&self, index: usize) -> Option<Reach> {
        let Seat::Taken(worker) = &self.seats[index] else {
            return None;
        };
        let process = worker.process.clone();
        let process = process.or_else(|| worker.unreported().map(Arc::new))?;
        Some((worker.control.clone(), process))
    }
}
