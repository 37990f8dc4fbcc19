//! Tasks that run in this very process: the call, and what its end looks like.

use crate::{bystanders, hooks};
use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

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
        if bystanders::is_ending() {
            bystanders::detach(py, || {});
        }
        hooks::turn(py)?.call0().map(drop).inspect_err(|error| {
            // Nobody cares which line of ours it came to.
            error.set_traceback(py, None);
        })
    }
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
        } = shown;
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
