//! What tasks write to standard output and errors, kept for their futures: how it is asked for, and when.
//!
//! What is kept is an object of Python, of `_capture.py`, which a call makes for its task or its items. In this
//! process a task runs *inside* of it. To a worker process goes its key, in front of the origin of random streams
//! (`seeds.rs`), in the same section of the record: a 2, the length of the key, and the key. There
//! `_capture_worker.py` begins and ends.

use crate::hooks;
use crate::once::intern;
use crate::seeds::Origin;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// What keeps the output of a task, or of the items of a map.
pub(crate) type Kept = Arc<Py<PyAny>>;

/// What stands in front of a key; an origin begins with 0 or 1.
const MARK: u8 = 2;

/// The bytes that go along with a task: its origin, behind the key of what keeps its output.
#[inline]
pub(crate) fn section(
    py: Python<'_>,
    kept: Option<&Kept>,
    origin: Option<Origin>,
) -> PyResult<Option<Origin>> {
    match kept {
        None => Ok(origin),
        Some(kept) => with_key(py, kept, origin.as_deref()).map(Some),
    }
}

#[cold]
fn with_key(py: Python<'_>, kept: &Kept, origin: Option<&[u8]>) -> PyResult<Origin> {
    let key = kept.bind(py).getattr(intern!(py, "key"))?;
    let key = key.cast_into::<PyBytes>()?;
    let key = key.as_bytes();
    let mut bytes = vec![MARK];
    bytes.extend_from_slice(&(key.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(origin.unwrap_or_default());
    Ok(bytes.into())
}

/// What a worker got in a section: the key, and the origin.
fn split(section: &[u8]) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let whole = || (None, Some(section.to_vec()));
    let Some((&MARK, rest)) = section.split_first() else {
        return whole();
    };
    let Some((len, rest)) = rest.split_first_chunk::<4>() else {
        return whole(); // nonsense, which is told where the origin is read
    };
    let Some((key, origin)) = rest.split_at_checked(u32::from_ne_bytes(*len) as usize) else {
        return whole();
    };
    let origin = (!origin.is_empty()).then(|| origin.to_vec());
    (Some(key.to_vec()), origin)
}

/// Gives the memory of a range of a memory file back, which is read as zeros then. Where that cannot be done it goes
/// with the file.
#[pyfunction]
pub(crate) fn give_back(descriptor: i32, start: u64, length: u64) {
    // SAFETY: borrowed for the length of the call; a closed number gives an error and nothing else.
    let file = unsafe { BorrowedFd::borrow_raw(descriptor) };
    manyhands_os::give_back(file, start, length);
}

// ---- In a worker process --------------------------------------------------------------------

/// Whether the output of what runs is kept.
#[derive(Default)]
pub(crate) struct Capturing {
    /// That of the record that came last.
    key: Option<Vec<u8>>,
    has_begun: bool,
}

impl Capturing {
    /// Takes the key out of what came with a record, and leaves the origin there.
    #[inline]
    pub(crate) fn take_key(&mut self, section: &mut Option<Vec<u8>>) {
        self.key = None;
        if let Some(came) = section.take() {
            (self.key, *section) = split(&came);
        }
    }

    /// Whether the output of what came last is kept.
    #[inline]
    pub(crate) fn is_wanted(&self) -> bool {
        self.key.is_some()
    }

    /// What runs from here on is the task of that key, if there is one, or its item of that index.
    #[inline]
    pub(crate) fn begin(&mut self, py: Python<'_>, index: u64, slot: u32) -> PyResult<()> {
        match &self.key {
            None => Ok(()),
            Some(key) => {
                let key = PyBytes::new(py, key);
                self.has_begun = true;
                hooks::begin_capture(py)?.call1((key, index, slot))?;
                Ok(())
            }
        }
    }

    /// It has ended; also if it has not begun.
    #[inline]
    pub(crate) fn end(&mut self, py: Python<'_>) {
        if self.has_begun {
            self.end_begun(py);
        }
    }

    #[cold]
    fn end_begun(&mut self, py: Python<'_>) {
        self.has_begun = false;
        // The task has its result, whatever becomes of what it wrote.
        if let Err(error) = hooks::end_capture(py).and_then(|end| end.call0()) {
            error.write_unraisable(py, None);
        }
    }
}

// ---- In this process ------------------------------------------------------------------------

/// While it lives, what this thread writes is kept.
pub(crate) struct Inside(Option<Py<PyAny>>);

/// What this thread runs is the task of that output, or the item of that index.
#[inline]
pub(crate) fn enter(py: Python<'_>, kept: Option<&Kept>, index: u64) -> PyResult<Inside> {
    let Some(kept) = kept else {
        return Ok(Inside(None));
    };
    let inside = kept
        .bind(py)
        .call_method1(intern!(py, "enter"), (index,))?
        .unbind();
    Ok(Inside(Some(inside)))
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        let Some(inside) = self.0.take() else { return };
        Python::attach(|py| {
            let leave = || inside.call_method0(py, intern!(py, "leave"));
            // Once more where a Ctrl-C came in between: who has left does not leave again.
            if let Err(error) = leave() {
                let _left = leave();
                error.write_unraisable(py, None);
            }
        });
    }
}
