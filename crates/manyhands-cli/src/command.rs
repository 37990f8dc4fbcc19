//! What a command line means, as plain values.

use crate::{Setting, Target};
use std::ffi::OsString;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Run a function over inputs.
    Map(Map),
    /// Show one real job, and a worker that dies.
    Demo(Demo),
    /// Say what this machine offers.
    Doctor {
        /// As JSON instead of a table.
        json: bool,
    },
}

/// A function, its inputs, and how to run it over them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// The function.
    pub target: Target,
    /// Its inputs.
    pub input: Input,
    /// Whether each record is passed as keywords.
    pub keywords: bool,
    /// Where results go: a file, or `-` for standard output.
    pub output: OsString,
    /// Whether results are written as pickles.
    pub pickle: bool,
    /// How many workers; none: the library decides.
    pub workers: Option<u32>,
    /// What runs the tasks; none: the library decides.
    pub engine: Option<Engine>,
    /// Whether results are written as they come.
    pub unordered: bool,
    /// What becomes of an item that fails.
    pub on_error: OnError,
    /// How many items the function gets at a time, as a list; none: one, by itself.
    pub batch: Option<u32>,
    /// Whether progress is shown; none: the library decides.
    pub progress: Option<bool>,
    /// Settings for the library.
    pub settings: Vec<Setting>,
}

/// What a map runs over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Each is an item.
    Paths(Vec<OsString>),
    /// Each record of a file is an item.
    Records(Records),
}

/// A file of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    /// What a record is.
    pub format: Format,
    /// The file, or `-` for standard input.
    pub file: OsString,
}

/// What a record of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line of text.
    Lines,
    /// A JSON value in a line of its own.
    JsonLines,
    /// A row, by the names in the first one.
    Csv,
}

/// What runs the tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Worker processes.
    Process,
    /// Threads of this process.
    Thread,
    /// The calling thread.
    Inline,
}

/// What becomes of an item that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Its error is written in its place.
    Return,
    /// It is left out of the output.
    Skip,
    /// It ends the run.
    Raise,
}

/// How much of the demo.
#[derive(Clone, Debug, PartialEq)]
pub struct Demo {
    /// About how long it may take, in seconds.
    pub seconds: f64,
    /// How many files; none: as many as the time allows.
    pub limit: Option<u32>,
    /// How many workers; none: the library decides.
    pub workers: Option<u32>,
}
