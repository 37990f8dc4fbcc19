//! What may be typed: each option once, with its help.
//!
//! No line of help is longer than a terminal is wide, since nothing wraps it.

use crate::{Setting, Target, command};
use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand, ValueEnum, ValueHint, value_parser};
use clap_complete::Shell;
use std::ffi::OsString;

const EXAMPLES: &str = "\
Examples:
  manyhands map work.py:parse data/*.csv -o parsed.jsonl
  manyhands demo
  manyhands doctor
  manyhands completions bash > ~/.local/share/bash-completion/completions/manyhands

`manyhands map --help` has more examples and the exit codes.";

const MAP_EXAMPLES: &str = "\
What is written:
  One line of JSON per item, in the order of the input:
    {\"index\": 0, \"input\": \"a.csv\", \"result\": 42}
    {\"index\": 1, \"input\": \"b.csv\", \"error\": {\"type\": \"ValueError\", \"message\": \"...\"}}
  The input is the path, or the file and line of a record. Results go to standard output or
  to a file; all else, with what the function prints, goes to standard error. A file gets its
  name when it is complete; until then, and after an interruption, it is called FILE.partial.

Exit codes:
  0    every item has a result
  1    some items failed
  2    the command line is wrong: no such function, no such file
  130  stopped by Ctrl-C

Examples:
  Each path is an item; eight workers:
    manyhands map work.py:parse data/*.csv -j 8 -o parsed.jsonl
  A function of a module, and a filter at each end:
    zcat log.gz | manyhands map package.module:parse --lines - | jq .result
  Each JSON record is passed as keywords, as in price(item=\"a\", amount=3):
    manyhands map shop.py:price --jsonl orders.jsonl --kwargs
  Rows of a table, a hundred at a time, failures left out:
    manyhands map score.py:predict --csv people.csv --batch 100 --on-error skip
  Downloads wait more than they compute, so use threads:
    manyhands map fetch.py:download --lines urls.txt --engine thread -j 64 --unordered";

/// Run a Python function over many inputs, in parallel.
#[derive(Debug, Parser)]
#[command(
    name = "manyhands",
    version,
    after_help = EXAMPLES,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Typed,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Typed {
    /// Run a function over paths, lines, JSON records or rows
    Map(Box<MapArguments>),
    /// See it work, in about ten seconds, with a worker that is killed half-way
    Demo(DemoArguments),
    /// Say what this machine offers, and what would be slow here
    Doctor(DoctorArguments),
    /// Print the completions for a shell
    #[command(after_help = "\
Examples:
  manyhands completions bash > ~/.local/share/bash-completion/completions/manyhands
  manyhands completions zsh > ~/.zfunc/_manyhands
  manyhands completions fish > ~/.config/fish/completions/manyhands.fish")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Run a Python function over many inputs, in parallel, and write what it returns.
#[derive(Args, Debug)]
#[command(
    after_help = MAP_EXAMPLES,
    override_usage = "\
manyhands map [OPTIONS] <FUNCTION> <PATHS>...
       manyhands map [OPTIONS] <FUNCTION> <--lines|--jsonl|--csv> <FILE>",
    group = ArgGroup::new("input").required(true).args(["paths", "lines", "jsonl", "csv"])
)]
pub(crate) struct MapArguments {
    /// The function: MODULE:FUNCTION or FILE.py:FUNCTION
    #[arg(value_name = "FUNCTION", value_hint = ValueHint::FilePath)]
    pub(crate) target: Target,

    /// Inputs: the function gets each as text
    #[arg(value_name = "PATHS", value_hint = ValueHint::AnyPath)]
    pub(crate) paths: Vec<OsString>,

    /// Each line of FILE is an input, as text (-: standard input)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Input")]
    pub(crate) lines: Option<OsString>,

    /// Each line of FILE is an input, as JSON (-: standard input)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Input")]
    pub(crate) jsonl: Option<OsString>,

    /// Each row of FILE is an input, as a dict by its header (-: standard input)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Input")]
    pub(crate) csv: Option<OsString>,

    /// Pass what a record contains as keywords
    #[arg(long, conflicts_with_all = ["paths", "lines", "batch"], help_heading = "Input")]
    pub(crate) kwargs: bool,

    /// Where results go (otherwise, and with -: standard output)
    #[arg(
        short, long, value_name = "FILE", default_value = "-", value_hint = ValueHint::FilePath,
        help_heading = "Output"
    )]
    pub(crate) output: OsString,

    /// Write pickles of the same dicts instead of JSON: any result
    #[arg(long, help_heading = "Output")]
    pub(crate) pickle: bool,

    /// Write results as they come, not in the order of the input
    #[arg(long, help_heading = "Output")]
    pub(crate) unordered: bool,

    #[arg(
        long,
        value_name = "WHAT",
        default_value = "return",
        hide_default_value = true,
        hide_possible_values = true,
        help = "What becomes of an item that fails: its error is written\n\
                (return, otherwise), it is left out (skip), or it ends the run (raise)",
        help_heading = "Output"
    )]
    pub(crate) on_error: OnErrorTyped,

    /// How many workers (otherwise as many as there are CPUs to use)
    #[arg(
        short = 'j', long, value_name = "N", value_parser = value_parser!(u32).range(1..),
        help_heading = "Running"
    )]
    pub(crate) workers: Option<u32>,

    /// What runs the function: process (otherwise), thread or inline
    #[arg(
        long,
        value_name = "ENGINE",
        hide_possible_values = true,
        help_heading = "Running"
    )]
    pub(crate) engine: Option<EngineTyped>,

    /// The function gets lists of up to N inputs and returns as many results
    #[arg(
        long, value_name = "N", value_parser = value_parser!(u32).range(1..),
        help_heading = "Running"
    )]
    pub(crate) batch: Option<u32>,

    /// Show progress, also where standard error is no terminal
    #[arg(long, overrides_with = "no_progress", help_heading = "Running")]
    pub(crate) progress: bool,

    /// Show no progress
    #[arg(long, overrides_with = "progress", help_heading = "Running")]
    pub(crate) no_progress: bool,

    /// A setting of manyhands.configure, as in show_args=false (repeatable)
    #[arg(
        long = "config", value_name = "KEY=VALUE", action = ArgAction::Append,
        help_heading = "Running"
    )]
    pub(crate) settings: Vec<Setting>,
}

/// See manyhands work: each file of Python's standard library is measured in one process, by
/// multiprocessing.Pool and by manyhands; then once more while a worker is killed.
#[derive(Args, Debug)]
pub(crate) struct DemoArguments {
    /// About how long it may take
    #[arg(long, value_name = "N", default_value = "10", value_parser = positive_seconds)]
    pub(crate) seconds: f64,

    /// Use N files, however long that takes
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,

    /// How many workers (otherwise as many as there are CPUs to use)
    #[arg(short = 'j', long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) workers: Option<u32>,
}

/// Say what this machine offers, and what would be slow here and why.
#[derive(Args, Debug)]
pub(crate) struct DoctorArguments {
    /// Write JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum EngineTyped {
    /// Worker processes
    Process,
    /// Threads of this process
    Thread,
    /// The calling thread
    Inline,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OnErrorTyped {
    /// Its error is written in its place
    Return,
    /// It is left out of the output
    Skip,
    /// It ends the run
    Raise,
}

fn positive_seconds(typed: &str) -> Result<f64, String> {
    match typed.parse() {
        Ok(seconds) if 0.0 < seconds && seconds < f64::INFINITY => Ok(seconds),
        _ => Err("it must be a number above 0".to_owned()),
    }
}

impl From<EngineTyped> for command::Engine {
    fn from(typed: EngineTyped) -> Self {
        match typed {
            EngineTyped::Process => Self::Process,
            EngineTyped::Thread => Self::Thread,
            EngineTyped::Inline => Self::Inline,
        }
    }
}

impl From<OnErrorTyped> for command::OnError {
    fn from(typed: OnErrorTyped) -> Self {
        match typed {
            OnErrorTyped::Return => Self::Return,
            OnErrorTyped::Skip => Self::Skip,
            OnErrorTyped::Raise => Self::Raise,
        }
    }
}
