//! The native part of a pool.

use crate::calls::{self, Call, HIDE_ARGS};
use crate::feed::{Feed, FeedOptions};
use crate::future::TaskFuture;
use crate::input::Input;
use crate::results::{Counts, SourceHandle};
use crate::{hooks, outcome, process};
use manyhands_os::{coarse_nanos, monotonic_nanos};
use manyhands_runtime::{
    Awaited, Block, Entry, Initializer, Pool, PoolOptions, Refused, Task, TaskKind,
};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How old what workers find at their birth may be when tasks are submitted, in nanoseconds.
const TELL_EVERY: u64 = 100_000_000;

/// The nanosecond at which a wait of so many seconds ends.
pub(crate) fn deadline_after(timeout: Option<f64>) -> Option<u64> {
    let seconds = timeout?.clamp(0.0, 1e9);
    Some(monotonic_nanos().saturating_add((seconds * 1e9) as u64))
}

/// Waits for something without holding Python up; false if the time was up.
pub(crate) fn wait_for(
    py: Python<'_>,
    pool: &Pool,
    awaited: &Arc<impl Awaited>,
    deadline: Option<u64>,
) -> PyResult<bool> {
    if pool.poll(awaited) {
        return Ok(true);
    }
    py.detach(|| {
        pool.wait(awaited, deadline, || {
            // Signals are the main thread's; others need not wait for Python to look for them.
            if manyhands_os::is_main_thread() {
                Python::attach(|py| py.check_signals())
            } else {
                Ok(())
            }
        })
    })
}

/// What `manyhands.Pool` builds on.
#[pyclass(name = "PoolBase", module = "manyhands._core", subclass, frozen)]
pub(crate) struct PoolBase {
    pub(crate) pool: Arc<Pool>,
    generation: u32,
    hide_args: bool,
    /// When workers were told last what they find at their birth, 0 before the first task.
    told_at: AtomicU64,
    index: AtomicU64,
}

impl PoolBase {
    pub(crate) fn check_process(&self) -> PyResult<()> {
        process::check(self.generation, "this pool")
    }

    fn refused(py: Python<'_>, refused: Refused) -> PyErr {
        match refused {
            Refused::Closed => {
                PyRuntimeError::new_err("cannot schedule new tasks: the pool is shut down")
            }
            Refused::Broken(why) => outcome::breakage(py, &why),
        }
    }

    /// Before the first task: tells workers to come where they are born and what to import.
    #[cold]
    fn prepare(&self, function: &Bound<'_, PyAny>) -> PyResult<()> {
        hooks::prepare(function.py())?.call1((function,))?;
        self.told_at.store(coarse_nanos(), Ordering::Relaxed);
        Ok(())
    }

    /// Now and then: environment, paths and the like may have changed since.
    #[cold]
    fn tell_again(&self, py: Python<'_>, now: u64) -> PyResult<()> {
        self.told_at.store(now, Ordering::Relaxed);
        hooks::tell_birth_again(py)?.call0()?;
        Ok(())
    }

    #[inline]
    fn ready(&self, function: &Bound<'_, PyAny>) -> PyResult<()> {
        self.check_process()?;
        // Relaxed: at worst it is told twice.
        let told_at = self.told_at.load(Ordering::Relaxed);
        let now = coarse_nanos();
        if now < told_at + TELL_EVERY {
            Ok(())
        } else if told_at == 0 {
            self.prepare(function)
        } else {
            self.tell_again(function.py(), now)
        }
    }

    fn send(&self, py: Python<'_>, call: Call) -> PyResult<Arc<Task>> {
        // Relaxed: a number for messages.
        let index = self.index.fetch_add(1, Ordering::Relaxed);
        let tag = if self.hide_args {
            call.tag | HIDE_ARGS
        } else {
            call.tag
        };
        let task = Task::new(index, call.definition.clone());
        let entry = Entry::new(
            Some(task.clone()),
            TaskKind::Run,
            call.definition,
            call.needs,
            tag,
            call.payload,
        );
        self.pool
            .submit(entry)
            .map_err(|refused| Self::refused(py, refused))?;
        Ok(task)
    }

    /// Sends items of a map.
    pub(crate) fn send_block(&self, py: Python<'_>, block: Arc<Block>) -> PyResult<()> {
        self.pool
            .submit(Entry::block(block))
            .map_err(|refused| Self::refused(py, refused))
    }
}

#[pymethods]
impl PoolBase {
    #[new]
    #[pyo3(signature = (workers, initializer, show_args))]
    fn new(
        workers: usize,
        initializer: Option<(Bound<'_, PyAny>, Bound<'_, PyTuple>)>,
        show_args: bool,
    ) -> PyResult<Self> {
        let initializer = initializer
            .map(|(function, args)| {
                let call = calls::encode_call(&function, &args, None)?;
                let payload = call.payload.with(<[u8]>::to_vec)?;
                let Call {
                    definition,
                    needs,
                    tag,
                    ..
                } = call;
                let tag = if show_args { tag } else { tag | HIDE_ARGS };
                Ok::<_, PyErr>(Initializer {
                    definition,
                    needs,
                    tag,
                    payload,
                })
            })
            .transpose()?;
        let cores = manyhands_os::cpu_count();
        let pool = Pool::new(
            process::supervisor()?,
            PoolOptions {
                workers,
                initializer,
                cores,
            },
        )
        .map_err(|error| PyRuntimeError::new_err(format!("the pool could not be made: {error}")))?;
        Ok(Self {
            pool,
            generation: process::generation(),
            hide_args: !show_args,
            told_at: AtomicU64::new(0),
            index: AtomicU64::new(0),
        })
    }

    /// Nothing: `Executor` has no state of its own.
    #[pyo3(signature = (*_args, **_kwargs))]
    fn __init__(&self, _args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) {}

    /// Runs `function(*args, **kwargs)` in a worker; gives its `Future`.
    ///
    /// Every argument goes to the function. Arguments are taken as they are now, whatever is done to
    /// them later.
    ///
    /// Raises:
    ///     NotPicklable: something in the call cannot be sent; the message names the path to it.
    ///     RuntimeError: the pool is shut down, or belongs to another process.
    ///
    /// >>> import manyhands as mh
    /// >>> with mh.Pool(1) as pool:
    /// ...     pool.submit(int, "20", base=8).result()
    /// 16
    #[pyo3(signature = (function, /, *args, **kwargs))]
    fn submit<'py>(
        &self,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = function.py();
        self.ready(function)?;
        let call = calls::encode_call(function, args, kwargs)?;
        let future = hooks::future(py)?.call0()?;
        let task = self.send(py, call)?;
        future
            .cast::<TaskFuture>()?
            .get()
            .fill(self.pool.clone(), task);
        Ok(future)
    }

    /// The source of a map: `function(*items)` for the items of the iterables; with `star`,
    /// `function(*item)` for the items of the one iterable; with `batch`, `function(list)` for lists of
    /// up to so many. `timeout` is for all results, `buffer` the most items on their way.
    #[pyo3(signature = (function, iterables, star, ordered, batch, timeout, buffer))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the options of a map, by position"
    )]
    fn _map<'py>(
        slf: &Bound<'py, Self>,
        function: &Bound<'py, PyAny>,
        iterables: &Bound<'py, PyTuple>,
        star: bool,
        ordered: bool,
        batch: Option<usize>,
        timeout: Option<f64>,
        buffer: Option<u64>,
    ) -> PyResult<SourceHandle> {
        let this = slf.get();
        this.ready(function)?;
        let input = Input::new(iterables, star, batch)?;
        let options = FeedOptions {
            definition: calls::define_for_map(function)?,
            tag: if this.hide_args { HIDE_ARGS } else { 0 },
            ordered,
            deadline: deadline_after(timeout),
            buffer,
        };
        let counts = Arc::new(Counts::default());
        let feed = Feed::new(slf.clone(), input, options, counts.clone())?;
        Ok(SourceHandle::new(Box::new(feed), counts))
    }

    /// Starts all workers now instead of with their first tasks.
    fn _start(&self, function: &Bound<'_, PyAny>) -> PyResult<()> {
        self.ready(function)?;
        self.pool.start_all();
        Ok(())
    }

    /// Takes no more tasks; see `Pool::close`.
    fn _close(&self, py: Python<'_>, cancel: bool, kill: bool) {
        if self.generation == process::generation() {
            py.detach(|| self.pool.close(cancel, kill));
        }
    }

    /// Waits until all tasks have ended and, with `workers`, the workers are gone; false if the
    /// time was up.
    fn _wait(&self, py: Python<'_>, workers: bool, timeout: Option<f64>) -> PyResult<bool> {
        if self.generation != process::generation() {
            return Ok(true);
        }
        let deadline = deadline_after(timeout);
        loop {
            let now = monotonic_nanos();
            let left = deadline.map_or(u64::MAX, |deadline| deadline.saturating_sub(now));
            // Signals end no wait of this kind, so it looks for them now and then.
            let time = Duration::from_nanos(left.min(50_000_000));
            if py.detach(|| self.pool.wait_quiet(workers, time)) {
                return Ok(true);
            }
            py.check_signals()?;
            if left == 0 {
                return Ok(false);
            }
        }
    }

    /// How many tasks have not ended.
    fn _pending(&self) -> usize {
        if self.generation == process::generation() {
            self.pool.pending()
        } else {
            0
        }
    }

    /// What `manyhands.Pool.stats` shows.
    fn _stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.check_process()?;
        let stats = self.pool.stats();
        let answer = PyDict::new(py);
        let workers = stats
            .workers
            .iter()
            .map(|worker| {
                let item = PyDict::new(py);
                item.set_item("slot", worker.slot)?;
                item.set_item("pid", worker.pid)?;
                item.set_item("restarts", worker.restarts)?;
                item.set_item("done", worker.done)?;
                item.set_item("busy", worker.busy_nanos as f64 / 1e9)?;
                item.set_item("task_age", worker.task_age.map(|nanos| nanos as f64 / 1e9))?;
                item.set_item("task_index", worker.task_index)?;
                item.set_item("waiting", worker.waiting)?;
                item.set_item("age", worker.age as f64 / 1e9)?;
                Ok(item)
            })
            .collect::<PyResult<Vec<_>>>()?;
        answer.set_item("workers", workers)?;
        answer.set_item("queued", stats.queued)?;
        answer.set_item("pending", stats.pending)?;
        answer.set_item("done", stats.done)?;
        answer.set_item("deaths", stats.deaths)?;
        answer.set_item("late_wakes", stats.late_wakes)?;
        Ok(answer)
    }
}

impl Drop for PoolBase {
    fn drop(&mut self) {
        if self.generation == process::generation() {
            // What was submitted still runs; then the workers leave.
            self.pool.close(false, false);
        }
    }
}
