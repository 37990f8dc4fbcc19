//! The worker's and the zygote's side in Python.

use crate::calls::{self, HIDE_ARGS, Item};
use crate::capture::Capturing;
use crate::codec::{Decoder, Encoder};
use crate::context::TaskContext;
use crate::in_place::{self, Found};
use crate::local::{self, Kind};
use crate::needs;
use crate::nested;
use crate::notices;
use crate::octets;
use crate::output;
use crate::pickle::{self, Dumped};
use crate::seeds;
use crate::store::{self, Exported};
use manyhands_os::monotonic_nanos;
use manyhands_runtime::{
    Birth, Buffer, Claimed, Next, Request, ResultKind, Section, StopWord, TaskKind, Unreadable,
    Unwanted, WorkerEnd, Zygote,
};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// A worker that is wanted.
#[pyclass(name = "Birth", module = "manyhands._core", frozen)]
pub(crate) struct PyBirth {
    key: manyhands_runtime::WorkerKey,
    content: Vec<u8>,
    birth: Mutex<Option<Birth>>,
}

#[pymethods]
impl PyBirth {
    /// What the parent said workers find at their birth.
    #[getter]
    fn content<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.content)
    }

    /// The worker's slot in its pool.
    #[getter]
    fn slot(&self) -> u32 {
        self.key.slot
    }
}

/// The process that forks workers.
#[pyclass(name = "Zygote", module = "manyhands._core")]
pub(crate) struct PyZygote {
    zygote: Option<Zygote>,
}

impl PyZygote {
    fn zygote(&mut self) -> PyResult<&mut Zygote> {
        self.zygote
            .as_mut()
            .ok_or_else(|| PyRuntimeError::new_err("this is no zygote any more"))
    }
}

#[pymethods]
impl PyZygote {
    /// Takes the two descriptors that the program was started with.
    #[new]
    fn new(socket: i32, life_line: i32, version: u32) -> PyResult<Self> {
        // SAFETY: the parent handed these two down to this process, and nobody else uses them.
        let (socket, life_line) = unsafe {
            (
                OwnedFd::from_raw_fd(socket),
                OwnedFd::from_raw_fd(life_line),
            )
        };
        Ok(Self {
            zygote: Some(Zygote::new(socket, life_line, version)?),
        })
    }

    /// Waits for a request: ("preload", names, content), ("fork", birth), ("become", birth), or
    /// None at the end.
    fn next<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let wrap = |birth: Birth| {
            let (key, content) = (birth.key, birth.content.clone());
            Py::new(
                py,
                PyBirth {
                    key,
                    content,
                    birth: Mutex::new(Some(birth)),
                },
            )
        };
        Ok(match self.zygote()?.next_request()? {
            Request::Preload(names, content) => {
                Some(("preload", names, PyBytes::new(py, &content)).into_pyobject(py)?)
            }
            Request::Fork(birth) => Some(("fork", wrap(birth)?).into_pyobject(py)?),
            Request::Become(birth) => Some(("become", wrap(birth)?).into_pyobject(py)?),
            Request::End => None,
        })
    }

    /// Reports a worker that was forked.
    fn forked(&mut self, birth: &PyBirth, pid: i32) -> PyResult<()> {
        Ok(self.zygote()?.forked(birth.key, pid)?)
    }

    /// Reports a worker that could not be forked.
    fn not_forked(&mut self, birth: &PyBirth, why: &str) -> PyResult<()> {
        Ok(self.zygote()?.not_forked(birth.key, why)?)
    }

    /// Reports what preloading did.
    fn preloaded(&mut self, failures: &str) -> PyResult<()> {
        Ok(self.zygote()?.preloaded(failures)?)
    }

    /// In a forked worker: lets go of what is the zygote's.
    fn abandon(&mut self) {
        self.zygote = None;
    }

    /// Becomes a worker instead of forking one.
    fn become_worker(&mut self, birth: &PyBirth) -> PyResult<()> {
        let zygote = self
            .zygote
            .take()
            .ok_or_else(|| PyRuntimeError::new_err("no zygote"))?;
        let socket = zygote.become_worker(birth.key)?;
        // Open until the process ends: that is how the parent hears of it.
        std::mem::forget(socket);
        Ok(())
    }
}

/// A definition as a worker keeps it.
enum Known {
    /// What it needs, its bytes, and the buffers that they speak of.
    Bytes(Vec<u32>, Vec<u8>, Vec<Buffer>),
    Loaded(Py<PyAny>),
}

/// What is said of a write to what was put.
const LOCKED: &str = "manyhands: what put() made is one memory for all who have it, and read-only: take .copy() of \
    it to change it, or make it with share() for all to write to";

/// What an error message may show of a call.
#[derive(Default)]
struct Shown<'py> {
    function: Option<Bound<'py, PyAny>>,
    call: Option<(Bound<'py, PyTuple>, Option<Bound<'py, PyDict>>)>,
}

/// A definition, the one of the context that it ran in, or 0, and what was called.
struct Last<'py> {
    definition: u32,
    context: u32,
    function: Bound<'py, PyAny>,
}

struct Worker<'py> {
    py: Python<'py>,
    /// Which fork this worker is; a child that a task forks is another.
    generation: u32,
    end: WorkerEnd,
    known: HashMap<u32, Known>,
    /// What ran last, which most tasks run again.
    last: Option<Last<'py>>,
    load: Bound<'py, PyAny>,
    dumps: Bound<'py, PyAny>,
    encode_error: Bound<'py, PyAny>,
    idle: Bound<'py, PyAny>,
    out: Vec<u8>,
    /// What came read-only with the task that ran last.
    came_locked: Vec<store::ReadOnly>,
    /// Those of the result in `out`.
    found: Vec<Found>,
    /// The definition that runs.
    running: Option<u32>,
    /// The lengths of the large buffers of its result, and of those of all.
    returned: Vec<usize>,
    sizes: in_place::Sizes,
    retry: Retrying,
    /// What the random streams of what runs come from, if it has a seed.
    seed: Option<Vec<u8>>,
    capture: Capturing,
    /// Whether what ran last had one.
    was_seeded: bool,
    block: OpenBlock<'py>,
    decoder: Decoder,
    encoder: Encoder,
}

/// Whether what runs may run again if it fails.
#[derive(Default)]
struct Retrying {
    may: bool,
    /// The definition that is asked after which failures; without one it is after each.
    policy: Option<u32>,
    /// Whether it has yielded something: then it may not.
    has_yielded: bool,
}

/// What the items of the block that is open have in common.
#[derive(Default)]
struct OpenBlock<'py> {
    /// What they run; none if that cannot be had, with the reason beside.
    function: Option<Bound<'py, PyAny>>,
    problem: Option<Py<PyAny>>,
    hide_args: bool,
    attempt: u8,
}

/// From so many bytes, or values, on it is looked how long it takes to read arguments, or to write a result.
const LONG: usize = 16 * 1024;
const MANY: isize = 256;

/// Says whether what runs is to end; set once, by the worker.
static STOP: OnceLock<StopWord> = OnceLock::new();
/// The number of what runs, while code of the user's does; else `NOTHING_RUNS`.
static RUNNING: AtomicU64 = AtomicU64::new(NOTHING_RUNS);
const NOTHING_RUNS: u64 = u64::MAX;

/// While it lives a signal may end what runs.
struct MayStop;

impl MayStop {
    #[inline]
    fn new(end: &WorkerEnd) -> Self {
        // Relaxed, here and below: written and read by one thread, in between of a signal's handler.
        let number = end.number().map_or(NOTHING_RUNS, u64::from);
        RUNNING.store(number, Ordering::Relaxed);
        Self
    }
}

impl Drop for MayStop {
    #[inline]
    fn drop(&mut self) {
        RUNNING.store(NOTHING_RUNS, Ordering::Relaxed);
    }
}

/// Whether the task that runs is to end; said once of each, which may clean up then. Asked by the
/// handler of a signal, which may come late, and more than once.
#[pyfunction]
pub(crate) fn is_to_stop() -> bool {
    static TOLD: AtomicU64 = AtomicU64::new(NOTHING_RUNS);
    let running = RUNNING.load(Ordering::Relaxed);
    let is_named = match (u32::try_from(running), STOP.get()) {
        (Ok(number), Some(word)) => word.names(number),
        _ => false,
    };
    // Numbers come again, but not while they are named.
    if !is_named {
        TOLD.store(NOTHING_RUNS, Ordering::Relaxed);
    }
    is_named && TOLD.swap(running, Ordering::Relaxed) != running
}

/// Runs tasks until the parent says to leave.
#[pyfunction]
pub(crate) fn run_worker(py: Python<'_>, birth: &PyBirth) -> PyResult<()> {
    let taken = birth
        .birth
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let taken = taken.ok_or_else(|| PyValueError::new_err("this worker was born already"))?;
    let end = WorkerEnd::new(taken, manyhands_os::cpu_count())?;
    let _first = STOP.set(end.stop_word());
    nested::set_caller(end.caller());
    set_share(py, &end)?;
    store::set_views(end.views());
    answer_dumps(py, &end)?;
    output::begin(py, &end, &birth.content)?;
    let resolve = py.import("manyhands._resolve")?;
    let worker = py.import("manyhands._worker")?;
    Worker {
        py,
        generation: crate::process::generation(),
        end,
        known: HashMap::new(),
        last: None,
        load: resolve.getattr("load")?,
        dumps: resolve.getattr("dumps")?,
        encode_error: worker.getattr("encode_error")?,
        idle: worker.getattr("idle")?,
        out: Vec::new(),
        came_locked: Vec::new(),
        found: Vec::new(),
        running: None,
        returned: Vec::new(),
        sizes: in_place::Sizes::default(),
        retry: Retrying::default(),
        seed: None,
        capture: Capturing::default(),
        was_seeded: false,
        block: OpenBlock::default(),
        decoder: Decoder::default(),
        encoder: Encoder::default(),
    }
    .run()
}

/// What is a worker's of the processors: this process divides it, and its libraries get as many threads.
fn set_share(py: Python<'_>, end: &WorkerEnd) -> PyResult<()> {
    let share = end.share();
    crate::process::set_cpu_share(share.count);
    let worker = py.import("manyhands._worker")?;
    worker.call_method1("take_share", (share.count, share.is_given))?;
    Ok(())
}

/// Has the interpreter write its stacks when the parent asks for them. Where something that was preloaded
/// handles the signal it stays with that, and the parent hears nothing.
fn answer_dumps(py: Python<'_>, end: &WorkerEnd) -> PyResult<()> {
    let signal = manyhands_os::dump_signal();
    if !manyhands_os::is_unhandled(signal) {
        return Ok(());
    }
    let descriptor = end.dump_descriptor().as_raw_fd();
    let worker = py.import("manyhands._worker")?;
    worker.call_method1("write_stacks", (signal, descriptor))?;
    end.answer_dumps(trip)?;
    Ok(())
}

/// Has the interpreter call its own handler of the signal, `resume_dump`, before its next step of Python code.
fn trip() -> bool {
    // SAFETY: it may be called in a signal's handler, and without the GIL.
    unsafe { pyo3::ffi::PyErr_SetInterruptEx(manyhands_os::dump_signal()) == 0 }
}

/// The interpreter's handler of the signal by which stacks are asked for. No frame of it is in what it has written.
#[pyfunction]
#[pyo3(signature = (_number, _frame))]
pub(crate) fn resume_dump(_number: i32, _frame: Option<Bound<'_, PyAny>>) {
    manyhands_runtime::resume_dump();
}

impl Retrying {
    fn of(claimed: &Claimed) -> Self {
        Self {
            may: claimed.may_run_again(),
            policy: None,
            has_yielded: false,
        }
    }
}

impl<'py> Worker<'py> {
    fn run(mut self) -> PyResult<()> {
        loop {
            match self.end.claim() {
                None => {
                    // Whatever the task left to the interpreter; the parent has its result already.
                    self.idle.call0()?;
                    let end = &mut self.end;
                    end.tell_all();
                    self.py.detach(|| end.wait());
                    if let Err(error) = self.py.check_signals() {
                        // A signal between two tasks is meant for none of them.
                        error.write_unraisable(self.py, None);
                    }
                }
                Some(Next::Item) => self.serve_item()?,
                Some(Next::Record(Ok(claimed))) if claimed.kind == TaskKind::Block => {
                    self.open_block(claimed);
                    self.serve_item()?;
                }
                Some(Next::Record(Ok(claimed))) if claimed.kind == TaskKind::Exit => return Ok(()),
                Some(Next::Record(Ok(claimed))) if claimed.kind == TaskKind::Discard => {
                    self.close_block();
                    self.take_in(&claimed)?;
                    self.end.discard(&claimed)?;
                }
                Some(Next::Record(claimed)) => {
                    self.close_block();
                    let initializes = claimed
                        .as_ref()
                        .is_ok_and(|claimed| claimed.kind == TaskKind::Initialize);
                    let succeeded = self.serve(claimed)?;
                    if initializes && !succeeded {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The block that was open has ended: what it ran may carry much, and be gone for the parent.
    fn close_block(&mut self) {
        if self.block.function.is_some() {
            self.block = OpenBlock::default();
        }
    }

    /// Takes in what came with a record that runs nothing.
    fn take_in(&mut self, claimed: &Claimed) -> PyResult<()> {
        let (known, last) = (&mut self.known, &mut self.last);
        let (mut needs, mut retry) = (Vec::new(), Retrying::default());
        let (mut buffers, mut seed) = (Vec::new(), None);
        let visit = |section: Section<'_>| {
            learn(
                known,
                last,
                &mut needs,
                &mut retry,
                &mut seed,
                &mut buffers,
                section,
            );
        };
        match self.end.payload(claimed, visit) {
            Ok(_nothing) => Ok(()),
            Err(Unreadable(why)) => Err(PyRuntimeError::new_err(why)),
        }
    }

    /// Makes ready what the items of a block run.
    fn open_block(&mut self, claimed: Claimed) {
        self.decoder.forget_classes();
        self.encoder = Encoder::default();
        let (definition, context) = (claimed.definition, claimed.context);
        let attempt = claimed.attempt;
        self.running = Some(definition);
        seeds::pause(self.was_seeded);
        let hide_args = claimed.tag & HIDE_ARGS != 0;
        nested::set_hides(hide_args);
        let mut needs = Vec::new();
        self.retry = Retrying::of(&claimed);
        self.seed = None;
        let (known, last, retry) = (&mut self.known, &mut self.last, &mut self.retry);
        let seed = &mut self.seed;
        // Blocks have none: what comes is released.
        let mut buffers = Vec::new();
        let opened = self.end.open_block(claimed, |section| {
            learn(known, last, &mut needs, retry, seed, &mut buffers, section);
        });
        self.capture.take_key(&mut self.seed);
        let function = match opened {
            Ok(()) => resolve_all(self.py, &mut self.known, &self.load, needs)
                .and_then(|()| self.function(definition, context)),
            Err(Unreadable(why)) => Err(PyRuntimeError::new_err(why)),
        };
        let (function, problem) = match function {
            Ok(function) => (Some(function), None),
            Err(error) => (None, Some(error.into_value(self.py).into_any())),
        };
        self.block = OpenBlock {
            function,
            problem,
            hide_args,
            attempt,
        };
    }

    fn resolve(&mut self, id: u32) -> PyResult<Bound<'py, PyAny>> {
        resolve(self.py, &mut self.known, &self.load, id)
    }

    /// What a task calls that runs a definition.
    fn function(&mut self, definition: u32, context: u32) -> PyResult<Bound<'py, PyAny>> {
        if let Some(last) = &self.last
            && (last.definition, last.context) == (definition, context)
        {
            return Ok(last.function.clone());
        }
        let function = self.resolve(definition)?;
        let function = self.in_context(context, function)?;
        self.last = Some(Last {
            definition,
            context,
            function: function.clone(),
        });
        Ok(function)
    }

    fn in_context(
        &mut self,
        context: u32,
        function: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if context == 0 {
            return Ok(function);
        }
        let context = self.resolve(context)?.cast_into::<TaskContext>()?;
        context.get().around(&function)
    }

    /// Runs one item of the open block and publishes what it came to. On the usual way results and errors are in
    /// registers: copies of a `PyResult` are a good part of what a short item costs.
    #[inline]
    fn serve_item(&mut self) -> PyResult<()> {
        let item = match self.take_item() {
            Ok(item) => item,
            Err(error) => return self.fail_item(*error, None, false),
        };
        let Some(value) = self.call_item(&item) else {
            let error = PyErr::fetch(self.py);
            if crate::process::generation() != self.generation {
                self.end_forked_child(Err(error))?;
                return Ok(());
            }
            return self.fail_item(error, Some(item), true);
        };
        if crate::process::generation() != self.generation {
            self.end_forked_child(Ok(value))?;
            return Ok(());
        }
        // What a generator raises is the function's; what cannot be sent will not do so later.
        let may_again = is_generator(&value);
        match self.publish_item(value) {
            Ok(()) => Ok(()),
            Err(error) => self.fail_item(error, Some(item), may_again),
        }
    }

    /// Publishes that an item has failed.
    #[cold]
    fn fail_item(
        &mut self,
        error: PyErr,
        item: Option<Item<'py>>,
        may_again: bool,
    ) -> PyResult<()> {
        let call = item
            .filter(|_| !self.block.hide_args)
            .map(|item| match item {
                Item::One(item) => (PyTuple::new(self.py, [item]), None),
                Item::Star(args) => (Ok(args), None),
            });
        let call = match call {
            Some((Ok(args), none)) => Some((args, none)),
            _ => None,
        };
        let function = self.block.function.clone();
        let index = self.end.item_index();
        let shown = Shown { function, call };
        self.fail(error, shown, index, self.block.attempt, may_again)
    }

    /// Makes ready the item that was claimed.
    #[inline]
    fn take_item(&mut self) -> Result<Item<'py>, Box<PyErr>> {
        let py = self.py;
        if self.block.function.is_none() {
            return Err(Box::new(self.no_function()));
        }
        seeds::pause(self.was_seeded);
        if let Some(definition) = self.running {
            self.sizes.ask(py, &mut self.end, definition);
        }
        let (tag, bytes) = self
            .end
            .item()
            .map_err(|Unreadable(why)| PyRuntimeError::new_err(why))?;
        let is_long = bytes.len() >= LONG;
        let since = if is_long { monotonic_nanos() } else { 0 };
        let item = calls::decode_item(py, &mut self.decoder, tag, bytes)?;
        if is_long {
            self.end.add_transfer(monotonic_nanos() - since);
        }
        if self.was_seeded || self.seed.is_some() {
            let (index, seed) = (self.end.item_index(), self.seed.as_deref());
            seeds::take(py, seed, &mut self.was_seeded, index)?;
        }
        if self.capture.is_wanted() {
            let (index, slot) = (self.end.item_index(), self.end.slot());
            self.capture.begin(py, index, slot)?;
        }
        Ok(item)
    }

    #[cold]
    fn no_function(&self) -> PyErr {
        let problem = self.block.problem.as_ref();
        problem.map_or_else(
            || PyRuntimeError::new_err("no block is open"),
            |problem| PyErr::from_value(problem.bind(self.py).clone()),
        )
    }

    /// What the function of the block returns; none if it raises something, which is set then.
    #[inline]
    fn call_item(&self, item: &Item<'py>) -> Option<Bound<'py, PyAny>> {
        let function = self.block.function.as_ref()?;
        let _may_stop = MayStop::new(&self.end);
        // SAFETY: live objects, and a new reference or an exception. Unlike a call with a tuple
        // that with one argument makes none.
        let answer = unsafe {
            let answer = match item {
                Item::One(arg) => ffi::PyObject_CallFunctionObjArgs(
                    function.as_ptr(),
                    arg.as_ptr(),
                    std::ptr::null_mut::<ffi::PyObject>(),
                ),
                Item::Star(args) => ffi::PyObject_CallObject(function.as_ptr(), args.as_ptr()),
            };
            Bound::from_owned_ptr_or_opt(self.py, answer)
        };
        if nested::any_open() {
            return self.settle_item(answer);
        }
        answer
    }

    /// As `nested::settle`, of an item.
    #[cold]
    fn settle_item(&self, answer: Option<Bound<'py, PyAny>>) -> Option<Bound<'py, PyAny>> {
        let answer = answer.ok_or_else(|| PyErr::fetch(self.py));
        match nested::settle(self.py, answer) {
            Ok(value) => Some(value),
            Err(error) => {
                error.restore(self.py);
                None
            }
        }
    }

    /// Publishes what an item returned, or one after another what it yields.
    #[inline]
    fn publish_item(&mut self, value: Bound<'py, PyAny>) -> PyResult<()> {
        if is_generator(&value) {
            return self.publish_yielded(&value, false);
        }
        let tag = self.encode_with(&value)?;
        drop(value);
        self.finish_item(tag, false)
    }

    #[inline]
    fn finish_item(&mut self, tag: u8, more: bool) -> PyResult<()> {
        let sent = self.publish(tag, more, true);
        sent.map_err(|error| {
            let size = self.out.len();
            PyRuntimeError::new_err(format!(
                "the result of {size} bytes could not be sent: {error}"
            ))
        })
    }

    /// Publishes what a generator yields as it comes; `alone` if it is of a task and not of a block.
    #[cold]
    fn publish_yielded(&mut self, generator: &Bound<'py, PyAny>, alone: bool) -> PyResult<()> {
        let mut values = generator.try_iter()?;
        loop {
            let value = {
                let _may_stop = MayStop::new(&self.end);
                values.next()
            };
            let Some(value) = value else { break };
            let value = value?;
            if crate::process::generation() != self.generation {
                self.end_forked_child(Ok(value))?;
                return Ok(());
            }
            let tag = self.encode_with(&value)?;
            drop(value);
            if let Some(why) = self.end.unwanted() {
                // It hears that as it does when it is dropped.
                generator.call_method0("close")?;
                match why {
                    Unwanted::Dropped | Unwanted::Stopped => break,
                    Unwanted::NoRoom => return Err(local::left()),
                }
            }
            self.retry.has_yielded = true;
            if alone {
                self.publish(tag, true, false)?;
            } else {
                self.finish_item(tag, true)?;
            }
        }
        self.clear();
        if alone {
            self.publish(calls::NOTHING, false, false)?;
            return Ok(());
        }
        self.finish_item(calls::NOTHING, false)
    }

    /// Runs one task and publishes what it came to; whether it returned.
    fn serve(&mut self, claimed: Result<Claimed, Unreadable>) -> PyResult<bool> {
        let (mut index, mut attempt, mut tag) = (0, 1, HIDE_ARGS);
        let mut shown = Shown::default();
        let mut is_streamed = false;
        let outcome = match claimed {
            Ok(claimed) => {
                (index, attempt, tag) = (claimed.index, claimed.attempt, claimed.tag);
                nested::set_hides(tag & HIDE_ARGS != 0);
                is_streamed = claimed.is_streamed();
                self.execute(&claimed, &mut shown)
            }
            Err(Unreadable(why)) => Err(PyRuntimeError::new_err(why)),
        };
        if crate::process::generation() != self.generation {
            return self.end_forked_child(outcome);
        }
        if is_streamed
            && let Ok(value) = &outcome
            && is_generator(value)
        {
            return match self.publish_yielded(value, true) {
                Ok(()) => Ok(true),
                Err(error) => {
                    self.fail(error, shown, index, attempt, true)?;
                    Ok(false)
                }
            };
        }
        self.encoder = Encoder::default();
        let may_again = outcome.is_err() && shown.function.is_some();
        let outcome = outcome.and_then(|value| self.encode_with(&value));
        match outcome {
            Ok(result_tag) => match self.publish(result_tag, false, false) {
                Ok(()) => Ok(true),
                Err(error) => {
                    let size = self.out.len();
                    let why = format!("the result of {size} bytes could not be sent: {error}");
                    self.fail(
                        PyRuntimeError::new_err(why),
                        Shown::default(),
                        index,
                        attempt,
                        false,
                    )?;
                    Ok(false)
                }
            },
            Err(error) => {
                if tag & HIDE_ARGS != 0 {
                    shown.call = None;
                }
                self.fail(error, shown, index, attempt, may_again)?;
                Ok(false)
            }
        }
    }

    /// This process is a child that the task forked, and came back from the task: it ends here, since
    /// the worker's memory is its parent's.
    #[cold]
    fn end_forked_child(&self, outcome: PyResult<Bound<'py, PyAny>>) -> PyResult<bool> {
        let error = outcome.err().map(|error| error.into_value(self.py));
        let end = self
            .py
            .import("manyhands._worker")?
            .getattr("end_forked_child")?;
        end.call1((error,))?;
        Ok(false)
    }

    fn execute(
        &mut self,
        claimed: &Claimed,
        shown: &mut Shown<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut needs = Vec::new();
        seeds::pause(self.was_seeded);
        self.retry = Retrying::of(claimed);
        self.seed = None;
        let (known, last, retry) = (&mut self.known, &mut self.last, &mut self.retry);
        let seed = &mut self.seed;
        let mut buffers = Vec::new();
        let bytes = self
            .end
            .payload(claimed, |section| {
                learn(known, last, &mut needs, retry, seed, &mut buffers, section);
            })
            .map_err(|Unreadable(why)| PyRuntimeError::new_err(why))?;
        self.capture.take_key(&mut self.seed);
        resolve_all(self.py, known, &self.load, needs)?;
        let is_long = bytes.len() >= LONG || !buffers.is_empty();
        let since = if is_long { monotonic_nanos() } else { 0 };
        let views = store::views(self.py, &buffers)?;
        self.came_locked = store::read_only(&views);
        drop(buffers);
        let (own, args, kwargs) = calls::decode_call(self.py, claimed.tag, bytes, views)?;
        if is_long {
            self.end.add_transfer(monotonic_nanos() - since);
        }
        let function = match own {
            Some(function) => {
                self.running = None;
                self.in_context(claimed.context, function)?
            }
            None => {
                let definition = claimed.definition;
                self.running = Some(definition);
                self.sizes.ask(self.py, &mut self.end, definition);
                self.function(definition, claimed.context)?
            }
        };
        let seed = self.seed.as_deref();
        seeds::take(self.py, seed, &mut self.was_seeded, claimed.index)?;
        let slot = self.end.slot();
        self.capture.begin(self.py, claimed.index, slot)?;
        let answer = {
            let _may_stop = MayStop::new(&self.end);
            let answer = function.call(&args, kwargs.as_ref());
            let answer = match answer {
                Ok(value) if claimed.is_gathered() && is_generator(&value) => gather(&value),
                answer => answer,
            };
            nested::settle(self.py, answer)
        };
        match answer {
            Ok(value) => Ok(value),
            Err(error) => {
                *shown = Shown {
                    function: Some(function),
                    call: Some((args, kwargs)),
                };
                Err(error)
            }
        }
    }

    /// There is no result.
    fn clear(&mut self) {
        self.out.clear();
        self.found.clear();
        self.returned.clear();
    }

    /// Puts the value into `out`; its tag.
    #[inline]
    fn encode_with(&mut self, value: &Bound<'py, PyAny>) -> PyResult<u8> {
        self.clear();
        if notices::any() && !value.is_instance_of::<Gathered>() {
            return self.encode_noticed(value);
        }
        let is_long = is_long(value);
        if is_long {
            self.end.begin_transfer();
        }
        if self.encoder.encode(value, &mut self.out) {
            return Ok(calls::PLAIN);
        }
        self.out.clear();
        if !is_long {
            self.end.begin_transfer();
        }
        if let Ok(gathered) = value.cast::<Gathered>() {
            let list = gathered.get().0.bind(self.py).clone();
            return Ok(self.encode_with(list.as_any())? | calls::GATHERED);
        }
        let value = &octets::of_value(value)?;
        let dumped = needs::returning(|| pickle::dumps_apart(self.py, value, store::LARGE));
        let bytes = match dumped {
            Ok(Dumped { bytes, buffers }) => {
                self.returned.extend(buffers.iter().map(Exported::len));
                if let Some(found) = store::fill(&mut self.end, buffers)? {
                    self.found = found;
                    bytes
                } else {
                    // The store has no room.
                    store::check_memory(self.returned.iter().sum())?;
                    needs::returning(|| pickle::dumps(self.py, value))?
                }
            }
            Err(_) => needs::returning(|| self.dumps.call1((value,)))?.cast_into::<PyBytes>()?,
        };
        self.out.extend_from_slice(bytes.as_bytes());
        Ok(calls::PICKLE)
    }

    /// The same, with what is to be told before it.
    #[cold]
    fn encode_noticed(&mut self, value: &Bound<'py, PyAny>) -> PyResult<u8> {
        let notices = notices::take();
        let both = notices::with_value(self.py, &notices, value)?;
        let tag = self.encode_with(both.as_any());
        if tag.is_err() {
            notices::put_back(notices);
        }
        Ok(tag? | calls::NOTICED)
    }

    /// Publishes the result that is in `out`, whose object is gone, of an item of a block or of a task; `more` if that has not
    /// ended with it.
    #[inline]
    fn publish(&mut self, tag: u8, more: bool, of_block: bool) -> std::io::Result<()> {
        if !more {
            self.capture.end(self.py);
        }
        self.sizes.learn(self.running, &self.returned);
        if !self.found.is_empty() || in_place::any() {
            let filled = in_place::settle(std::mem::take(&mut self.found))?;
            if !filled.is_empty() {
                let (end, out) = (&mut self.end, &self.out);
                return end.finish_with_buffers(tag, out, filled, more);
            }
        }
        let (end, out) = (&mut self.end, &self.out);
        if of_block {
            end.finish_item(tag, out, more)
        } else {
            end.finish_part(ResultKind::Value, tag, out, more)
        }
    }

    /// Whether what failed with this is to run again, as far as the worker knows.
    fn is_to_run_again(&mut self, error: &PyErr) -> bool {
        let Retrying {
            may,
            policy,
            has_yielded,
        } = self.retry;
        if !may || has_yielded {
            return false;
        }
        let policy = policy.map(|id| resolve(self.py, &mut self.known, &self.load, id));
        local::has_again(self.py, error, policy)
    }

    /// Publishes a failure; with `may_again` it may be one after which to run again.
    fn fail(
        &mut self,
        error: PyErr,
        shown: Shown<'py>,
        index: u64,
        attempt: u8,
        may_again: bool,
    ) -> PyResult<()> {
        self.clear();
        // What has failed to be sent fails the task once.
        let _nothing = in_place::settle(Vec::new());
        let again = may_again && self.is_to_run_again(&error);
        self.capture.end(self.py);
        if store::any_used(&std::mem::take(&mut self.came_locked))
            && error.is_instance_of::<PyValueError>(self.py)
            && error.to_string().contains("read-only")
        {
            let value = error.value(self.py);
            value.call_method1("add_note", (LOCKED,))?;
        }
        let error = error.into_value(self.py);
        let slot = self.end.slot();
        let Shown { function, call } = shown;
        let encoded = self
            .encode_error
            .call1((error, function, call, index, attempt, slot))?;
        let encoded = encoded.cast_into::<PyBytes>()?;
        let sent = if again {
            self.end.fail_for_now(calls::PICKLE, encoded.as_bytes())
        } else {
            self.end
                .finish(ResultKind::Error, calls::PICKLE, encoded.as_bytes())
        };
        if let Err(error) = sent {
            // A long error that cannot be sent gives way to a short one, which always can.
            let short = PyRuntimeError::new_err(format!("the error could not be sent: {error}"));
            let (short, none) = (short.into_value(self.py), self.py.None());
            let encoded = self
                .encode_error
                .call1((short, &none, &none, index, attempt, slot))?;
            let encoded = encoded.cast_into::<PyBytes>()?;
            self.end
                .finish(ResultKind::Error, calls::PICKLE, encoded.as_bytes())?;
        }
        Ok(())
    }
}

/// All that a generator yields, as one value that says so.
#[cold]
fn gather<'py>(generator: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let values = generator.try_iter()?.collect::<PyResult<Vec<_>>>()?;
    let gathered = Bound::new(
        generator.py(),
        Gathered(PyList::new(generator.py(), values)?.unbind()),
    )?;
    Ok(gathered.into_any())
}

/// What a generator has yielded.
#[pyclass(module = "manyhands._core", frozen)]
struct Gathered(Py<PyList>);

/// Whether to write it may take so long that to look at the clock counts for nothing: pickles apart, of which
/// nobody knows.
#[inline]
fn is_long(value: &Bound<'_, PyAny>) -> bool {
    let object = value.as_ptr();
    // SAFETY: a live object of an attached thread, whose type is checked before its size is asked for.
    let len = unsafe {
        if ffi::PyLong_CheckExact(object) != 0 {
            0
        } else if ffi::PyList_CheckExact(object) != 0 {
            ffi::PyList_Size(object)
        } else if ffi::PyTuple_CheckExact(object) != 0 {
            ffi::PyTuple_Size(object)
        } else if ffi::PyDict_CheckExact(object) != 0 {
            ffi::PyDict_Size(object)
        } else {
            0
        }
    };
    len >= MANY
}

/// Whether what a task returned is to be taken from one by one.
#[inline]
fn is_generator(value: &Bound<'_, PyAny>) -> bool {
    local::kind_of(value) == Kind::Generator
}

/// Takes in what came with a task.
fn learn(
    known: &mut HashMap<u32, Known>,
    last: &mut Option<Last<'_>>,
    needs: &mut Vec<u32>,
    retry: &mut Retrying,
    seed: &mut Option<Vec<u8>>,
    buffers: &mut Vec<Buffer>,
    section: Section<'_>,
) {
    match section {
        Section::Define(id, needs, buffers, bytes) => {
            let buffers = buffers.into_iter().map(Buffer::leased).collect();
            known.insert(id, Known::Bytes(needs, bytes.to_vec(), buffers));
        }
        Section::Forget(ids) => {
            for id in ids {
                known.remove(&id);
                if let Some(found) = last
                    && [found.definition, found.context].contains(&id)
                {
                    *last = None;
                }
            }
        }
        Section::Needs(ids) => *needs = ids,
        Section::Retry(id) => retry.policy = Some(id),
        Section::Seed(bytes) => *seed = Some(bytes.to_vec()),
        Section::Buffers(found) => *buffers = found.into_iter().map(Buffer::leased).collect(),
    }
}

/// Makes ready what a task needs: bindings come before the arguments that name them.
fn resolve_all(
    py: Python<'_>,
    known: &mut HashMap<u32, Known>,
    load: &Bound<'_, PyAny>,
    needs: Vec<u32>,
) -> PyResult<()> {
    for id in needs {
        resolve(py, known, load, id)?;
    }
    Ok(())
}

fn resolve<'py>(
    py: Python<'py>,
    known: &mut HashMap<u32, Known>,
    load: &Bound<'py, PyAny>,
    id: u32,
) -> PyResult<Bound<'py, PyAny>> {
    let needs = match known.get(&id) {
        Some(Known::Loaded(object)) => return Ok(object.bind(py).clone()),
        Some(Known::Bytes(needs, ..)) => needs.clone(),
        None => Vec::new(),
    };
    for need in needs {
        resolve(py, known, load, need)?;
    }
    let Some(Known::Bytes(_, bytes, buffers)) = known.get(&id) else {
        return Err(PyRuntimeError::new_err(format!(
            "definition {id} never came"
        )));
    };
    // It stays unloaded if this fails: the next task that needs it fails alike, by itself.
    let views = store::views(py, buffers)?;
    let object = load.call1((PyBytes::new(py, bytes), views))?;
    known.insert(id, Known::Loaded(object.clone().unbind()));
    Ok(object)
}
