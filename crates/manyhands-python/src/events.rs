//! Events as Python sees them, and those of tasks that run in this process.

use crate::once::intern;
use crate::outcome::cause_words;
use crate::{bystanders, hooks, local, process};
use manyhands_os::monotonic_nanos;
use manyhands_runtime::{Event, EventKind, Events, How, Label, Memory, Tasks, Who, Why};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// How many events are handed to Python at a time.
const PORTION: usize = 1000;
/// The longest wait for events at a time.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The events of a pool, for the one thread that takes them.
#[pyclass(name = "EventStream", module = "manyhands._core", frozen)]
pub(crate) struct EventStream {
    events: Arc<Events>,
    generation: u32,
}

#[pymethods]
impl EventStream {
    /// For up to `most` events that were not taken.
    #[new]
    fn new(most: usize) -> Self {
        Self {
            events: Events::new(most),
            generation: process::generation(),
        }
    }

    /// Waits for events, and takes some, as `manyhands.Event` has their fields; None once there will be no
    /// more.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Vec<Bound<'py, PyTuple>>>> {
        if self.generation != process::generation() {
            return Ok(None); // its lock may be held by a thread that is not there
        }
        let _inside = bystanders::enter(py)?;
        let taken = bystanders::detach(py, || self.events.take(PORTION, LONGEST_WAIT));
        let taken = taken.map(|events| events.iter().map(|event| fields(py, event)).collect());
        taken.transpose()
    }

    /// Nothing that comes from here on has to be told.
    fn finish(&self) {
        self.sink().finish();
    }

    /// How many were not taken.
    fn unread(&self) -> usize {
        if self.generation == process::generation() {
            self.events.unread()
        } else {
            0
        }
    }
}

impl EventStream {
    pub(crate) fn events(&self) -> Arc<Events> {
        self.events.clone()
    }

    pub(crate) fn sink(&self) -> Sink {
        Sink {
            events: self.events.clone(),
            generation: self.generation,
        }
    }
}

/// Where an engine in this process tells what happens. A child of fork tells its parent's listeners nothing.
#[derive(Clone)]
pub(crate) struct Sink {
    events: Arc<Events>,
    generation: u32,
}

impl Sink {
    pub(crate) fn push(&self, event: Event) {
        if self.generation == process::generation() {
            self.events.push(event);
        }
    }

    /// Nothing more will come.
    pub(crate) fn finish(&self) {
        if self.generation == process::generation() {
            self.events.finish();
        }
    }
}

/// The fields of an event, in the order of `manyhands.Event`.
fn fields<'py>(py: Python<'py>, event: &Event) -> PyResult<Bound<'py, PyTuple>> {
    let (kind, how, cause) = match event.kind {
        EventKind::Queued => (intern!(py, "queued"), None, None),
        EventKind::Started => (intern!(py, "started"), None, None),
        EventKind::Ended(how) => (intern!(py, "ended"), Some(how), None),
        EventKind::Retried(how) => (intern!(py, "retried"), Some(how), None),
        EventKind::Cancelled => (intern!(py, "cancelled"), None, None),
        EventKind::Born => (intern!(py, "born"), None, None),
        EventKind::Died(cause) => (intern!(py, "died"), None, Some(cause)),
        EventKind::Stopped => (intern!(py, "stopped"), None, None),
        EventKind::Left => (intern!(py, "left"), None, None),
        EventKind::Recycled(_) => (intern!(py, "recycled"), None, None),
        EventKind::Stuck => (intern!(py, "stuck"), None, None),
        EventKind::Memory(_) => (intern!(py, "memory"), None, None),
        EventKind::Stalled => (intern!(py, "stalled"), None, None),
        EventKind::Dropped(_) => (intern!(py, "dropped"), None, None),
    };
    let (outcome, cause) = match how {
        None => (None, cause),
        Some(How::Value) => (Some(intern!(py, "ok")), None),
        Some(How::Error) => (Some(intern!(py, "error")), None),
        Some(How::TimedOut) => (Some(intern!(py, "timeout")), None),
        Some(How::OverMemory(_)) => (Some(intern!(py, "memory")), None),
        Some(How::Died(cause)) => (Some(intern!(py, "died")), Some(cause)),
        Some(How::NotRun) => (Some(intern!(py, "not run")), None),
    };
    let cause = match event.kind {
        EventKind::Recycled(why) => Some(Ok(option_of(py, why))),
        EventKind::Memory(Memory::Short) => Some(Ok(intern!(py, "short").as_any().clone())),
        EventKind::Memory(Memory::Enough) => Some(Ok(intern!(py, "enough").as_any().clone())),
        _ => cause.map(|cause| hooks::manner(py)?.call1(cause_words(cause))),
    };
    let bytes = match (event.kind, how) {
        (EventKind::Memory(Memory::Has(bytes)), _) | (_, Some(How::OverMemory(bytes))) => {
            Some(bytes)
        }
        _ => None,
    };
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    let tasks = event.tasks.as_ref();
    let label = tasks
        .and_then(|tasks| tasks.label.as_ref())
        .map(Label::text);
    let count = match event.kind {
        EventKind::Dropped(count) => Some(count),
        _ => tasks.map(|tasks| tasks.count),
    };
    let map = tasks.map(|tasks| tasks.map).filter(|&map| map > 0);
    let attempt = tasks
        .map(|tasks| tasks.attempt)
        .filter(|&attempt| attempt > 0);
    let who = event.who;
    let fields = [
        kind.as_any().clone(),
        seconds(event.wall).into_bound_py_any(py)?,
        seconds(event.at).into_bound_py_any(py)?,
        label.into_bound_py_any(py)?,
        tasks.map(|tasks| tasks.index).into_bound_py_any(py)?,
        count.into_bound_py_any(py)?,
        map.into_bound_py_any(py)?,
        attempt.into_bound_py_any(py)?,
        outcome.into_bound_py_any(py)?,
        event.nanos.map(seconds).into_bound_py_any(py)?,
        cause.transpose()?.into_bound_py_any(py)?,
        bytes.into_bound_py_any(py)?,
        who.and_then(|who| who.slot).into_bound_py_any(py)?,
        who.map(|who| who.pid).into_bound_py_any(py)?,
        who.map(|who| who.generation).into_bound_py_any(py)?,
    ];
    PyTuple::new(py, fields)
}

/// The option of `manyhands.Pool` by which a worker gave way.
fn option_of(py: Python<'_>, why: Why) -> Bound<'_, PyAny> {
    let option = match why {
        Why::Tasks => intern!(py, "recycle_after_tasks"),
        Why::Memory => intern!(py, "recycle_rss"),
        Why::Age => intern!(py, "recycle_age"),
    };
    option.as_any().clone()
}

/// Whoever of this process runs tasks.
pub(crate) fn here(slot: Option<u32>) -> Who {
    Who {
        slot,
        pid: std::process::id().cast_signed(),
        generation: 1,
    }
}

/// What a function is called, for events.
#[cold]
pub(crate) fn label_of(function: &Bound<'_, PyAny>) -> Option<Label> {
    Some(Label::Text(Arc::from(local::label_of(function))))
}

/// Tells what becomes of a task, or an item, that runs in this process. Of its end it tells once: whoever says
/// first how it ended is right, and nothing more is told then.
pub(crate) struct Told {
    sink: Sink,
    who: Who,
    tasks: Tasks,
    // Relaxed, all of them: they change with the GIL.
    attempt: AtomicU8,
    since: AtomicU64,
    is_over: AtomicBool,
}

impl Told {
    /// Says that it starts.
    #[cold]
    pub(crate) fn start(sink: Sink, who: Who, tasks: Tasks) -> Self {
        let told = Self {
            sink,
            who,
            tasks,
            attempt: AtomicU8::new(0),
            since: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        };
        told.starts();
        told
    }

    #[cold]
    fn say(&self, kind: EventKind, nanos: Option<u64>) {
        let mut tasks = self.tasks.clone();
        tasks.attempt = self.attempt.load(Ordering::Relaxed);
        let mut event = Event::now(kind, Some(self.who), Some(tasks));
        event.nanos = nanos;
        self.sink.push(event);
    }

    fn nanos(&self) -> Option<u64> {
        Some(monotonic_nanos().saturating_sub(self.since.load(Ordering::Relaxed)))
    }

    /// Its number in its map, or in the pool.
    pub(crate) fn index(&self) -> u64 {
        self.tasks.index
    }

    /// A run starts.
    pub(crate) fn starts(&self) {
        if self.is_over.load(Ordering::Relaxed) {
            return;
        }
        let attempt = self.attempt.load(Ordering::Relaxed).saturating_add(1);
        self.attempt.store(attempt, Ordering::Relaxed);
        self.since.store(monotonic_nanos(), Ordering::Relaxed);
        self.say(EventKind::Started, None);
    }

    /// A run has come to this, and another is to follow.
    pub(crate) fn runs_again(&self, how: How) {
        if !self.is_over.load(Ordering::Relaxed) {
            self.say(EventKind::Retried(how), self.nanos());
        }
    }

    /// It has ended so, or was cancelled while it ran.
    pub(crate) fn ends(&self, kind: EventKind) {
        if !self.is_over.swap(true, Ordering::Relaxed) {
            self.say(kind, self.nanos());
        }
    }
}
