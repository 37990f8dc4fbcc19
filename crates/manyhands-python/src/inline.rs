//! The inline engine: tasks run in the thread that submits them, or takes their result.
//!
//! It starts nothing. Arguments and results are copied as they are on their way to a worker process and
//! back, so that what works here works there, unless copies were declined. The function itself is not.

use crate::asking::{Runner, What, Why};
use crate::calls;
use crate::capture::{self, Kept};
use crate::codec::{Decoder, Encoder};
use crate::crew::Refused;
use crate::engine::{Engine, MapCall, Plan, TaskOptions};
use crate::events::{Sink, Told, here, label_of};
use crate::future::{InlineFailure, Known, TaskFuture, Work};
use crate::input::Input;
use crate::local::{self, Kind, Ran, Shown, Turn, Watched};
use crate::pool::Initializer;
use crate::results::{Counts, Failed, Source, Taken, is_ctrl_c};
use crate::seeds::{self, Origin, Stream};
use crate::{clock, context, functions, hooks, needs, pickle};
use manyhands_os::{monotonic_nanos, thread_cpu_nanos};
use manyhands_runtime::{Event, EventKind, Fate, How, Label, Limits, Tasks, Unseen, number_of_map};
use pyo3::exceptions::PyTimeoutError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyIterator, PyTuple};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Where a task runs, in words.
const PLACE: &str = "the calling thread";
/// Of what takes longer than so many nanoseconds the processor time is looked at.
const LONG: u64 = 20_000;

/// A pool without workers.
pub(crate) struct Inline(Arc<Shared>);

/// What the pool and its maps share.
struct Shared {
    copies: bool,
    shows_args: bool,
    /// What runs before the first task; none once it was started.
    initializer: Mutex<Option<(Py<PyAny>, Py<PyTuple>)>>,
    /// What the initializer raised.
    broken: Mutex<Option<Arc<Py<PyAny>>>>,
    closed: AtomicBool,
    /// Where it is told what happens, if somebody listens.
    events: Option<Sink>,
    index: AtomicU64,
    done: AtomicU64,
    unseen: Arc<Unseen<String>>,
}

impl Inline {
    pub(crate) fn new(
        initializer: Initializer<'_>,
        show_args: bool,
        copy: bool,
        events: Option<Sink>,
    ) -> Self {
        let initializer = initializer.map(|(function, args)| (function.unbind(), args.unbind()));
        Self(Arc::new(Shared {
            copies: copy,
            shows_args: show_args,
            initializer: Mutex::new(initializer),
            broken: Mutex::new(None),
            closed: AtomicBool::new(false),
            events,
            index: AtomicU64::new(0),
            done: AtomicU64::new(0),
            unseen: Arc::default(),
        }))
    }
}

impl Shared {
    /// The arguments of a task, copied if they are to be.
    fn taken<'py>(
        &self,
        copier: &mut Copier,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<(Bound<'py, PyTuple>, Option<Bound<'py, PyDict>>)> {
        if !self.copies {
            return Ok((args.clone(), kwargs.cloned()));
        }
        let args = copier
            .copy(args.as_any(), Part::Args)?
            .cast_into::<PyTuple>()?;
        let kwargs = kwargs
            .map(|kwargs| {
                copier
                    .copy(kwargs.as_any(), Part::Args)?
                    .cast_into::<PyDict>()
                    .map_err(PyErr::from)
            })
            .transpose()?;
        Ok((args, kwargs))
    }

    /// Before a task: the pool has to be open, and its initializer to have run.
    #[inline]
    fn ready(&self, py: Python<'_>) -> PyResult<()> {
        // Relaxed: who closes the pool in another thread has no order with this.
        if self.closed.load(Ordering::Relaxed) {
            return Err(self.refusal(py));
        }
        let initializer = self
            .initializer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match initializer {
            None => Ok(()),
            Some((function, args)) => self.initialize(function.bind(py), args.bind(py)),
        }
    }

    /// Says that a task is there, and starts: of that map, or 0.
    #[inline]
    fn told(&self, map: u64, index: u64, label: impl FnOnce() -> Option<Label>) -> Option<Told> {
        let events = self.events.as_ref()?;
        let tasks = Tasks {
            map,
            index,
            count: 1,
            label: label(),
            attempt: 0,
        };
        events.push(Event::now(EventKind::Queued, None, Some(tasks.clone())));
        Some(Told::start(events.clone(), here(None), tasks))
    }

    #[cold]
    fn refusal(&self, py: Python<'_>) -> PyErr {
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = broken.clone().map_or(Refused::Closed, Refused::Broken);
        drop(broken);
        refused.into_error(py)
    }

    #[cold]
    fn initialize(&self, function: &Bound<'_, PyAny>, args: &Bound<'_, PyTuple>) -> PyResult<()> {
        let py = function.py();
        let Err(error) = function.call1(args) else {
            return Ok(());
        };
        let error = hooks::initializer_failed(py)?.call1((error.into_value(py),))?;
        let error = Arc::new(error.unbind());
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        self.closed.store(true, Ordering::Relaxed);
        Err(self.refusal(py))
    }

    fn explained(
        &self,
        error: PyErr,
        function: &Bound<'_, PyAny>,
        args: Option<Bound<'_, PyTuple>>,
        kwargs: Option<&Bound<'_, PyDict>>,
        index: u64,
        attempts: u8,
    ) -> Py<PyAny> {
        let shown = Shown {
            function,
            args: args.filter(|_| self.shows_args),
            kwargs: kwargs.filter(|_| self.shows_args),
            index,
            place: PLACE,
            attempts,
        };
        local::explained(function.py(), error, shown)
    }
}

/// Copies values as they are copied on their way to a process.
#[derive(Default)]
struct Copier {
    bytes: Vec<u8>,
    decoder: Decoder,
}

/// Which part of a call is copied, for messages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    One,
    Args,
    Result,
}

impl Copier {
    #[inline]
    fn copy<'py>(&mut self, value: &Bound<'py, PyAny>, part: Part) -> PyResult<Bound<'py, PyAny>> {
        if is_atom(value) {
            return Ok(value.clone());
        }
        self.bytes.clear();
        if Encoder::default().encode(value, &mut self.bytes) {
            let copied = self.decoder.decode(value.py(), &mut self.bytes.as_slice());
            self.decoder.forget_classes();
            return copied.map_err(|error| *error);
        }
        copy_by_pickle(value, part)
    }
}

#[cold]
fn copy_by_pickle<'py>(value: &Bound<'py, PyAny>, part: Part) -> PyResult<Bound<'py, PyAny>> {
    needs::returning(|| copy_as_sent(value, part))
}

/// The copy that a task on processes would get.
fn copy_as_sent<'py>(value: &Bound<'py, PyAny>, part: Part) -> PyResult<Bound<'py, PyAny>> {
    let py = value.py();
    match pickle::dumps(py, value).and_then(|bytes| pickle::loads(py, bytes.as_bytes(), Vec::new()))
    {
        Ok(copied) => return Ok(copied),
        Err(error) if is_ctrl_c(py, &error) => return Err(error),
        // The slow way says what is wrong, if it can do no better.
        Err(_) => {}
    }
    match part {
        Part::Args => hooks::copied(py)?.call1((value, calls::ARGS)),
        Part::One => {
            let copied = hooks::copied(py)?.call1((PyTuple::new(py, [value])?, calls::ARGS))?;
            copied.get_item(0)
        }
        Part::Result => hooks::copied(py)?.call1((value, py.None())),
    }
}

/// Whether the value cannot be changed and is made of nothing else.
#[inline]
fn is_atom(value: &Bound<'_, PyAny>) -> bool {
    let object = value.as_ptr();
    // SAFETY: a live object of an attached thread.
    unsafe {
        ffi::PyLong_CheckExact(object) != 0
            || ffi::PyUnicode_CheckExact(object) != 0
            || object == ffi::Py_None()
            || ffi::PyFloat_CheckExact(object) != 0
            || ffi::PyBytes_CheckExact(object) != 0
            || object == ffi::Py_True()
            || object == ffi::Py_False()
    }
}

impl Engine for Inline {
    fn submit<'py>(
        &self,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        options: TaskOptions,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (this, py) = (&self.0, function.py());
        if !function.is_callable() {
            return Err(functions::not_callable(function));
        }
        this.ready(py)?;
        let function = &context::around(function)?;
        if options.limits.time.is_some() {
            clock::start(py)?;
        }
        let future = hooks::future(py)?.call0()?;
        // Relaxed, here and below: numbers for messages.
        let index = this.index.fetch_add(1, Ordering::Relaxed);
        let mut copier = Copier::default();
        // What cannot be sent is the caller's error, as on processes.
        let mut taken = Some(this.taken(&mut copier, args, kwargs)?);
        let is_over = || this.closed.load(Ordering::Relaxed);
        let told = this.told(0, index, || label_of(function));
        let watched = Watched {
            function,
            index,
            told: told.as_ref(),
        };
        let plan = options.plan.as_deref();
        let (answer, attempts) = local::call_as_planned(py, plan, is_over, watched, |runs| {
            // Each run gets its own.
            let mine = match taken.take() {
                Some(taken) => Ok(taken),
                None => this.taken(&mut copier, args, kwargs),
            };
            let (args, kwargs) = match mine {
                Ok(mine) => mine,
                Err(error) => return Ran::Failed(error),
            };
            // Each run draws from the start.
            let stream = match Stream::of(py, options.origin.as_ref(), index) {
                Ok(stream) => stream,
                Err(error) => return Ran::Failed(error),
            };
            let _inside = match capture::enter(py, options.kept.as_ref(), index) {
                Ok(inside) => inside,
                Err(error) => return Ran::Failed(error),
            };
            let call = || function.call(&args, kwargs.as_ref());
            let run = || run_limited(function, index, options.limits, runs, call);
            let value = match seeds::lending(py, stream.as_ref(), run) {
                Ran::Done(value) => value,
                other => return other,
            };
            if local::kind_of(&value) == Kind::Awaitable {
                return Ran::Failed(local::not_awaited(&value, function));
            }
            if this.copies {
                Ran::from(copier.copy(&value, Part::Result))
            } else {
                Ran::Done(value)
            }
        });
        this.done.fetch_add(1, Ordering::Relaxed);
        if let Some(told) = &told {
            told.ends(answer.kind());
        }
        let known = match answer {
            Ran::Done(value) => Known::Value(value.unbind()),
            Ran::Unwanted => Known::Cancelled,
            Ran::TimedOut(error) => Known::Error(error.into_value(py).into_any()),
            // Ctrl-C is for the caller.
            Ran::Failed(error) if is_ctrl_c(py, &error) => return Err(error),
            Ran::Failed(error) => {
                let args = Some(args.clone());
                Known::Error(this.explained(error, function, args, kwargs, index, attempts))
            }
        };
        let work = match &known {
            Known::Error(error) => {
                let fate = Fate::default();
                let text = local::described(py, Some(error));
                this.unseen.failed(&fate, || text.clone());
                let unseen = this.unseen.clone();
                Work::Inline(Arc::new(InlineFailure { unseen, fate, text }))
            }
            Known::Value(_) | Known::Cancelled => Work::Ended,
        };
        future.cast::<TaskFuture>()?.get().end(known, work);
        Ok(future)
    }

    fn map(&self, function: &Bound<'_, PyAny>, call: MapCall) -> PyResult<Box<dyn Source>> {
        if !function.is_callable() {
            return Err(functions::not_callable(function));
        }
        if self.0.closed.load(Ordering::Relaxed) {
            return Err(self.0.refusal(function.py()));
        }
        if call.options.limits.time.is_some() {
            clock::start(function.py())?;
        }
        Ok(Box::new(Loop {
            shared: self.0.clone(),
            told_as: self
                .0
                .events
                .as_ref()
                .map(|_| (number_of_map(), label_of(function))),
            told: None,
            function: context::around(function)?.unbind(),
            star: call.input.is_star(),
            plan: call.options.plan,
            origin: call.options.origin,
            kept: call.options.kept,
            stream: None,
            limits: call.options.limits,
            left: 0,
            input: call.input,
            counts: call.counts,
            deadline: call.deadline,
            copier: Copier::default(),
            streaming: None,
            was_long: false,
            now: 0,
            turn: Turn::default(),
            ends: VecDeque::new(),
            item: None,
        }))
    }

    fn start(&self, function: &Bound<'_, PyAny>) -> PyResult<()> {
        self.0.ready(function.py())
    }

    fn close(&self, _py: Python<'_>, _cancel: bool, _kill: bool) {
        self.0.closed.store(true, Ordering::Relaxed);
        if let Some(events) = &self.0.events {
            events.finish();
        }
    }

    fn ask(&self, _py: Python<'_>) {}

    fn wait_quiet(&self, _py: Python<'_>, _workers: bool, _time: Duration) -> PyResult<bool> {
        Ok(true)
    }

    fn take_unseen(&self, _py: Python<'_>, all: bool) -> (u64, Option<String>) {
        self.0.unseen.take(all)
    }

    fn pending(&self) -> usize {
        0
    }

    fn dump<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        // What runs here runs in the thread that asks, or in one that Python knows better than we do.
        Engine::stats(self, py)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let answer = PyDict::new(py);
        answer.set_item("workers", PyTuple::empty(py))?;
        answer.set_item("queued", 0)?;
        answer.set_item("pending", 0)?;
        answer.set_item("done", self.0.done.load(Ordering::Relaxed))?;
        answer.set_item("deaths", 0)?;
        answer.set_item("recycled", 0)?;
        answer.set_item("late_wakes", 0)?;
        answer.set_item("left_behind", 0)?;
        Ok(answer)
    }
}

/// A map in the calling thread.
struct Loop {
    shared: Arc<Shared>,
    function: Py<PyAny>,
    star: bool,
    plan: Option<Arc<Plan>>,
    origin: Option<Origin>,
    kept: Option<Kept>,
    /// Of the item that ran last.
    stream: Option<Arc<Stream>>,
    limits: Limits,
    /// Its number and what it runs, if somebody listens.
    told_as: Option<(u64, Option<Label>)>,
    /// Whom the end of a generator is told.
    told: Option<Told>,
    input: Input,
    counts: Arc<Counts>,
    deadline: Option<u64>,
    copier: Copier,
    /// A generator that was made for an item, and the item.
    streaming: Option<(Py<PyIterator>, Py<PyAny>)>,
    /// How many nanoseconds it may still take, where there is a limit.
    left: u64,
    /// Whether what ran last was longer than `LONG`.
    was_long: bool,
    /// When what ran last had ended.
    now: u64,
    turn: Turn,
    /// What was run before somebody asked for it.
    ends: VecDeque<(u64, bool, End)>,
    /// The item whose end was handed over last, if it failed or is a batch.
    item: Option<Py<PyAny>>,
}

enum End {
    Value(Py<PyAny>),
    /// A generator has ended.
    Nothing,
    /// The exception, the item, how often it was tried, and whether its time was up.
    Failed(Py<PyAny>, Py<PyAny>, u8, bool),
}

/// Calls what may take so long. It is asked to end when its time is up, and its time was up then, whatever it
/// comes to; a Ctrl-C is none of its business.
#[inline]
fn run_limited<T>(
    function: &Bound<'_, PyAny>,
    index: u64,
    limits: Limits,
    runs: u8,
    call: impl FnOnce() -> PyResult<T>,
) -> Ran<T> {
    if limits.time.is_none() {
        return Ran::from(call());
    }
    let py = function.py();
    let runner = Runner::of_this_thread();
    runner.begin(What::Inline, limits);
    let answer = call();
    match (runner.finish(py), answer) {
        (None, answer) => Ran::from(answer),
        (Some(_), Err(error)) if is_ctrl_c(py, &error) => Ran::Failed(error),
        (Some(Why::TimedOut), _) => {
            Ran::TimedOut(local::timed_out(function, index, None, limits, runs))
        }
        (Some(Why::Cancelled), _) => Ran::Unwanted,
    }
}

impl Loop {
    /// Runs the next item, or a generator up to its next value: index, whether more follows, what came.
    #[inline]
    fn step(&mut self, py: Python<'_>) -> PyResult<Option<(u64, bool, End)>> {
        self.turn.pass(py, self.now)?;
        if self.streaming.is_some() {
            return self.next_yielded(py).map(Some);
        }
        if let Some(deadline) = self.deadline
            && monotonic_nanos() >= deadline
        {
            return Err(PyTimeoutError::new_err(()));
        }
        let Some(item) = self.input.next(py) else {
            self.counts.complete.store(true, Ordering::Relaxed);
            return match self.input.error.take() {
                Some(error) => Err(error),
                None => Ok(None),
            };
        };
        self.counts
            .pulled
            .store(self.input.index, Ordering::Relaxed);
        self.shared.ready(py)?;
        let index = self.input.index - 1;
        let told = match &self.told_as {
            Some((map, label)) => self.shared.told(*map, index, || label.clone()),
            None => None,
        };
        let clock = self.start();
        let (answer, attempts) = match self.plan.clone() {
            None => (self.run(&item, 1), 1),
            Some(plan) => {
                let shared = self.shared.clone();
                let is_over = || shared.closed.load(Ordering::Relaxed);
                let function = self.function.bind(py).clone();
                let watched = Watched {
                    function: &function,
                    index,
                    told: told.as_ref(),
                };
                let run = |runs| self.run(&item, runs);
                local::call_as_planned(py, Some(&plan), is_over, watched, run)
            }
        };
        self.stop(clock);
        if let Some(told) = told {
            match &answer {
                Ran::Done((_, Kind::Generator)) => self.told = Some(told),
                answer => told.ends(answer.kind()),
            }
        }
        Ok(Some(match answer {
            Ran::Done((value, Kind::Generator)) => {
                self.left = self.limits.time.unwrap_or(0);
                self.streaming = Some((value.try_iter()?.unbind(), item.unbind()));
                return self.next_yielded(py).map(Some);
            }
            Ran::Done((value, _)) => {
                self.end_item();
                (index, false, End::Value(value.unbind()))
            }
            Ran::Failed(error) => (index, false, self.failed(error, &item, attempts)?),
            Ran::TimedOut(error) => (index, false, self.timed_out(error, &item, attempts)),
            Ran::Unwanted => return Err(crate::future::cancelled(py)),
        }))
    }

    /// The time, and the processor time if what ran last was long enough to look at that: it is a system
    /// call.
    #[inline]
    fn start(&self) -> (u64, Option<u64>) {
        (monotonic_nanos(), self.was_long.then(thread_cpu_nanos))
    }

    /// Counts what ran since. What is short is all processor time.
    #[inline]
    fn stop(&mut self, (start, cpu_start): (u64, Option<u64>)) {
        self.now = monotonic_nanos();
        let nanos = self.now - start;
        let cpu = match cpu_start {
            Some(cpu_start) => thread_cpu_nanos().saturating_sub(cpu_start),
            None => nanos.min(LONG),
        };
        self.was_long = nanos > LONG;
        Counts::add(&self.counts.tally.busy_nanos, nanos);
        Counts::add(&self.counts.tally.cpu_nanos, cpu);
    }

    #[inline]
    fn run<'py>(&mut self, item: &Bound<'py, PyAny>, runs: u8) -> Ran<(Bound<'py, PyAny>, Kind)> {
        let function = self.function.bind(item.py());
        let index = self.input.index - 1;
        let copied = self.shared.copies.then(|| {
            let part = if self.star { Part::Args } else { Part::One };
            self.copier.copy(item, part)
        });
        let item = match &copied {
            None => item,
            Some(Ok(copied)) => copied,
            Some(Err(error)) => return Ran::Failed(error.clone_ref(item.py())),
        };
        let py = item.py();
        // Each run draws from the start; what a generator yields goes on with its own.
        self.stream = match Stream::of(py, self.origin.as_ref(), index) {
            Ok(stream) => stream,
            Err(error) => return Ran::Failed(error),
        };
        let _inside = match capture::enter(py, self.kept.as_ref(), index) {
            Ok(inside) => inside,
            Err(error) => return Ran::Failed(error),
        };
        let call = || local::call_item(function, item, self.star);
        let run = || run_limited(function, index, self.limits, runs, call);
        let value = match seeds::lending(py, self.stream.as_ref(), run) {
            Ran::Done(value) => value,
            Ran::Failed(error) => return Ran::Failed(error),
            Ran::TimedOut(error) => return Ran::TimedOut(error),
            Ran::Unwanted => return Ran::Unwanted,
        };
        let kind = local::kind_of(&value);
        match kind {
            Kind::Awaitable => Ran::Failed(local::not_awaited(&value, function)),
            Kind::Value if self.shared.copies => {
                let copied = self.copier.copy(&value, Part::Result);
                Ran::from(copied.map(|value| (value, kind)))
            }
            _ => Ran::Done((value, kind)),
        }
    }

    #[cold]
    fn next_yielded(&mut self, py: Python<'_>) -> PyResult<(u64, bool, End)> {
        let index = self.input.index - 1;
        let Some((generator, item)) = self.streaming.take() else {
            return Ok((index, false, End::Nothing));
        };
        let clock = self.start();
        let limits = Limits {
            time: self.limits.time.map(|_| self.left),
            ..self.limits
        };
        let function = self.function.bind(py);
        let inside = capture::enter(py, self.kept.as_ref(), index)?;
        let next = || generator.bind(py).clone().next().transpose();
        let run = || run_limited(function, index, limits, 1, next);
        let value = match seeds::lending(py, self.stream.as_ref(), run) {
            Ran::Done(value) => value.map(Ok),
            Ran::Failed(error) => Some(Err(error)),
            Ran::TimedOut(_) => {
                let item = item.bind(py);
                let error = local::timed_out(function, index, None, self.limits, 1);
                self.tell_end(EventKind::Ended(How::TimedOut));
                return Ok((index, false, self.timed_out(error, item, 1)));
            }
            Ran::Unwanted => {
                self.tell_end(EventKind::Cancelled);
                return Err(crate::future::cancelled(py));
            }
        };
        drop(inside);
        self.stop(clock);
        self.left = self.left.saturating_sub(self.now - clock.0);
        let value = match value {
            None => {
                self.tell_end(EventKind::Ended(How::Value));
                self.end_item();
                return Ok((index, false, End::Nothing));
            }
            Some(Ok(value)) if self.shared.copies => self.copier.copy(&value, Part::Result),
            Some(value) => value,
        };
        if value.is_err() {
            self.tell_end(EventKind::Ended(How::Error));
        }
        match value {
            Ok(value) => {
                self.streaming = Some((generator, item));
                Ok((index, true, End::Value(value.unbind())))
            }
            Err(error) => Ok((index, false, self.failed(error, item.bind(py), 1)?)),
        }
    }

    /// Says how a generator has ended.
    fn tell_end(&mut self, kind: EventKind) {
        if let Some(told) = self.told.take() {
            told.ends(kind);
        }
    }

    #[inline]
    fn end_item(&self) {
        self.shared.done.fetch_add(1, Ordering::Relaxed);
    }

    #[cold]
    fn timed_out(&self, error: PyErr, item: &Bound<'_, PyAny>, attempts: u8) -> End {
        self.end_item();
        let error = error.into_value(item.py()).into_any();
        End::Failed(error, item.clone().unbind(), attempts, true)
    }

    #[cold]
    fn failed(&self, error: PyErr, item: &Bound<'_, PyAny>, attempts: u8) -> PyResult<End> {
        let py = item.py();
        // Ctrl-C ends the map, whose task runs in the very thread that it is for.
        if is_ctrl_c(py, &error) {
            return Err(error);
        }
        self.end_item();
        let args = local::args_of(item, self.star);
        let index = self.input.index - 1;
        let function = self.function.bind(py);
        let error = self
            .shared
            .explained(error, function, args, None, index, attempts);
        Ok(End::Failed(error, item.clone().unbind(), attempts, false))
    }

    fn taken<'py>(&mut self, py: Python<'py>, end: (u64, bool, End)) -> Taken<'py> {
        let (index, more, end) = end;
        self.item = if self.input.is_batched() {
            self.input.kept(py, index, !more).map(Bound::unbind)
        } else {
            None
        };
        let (is_value, outcome) = match end {
            End::Value(value) => (true, Ok(value.into_bound(py))),
            End::Nothing => (false, Ok(py.None().into_bound(py))),
            End::Failed(error, item, attempts, is_timeout) => {
                self.item = Some(item);
                let error = PyErr::from_value(error.into_bound(py));
                let failed = Failed {
                    is_timeout,
                    ..Failed::new(error, std::process::id() as i32, attempts)
                };
                (true, Err(failed))
            }
        };
        Taken {
            index,
            more,
            is_value,
            outcome,
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.tell_end(EventKind::Cancelled);
    }
}

impl Source for Loop {
    fn take<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Taken<'py>>> {
        if self.counts.closing.load(Ordering::Relaxed) {
            self.cancel(py, false);
        }
        let end = match self.ends.pop_front() {
            Some(end) => Some(end),
            None => self.step(py)?,
        };
        Ok(end.map(|end| self.taken(py, end)))
    }

    #[inline]
    fn take_value<'py>(&mut self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        if self.input.ended
            || self.streaming.is_some()
            || !self.ends.is_empty()
            || self.deadline.is_some()
            || self.shared.closed.load(Ordering::Relaxed)
        {
            return None;
        }
        match self.step(py) {
            Ok(Some((_, false, End::Value(value)))) => Some(value.into_bound(py)),
            // All else is met again the long way.
            Ok(Some(end)) => {
                self.ends.push_back(end);
                None
            }
            Ok(None) => None,
            Err(error) => {
                self.input.end();
                self.input.error = Some(error);
                None
            }
        }
    }

    fn is_ready(&mut self, _py: Python<'_>) -> bool {
        !self.ends.is_empty()
    }

    fn input<'py>(&mut self, py: Python<'py>, taken: &Taken<'py>) -> Option<Bound<'py, PyAny>> {
        let item = self.item.take().map(|item| item.into_bound(py));
        item.or_else(|| self.input.kept(py, taken.index, !taken.more))
    }

    fn batch_len(&self, index: u64) -> Option<usize> {
        self.input.batch_len(index)
    }

    /// Nothing runs while nobody takes.
    fn leave(&mut self, _left: bool) {}

    fn forget_inputs(&mut self) {
        // Whether a batch fails is known when its results are counted.
        if !self.input.is_batched() {
            self.input.forget();
        }
    }

    fn cancel(&mut self, _py: Python<'_>, _kill: bool) {
        self.input.end();
        self.streaming = None;
        self.tell_end(EventKind::Cancelled);
        self.ends.clear();
    }

    fn take_all_input(&mut self, py: Python<'_>, until: u64) -> PyResult<()> {
        while monotonic_nanos() < until {
            match self.step(py) {
                Ok(Some(end)) => self.ends.push_back(end),
                Ok(None) => return Ok(()),
                Err(error) if is_ctrl_c(py, &error) => return Err(error),
                Err(error) => {
                    // It comes after what was run.
                    self.input.end();
                    self.input.error = Some(error);
                    return Ok(());
                }
            }
            py.check_signals()?;
        }
        Ok(())
    }
}
