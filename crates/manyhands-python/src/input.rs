//! The input of a map: what the user's iterables give, item by item.

use crate::results::is_interruption;
use manyhands_os::monotonic_nanos;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyList, PyTuple};
use std::collections::VecDeque;

/// Input that takes longer than so many nanoseconds makes its consumer wait.
const SLOW: u64 = 500_000;

/// The iterators of a map, and what they gave lately.
pub(crate) struct Input {
    iterators: Vec<Py<PyIterator>>,
    star: bool,
    /// An item is a list of up to so many of what the iterators give.
    batch: Option<usize>,
    /// Index of the next item.
    pub(crate) index: u64,
    /// Whether there is no more.
    pub(crate) ended: bool,
    /// What the input raised; it is raised when the results before it are out.
    pub(crate) error: Option<PyErr>,
    /// Whether items are there before they are asked for: only who is preempted waits for them.
    is_quick: bool,
    /// How long the input took when it was asked last, in nanoseconds.
    pull_nanos: u64,
    /// How many items the last batch has.
    last_len: usize,
    /// The items that nobody has taken a result of yet, from index `kept_from` on; none once nobody
    /// will ask for them.
    kept: Option<VecDeque<Option<Py<PyAny>>>>,
    kept_from: u64,
}

/// Whether this iterates over a list, a tuple or a range.
fn is_quick(iterator: &Bound<'_, PyAny>) -> bool {
    let kind: *const ffi::PyTypeObject = iterator.get_type_ptr();
    [
        &raw const ffi::PyListIter_Type,
        &raw const ffi::PyTupleIter_Type,
        &raw const ffi::PyRangeIter_Type,
    ]
    .contains(&kind)
}

impl Input {
    pub(crate) fn new(
        iterables: &Bound<'_, PyTuple>,
        star: bool,
        batch: Option<usize>,
    ) -> PyResult<Self> {
        let iterators = iterables
            .iter()
            .map(|iterable| Ok(iterable.try_iter()?.unbind()))
            .collect::<PyResult<Vec<_>>>()?;
        Ok(Self {
            star: star || (iterators.len() > 1 && batch.is_none()),
            is_quick: iterators
                .iter()
                .all(|iterator| is_quick(iterator.bind(iterables.py()))),
            iterators,
            batch,
            index: 0,
            ended: false,
            error: None,
            pull_nanos: 0,
            last_len: 0,
            kept: Some(VecDeque::new()),
            kept_from: 0,
        })
    }

    /// Whether an item is a tuple of arguments, and not the one argument.
    pub(crate) fn is_star(&self) -> bool {
        self.star && self.batch.is_none()
    }

    /// Whether an item is a list of several of what the iterators give.
    pub(crate) fn is_batched(&self) -> bool {
        self.batch.is_some()
    }

    /// Whether the input made this thread wait when it was asked last.
    pub(crate) fn is_slow(&self) -> bool {
        self.pull_nanos > SLOW
    }

    /// How long the input took when it was asked last, in nanoseconds.
    pub(crate) fn pull_nanos(&self) -> u64 {
        self.pull_nanos
    }

    /// How many items the batch of that index has: all have as many but for the last.
    pub(crate) fn batch_len(&self, index: u64) -> Option<usize> {
        if index + 1 == self.index {
            Some(self.last_len)
        } else {
            self.batch
        }
    }

    /// Takes no more.
    pub(crate) fn end(&mut self) {
        self.ended = true;
        self.iterators.clear();
    }

    /// The next item; none at the end. Its index is one less than `index` then.
    #[inline]
    pub(crate) fn next<'py>(&mut self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        if self.ended {
            return None;
        }
        // Every 64th time is enough to notice, and the clock costs as much as a short item.
        let timed =
            !self.is_quick && (self.index < 16 || self.index.is_multiple_of(64) || self.is_slow());
        let timed = timed.then(monotonic_nanos);
        let item = match self.batch {
            None => self.one(py),
            Some(size) => self.many(py, size),
        };
        if let Some(start) = timed {
            self.pull_nanos = monotonic_nanos() - start;
        }
        match item {
            Ok(Some(item)) => {
                self.index += 1;
                if let Some(kept) = &mut self.kept {
                    kept.push_back(Some(item.clone().unbind()));
                }
                Some(item)
            }
            Ok(None) => {
                self.end();
                None
            }
            Err(error) => {
                self.end();
                self.error = Some(error);
                None
            }
        }
    }

    /// A Ctrl-C that came while input was taken, or another exception that is no error: it is not
    /// kept until what is on its way has come.
    pub(crate) fn take_interruption(&mut self, py: Python<'_>) -> Option<PyErr> {
        self.error.take_if(|error| is_interruption(py, error))
    }

    #[inline]
    fn one<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let [iterator] = &self.iterators[..] else {
            return self.row(py);
        };
        let Some(item) = iterator.bind(py).clone().next() else {
            return Ok(None);
        };
        let item = item?;
        if self.star && !item.is_instance_of::<PyTuple>() {
            let args = item.try_iter()?.collect::<PyResult<Vec<_>>>()?;
            return Ok(Some(PyTuple::new(py, args)?.into_any()));
        }
        Ok(Some(item))
    }

    /// One of each iterator.
    fn row<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let mut row = Vec::with_capacity(self.iterators.len());
        for iterator in &self.iterators {
            match iterator.bind(py).clone().next() {
                Some(item) => row.push(item?),
                None => return Ok(None),
            }
        }
        Ok(Some(PyTuple::new(py, row)?.into_any()))
    }

    fn many<'py>(&mut self, py: Python<'py>, size: usize) -> PyResult<Option<Bound<'py, PyAny>>> {
        let mut items = Vec::with_capacity(size.min(1024));
        while items.len() < size
            && let Some(item) = self.one(py)?
        {
            items.push(item);
        }
        if items.is_empty() {
            return Ok(None);
        }
        self.last_len = items.len();
        Ok(Some(PyList::new(py, items)?.into_any()))
    }

    /// Keeps no items from now on.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
    }

    /// The item of that index, if it was kept; with `done` nobody will ask for it again.
    pub(crate) fn kept<'py>(
        &mut self,
        py: Python<'py>,
        index: u64,
        done: bool,
    ) -> Option<Bound<'py, PyAny>> {
        let kept = self.kept.as_mut()?;
        let at = usize::try_from(index.checked_sub(self.kept_from)?).ok()?;
        let item = kept.get_mut(at)?;
        let found = item.as_ref().map(|item| item.bind(py).clone());
        if done {
            *item = None;
            while let Some(None) = kept.front() {
                kept.pop_front();
                self.kept_from += 1;
            }
        }
        found
    }
}
