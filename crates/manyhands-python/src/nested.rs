//! The engine of tasks: what a task submits to the pool that runs it. See `manyhands_runtime`'s `nested`.
//!
//! In a worker this stands for its pool: calls are encoded here, as a parent does it, and the parent gives them to
//! whichever worker is free. A map is a window of calls, one for each item.

use crate::bystanders::detach;
use crate::calls::{self, Call, HIDE_ARGS, ItemEncoder, Large};
use crate::engine::{Engine, MapCall, TaskOptions};
use crate::future::{TaskFuture, Work};
use crate::input::Input;
use crate::local::Turn;
use crate::results::{Counts, Failed, Source, Taken};
use crate::{context, hooks, outcome, process};
use manyhands_os::monotonic_nanos;
use manyhands_runtime::{Bytes, Caller, Definition, Entry, Outcome, Task, TaskKind};
use pyo3::exceptions::{PyRuntimeError, PyTimeoutError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The most calls of a map that are open at a time, for each of the pool's workers.
const OPEN_PER_WORKER: usize = 64;
/// The most items of a map whose results nobody took, and the bytes of their arguments.
const MOST_ITEMS: usize = 100_000;
const MOST_BYTES: usize = 64 << 20;

/// By which the tasks of this process submit tasks, if it is a worker.
static CALLER: OnceLock<(u32, Arc<Caller>)> = OnceLock::new();
/// Whether errors of what the task that runs submits are to hide arguments, as its own do.
static HIDES: AtomicBool = AtomicBool::new(false);

/// Says that this process is a worker, whose tasks submit tasks by this.
pub(crate) fn set_caller(caller: Arc<Caller>) {
    let _first = CALLER.set((process::generation(), caller));
}

/// How the errors of the task that runs treat arguments.
#[inline]
pub(crate) fn set_hides(hides: bool) {
    // Relaxed: read by the tasks that come after it in this thread, and by threads that they start.
    HIDES.store(hides, Ordering::Relaxed);
}

/// The caller of this process; none if it is no worker, but a child that a task forked, say.
fn caller() -> Option<&'static Arc<Caller>> {
    let (generation, caller) = CALLER.get()?;
    (*generation == process::generation()).then_some(caller)
}

/// The number of the pool whose worker this is, and how many workers it has; none in other processes.
#[pyfunction]
pub(crate) fn pool_of_this_worker() -> Option<(u32, usize)> {
    caller().map(|caller| (caller.pool(), caller.width()))
}

/// The task has returned: what it has submitted is waited for, as at the end of a `with` block. Where it has
/// failed, or fails meanwhile, that is cancelled.
#[inline]
pub(crate) fn settle<'py>(
    py: Python<'py>,
    answer: PyResult<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    match caller() {
        Some(caller) if caller.open() > 0 => settle_open(py, caller, answer),
        _ => answer,
    }
}

/// Whether there is something for `settle` to do.
#[inline]
pub(crate) fn any_open() -> bool {
    caller().is_some_and(|caller| caller.open() > 0)
}

#[cold]
fn settle_open<'py>(
    py: Python<'py>,
    caller: &Arc<Caller>,
    answer: PyResult<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let answer = answer.and_then(|value| {
        detach(py, || {
            let all = || caller.open() == 0;
            caller.wait(all, None, || Python::attach(|py| py.check_signals()))
        })?;
        Ok(value)
    });
    if answer.is_err() {
        detach(py, || caller.cancel_all());
    }
    answer
}

/// Waits for the end of a call; false if the time was up.
pub(crate) fn wait_for(
    py: Python<'_>,
    caller: &Caller,
    is_ready: impl Fn() -> bool + Send,
    deadline: Option<u64>,
) -> PyResult<bool> {
    detach(py, || {
        caller.wait(is_ready, deadline, || {
            if manyhands_os::is_main_thread() {
                Python::attach(|py| py.check_signals())
            } else {
                Ok(())
            }
        })
    })
}

/// The pool that runs the task which asks.
pub(crate) struct Nested(Arc<Shared>);

struct Shared {
    caller: Arc<Caller>,
    index: AtomicU64,
}

impl Nested {
    pub(crate) fn new() -> PyResult<Self> {
        let caller = caller().ok_or_else(|| {
            PyRuntimeError::new_err("this process is no worker of a pool, and no task runs here")
        })?;
        Ok(Self(Arc::new(Shared {
            caller: caller.clone(),
            index: AtomicU64::new(0),
        })))
    }
}

impl Shared {
    fn send(
        &self,
        py: Python<'_>,
        index: u64,
        call: Call,
        options: &TaskOptions,
        gathers: bool,
    ) -> Arc<Task> {
        let hide = if HIDES.load(Ordering::Relaxed) {
            HIDE_ARGS
        } else {
            0
        };
        let task = Task::new(index, call.definition.clone());
        let mut entry = Entry::new(
            Some(task.clone()),
            TaskKind::Run,
            call.definition,
            call.needs,
            call.tag | hide,
            call.payload,
        );
        entry.limits = options.limits;
        entry.retry = options.plan.as_ref().map(|plan| plan.retry.clone());
        entry.priority = options.priority;
        entry.seed = options.origin.clone();
        entry.context = call.context;
        entry.gathers = gathers;
        detach(py, || self.caller.submit(&entry));
        task
    }
}

impl Engine for Nested {
    fn submit<'py>(
        &self,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        options: TaskOptions,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (this, py) = (&self.0, function.py());
        let mut call = calls::encode_call(function, args, kwargs, Large::HandedOn)?;
        call.context = context::of_nested(py)?;
        let future = hooks::future(py)?.call0()?;
        // Relaxed: a number for messages.
        let index = this.index.fetch_add(1, Ordering::Relaxed);
        let task = this.send(py, index, call, &options, false);
        let work = Work::Nested(this.caller.clone(), task);
        future.cast::<TaskFuture>()?.get().fill(work);
        Ok(future)
    }

    fn map(&self, function: &Bound<'_, PyAny>, call: MapCall) -> PyResult<Box<dyn Source>> {
        Ok(Box::new(Window {
            shared: self.0.clone(),
            definition: calls::define_for_map(function)?,
            context: context::of_nested(function.py())?,
            options: call.options,
            input: call.input,
            ordered: call.ordered,
            deadline: call.deadline,
            most: call.buffer.map_or(MOST_ITEMS, |most| most as usize),
            counts: call.counts,
            calls: VecDeque::new(),
            bytes: 0,
            yielding: None,
            last: None,
            turn: Turn::default(),
        }))
    }

    fn start(&self, _function: &Bound<'_, PyAny>) -> PyResult<()> {
        Ok(())
    }

    /// The pool is its parent's to close.
    fn close(&self, py: Python<'_>, cancel: bool, _kill: bool) {
        if cancel {
            detach(py, || self.0.caller.cancel_all());
        }
    }

    fn ask(&self, py: Python<'_>) {
        detach(py, || self.0.caller.cancel_all());
    }

    fn wait_quiet(&self, py: Python<'_>, _workers: bool, time: Duration) -> PyResult<bool> {
        let deadline = monotonic_nanos().saturating_add(time.as_nanos() as u64);
        let caller = &self.0.caller;
        let Ok(is_quiet) = detach(py, || {
            caller.wait(
                || caller.open() == 0,
                Some(deadline),
                || Ok::<_, Infallible>(()),
            )
        });
        Ok(is_quiet)
    }

    /// Who looks at what has failed below is for the task to say.
    fn refuses(&self, options: &TaskOptions) -> Option<Cow<'static, str>> {
        // Of the rest the engine that runs it says so.
        options.kept.is_some().then_some(Cow::Borrowed(
            "capture= is for tasks that the program submits: what a task of a task writes in a worker \
             process cannot be kept for it; have it return what is wanted, or use engine=\"thread\"",
        ))
    }

    fn take_unseen(&self, _py: Python<'_>, _all: bool) -> (u64, Option<String>) {
        (0, None)
    }

    fn pending(&self) -> usize {
        self.0.caller.open()
    }

    fn dump<'py>(&self, _py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        Err(PyRuntimeError::new_err(
            "dump() of the pool that runs a task is asked for where the pool was made",
        ))
    }

    fn stats<'py>(&self, _py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        Err(PyRuntimeError::new_err(
            "stats() of the pool that runs a task are asked for where the pool was made",
        ))
    }
}

/// The calls of a map.
struct Window {
    shared: Arc<Shared>,
    definition: Arc<Definition>,
    /// The values of context variables that its items find.
    context: Option<Arc<Definition>>,
    options: TaskOptions,
    input: Input,
    ordered: bool,
    deadline: Option<u64>,
    most: usize,
    counts: Arc<Counts>,
    /// What was sent and whose end nobody took, in the order of the input.
    calls: VecDeque<Sent>,
    /// The bytes of their arguments.
    bytes: usize,
    /// What a generator yielded, that was an item's.
    yielding: Option<(u64, VecDeque<Py<PyAny>>)>,
    /// The item whose end was taken last.
    last: Option<Py<PyAny>>,
    turn: Turn,
}

struct Sent {
    index: u64,
    bytes: usize,
    work: SentWork,
}

enum SentWork {
    Call(Arc<Task>),
    /// It could not be sent.
    Bad(PyErr, Py<PyAny>),
}

impl Sent {
    fn is_done(&self) -> bool {
        match &self.work {
            SentWork::Call(task) => task.is_done(),
            SentWork::Bad(..) => true,
        }
    }
}

impl Window {
    /// Whether there is room for more of the input.
    fn has_room(&self) -> bool {
        let open = self.shared.caller.open();
        !self.input.ended
            && self.calls.len() < self.most
            && (self.bytes < MOST_BYTES || self.calls.is_empty())
            && open < OPEN_PER_WORKER * self.shared.caller.width()
    }

    /// Sends more of the input, as far as there is room.
    fn pull(&mut self, py: Python<'_>) -> PyResult<()> {
        while self.has_room() {
            let Some(item) = self.input.next(py) else {
                break;
            };
            let index = self.input.index - 1;
            self.counts
                .pulled
                .store(self.input.index, Ordering::Relaxed);
            let (bytes, work) = match self.encode(&item) {
                Ok(call) => {
                    let bytes = call.payload.len();
                    Counts::add(&self.counts.sent, bytes as u64);
                    let task = self.shared.send(py, index, call, &self.options, true);
                    (bytes, SentWork::Call(task))
                }
                Err(error) => (0, SentWork::Bad(error, item.unbind())),
            };
            self.bytes += bytes;
            self.calls.push_back(Sent { index, bytes, work });
            self.turn.pass(py, monotonic_nanos())?;
        }
        if self.input.ended {
            self.counts.complete.store(true, Ordering::Relaxed);
        }
        match self.input.take_interruption(py) {
            Some(interruption) => Err(interruption),
            None => Ok(()),
        }
    }

    fn encode(&self, item: &Bound<'_, PyAny>) -> PyResult<Call> {
        let mut encoder = ItemEncoder::new(Large::HandedOn);
        let mut bytes = Vec::new();
        let (tag, payload) = match encoder.encode(item, self.input.is_star(), &mut bytes)? {
            Ok(tag) => (tag, Bytes::copy_of(&bytes)),
            Err(pickled) => {
                let bytes = pickled.bytes.as_bytes(item.py());
                (pickled.tag, pickled.kept.with(calls::to_bytes(bytes)))
            }
        };
        Ok(Call {
            definition: Some(self.definition.clone()),
            needs: encoder.take_needs(),
            context: self.context.clone(),
            tag,
            payload,
        })
    }

    /// Where the next end stands, if it is there.
    fn next_done(&self) -> Option<usize> {
        if self.ordered {
            return self.calls.front()?.is_done().then_some(0);
        }
        self.calls.iter().position(Sent::is_done)
    }

    fn taken<'py>(&mut self, py: Python<'py>, sent: Sent) -> PyResult<Taken<'py>> {
        let index = sent.index;
        let outcome = match sent.work {
            SentWork::Bad(error, item) => {
                self.last = Some(item);
                Err(Failed::new(error, 0, 0))
            }
            SentWork::Call(task) => {
                let outcome = task.outcome().ok_or_else(|| {
                    PyRuntimeError::new_err("the end of a call was taken before it was there")
                })?;
                let label = self.definition.label();
                if let Outcome::Value(tag, _) = outcome
                    && tag & calls::GATHERED != 0
                {
                    let yielded = outcome::of_item(py, outcome, label, index);
                    match yielded {
                        Ok(list) => {
                            let list = list.cast::<PyList>()?.iter().map(Bound::unbind).collect();
                            self.yielding = Some((index, list));
                            return self.next_yielded(py).ok_or_else(|| {
                                PyRuntimeError::new_err("a generator's end was lost")
                            });
                        }
                        Err(failed) => Err(failed),
                    }
                } else {
                    if let Outcome::Value(_, bytes) = outcome {
                        Counts::add(&self.counts.received, bytes.weight());
                    }
                    outcome::of_item(py, outcome, label, index)
                }
            }
        };
        Ok(Taken {
            index,
            more: false,
            is_value: true,
            outcome,
        })
    }

    fn next_yielded<'py>(&mut self, py: Python<'py>) -> Option<Taken<'py>> {
        let (index, values) = self.yielding.as_mut()?;
        let index = *index;
        let value = values.pop_front();
        if value.is_none() {
            self.yielding = None;
        }
        Some(Taken {
            index,
            more: value.is_some(),
            is_value: value.is_some(),
            outcome: Ok(value.unwrap_or_else(|| py.None()).into_bound(py)),
        })
    }
}

impl Source for Window {
    fn take<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Taken<'py>>> {
        loop {
            if self.counts.closing.load(Ordering::Relaxed) {
                self.cancel(py, false);
            }
            self.last = None;
            if let Some(taken) = self.next_yielded(py) {
                return Ok(Some(taken));
            }
            self.turn.pass(py, monotonic_nanos())?;
            self.pull(py)?;
            if let Some(at) = self.next_done()
                && let Some(sent) = self.calls.remove(at)
            {
                self.bytes -= sent.bytes;
                Counts::add(&self.counts.tally.ended, 1);
                return self.taken(py, sent).map(Some);
            }
            if self.calls.is_empty() {
                return match self.input.error.take() {
                    Some(error) => Err(error),
                    None => Ok(None),
                };
            }
            let (calls, ordered) = (&self.calls, self.ordered);
            let caller = &self.shared.caller;
            let wants_more = !self.input.ended && calls.len() < self.most;
            let low = OPEN_PER_WORKER * caller.width() / 2;
            let is_ready = || {
                let is_done = if ordered {
                    calls.front().is_none_or(Sent::is_done)
                } else {
                    calls.iter().any(Sent::is_done)
                };
                is_done || (wants_more && caller.open() < low)
            };
            if !wait_for(py, caller, is_ready, self.deadline)? {
                return Err(PyTimeoutError::new_err(()));
            }
        }
    }

    fn take_value<'py>(&mut self, _py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        None
    }

    fn is_ready(&mut self, _py: Python<'_>) -> bool {
        self.yielding.is_some() || self.next_done().is_some()
    }

    fn input<'py>(&mut self, py: Python<'py>, taken: &Taken<'py>) -> Option<Bound<'py, PyAny>> {
        let last = self.last.take().map(|item| item.into_bound(py));
        last.or_else(|| self.input.kept(py, taken.index, !taken.more))
    }

    fn batch_len(&self, index: u64) -> Option<usize> {
        self.input.batch_len(index)
    }

    fn forget_inputs(&mut self) {
        // Whoever fails is to be shown with its item.
    }

    fn cancel(&mut self, py: Python<'_>, _kill: bool) {
        self.input.end();
        self.yielding = None;
        self.bytes = 0;
        let calls = std::mem::take(&mut self.calls);
        let caller = &self.shared.caller;
        if crate::nested::caller().is_none() {
            return; // a child that the task forked
        }
        detach(py, || {
            for sent in &calls {
                if let SentWork::Call(task) = &sent.work {
                    caller.cancel(task);
                }
            }
        });
    }

    fn take_all_input(&mut self, py: Python<'_>, until: u64) -> PyResult<()> {
        while !self.input.ended && monotonic_nanos() < until {
            self.pull(py)?;
            let caller = &self.shared.caller;
            let low = OPEN_PER_WORKER * caller.width() / 2;
            wait_for(py, caller, || caller.open() < low, Some(until))?;
            // Whatever it needs of memory: nothing is lost.
            (self.most, self.bytes) = (usize::MAX, 0);
        }
        Ok(())
    }

    fn leave(&mut self, _left: bool) {}
}

impl Drop for Window {
    fn drop(&mut self) {
        if !self.calls.is_empty() {
            Python::attach(|py| self.cancel(py, false));
        }
    }
}
