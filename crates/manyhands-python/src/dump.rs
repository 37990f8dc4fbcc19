//! What workers do, for `_dump.py`.

use manyhands_runtime::{Answer, PoolDump};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

/// What a worker answered, as bytes or None, and what the kernel says of one that did not: a letter, and
/// where it waits, or None.
fn put_answer(item: &Bound<'_, PyDict>, answer: &Answer) -> PyResult<()> {
    let py = item.py();
    let stack = answer.stack.as_ref().map(|text| PyBytes::new(py, text));
    item.set_item("stack", stack)?;
    let kernel = answer.kernel.as_ref();
    let kernel = kernel.map(|state| (state.letter, state.wait.as_deref()));
    item.set_item("kernel", kernel)
}

/// The dump of a pool of processes.
pub(crate) fn dump_dict<'py>(py: Python<'py>, dump: &PoolDump) -> PyResult<Bound<'py, PyDict>> {
    let workers = dump.stats.workers.iter().zip(&dump.answers);
    let workers = workers
        .map(|(worker, answer)| {
            let item = PyDict::new(py);
            item.set_item("slot", worker.slot)?;
            item.set_item("pid", worker.pid)?;
            item.set_item("task_age", worker.task_age.map(|nanos| nanos as f64 / 1e9))?;
            item.set_item("task_index", worker.task_index)?;
            let task = worker.definition.as_ref().map(|known| known.label());
            item.set_item("task", task)?;
            put_answer(&item, answer)?;
            Ok(item)
        })
        .collect::<PyResult<Vec<_>>>()?;
    let shown = PyDict::new(py);
    shown.set_item("workers", workers)?;
    shown.set_item("queued", dump.stats.queued)?;
    shown.set_item("pending", dump.stats.pending)?;
    Ok(shown)
}
