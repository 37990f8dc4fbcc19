//! The native part of a future.

use crate::bystanders::{detach, enter};
use crate::crew_task::{CrewTask, End};
use crate::pool::deadline_after;
use crate::processes::wait_for;
use crate::{nested, outcome, output, process};
use manyhands_runtime::{Caller, Fate, Outcome, Pool, Task, Unseen};
use pyo3::exceptions::{PyRuntimeError, PyTimeoutError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A task that was submitted: what `manyhands.Future` builds on.
#[pyclass(name = "TaskFuture", module = "manyhands._core", subclass, frozen)]
pub(crate) struct TaskFuture {
    content: OnceLock<Content>,
    /// What it came to, once somebody asked; the encoded form is dropped then.
    known: OnceLock<Known>,
}

/// What a future waits for.
#[derive(Clone)]
pub(crate) enum Work {
    Process(Arc<Pool>, Arc<Task>),
    Thread(Arc<CrewTask>),
    /// A task of another worker that a task has submitted.
    Nested(Arc<Caller>, Arc<Task>),
    /// Nothing any more: it failed in the call, and nobody has looked.
    Inline(Arc<InlineFailure>),
    /// Nothing any more: the end is known, or another thread is about to know it.
    Ended,
}

impl Work {
    fn is_done(&self) -> bool {
        match self {
            Self::Process(pool, task) => pool.poll(task),
            Self::Thread(task) => task.is_done(),
            Self::Nested(_, task) => task.is_done(),
            Self::Inline(_) | Self::Ended => true,
        }
    }

    /// Waits for the end; false if the time was up.
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        match self {
            Self::Process(pool, task) => {
                let is_done = task.is_done() || wait_for(py, pool, task, deadline_after(timeout))?;
                if is_done {
                    output::settle(py, pool);
                }
                Ok(is_done)
            }
            Self::Thread(task) => Ok(task.is_done() || task.wait(py, deadline_after(timeout))?),
            Self::Nested(caller, task) => {
                let is_done = || task.is_done();
                Ok(is_done() || nested::wait_for(py, caller, is_done, deadline_after(timeout))?)
            }
            Self::Inline(_) | Self::Ended => Ok(true),
        }
    }

    /// What it came to, decoded; none if it has not ended.
    fn known(&self, py: Python<'_>) -> Option<Known> {
        match self {
            Self::Process(_, task) | Self::Nested(_, task) => Some(match task.outcome()? {
                Outcome::Cancelled => Known::Cancelled,
                outcome => match outcome::value(py, task, outcome) {
                    Ok(value) => Known::Value(value.unbind()),
                    Err(error) => Known::Error(error.into_value(py).into_any()),
                },
            }),
            Self::Thread(task) => Some(match task.end(py)? {
                End::Value(value) => Known::Value(value),
                End::Error(error) => Known::Error(error),
                End::Cancelled => Known::Cancelled,
            }),
            Self::Inline(_) | Self::Ended => None,
        }
    }

    /// Somebody looks at what it failed with.
    #[cold]
    fn seen(&self) {
        match self {
            Self::Process(pool, task) => pool.seen(task),
            Self::Thread(task) => task.seen(),
            Self::Inline(failure) => failure.unseen.seen(&failure.fate),
            Self::Nested(..) | Self::Ended => {}
        }
    }
}

/// A task that failed in the very call of `submit`.
pub(crate) struct InlineFailure {
    pub(crate) unseen: Arc<Unseen<String>>,
    pub(crate) fate: Fate,
    pub(crate) text: String,
}

struct Content {
    generation: u32,
    work: Mutex<Work>,
}

pub(crate) enum Known {
    Value(Py<PyAny>),
    Error(Py<PyAny>),
    Cancelled,
}

impl TaskFuture {
    /// Says what the future waits for: by whoever made it, once.
    pub(crate) fn fill(&self, work: Work) {
        let content = Content {
            generation: process::generation(),
            work: Mutex::new(work),
        };
        let _first = self.content.set(content);
    }

    /// Says what it came to.
    pub(crate) fn end(&self, known: Known, work: Work) {
        let _first = self.known.set(known);
        self.fill(work);
    }

    fn is_known_to_be(&self, what: impl Fn(&Known) -> bool) -> bool {
        self.known.get().is_some_and(what)
    }

    fn content(&self) -> PyResult<&Content> {
        self.content.get().ok_or_else(|| {
            PyRuntimeError::new_err("futures of manyhands are made by submit() and by nobody else")
        })
    }

    /// The end is known: what it came from is not needed any more.
    fn let_go(&self) -> PyResult<Work> {
        let mut work = self.content()?.work.lock();
        let work = work.as_deref_mut();
        Ok(work.map_or(Work::Ended, |work| std::mem::replace(work, Work::Ended)))
    }

    fn work(&self) -> PyResult<Work> {
        let content = self.content()?;
        process::check(content.generation, "this future's pool")?;
        let work = content.work.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(work.clone())
    }

    /// Waits for the end and decodes it, once; none if the time was up.
    fn settle(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<&Known>> {
        if let Some(known) = self.known.get() {
            if matches!(known, Known::Error(_)) {
                self.let_go()?.seen();
            }
            return Ok(Some(known));
        }
        let _inside = enter(py)?;
        let work = self.work()?;
        if !work.wait(py, timeout)? {
            return Ok(None);
        }
        match work.known(py) {
            // Two threads may decode at once; the first wins, and all see its object.
            Some(known) => {
                if matches!(known, Known::Error(_)) {
                    work.seen();
                }
                drop(self.known.set(known));
            }
            None if matches!(work, Work::Inline(_) | Work::Ended) => {}
            None => return Ok(None),
        }
        drop(self.let_go()?);
        // Without one another thread decodes just now.
        Ok(Some(match self.known.get() {
            Some(known) => known,
            None => detach(py, || self.known.wait()),
        }))
    }
}

#[pymethods]
impl TaskFuture {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            content: OnceLock::new(),
            known: OnceLock::new(),
        }
    }

    /// Nothing: keeps the initializer of `concurrent.futures.Future` from running.
    #[pyo3(signature = (*_args, **_kwargs))]
    fn __init__(&self, _args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) {}

    /// What the task returned; raises what it raised.
    ///
    /// Args:
    ///     timeout: the most seconds to wait; by default without limit.
    ///
    /// Raises:
    ///     TimeoutError: the task has not ended in time; it goes on.
    ///     CancelledError: it was cancelled.
    ///     TaskError: something outside the task's own code ended it.
    ///
    /// >>> import manyhands as mh
    /// >>> mh.submit(max, 3, 4).result(timeout=60)
    /// 4
    #[pyo3(signature = (timeout = None))]
    fn result(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        match self.settle(py, timeout)? {
            Some(Known::Value(value)) => Ok(value.clone_ref(py)),
            Some(Known::Error(error)) => Err(PyErr::from_value(error.bind(py).clone())),
            Some(Known::Cancelled) => Err(cancelled(py)),
            None => Err(PyTimeoutError::new_err(())),
        }
    }

    /// What the task raised, or None if it returned; waits as `result` does.
    ///
    /// >>> import manyhands as mh
    /// >>> mh.submit(int, "x").exception()
    /// ValueError("invalid literal for int() with base 10: 'x'")
    #[pyo3(signature = (timeout = None))]
    fn exception(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Py<PyAny>>> {
        match self.settle(py, timeout)? {
            Some(Known::Value(_)) => Ok(None),
            Some(Known::Error(error)) => Ok(Some(error.clone_ref(py))),
            Some(Known::Cancelled) => Err(cancelled(py)),
            None => Err(PyTimeoutError::new_err(())),
        }
    }

    /// Whether the task has ended.
    fn done(&self) -> PyResult<bool> {
        if self.known.get().is_some() {
            return Ok(true);
        }
        Ok(self.work()?.is_done())
    }

    /// Whether the task has started and not ended.
    fn running(&self) -> PyResult<bool> {
        Ok(match self.work()? {
            Work::Process(pool, task) => pool.is_running(&task),
            Work::Thread(task) => task.is_running(),
            // It may wait where its parent is: what is known here is that it has not ended.
            Work::Nested(_, task) => !task.is_done(),
            Work::Inline(_) | Work::Ended => false,
        })
    }

    /// Whether the task was cancelled.
    fn cancelled(&self) -> PyResult<bool> {
        if let Some(known) = self.known.get() {
            return Ok(matches!(known, Known::Cancelled));
        }
        Ok(match self.work()? {
            Work::Process(_, task) | Work::Nested(_, task) => {
                matches!(task.outcome(), Some(Outcome::Cancelled))
            }
            Work::Thread(task) => task.is_cancelled(),
            Work::Inline(_) => false,
            Work::Ended => self.is_known_to_be(|known| matches!(known, Known::Cancelled)),
        })
    }

    /// Cancels the task; whether it is cancelled now.
    fn _cancel(&self, py: Python<'_>) -> PyResult<bool> {
        if let Some(known) = self.known.get() {
            return Ok(matches!(known, Known::Cancelled));
        }
        let _inside = enter(py)?;
        Ok(match self.work()? {
            Work::Process(pool, task) => detach(py, || pool.cancel(&task)),
            Work::Thread(task) => task.cancel(py),
            Work::Nested(caller, task) => detach(py, || caller.cancel(&task)),
            Work::Inline(_) => false,
            Work::Ended => self.is_known_to_be(|known| matches!(known, Known::Cancelled)),
        })
    }

    /// Has the token come out of `wait_completions` when the task has ended; false if it has ended
    /// already.
    fn _observe(&self, token: u64) -> PyResult<bool> {
        Ok(match self.work()? {
            Work::Process(pool, task) => pool.observe(&task, token),
            Work::Thread(task) => task.observe(token),
            Work::Nested(caller, task) => caller.observe(&task, token, &process::supervisor()?),
            Work::Inline(_) | Work::Ended => false,
        })
    }

    /// Whether the task ended by returning. Asked by `_future` of tasks that have ended.
    fn _has_value(&self) -> PyResult<bool> {
        if let Some(known) = self.known.get() {
            return Ok(matches!(known, Known::Value(_)));
        }
        Ok(match self.work()? {
            Work::Process(_, task) | Work::Nested(_, task) => {
                matches!(task.outcome(), Some(Outcome::Value(..)))
            }
            Work::Thread(task) => task.has_value(),
            Work::Inline(_) => false,
            Work::Ended => self.is_known_to_be(|known| matches!(known, Known::Value(_))),
        })
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        match self.known.get() {
            Some(Known::Value(object) | Known::Error(object)) => visit.call(object),
            _ => Ok(()),
        }
    }
}

impl Drop for TaskFuture {
    #[inline]
    fn drop(&mut self) {
        let Some(content) = self.content.get_mut() else {
            return;
        };
        if content.generation != process::generation() {
            return; // the pool is the parent's
        }
        match content
            .work
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
        {
            Work::Process(pool, task) => pool.dropped(task),
            Work::Thread(task) => task.dropped(),
            Work::Inline(failure) => {
                // Not the exception itself, which the garbage collector may have emptied.
                let text = || failure.text.clone();
                failure.unseen.dropped(&failure.fate, text);
            }
            Work::Nested(..) | Work::Ended => {}
        }
    }
}

pub(crate) fn cancelled(py: Python<'_>) -> PyErr {
    match crate::hooks::cancelled_error(py).and_then(|class| class.call0()) {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}
