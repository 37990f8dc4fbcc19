//! Large bytes, bytearrays and memoryviews that are an argument or a result by themselves.
//!
//! Pickle copies them, so that pickles something else in their stead which hands out their memory: see
//! `_octets.py`. Inside of other objects they are left to pickle.
//!
//! **One object stays one object.** A bytearray or a memoryview that another argument may hold as well is
//! left to pickle too, which keeps it one.

use crate::once::intern;
use crate::{hooks, store};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// What an object is to this module.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bytes,
    ByteArray,
    MemoryView,
    /// Another one that holds no objects.
    Plain,
    Any,
}

fn kind_of(value: &Bound<'_, PyAny>) -> Kind {
    let kind = value.get_type_ptr();
    let is = |other: *mut ffi::PyTypeObject| kind == other;
    if is(&raw mut ffi::PyBytes_Type) {
        Kind::Bytes
    } else if is(&raw mut ffi::PyByteArray_Type) {
        Kind::ByteArray
    } else if is(&raw mut ffi::PyMemoryView_Type) {
        Kind::MemoryView
    } else if value.is_none()
        || is(&raw mut ffi::PyUnicode_Type)
        || is(&raw mut ffi::PyLong_Type)
        || is(&raw mut ffi::PyFloat_Type)
        || is(&raw mut ffi::PyBool_Type)
    {
        Kind::Plain
    } else {
        Kind::Any
    }
}

/// Whether it is one of the three, and large.
fn is_large(value: &Bound<'_, PyAny>) -> bool {
    let object = value.as_ptr();
    let len = match kind_of(value) {
        // SAFETY: a live object of that type.
        Kind::Bytes => usize::try_from(unsafe { ffi::PyBytes_Size(object) }).unwrap_or(0),
        // SAFETY: as above.
        Kind::ByteArray => usize::try_from(unsafe { ffi::PyByteArray_Size(object) }).unwrap_or(0),
        // One that was released says nothing, which is pickle's to tell of.
        Kind::MemoryView => value
            .getattr(intern!(value.py(), "nbytes"))
            .and_then(|len| len.extract())
            .unwrap_or(0),
        Kind::Plain | Kind::Any => 0,
    };
    len >= store::LARGE
}

/// What to pickle in place of a value that comes alone.
pub(crate) fn of_value<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    if is_large(value) {
        hooks::apart(value.py())?.call1((value,))
    } else {
        Ok(value.clone())
    }
}

/// What to pickle in place of a value that nobody is to write to.
pub(crate) fn of_locked<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = value.py();
    if kind_of(value) == Kind::MemoryView {
        let locked = value.call_method0(intern!(py, "toreadonly"))?;
        hooks::apart(py)?.call1((locked,))
    } else {
        Ok(value.clone())
    }
}

/// What to pickle in place of the arguments of a call.
pub(crate) fn of_args<'py>(args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyTuple>> {
    let found = Replaced::of(|| args.iter(), false)?;
    found.map_or_else(|| Ok(args.clone()), |found| found.tuple(args))
}

/// What to pickle in place of the arguments and keywords of a call; with a function that goes along, which
/// may hold any of them.
pub(crate) fn of_call<'py>(
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
    has_function: bool,
) -> PyResult<(Bound<'py, PyTuple>, Option<Bound<'py, PyDict>>)> {
    let keywords = || kwargs.into_iter().flat_map(|kwargs| kwargs.iter());
    let values = || args.iter().chain(keywords().map(|(_, value)| value));
    let Some(found) = Replaced::of(values, has_function)? else {
        return Ok((args.clone(), kwargs.cloned()));
    };
    let kwargs = kwargs.map(|kwargs| {
        let replaced = kwargs.copy()?;
        for (name, value) in kwargs {
            replaced.set_item(name, found.get(&value))?;
        }
        PyResult::Ok(replaced)
    });
    Ok((found.tuple(args)?, kwargs.transpose()?))
}

/// Objects, and what to pickle in their places; one object has one.
struct Replaced<'py>(Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>);

impl<'py> Replaced<'py> {
    /// Of these values; none if all stay.
    fn of<Values: Iterator<Item = Bound<'py, PyAny>>>(
        values: impl Fn() -> Values,
        are_held: bool,
    ) -> PyResult<Option<Self>> {
        if !values().any(|value| is_large(&value)) {
            return Ok(None);
        }
        let are_held = are_held || values().any(|value| kind_of(&value) == Kind::Any);
        let mut found = Self(Vec::new());
        for value in values() {
            let stays = are_held && kind_of(&value) != Kind::Bytes;
            if !stays && is_large(&value) && found.find(&value).is_none() {
                let replaced = of_value(&value)?;
                found.0.push((value, replaced));
            }
        }
        Ok(Some(found))
    }

    fn find(&self, value: &Bound<'py, PyAny>) -> Option<&Bound<'py, PyAny>> {
        let found = self.0.iter().find(|(known, _)| known.is(value));
        found.map(|(_, replaced)| replaced)
    }

    fn get(&self, value: &Bound<'py, PyAny>) -> Bound<'py, PyAny> {
        self.find(value).unwrap_or(value).clone()
    }

    fn tuple(&self, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(args.py(), args.iter().map(|value| self.get(&value)))
    }
}
