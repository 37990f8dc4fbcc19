//! Running tasks again that have failed, as their `Retry` says.
//!
//! Such a task is one entry of one item, so that it can go back to the queue as it is. Its bytes are sent
//! again, with the number of the attempt. While it waits for its pause it is in `State::delayed`, and in
//! nobody's queue; who cancels it ends its task, and it is passed over when its time comes. A task
//! that killed as many workers as it may is not tried again, and none is once the pool has ended what waits.
//!
//! | a task with `Retry`                 | the next thing                                                    |
//! |-------------------------------------|-------------------------------------------------------------------|
//! | fails, its worker says "again"      | queued, or delayed; as often as `failures` says                   |
//! | fails otherwise                     | it has failed                                                     |
//! | takes too long                      | as a failure, with `timeouts`; else it has failed                 |
//! | takes too much memory               | as a failure, with `memory`; else it has failed                   |
//! | its worker dies                     | queued, or delayed; as often as `deaths` says                     |
//! | is cancelled while it is delayed    | it has ended; what is delayed is forgotten when its time comes    |
//! | the pool ends what waits, or breaks | it has ended                                                      |

use super::{Pool, State};
use crate::fail_point::fail_point;
use crate::task::{Death, Deaths, Entry};
use manyhands_os::monotonic_nanos;

/// Why a task runs again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// It failed, and its worker said that it may run again.
    Failure,
    /// Its time was up.
    Timeout,
    /// It took too much memory.
    Memory,
    /// Its worker died.
    Death(Death),
}

impl Pool {
    /// Has the task run again if it may; gives it back if it may not.
    pub(super) fn run_again(
        &self,
        state: &mut State,
        mut entry: Entry,
        reason: Reason,
    ) -> Option<Entry> {
        let is_dropped = |entry: &Entry| match &entry.block {
            Some(block) => block.stream.is_abandoned(),
            None => false,
        };
        let Some(retry) = entry.retry.clone() else {
            return Some(entry);
        };
        if !entry.is_wanted() || is_dropped(&entry) || state.ends_early {
            return Some(entry);
        }
        let may = match reason {
            Reason::Failure => entry.failures < retry.failures,
            Reason::Timeout => retry.timeouts && entry.failures < retry.failures,
            Reason::Memory => retry.memory && entry.failures < retry.failures,
            Reason::Death(_) => entry.deaths < retry.deaths,
        };
        if !may {
            return Some(entry);
        }
        let pause = retry.pause(entry.failures + entry.deaths + 1, state.random());
        match reason {
            Reason::Death(death) => {
                entry.deaths += 1;
                entry.died = Some(Deaths::after(entry.died.take(), death));
            }
            _ => entry.failures += 1,
        }
        fail_point("parent.to_run_again");
        self.log_retry(&entry, reason, pause);
        (entry.left, entry.ended, entry.file) = (1, 0, 0);
        entry.carried = Vec::new();
        entry.forgets = Vec::new();
        // The worker that had them has released them, or is dead.
        entry.leases = false;
        entry.set_place(None);
        if pause == 0 {
            state.scheduler.add(entry);
            self.ask_for_workers(state);
        } else {
            let at = monotonic_nanos().saturating_add(pause);
            state.delayed.push((at, entry));
            self.watch(state, at);
        }
        None
    }

    /// Queues those whose pause is over; when the next one's is.
    pub(super) fn end_pauses(&self, state: &mut State, now: u64) -> Option<u64> {
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut state.delayed)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        state.delayed = later;
        for (_, entry) in due {
            if entry.is_wanted() {
                fail_point("parent.pause_ended");
                state.scheduler.add(entry);
            }
        }
        self.ask_for_workers(state);
        state.delayed.iter().map(|(at, _)| *at).min()
    }
}

impl State {
    /// A number from 0 to 1, from the clock: nobody relies on it being unpredictable.
    fn random(&mut self) -> f64 {
        let mut bits = self.seed ^ monotonic_nanos();
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        self.seed = bits;
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}
