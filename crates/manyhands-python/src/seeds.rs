//! Random streams of tasks: where they come from, and which one a thread draws from.
//!
//! A task's stream is a function of a seed and of the task's **path**: numbers that say which task it is,
//! and nothing of where, when or how often it runs. A **seed** counts the calls made with it. The path of what is
//! submitted is the number of its call, that of an item the number of its map's call and its index; with a seed
//! that was given to the map alone the index is all. A call that a seeded task makes goes on from the task's
//! path: that comes first, and it is the task that counts, anew in each run of it. Its seed is the task's, unless
//! another was given in the task: those of pools and views that were made elsewhere count for nothing there, since
//! a pool that travels to a worker has none, and all engines are to draw the same.
//!
//! Until a task runs there is only its **origin**: the seed, the path as far as it is known, and whether the
//! index of an item ends it. It travels with the task as bytes: 0 or 1 for that, then 16 bytes for the
//! seed, then 8 for each number of the path. What a stream is to Python is in `_seeds.py`.

use crate::hooks;
use crate::local::Ran;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a task's stream, or those of a map's items, are made from.
pub(crate) type Origin = Arc<[u8]>;

/// A seed, which counts the calls made with it.
pub(crate) struct Seed {
    number: u128,
    /// Whether it was given to one call, whose number says nothing then.
    alone: bool,
    /// Whether it was given by a task that has a stream.
    in_task: bool,
    calls: AtomicU64,
}

/// Made once for many calls.
#[pyclass(name = "Seed", module = "manyhands._core", frozen)]
pub(crate) struct PySeed(pub(crate) Arc<Seed>);

#[pymethods]
impl PySeed {
    #[new]
    fn new(number: u128, alone: bool, in_task: bool) -> Self {
        Self(Arc::new(Seed {
            number,
            alone,
            in_task,
            calls: AtomicU64::new(0),
        }))
    }

    #[getter]
    fn number(&self) -> u128 {
        self.0.number
    }

    /// Where it arrives it counts anew.
    fn __reduce__<'py>(&self, py: Python<'py>) -> (Bound<'py, PyType>, (u128, bool, bool)) {
        (py.get_type::<Self>(), (self.0.number, self.0.alone, false))
    }
}

/// The stream of a task that runs.
pub(crate) struct Stream {
    seed: u128,
    path: Vec<u64>,
    /// How many calls the task has made.
    calls: AtomicU64,
    /// What it is to Python.
    object: Py<PyAny>,
}

/// Whether a task of this process has had a stream: without it nothing else is looked at.
static ANY: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The stream of the task that runs in this thread, if it has one.
    static CURRENT: RefCell<Option<Arc<Stream>>> = const { RefCell::new(None) };
}

/// What a call that is made now has its streams made from: a map, or one that is submitted.
#[inline]
pub(crate) fn origin(seed: Option<&Arc<Seed>>, is_map: bool) -> Option<Origin> {
    // Relaxed: it was set by this thread, or there is no stream in this thread.
    if seed.is_none() && !ANY.load(Ordering::Relaxed) {
        return None;
    }
    find_origin(seed, is_map)
}

#[cold]
fn find_origin(seed: Option<&Arc<Seed>>, is_map: bool) -> Option<Origin> {
    // Relaxed: numbers, of which each is given once.
    let asker = CURRENT.with_borrow(Clone::clone);
    let (number, path) = match (seed, asker) {
        (Some(seed), _) if seed.alone => (seed.number, Vec::new()),
        (seed, Some(asker)) => {
            let mut path = asker.path.clone();
            path.push(asker.calls.fetch_add(1, Ordering::Relaxed));
            let own = seed.filter(|seed| seed.in_task);
            (own.map_or(asker.seed, |seed| seed.number), path)
        }
        (Some(seed), None) => {
            let call = seed.calls.fetch_add(1, Ordering::Relaxed);
            (seed.number, vec![call])
        }
        (None, None) => return None,
    };
    let mut bytes = vec![u8::from(is_map)];
    bytes.extend_from_slice(&number.to_ne_bytes());
    for number in path {
        bytes.extend_from_slice(&number.to_ne_bytes());
    }
    Some(bytes.into())
}

impl Stream {
    /// The stream of the task with this origin, or of the item of that index.
    #[cold]
    fn new(py: Python<'_>, origin: &[u8], index: u64) -> PyResult<Arc<Self>> {
        let malformed = || PyRuntimeError::new_err("the seed of a task came as nonsense");
        let (ends, rest) = origin.split_first().ok_or_else(malformed)?;
        let (seed, path) = rest.split_first_chunk::<16>().ok_or_else(malformed)?;
        let (path, _none) = path.as_chunks::<8>();
        let seed = u128::from_ne_bytes(*seed);
        let mut path: Vec<u64> = path.iter().map(|n| u64::from_ne_bytes(*n)).collect();
        if *ends != 0 {
            path.push(index);
        }
        ANY.store(true, Ordering::Relaxed);
        let object = hooks::stream(py)?.call1((seed, PyTuple::new(py, &path)?))?;
        Ok(Arc::new(Self {
            seed,
            path,
            calls: AtomicU64::new(0),
            object: object.unbind(),
        }))
    }

    /// The same of a task that may have no origin, and no stream then.
    #[inline]
    pub(crate) fn of(
        py: Python<'_>,
        origin: Option<&Origin>,
        index: u64,
    ) -> PyResult<Option<Arc<Self>>> {
        origin
            .map(|origin| Self::new(py, origin, index))
            .transpose()
    }
}

/// What a worker process runs next draws from its own stream, or from none; `was_seeded` says whether what ran before
/// had one. This comes after what it runs was loaded, which may run anything.
#[inline]
pub(crate) fn take(
    py: Python<'_>,
    origin: Option<&[u8]>,
    was_seeded: &mut bool,
    index: u64,
) -> PyResult<()> {
    match origin {
        Some(origin) => {
            *was_seeded = true;
            begin(py, origin, index)
        }
        None if std::mem::take(was_seeded) => forget(py),
        None => Ok(()),
    }
}

/// Code that runs before `take`, to load what runs next, draws from no stream.
#[inline]
pub(crate) fn pause(was_seeded: bool) {
    if was_seeded {
        let before = CURRENT.take();
        drop(before);
    }
}

#[cold]
fn begin(py: Python<'_>, origin: &[u8], index: u64) -> PyResult<()> {
    let stream = Stream::new(py, origin, index)?;
    let object = stream.object.clone_ref(py);
    let before = CURRENT.replace(Some(stream));
    drop(before);
    object.call_method0(py, "begin")?;
    Ok(())
}

#[cold]
fn forget(py: Python<'_>) -> PyResult<()> {
    let before = CURRENT.take();
    drop(before);
    hooks::forget_stream(py)?.call0()?;
    Ok(())
}

/// While it lives the thread has another stream, or none.
struct Turn(Option<Arc<Stream>>);

impl Drop for Turn {
    fn drop(&mut self) {
        let mine = CURRENT.replace(self.0.take());
        drop(mine);
    }
}

/// Calls with that stream, if there is one. Generators that are global stay as they are: other threads use them, too.
#[inline]
pub(crate) fn within<T>(stream: Option<&Arc<Stream>>, call: impl FnOnce() -> T) -> T {
    let _turn = stream.map(|stream| Turn(CURRENT.replace(Some(stream.clone()))));
    call()
}

/// Runs with that stream, if there is one, and lends it the generators that are global. They go on as they were.
#[inline]
pub(crate) fn lending<T>(
    py: Python<'_>,
    stream: Option<&Arc<Stream>>,
    run: impl FnOnce() -> Ran<T>,
) -> Ran<T> {
    let Some(stream) = stream else {
        return run();
    };
    let object = stream.object.bind(py);
    let answer = match object.call_method0("enter") {
        Ok(_none) => within(Some(stream), run),
        Err(error) => Ran::Failed(error),
    };
    // Once more where a Ctrl-C came in between: what was given back is not given back again.
    let left = object.call_method0("leave");
    match left.or_else(|error| object.call_method0("leave").and(Err(error))) {
        Ok(_none) => answer,
        Err(error) => Ran::Failed(error),
    }
}

/// What `SeedSequence(seed, spawn_key=path).generate_state(8)` of NumPy gives, at a fiftieth of its cost. NumPy
/// promises that its algorithm stays as it is: that of `seed_seq` in C++ (O'Neill), with four words.
#[pyfunction]
pub(crate) fn seed_words(seed: u128, path: Vec<u64>) -> [u32; 8] {
    const WORDS: usize = 4;
    let mut entropy = Vec::with_capacity(WORDS + path.len());
    push_words(&mut entropy, seed);
    if !path.is_empty() && entropy.len() < WORDS {
        entropy.resize(WORDS, 0);
    }
    for number in path {
        push_words(&mut entropy, number.into());
    }
    let mut constant = 0x43b0_d7e5_u32;
    let mut hash = |word: u32| {
        let mixed = word ^ constant;
        constant = constant.wrapping_mul(0x931e_8875);
        let mixed = mixed.wrapping_mul(constant);
        mixed ^ (mixed >> 16)
    };
    let mix = |left: u32, right: u32| {
        let mixed = 0xca01_f9dd_u32
            .wrapping_mul(left)
            .wrapping_sub(0x4973_f715_u32.wrapping_mul(right));
        mixed ^ (mixed >> 16)
    };
    let mut pool = [0; WORDS];
    for (place, word) in pool.iter_mut().enumerate() {
        *word = hash(entropy.get(place).copied().unwrap_or(0));
    }
    for source in 0..WORDS {
        for target in (0..WORDS).filter(|&target| target != source) {
            pool[target] = mix(pool[target], hash(pool[source]));
        }
    }
    for &word in entropy.iter().skip(WORDS) {
        for target in &mut pool {
            *target = mix(*target, hash(word));
        }
    }
    let mut constant = 0x8b51_f9dd_u32;
    std::array::from_fn(|place| {
        let mixed = pool[place % WORDS] ^ constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        let mixed = mixed.wrapping_mul(constant);
        mixed ^ (mixed >> 16)
    })
}

/// A number as words, the lowest first; 0 is one word.
fn push_words(words: &mut Vec<u32>, mut number: u128) {
    loop {
        // Cut on purpose: the lowest word.
        words.push(number as u32);
        number >>= 32;
        if number == 0 {
            return;
        }
    }
}

/// The stream of the task that runs in this thread, if it has one.
#[pyfunction]
pub(crate) fn running_stream(py: Python<'_>) -> Option<Py<PyAny>> {
    CURRENT.with_borrow(|stream| stream.as_ref().map(|stream| stream.object.clone_ref(py)))
}
