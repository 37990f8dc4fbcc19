//! The process engine: tasks become bytes and run in worker processes.

use crate::bystanders::detach;
use crate::calls::{self, Call, HIDE_ARGS, Large};
use crate::capture;
use crate::context::Carrier;
use crate::dump::dump_dict;
use crate::engine::{Engine, MapCall, TaskOptions};
use crate::feed::{Feed, FeedOptions};
use crate::future::{TaskFuture, Work};
use crate::results::Source;
use crate::{hooks, local, outcome, pool, process};
use manyhands_os::coarse_nanos;
use manyhands_runtime::{
    Awaited, Block, Entry, Events, Initializer, Output, Pool, PoolOptions, PoolStats, Recycling,
    Refused, STALLED_AFTER, Task, TaskKind,
};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How old what workers find at their birth may be when tasks are submitted, in nanoseconds.
const TELL_EVERY: u64 = 100_000_000;

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
    forward_logs(pool)?;
    detach(py, || {
        pool.wait(awaited, deadline, || {
            // Signals are the main thread's; others need not wait for Python to look for them.
            if manyhands_os::is_main_thread() {
                Python::attach(process::check_signals)?;
            }
            forward_logs(pool)
        })
    })
}

/// Hands on what the supervisor has logged: who waits for a task should hear that it is stuck.
fn forward_logs(pool: &Pool) -> PyResult<()> {
    if pool.has_logs() {
        Python::attach(|py| hooks::forward_logs(py)?.call0().map(drop))?;
    }
    Ok(())
}

/// Where it is told what happens, and what workers put out; with that `() -> int`: what they are to send, as bits.
pub(crate) type Told = (Option<Arc<Events>>, Option<(Arc<Output>, Py<PyAny>)>);

/// A pool of worker processes.
pub(crate) struct Processes(Arc<Shared>);

/// What the pool and its maps share.
pub(crate) struct Shared {
    pub(crate) pool: Arc<Pool>,
    generation: u32,
    hide_args: bool,
    /// The priority of tasks that have none of their own.
    pub(crate) priority: i32,
    /// When workers were told last what they find at their birth, 0 before the first task.
    told_at: AtomicU64,
    index: AtomicU64,
    /// Which context variables travel with tasks, if any do.
    carrier: OnceLock<Arc<Carrier>>,
    /// `() -> int`: what workers that are born now are to send of their output, as bits.
    wanted_output: Option<Py<PyAny>>,
}

impl Shared {
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
        self.want_output(function.py())?;
        self.told_at.store(coarse_nanos(), Ordering::Relaxed);
        Ok(())
    }

    /// Now and then: environment, paths and the like may have changed since.
    #[cold]
    fn tell_again(&self, py: Python<'_>, now: u64) -> PyResult<()> {
        self.told_at.store(now, Ordering::Relaxed);
        hooks::tell_birth_again(py)?.call0()?;
        self.want_output(py)
    }

    /// After workers were told what they find at their birth: what they are to send.
    fn want_output(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(wanted) = &self.wanted_output {
            self.pool.want_output(wanted.call0(py)?.extract(py)?);
        }
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

    fn send(&self, py: Python<'_>, call: Call, options: TaskOptions) -> PyResult<Arc<Task>> {
        // Relaxed: a number for messages.
        let index = self.index.fetch_add(1, Ordering::Relaxed);
        let tag = if self.hide_args {
            call.tag | HIDE_ARGS
        } else {
            call.tag
        };
        let task = Task::new(index, call.definition.clone());
        let mut entry = Entry::new(
            Some(task.clone()),
            TaskKind::Run,
            call.definition,
            call.needs,
            tag,
            call.payload,
        );
        (entry.limits, entry.retry) = (options.limits, options.plan.map(|plan| plan.retry.clone()));
        entry.priority = Some(options.priority.unwrap_or(self.priority));
        entry.context = call.context;
        entry.seed = capture::section(py, options.kept.as_ref(), options.origin)?;
        self.pool
            .submit(entry)
            .map_err(|refused| Self::refused(py, refused))?;
        Ok(task)
    }

    /// Sends items of a map.
    pub(crate) fn send_block(
        &self,
        py: Python<'_>,
        block: Arc<Block>,
        priority: i32,
    ) -> PyResult<()> {
        let mut entry = Entry::block(block);
        entry.priority = Some(priority);
        self.pool
            .submit(entry)
            .map_err(|refused| Self::refused(py, refused))
    }
}

impl Processes {
    #[expect(
        clippy::too_many_arguments,
        reason = "the options of a pool, by position"
    )]
    pub(crate) fn new(
        workers: usize,
        initializer: pool::Initializer<'_>,
        show_args: bool,
        priority: i32,
        (stuck_after, stalled_after): (Option<u64>, Option<u64>),
        (events, output): Told,
        memory: Option<u64>,
        recycling: Recycling,
        share: Option<u32>,
    ) -> PyResult<Self> {
        let initializer = initializer
            .map(|(function, args)| {
                let call = calls::encode_call(&function, &args, None, Large::Within)?;
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
        let (output, wanted_output) = output.unzip();
        let cores = process::cpu_count();
        let pool = Pool::new(
            process::supervisor()?,
            PoolOptions {
                workers,
                initializer,
                cores,
                stuck_after,
                stalled_after: stalled_after.unwrap_or(STALLED_AFTER),
                events,
                output,
                memory,
                recycling,
                share,
            },
        )
        .map_err(|error| PyRuntimeError::new_err(format!("the pool could not be made: {error}")))?;
        Ok(Self(Arc::new(Shared {
            pool,
            generation: process::generation(),
            hide_args: !show_args,
            priority,
            told_at: AtomicU64::new(0),
            index: AtomicU64::new(0),
            carrier: OnceLock::new(),
            wanted_output,
        })))
    }
}

impl Engine for Processes {
    fn submit<'py>(
        &self,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        options: TaskOptions,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (this, py) = (&self.0, function.py());
        this.ready(function)?;
        let mut call = calls::encode_call(function, args, kwargs, Large::Apart { waits: true })?;
        if let Some(carrier) = this.carrier.get() {
            call.context = Some(carrier.context(py)?);
        }
        let future = hooks::future(py)?.call0()?;
        let task = this.send(py, call, options)?;
        let work = Work::Process(this.pool.clone(), task);
        future.cast::<TaskFuture>()?.get().fill(work);
        Ok(future)
    }

    fn map(&self, function: &Bound<'_, PyAny>, call: MapCall) -> PyResult<Box<dyn Source>> {
        let this = &self.0;
        this.ready(function)?;
        // In the call, where `submit` says it too, and not when results are taken.
        let is_open = this.pool.check_open();
        is_open.map_err(|refused| Shared::refused(function.py(), refused))?;
        let context = this.carrier.get();
        let context = context.map(|carrier| carrier.context(function.py()));
        let options = FeedOptions {
            definition: calls::define_for_map(function)?,
            tag: if this.hide_args { HIDE_ARGS } else { 0 },
            ordered: call.ordered,
            deadline: call.deadline,
            buffer: call.buffer,
            task: call.options,
            context: context.transpose()?,
        };
        let feed = Feed::new(
            function.py(),
            this.clone(),
            call.input,
            options,
            call.counts,
        )?;
        Ok(Box::new(feed))
    }

    fn carry(&self, carrier: Arc<Carrier>) {
        // It is said once.
        let _first = self.0.carrier.set(carrier);
    }

    fn start(&self, function: &Bound<'_, PyAny>) -> PyResult<()> {
        self.0.ready(function)?;
        self.0.pool.start_all();
        Ok(())
    }

    fn close(&self, py: Python<'_>, cancel: bool, kill: bool) {
        detach(py, || self.0.pool.close(cancel, kill));
    }

    fn ask(&self, py: Python<'_>) {
        detach(py, || self.0.pool.stop_all());
    }

    fn wait_quiet(&self, py: Python<'_>, workers: bool, time: Duration) -> PyResult<bool> {
        let is_quiet = detach(py, || self.0.pool.wait_quiet(workers, time));
        forward_logs(&self.0.pool)?;
        Ok(is_quiet)
    }

    fn refuses(&self, options: &TaskOptions) -> Option<Cow<'static, str>> {
        let (memory, limit) = (options.limits.memory?, self.0.pool.memory_limit()?);
        (memory > limit).then(|| {
            Cow::Owned(format!(
                "task_memory={memory} is more than memory_limit={limit} of the pool: such a task could \
                 never start"
            ))
        })
    }

    fn number(&self) -> u32 {
        self.0.pool.number()
    }

    fn resize(&self, py: Python<'_>, workers: usize) -> PyResult<bool> {
        Ok(detach(py, || self.0.pool.resize(workers)))
    }

    fn take_unseen(&self, py: Python<'_>, all: bool) -> (u64, Option<String>) {
        let (count, task) = self.0.pool.take_unseen(all);
        let example = task.and_then(|task| {
            let error = outcome::value(py, &task, task.outcome()?).err()?;
            Some(local::described(py, Some(error.into_value(py).as_any())))
        });
        (count, example)
    }

    fn pending(&self) -> usize {
        self.0.pool.pending()
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        stats_dict(py, &self.0.pool.stats())
    }

    fn dump<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        dump_dict(py, &detach(py, || self.0.pool.dump()))
    }
}

fn stats_dict<'py>(py: Python<'py>, stats: &PoolStats) -> PyResult<Bound<'py, PyDict>> {
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
            // What the running task has read is a part of its own time, which comes at its end.
            let busy = worker.busy_nanos.saturating_sub(worker.transfer_nanos);
            item.set_item("busy", busy as f64 / 1e9)?;
            item.set_item("transfer", worker.transfer_nanos as f64 / 1e9)?;
            item.set_item("task_age", worker.task_age.map(|nanos| nanos as f64 / 1e9))?;
            item.set_item("task_index", worker.task_index)?;
            let task = worker.definition.as_ref().map(|known| known.label());
            item.set_item("task", task)?;
            item.set_item(
                "resident",
                worker.pid.and_then(manyhands_os::resident_bytes),
            )?;
            item.set_item("waiting", worker.waiting)?;
            item.set_item("age", worker.age as f64 / 1e9)?;
            item.set_item("leases", worker.leases)?;
            Ok(item)
        })
        .collect::<PyResult<Vec<_>>>()?;
    answer.set_item("workers", workers)?;
    answer.set_item("queued", stats.queued)?;
    answer.set_item("pending", stats.pending)?;
    answer.set_item("done", stats.done)?;
    answer.set_item("deaths", stats.deaths)?;
    answer.set_item("recycled", stats.recycled)?;
    answer.set_item("late_wakes", stats.late_wakes)?;
    answer.set_item("left_behind", 0)?;
    Ok(answer)
}
