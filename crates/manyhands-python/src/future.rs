//! The native part of a future.

use crate::pool::{deadline_after, wait_for};
use crate::{outcome, process};
use manyhands_runtime::{Outcome, Pool, Task};
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

struct Content {
    generation: u32,
    pool: Arc<Pool>,
    task: Mutex<Option<Arc<Task>>>,
}

enum Known {
    Value(Py<PyAny>),
    Error(Py<PyAny>),
    Cancelled,
}

impl TaskFuture {
    pub(crate) fn fill(&self, pool: Arc<Pool>, task: Arc<Task>) {
        let content = Content {
            generation: process::generation(),
            pool,
            task: Mutex::new(Some(task)),
        };
        // A future is filled by whoever made it, once.
        let _first = self.content.set(content);
    }

    fn content(&self) -> PyResult<&Content> {
        self.content.get().ok_or_else(|| {
            PyRuntimeError::new_err("futures of manyhands are made by submit() and by nobody else")
        })
    }

    fn task(&self) -> PyResult<(&Arc<Pool>, Option<Arc<Task>>)> {
        let content = self.content()?;
        process::check(content.generation, "this future's pool")?;
        Ok((
            &content.pool,
            content
                .task
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        ))
    }

    /// Waits for the end and decodes it, once; none if the time was up.
    fn settle(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<&Known>> {
        if let Some(known) = self.known.get() {
            return Ok(Some(known));
        }
        let (pool, task) = self.task()?;
        let Some(task) = task else {
            // Another thread decodes just now, or has.
            return Ok(Some(py.detach(|| self.known.wait())));
        };
        if !task.is_done()
            && !pool.poll(&task)
            && !wait_for(py, pool, &task, deadline_after(timeout))?
        {
            return Ok(None);
        }
        let Some(outcome) = task.outcome() else {
            return Ok(None);
        };
        let known = match outcome {
            Outcome::Cancelled => Known::Cancelled,
            outcome => match outcome::value(py, &task, outcome) {
                Ok(value) => Known::Value(value.unbind()),
                Err(error) => Known::Error(error.into_value(py).into_any()),
            },
        };
        // Two threads may decode at once; the first wins, and all see its object.
        let known = self.known.get_or_init(|| known);
        let content = self.content()?;
        let done = content
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(done);
        Ok(Some(known))
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
        let (pool, task) = self.task()?;
        Ok(task.is_none_or(|task| pool.poll(&task)))
    }

    /// Whether the task has started and not ended.
    fn running(&self) -> PyResult<bool> {
        let (pool, task) = self.task()?;
        Ok(task.is_some_and(|task| pool.is_running(&task)))
    }

    /// Whether the task was cancelled.
    fn cancelled(&self) -> PyResult<bool> {
        if let Some(known) = self.known.get() {
            return Ok(matches!(known, Known::Cancelled));
        }
        let (_, task) = self.task()?;
        Ok(task.is_some_and(|task| matches!(task.outcome(), Some(Outcome::Cancelled))))
    }

    /// Cancels the task, if it has not started; whether it is cancelled now.
    fn _cancel(&self, py: Python<'_>) -> PyResult<bool> {
        if let Some(known) = self.known.get() {
            return Ok(matches!(known, Known::Cancelled));
        }
        let (pool, task) = self.task()?;
        Ok(task.is_some_and(|task| py.detach(|| pool.cancel(&task))))
    }

    /// Has the token come out of `wait_completions` when the task has ended; false if it has ended
    /// already.
    fn _observe(&self, token: u64) -> PyResult<bool> {
        let (pool, task) = self.task()?;
        Ok(task.is_some_and(|task| pool.observe(&task, token)))
    }

    /// Whether the task ended by returning. Asked by `_future` of tasks that have ended.
    fn _has_value(&self) -> PyResult<bool> {
        if let Some(known) = self.known.get() {
            return Ok(matches!(known, Known::Value(_)));
        }
        let (_, task) = self.task()?;
        Ok(task.is_some_and(|task| matches!(task.outcome(), Some(Outcome::Value(..)))))
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        match self.known.get() {
            Some(Known::Value(object) | Known::Error(object)) => visit.call(object),
            _ => Ok(()),
        }
    }
}

fn cancelled(py: Python<'_>) -> PyErr {
    match crate::hooks::cancelled_error(py).and_then(|class| class.call0()) {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}
