//! Tasks that run in this very process: the call, and what its end looks like.

use crate::engine::Plan;
use crate::events::Told;
use crate::once::Once;
use crate::{bystanders, hooks};
use manyhands_os::monotonic_nanos;
use manyhands_runtime::{EventKind, How, Limits};
use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::borrow::Cow;
use std::time::Duration;

/// How long a thread keeps Python before it offers it to others, in nanoseconds: as long as Python's own
/// loop does.
const TURN_NANOS: u64 = 5_000_000;

/// A thread's turn with Python, in a loop of ours that may run no Python code at all: bytecode lets other
/// threads run now and then, and sees signals, and C code does neither.
#[derive(Default)]
pub(crate) struct Turn {
    since: u64,
}

impl Turn {
    pub(crate) fn begin(&mut self, now: u64) {
        self.since = now;
    }

    /// Calls Python if the turn was long: it fails with what a signal handler raises.
    #[inline]
    pub(crate) fn pass(&mut self, py: Python<'_>, now: u64) -> PyResult<()> {
        if now.saturating_sub(self.since) < TURN_NANOS {
            return Ok(());
        }
        self.since = now;
        bystanders::check(py)?;
        // To let go of the GIL for a moment would not do: others ask for it only after they have
        // waited for 5 ms in a row.
        hooks::turn(py)?.call0().map(drop).inspect_err(|error| {
            forget_place(py, error);
        })
    }
}

/// A signal came to a line of ours, which nobody cares about. From CPython 3.12 on it is the exception that
/// has its traceback, and before the interpreter.
#[cold]
pub(crate) fn forget_place(py: Python<'_>, error: &PyErr) {
    error.set_traceback(py, None);
    let none = error.value(py).setattr("__traceback__", py.None());
    debug_assert!(none.is_ok(), "every exception takes it");
}

/// What a function returned, by what is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Value,
    /// Taken from one by one, by a map.
    Generator,
    /// A coroutine, or an asynchronous generator: nobody would await it here.
    Awaitable,
}

/// What the value is; by its exact type.
#[inline]
pub(crate) fn kind_of(value: &Bound<'_, PyAny>) -> Kind {
    static TYPES: Once<[Py<PyAny>; 3]> = Once::new();
    let py = value.py();
    let types = TYPES.get_or_try_init(py, || {
        let types = py.import("types")?;
        let found = |name| types.getattr(name).map(Bound::unbind);
        Ok::<_, PyErr>([
            found("GeneratorType")?,
            found("CoroutineType")?,
            found("AsyncGeneratorType")?,
        ])
    });
    let Ok(types) = types else {
        return Kind::Value;
    };
    let kind: *const ffi::PyObject = value.get_type_ptr().cast();
    match types
        .iter()
        .position(|known| std::ptr::eq(known.as_ptr(), kind))
    {
        None => Kind::Value,
        Some(0) => Kind::Generator,
        Some(_) => Kind::Awaitable,
    }
}

/// Calls a function with the one argument.
#[inline]
pub(crate) fn call_one<'py>(
    function: &Bound<'py, PyAny>,
    arg: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: live objects, and a new reference or an exception. Unlike a call with a tuple this
    // makes none.
    unsafe {
        let answer = ffi::PyObject_CallFunctionObjArgs(
            function.as_ptr(),
            arg.as_ptr(),
            std::ptr::null_mut::<ffi::PyObject>(),
        );
        Bound::from_owned_ptr_or_err(function.py(), answer)
    }
}

/// Calls a function with an item: its one argument or, with `star`, the tuple of its arguments.
#[inline]
pub(crate) fn call_item<'py>(
    function: &Bound<'py, PyAny>,
    item: &Bound<'py, PyAny>,
    star: bool,
) -> PyResult<Bound<'py, PyAny>> {
    if star {
        function.call1(item.cast::<PyTuple>()?)
    } else {
        call_one(function, item)
    }
}

/// About how much memory an object takes, without what it refers to.
pub(crate) fn size_of(value: &Bound<'_, PyAny>) -> u64 {
    let size = hooks::size_of(value.py()).and_then(|hook| hook.call1((value, 0))?.extract());
    // An object's own `__sizeof__` may raise whatever it likes: then nobody knows.
    size.unwrap_or(0)
}

/// Who hears of it when a task runs again.
#[derive(Clone, Copy)]
pub(crate) struct Watched<'a, 'py> {
    pub(crate) function: &'a Bound<'py, PyAny>,
    pub(crate) index: u64,
    pub(crate) told: Option<&'a Told>,
}

impl Watched<'_, '_> {
    /// A run has failed with this, or its time was up.
    fn log(&self, py: Python<'_>, runs: u8, error: Option<&PyErr>, pause: u64) {
        let seconds = pause as f64 / 1e9;
        let error = error.map(|error| error.value(py));
        let args = (self.function, self.index, runs, error, seconds);
        if let Err(problem) = hooks::log_retry(py).and_then(|hook| hook.call1(args)) {
            // A handler of the log that fails is no failure of the task.
            problem.write_unraisable(py, None);
        }
    }
}

/// How long a pause sleeps before it looks whether it is over, in nanoseconds.
const PAUSE_SLICE: u64 = 20_000_000;

/// What came of a run of a task.
pub(crate) enum Ran<T> {
    Done(T),
    Failed(PyErr),
    /// Its time was up.
    TimedOut(PyErr),
    /// It was asked to end since nobody wants what comes of it.
    Unwanted,
}

impl<T> Ran<T> {
    /// What it is called that a task has come to this.
    pub(crate) fn kind(&self) -> EventKind {
        match self {
            Self::Done(_) => EventKind::Ended(How::Value),
            Self::Failed(_) => EventKind::Ended(How::Error),
            Self::TimedOut(_) => EventKind::Ended(How::TimedOut),
            Self::Unwanted => EventKind::Cancelled,
        }
    }
}

impl<T> From<PyResult<T>> for Ran<T> {
    #[inline]
    fn from(answer: PyResult<T>) -> Self {
        match answer {
            Ok(value) => Self::Done(value),
            Err(error) => Self::Failed(error),
        }
    }
}

/// Calls once, or as often as the plan says; gives what came of it, and how often it was tried. `call` is told
/// which time it is. The pauses are spent here. Nothing is tried again once `is_over`.
#[inline]
pub(crate) fn call_as_planned<T>(
    py: Python<'_>,
    plan: Option<&Plan>,
    is_over: impl Fn() -> bool,
    watched: Watched<'_, '_>,
    mut call: impl FnMut(u8) -> Ran<T>,
) -> (Ran<T>, u8) {
    let answer = call(1);
    match plan {
        Some(plan) if !matches!(answer, Ran::Done(_)) => {
            call_again(py, plan, is_over, watched, call, answer)
        }
        _ => (answer, 1),
    }
}

#[cold]
fn call_again<T>(
    py: Python<'_>,
    plan: &Plan,
    is_over: impl Fn() -> bool,
    watched: Watched<'_, '_>,
    mut call: impl FnMut(u8) -> Ran<T>,
    mut answer: Ran<T>,
) -> (Ran<T>, u8) {
    let mut runs = 1u8; // `Retry` takes no more than 200
    loop {
        let (may, how, error) = match &answer {
            Ran::Failed(error) => {
                let may = u32::from(runs) <= plan.retry.failures
                    && !is_over()
                    && may_run_again(py, plan, error);
                (may, How::Error, Some(error))
            }
            Ran::TimedOut(_) => {
                let may = plan.may_after_timeout(runs) && !is_over();
                (may, How::TimedOut, None)
            }
            Ran::Done(_) | Ran::Unwanted => break,
        };
        if !may {
            break;
        }
        let random = (monotonic_nanos() % 1_000_003) as f64 / 1e6;
        let pause = plan.retry.pause(runs.into(), random.min(1.0));
        if let Some(told) = watched.told {
            told.runs_again(how);
        }
        watched.log(py, runs, error, pause);
        let until = monotonic_nanos() + pause;
        loop {
            let left = until.saturating_sub(monotonic_nanos());
            if left == 0 || is_over() {
                break;
            }
            bystanders::detach(py, || {
                std::thread::sleep(Duration::from_nanos(left.min(PAUSE_SLICE)));
            });
            if let Err(interruption) = py.check_signals() {
                return (Ran::Failed(interruption), runs);
            }
        }
        if is_over() {
            break;
        }
        runs += 1;
        if let Some(told) = watched.told {
            told.starts();
        }
        answer = call(runs);
    }
    (answer, runs)
}

/// Whether the exception is one after which the plan runs a task again.
fn may_run_again(py: Python<'_>, plan: &Plan, error: &PyErr) -> bool {
    // What cannot be copied cannot be so the next time.
    if hooks::not_picklable(py).is_ok_and(|class| error.is_instance(py, class)) {
        return false;
    }
    let policy = plan.policy.as_ref();
    has_again(py, error, policy.map(|policy| Ok(policy.bind(py).clone())))
}

/// Whether the policy has a task run again that failed with this; without one each `Exception` does. One that
/// cannot be asked says no.
pub(crate) fn has_again<'py>(
    py: Python<'py>,
    error: &PyErr,
    policy: Option<PyResult<Bound<'py, PyAny>>>,
) -> bool {
    let Some(policy) = policy else {
        return error.is_instance_of::<PyException>(py);
    };
    let answer = policy.and_then(|policy| policy.call1((error.value(py),))?.is_truthy());
    answer.unwrap_or_else(|problem| {
        // Of two errors the task's own is the one to tell of; one that takes no note stays as it is.
        let text = format!("manyhands: its retry's predicate raised {problem}");
        let _noted = error.value(py).call_method1("add_note", (text,));
        false
    })
}

/// What of a call an error shows.
pub(crate) struct Shown<'a, 'py> {
    pub(crate) function: &'a Bound<'py, PyAny>,
    /// None where arguments are kept out of messages.
    pub(crate) args: Option<Bound<'py, PyTuple>>,
    pub(crate) kwargs: Option<&'a Bound<'py, PyDict>>,
    /// Its number in the pool or map.
    pub(crate) index: u64,
    /// Which worker it ran in, in words.
    pub(crate) place: &'a str,
    /// How often it was tried.
    pub(crate) attempts: u8,
}

/// The exception that stands for a task's own: nearly always that very object, with a note.
#[cold]
pub(crate) fn explained(py: Python<'_>, error: PyErr, shown: Shown<'_, '_>) -> Py<PyAny> {
    let original = error.into_value(py).into_any();
    let answer = hooks::explained(py).and_then(|hook| {
        let Shown {
            function,
            args,
            kwargs,
            index,
            place,
            attempts,
        } = shown;
        let place = match attempts {
            1 => Cow::Borrowed(place),
            _ => Cow::Owned(format!("{place}, attempt {attempts}")),
        };
        hook.call1((original.clone_ref(py), function, args, kwargs, index, place))
    });
    // A note that cannot be written is no reason to lose what happened.
    answer.map_or(original, Bound::unbind)
}

/// An exception in one line, for who has not looked at it.
#[cold]
pub(crate) fn described(py: Python<'_>, error: Option<&Py<PyAny>>) -> String {
    // A future may be dropped while an exception is on its way.
    let pending = PyErr::take(py);
    let text = hooks::described(py).and_then(|hook| hook.call1((error,))?.extract());
    if let Some(pending) = pending {
        pending.restore(py);
    }
    // Of how many there were is told all the same.
    text.unwrap_or_else(|error: PyErr| {
        format!("one that cannot be shown, since that raised {error}")
    })
}

/// What people call the function.
#[cold]
pub(crate) fn label_of(function: &Bound<'_, PyAny>) -> String {
    let name = hooks::name_of(function.py()).and_then(|hook| hook.call1((function,))?.extract());
    // Its own code may raise in an attribute: for a message its type will do.
    name.unwrap_or_else(|_| function.get_type().to_string())
}

/// The exception for a task whose time was up after so many nanoseconds; in a thread of a pool, if it has a name.
#[cold]
pub(crate) fn timed_out(
    function: &Bound<'_, PyAny>,
    index: u64,
    thread: Option<String>,
    limits: Limits,
    attempts: u8,
) -> PyErr {
    let seconds = limits.time.unwrap_or(0) as f64 / 1e9;
    let error = hooks::timed_out_here(function.py())
        .and_then(|hook| hook.call1((function, index, thread, seconds, attempts)));
    match error {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// The arguments that an item stands for.
pub(crate) fn args_of<'py>(item: &Bound<'py, PyAny>, star: bool) -> Option<Bound<'py, PyTuple>> {
    if star {
        item.cast::<PyTuple>().ok().cloned()
    } else {
        PyTuple::new(item.py(), [item]).ok()
    }
}

/// The end of an item that had more to yield when the only one who might take it waited for its end.
#[cold]
pub(crate) fn left() -> PyErr {
    PyRuntimeError::new_err(
        "the pool was left while this item had more to yield, and nobody took it",
    )
}

/// Refuses what nobody would await.
#[cold]
pub(crate) fn not_awaited(value: &Bound<'_, PyAny>, function: &Bound<'_, PyAny>) -> PyErr {
    let refused = hooks::not_awaited(value.py()).and_then(|hook| hook.call1((value, function)));
    match refused {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}
