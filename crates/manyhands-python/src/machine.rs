//! What this machine offers, as a dict.

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// So many bytes of memory can be taken and leave enough for others.
#[pyfunction]
pub(crate) fn memory_to_take() -> u64 {
    manyhands_runtime::memory_to_take()
}

/// Facts about memory, files and the kernel by their names in `MachineFacts`; None where unknown.
#[pyfunction]
pub(crate) fn machine_facts(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let facts = manyhands_os::machine_facts();
    let dict = PyDict::new(py);
    dict.set_item("kernel", facts.kernel)?;
    dict.set_item("memory_total", facts.memory_total)?;
    dict.set_item("memory_available", facts.memory_available)?;
    dict.set_item("memory_limit", facts.memory_limit)?;
    dict.set_item("memory_limit_source", facts.memory_limit_source)?;
    dict.set_item("cgroup_version", facts.cgroup_version)?;
    dict.set_item("cgroup_path", facts.cgroup_path)?;
    dict.set_item("shm_size", facts.shm_size)?;
    dict.set_item("shm_free", facts.shm_free)?;
    dict.set_item("open_files", facts.open_files)?;
    dict.set_item("open_files_most", facts.open_files_most)?;
    dict.set_item("memfd_problem", facts.memfd_problem)?;
    dict.set_item("pidfd_problem", facts.pidfd_problem)?;
    Ok(dict)
}
