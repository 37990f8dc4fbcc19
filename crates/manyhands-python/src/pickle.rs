//! The C pickler, called without ceremony, and what its output names.

use crate::hooks;
use crate::once::{Once, intern};
use crate::store::{Collector, Exported, LARGE, StoredBuffer};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple, PyType};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

static DUMPS: Once<Py<PyAny>> = Once::new();
static LOADS: Once<Py<PyAny>> = Once::new();

fn function<'py>(
    py: Python<'py>,
    cell: &'static Once<Py<PyAny>>,
    name: &str,
) -> PyResult<&'py Bound<'py, PyAny>> {
    let function = cell.get_or_try_init(py, || {
        py.import("_pickle")?.getattr(name).map(Bound::unbind)
    })?;
    Ok(function.bind(py))
}

/// `_pickle.dumps(value, 5)`, or what does it by the table.
pub(crate) fn dumps<'py>(
    py: Python<'py>,
    value: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    Ok(call_dumps(py, value, None)?.0)
}

/// A pickle, and in their order the large buffers that are not in it.
pub(crate) struct Dumped<'py> {
    pub(crate) bytes: Bound<'py, PyBytes>,
    pub(crate) buffers: Vec<Exported>,
}

impl Dumped<'_> {
    /// How many bytes there are, with the buffers.
    pub(crate) fn weight(&self) -> usize {
        self.bytes.as_bytes().len() + self.buffers.iter().map(Exported::len).sum::<usize>()
    }
}

/// A collector, and the keywords that name it; made once for each depth of calls.
type Collecting = (Py<Collector>, Py<PyDict>);

/// Those that are not in use.
static COLLECTING: Mutex<Vec<Collecting>> = Mutex::new(Vec::new());

fn collecting(py: Python<'_>) -> PyResult<Collecting> {
    let known = COLLECTING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .pop();
    if let Some(known) = known {
        return Ok(known);
    }
    let collector = Bound::new(py, Collector::default())?;
    let keywords = PyDict::new(py);
    keywords.set_item(intern!(py, "buffer_callback"), &collector)?;
    Ok((collector.unbind(), keywords.unbind()))
}

/// `_pickle.dumps(value, 5, buffer_callback=...)`, which keeps out buffers of at least so many bytes.
pub(crate) fn dumps_apart<'py>(
    py: Python<'py>,
    value: &Bound<'py, PyAny>,
    least: usize,
) -> PyResult<Dumped<'py>> {
    let (collector, keywords) = collecting(py)?;
    collector.get().set_least(least);
    let answer = call_apart(py, value, keywords.bind(py), collector.get());
    let buffers = collector.get().take();
    let mut known = COLLECTING.lock().unwrap_or_else(PoisonError::into_inner);
    known.push((collector, keywords));
    drop(known);
    let bytes = answer?;
    Ok(Dumped { bytes, buffers })
}

fn call_apart<'py>(
    py: Python<'py>,
    value: &Bound<'py, PyAny>,
    keywords: &Bound<'py, PyDict>,
    collector: &Collector,
) -> PyResult<Bound<'py, PyBytes>> {
    let (bytes, by_table) = call_dumps(py, value, Some(keywords))?;
    if by_table || !is_better_by_table(py, bytes.as_bytes(), collector)? {
        return Ok(bytes);
    }
    drop(collector.take());
    note_prone(value);
    dumps_by_table(py, value, Some(keywords))
}

/// Whether what was pickled plainly holds what the table is for, deeper than `is_for_table` looks.
fn is_better_by_table(py: Python<'_>, bytes: &[u8], collector: &Collector) -> PyResult<bool> {
    if collector.has_any() && lock(&PRONE).is_any_named() && contains(bytes, b"pyarrow") {
        return Ok(true);
    }
    Ok(bytes.len() >= LARGE && array_class(py)?.is_some() && has_gaps(bytes))
}

/// Types whose values are pickled by the table. Each is an address: where one of those that were seen is gone
/// and another is in its place, that is pickled by the table for nothing.
struct Prone {
    /// Those of libraries, in order.
    named: Vec<usize>,
    /// The last ones that were seen to hold what `is_for_table` looks for, deeper than it looks.
    seen: Vec<usize>,
}

static PRONE: Mutex<Prone> = Mutex::new(Prone {
    named: Vec::new(),
    seen: Vec::new(),
});
static ANY_PRONE: AtomicBool = AtomicBool::new(false);
const MOST_SEEN: usize = 16;

impl Prone {
    fn is_any_named(&self) -> bool {
        !self.named.is_empty()
    }

    fn contains(&self, kind: usize) -> bool {
        self.named.binary_search(&kind).is_ok() || self.seen.contains(&kind)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_prone(value: &Bound<'_, PyAny>) -> bool {
    // Relaxed, here and below: under the GIL, and at worst it is found out once more.
    ANY_PRONE.load(Ordering::Relaxed) && lock(&PRONE).contains(value.get_type_ptr().addr())
}

/// What holds such things once mostly does so again; of lists and the like that says nothing.
fn note_prone(value: &Bound<'_, PyAny>) {
    if value.is_exact_instance_of::<PyTuple>()
        || value.is_exact_instance_of::<PyList>()
        || value.is_exact_instance_of::<PyDict>()
    {
        return;
    }
    let mut prone = lock(&PRONE);
    if prone.seen.len() == MOST_SEEN {
        prone.seen.remove(0);
    }
    prone.seen.push(value.get_type_ptr().addr());
    ANY_PRONE.store(true, Ordering::Relaxed);
}

/// From here on values of these types are pickled by the table, and what holds them.
#[pyfunction]
pub(crate) fn pickle_these_by_table(kinds: Vec<Bound<'_, PyType>>) {
    let mut prone = lock(&PRONE);
    // They are of libraries, which stay.
    prone
        .named
        .extend(kinds.iter().map(|kind| kind.as_ptr().addr()));
    prone.named.sort_unstable();
    prone.named.dedup();
    ANY_PRONE.store(true, Ordering::Relaxed);
}

fn dumps_by_table<'py>(
    py: Python<'py>,
    value: &Bound<'py, PyAny>,
    keywords: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyBytes>> {
    let bytes = hooks::dumps_by_table(py)?.call((value,), keywords)?;
    Ok(bytes.cast_into()?)
}

/// Whether all is pickled by the table of `_reducers.py`.
static BY_TABLE: AtomicBool = AtomicBool::new(false);

/// From here on all is.
#[pyfunction]
pub(crate) fn pickle_by_table() {
    // Relaxed: under the GIL.
    BY_TABLE.store(true, Ordering::Relaxed);
}

/// `sys.modules`.
fn modules(py: Python<'_>) -> PyResult<&Bound<'_, PyDict>> {
    static MODULES: Once<Py<PyDict>> = Once::new();
    let modules = MODULES.get_or_try_init(py, || {
        let modules = py.import("sys")?.getattr("modules")?;
        PyResult::Ok(modules.cast_into::<PyDict>()?.unbind())
    })?;
    Ok(modules.bind(py))
}

/// Whether everything has to be pickled by the table: the program has imported a library that needs that, or has
/// made shared memory.
fn is_by_table(py: Python<'_>) -> PyResult<bool> {
    /// How many modules there were when the libraries were last looked for among them.
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    // Relaxed, all: under the GIL, and at worst it is asked once more.
    if BY_TABLE.load(Ordering::Relaxed) {
        return Ok(true);
    }
    let modules = modules(py)?;
    if SEEN.load(Ordering::Relaxed) != modules.len() {
        hooks::find_libraries(py)?.call0()?;
        // A library that is still being imported mostly comes with more modules.
        SEEN.store(modules.len(), Ordering::Relaxed);
    }
    Ok(BY_TABLE.load(Ordering::Relaxed))
}

/// The class of NumPy's arrays, if the program has imported it.
fn array_class(py: Python<'_>) -> PyResult<Option<&Bound<'_, PyAny>>> {
    static CLASS: Once<Py<PyAny>> = Once::new();
    if let Some(class) = CLASS.get(py) {
        return Ok(Some(class.bind(py)));
    }
    let Some(numpy) = modules(py)?.get_item(intern!(py, "numpy"))? else {
        return Ok(None);
    };
    // One that is still being imported may have none yet.
    let Some(class) = numpy.getattr_opt(intern!(py, "ndarray"))? else {
        return Ok(None);
    };
    Ok(Some(CLASS.get_or_init(py, || class.unbind()).bind(py)))
}

/// How many values are looked at, and how deep in lists, tuples and dictionaries.
const MOST_LOOKED_AT: u32 = 64;
const DEEPEST: u32 = 3;

/// Whether it is of a type that holds nothing, as most values in lists and the like are.
fn is_plain(value: &Bound<'_, PyAny>) -> bool {
    value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyString>()
        || value.is_exact_instance_of::<PyFloat>()
        || value.is_exact_instance_of::<PyBytes>()
}

/// Whether the table is for something in this: a value of a prone type, or a large array that is not contiguous,
/// whose contents NumPy writes into the pickle.
/// So many values are looked at, those that come first: this is done for all that is pickled.
fn is_for_table(
    array: Option<&Bound<'_, PyAny>>,
    value: &Bound<'_, PyAny>,
    left: &mut u32,
    depth: u32,
) -> PyResult<bool> {
    if is_plain(value) {
        return Ok(false);
    }
    let py = value.py();
    if array.is_some_and(|class| value.get_type().is(class)) {
        let size: usize = value.getattr(intern!(py, "nbytes"))?.extract()?;
        let flags = intern!(py, "flags");
        return Ok(size >= LARGE
            && !value
                .getattr(flags)?
                .getattr(intern!(py, "forc"))?
                .is_truthy()?);
    }
    if is_prone(value) {
        return Ok(true);
    }
    if depth == DEEPEST {
        return Ok(false);
    }
    let mut any = |values: &mut dyn Iterator<Item = Bound<'_, PyAny>>| {
        while *left > 0
            && let Some(value) = values.next()
        {
            *left -= 1;
            if is_for_table(array, &value, left, depth + 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        any(&mut tuple.iter())
    } else if let Ok(list) = value.cast_exact::<PyList>() {
        any(&mut list.iter())
    } else if let Ok(dict) = value.cast_exact::<PyDict>() {
        any(&mut dict.iter().map(|(_, value)| value))
    } else {
        Ok(false)
    }
}

/// Calls `_pickle.dumps(value, 5)`, or what does the same by the table; and which of them it was.
fn call_dumps<'py>(
    py: Python<'py>,
    value: &Bound<'py, PyAny>,
    keywords: Option<&Bound<'py, PyDict>>,
) -> PyResult<(Bound<'py, PyBytes>, bool)> {
    let by_table = is_by_table(py)? || {
        let array = array_class(py)?;
        let mut left = MOST_LOOKED_AT;
        (array.is_some() || ANY_PRONE.load(Ordering::Relaxed))
            && is_for_table(array, value, &mut left, 0)?
    };
    if by_table {
        return Ok((dumps_by_table(py, value, keywords)?, true));
    }
    let bytes = function(py, &DUMPS, "dumps")?.call((value, 5), keywords)?;
    Ok((bytes.cast_into()?, false))
}

/// `_pickle.loads(bytes, buffers=buffers)`, reading the bytes in place.
pub(crate) fn loads<'py>(
    py: Python<'py>,
    bytes: &[u8],
    buffers: Vec<Bound<'py, StoredBuffer>>,
) -> PyResult<Bound<'py, PyAny>> {
    if buffers.is_empty() {
        let bytes = PyBytes::new(py, bytes);
        return function(py, &LOADS, "loads")?.call1((bytes,));
    }
    loads_from(py, bytes, PyList::new(py, buffers)?)
}

/// As `loads`, with buffers of any kind.
pub(crate) fn loads_from<'py>(
    py: Python<'py>,
    bytes: &[u8],
    buffers: Bound<'py, PyList>,
) -> PyResult<Bound<'py, PyAny>> {
    let bytes = PyBytes::new(py, bytes);
    let keywords = PyDict::new(py);
    keywords.set_item(intern!(py, "buffers"), buffers)?;
    function(py, &LOADS, "loads")?.call((bytes,), Some(&keywords))
}

/// The main module, under both of its names: a child of `multiprocessing` uses the second.
const MAINS: [&[u8]; 2] = [b"__main__", b"__mp_main__"];

/// The names of what a pickle takes from `__main__`, in order; none without `__main__` in it.
///
/// A walk over the opcodes of protocol 5 that follows the strings on the stack and in the memo.
/// If it meets anything that the C pickler does not write, it says so, and the slow way is taken.
pub(crate) fn names_from_main(pickle: &[u8]) -> Option<Vec<String>> {
    if !contains(pickle, b"_main__") {
        return Some(Vec::new());
    }
    let mut walk = Walk::new(pickle, usize::MAX);
    walk.run()?;
    Some(walk.names)
}

/// How many opcodes are looked at for arrays with gaps, those that come first.
const MOST_OPCODES: usize = 4096;

/// Whether the pickle has the contents of a large array in it, which NumPy writes there if the array has gaps.
fn has_gaps(pickle: &[u8]) -> bool {
    let mut walk = Walk::new(pickle, MOST_OPCODES);
    // It may be too long, or have what is not known here: then what was seen counts.
    let _ended = walk.run();
    walk.makes_array && walk.longest >= LARGE
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    // The first bytes of the name are rare in pickles, so this is close to a plain scan.
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&byte| byte == wanted[0]) {
        rest = &rest[at..];
        if rest.starts_with(wanted) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

type Text = Option<(usize, usize)>;

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    memo: Vec<Text>,
    /// The last two things pushed, where they are strings.
    last: [Text; 2],
    names: Vec<String>,
    /// How many opcodes are yet to be looked at.
    left: usize,
    /// Whether it calls the function that makes an array of contents in the pickle.
    makes_array: bool,
    /// The most bytes that one value has in it.
    longest: usize,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8], left: usize) -> Self {
        Self {
            bytes,
            at: 0,
            memo: Vec::new(),
            last: [None, None],
            names: Vec::new(),
            left,
            makes_array: false,
            longest: 0,
        }
    }

    fn number(&mut self, len: usize) -> Option<usize> {
        let bytes = self.bytes.get(self.at..self.at + len)?;
        self.at += len;
        let mut word = [0; 8];
        word[..len].copy_from_slice(bytes);
        usize::try_from(u64::from_le_bytes(word)).ok()
    }

    fn push(&mut self, text: Text) {
        self.last = [self.last[1], text];
    }

    fn text(&mut self, len_bytes: usize) -> Option<()> {
        let len = self.number(len_bytes)?;
        let start = self.at;
        self.at = start.checked_add(len)?;
        self.bytes.get(start..self.at)?;
        self.push(Some((start, len)));
        Some(())
    }

    fn skip(&mut self, len_bytes: usize) -> Option<()> {
        let len = self.number(len_bytes)?;
        self.longest = self.longest.max(len);
        self.at = self.at.checked_add(len)?;
        self.push(None);
        Some(())
    }

    fn recall(&mut self, len_bytes: usize) -> Option<()> {
        let index = self.number(len_bytes)?;
        let text = *self.memo.get(index)?;
        self.push(text);
        Some(())
    }

    fn get(&self, text: Text) -> Option<&[u8]> {
        let (start, len) = text?;
        self.bytes.get(start..start + len)
    }

    fn run(&mut self) -> Option<()> {
        loop {
            self.left = self.left.checked_sub(1)?;
            let opcode = *self.bytes.get(self.at)?;
            self.at += 1;
            match opcode {
                b'.' => return Some(()),
                0x80 => self.at += 1,                 // PROTO
                0x95 => self.at += 8,                 // FRAME
                0x8c => self.text(1)?,                // SHORT_BINUNICODE
                b'X' => self.text(4)?,                // BINUNICODE
                0x8d => self.text(8)?,                // BINUNICODE8
                0x94 => self.memo.push(self.last[1]), // MEMOIZE
                b'h' => self.recall(1)?,              // BINGET
                b'j' => self.recall(4)?,              // LONG_BINGET
                b'C' | b'U' | 0x8a => self.skip(1)?,  // short bytes, short string, LONG1
                b'B' | b'T' | 0x8b => self.skip(4)?,  // bytes, string, LONG4
                0x8e | 0x96 => self.skip(8)?,         // BINBYTES8, BYTEARRAY8
                b'K' => {
                    self.at += 1; // BININT1
                    self.push(None);
                }
                b'M' => {
                    self.at += 2; // BININT2
                    self.push(None);
                }
                b'J' => {
                    self.at += 4; // BININT
                    self.push(None);
                }
                b'G' => {
                    self.at += 8; // BINFLOAT
                    self.push(None);
                }
                0x93 => {
                    // STACK_GLOBAL
                    let [module, name] = self.last;
                    self.makes_array |= self.get(name) == Some(b"_reconstruct".as_slice());
                    if MAINS.contains(&self.get(module)?) {
                        let name = String::from_utf8(self.get(name)?.to_vec()).ok()?;
                        if !self.names.contains(&name) {
                            self.names.push(name);
                        }
                    }
                    self.push(None);
                }
                // None, True, False, empty containers, marks, and what builds from the stack.
                b'N' | 0x88 | 0x89 | b')' | b']' | b'}' | 0x8f | b'(' | b'a' | b'e' | b's'
                | b'u' | 0x90 | 0x91 | b't' | 0x85 | 0x86 | 0x87 | b'R' | 0x81 | 0x92 | b'b'
                | b'0' | b'1' | b'2' | 0x97 | 0x98 => self.push(None),
                _ => return None,
            }
        }
    }
}
