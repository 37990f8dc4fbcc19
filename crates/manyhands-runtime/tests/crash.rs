//! The crash table: what is left when a process is killed at each step of each protocol.
//!
//! `cargo test -p manyhands-runtime --features fail-points --test crash [-- part of a name]`

#[cfg(feature = "fail-points")]
mod crash_table;

#[cfg(feature = "fail-points")]
fn main() -> std::process::ExitCode {
    crash_table::main()
}

/// Without fail points there is nothing to crash at.
#[cfg(not(feature = "fail-points"))]
fn main() {
    println!("0 passed, 0 failed");
}
