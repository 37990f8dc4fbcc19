//! The Python module `manyhands._core`: converts, detaches, maps errors; nothing else.

mod asking;
mod bystanders;
mod calls;
mod capture;
mod classes;
mod clock;
mod codec;
mod command_line;
mod context;
mod crew;
mod crew_map;
mod crew_nesting;
mod crew_task;
mod dump;
mod engine;
mod events;
mod feed;
mod functions;
mod future;
mod hooks;
mod in_place;
mod inline;
mod input;
mod local;
mod machine;
mod needs;
mod nested;
mod notices;
mod octets;
mod once;
mod outcome;
mod output;
mod pickle;
mod pool;
mod process;
mod processes;
mod results;
mod seeds;
mod store;
mod unwinding;
mod worker;

#[pyo3::pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::bystanders::{park_bystanders, park_here};
    #[pymodule_export]
    use super::capture::give_back;
    #[pymodule_export]
    use super::clock::run_clock;
    #[pymodule_export]
    use super::command_line::parse_command_line;
    #[pymodule_export]
    use super::context::{InContext, PyCarrier, TaskContext};
    #[pymodule_export]
    use super::crew::CrewMember;
    #[pymodule_export]
    use super::events::EventStream;
    #[pymodule_export]
    use super::functions::{PyDefinition, forget_function, forget_functions};
    #[pymodule_export]
    use super::future::TaskFuture;
    #[pymodule_export]
    use super::machine::{machine_facts, memory_to_take};
    #[pymodule_export]
    use super::needs::{hear_needs, is_heard, is_sent, say_need};
    #[pymodule_export]
    use super::nested::pool_of_this_worker;
    #[pymodule_export]
    use super::notices::notice;
    #[pymodule_export]
    use super::output::{OutputStream, put_output};
    #[pymodule_export]
    use super::pickle::{pickle_by_table, pickle_these_by_table};
    #[pymodule_export]
    use super::pool::{PoolBase, RetryPlan, ViewBase};
    #[pymodule_export]
    use super::process::{
        cpu_count, cpu_limits, cpu_share, preload, process_generation, ring_completions, set_birth,
        set_launcher, set_library_threads, stop_supervisor, take_logs, wait_completions, warm,
        was_interrupted, zygote_pid,
    };
    #[pymodule_export]
    use super::results::{ResultsBase, SourceHandle};
    #[pymodule_export]
    use super::seeds::{PySeed, running_stream, seed_words};
    #[pymodule_export]
    use super::store::{
        Collector, Stored, StoredBuffer, after_fork_in_child, after_fork_in_parent, before_fork,
        is_stored, put_apart, set_store_budget, store_stats,
    };
    #[pymodule_export]
    use super::worker::{PyBirth, PyZygote, is_to_stop, resume_dump, run_worker};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::process::watch_forks()?;
        super::once::fill_cells(module)
    }
}
