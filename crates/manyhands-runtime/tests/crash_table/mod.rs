//! One program in four roles, by its first argument:
//!
//! - none: the *runner* starts a driver per case, two at a time, under a watchdog, and prints the table;
//! - `case`: the *driver* makes supervisor and pool, runs one case, and checks what is left;
//! - `zygote`: what the driver's supervisor starts; it forks *workers*, which run the tasks of `worker`.
//!
//! A case is a row of the table (`rows`: a fail point, a load, what must be left) or a scenario (a few
//! lines of its own, by subject). Every task and item appends its number to a file before it does
//! anything else, so that the driver can count how often each ran.

mod again;
mod asks;
mod blocks;
mod blocks_ended;
mod case;
mod descriptors;
mod ending;
mod failed_births;
mod helpers;
mod memory;
mod nested;
mod nonsense;
mod output;
mod paused;
mod priorities;
mod processes;
mod recycling;
mod rows;
mod runner;
mod scribble;
mod site;
mod stalls;
mod stopping;
mod stored;
mod storms;
mod storms_of_blocks;
mod storms_of_calls;
mod stream;
mod taken_back;
mod tally;
mod tasks;
mod taught;
mod waiting;
mod worker;
mod zygotes;

use std::process::ExitCode;

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("zygote") => worker::zygote(&arguments[2..]),
        Some("case") => runner::drive(&arguments[2..]),
        _ => runner::run(&arguments[1..]),
    }
}
