//! The native part of a pool, and of the iterator that `map` gives.

use crate::calls::{self, Call, HIDE_ARGS};
use crate::future::TaskFuture;
use crate::{hooks, outcome, process};
use manyhands_os::{coarse_nanos, monotonic_nanos};
use manyhands_runtime::{Entry, Initializer, Outcome, Pool, PoolOptions, Refused, Task, TaskKind};
use pyo3::exceptions::{PyRuntimeError, PyTimeoutError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyIterator, PyTuple};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The most items of one map that are on their way.
const WINDOW_ITEMS: usize = 100_000;
/// The most encoded bytes of one map that are on their way.
const WINDOW_BYTES: u64 = 64 << 20;
/// How old what workers find at their birth may be when tasks are submitted, in nanoseconds.
const TELL_EVERY: u64 = 100_000_000;
/// Input that takes longer than so many nanoseconds makes its consumer wait.
const SLOW_INPUT: u64 = 500_000;
/// How many items `map` takes before it returns.
const FIRST_ITEMS: usize = 64;

/// The nanosecond at which a wait of so many seconds ends.
pub(crate) fn deadline_after(timeout: Option<f64>) -> Option<u64> {
    let seconds = timeout?.clamp(0.0, 1e9);
    Some(monotonic_nanos().saturating_add((seconds * 1e9) as u64))
}

/// Waits for a task without holding Python up; false if the time was up.
pub(crate) fn wait_for(
    py: Python<'_>,
    pool: &Pool,
    task: &Arc<Task>,
    deadline: Option<u64>,
) -> PyResult<bool> {
    py.detach(|| {
        pool.wait(task, deadline, || {
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
    pool: Arc<Pool>,
    generation: u32,
    hide_args: bool,
    /// When workers were told last what they find at their birth, 0 before the first task.
    told_at: AtomicU64,
    index: AtomicU64,
}

impl PoolBase {
    fn check_process(&self) -> PyResult<()> {
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
        let Call {
            definition,
            needs,
            tag,
            payload,
        } = call;
        // Relaxed: a number for messages.
        let index = self.index.fetch_add(1, Ordering::Relaxed);
        self.send_as(
            py,
            Call {
                definition,
                needs,
                tag,
                payload,
            },
            index,
        )
    }

    fn send_as(&self, py: Python<'_>, call: Call, index: u64) -> PyResult<Arc<Task>> {
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

    /// An iterator over the results of `function(*items)` for the items of the iterables; with
    /// `star`, of `function(*item)` for the items of the one iterable.
    #[pyo3(signature = (function, iterables, star, timeout))]
    fn _map<'py>(
        slf: &Bound<'py, Self>,
        function: &Bound<'py, PyAny>,
        iterables: &Bound<'py, PyTuple>,
        star: bool,
        timeout: Option<f64>,
    ) -> PyResult<MapIterator> {
        let py = function.py();
        slf.get().ready(function)?;
        let iterators = iterables
            .iter()
            .map(|iterable| Ok(iterable.try_iter()?.unbind()))
            .collect::<PyResult<Vec<_>>>()?;
        let mut feed = Feed {
            pool: slf.clone().unbind(),
            function: function.clone().unbind(),
            iterators,
            star,
            window: VecDeque::new(),
            bytes: 0,
            taken: 0,
            taken_bytes: 0,
            index: 0,
            ended: false,
            error: None,
            pull_nanos: 0,
        };
        // As much as comes at once; input that takes its time is taken while somebody waits.
        let mut taken = 0;
        while taken < FIRST_ITEMS && !feed.ended && !feed.is_slow() {
            feed.pull(py, 8);
            taken += 8;
        }
        Ok(MapIterator {
            feed: Mutex::new(feed),
            deadline: deadline_after(timeout),
        })
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

/// The input side of a map, and what is on its way.
struct Feed {
    pool: Py<PoolBase>,
    function: Py<PyAny>,
    iterators: Vec<Py<PyIterator>>,
    star: bool,
    window: VecDeque<(Arc<Task>, usize)>,
    bytes: usize,
    /// Results that were taken, and their encoded bytes.
    taken: u64,
    taken_bytes: u64,
    index: u64,
    ended: bool,
    /// How long the input took when it was asked last, in nanoseconds.
    pull_nanos: u64,
    /// What the input raised; it is raised when the results before it are out.
    error: Option<PyErr>,
}

impl Feed {
    /// Takes up to `count` items, as far as the window has room.
    fn pull(&mut self, py: Python<'_>, count: usize) {
        for _ in 0..count {
            // What the results will take is estimated from those that were taken.
            let results = self.window.len() as u64 * self.taken_bytes / self.taken.max(1);
            let bytes = self.bytes as u64 + results;
            if self.ended || self.window.len() >= WINDOW_ITEMS || bytes >= WINDOW_BYTES {
                return;
            }
            match self.pull_one(py) {
                Ok(true) => {}
                Ok(false) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    self.error = Some(error);
                }
            }
            if self.is_slow() {
                return;
            }
        }
    }

    /// Whether the input made this thread wait when it was asked last.
    fn is_slow(&self) -> bool {
        self.pull_nanos > SLOW_INPUT
    }

    fn pull_one(&mut self, py: Python<'_>) -> PyResult<bool> {
        // Every eighth time is enough to notice, and the clock costs as much as a short item.
        let timed = (self.index < 16 || self.index.is_multiple_of(8) || self.is_slow())
            .then(monotonic_nanos);
        let mut items = Vec::with_capacity(self.iterators.len());
        for iterator in &self.iterators {
            match iterator.bind(py).clone().next() {
                Some(item) => items.push(item?),
                None => return Ok(false),
            }
        }
        if let Some(start) = timed {
            self.pull_nanos = monotonic_nanos() - start;
        }
        let args = match items.pop() {
            Some(item) if self.star && items.is_empty() => match item.cast_into::<PyTuple>() {
                Ok(tuple) => tuple,
                Err(error) => PyTuple::new(
                    py,
                    error
                        .into_inner()
                        .try_iter()?
                        .collect::<PyResult<Vec<_>>>()?,
                )?,
            },
            Some(last) => {
                items.push(last);
                PyTuple::new(py, items)?
            }
            None => return Ok(false),
        };
        let call = calls::encode_call(self.function.bind(py), &args, None)?;
        let size = call.payload.len() + 64;
        let task = self.pool.get().send_as(py, call, self.index)?;
        self.index += 1;
        self.bytes += size;
        self.window.push_back((task, size));
        Ok(true)
    }

    fn cancel(&mut self, py: Python<'_>) {
        self.ended = true;
        self.iterators.clear();
        let window = std::mem::take(&mut self.window);
        if self.pool.get().check_process().is_err() {
            return; // the tasks are the parent's
        }
        let pool = &self.pool.get().pool;
        py.detach(|| {
            let tasks: Vec<_> = window.iter().map(|(task, _)| task.clone()).collect();
            pool.cancel_all(&tasks);
        });
    }
}

/// The results of a map, in the order of the input, as they come.
#[pyclass(name = "MapIterator", module = "manyhands._core", frozen)]
pub(crate) struct MapIterator {
    feed: Mutex<Feed>,
    deadline: Option<u64>,
}

#[pymethods]
impl MapIterator {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Ok(mut feed) = self.feed.try_lock() else {
            return Err(PyRuntimeError::new_err(
                "another thread is taking from this map just now",
            ));
        };
        feed.pool.get().check_process()?;
        // Two for one, so that the window grows while results are taken. Of slow input only what is
        // needed: a result that is there does not wait for it.
        if !feed.is_slow() || feed.window.is_empty() {
            feed.pull(py, 2);
        }
        let Some((head, size)) = feed.window.pop_front() else {
            return match feed.error.take() {
                Some(error) => Err(error),
                None => Ok(None),
            };
        };
        let pool = feed.pool.get().pool.clone();
        match self.wait_for_head(py, &mut feed, &pool, &head) {
            Ok(true) => {}
            ended => {
                feed.window.push_front((head, size));
                feed.cancel(py);
                return match ended {
                    Err(error) => Err(error),
                    Ok(_) => Err(PyTimeoutError::new_err(())),
                };
            }
        }
        feed.bytes -= size;
        let Some(outcome) = head.outcome() else {
            return Err(PyRuntimeError::new_err("a task ended without an outcome"));
        };
        feed.taken += 1;
        if let Outcome::Value(_, bytes) = outcome {
            feed.taken_bytes += bytes.len() as u64;
        }
        match outcome::value(py, &head, outcome) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                feed.cancel(py);
                Err(error)
            }
        }
    }

    /// Takes no more input and cancels what has not started.
    fn close(&self, py: Python<'_>) {
        if let Ok(mut feed) = self.feed.try_lock() {
            feed.cancel(py);
        }
    }
}

impl MapIterator {
    /// Waits for the first task of the window, taking more input meanwhile; false if the time was up.
    fn wait_for_head(
        &self,
        py: Python<'_>,
        feed: &mut Feed,
        pool: &Pool,
        head: &Arc<Task>,
    ) -> PyResult<bool> {
        while !head.is_done() && !pool.poll(head) {
            if feed.ended || feed.window.len() >= WINDOW_ITEMS || !pool.wants_more() {
                return wait_for(py, pool, head, self.deadline);
            }
            if feed.is_slow() {
                // The result may be there in a moment, the next item will not.
                let soon = monotonic_nanos() + feed.pull_nanos / 8;
                let soon = self.deadline.map_or(soon, |deadline| deadline.min(soon));
                if wait_for(py, pool, head, Some(soon))? {
                    return Ok(true);
                }
                if self
                    .deadline
                    .is_some_and(|deadline| monotonic_nanos() >= deadline)
                {
                    return Ok(false);
                }
            }
            let ahead = feed.window.len();
            feed.pull(py, 16);
            if feed.window.len() == ahead && !feed.ended {
                // The window's bytes are used up.
                return wait_for(py, pool, head, self.deadline);
            }
        }
        Ok(true)
    }
}

impl Drop for MapIterator {
    fn drop(&mut self) {
        let feed = self.feed.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !feed.window.is_empty() {
            Python::attach(|py| feed.cancel(py));
        }
    }
}
