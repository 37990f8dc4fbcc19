//! A call as bytes: what the parent encodes and the worker decodes.
//!
//! | tag            | payload                                        |
//! |----------------|------------------------------------------------|
//! | `ARGS_PLAIN`   | the tuple of arguments, by `codec`             |
//! | `ARGS`         | pickle of the tuple of arguments               |
//! | `ARGS_KWARGS`  | pickle of (arguments, keywords)                |
//! | `CALL`         | pickle of (callable, arguments, keywords)      |
//!
//! Results are `PLAIN` (by `codec`) or `PICKLE`; errors are what `manyhands._outcome` makes of them.
//! The bit `HIDE_ARGS` keeps arguments out of messages.

use crate::functions::{self, PyDefinition};
use crate::{codec, hooks, pickle};
use manyhands_runtime::{Bytes, Definition};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) const ARGS_PLAIN: u8 = 1;
pub(crate) const ARGS: u8 = 2;
pub(crate) const ARGS_KWARGS: u8 = 3;
pub(crate) const CALL: u8 = 4;
pub(crate) const HIDE_ARGS: u8 = 0x80;

pub(crate) const PLAIN: u8 = 1;
pub(crate) const PICKLE: u8 = 2;

/// A call, encoded.
pub(crate) struct Call {
    pub(crate) definition: Option<Arc<Definition>>,
    pub(crate) needs: Vec<Arc<Definition>>,
    pub(crate) tag: u8,
    pub(crate) payload: Bytes,
}

thread_local! {
    /// Where plain values are put together; kept small.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Encodes a value with the codec, if it is plain.
pub(crate) fn plain<R>(value: &Bound<'_, PyAny>, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
    SCRATCH.with(|scratch| {
        let mut scratch = scratch.borrow_mut();
        scratch.clear();
        codec::encode(value, &mut scratch).then(|| read(&scratch))
    })
}

/// Encodes a call. Everything in it is as it is now, whatever the caller changes later.
#[inline]
pub(crate) fn encode_call(
    function: &Bound<'_, PyAny>,
    args: &Bound<'_, PyTuple>,
    kwargs: Option<&Bound<'_, PyDict>>,
) -> PyResult<Call> {
    let py = function.py();
    let definition = functions::definition(function)?;
    let kwargs = kwargs.filter(|kwargs| !kwargs.is_empty());
    if definition.is_some()
        && kwargs.is_none()
        && let Some(payload) = plain(args.as_any(), Bytes::copy_of)
    {
        return Ok(Call {
            definition,
            needs: Vec::new(),
            tag: ARGS_PLAIN,
            payload,
        });
    }
    let (tag, object) = match (&definition, kwargs) {
        (Some(_), None) => (ARGS, args.as_any().clone()),
        (Some(_), Some(kwargs)) => (ARGS_KWARGS, (args, kwargs).into_pyobject(py)?.into_any()),
        (None, kwargs) => (CALL, (function, args, kwargs).into_pyobject(py)?.into_any()),
    };
    let (bytes, needs) = by_pickle(&object, tag)?;
    Ok(Call {
        definition,
        needs,
        tag,
        payload: to_bytes(bytes.as_bytes()),
    })
}

/// Copies bytes; many go to a message file, if one can be had.
fn to_bytes(bytes: &[u8]) -> Bytes {
    const MANY: usize = 1 << 20;
    if bytes.len() >= MANY
        && manyhands_os::MessageFile::count() < 64
        && let Ok(file) = manyhands_os::MessageFile::new(bytes)
    {
        return Bytes::File(file);
    }
    Bytes::copy_of(bytes)
}

/// Pickles an object, the fast way where that is right.
fn by_pickle<'py>(
    object: &Bound<'py, PyAny>,
    tag: u8,
) -> PyResult<(Bound<'py, PyBytes>, Vec<Arc<Definition>>)> {
    let py = object.py();
    match pickle::dumps(py, object) {
        Ok(bytes) => {
            if let Some(names) = pickle::names_from_main(bytes.as_bytes()) {
                let needs = if names.is_empty() {
                    Vec::new()
                } else {
                    bindings(py, &names)?
                };
                return Ok((bytes, needs));
            }
        }
        Err(error) if error.is_instance_of::<pyo3::exceptions::PyKeyboardInterrupt>(py) => {
            return Err(error);
        }
        // The slow way says what is wrong, if it can do no better.
        Err(_) => {}
    }
    let answer = hooks::dumps(py)?
        .call1((object, tag))?
        .cast_into::<PyTuple>()?;
    let bytes = answer.get_item(0)?.cast_into::<PyBytes>()?;
    Ok((bytes, definitions(&answer.get_item(1)?)?))
}

fn definitions(list: &Bound<'_, PyAny>) -> PyResult<Vec<Arc<Definition>>> {
    list.try_iter()?
        .map(|item| Ok(item?.cast_into::<PyDefinition>()?.get().0.clone()))
        .collect()
}

struct Binding {
    object: Py<PyAny>,
    needs: Vec<Arc<Definition>>,
}

/// Bindings of names of `__main__`, as long as the names mean the same objects.
static BINDINGS: Mutex<Option<HashMap<String, Binding>>> = Mutex::new(None);

fn bindings(py: Python<'_>, names: &[String]) -> PyResult<Vec<Arc<Definition>>> {
    let main = py
        .import("sys")?
        .getattr(intern!(py, "modules"))?
        .get_item(intern!(py, "__main__"))?;
    let main = main
        .getattr(intern!(py, "__dict__"))?
        .cast_into::<PyDict>()?;
    let mut needs: Vec<Arc<Definition>> = Vec::new();
    for name in names {
        let top = name.split('.').next().unwrap_or(name);
        let object = main.get_item(PyString::new(py, top))?;
        let known = {
            let bindings = BINDINGS.lock().unwrap_or_else(PoisonError::into_inner);
            bindings
                .as_ref()
                .and_then(|bindings| bindings.get(top))
                .and_then(|binding| {
                    let current = object
                        .as_ref()
                        .is_some_and(|object| binding.object.is(object));
                    current.then(|| binding.needs.clone())
                })
        };
        let found = match (known, object) {
            (Some(found), _) => found,
            (None, object) => {
                let found = definitions(&hooks::bindings(py)?.call1(([top],))?)?;
                if let Some(object) = object {
                    let binding = Binding {
                        object: object.unbind(),
                        needs: found.clone(),
                    };
                    let mut bindings = BINDINGS.lock().unwrap_or_else(PoisonError::into_inner);
                    let old = bindings
                        .get_or_insert_default()
                        .insert(top.to_owned(), binding);
                    drop(bindings);
                    drop(old);
                }
                found
            }
        };
        for need in found {
            if !needs.iter().any(|other| Arc::ptr_eq(other, &need)) {
                needs.push(need);
            }
        }
    }
    Ok(needs)
}

/// What a worker calls: a callable where the call brought its own, arguments, keywords.
pub(crate) type Decoded<'py> = (
    Option<Bound<'py, PyAny>>,
    Bound<'py, PyTuple>,
    Option<Bound<'py, PyDict>>,
);

/// Decodes a call.
#[inline]
pub(crate) fn decode_call<'py>(py: Python<'py>, tag: u8, bytes: &[u8]) -> PyResult<Decoded<'py>> {
    match tag & !HIDE_ARGS {
        ARGS_PLAIN => {
            let mut rest = bytes;
            Ok((None, codec::decode(py, &mut rest)?.cast_into()?, None))
        }
        ARGS => Ok((None, pickle::loads(py, bytes)?.cast_into()?, None)),
        ARGS_KWARGS => {
            let call = pickle::loads(py, bytes)?.cast_into::<PyTuple>()?;
            let kwargs = call.get_item(1)?.cast_into()?;
            Ok((None, call.get_item(0)?.cast_into()?, Some(kwargs)))
        }
        _ => {
            let call = pickle::loads(py, bytes)?.cast_into::<PyTuple>()?;
            let kwargs = call.get_item(2)?;
            let kwargs = if kwargs.is_none() {
                None
            } else {
                Some(kwargs.cast_into()?)
            };
            Ok((
                Some(call.get_item(0)?),
                call.get_item(1)?.cast_into()?,
                kwargs,
            ))
        }
    }
}

/// Decodes a result.
#[inline]
pub(crate) fn decode_value<'py>(
    py: Python<'py>,
    tag: u8,
    bytes: &[u8],
) -> PyResult<Bound<'py, PyAny>> {
    if tag == PLAIN {
        let mut rest = bytes;
        codec::decode(py, &mut rest)
    } else {
        pickle::loads(py, bytes)
    }
}
