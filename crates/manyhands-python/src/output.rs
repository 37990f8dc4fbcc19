//! What workers put out for people, as Python gives and takes it; see `output` of the runtime.

use crate::{bystanders, process};
use manyhands_runtime::{LONGEST_NOTE, Outlet, Output, Pool, WorkerEnd};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How many notes are handed to Python at a time.
const PORTION: usize = 1000;
/// The longest wait for notes at a time, in seconds.
const LONGEST_WAIT: f64 = 3600.0;

/// The worker that this process is, and its generation: a child that a task forks is none.
static OUTLET: OnceLock<(Arc<Outlet>, u32)> = OnceLock::new();

/// This process is a worker from here on; tells Python if its parent wants what it puts out.
pub(crate) fn begin(py: Python<'_>, end: &WorkerEnd, content: &[u8]) -> PyResult<()> {
    // A worker is born once.
    let _first = OUTLET.set((end.outlet(), process::generation()));
    let wanted = end.wanted_output();
    if wanted != 0 {
        let forward = py.import("manyhands._forward")?;
        forward.call_method1("begin", (wanted, PyBytes::new(py, content)))?;
    }
    Ok(())
}

/// Sends a note to the parent; false if this process is no worker. It never waits for the parent.
#[pyfunction]
pub(crate) fn put_output(_py: Python<'_>, tag: u8, data: &[u8]) -> PyResult<bool> {
    if data.len() > LONGEST_NOTE {
        let len = data.len();
        return Err(PyValueError::new_err(format!(
            "a note has at most {LONGEST_NOTE} bytes, not {len}"
        )));
    }
    match OUTLET.get() {
        Some((outlet, generation)) if *generation == process::generation() => {
            // SAFETY: the worker's thread has the GIL wherever it uses its end but in `wait`, and we have it now.
            unsafe { outlet.put(tag, data) };
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// A note: its tag, the slot and the process id of its worker, and its bytes.
type Note<'py> = (u8, u32, i32, Bound<'py, PyBytes>);

/// What the workers of a pool put out, for the one thread that takes it.
#[pyclass(name = "OutputStream", module = "manyhands._core", frozen)]
pub(crate) struct OutputStream {
    output: Arc<Output>,
    generation: u32,
}

#[pymethods]
impl OutputStream {
    #[new]
    fn new() -> Self {
        Self {
            output: Arc::default(),
            generation: process::generation(),
        }
    }

    /// Waits for notes for at most so many seconds, and takes some, and how many were lost; None once there will be no
    /// more. What was taken before was handled.
    fn take<'py>(&self, py: Python<'py>, seconds: f64) -> PyResult<Option<(Vec<Note<'py>>, u64)>> {
        if self.generation != process::generation() {
            return Ok(None); // its lock may be held by a thread that is not there
        }
        let _inside = bystanders::enter(py)?;
        let time = Duration::from_secs_f64(seconds.clamp(0.0, LONGEST_WAIT));
        let taken = bystanders::detach(py, || self.output.take(PORTION, time));
        Ok(taken.map(|(notes, lost)| {
            let notes = notes.iter().map(|note| {
                let bytes = PyBytes::new(py, &note.bytes);
                (note.tag, note.slot, note.pid, bytes)
            });
            (notes.collect(), lost)
        }))
    }

    /// Nothing that comes from here on has to be handled.
    fn finish(&self) {
        if self.generation == process::generation() {
            self.output.finish();
        }
    }

    /// A thread that will take notes is about to: who takes a result waits for it from here on.
    fn expect(&self) {
        if self.generation == process::generation() {
            self.output.expect();
        }
    }

    /// Waits until what has come so far was handled.
    fn settle(&self, py: Python<'_>) -> PyResult<()> {
        if self.generation == process::generation() && self.output.is_behind() {
            let _inside = bystanders::enter(py)?;
            bystanders::detach(py, || self.output.settle());
        }
        Ok(())
    }

    /// How many notes were not taken.
    fn unread(&self) -> usize {
        if self.generation == process::generation() {
            self.output.unread()
        } else {
            0
        }
    }
}

impl OutputStream {
    pub(crate) fn output(&self) -> Arc<Output> {
        self.output.clone()
    }
}

/// Before a result is seen: what its task put out was handled.
#[inline]
pub(crate) fn settle(py: Python<'_>, pool: &Pool) {
    if let Some(output) = pool.output()
        && output.is_behind()
    {
        bystanders::detach(py, || output.settle());
    }
}
