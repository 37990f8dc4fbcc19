//! The native part of a pool, whatever engine runs its tasks.

use crate::bystanders::{enter, enter_always};
use crate::context::PyCarrier;
use crate::crew::Crew;
use crate::engine::{Engine, MapCall, Plan, TaskOptions};
use crate::events::EventStream;
use crate::functions::PyDefinition;
use crate::inline::Inline;
use crate::input::Input;
use crate::nested::Nested;
use crate::once::intern;
use crate::output::OutputStream;
use crate::process;
use crate::processes::Processes;
use crate::results::{Counts, SourceHandle};
use crate::seeds::{self, PySeed, Seed};
use manyhands_os::monotonic_nanos;
use manyhands_runtime::{Limits, Recycling, Retry};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::Arc;
use std::time::Duration;

/// The longest wait for the end of tasks before signals are looked for.
const LOOK_FOR_SIGNALS: u64 = 50_000_000;

/// The nanosecond at which a wait of so many seconds ends.
pub(crate) fn deadline_after(timeout: Option<f64>) -> Option<u64> {
    let seconds = timeout?.clamp(0.0, 1e9);
    Some(monotonic_nanos().saturating_add((seconds * 1e9) as u64))
}

/// What runs before the first task of a worker, and its arguments.
pub(crate) type Initializer<'py> = Option<(Bound<'py, PyAny>, Bound<'py, PyTuple>)>;

/// What `manyhands.Pool` builds on.
#[pyclass(name = "PoolBase", module = "manyhands._core", subclass, frozen)]
pub(crate) struct PoolBase {
    engine: Box<dyn Engine>,
    generation: u32,
    /// What is asked for tasks where a call says nothing else.
    options: TaskOptions,
    seed: Option<Arc<Seed>>,
}

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

/// How often a task runs again, made once for many.
#[pyclass(name = "RetryPlan", module = "manyhands._core", frozen)]
pub(crate) struct RetryPlan(Arc<Plan>);

#[pymethods]
impl RetryPlan {
    #[new]
    /// `limits`: whether a time-out counts as a failure, and too much memory; `policy` as workers get it, and as
    /// this process calls it.
    #[pyo3(signature = (failures, deaths, limits, backoff, longest, jitter, policy))]
    fn new(
        failures: u32,
        deaths: u32,
        limits: (bool, bool),
        backoff: f64,
        longest: f64,
        jitter: f64,
        policy: Option<(PyRef<'_, PyDefinition>, Py<PyAny>)>,
    ) -> Self {
        let (definition, policy) = policy.unzip();
        let (timeouts, memory) = limits;
        let retry = Retry {
            failures,
            deaths,
            timeouts,
            memory,
            backoff: nanos(backoff),
            longest: nanos(longest),
            jitter,
            policy: definition.map(|definition| definition.0.clone()),
        };
        Self(Arc::new(Plan {
            retry: Arc::new(retry),
            policy,
        }))
    }
}

/// As the face gives them: seconds from the start, seconds to end, whether to run again, what random streams come
/// from, bytes of memory, a priority, and what keeps their output: for `submit` anything, if that is to be made.
type Options<'py> = (
    Option<f64>,
    f64,
    Option<PyRef<'py, RetryPlan>>,
    Option<PyRef<'py, PySeed>>,
    Option<u64>,
    Option<i32>,
    Option<Py<PyAny>>,
);

/// After how many seconds a task is told of, or None for never; and for how many nothing happens until the
/// pool is broken, or None for as long as usual.
type Patience = (Option<f64>, Option<f64>);

/// When workers give way to fresh ones: after how many tasks, above how many bytes, after how many seconds;
/// and after how many seconds with nothing to do they leave.
type Freshness = (Option<usize>, Option<u64>, Option<f64>, Option<f64>);

fn recycling_of((after_tasks, above, older_than, idle_for): Freshness) -> Recycling {
    Recycling {
        after_tasks,
        above,
        older_than: older_than.map(nanos),
        idle_for: idle_for.map(nanos),
    }
}

fn options_of(
    (time, grace, retry, seed, memory, priority, capture): Options<'_>,
) -> (TaskOptions, Option<Arc<Seed>>) {
    let options = TaskOptions {
        limits: Limits {
            time: time.map(nanos),
            memory,
            grace: nanos(grace),
        },
        plan: retry.map(|plan| plan.0.clone()),
        priority,
        origin: None,
        kept: capture.map(Arc::new),
    };
    (options, seed.map(|seed| seed.0.clone()))
}

impl PoolBase {
    fn check_process(&self) -> PyResult<()> {
        process::check(self.generation, "this pool")
    }

    /// Refuses what its engine cannot keep tasks to.
    #[inline]
    fn check_options(&self, options: &TaskOptions) -> PyResult<()> {
        match self.engine.refuses(options) {
            Some(why) => Err(PyValueError::new_err(why.into_owned())),
            None => Ok(()),
        }
    }

    fn run<'py>(
        slf: &Bound<'py, Self>,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        mut options: TaskOptions,
        seed: Option<&Arc<Seed>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (this, py) = (slf.get(), function.py());
        this.check_process()?;
        process::goes_on();
        let _inside = enter(py)?;
        options.origin = seeds::origin(seed, false);
        if options.kept.is_none() {
            return this.engine.submit(function, args, kwargs, options);
        }
        let kept = slf.call_method0(intern!(py, "_keep_output"))?;
        options.kept = Some(Arc::new(kept.clone().unbind()));
        let future = this.engine.submit(function, args, kwargs, options)?;
        future.setattr(intern!(py, "_kept"), kept)?;
        Ok(future)
    }
}

/// What a pool with options of its own for tasks is made of. All of `submit` is native: a function of Python
/// that handed the arguments on would cost a third of it.
#[pyclass(subclass, frozen, module = "manyhands._core")]
pub(crate) struct ViewBase {
    /// A pool, or what gives one.
    pool: Py<PyAny>,
    options: TaskOptions,
    seed: Option<Arc<Seed>>,
}

#[pymethods]
impl ViewBase {
    #[new]
    fn new(pool: Py<PyAny>, options: Options<'_>) -> Self {
        let (options, seed) = options_of(options);
        Self {
            pool,
            options,
            seed,
        }
    }

    /// As `Pool.submit`.
    #[pyo3(signature = (function, /, *args, **kwargs))]
    fn submit<'py>(
        &self,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = function.py();
        let pool = self._pool(py)?.cast_into::<PoolBase>()?;
        let (options, seed) = (self.options.clone(), self.seed.as_ref());
        // The pool's own options were looked at when it was made.
        pool.get().check_options(&options)?;
        PoolBase::run(&pool, function, args, kwargs, options, seed)
    }

    /// The pool.
    fn _pool<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let pool = self.pool.bind(py);
        if pool.is_instance_of::<PoolBase>() {
            return Ok(pool.clone());
        }
        pool.call0()
    }

    /// What it was made of.
    fn _source<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.pool.bind(py).clone()
    }
}

#[pymethods]
impl PoolBase {
    #[new]
    #[pyo3(signature = (engine, workers, initializer, show_args, copy, name, options, patience, events, output, memory, recycling, inner_threads, priority))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the options of a pool, by position"
    )]
    fn new(
        engine: &str,
        workers: usize,
        initializer: Initializer<'_>,
        show_args: bool,
        copy: bool,
        name: &str,
        options: Options<'_>,
        patience: Patience,
        events: Option<PyRef<'_, EventStream>>,
        output: Option<(PyRef<'_, OutputStream>, Py<PyAny>)>,
        memory: Option<u64>,
        recycling: Freshness,
        inner_threads: Option<u32>,
        priority: i32,
    ) -> PyResult<Self> {
        let patience = (patience.0.map(nanos), patience.1.map(nanos));
        let engine: Box<dyn Engine> = match engine {
            "process" => Box::new(Processes::new(
                workers,
                initializer,
                show_args,
                priority,
                patience,
                (
                    events.map(|stream| stream.events()),
                    output.map(|(stream, wanted)| (stream.output(), wanted)),
                ),
                memory,
                recycling_of(recycling),
                inner_threads,
            )?),
            "thread" => Box::new(Crew::new(
                workers,
                initializer,
                show_args,
                priority,
                recycling.3.map(nanos),
                name,
                events.map(|stream| stream.sink()),
            )),
            "inline" => Box::new(Inline::new(
                initializer,
                show_args,
                copy,
                events.map(|stream| stream.sink()),
            )),
            // Not asked for by name: `Pool` makes it where a task uses the pool that runs it.
            "nested" => Box::new(Nested::new()?),
            _ => return Err(PyValueError::new_err(format!("no engine {engine:?}"))),
        };
        let (options, seed) = options_of(options);
        let pool = Self {
            engine,
            generation: process::generation(),
            options,
            seed,
        };
        pool.check_options(&pool.options)?;
        Ok(pool)
    }

    /// Nothing: `Executor` has no state of its own.
    #[pyo3(signature = (*_args, **_kwargs))]
    fn __init__(&self, _args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) {}

    /// Runs `function(*args, **kwargs)` in a worker; gives its `Future`.
    ///
    /// Every argument goes to the function. On processes, arguments are taken as they are now,
    /// whatever is done to them later; threads get the same objects. With `engine="inline"` the
    /// function runs in this call.
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
        slf: &Bound<'py, Self>,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        let (options, seed) = (this.options.clone(), this.seed.as_ref());
        Self::run(slf, function, args, kwargs, options, seed)
    }

    /// The source of a map: `function(*items)` for the items of the iterables; with `star`,
    /// `function(*item)` for the items of the one iterable; with `batch`, `function(list)` for lists of
    /// up to so many. `timeout` is for all results, `buffer` the most items on their way.
    #[pyo3(signature = (function, iterables, star, ordered, batch, timeout, buffer, options))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the options of a map, by position"
    )]
    fn _map(
        &self,
        function: &Bound<'_, PyAny>,
        iterables: &Bound<'_, PyTuple>,
        star: bool,
        ordered: bool,
        batch: Option<usize>,
        timeout: Option<f64>,
        buffer: Option<u64>,
        options: Options<'_>,
    ) -> PyResult<SourceHandle> {
        self.check_process()?;
        process::goes_on();
        let (mut options, seed) = options_of(options);
        self.check_options(&options)?;
        let _inside = enter(function.py())?;
        let counts = Arc::new(Counts::default());
        options.origin = seeds::origin(seed.as_ref(), true);
        let call = MapCall {
            input: Input::new(iterables, star, batch)?,
            ordered,
            deadline: deadline_after(timeout),
            buffer,
            options,
            counts: counts.clone(),
        };
        Ok(SourceHandle::new(self.engine.map(function, call)?, counts))
    }

    /// Has these context variables travel with tasks; called once, before the first.
    fn _carry(&self, carrier: &Bound<'_, PyCarrier>) {
        self.engine.carry(carrier.get().0.clone());
    }

    /// Starts all workers now instead of with their first tasks.
    fn _start(&self, function: &Bound<'_, PyAny>) -> PyResult<()> {
        self.check_process()?;
        let _inside = enter(function.py())?;
        self.engine.start(function)
    }

    /// Takes no more tasks; see `Engine::close`.
    fn _close(&self, py: Python<'_>, cancel: bool, kill: bool) {
        if self.generation == process::generation() {
            let _inside = enter_always();
            self.engine.close(py, cancel, kill);
        }
    }

    /// How many workers it is to have from now on; false if it is closed.
    fn _resize(&self, py: Python<'_>, workers: usize) -> PyResult<bool> {
        self.check_process()?;
        let _inside = enter(py)?;
        self.engine.resize(py, workers)
    }

    /// Asks what runs to end.
    fn _ask(&self, py: Python<'_>) {
        if self.generation == process::generation() {
            let _inside = enter_always();
            self.engine.ask(py);
        }
    }

    /// Waits until all tasks have ended and, with `workers`, the workers are gone; false if the
    /// time was up.
    fn _wait(&self, py: Python<'_>, workers: bool, timeout: Option<f64>) -> PyResult<bool> {
        if self.generation != process::generation() {
            return Ok(true);
        }
        let _inside = enter(py)?;
        let deadline = deadline_after(timeout);
        loop {
            let now = monotonic_nanos();
            let left = deadline.map_or(u64::MAX, |deadline| deadline.saturating_sub(now));
            // Signals end no wait of this kind, so it looks for them now and then.
            let time = Duration::from_nanos(left.min(LOOK_FOR_SIGNALS));
            if self.engine.wait_quiet(py, workers, time)? {
                return Ok(true);
            }
            py.check_signals()?;
            if left == 0 {
                return Ok(false);
            }
        }
    }

    /// A number that no other pool of this process has; 0 for one that no other process can use.
    fn _number(&self) -> u32 {
        self.engine.number()
    }

    /// How many tasks failed without anybody asking, and one of them in words. With `all` those whose futures are
    /// still there are among them.
    fn _take_unseen(&self, py: Python<'_>, all: bool) -> (u64, Option<String>) {
        if self.generation == process::generation() {
            self.engine.take_unseen(py, all)
        } else {
            (0, None)
        }
    }

    /// How many tasks have not ended.
    fn _pending(&self) -> usize {
        if self.generation == process::generation() {
            self.engine.pending()
        } else {
            0
        }
    }

    /// What `manyhands.Pool.dump` shows.
    fn _dump<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.check_process()?;
        let _inside = enter(py)?;
        self.engine.dump(py)
    }

    /// What `manyhands.Pool.stats` shows.
    fn _stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.check_process()?;
        let _inside = enter(py)?;
        self.engine.stats(py)
    }
}

impl Drop for PoolBase {
    fn drop(&mut self) {
        if self.generation == process::generation() {
            // What was submitted still runs; then the workers leave.
            Python::attach(|py| self.engine.close(py, false, false));
        }
    }
}
