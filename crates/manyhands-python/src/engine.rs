//! What a pool asks of its engine.

use crate::capture::Kept;
use crate::context::Carrier;
use crate::input::Input;
use crate::results::{Counts, Source};
use crate::seeds::Origin;
use manyhands_runtime::{Limits, Retry};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// What is asked for a task, besides what it runs.
#[derive(Clone, Default)]
pub(crate) struct TaskOptions {
    pub(crate) limits: Limits,
    pub(crate) plan: Option<Arc<Plan>>,
    /// Which goes first of what waits: the higher. Without one it is the pool's, or that of the task that
    /// submits it.
    pub(crate) priority: Option<i32>,
    /// What its random stream is made from, if it has one.
    pub(crate) origin: Option<Origin>,
    /// What keeps its output, if that is wanted.
    pub(crate) kept: Option<Kept>,
}

/// How a task runs again.
pub(crate) struct Plan {
    pub(crate) retry: Arc<Retry>,
    /// What is asked, in this process, whether an exception is one after which to run again; without it
    /// each `Exception` is.
    pub(crate) policy: Option<Py<PyAny>>,
}

impl Plan {
    /// Whether a task runs again whose time was up in its run of that number.
    pub(crate) fn may_after_timeout(&self, runs: u8) -> bool {
        self.retry.timeouts && u32::from(runs) <= self.retry.failures
    }
}

/// What a map asks for.
pub(crate) struct MapCall {
    pub(crate) input: Input,
    pub(crate) ordered: bool,
    /// The nanosecond by which all results have to be there.
    pub(crate) deadline: Option<u64>,
    /// The most items on their way.
    pub(crate) buffer: Option<u64>,
    /// What is asked for each item.
    pub(crate) options: TaskOptions,
    pub(crate) counts: Arc<Counts>,
}

/// Runs tasks: in worker processes (`processes`), in threads (`crew`), in the calling thread (`inline`).
pub(crate) trait Engine: Send + Sync {
    /// Runs a call; gives its `Future`.
    fn submit<'py>(
        &self,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        options: TaskOptions,
    ) -> PyResult<Bound<'py, PyAny>>;

    /// Runs a function for the items of an input.
    fn map(&self, function: &Bound<'_, PyAny>, call: MapCall) -> PyResult<Box<dyn Source>>;

    /// Starts all workers now instead of with their first tasks.
    fn start(&self, function: &Bound<'_, PyAny>) -> PyResult<()>;

    /// Has these context variables travel with tasks; said once, before the first. Nothing to be done where a
    /// whole context does.
    fn carry(&self, _carrier: Arc<Carrier>) {}

    /// Takes no more tasks. With `cancel` what has not started is cancelled, with `kill` what runs is
    /// ended where that can be done.
    fn close(&self, py: Python<'_>, cancel: bool, kill: bool);

    /// Asks what runs to end, each task in its own grace.
    fn ask(&self, py: Python<'_>);

    /// Waits for at most so long until all tasks have ended and, with `workers`, the workers are gone;
    /// whether that is so.
    fn wait_quiet(&self, py: Python<'_>, workers: bool, time: Duration) -> PyResult<bool>;

    /// Why it cannot keep tasks to these options, as a sentence; none if it can.
    fn refuses(&self, options: &TaskOptions) -> Option<Cow<'static, str>> {
        options.limits.memory.is_some().then_some(Cow::Borrowed(
            "task_memory= is for worker processes alone: what one thread takes cannot be told from what \
             the others do; use engine=\"process\"",
        ))
    }

    /// A number that no other pool of this process has; 0 for one that no other process can use.
    fn number(&self) -> u32 {
        0
    }

    /// How many workers it is to have from now on; false if it is closed, or has none to choose.
    fn resize(&self, _py: Python<'_>, _workers: usize) -> PyResult<bool> {
        Ok(false)
    }

    /// How many tasks failed without anybody asking, and one of them in words; see `Unseen::take`.
    fn take_unseen(&self, py: Python<'_>, all: bool) -> (u64, Option<String>);

    /// How many tasks have not ended.
    fn pending(&self) -> usize;

    /// What `manyhands.Pool.dump` shows: as `stats`, and what each worker runs.
    fn dump<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>>;

    /// What `manyhands.Pool.stats` shows.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>>;
}
