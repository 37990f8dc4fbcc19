//! The command line of manyhands.
//!
//! One definition per option drives parser, help and completions (`typed.rs`). What was typed and
//! what it means are two types: [`parse()`] turns the first into the second, a [`Command`] of plain
//! values. Nothing here runs a command, reads a file or knows Python.

mod command;
mod parse;
mod setting;
mod target;
mod typed;

pub use command::{Command, Demo, Engine, Format, Input, Map, OnError, Records};
pub use parse::{Parsed, parse};
pub use setting::Setting;
pub use target::{Place, Target};
