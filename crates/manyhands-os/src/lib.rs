//! The operating system as manyhands uses it.
//!
//! The only crate that makes system calls. What it hands out is safe to use and owns what it names:
//! memory, descriptors, processes. Linux today; another system adds its own file beside each of
//! these.

#[cfg(any(target_os = "linux", target_os = "android"))]
mod cgroup;
mod clock;
mod cpu;
mod disk;
mod event;
mod file;
mod futex;
mod inner_threads;
mod machine;
mod memory;
mod memory_left;
mod oom;
mod private_memory;
mod process;
mod signal;
mod socket;
mod window;

pub use clock::{
    coarse_nanos, monotonic_nanos, process_cpu_nanos, thread_cpu_nanos, to_timespec, wall_nanos,
};
pub use cpu::{CpuLimits, cpu_count, cpu_limits};
pub use disk::{UnnamedFile, disk_left};
pub use event::{Event, Poller, Signal as EventSignal};
pub use file::{
    MessageFile, enter_directory, give_back, open_current_directory, replace_standard_streams,
    standard_stream,
};
pub use futex::{Waited, futex_wait, futex_wait_private, futex_wake, futex_wake_private};
pub use inner_threads::{ThreadedLibrary, set_library_threads};
pub use machine::{MachineFacts, machine_facts};
pub use memory::{MemoryFile, Segment, View};
pub use memory_left::{give_memory_back, memory_left};
pub use oom::oom_kills;
pub use private_memory::MemoryGauge;
pub use process::{
    ExitStatus, KernelState, Process, arm_life_line, at_fork_in_child, become_group_leader,
    close_after_fork, fault_count, is_main_thread, kernel_state, life_line, parent_pid,
    pipe_has_reader, raw_wait_status, reap_orphan, resident_bytes, spawn_program, thread_count,
    unreaped_status,
};
pub use signal::{block_all_signals, dump_signal, is_unhandled, kill_self, raise, wrap_handler};
pub use socket::{MAX_DESCRIPTORS, Received, Socket};
pub use std::io::{Error, Result};
pub use window::{PrivateCopy, Window, page_size};
