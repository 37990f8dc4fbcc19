//! Tasks that run in this very process: the call, and what its end looks like.

use crate::engine::Plan;
use crate::{bystanders, hooks};
use manyhands_os::monotonic_nanos;
use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
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
        // To let go of the GIL for a moment would not do: others ask for it only after they have
        // waited for 5 ms in a row.
        bystanders::check(py)?;
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
    static TYPES: PyOnceLock<[Py<PyAny>; 3]> = PyOnceLock::new();
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

/// How long a pause sleeps before it looks whether it is over, in nanoseconds.
const PAUSE_SLICE: u64 = 20_000_000;

/// Calls once, or as often as the plan says; gives what came of it, and how often it was tried. The pauses
/// are spent here. Nothing is tried again once `is_over`.
#[inline]
pub(crate) fn call_as_planned<T>(
    py: Python<'_>,
    plan: Option<&Plan>,
    is_over: impl Fn() -> bool,
    mut call: impl FnMut() -> PyResult<T>,
) -> (PyResult<T>, u8) {
    let answer = call();
    match plan {
        Some(plan) if answer.is_err() => call_again(py, plan, is_over, call, answer),
        _ => (answer, 1),
    }
}

#[cold]
fn call_again<T>(
    py: Python<'_>,
    plan: &Plan,
    is_over: impl Fn() -> bool,
    mut call: impl FnMut() -> PyResult<T>,
    mut answer: PyResult<T>,
) -> (PyResult<T>, u8) {
    let mut runs = 1;
    while let Err(error) = &answer {
        if runs > plan.retry.failures || is_over() || !may_run_again(py, plan, error) {
            break;
        }
        let random = (monotonic_nanos() % 1_000_003) as f64 / 1e6;
        let until = monotonic_nanos() + plan.retry.pause(runs, random.min(1.0));
        loop {
            let left = until.saturating_sub(monotonic_nanos());
            if left == 0 || is_over() {
                break;
            }
            bystanders::detach(py, || {
                std::thread::sleep(Duration::from_nanos(left.min(PAUSE_SLICE)));
            });
            if let Err(interruption) = py.check_signals() {
                return (Err(interruption), runs as u8);
            }
        }
        if is_over() {
            break;
        }
        runs += 1;
        answer = call();
    }
    (answer, runs.min(255) as u8)
}

/// Whether the exception is one after which the plan runs a task again.
fn may_run_again(py: Python<'_>, plan: &Plan, error: &PyErr) -> bool {
    // What cannot be copied cannot be so the next time.
    if hooks::not_picklable(py).is_ok_and(|class| error.is_instance(py, class)) {
        return false;
    }
    let Some(policy) = &plan.policy else {
        return error.is_instance_of::<PyException>(py);
    };
    let answer = policy
        .call1(py, (error.value(py),))
        .and_then(|answer| answer.is_truthy(py));
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
