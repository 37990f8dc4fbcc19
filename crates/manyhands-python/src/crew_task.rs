//! A call that was submitted to a pool of threads.
//!
//! **States.** `Waiting` → `Running` → `Ended`, or `Waiting` → `Ended` by a cancellation or the end of its
//! pool; or `Running` → `Ended` by somebody else than its thread, since its time is up or it is cancelled:
//! what the thread comes to then is dropped (see `asking.rs`). The state changes under its mutex, whose holder never runs Python and never waits. Whoever
//! takes the call out of `Waiting` decides what becomes of it, so it runs once or is cancelled once, and who
//! takes it out of `Running` what it has come to.
//!
//! **Waiting for the end.** `word` is GOING, AWAITED or ENDED. A waiter turns GOING into AWAITED and
//! sleeps while it reads AWAITED; who ends the task swaps in ENDED and, if it was AWAITED, wakes all.
//! A waiter that comes later reads ENDED; one that is about to sleep finds the word changed. The state
//! is `Ended` before the word is ENDED.

use crate::asking::{Runner, What, Why};
use crate::bystanders::detach;
use crate::capture::{self, Kept};
use crate::crew::Crew;
use crate::crew_nesting::{self, Children};
use crate::engine::Plan;
use crate::events::{Told, here};
use crate::local::{self, Kind, Ran, Shown, Watched};
use crate::process;
use crate::seeds::{self, Origin, Stream};
use manyhands_os::{Waited, futex_wait_private, futex_wake_private, monotonic_nanos};
use manyhands_runtime::{Event, EventKind, Fate, How, Label, Limits, Rank, Tasks};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
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
    /// What it runs, if somebody listens.
    told_as: Option<Label>,
    /// GOING, AWAITED or ENDED.
    word: AtomicU32,
    /// What goes first.
    pub(crate) rank: Rank,
    /// What the task has submitted that has submitted it, if one has.
    parent: Option<Arc<Children>>,
    /// What people call its function, once it was stopped.
    label: OnceLock<String>,
    fate: Fate,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    /// Whom to tell of the end, see `Completions`.
    tokens: Vec<u64>,
}

enum Phase {
    Waiting(Call),
    /// Without anything as long as it is being ended before it started.
    Running(Option<Doing>),
    Ended(End),
}

/// What others than its thread have to know of a task that runs.
struct Doing {
    function: Py<PyAny>,
    limits: Limits,
    plan: Option<Arc<Plan>>,
    /// Whom its end is told, if somebody listens.
    told: Option<Arc<Told>>,
}

/// A call, as it was submitted.
pub(crate) struct Call {
    pub(crate) function: Py<PyAny>,
    pub(crate) args: Py<PyTuple>,
    pub(crate) kwargs: Option<Py<PyDict>>,
    pub(crate) limits: Limits,
    pub(crate) plan: Option<Arc<Plan>>,
    pub(crate) origin: Option<Origin>,
    pub(crate) kept: Option<Kept>,
}

/// What a task came to.
pub(crate) enum End {
    Value(Py<PyAny>),
    Error(Py<PyAny>),
    Cancelled,
}

impl CrewTask {
    pub(crate) fn new(
        crew: Arc<Crew>,
        index: u64,
        told_as: Option<Label>,
        priority: Option<i32>,
        call: Call,
    ) -> Arc<Self> {
        Arc::new(Self {
            index,
            told_as,
            word: AtomicU32::new(GOING),
            rank: crew_nesting::rank_below(&crew, priority),
            parent: crew_nesting::submitted(&crew),
            crew,
            label: OnceLock::new(),
            fate: Fate::default(),
            state: Mutex::new(State {
                phase: Phase::Waiting(call),
                tokens: Vec::new(),
            }),
        })
    }

    /// The crew has not taken it: nobody waits for it.
    #[cold]
    pub(crate) fn never_came(&self) {
        if let Some(parent) = &self.parent {
            parent.ended(&self.crew);
        }
    }

    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    /// As events name it.
    fn tasks(&self) -> Tasks {
        Tasks {
            map: 0,
            index: self.index,
            count: 1,
            label: self.told_as.clone(),
            attempt: 0,
        }
    }

    /// Says what has become of it before it started.
    #[inline]
    pub(crate) fn say(&self, kind: EventKind) {
        if let Some(events) = self.crew.events() {
            events.push(Event::now(kind, None, Some(self.tasks())));
        }
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
        matches!(self.state().phase, Phase::Running(_))
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
            process::check_signals(py)?;
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

    /// Cancels it: it never starts, or is asked to end. Whether it is cancelled now.
    pub(crate) fn cancel(self: &Arc<Self>, py: Python<'_>) -> bool {
        if self.end_unstarted(End::Cancelled) {
            return true;
        }
        self.keep_label(py);
        if self.end_running(End::Cancelled, EventKind::Cancelled) {
            self.crew.ask(
                py,
                Why::Cancelled,
                |what| matches!(what, What::Task(task, _) if Arc::ptr_eq(task, self)),
            );
        }
        self.is_cancelled()
    }

    /// Ends it if it has not started.
    pub(crate) fn end_unstarted(&self, end: End) -> bool {
        let mut state = self.state();
        if !matches!(state.phase, Phase::Waiting(_)) {
            return false;
        }
        let call = std::mem::replace(&mut state.phase, Phase::Running(None));
        drop(state);
        drop(call);
        let kind = match end {
            End::Cancelled => EventKind::Cancelled,
            _ => EventKind::Ended(How::NotRun),
        };
        self.say(kind);
        self.end_running(end, kind)
    }

    /// Runs it in this thread, if nobody has ended it.
    #[inline]
    pub(crate) fn run(
        self: &Arc<Self>,
        py: Python<'_>,
        runner: &Arc<Runner>,
        slot: u32,
        place: &str,
    ) {
        let mut state = self.state();
        let Phase::Waiting(call) = &state.phase else {
            return;
        };
        let told = self.crew.events().map(|events| {
            let who = here(Some(slot));
            Arc::new(Told::start(events.clone(), who, self.tasks()))
        });
        let doing = Doing {
            function: call.function.clone_ref(py),
            limits: call.limits,
            plan: call.plan.clone(),
            told: told.clone(),
        };
        let taken = std::mem::replace(&mut state.phase, Phase::Running(Some(doing)));
        drop(state);
        let Phase::Waiting(call) = taken else {
            return;
        };
        let (end, kind) = self.call(py, runner, &call, place, told.as_deref());
        if self.crew.is_of_other_process() {
            return; // a child that the task forked: the future is its parent's
        }
        // The arguments are let go before anybody hears of the end.
        drop(call);
        self.end_running(end, kind);
    }

    #[inline]
    fn call(
        self: &Arc<Self>,
        py: Python<'_>,
        runner: &Arc<Runner>,
        call: &Call,
        place: &str,
        told: Option<&Told>,
    ) -> (End, EventKind) {
        let function = call.function.bind(py);
        let args = call.args.bind(py);
        let kwargs = call.kwargs.as_ref().map(|kwargs| kwargs.bind(py));
        let is_over = || self.crew.ends_early() || self.is_done();
        let watched = Watched {
            function,
            index: self.index,
            told,
        };
        let run = |runs| {
            let _inside = match capture::enter(py, call.kept.as_ref(), self.index) {
                Ok(inside) => inside,
                Err(error) => return Ran::Failed(error),
            };
            runner.begin(What::Task(self.clone(), runs), call.limits);
            // Each run draws from the start.
            let stream = Stream::of(py, call.origin.as_ref(), self.index);
            let answer = stream.and_then(|stream| {
                let call = || function.call(args, kwargs);
                seeds::within(stream.as_ref(), call)
            });
            match runner.finish(py) {
                None => {}
                Some(Why::TimedOut) => {
                    let thread = self.crew.thread_of(runner);
                    return Ran::TimedOut(self.timeout(py, thread, runs));
                }
                Some(Why::Cancelled) => return Ran::Unwanted,
            }
            Ran::from(answer.and_then(|value| {
                if local::kind_of(&value) == Kind::Awaitable {
                    return Err(local::not_awaited(&value, function));
                }
                Ok(value)
            }))
        };
        let plan = call.plan.as_deref();
        let (answer, attempts) = local::call_as_planned(py, plan, is_over, watched, run);
        let kind = answer.kind();
        let end = match answer {
            Ran::Done(value) => End::Value(value.unbind()),
            Ran::Unwanted => End::Cancelled,
            Ran::TimedOut(error) => End::Error(error.into_value(py).into_any()),
            Ran::Failed(error) => {
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
        };
        (end, kind)
    }

    /// What it is that runs: its function, its limits, and whether it runs again after a time-out.
    fn doing(&self, py: Python<'_>, runs: u8) -> Option<(Py<PyAny>, Limits, bool)> {
        match &self.state().phase {
            Phase::Running(Some(doing)) => {
                let plan = doing.plan.as_ref();
                let again = plan.is_some_and(|plan| plan.may_after_timeout(runs));
                Some((doing.function.clone_ref(py), doing.limits, again))
            }
            _ => None,
        }
    }

    /// What people call the function that it runs.
    pub(crate) fn label(&self, py: Python<'_>) -> Option<String> {
        let (function, ..) = self.doing(py, 0)?;
        Some(local::label_of(function.bind(py)))
    }

    #[cold]
    fn keep_label(&self, py: Python<'_>) {
        if let Some(label) = self.label(py) {
            let _first = self.label.set(label);
        }
    }

    #[cold]
    fn timeout(&self, py: Python<'_>, thread: Option<String>, runs: u8) -> PyErr {
        match self.doing(py, runs) {
            Some((function, limits, _)) => {
                local::timed_out(function.bind(py), self.index, thread, limits, runs)
            }
            // It has ended, and nobody will see this.
            None => crate::future::cancelled(py),
        }
    }

    /// It was asked to end, for its time is up: whoever waits goes on, unless it is to run again.
    pub(crate) fn time_is_up(&self, py: Python<'_>, runner: &Arc<Runner>, runs: u8) {
        self.keep_label(py);
        if let Some((_, _, false)) = self.doing(py, runs) {
            let thread = self.crew.thread_of(runner);
            let error = self.timeout(py, thread, runs).into_value(py);
            let timed_out = EventKind::Ended(How::TimedOut);
            self.end_running(End::Error(error.into_any()), timed_out);
        }
    }

    /// It has not ended in its grace. It does not run again, since it still runs.
    pub(crate) fn leave_behind(
        &self,
        py: Python<'_>,
        runner: &Arc<Runner>,
        why: Why,
        runs: u8,
        grace: u64,
    ) {
        let Some(left) = self.crew.leave_behind(runner) else {
            return;
        };
        if why == Why::TimedOut {
            let error = self.timeout(py, Some(left.name.clone()), runs);
            let end = End::Error(error.into_value(py).into_any());
            self.end_running(end, EventKind::Ended(How::TimedOut));
        }
        let label = self.label.get().map_or("", String::as_str);
        let what = format!("task {} ({label})", self.index);
        self.crew.tell_left(py, &left, &what, grace);
    }

    /// Ends it, if nobody else has; whether it did. `kind` is what is told of it.
    #[inline]
    fn end_running(&self, end: End, kind: EventKind) -> bool {
        let mut state = self.state();
        let Phase::Running(doing) = &state.phase else {
            drop(state);
            return false;
        };
        if let Some(told) = doing.as_ref().and_then(|doing| doing.told.as_ref()) {
            told.ends(kind); // before anybody sees that it has ended
        }
        let is_failure = matches!(end, End::Error(_));
        let was = std::mem::replace(&mut state.phase, Phase::Ended(end));
        let mut tokens = std::mem::take(&mut state.tokens);
        drop(state);
        drop(was);
        // Release pairs with the Acquire of whoever reads ENDED.
        if self.word.swap(ENDED, Ordering::AcqRel) == AWAITED {
            futex_wake_private(&self.word, u32::MAX >> 1);
        }
        if !tokens.is_empty() {
            process::tell_completions(&mut tokens);
        }
        if is_failure {
            self.crew.unseen.failed(&self.fate, || self.described());
        }
        if let Some(parent) = &self.parent {
            parent.ended(&self.crew);
        }
        self.crew.ended(1);
        true
    }

    /// Nobody can ask what came of it any more.
    pub(crate) fn dropped(&self) {
        self.crew.unseen.dropped(&self.fate, || self.described());
    }

    /// Somebody asked what came of it, which has failed.
    pub(crate) fn seen(&self) {
        self.crew.unseen.seen(&self.fate);
    }

    #[cold]
    fn described(&self) -> String {
        Python::attach(|py| match self.end(py) {
            Some(End::Error(error)) => local::described(py, Some(&error)),
            _ => local::described(py, None),
        })
    }
}
