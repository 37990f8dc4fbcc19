//! The Python module `manyhands._core`: converts, detaches, maps errors; nothing else.

mod bystanders;
mod calls;
mod classes;
mod codec;
mod command_line;
mod crew;
mod crew_map;
mod crew_task;
mod engine;
mod feed;
mod functions;
mod future;
mod hooks;
mod inline;
mod input;
mod local;
mod machine;
mod outcome;
mod pickle;
mod pool;
mod process;
mod processes;
mod results;
mod worker;

#[pyo3::pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::bystanders::park_bystanders;
    #[pymodule_export]
    use super::command_line::parse_command_line;
    #[pymodule_export]
    use super::crew::CrewMember;
    #[pymodule_export]
    use super::functions::{PyDefinition, forget_functions};
    #[pymodule_export]
    use super::future::TaskFuture;
    #[pymodule_export]
    use super::machine::machine_facts;
    #[pymodule_export]
    use super::pool::{PoolBase, RetryPlan};
    #[pymodule_export]
    use super::process::{
        after_fork_in_child, cpu_count, cpu_limits, preload, process_generation, ring_completions,
        set_birth, set_launcher, stop_supervisor, take_logs, wait_completions, warm, zygote_pid,
    };
    #[pymodule_export]
    use super::results::{ResultsBase, SourceHandle};
    #[pymodule_export]
    use super::worker::{PyBirth, PyZygote, is_to_stop, run_worker};
}
