//! What a worker has to tell its program beside its results: see `_module_globals.py`.
//!
//! It waits here until a task returns a value, and goes with that: tag bit `NOTICED`, and in place of the value
//! the tuple of all that waits and the value. Who decodes it is told. No record of its own is needed, and
//! the way up through tasks of tasks is the same.

use crate::hooks;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Whether something waits.
static ANY: AtomicBool = AtomicBool::new(false);
static WAITING: Mutex<Vec<Py<PyAny>>> = Mutex::new(Vec::new());

/// Has the program told of something, with the next value that a task of this worker returns.
#[pyfunction]
pub(crate) fn notice(what: Py<PyAny>) {
    put_back(vec![what]);
}

/// Whether something waits.
#[inline]
pub(crate) fn any() -> bool {
    // Relaxed: it is set by the thread that asks, or the next result will do.
    ANY.load(Ordering::Relaxed)
}

/// Takes all that waits.
#[cold]
pub(crate) fn take() -> Vec<Py<PyAny>> {
    ANY.store(false, Ordering::Relaxed);
    std::mem::take(&mut *WAITING.lock().unwrap_or_else(PoisonError::into_inner))
}

/// It could not be sent, and waits for another value.
#[cold]
pub(crate) fn put_back(mut notices: Vec<Py<PyAny>>) {
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    notices.append(&mut waiting);
    *waiting = notices;
    ANY.store(true, Ordering::Relaxed);
}

/// The value, with all that is to be told before it.
#[cold]
pub(crate) fn with_value<'py>(
    py: Python<'py>,
    notices: &[Py<PyAny>],
    value: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyTuple>> {
    (PyList::new(py, notices)?, value).into_pyobject(py)
}

/// Tells what came with a value; the value.
#[cold]
pub(crate) fn told<'py>(py: Python<'py>, came: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    hooks::tell_notices(py)?.call1((came.get_item(0)?,))?;
    came.get_item(1)
}
