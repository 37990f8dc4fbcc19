//! A call that was submitted to a pool of threads.
//!
//! **States.** `Waiting` → `Running` → `Ended`, or `Waiting` → `Ended` by a cancellation or the end of its
//! pool. The state changes under its mutex, whose holder never runs Python and never waits. Whoever
//! takes the call out of `Waiting` decides what becomes of it, so it runs once or is cancelled once.
//!
//! **Waiting for the end.** `word` is GOING, AWAITED or ENDED. A waiter turns GOING into AWAITED and
//! sleeps while it reads AWAITED; who ends the task swaps in ENDED and, if it was AWAITED, wakes all.
//! A waiter that comes later reads ENDED; one that is about to sleep finds the word changed. The state
//! is `Ended` before the word is ENDED.

use crate::bystanders::detach;
use crate::crew::Crew;
use crate::engine::Plan;
use crate::local::{self, Kind, Shown};
use crate::process;
use manyhands_os::{Waited, futex_wait_private, futex_wake_private, monotonic_nanos};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Nobody sleeps until the end.
const GOING: u32 = 0;
/// Somebody sleeps until the end.
const AWAITED: u32 = 1;
const ENDED: u32 = 2;

/// The longest sleep before signals are looked for, in nanoseconds: one may have been handled by another
/// thread.
const LONGEST_SLEEP: u64 = 100_000_000;

pub(crate) struct CrewTask {
    crew: Arc<Crew>,
    index: u64,
    /// GOING, AWAITED or ENDED.
    word: AtomicU32,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    /// Whom to tell of the end, see `Completions`.
    tokens: Vec<u64>,
}

enum Phase {
    Waiting(Call),
    Running,
    Ended(End),
}

/// A call, as it was submitted.
pub(crate) struct Call {
    pub(crate) function: Py<PyAny>,
    pub(crate) args: Py<PyTuple>,
    pub(crate) kwargs: Option<Py<PyDict>>,
    pub(crate) plan: Option<Arc<Plan>>,
}

/// What a task came to.
pub(crate) enum End {
    Value(Py<PyAny>),
    Error(Py<PyAny>),
    Cancelled,
}

impl CrewTask {
    pub(crate) fn new(crew: Arc<Crew>, index: u64, call: Call) -> Arc<Self> {
        Arc::new(Self {
            crew,
            index,
            word: AtomicU32::new(GOING),
            state: Mutex::new(State {
                phase: Phase::Waiting(call),
                tokens: Vec::new(),
            }),
        })
    }

    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(crate) fn is_done(&self) -> bool {
        // Acquire pairs with the swap of `end_as`.
        self.word.load(Ordering::Acquire) == ENDED
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state().phase, Phase::Running)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(self.state().phase, Phase::Ended(End::Cancelled))
    }

    pub(crate) fn has_value(&self) -> bool {
        matches!(self.state().phase, Phase::Ended(End::Value(_)))
    }

    /// What it came to; none if it has not ended.
    #[inline]
    pub(crate) fn end(&self, py: Python<'_>) -> Option<End> {
        match &self.state().phase {
            Phase::Ended(End::Value(value)) => Some(End::Value(value.clone_ref(py))),
            Phase::Ended(End::Error(error)) => Some(End::Error(error.clone_ref(py))),
            Phase::Ended(End::Cancelled) => Some(End::Cancelled),
            _ => None,
        }
    }

    /// Has the token told of when the task has ended; false if it has ended already.
    pub(crate) fn observe(&self, token: u64) -> bool {
        let mut state = self.state();
        let goes_on = !matches!(state.phase, Phase::Ended(_));
        if goes_on {
            state.tokens.push(token);
        }
        goes_on
    }

    /// Waits for the end without holding Python up; false if the time was up.
    pub(crate) fn wait(&self, py: Python<'_>, deadline: Option<u64>) -> PyResult<bool> {
        loop {
            let now = monotonic_nanos();
            let left = deadline.map_or(u64::MAX, |deadline| deadline.saturating_sub(now));
            let time = Duration::from_nanos(left.min(LONGEST_SLEEP));
            if detach(py, || self.sleep(time)) {
                return Ok(true);
            }
            py.check_signals()?;
            if left == 0 {
                return Ok(false);
            }
        }
    }

    /// Sleeps until the end, a signal, or the end of the time; whether it has ended.
    fn sleep(&self, time: Duration) -> bool {
        let set = self
            .word
            .compare_exchange(GOING, AWAITED, Ordering::Relaxed, Ordering::Acquire);
        if set == Err(ENDED) {
            return true;
        }
        let _why: Waited = futex_wait_private(&self.word, AWAITED, Some(time));
        self.is_done()
    }

    /// Cancels it if it has not started; whether it is cancelled now.
    pub(crate) fn cancel(&self) -> bool {
        self.end_unstarted(End::Cancelled) || self.is_cancelled()
    }

    /// Ends it if it has not started.
    pub(crate) fn end_unstarted(&self, end: End) -> bool {
        let mut state = self.state();
        if !matches!(state.phase, Phase::Waiting(_)) {
            return false;
        }
        let call = std::mem::replace(&mut state.phase, Phase::Running);
        drop(state);
        drop(call);
        self.end_as(end);
        true
    }

    /// Runs it in this thread, if nobody has ended it.
    #[inline]
    pub(crate) fn run(&self, py: Python<'_>, place: &str) {
        let mut state = self.state();
        if !matches!(state.phase, Phase::Waiting(_)) {
            return;
        }
        let taken = std::mem::replace(&mut state.phase, Phase::Running);
        drop(state);
        let Phase::Waiting(call) = taken else {
            return;
        };
        let end = self.call(py, &call, place);
        if self.crew.is_of_other_process() {
            return; // a child that the task forked: the future is its parent's
        }
        // The arguments are let go before anybody hears of the end.
        drop(call);
        self.end_as(end);
    }

    #[inline]
    fn call(&self, py: Python<'_>, call: &Call, place: &str) -> End {
        let function = call.function.bind(py);
        let args = call.args.bind(py);
        let kwargs = call.kwargs.as_ref().map(|kwargs| kwargs.bind(py));
        let is_over = || self.crew.ends_early();
        let (answer, attempts) = local::call_as_planned(py, call.plan.as_deref(), is_over, || {
            let value = function.call(args, kwargs)?;
            if local::kind_of(&value) == Kind::Awaitable {
                return Err(local::not_awaited(&value, function));
            }
            Ok(value)
        });
        match answer {
            Ok(value) => End::Value(value.unbind()),
            Err(error) => {
                let shows = self.crew.shows_args();
                let shown = Shown {
                    function,
                    args: shows.then(|| args.clone()),
                    kwargs: kwargs.filter(|_| shows),
                    index: self.index,
                    place,
                    attempts,
                };
                End::Error(local::explained(py, error, shown))
            }
        }
    }

    #[inline]
    fn end_as(&self, end: End) {
        let mut state = self.state();
        state.phase = Phase::Ended(end);
        let mut tokens = std::mem::take(&mut state.tokens);
        drop(state);
        // Release pairs with the Acquire of whoever reads ENDED.
        if self.word.swap(ENDED, Ordering::AcqRel) == AWAITED {
            futex_wake_private(&self.word, u32::MAX >> 1);
        }
        if !tokens.is_empty() {
            process::tell_completions(&mut tokens);
        }
        self.crew.ended(1);
    }
}
