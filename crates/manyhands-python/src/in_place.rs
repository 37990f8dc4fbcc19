//! Arrays that a worker's NumPy makes where they are sent from.
//!
//! NumPy lets others allocate the memory of its arrays (NEP 49). Where the results of a function were large, the
//! worker asks for blocks of such sizes before it calls the function again, and lets the arrays that have one of
//! these sizes have them. An array that is the result, and that nobody in the worker has any more when it is sent,
//! is not copied: its block is the result's. Others are as they were before there was any of this.
//!
//! | memory is | NumPy | becomes |
//! |---|---|---|
//! | *spare*: granted before the function is called | knows nothing of it | taken, by an array; given back, when the result is sent |
//! | *taken* | has an array there | spare, when the array goes; displaced, when the result is sent or the process forks |
//! | *displaced*: private memory at the same addresses | has an array there | nothing, when the array goes |
//!
//! What is spare or displaced when the result is sent, and is in it, is the parent's from then on; all other blocks
//! are given back. So a worker has no grant beyond its task, which is what the parent counts on where a result is
//! lost, and nobody can write to what was sent: the array is gone, or has its own memory.
//!
//! A child that the process forks shares memory that both would write to, so what is taken is displaced before.

use crate::process;
use crate::store::Exported;
use manyhands_runtime::{Filled, Room, WorkerEnd};
use once_cell::race::OnceBool;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};
use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Arrays from this size on are made in place: below it a copy costs less than the question for a block.
const LEAST: usize = 1 << 20;
/// Up to this size: a block is the task's for as long as it runs.
const MOST: usize = 1 << 28;
/// So many of a result.
const MOST_BLOCKS: usize = 4;
/// So often in a row a function may leave its blocks unused.
const MOST_MISSES: u8 = 3;
/// So many functions are remembered.
const MOST_KNOWN: usize = 64;

// ---- What functions return ------------------------------------------------------------------

/// The sizes of what functions have returned last, by the numbers of their definitions.
#[derive(Default)]
pub(crate) struct Sizes(HashMap<u32, Returned>);

#[derive(Default)]
struct Returned {
    sizes: Vec<usize>,
    misses: u8,
}

impl Sizes {
    /// Asks for blocks for what the function is going to return.
    #[inline]
    pub(crate) fn ask(&self, py: Python<'_>, end: &mut WorkerEnd, definition: u32) {
        if !self.0.is_empty() {
            self.ask_known(py, end, definition);
        }
    }

    #[cold]
    fn ask_known(&self, py: Python<'_>, end: &mut WorkerEnd, definition: u32) {
        if let Some(returned) = self.0.get(&definition)
            && !returned.sizes.is_empty()
            && is_installed(py, end)
        {
            returned.ask(end);
        }
    }

    /// The function has returned buffers of these lengths.
    #[inline]
    pub(crate) fn learn(&mut self, definition: Option<u32>, lengths: &[usize]) {
        if !(lengths.is_empty() && self.0.is_empty())
            && let Some(definition) = definition
        {
            self.note(definition, lengths);
        }
    }

    #[cold]
    fn note(&mut self, definition: u32, lengths: &[usize]) {
        let large = lengths
            .iter()
            .filter(|size| (LEAST..=MOST).contains(*size))
            .take(MOST_BLOCKS);
        let sizes: Vec<usize> = large.copied().collect();
        if sizes.is_empty() && !self.0.contains_key(&definition) {
            return;
        }
        // Numbers do not come again.
        if self.0.len() >= MOST_KNOWN {
            self.0.clear();
        }
        let returned = self.0.entry(definition).or_default();
        match lock().use_of_spare.take() {
            Some(true) => returned.misses = 0,
            Some(false) => returned.misses += 1,
            None => {}
        }
        // It makes its arrays elsewhere, or ever other ones.
        let is_useless = returned.misses >= MOST_MISSES;
        returned.sizes = if is_useless { Vec::new() } else { sizes };
    }
}

impl Returned {
    fn ask(&self, end: &mut WorkerEnd) {
        for &size in &self.sizes {
            let Some((room, start)) = end.lay_open(size) else {
                return;
            };
            let start = start.addr().get();
            let memory = Memory { start, size, room };
            let mut table = lock();
            table.spare.push(memory);
            table.use_of_spare.get_or_insert(false);
            table.count();
        }
    }
}

// ---- The memory -----------------------------------------------------------------------------

/// A block that was granted, as memory.
struct Memory {
    start: usize,
    /// What the array has of it; of what is spare, all.
    size: usize,
    room: Room,
}

impl Memory {
    fn has(&self, address: usize) -> bool {
        (self.start..self.start + self.room.len).contains(&address)
    }
}

/// What an array has, and no block is behind.
struct Displaced {
    start: usize,
    size: usize,
    /// In the window, and how long.
    offset: u64,
    len: usize,
}

#[derive(Default)]
struct Table {
    spare: Vec<Memory>,
    taken: Vec<Memory>,
    displaced: Vec<Displaced>,
    /// Whether what was granted was used; none if nothing was.
    use_of_spare: Option<bool>,
    /// The result is being sent: who allocates now gets nothing.
    is_closed: bool,
}

static TABLE: Mutex<Table> = Mutex::new(Table {
    spare: Vec::new(),
    taken: Vec::new(),
    displaced: Vec::new(),
    use_of_spare: None,
    is_closed: false,
});
/// Whose it is, as a generation: a child that a task forks allocates elsewhere, and nobody there gives the lock back if
/// a thread of the task's had it, which NumPy calls without the GIL.
static OWNER: AtomicU32 = AtomicU32::new(u32::MAX);
/// How many there are that are spare; read without the lock.
static SPARE: AtomicUsize = AtomicUsize::new(0);
/// Whether any is spare or taken; read without the lock.
static ANY: AtomicBool = AtomicBool::new(false);
/// How the window is seen; empty until something was asked for.
static WINDOW: OnceLock<(Range<usize>, std::sync::Arc<manyhands_os::Window>)> = OnceLock::new();

fn is_mine() -> bool {
    // Relaxed: written before NumPy knows of us.
    OWNER.load(Ordering::Relaxed) == process::generation()
}

fn lock() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    fn count(&self) {
        // Relaxed, here and where they are read: under the GIL.
        SPARE.store(self.spare.len(), Ordering::Relaxed);
        let any = !self.spare.is_empty() || !self.taken.is_empty();
        ANY.store(any, Ordering::Relaxed);
    }

    /// Memory for an array, of a block that is not much longer.
    fn take(&mut self, size: usize) -> Option<usize> {
        if self.is_closed {
            return None;
        }
        let fits = |memory: &Memory| {
            let room = memory.room.len;
            size <= room && size >= room - room / 4
        };
        let index = self.spare.iter().position(fits)?;
        let mut memory = self.spare.swap_remove(index);
        memory.size = size;
        let start = memory.start;
        self.taken.push(memory);
        self.use_of_spare = Some(true);
        self.count();
        Some(start)
    }

    /// How many bytes the array there has.
    fn size(&self, start: usize) -> Option<usize> {
        let taken = self.taken.iter().map(|memory| (memory.start, memory.size));
        let displaced = self
            .displaced
            .iter()
            .map(|memory| (memory.start, memory.size));
        let mut all = taken.chain(displaced);
        all.find(|(other, _)| *other == start).map(|(_, size)| size)
    }

    /// The array there is gone.
    fn give_back(&mut self, start: usize) {
        if let Some(index) = self.taken.iter().position(|memory| memory.start == start) {
            let memory = self.taken.swap_remove(index);
            self.spare.push(memory);
            self.count();
        } else if let Some(index) = self
            .displaced
            .iter()
            .position(|memory| memory.start == start)
            && let Some((_, window)) = WINDOW.get()
        {
            let memory = self.displaced.swap_remove(index);
            // What cannot be mapped anew stays displaced, and is written by descriptor.
            let _replaced = window.replace(memory.offset, memory.len);
        }
    }

    /// Gives the arrays that there are memory of their own; what blocks they had.
    fn displace(&mut self) -> std::io::Result<Vec<Memory>> {
        let mut blocks = Vec::new();
        while let Some(memory) = self.taken.pop() {
            let (offset, len) = (memory.room.offset, memory.room.len);
            if let Some((_, window)) = WINDOW.get()
                && let Err(error) = window.displace(offset, len)
            {
                self.taken.push(memory);
                return Err(error);
            }
            let (start, size) = (memory.start, memory.size);
            self.displaced.push(Displaced {
                start,
                size,
                offset,
                len,
            });
            blocks.push(memory);
        }
        self.count();
        Ok(blocks)
    }
}

// ---- Results --------------------------------------------------------------------------------

/// A buffer of a result, which is to be sent where it is.
pub(crate) struct InPlace {
    block: u64,
    start: usize,
    len: usize,
    is_writable: bool,
    /// Keeps it until then.
    exported: Exported,
}

/// The buffer, if it is most of what an array has that was made in a block, and the first there among others that
/// were found; else it as it came.
pub(crate) fn find(exported: Exported, others: &[Found]) -> Result<InPlace, Exported> {
    if !ANY.load(Ordering::Relaxed) {
        return Err(exported);
    }
    let (address, len) = (exported.address(), exported.len());
    let table = lock();
    let found = table.taken.iter().find(|memory| memory.has(address));
    let is_named = |block| {
        others
            .iter()
            .any(|other| matches!(other, Found::InPlace(other) if other.block == block))
    };
    match found {
        Some(memory) if len >= memory.room.len / 2 && !is_named(memory.room.offset) => {
            Ok(InPlace {
                block: memory.room.offset,
                start: address - memory.start,
                len,
                is_writable: exported.is_writable(),
                exported,
            })
        }
        _ => Err(exported),
    }
}

/// A buffer of a result.
pub(crate) enum Found {
    /// It can be sent.
    Filled(Filled),
    /// It can be once the result is gone.
    InPlace(InPlace),
}

/// Whether there is something for `settle` to do beside what it is given.
#[inline]
pub(crate) fn any() -> bool {
    ANY.load(Ordering::Relaxed)
}

/// The result is sent, and its object gone: what of it can be sent, in the same order. The worker has no block
/// beside these from here on.
pub(crate) fn settle(found: Vec<Found>) -> std::io::Result<Vec<Filled>> {
    if !any() {
        let filled = found.into_iter().filter_map(|found| match found {
            Found::Filled(filled) => Some(filled),
            Found::InPlace(_) => None,
        });
        return Ok(filled.collect());
    }
    settle_all(found)
}

#[cold]
fn settle_all(found: Vec<Found>) -> std::io::Result<Vec<Filled>> {
    lock().is_closed = true;
    // Without the lock: what goes with the last reference is given back.
    let found: Vec<_> = found
        .into_iter()
        .map(|found| match found {
            Found::Filled(filled) => Err(filled),
            Found::InPlace(buffer) => {
                let InPlace {
                    block,
                    start,
                    len,
                    is_writable,
                    exported,
                } = buffer;
                drop(exported);
                Ok((block, start, len, is_writable))
            }
        })
        .collect();
    let mut table = lock();
    let displaced = table.displace();
    let mut blocks = std::mem::take(&mut table.spare);
    table.is_closed = false;
    table.count();
    drop(table);
    blocks.extend(displaced?);
    let filled = found.into_iter().map(|found| match found {
        Err(filled) => Ok(filled),
        Ok((block, start, len, is_writable)) => {
            let index = blocks.iter().position(|memory| memory.room.offset == block);
            let index = index.ok_or(std::io::ErrorKind::NotFound)?;
            let room = blocks.swap_remove(index).room;
            Ok(room.filled(start, len, is_writable))
        }
    });
    filled.collect()
}

/// Before the process forks: arrays that are in a block get memory that the child has a copy of. Where there is
/// no memory for that the two share it.
pub(crate) fn before_fork() {
    if ANY.load(Ordering::Relaxed) && is_mine() {
        let _blocks = lock().displace();
    }
}

// ---- NumPy's allocator ----------------------------------------------------------------------

/// `PyDataMemAllocator` of NumPy's C interface.
#[repr(C)]
struct Allocator {
    context: *mut c_void,
    malloc: unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void,
    calloc: unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void,
    realloc: unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void, *mut c_void, usize),
}

/// `PyDataMem_Handler`.
#[repr(C)]
struct Handler {
    name: [c_char; 127],
    version: u8,
    allocator: Allocator,
}

// SAFETY: never written to, and the functions may be called from any thread.
unsafe impl Sync for Handler {}
// SAFETY: as above.
unsafe impl Send for Handler {}

/// What NumPy would do without us.
static DEFAULT: OnceLock<&'static Handler> = OnceLock::new();
static HANDLER: Handler = Handler {
    name: name(b"manyhands"),
    version: 1,
    allocator: Allocator {
        context: ptr::null_mut(),
        malloc,
        calloc,
        realloc,
        free,
    },
};

const fn name(text: &[u8]) -> [c_char; 127] {
    let mut name = [0; 127];
    let mut index = 0;
    while index < text.len() {
        name[index] = text[index].cast_signed();
        index += 1;
    }
    name
}

/// The places in NumPy's table of functions, which do not change.
const GET_FEATURE_VERSION: usize = 211;
const SET_HANDLER: usize = 304;
const GET_HANDLER: usize = 305;
/// NumPy 1.22, the first that has handlers.
const FIRST_FEATURE_VERSION: u32 = 0x0f;
const CAPSULE: &std::ffi::CStr = c"mem_handler";

/// Whether NumPy allocates here; it is told to at the first call after the program has imported it.
fn is_installed(py: Python<'_>, end: &WorkerEnd) -> bool {
    static INSTALLED: OnceBool = OnceBool::new();
    if let Some(installed) = INSTALLED.get() {
        return installed;
    }
    let Some(module) = numpy(py) else {
        return false;
    };
    let installed = open_window(end).is_some() && install(&module).is_some();
    INSTALLED.get_or_init(|| installed)
}

fn numpy(py: Python<'_>) -> Option<Bound<'_, PyAny>> {
    let modules = py.import("sys").ok()?.getattr("modules").ok()?;
    let modules = modules.cast_into::<PyDict>().ok()?;
    let names = [
        "numpy._core._multiarray_umath",
        "numpy.core._multiarray_umath",
    ];
    names
        .iter()
        .find_map(|name| modules.get_item(name).ok().flatten())
}

fn open_window(end: &WorkerEnd) -> Option<()> {
    let window = end.window();
    window.map().ok()?;
    let start = window.shared()?.addr().get();
    let _first = WINDOW.set((start..start + window.len(), window.clone()));
    OWNER.store(process::generation(), Ordering::Relaxed);
    Some(())
}

fn install(numpy: &Bound<'_, PyAny>) -> Option<()> {
    let py = numpy.py();
    let table = numpy.getattr("_ARRAY_API").ok()?;
    let table = table.cast::<PyCapsule>().ok()?.as_ptr();
    // SAFETY: a capsule without a name, in which NumPy keeps its table of functions. The places that are read are
    // there from the version on that is asked for first, and have these types.
    unsafe {
        let table = ffi::PyCapsule_GetPointer(table, ptr::null()).cast::<*const c_void>();
        if table.is_null() {
            let _none = PyErr::take(py);
            return None;
        }
        type Version = unsafe extern "C" fn() -> u32;
        let version: Version = std::mem::transmute(*table.add(GET_FEATURE_VERSION));
        if version() < FIRST_FEATURE_VERSION {
            return None;
        }
        type Get = unsafe extern "C" fn() -> *mut ffi::PyObject;
        type Set = unsafe extern "C" fn(*mut ffi::PyObject) -> *mut ffi::PyObject;
        let get: Get = std::mem::transmute(*table.add(GET_HANDLER));
        let set: Set = std::mem::transmute(*table.add(SET_HANDLER));
        let default = Bound::from_owned_ptr_or_err(py, get()).ok()?;
        let handler = ffi::PyCapsule_GetPointer(default.as_ptr(), CAPSULE.as_ptr());
        let Some(handler) = NonNull::new(handler.cast::<Handler>()) else {
            let _none = PyErr::take(py);
            return None;
        };
        // It is asked for what is not ours, for as long as the process lives.
        std::mem::forget(default);
        let _first = DEFAULT.set(handler.as_ref());
        let ours = ptr::from_ref(&HANDLER).cast_mut().cast();
        let capsule = ffi::PyCapsule_New(ours, CAPSULE.as_ptr(), None);
        let capsule = Bound::from_owned_ptr_or_err(py, capsule).ok()?;
        Bound::from_owned_ptr_or_err(py, set(capsule.as_ptr())).ok()?;
    }
    Some(())
}

fn default() -> &'static Allocator {
    match DEFAULT.get() {
        Some(handler) => &handler.allocator,
        // It is set before NumPy knows of us.
        None => std::process::abort(),
    }
}

/// Memory for an array of this size, if there is a block for it.
#[inline]
fn take(size: usize) -> Option<usize> {
    if size < LEAST || SPARE.load(Ordering::Relaxed) == 0 || !is_mine() {
        return None;
    }
    lock().take(size)
}

/// The array there is gone; the parent's is left alone.
fn give_back(memory: *mut c_void) {
    if is_mine() {
        lock().give_back(memory.addr());
    }
}

/// Whether the memory may be ours.
#[inline]
fn is_ours(memory: *mut c_void) -> bool {
    WINDOW
        .get()
        .is_some_and(|(addresses, _)| addresses.contains(&memory.addr()))
}

unsafe extern "C" fn malloc(_context: *mut c_void, size: usize) -> *mut c_void {
    match take(size) {
        Some(start) => ptr::with_exposed_provenance_mut(start),
        // SAFETY: what NumPy would do.
        None => unsafe { (default().malloc)(default().context, size) },
    }
}

unsafe extern "C" fn calloc(_context: *mut c_void, count: usize, size: usize) -> *mut c_void {
    if let Some(bytes) = count.checked_mul(size)
        && let Some(start) = take(bytes)
    {
        let memory = ptr::with_exposed_provenance_mut::<c_void>(start);
        // SAFETY: so many bytes are this array's alone.
        unsafe { memory.write_bytes(0, bytes) };
        return memory;
    }
    // SAFETY: what NumPy would do.
    unsafe { (default().calloc)(default().context, count, size) }
}

unsafe extern "C" fn realloc(
    _context: *mut c_void,
    memory: *mut c_void,
    size: usize,
) -> *mut c_void {
    let known = if !is_ours(memory) {
        None
    } else if is_mine() {
        lock().size(memory.addr())
    } else if let Ok(parents) = TABLE.try_lock() {
        parents.size(memory.addr())
    } else {
        return ptr::null_mut(); // nobody knows its size
    };
    let Some(old) = known else {
        // SAFETY: what NumPy would do.
        return unsafe { (default().realloc)(default().context, memory, size) };
    };
    // SAFETY: fresh memory, and as many bytes as both have.
    unsafe {
        let moved = (default().malloc)(default().context, size);
        if !moved.is_null() {
            ptr::copy_nonoverlapping(memory.cast::<u8>(), moved.cast(), old.min(size));
            give_back(memory);
        }
        moved
    }
}

unsafe extern "C" fn free(_context: *mut c_void, memory: *mut c_void, size: usize) {
    if is_ours(memory) {
        give_back(memory);
    } else {
        // SAFETY: what NumPy would do.
        unsafe { (default().free)(default().context, memory, size) };
    }
}
