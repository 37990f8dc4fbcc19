//! The native part of `Results`: the iterator over what a map comes to, whatever engine runs it.

use crate::bystanders::{detach, enter, is_ending};
use crate::once::intern;
use crate::pool::deadline_after;
use crate::{hooks, local, process};
use manyhands_runtime::Tally;
use pyo3::exceptions::{
    PyException, PyKeyboardInterrupt, PyRuntimeError, PyTypeError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// The end of an item, or one result of several.
pub(crate) struct Taken<'py> {
    pub(crate) index: u64,
    /// Whether more results of this item follow.
    pub(crate) more: bool,
    /// Whether it is a result; the end of a generator is none.
    pub(crate) is_value: bool,
    pub(crate) outcome: Result<Bound<'py, PyAny>, Failed>,
}

/// How an item failed.
pub(crate) struct Failed {
    pub(crate) error: PyErr,
    /// The worker's process; 0 where there was none.
    pub(crate) pid: i32,
    pub(crate) attempts: u8,
    /// Whether its worker died of it: what was sent is not unpickled here, too.
    pub(crate) died: bool,
    /// Whether its time was up, in this process.
    pub(crate) is_timeout: bool,
}

impl Failed {
    pub(crate) fn new(error: PyErr, pid: i32, attempts: u8) -> Self {
        Self {
            error,
            pid,
            attempts,
            died: false,
            is_timeout: false,
        }
    }
}

/// Whether what was raised here is to be raised at once, whatever becomes of items that fail: a Ctrl-C, and
/// others that are no errors.
pub(crate) fn is_interruption(py: Python<'_>, error: &PyErr) -> bool {
    !error.is_instance_of::<PyException>(py)
}

/// Whether this is a Ctrl-C: what else comes while a result is unpickled is the result's.
pub(crate) fn is_ctrl_c(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyKeyboardInterrupt>(py)
}

/// What an engine gives: the ends of the items of one map.
pub(crate) trait Source: Send {
    /// The next end, in the order that was asked for; none when all are out. An error is no end of an
    /// item: the wait was interrupted, its time was up, or the input raised.
    fn take<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Taken<'py>>>;

    /// The next value, if it is there and nothing about it is special: the short way of `take`.
    fn take_value<'py>(&mut self, py: Python<'py>) -> Option<Bound<'py, PyAny>>;

    /// Whether an end is there without waiting.
    fn is_ready(&mut self, py: Python<'_>) -> bool;

    /// The item whose end was taken last, as the function got it or as a copy of that.
    fn input<'py>(&mut self, py: Python<'py>, taken: &Taken<'py>) -> Option<Bound<'py, PyAny>>;

    /// How many of the input's items a batch has, where items are batches.
    fn batch_len(&self, index: u64) -> Option<usize>;

    /// Keeps no more items than it needs: nobody will ask for those that succeed.
    fn forget_inputs(&mut self);

    /// Takes no more input and cancels what has not started; with `kill` what runs is ended, where that
    /// can be done.
    fn cancel(&mut self, py: Python<'_>, kill: bool);

    /// Takes all input now, whatever that needs of memory, or what comes until that nanosecond.
    fn take_all_input(&mut self, py: Python<'_>, until: u64) -> PyResult<()>;

    /// The consumer waits for the end of the pool, or is back from that. Items that have more to yield
    /// than there is room for fail meanwhile.
    fn leave(&mut self, left: bool);
}

/// What is known of a map at any moment, and from any thread.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Items that were taken from the input.
    pub(crate) pulled: AtomicU64,
    /// Items whose end was handed over.
    pub(crate) taken: AtomicU64,
    /// Items that failed, of these.
    pub(crate) failed: AtomicU64,
    /// Items that have ended, handed over or not, and the time that they took.
    pub(crate) tally: Arc<Tally>,
    /// Encoded bytes of items, and of results.
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    /// Whether the input has ended, so that `pulled` is the total.
    pub(crate) complete: AtomicBool,
    /// Whether somebody wants it to stop.
    pub(crate) closing: AtomicBool,
}

impl Counts {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        // Relaxed: figures to show.
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// What becomes of items that fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnError {
    Raise,
    Return,
    Skip,
    Group,
}

impl OnError {
    fn parse(text: &str) -> PyResult<Self> {
        Ok(match text {
            "raise" => Self::Raise,
            "return" => Self::Return,
            "skip" => Self::Skip,
            "group" => Self::Group,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "on_error is \"raise\", \"return\", \"skip\" or \"group\", not {text:?}"
                )));
            }
        })
    }
}

struct Taking {
    source: Box<dyn Source>,
    on_error: OnError,
    /// Whether the items come with their results.
    with_input: bool,
    /// Whether an item is a list of several, whose results are handed over one by one.
    batched: bool,
    /// Results that were taken and are not handed over yet: of a batch, or for an event loop.
    flat: VecDeque<Py<PyAny>>,
    /// What is raised behind these.
    late: Option<PyErr>,
    /// Exceptions of a group.
    group: Vec<Py<PyAny>>,
    over: bool,
    /// Its consumer waits for the end of the pool.
    left: bool,
    /// A value is handed over as it is, and nothing else has to be done.
    is_simple: bool,
}

/// What `manyhands.Results` builds on.
#[pyclass(name = "ResultsBase", module = "manyhands._core", subclass, frozen)]
pub(crate) struct ResultsBase {
    taking: Mutex<Taking>,
    counts: Arc<Counts>,
    /// The thread that holds `taking`, so that it is told when it comes again.
    holder: AtomicUsize,
    /// The thread that took last.
    taker: AtomicUsize,
    generation: u32,
    used: AtomicBool,
    over: AtomicBool,
}

/// What the face makes a `ResultsBase` of.
#[pyclass(name = "SourceHandle", module = "manyhands._core", frozen)]
pub(crate) struct SourceHandle(Mutex<Option<Counted>>);

/// A source, and what is known of it.
struct Counted {
    source: Box<dyn Source>,
    counts: Arc<Counts>,
}

impl SourceHandle {
    pub(crate) fn new(source: Box<dyn Source>, counts: Arc<Counts>) -> Self {
        Self(Mutex::new(Some(Counted { source, counts })))
    }
}

#[pymethods]
impl ResultsBase {
    #[new]
    #[pyo3(signature = (source, on_error, batched))]
    fn new(source: &SourceHandle, on_error: &str, batched: bool) -> PyResult<Self> {
        let on_error = OnError::parse(on_error)?;
        let taken = source
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Counted { source, counts } =
            taken.ok_or_else(|| PyTypeError::new_err("this source has its results already"))?;
        Ok(Self {
            taking: Mutex::new(Taking {
                source,
                on_error,
                with_input: false,
                batched,
                flat: VecDeque::new(),
                late: None,
                group: Vec::new(),
                over: false,
                left: false,
                is_simple: false,
            }),
            counts,
            holder: AtomicUsize::new(0),
            taker: AtomicUsize::new(0),
            generation: process::generation(),
            used: AtomicBool::new(false),
            over: AtomicBool::new(false),
        })
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let this = slf.get();
        let py = slf.py();
        let _inside = enter(py)?;
        // The short way, for one more value of many.
        if let Ok(mut taking) = this.taking.try_lock()
            && taking.is_simple
        {
            this.holder.store(this_thread(), Ordering::Relaxed);
            let value = taking.source.take_value(py);
            this.holder.store(0, Ordering::Relaxed);
            if value.is_some() {
                // Relaxed, and no addition: a figure that only who holds the lock changes.
                let taken = &this.counts.taken;
                taken.store(taken.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                return Ok(value);
            }
        }
        let mut taking = this.lock(py)?;
        if let Some(value) = taking.flat.pop_front() {
            return Ok(Some(value.into_bound(py)));
        }
        if let Some(error) = taking.late.take() {
            return Err(error);
        }
        this.advance(slf, &mut taking, true)
    }

    /// Has items come with their results: (item, result).
    fn _with_input(&self, py: Python<'_>) -> PyResult<()> {
        let _inside = enter(py)?;
        if self.used.load(Ordering::Relaxed) {
            return Err(PyTypeError::new_err(
                "with_input() comes before the first result is taken",
            ));
        }
        self.lock(py)?.with_input = true;
        Ok(())
    }

    /// (items taken from the input, ends handed over, failures of these, items that have ended, whether
    /// the first is the total, whether all is over). For any thread, at any time.
    fn _counts(&self) -> (u64, u64, u64, u64, bool, bool) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (
            get(&self.counts.pulled),
            get(&self.counts.taken),
            get(&self.counts.failed),
            get(&self.counts.tally.ended),
            self.counts.complete.load(Ordering::Relaxed),
            self.over.load(Ordering::Relaxed),
        )
    }

    /// Whether a result was asked for.
    #[getter]
    fn _used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes no more input and cancels what has not started.
    fn _cancel(&self, py: Python<'_>) -> PyResult<()> {
        let _inside = enter(py)?;
        self.counts.closing.store(true, Ordering::Relaxed);
        if self.generation != process::generation() {
            return Ok(()); // the tasks are the parent's
        }
        let mut taking = self.lock(py)?;
        taking.end(py, &self.over, false);
        taking.flat.clear();
        taking.late = None;
        Ok(())
    }

    /// All results that were not taken yet.
    ///
    /// >>> import manyhands as mh
    /// >>> mh.map(abs, [-1, 2]).list()
    /// [1, 2]
    fn list<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyList>> {
        let _inside = enter(slf.py())?;
        let found = PyList::empty(slf.py());
        while let Some(value) = Self::__next__(slf)? {
            found.append(value)?;
        }
        Ok(found)
    }

    /// Runs to the end and drops the results; gives the summary.
    ///
    /// >>> import manyhands as mh
    /// >>> mh.map(abs, range(10)).run().done
    /// 10
    fn run<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(slf.py())?;
        while Self::__next__(slf)?.is_some() {}
        hooks::summary(slf.py())?.call1((slf,))
    }

    /// Waits for a result and takes what else is there, up to so many, for `_fetched`; false at the end.
    fn _fetch(slf: &Bound<'_, Self>, most: usize) -> PyResult<bool> {
        let (this, py) = (slf.get(), slf.py());
        let _inside = enter(py)?;
        let mut taking = this.lock(py)?;
        let taking = &mut *taking;
        if taking.flat.is_empty() {
            if let Some(error) = taking.late.take() {
                return Err(error);
            }
            let mut found = VecDeque::new();
            while found.len() < most {
                match this.advance(slf, taking, found.is_empty()) {
                    Ok(Some(value)) => {
                        found.push_back(value.unbind());
                        found.append(&mut taking.flat);
                    }
                    Ok(None) => break,
                    Err(error) if found.is_empty() => return Err(error),
                    Err(error) => {
                        taking.late = Some(error);
                        break;
                    }
                }
            }
            taking.flat = found;
            // What was fetched comes before what is taken from the source.
            taking.is_simple = false;
        }
        Ok(!taking.flat.is_empty())
    }

    /// Up to so many of the results that were fetched, without waiting.
    fn _fetched<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Bound<'py, PyList>> {
        let _inside = enter(py)?;
        let mut taking = self.lock(py)?;
        let count = most.min(taking.flat.len());
        PyList::new(py, taking.flat.drain(..count))
    }

    /// (seconds in the function, processor seconds of that, encoded bytes of items, and of results).
    fn _measures(&self) -> (f64, f64, u64, u64) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        (
            get(&counts.tally.busy_nanos) as f64 / 1e9,
            get(&counts.tally.cpu_nanos) as f64 / 1e9,
            get(&counts.sent),
            get(&counts.received),
        )
    }

    /// The calling thread is about to wait for the end of the pool. A map that nobody has taken from has
    /// all of its input taken, so that it runs to its end, or what comes in so many seconds; one that this
    /// thread took from is left.
    fn _leave(&self, py: Python<'_>, seconds: Option<f64>) -> PyResult<()> {
        let _inside = enter(py)?;
        if self.generation != process::generation() {
            return Ok(()); // the tasks are the parent's
        }
        if !self.used.load(Ordering::Relaxed) {
            let mut taking = self.lock(py)?;
            if taking.over {
                return Ok(());
            }
            let until = deadline_after(seconds).unwrap_or(u64::MAX);
            return taking.source.take_all_input(py, until);
        }
        if self.taker.load(Ordering::Relaxed) == this_thread()
            && let Ok(mut taking) = self.taking.try_lock()
        {
            taking.source.leave(true);
            taking.left = true;
        }
        Ok(())
    }
}

/// The lock, while a thread has it.
struct Holding<'results> {
    taking: MutexGuard<'results, Taking>,
    holder: &'results AtomicUsize,
}

impl Deref for Holding<'_> {
    type Target = Taking;

    fn deref(&self) -> &Taking {
        &self.taking
    }
}

impl DerefMut for Holding<'_> {
    fn deref_mut(&mut self) -> &mut Taking {
        &mut self.taking
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.holder.store(0, Ordering::Relaxed);
    }
}

/// The error that ends a map; with a Ctrl-C it says how far the map was.
#[cold]
fn stopped(results: &Bound<'_, ResultsBase>, error: PyErr) -> PyResult<PyErr> {
    let py = results.py();
    if !is_ctrl_c(py, &error) {
        return Ok(error);
    }
    let error = error.into_value(py);
    hooks::stopped(py)?.call1((&error, results))?;
    Ok(PyErr::from_value(error.into_bound(py).into_any()))
}

/// Nothing is shown of the map any more, which has ended.
#[cold]
fn finish(results: &Bound<'_, ResultsBase>) -> PyResult<()> {
    let py = results.py();
    let finish = || {
        let finished = results.call_method0(intern!(py, "_finish"));
        finished.map(drop)
    };
    match finish() {
        Err(error) if is_ctrl_c(py, &error) => {
            // It came just now, and may have kept the method from its work.
            finish()?;
            local::forget_place(py, &error);
            Err(stopped(results, error)?)
        }
        finished => finished,
    }
}

/// A number that no other living thread has; not 0.
fn this_thread() -> usize {
    thread_local! {
        static PLACE: u8 = const { 0 };
    }
    PLACE.with(|place| std::ptr::from_ref(place).addr())
}

impl ResultsBase {
    /// The lock, which a thread that waits for a result holds.
    #[inline]
    fn lock(&self, py: Python<'_>) -> PyResult<Holding<'_>> {
        // In a child of fork nobody gives it back, and what is behind it is the parent's.
        process::check(self.generation, "this map")?;
        let me = this_thread();
        loop {
            let taking = match self.taking.try_lock() {
                Ok(taking) => taking,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    // Relaxed: only what this very thread has written is equal.
                    if self.holder.load(Ordering::Relaxed) == me {
                        return Err(PyRuntimeError::new_err(
                            "the input of a map cannot take from the map itself",
                        ));
                    }
                    if is_ending() {
                        // Its holder may be parked.
                        return Err(PyRuntimeError::new_err(
                            "the program ends, and with it the map",
                        ));
                    }
                    detach(py, || {
                        drop(self.taking.lock().unwrap_or_else(PoisonError::into_inner));
                    });
                    continue;
                }
            };
            self.holder.store(me, Ordering::Relaxed);
            return Ok(Holding {
                taking,
                holder: &self.holder,
            });
        }
    }

    /// The next result; none at the end, or if it is not there and `waits` is false.
    #[inline]
    fn advance<'py>(
        &self,
        slf: &Bound<'py, Self>,
        taking: &mut Taking,
        waits: bool,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = slf.py();
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
            if !taking.with_input {
                taking.source.forget_inputs();
                taking.is_simple = !taking.batched;
            }
        }
        // Relaxed, here and in `_leave`: only what this very thread has written is equal.
        self.taker.store(this_thread(), Ordering::Relaxed);
        if taking.left {
            taking.left = false;
            taking.source.leave(false);
        }
        loop {
            if taking.over || (!waits && !taking.source.is_ready(py)) {
                return Ok(None);
            }
            let taken = match taking.source.take(py) {
                Ok(Some(taken)) => taken,
                Ok(None) => {
                    taking.end(py, &self.over, false);
                    finish(slf)?;
                    if taking.group.is_empty() {
                        return Ok(None);
                    }
                    let errors = std::mem::take(&mut taking.group);
                    let group = hooks::group(py)?.call1((PyList::new(py, errors)?, slf))?;
                    return Err(PyErr::from_value(group));
                }
                Err(error) => {
                    process::check(self.generation, "this map")?;
                    // Who pressed Ctrl-C does not want to wait for hours.
                    taking.end(py, &self.over, is_ctrl_c(py, &error));
                    finish(slf)?;
                    return Err(stopped(slf, error)?);
                }
            };
            if !taken.more {
                Counts::add(&self.counts.taken, 1);
            }
            let asked = taken.outcome.is_err() && taking.on_error != OnError::Raise;
            let input = if taking.with_input || asked {
                taking.source.input(py, &taken)
            } else {
                None
            };
            let index = taken.index;
            let (failed, input) = match taken.outcome {
                Err(failed) => (failed, input),
                Ok(_) if !taken.is_value => continue,
                Ok(value) if taking.is_simple => return Ok(Some(value)),
                Ok(value) => match taking.succeeded(py, index, taken.more, value, input.as_ref()) {
                    Ok(Some(value)) => return Ok(Some(value)),
                    Ok(None) => continue,
                    Err(error) if is_interruption(py, &error) => {
                        taking.end(py, &self.over, is_ctrl_c(py, &error));
                        finish(slf)?;
                        return Err(stopped(slf, error)?);
                    }
                    Err(error) => {
                        let failed = Failed::new(error, 0, 1);
                        let value = py.None().into_bound(py);
                        let taken = Taken {
                            outcome: Ok(value),
                            ..taken
                        };
                        (failed, input.or_else(|| taking.source.input(py, &taken)))
                    }
                },
            };
            Counts::add(&self.counts.failed, 1);
            if let Some(value) = self.failed(slf, taking, index, failed, input)? {
                return Ok(Some(value));
            }
        }
    }

    #[cold]
    fn failed<'py>(
        &self,
        slf: &Bound<'py, Self>,
        taking: &mut Taking,
        index: u64,
        failed: Failed,
        input: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = slf.py();
        let Failed {
            error,
            pid,
            attempts,
            is_timeout,
            ..
        } = failed;
        if taking.on_error == OnError::Raise {
            taking.end(py, &self.over, false);
            finish(slf)?;
            let error = hooks::raised(py)?.call1((error.into_value(py), slf, index))?;
            return Err(PyErr::from_value(error));
        }
        let error = error.into_value(py);
        let failure = hooks::failure(py)?.call1((
            &error,
            index,
            input.clone(),
            attempts,
            pid,
            is_timeout,
            slf,
        ))?;
        match taking.on_error {
            OnError::Return if taking.with_input => {
                let pair = PyTuple::new(
                    py,
                    [input.unwrap_or_else(|| py.None().into_bound(py)), failure],
                )?;
                Ok(Some(pair.into_any()))
            }
            OnError::Return => Ok(Some(failure)),
            OnError::Group => {
                taking.group.push(error.into_any());
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}

impl Taking {
    fn end(&mut self, py: Python<'_>, over: &AtomicBool, kill: bool) {
        self.over = true;
        self.is_simple = false;
        over.store(true, Ordering::Relaxed);
        self.source.cancel(py, kill);
    }

    /// What is handed over for a value; nothing for an empty batch. An error is the item's.
    #[inline]
    fn succeeded<'py>(
        &mut self,
        py: Python<'py>,
        index: u64,
        more: bool,
        value: Bound<'py, PyAny>,
        input: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let pair = |input: Option<Bound<'py, PyAny>>, value| {
            let input = input.unwrap_or_else(|| py.None().into_bound(py));
            PyTuple::new(py, [input, value]).map(Bound::into_any)
        };
        // What the function yields is a result, and how many of them there are is its own business.
        if !self.batched || more {
            if !self.with_input {
                return Ok(Some(value));
            }
            return pair(input.cloned(), value).map(Some);
        }
        let results = value.try_iter().map_err(|_| {
            let kind = value.get_type().name().map_or_else(|_| String::new(), |n| n.to_string());
            PyTypeError::new_err(format!(
                "with batch= the function gets a list and returns a list of as many results, not {kind}"
            ))
        })?;
        let results = results.collect::<PyResult<Vec<_>>>()?;
        let wanted = self.source.batch_len(index).unwrap_or(results.len());
        if results.len() != wanted {
            return Err(PyValueError::new_err(format!(
                "with batch= the function returns a list of as many results: it returned {} for a batch of \
                 {wanted}; where their number differs it has to yield them",
                results.len()
            )));
        }
        match input {
            Some(items) if self.with_input => {
                for (item, result) in items.try_iter()?.zip(results) {
                    self.flat.push_back(pair(Some(item?), result)?.unbind());
                }
            }
            _ => self.flat.extend(results.into_iter().map(Bound::unbind)),
        }
        Ok(self.flat.pop_front().map(|value| value.into_bound(py)))
    }
}
