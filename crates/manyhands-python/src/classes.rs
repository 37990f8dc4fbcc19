//! Plain classes: those whose instances are nothing but their class and their `__dict__`.
//!
//! Pickle rebuilds such an instance by `cls.__new__(cls)` and an update of its `__dict__`, and so does
//! `codec`, with the class by name. A class is plain if it has none of the methods by which pickle lets
//! classes have a say, makes its instances as `object` does, has a `__dict__` and no slots, and is found
//! under its name. Ordinary dataclasses are plain.

use crate::once::Once;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyType};

/// What is known of the classes that were met.
#[derive(Default)]
pub(crate) struct Classes {
    met: Vec<Met>,
    /// Names of those of `__main__` that nobody asked for yet.
    main: Vec<String>,
}

/// A class that was met, and its name if it is plain.
struct Met {
    class: Py<PyType>,
    name: Option<Box<[u8]>>,
}

/// What plain classes have in common with `object`.
struct Ideal {
    object: Py<PyAny>,
    /// Attributes that have to be those of `object`, with their values there.
    same: Vec<(Py<PyString>, Py<PyAny>)>,
    /// Attributes that must not be there.
    none: Vec<Py<PyString>>,
    basic_size: usize,
    dispatch_table: Py<PyDict>,
    modules: Py<PyDict>,
}

static IDEAL: Once<Ideal> = Once::new();

fn ideal(py: Python<'_>) -> PyResult<&'static Ideal> {
    IDEAL.get_or_try_init(py, || {
        let object = py.import("builtins")?.getattr("object")?;
        let same = [
            "__reduce_ex__",
            "__reduce__",
            "__getstate__",
            "__getattribute__",
            "__new__",
        ];
        let same = same
            .into_iter()
            .map(|name| {
                Ok((
                    PyString::intern(py, name).unbind(),
                    object.getattr(name)?.unbind(),
                ))
            })
            .collect::<PyResult<_>>()?;
        let none = ["__setstate__", "__getnewargs_ex__", "__getnewargs__"];
        let none = none
            .into_iter()
            .map(|name| PyString::intern(py, name).unbind())
            .collect();
        let plain =
            py.import("builtins")?
                .getattr("type")?
                .call1(("Plain", (), PyDict::new(py)))?;
        Ok(Ideal {
            object: object.unbind(),
            same,
            none,
            basic_size: plain.getattr("__basicsize__")?.extract()?,
            dispatch_table: py
                .import("copyreg")?
                .getattr("dispatch_table")?
                .cast_into()?
                .unbind(),
            modules: py.import("sys")?.getattr("modules")?.cast_into()?.unbind(),
        })
    })
}

impl Classes {
    /// `module:name` of a plain class.
    pub(crate) fn name_of(&mut self, class: &Bound<'_, PyType>) -> Option<&[u8]> {
        let at = self.met.iter().position(|met| met.class.is(class));
        let at = at.unwrap_or_else(|| {
            // An attribute that raises is a reason to leave the class to pickle, which shows it.
            let name = plain_name(class).unwrap_or_default();
            if let Some(name) = &name
                && let Some(main) = name.strip_prefix("__main__:")
            {
                self.main.push(main.to_owned());
            }
            let name = name.map(|name| name.into_bytes().into_boxed_slice());
            self.met.push(Met {
                class: class.clone().unbind(),
                name,
            });
            self.met.len() - 1
        });
        self.met[at].name.as_deref()
    }

    #[inline]
    pub(crate) fn has_main(&self) -> bool {
        !self.main.is_empty()
    }

    pub(crate) fn take_main(&mut self) -> Vec<String> {
        std::mem::take(&mut self.main)
    }
}

fn plain_name(class: &Bound<'_, PyType>) -> PyResult<Option<String>> {
    let py = class.py();
    let ideal = ideal(py)?;
    for (name, value) in &ideal.same {
        if !class.getattr(name)?.is(value) {
            return Ok(None);
        }
    }
    for name in &ideal.none {
        if class.hasattr(name)? {
            return Ok(None);
        }
    }
    let size: usize = class.getattr("__basicsize__")?.extract()?;
    let item_size: usize = class.getattr("__itemsize__")?.extract()?;
    if size != ideal.basic_size || item_size != 0 {
        return Ok(None);
    }
    // A descriptor of its own would decide what `__dict__` is. A slot does not always show in the size: it
    // may stand where others have their weak references.
    let mro = class.getattr("__mro__")?;
    for base in mro.try_iter()? {
        let own = base?.getattr("__dict__")?;
        if let Ok(own) = own.get_item("__dict__")
            && own.get_type().name()? != "getset_descriptor"
        {
            return Ok(None);
        }
        if let Ok(slots) = own.get_item("__slots__")
            && !slots.is_empty()?
        {
            return Ok(None);
        }
    }
    if ideal.dispatch_table.bind(py).contains(class)? {
        return Ok(None);
    }
    let module = class.getattr("__module__")?;
    let qualified = class.getattr("__qualname__")?;
    let (Ok(module), Ok(qualified)) = (module.extract::<String>(), qualified.extract::<String>())
    else {
        return Ok(None);
    };
    if module == "__mp_main__" {
        return Ok(None);
    }
    match find(py, &module, &qualified)? {
        Some(found) if found.is(class) => Ok(Some(format!("{module}:{qualified}"))),
        _ => Ok(None),
    }
}

/// What a loaded module has under a name with dots.
fn find<'py>(
    py: Python<'py>,
    module: &str,
    qualified: &str,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let Some(mut found) = ideal(py)?.modules.bind(py).get_item(module)? else {
        return Ok(None);
    };
    for part in qualified.split('.') {
        match found.getattr(part) {
            Ok(next) => found = next,
            Err(_) => return Ok(None),
        }
    }
    Ok(Some(found))
}

/// Classes by name, as the decoder meets them.
#[derive(Default)]
pub(crate) struct Named {
    met: Vec<(Box<[u8]>, Py<PyAny>)>,
}

impl Named {
    pub(crate) fn clear(&mut self) {
        self.met.clear();
    }

    /// A new and empty instance of the class of that name, as pickle makes one.
    pub(crate) fn instantiate<'py>(
        &mut self,
        py: Python<'py>,
        name: &[u8],
    ) -> PyResult<Bound<'py, PyAny>> {
        let known = self.met.iter().find(|(met, _)| **met == *name);
        let class = match known {
            Some((_, class)) => class.bind(py).clone(),
            None => {
                let class = class_named(py, name)?;
                self.met.push((name.into(), class.clone().unbind()));
                class
            }
        };
        let object = ideal(py)?.object.bind(py);
        let new = new_of(py, object)?;
        // SAFETY: live objects; a new reference, or an exception. The class's own `__new__` is that of
        // `object`, as the encoder saw, and a class that has one meanwhile is made the same way.
        unsafe {
            let made = ffi::PyObject_CallFunctionObjArgs(
                new.as_ptr(),
                class.as_ptr(),
                std::ptr::null_mut::<ffi::PyObject>(),
            );
            Bound::from_owned_ptr_or_err(py, made)
        }
    }
}

/// `object.__new__`.
fn new_of<'py>(py: Python<'py>, object: &Bound<'py, PyAny>) -> PyResult<&'py Bound<'py, PyAny>> {
    static NEW: Once<Py<PyAny>> = Once::new();
    Ok(NEW
        .get_or_try_init(py, || object.getattr("__new__").map(Bound::unbind))?
        .bind(py))
}

fn class_named<'py>(py: Python<'py>, name: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let name = std::str::from_utf8(name)
        .map_err(|error| pyo3::exceptions::PyValueError::new_err(error.to_string()))?;
    let (module, qualified) = name.split_once(':').unwrap_or((name, ""));
    py.import(module)?;
    let found = find(py, module, qualified)?;
    found.ok_or_else(|| {
        // As pickle says it.
        pyo3::exceptions::PyAttributeError::new_err(format!(
            "Can't get attribute '{qualified}' on <module '{module}'>"
        ))
    })
}
