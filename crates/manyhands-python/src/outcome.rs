//! How a task's end looks in Python.

use crate::calls::{self, ARGS_PLAIN};
use crate::hooks;
use manyhands_runtime::{Breakage, Bytes, Cause, Outcome, Task};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

fn label(task: &Task) -> &str {
    task.definition
        .as_ref()
        .map_or("", |definition| definition.label())
}

fn cause_words(cause: Cause) -> (&'static str, Option<i32>) {
    match cause {
        Cause::Signal(signal) => ("signal", Some(signal)),
        Cause::Exit(code) => ("exit", Some(code)),
        Cause::Unknown => ("unknown", None),
        Cause::Protocol => ("protocol", None),
        Cause::Start => ("start", None),
    }
}

fn raise<'py>(exception: PyResult<Bound<'py, PyAny>>) -> PyErr {
    match exception {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

fn read<'py>(py: Python<'py>, bytes: &Bytes) -> PyResult<Bound<'py, PyBytes>> {
    Ok(bytes.with(|bytes| PyBytes::new(py, bytes))?)
}

/// The value that the task returned, or the exception that stands for its end.
pub(crate) fn value<'py>(
    py: Python<'py>,
    task: &Task,
    outcome: &Outcome,
) -> PyResult<Bound<'py, PyAny>> {
    match outcome {
        Outcome::Value(tag, bytes) => {
            let decoded = bytes
                .with(|bytes| calls::decode_value(py, *tag, bytes))
                .unwrap_or_else(|error| Err(error.into()));
            decoded.map_err(|error| {
                raise(
                    hooks::bad_result(py).and_then(|hook| {
                        hook.call1((error.into_value(py), label(task), task.index))
                    }),
                )
            })
        }
        Outcome::Error(_, bytes) => {
            Err(raise(read(py, bytes).and_then(|bytes| {
                hooks::rebuild_error(py)?.call1((bytes, label(task), task.index))
            })))
        }
        Outcome::Died {
            pid,
            cause,
            tag,
            payload,
        } => {
            let (cause, code) = cause_words(*cause);
            // Arguments that are pickled stay so: unpickling runs code of the very task that has just
            // killed a process.
            let args = match *tag {
                ARGS_PLAIN => payload
                    .with(|bytes| calls::decode_call(py, *tag, bytes))
                    .unwrap_or_else(|error| Err(error.into()))
                    .map(|(_, args, _)| Some(args))?,
                _ => None,
            };
            Err(raise(hooks::death(py).and_then(|hook| {
                hook.call1((label(task), task.index, *pid, cause, code, args))
            })))
        }
        Outcome::Cancelled => Err(raise(hooks::cancelled_error(py)?.call0())),
        Outcome::Broken(why) => Err(breakage(py, why)),
        Outcome::Failed(why) => {
            Err(raise(hooks::failed(py).and_then(|hook| {
                hook.call1((why, label(task), task.index))
            })))
        }
    }
}

/// The exception that stands for a broken pool.
pub(crate) fn breakage(py: Python<'_>, why: &Breakage) -> PyErr {
    raise(hooks::breakage(py).and_then(|hook| match why {
        Breakage::Initializer(_, bytes) => {
            hook.call1(("initializer", read(py, bytes)?, 0, py.None(), ""))
        }
        Breakage::InitializerDied(pid, cause) => {
            let (cause, code) = cause_words(*cause);
            hook.call1(("died", py.None(), *pid, code, cause))
        }
        Breakage::Start(why) => hook.call1(("start", py.None(), 0, py.None(), why)),
    }))
}
