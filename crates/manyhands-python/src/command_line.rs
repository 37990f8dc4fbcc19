//! What was typed at `manyhands`, as Python values.

use manyhands_cli::{Command, Demo, Engine, Format, Input, Map, OnError, Parsed, Place, parse};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::ffi::OsString;

/// `(command, its values)` for the arguments behind the program's name. The command `"say"` has a
/// `text` for standard output, and `"refuse"` one for standard error.
#[pyfunction]
pub(crate) fn parse_command_line(
    py: Python<'_>,
    arguments: Vec<OsString>,
) -> PyResult<(&'static str, Bound<'_, PyDict>)> {
    let values = PyDict::new(py);
    let command = match parse(arguments) {
        Parsed::Run(Command::Map(map)) => {
            fill_map(&values, map)?;
            "map"
        }
        Parsed::Run(Command::Demo(Demo {
            seconds,
            limit,
            workers,
        })) => {
            values.set_item("seconds", seconds)?;
            values.set_item("limit", limit)?;
            values.set_item("workers", workers)?;
            "demo"
        }
        Parsed::Run(Command::Doctor { json }) => {
            values.set_item("as_json", json)?;
            "doctor"
        }
        Parsed::Say(text) => {
            values.set_item("text", text)?;
            "say"
        }
        Parsed::Refuse(text) => {
            values.set_item("text", text)?;
            "refuse"
        }
    };
    Ok((command, values))
}

fn fill_map(values: &Bound<'_, PyDict>, map: Map) -> PyResult<()> {
    let (module, file) = match map.target.place {
        Place::Module(name) => (Some(name), None),
        Place::File(path) => (None, Some(path)),
    };
    values.set_item("module", module)?;
    values.set_item("file", file)?;
    values.set_item("function", map.target.function)?;
    let (paths, form, records) = match map.input {
        Input::Paths(paths) => (paths, "paths", None),
        Input::Records(records) => {
            let form = match records.format {
                Format::Lines => "lines",
                Format::JsonLines => "jsonl",
                Format::Csv => "csv",
            };
            (Vec::new(), form, Some(records.file))
        }
    };
    values.set_item("paths", paths)?;
    values.set_item("form", form)?;
    values.set_item("records", records)?;
    values.set_item("keywords", map.keywords)?;
    values.set_item("output", map.output)?;
    values.set_item("pickle", map.pickle)?;
    values.set_item("workers", map.workers)?;
    let engine = map.engine.map(|engine| match engine {
        Engine::Process => "process",
        Engine::Thread => "thread",
        Engine::Inline => "inline",
    });
    values.set_item("engine", engine)?;
    values.set_item("unordered", map.unordered)?;
    let on_error = match map.on_error {
        OnError::Return => "return",
        OnError::Skip => "skip",
        OnError::Raise => "raise",
    };
    values.set_item("on_error", on_error)?;
    values.set_item("batch", map.batch)?;
    values.set_item("progress", map.progress)?;
    let settings: Vec<_> = map
        .settings
        .into_iter()
        .map(|setting| (setting.key, setting.value))
        .collect();
    values.set_item("settings", settings)?;
    Ok(())
}
