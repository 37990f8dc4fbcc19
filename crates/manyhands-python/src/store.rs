//! Large buffers: what goes to the store and not into a pickle, and how it looks to Python.
//!
//! Pickle protocol 5 hands buffers to a callback. Those that are large are kept out of the pickle: they
//! travel as references to blocks of the store. A buffer that is in the store already, in what a task was
//! given or has returned, is not copied as long as nobody has written to it.

use crate::in_place::{self, Found};
use crate::pickle::{self, Dumped};
use crate::{bystanders, hooks, octets, process};
use manyhands_runtime::{
    Buffer, Bytes, Filled, Hold, InFlight, NoRoom, View, Views, Waited, WorkerEnd, memory_in_band,
};
use pyo3::exceptions::{PyBufferError, PyMemoryError, PyRuntimeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyTuple};
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Buffers from this size on go to the store.
pub(crate) const LARGE: usize = 128 * 1024;
/// Buffers that are there already go by reference from this size on; shorter ones are copied sooner than
/// looked up.
const SMALLEST_PART: usize = 8 * 1024;
/// How often who waits for room looks for signals.
const LOOK_FOR_SIGNALS: Duration = Duration::from_millis(100);
/// So long who waits for room waits while nothing ends that makes some.
const PATIENCE: Duration = Duration::from_secs(5);
/// From this size on buffers are copied without Python's lock.
const LONG_COPY: usize = 1 << 20;

// ---- Out of a pickle ------------------------------------------------------------------------

/// The memory of a Python object, which stays where it is as long as this lives.
pub(crate) struct Exported(Box<ffi::Py_buffer>);

// SAFETY: the memory may be read from any thread; the export is released with Python attached, in `drop`.
unsafe impl Send for Exported {}
// SAFETY: as above.
unsafe impl Sync for Exported {}

impl Exported {
    fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut buffer = Box::new(ffi::Py_buffer::new());
        // SAFETY: a live object, and room for the answer.
        let answer = unsafe {
            ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut *buffer, ffi::PyBUF_ANY_CONTIGUOUS)
        };
        if answer != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        Ok(Self(buffer))
    }

    pub(crate) fn len(&self) -> usize {
        usize::try_from(self.0.len).unwrap_or(0)
    }

    pub(crate) fn address(&self) -> usize {
        self.0.buf.addr()
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.0.readonly == 0
    }

    fn bytes(&self) -> &[u8] {
        match NonNull::new(self.0.buf.cast::<u8>()) {
            // SAFETY: contiguous, and exported until drop. Who writes to it meanwhile, in another thread,
            // has asked for either content.
            Some(start) => unsafe { std::slice::from_raw_parts(start.as_ptr(), self.len()) },
            None => &[],
        }
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        // SAFETY: exported in `new`, released once, with Python attached.
        Python::attach(|_| unsafe { ffi::PyBuffer_Release(&raw mut *self.0) });
    }
}

/// What a pickler hands its buffers to.
#[pyclass(module = "manyhands._core", frozen)]
#[derive(Default)]
pub(crate) struct Collector {
    found: Mutex<Vec<Exported>>,
    /// From which size on it takes them.
    least: AtomicUsize,
}

#[pymethods]
impl Collector {
    /// Takes large ones.
    #[new]
    fn new() -> Self {
        let collector = Self::default();
        collector.set_least(LARGE);
        collector
    }

    /// What it was handed, for a definition: in the store, or as copies if that has no room.
    fn keep<'py>(&self, py: Python<'py>) -> PyResult<(Option<Stored>, Bound<'py, PyTuple>)> {
        let found = self.take();
        let is_there = |exported: &&Exported| viewed(exported).is_some_and(|found| is_here(&found));
        let copied = found.iter().filter(|exported| !is_there(exported));
        let copied = copied.map(|exported| exported.len() as u64).sum();
        if let Some(buffers) = hold_all(py, &found)? {
            let stored = (!buffers.is_empty()).then_some(Stored { buffers, copied });
            return Ok((stored, PyTuple::empty(py)));
        }
        let copies = found
            .iter()
            .map(|exported| PyByteArray::new(py, exported.bytes()));
        Ok((None, PyTuple::new(py, copies)?))
    }

    /// Whether the buffer is to stay in the pickle.
    fn __call__(&self, buffer: &Bound<'_, PyAny>) -> bool {
        // One that is not contiguous is refused by the pickler itself, in its own words.
        let Ok(exported) = Exported::new(buffer) else {
            return true;
        };
        let len = exported.len();
        // Relaxed: set by this thread.
        let least = self.least.load(Ordering::Relaxed);
        let stays = len < least && (len < SMALLEST_PART || viewed(&exported).is_none());
        if !stays {
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.push(exported);
        }
        stays
    }
}

impl Collector {
    /// From here on it takes what has at least so many bytes.
    pub(crate) fn set_least(&self, least: usize) {
        self.least.store(least, Ordering::Relaxed);
    }

    pub(crate) fn has_any(&self) -> bool {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        !found.is_empty()
    }

    /// Takes what it was handed.
    pub(crate) fn take(&self) -> Vec<Exported> {
        std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The buffers of arguments, and what of them is in flight.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) buffers: Vec<Buffer>,
    in_flight: Vec<InFlight>,
    spilled: Option<Spilled>,
}

impl Kept {
    /// These bytes, which speak of them.
    pub(crate) fn with(self, bytes: Bytes) -> Bytes {
        bytes.with_arguments(self.buffers, self.in_flight)
    }
}

/// The buffers in the store, copied there unless they are; none if there is no room, but memory to have them
/// in the message. Where there is no room, it `waits` for what is in flight, if that may be.
pub(crate) fn keep_all(
    py: Python<'_>,
    buffers: &[Exported],
    waits: bool,
) -> PyResult<Option<Kept>> {
    let mut kept = Kept::default();
    let bytes = buffers.iter().map(Exported::len).sum();
    for exported in buffers {
        if !keep(py, exported, bytes, waits, &mut kept)? {
            return Ok(None);
        }
    }
    if let Some(spilled) = kept.spilled.take() {
        spilled.tell(py, "arguments")?;
    }
    Ok(Some(kept))
}

/// The buffers as this worker was lent them; none if one of them is not, or was written to meanwhile.
pub(crate) fn hand_on(buffers: &[Exported]) -> Option<Kept> {
    let lent = |exported| viewed(exported).filter(is_lent);
    let buffers = buffers.iter().map(lent).collect::<Option<_>>()?;
    Some(Kept {
        buffers,
        ..Kept::default()
    })
}

/// Whether this worker was lent it: a task may have a pool of its own, whose store is not its parent's.
fn is_lent(buffer: &Buffer) -> bool {
    matches!(buffer.hold, Hold::Lease(_))
}

/// Whether it is in the store of this process: a worker, or a child that the program forked, may look at what is
/// in another's.
fn is_here(buffer: &Buffer) -> bool {
    matches!(&buffer.hold, Hold::Block(block) if block.is_of_this_process())
}

/// Adds a buffer, copied to the store unless it is there; false if there is no room, but memory to have all
/// of so many bytes in the message.
fn keep(
    py: Python<'_>,
    exported: &Exported,
    bytes: usize,
    waits: bool,
    kept: &mut Kept,
) -> PyResult<bool> {
    if let Some(buffer) = viewed(exported).filter(is_here) {
        kept.buffers.push(buffer);
        return Ok(true);
    }
    let supervisor = process::supervisor()?;
    let store = supervisor.store();
    let is_long = exported.len() >= LONG_COPY;
    let may_wait = is_long && hooks::may_wait(py)?.call0()?.is_truthy()?;
    let mut until = Instant::now() + PATIENCE;
    loop {
        let copy = || store.store_argument(exported.bytes(), may_wait, waits);
        let stored = if is_long {
            bystanders::detach(py, copy)
        } else {
            copy()
        };
        let full = match stored {
            Ok((block, in_flight)) => {
                if block.is_cold() {
                    supervisor.look_after_store();
                }
                kept.buffers
                    .push(Buffer::whole(block, exported.is_writable()));
                kept.in_flight.push(in_flight);
                return Ok(true);
            }
            Err(full) => full,
        };
        // What is in flight makes room in time; what is held does not, nor what came before in this object,
        // nor a task that ends only after this call.
        let waits = waits && may_wait && kept.in_flight.is_empty();
        let may_come = waits
            && match bystanders::detach(py, || store.wait_for_room(LOOK_FOR_SIGNALS)) {
                Waited::More => {
                    until = Instant::now() + PATIENCE;
                    true
                }
                Waited::NotYet => Instant::now() < until,
                Waited::Never => false,
            };
        if !may_come {
            if memory_in_band(bytes).is_ok() {
                return Ok(false);
            }
            let spilled = kept.spilled.get_or_insert_with(|| Spilled::new(full));
            let buffer = spilled.add(py, exported, exported.is_writable())?;
            kept.buffers.push(buffer);
            return Ok(true);
        }
        py.check_signals()?;
    }
}

/// The buffers that a definition speaks of, in the store.
#[pyclass(module = "manyhands._core", frozen)]
pub(crate) struct Stored {
    pub(crate) buffers: Vec<Buffer>,
    /// So many bytes were copied there for it.
    #[pyo3(get)]
    copied: u64,
}

impl Stored {
    /// Whether they are in the store of this process.
    pub(crate) fn are_here(buffers: &[Buffer]) -> bool {
        buffers.iter().all(is_here)
    }
}

/// The buffers in the store for as long as somebody holds them; none if there is no room, or if the store is
/// another process's, as a worker's is.
fn hold_all(py: Python<'_>, buffers: &[Exported]) -> PyResult<Option<Vec<Buffer>>> {
    if WORKERS.get().is_some() {
        return Ok(buffers.is_empty().then(Vec::new));
    }
    let mut held = Vec::with_capacity(buffers.len());
    for exported in buffers {
        match hold(py, exported, exported.is_writable())? {
            Ok(buffer) => held.push(buffer),
            Err(_full) => return Ok(None),
        }
    }
    Ok(Some(held))
}

/// The buffer in the store for as long as somebody holds it, copied there unless it is.
fn hold(
    py: Python<'_>,
    exported: &Exported,
    is_writable: bool,
) -> PyResult<Result<Buffer, NoRoom>> {
    if let Some(buffer) = viewed(exported).filter(is_here) {
        return Ok(Ok(Buffer {
            is_writable,
            ..buffer
        }));
    }
    let supervisor = process::supervisor()?;
    let stored = bystanders::detach(py, || supervisor.store().store(exported.bytes()));
    supervisor.look_after_store();
    Ok(stored.map(|block| Buffer::whole(block, is_writable)))
}

/// How many bytes of the store are in use, and how many may be.
#[pyfunction]
pub(crate) fn store_stats(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let stats = process::supervisor()?.store().stats();
    let answer = PyDict::new(py);
    answer.set_item("live", stats.live)?;
    answer.set_item("in_flight", stats.in_flight)?;
    answer.set_item("warm", stats.warm)?;
    answer.set_item("budget", stats.budget)?;
    answer.set_item("spilled", stats.spilled)?;
    Ok(answer)
}

/// Sets how many bytes of it may be in use.
#[pyfunction]
pub(crate) fn set_store_budget(bytes: u64) -> PyResult<()> {
    process::supervisor()?.store().set_budget(bytes);
    Ok(())
}

/// An equal object whose large buffers are in the store, where nobody writes to them.
#[pyfunction]
pub(crate) fn put_apart<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = value.py();
    let Dumped { bytes, buffers } =
        pickle::dumps_apart(py, &octets::of_locked(value)?, SMALLEST_PART)?;
    if WORKERS.get().is_some() {
        // The store is the parent's: what a task puts is in private memory.
        let copies = buffers
            .iter()
            .map(|exported| PyBytes::new(py, exported.bytes()));
        return pickle::loads_from(py, bytes.as_bytes(), PyList::new(py, copies)?);
    }
    let mut kept = Vec::with_capacity(buffers.len());
    let mut spilled = None;
    for exported in &buffers {
        kept.push(match hold(py, exported, false)? {
            Ok(buffer) => buffer,
            Err(full) => {
                let spilled = spilled.get_or_insert_with(|| Spilled::new(full));
                spilled.add(py, exported, false)?
            }
        });
    }
    if let Some(spilled) = spilled {
        spilled.tell(py, "put")?;
    }
    drop(buffers);
    pickle::loads(py, bytes.as_bytes(), views(py, &kept)?)
}

/// What of an object goes to disk.
struct Spilled {
    bytes: usize,
    /// Why the first of its buffers does not go to memory.
    full: NoRoom,
}

impl Spilled {
    fn new(full: NoRoom) -> Self {
        Self { bytes: 0, full }
    }

    /// A copy of the buffer, in a file in the temporary directory.
    fn add(&mut self, py: Python<'_>, exported: &Exported, is_writable: bool) -> PyResult<Buffer> {
        let no_room =
            |error: &dyn Display| PyMemoryError::new_err(format!("{}; and {error}", self.full));
        let directory = hooks::temporary_directory(py)?.call0();
        let directory: PathBuf = directory.map_err(|error| no_room(&error))?.extract()?;
        let supervisor = process::supervisor()?;
        let spill = || supervisor.store().spill(exported.bytes(), &directory);
        let block = bystanders::detach(py, spill).map_err(|error| no_room(&error))?;
        self.bytes += exported.len();
        Ok(Buffer::whole(block, is_writable))
    }

    /// Says so in the log.
    fn tell(self, py: Python<'_>, what: &str) -> PyResult<()> {
        let told = (what, self.bytes, self.full.to_string());
        hooks::tell_spilled(py)?.call1(told).map(drop)
    }
}

/// An error unless there is memory to send a result with so many bytes in buffers, for which the store has no room,
/// in the message.
pub(crate) fn check_memory(bytes: usize) -> PyResult<()> {
    memory_in_band(bytes).map_err(|left| {
        PyMemoryError::new_err(format!(
            "the result has {bytes} bytes in large buffers, for which the object store has no room: \
             to be sent without it they are copied, and the machine or the control group has only \
             {left} bytes left"
        ))
    })
}

/// The buffers of a result in the store, copied there unless they are; none if there is no room.
pub(crate) fn fill(end: &mut WorkerEnd, buffers: Vec<Exported>) -> PyResult<Option<Vec<Found>>> {
    let mut found = Vec::with_capacity(buffers.len());
    for exported in buffers {
        if let Some(buffer) = viewed(&exported).filter(is_lent) {
            found.push(Found::Filled(Filled::Came(buffer)));
            continue;
        }
        let exported = match in_place::find(exported, &found) {
            Ok(place) => {
                found.push(Found::InPlace(place));
                continue;
            }
            Err(exported) => exported,
        };
        let Some(room) = end.reserve(exported.len()) else {
            return Ok(None);
        };
        room.write(end.window(), exported.bytes())?;
        let filled = room.filled(0, exported.len(), exported.is_writable());
        found.push(Found::Filled(filled));
    }
    Ok(Some(found))
}

// ---- Into Python ----------------------------------------------------------------------------

/// A buffer that is in the store, as long as a Python object uses it.
pub(crate) struct Viewed {
    // First: what was written is let go of before the block is.
    view: View,
    buffer: Buffer,
    key: Key,
}

/// The views that there are, by their addresses.
static VIEWED: Mutex<BTreeMap<Key, (usize, Weak<Viewed>)>> = Mutex::new(BTreeMap::new());

/// Where a view begins, and a number that tells those apart which begin at one place.
type Key = (usize, usize);
/// How many.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// How many views that begin at or before an address are looked at.
const MOST_LOOKED_AT: usize = 32;

impl Viewed {
    fn new(view: View, buffer: Buffer) -> Arc<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        // Relaxed: only distinct numbers are wanted.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let key = (view.ptr().addr().get(), number);
        let viewed = Arc::new(Self { view, buffer, key });
        let mut all = VIEWED.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(key, (viewed.view.len(), Arc::downgrade(&viewed)));
        COUNT.store(all.len(), Ordering::Relaxed);
        viewed
    }
}

impl Drop for Viewed {
    fn drop(&mut self) {
        let mut all = VIEWED.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.key);
        COUNT.store(all.len(), Ordering::Relaxed);
    }
}

/// Whether the buffer is in the store, so that not its content is sent but where it is.
#[pyfunction]
pub(crate) fn is_stored(buffer: &Bound<'_, PyAny>) -> bool {
    Exported::new(buffer).is_ok_and(|exported| viewed(&exported).is_some())
}

/// The part of the store which that memory is, if it is one that nobody has written to. Who gets it may
/// write to it as whoever exported it may.
fn viewed(exported: &Exported) -> Option<Buffer> {
    // Relaxed: what the caller looks at was made before.
    if COUNT.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let (address, len) = (exported.address(), exported.len());
    let found = {
        let all = VIEWED.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = all
            .range(..=(address, usize::MAX))
            .rev()
            .take(MOST_LOOKED_AT);
        let (_, (_, viewed)) =
            before.find(|((start, _), (room, _))| address + len <= start + room)?;
        viewed.clone()
    };
    let found = found.upgrade()?;
    // If it cannot be told, it is copied.
    if !found.view.is_unchanged().unwrap_or(false) {
        return None;
    }
    let inside = address - found.key.0;
    Some(Buffer {
        start: found.buffer.start + inside,
        len,
        is_writable: exported.is_writable(),
        ..found.buffer.clone()
    })
}

/// Memory of the store, as Python sees it.
#[pyclass(module = "manyhands._core", frozen)]
pub(crate) struct StoredBuffer(Arc<Viewed>);

#[pymethods]
impl StoredBuffer {
    #[allow(
        clippy::needless_pass_by_value,
        reason = "what the buffer protocol wants"
    )]
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let memory = &slf.get().0.view;
        if view.is_null() {
            return Err(PyBufferError::new_err("no room for a view"));
        }
        let readonly = c_int::from(!memory.is_writable());
        // SAFETY: the memory lives as long as the object, which the view keeps.
        let answer = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                memory.ptr().as_ptr().cast(),
                isize::try_from(memory.len())?,
                readonly,
                flags,
            )
        };
        if answer == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}

/// How a worker looks at its parent's store.
static WORKERS: OnceLock<Arc<Views>> = OnceLock::new();

/// In a worker: how it looks at the store.
pub(crate) fn set_views(views: &Arc<Views>) {
    // A worker is born once.
    let _first = WORKERS.set(views.clone());
}

/// Something that was in the store and read-only, whether or not it is in use.
pub(crate) type ReadOnly = Weak<Viewed>;

/// Those of these that nobody writes to.
pub(crate) fn read_only(views: &[Bound<'_, StoredBuffer>]) -> Vec<ReadOnly> {
    views
        .iter()
        .map(|view| &view.get().0)
        .filter(|viewed| !viewed.view.is_writable())
        .map(Arc::downgrade)
        .collect()
}

/// Whether any of them is still in use: what was only copied from is not.
pub(crate) fn any_used(read_only: &[ReadOnly]) -> bool {
    read_only.iter().any(|viewed| viewed.strong_count() > 0)
}

/// What a pickle is loaded with: a view of each buffer.
pub(crate) fn views<'py>(
    py: Python<'py>,
    buffers: &[Buffer],
) -> PyResult<Vec<Bound<'py, StoredBuffer>>> {
    if buffers.is_empty() {
        return Ok(Vec::new());
    }
    forget_forked();
    let open = |buffer: &Buffer| {
        let views = match &buffer.hold {
            Hold::Block(block) if !block.is_of_this_process() => {
                return Err(PyRuntimeError::new_err(
                    "what is in the object store belongs to the process that put it there, and this is a child that \
                     was forked from it",
                ));
            }
            Hold::Block(_) => process::supervisor()?.views().clone(),
            Hold::Lease(_) => WORKERS.get().cloned().ok_or_else(|| {
                PyRuntimeError::new_err(
                    "a process that is no worker has no views of its parent's store",
                )
            })?,
        };
        let reference = buffer.reference();
        let view = views
            .open(reference)
            .map_err(|error| cannot_look(reference.len, error))?;
        Bound::new(py, StoredBuffer(Viewed::new(view, buffer.clone())))
    };
    buffers.iter().map(open).collect()
}

/// Why a buffer cannot be looked at.
fn cannot_look(len: usize, error: io::Error) -> PyErr {
    if error.kind() == io::ErrorKind::OutOfMemory {
        PyMemoryError::new_err(format!(
            "there are not enough addresses left to map {len} bytes of the object store ({error})"
        ))
    } else {
        error.into()
    }
}

// ---- Forks ----------------------------------------------------------------------------------

/// What a child that this process forked sees of the store: it shares the pages that nobody has written to, so
/// these blocks are not used again as long as it lives.
struct Forked {
    /// A pipe whose reading end only the child has.
    line: OwnedFd,
    #[expect(dead_code, reason = "held: their blocks are not free")]
    seen: Vec<Arc<Viewed>>,
}

static FORKED: Mutex<Vec<Forked>> = Mutex::new(Vec::new());
/// The ends of the pipe, while the process forks: it forks in one thread at a time, which has Python's lock.
static FORKING: Mutex<Option<(OwnedFd, OwnedFd)>> = Mutex::new(None);

/// Before the process forks.
#[pyfunction]
pub(crate) fn before_fork() {
    in_place::before_fork();
    forget_forked();
    if COUNT.load(Ordering::Relaxed) > 0 {
        // Without a pipe, with no descriptor left, the child has to do without.
        let ends = manyhands_os::life_line().ok();
        *FORKING.lock().unwrap_or_else(PoisonError::into_inner) = ends;
    }
}

/// In the process that has forked.
#[pyfunction]
pub(crate) fn after_fork_in_parent() {
    let ends = FORKING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let Some((line, _childs)) = ends else { return };
    let seen = {
        let all = VIEWED.lock().unwrap_or_else(PoisonError::into_inner);
        all.values()
            .filter_map(|(_, viewed)| viewed.upgrade())
            .collect()
    };
    let mut forked = FORKED.lock().unwrap_or_else(PoisonError::into_inner);
    forked.push(Forked { line, seen });
}

/// In the child: it says that it is there as long as it is.
#[pyfunction]
pub(crate) fn after_fork_in_child() {
    let ends = FORKING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some((_parents, line)) = ends {
        std::mem::forget(line);
    }
    // What the parent keeps for its other children is its own.
    let mut forked = FORKED.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::forget(std::mem::take(&mut *forked));
}

/// Lets go of what children see that have ended.
fn forget_forked() {
    let ended: Vec<Forked> = {
        let mut forked = FORKED.lock().unwrap_or_else(PoisonError::into_inner);
        if forked.is_empty() {
            return;
        }
        forked
            .extract_if(.., |child| !manyhands_os::pipe_has_reader(&child.line))
            .collect()
    };
    drop(ended);
}
