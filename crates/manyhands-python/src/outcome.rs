//! How a task's end looks in Python.

use crate::calls::{self, ARGS_PLAIN, ONE_PLAIN};
use crate::dump::dump_dict;
use crate::hooks;
use crate::results::{Failed, is_ctrl_c};
use manyhands_runtime::{Breakage, Bytes, Cause, Outcome, Over, Task};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// What a result that cannot be decoded is raised as; a Ctrl-C that comes meanwhile is itself.
pub(crate) fn bad_result(py: Python<'_>, error: PyErr, label: &str, index: u64) -> PyErr {
    if is_ctrl_c(py, &error) {
        return error;
    }
    raise(hooks::bad_result(py).and_then(|hook| hook.call1((error.into_value(py), label, index))))
}

fn label(task: &Task) -> &str {
    task.definition
        .as_ref()
        .map_or("", |definition| definition.label())
}

pub(crate) fn cause_words(cause: Cause) -> (&'static str, Option<i32>) {
    match cause {
        Cause::Signal(signal) => ("signal", Some(signal)),
        Cause::Oom => ("oom", Some(9)),
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
    of_item(py, outcome, label(task), task.index).map_err(|failed| failed.error)
}

/// The value of an item, or how it failed.
pub(crate) fn of_item<'py>(
    py: Python<'py>,
    outcome: &Outcome,
    label: &str,
    index: u64,
) -> Result<Bound<'py, PyAny>, Failed> {
    let failed = Failed::new;
    match outcome {
        Outcome::Value(tag, bytes) => {
            let decoded = bytes
                .with(|content| calls::decode_value(py, *tag, content, bytes.buffers()))
                .unwrap_or_else(|error| Err(error.into()));
            decoded.map_err(|error| failed(bad_result(py, error, label, index), 0, 1))
        }
        Outcome::Error(_, bytes) => {
            let rebuilt = read(py, bytes).and_then(|bytes| {
                let answer = hooks::rebuild_error(py)?.call1((bytes, label, index))?;
                answer.extract::<(Bound<'py, PyAny>, i32, u8)>()
            });
            Err(match rebuilt {
                Ok((error, pid, attempts)) => failed(PyErr::from_value(error), pid, attempts),
                Err(error) => failed(error, 0, 1),
            })
        }
        Outcome::Died {
            deaths,
            tag,
            payload,
            attempts,
        } => {
            let died = deaths.all().map(|death| {
                let (cause, code) = cause_words(death.cause);
                (death.pid, cause, code)
            });
            let died: Vec<_> = died.collect();
            // Arguments that are pickled stay so: unpickling runs code of the very task that has just
            // killed a process.
            let args = match *tag {
                ARGS_PLAIN | ONE_PLAIN => payload
                    .with(|bytes| calls::decode_call(py, *tag, bytes, Vec::new()))
                    .unwrap_or_else(|error| Err(error.into()))
                    .map(|(_, args, _)| Some(args)),
                _ => Ok(None),
            };
            let error = raise(args.and_then(|args| {
                let hook = hooks::death(py)?;
                hook.call1((label, index, died, args, *attempts))
            }));
            Err(Failed {
                died: true,
                ..failed(error, deaths.last.pid, *attempts)
            })
        }
        Outcome::TimedOut {
            limit,
            pid,
            attempts,
        } => {
            let seconds = *limit as f64 / 1e9;
            let hook = hooks::timed_out(py);
            let error =
                raise(hook.and_then(|hook| hook.call1((label, index, *pid, seconds, *attempts))));
            Err(failed(error, *pid, *attempts))
        }
        Outcome::OverMemory {
            limit,
            peak,
            pid,
            attempts,
        } => {
            let hook = hooks::over_memory(py);
            let error = raise(
                hook.and_then(|hook| hook.call1((label, index, *pid, *limit, *peak, *attempts))),
            );
            Err(failed(error, *pid, *attempts))
        }
        Outcome::Cancelled => Err(failed(cancelled(py), 0, 0)),
        Outcome::Broken(why) => Err(failed(breakage(py, why), 0, 0)),
        Outcome::Failed(why) => Err(failed(never_ran(py, why, label, index), 0, 0)),
    }
}

/// How items ended that never started.
pub(crate) fn of_over(py: Python<'_>, over: Over, label: &str, index: u64) -> PyErr {
    match over {
        Over::Cancelled => cancelled(py),
        Over::Broken(why) => breakage(py, &why),
        Over::Failed(why) => never_ran(py, &why, label, index),
    }
}

fn cancelled(py: Python<'_>) -> PyErr {
    raise(hooks::cancelled_error(py).and_then(|class| class.call0()))
}

fn never_ran(py: Python<'_>, why: &str, label: &str, index: u64) -> PyErr {
    raise(hooks::failed(py).and_then(|hook| hook.call1((why, label, index))))
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
        Breakage::Limit(why) => hook.call1(("limit", py.None(), 0, py.None(), why)),
        Breakage::Stalled(seconds, dump) => {
            hooks::stalled(py)?.call1((*seconds, dump_dict(py, dump)?))
        }
    }))
}
