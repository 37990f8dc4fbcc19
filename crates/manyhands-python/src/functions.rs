//! Which definition a callable is, and whether it still is.
//!
//! A function is looked at by the face once, at first sight, and then known by its address while a
//! weak reference says that it lives. Before every use a few identities are compared: its code, what
//! it captured, the globals that it reads. If one changed, the face looks again.

use crate::once::{Once, intern};
use crate::store::Stored;
use crate::{calls, hooks};
use manyhands_runtime::Definition;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple, PyWeakrefMethods, PyWeakrefReference};
use std::collections::HashMap;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A definition, as the face holds it.
#[pyclass(name = "Definition", module = "manyhands._core", frozen)]
pub(crate) struct PyDefinition(pub(crate) Arc<Definition>);

#[pymethods]
impl PyDefinition {
    #[new]
    #[pyo3(signature = (payload, needs, label = "", file = None, stored = None))]
    fn new(
        payload: &[u8],
        needs: Vec<PyRef<'_, PyDefinition>>,
        label: &str,
        file: Option<RawFd>,
        stored: Option<PyRef<'_, Stored>>,
    ) -> Self {
        let needs = needs.iter().map(|need| need.0.clone()).collect();
        // SAFETY: whoever passes a descriptor gives it away.
        let file = file.map(|file| unsafe { OwnedFd::from_raw_fd(file) });
        let buffers =
            stored.map_or_else(Box::default, |stored| Box::from(stored.buffers.as_slice()));
        let payload = Box::from(payload);
        Self(Definition::keeping(label, payload, buffers, needs, file))
    }

    /// Whether workers of this process can get it: one with buffers is the process's that made it, and a
    /// child that was forked there is another.
    fn is_here(&self) -> bool {
        Stored::are_here(self.0.buffers())
    }

    /// Has all workers drop it before their next task; a task that needs it has it sent again.
    fn recall(&self) {
        self.0.recall();
    }

    /// Its number, which no other definition of this process has.
    #[getter]
    fn id(&self) -> u32 {
        self.0.id()
    }

    /// Its name for people.
    #[getter]
    fn label(&self) -> &str {
        self.0.label()
    }
}

/// Something that has to be as it was.
enum Check {
    /// `dict.get(name) is value`.
    Global(Py<PyDict>, Py<PyString>, Option<Py<PyAny>>),
    /// `cell.cell_contents is value`, or the cell is empty.
    Cell(Py<PyAny>, Option<Py<PyAny>>),
    /// `getattr(object, name) is value`; without an object the function itself.
    Attribute(Option<Py<PyAny>>, Py<PyString>, Py<PyAny>),
}

impl Check {
    fn holds(&self, function: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = function.py();
        Ok(match self {
            Self::Global(dict, name, value) => {
                let found = dict.bind(py).get_item(name.bind(py))?;
                same(found.as_ref(), value.as_ref())
            }
            Self::Cell(cell, value) => {
                let found = cell.bind(py).getattr(intern!(py, "cell_contents")).ok();
                same(found.as_ref(), value.as_ref())
            }
            Self::Attribute(object, name, value) => {
                let object = object.as_ref().map_or(function, |object| object.bind(py));
                let found = object.getattr(name.bind(py)).ok();
                same(found.as_ref(), Some(value))
            }
        })
    }
}

fn same(found: Option<&Bound<'_, PyAny>>, value: Option<&Py<PyAny>>) -> bool {
    match (found, value) {
        (Some(found), Some(value)) => found.is(value),
        (None, None) => true,
        _ => false,
    }
}

struct Known {
    reference: Py<PyWeakrefReference>,
    definition: Arc<Definition>,
    checks: Vec<Check>,
}

/// All functions that were seen and live, by address.
static KNOWN: Mutex<Option<HashMap<usize, Arc<Known>>>> = Mutex::new(None);

static TYPES: Once<[usize; 3]> = Once::new();

/// Whether the callable is of a kind that is defined once: a function, a builtin, a class. All
/// others, like bound methods, are sent with their arguments.
fn is_definable(function: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = function.py();
    let types = TYPES.get_or_try_init(py, || {
        let module = py.import("types")?;
        let builtins = py.import("builtins")?;
        Ok::<_, PyErr>([
            module.getattr("FunctionType")?.as_ptr() as usize,
            module.getattr("BuiltinFunctionType")?.as_ptr() as usize,
            builtins.getattr("type")?.as_ptr() as usize,
        ])
    })?;
    let kind = function.get_type_ptr() as usize;
    if kind == types[0] || kind == types[2] {
        return Ok(true);
    }
    if kind == types[1] {
        // A builtin method is bound to its object; a builtin function to its module or nothing.
        let owner = function.getattr(intern!(py, "__self__"))?;
        if owner.is_none() || owner.is_instance_of::<pyo3::types::PyModule>() {
            return Ok(true);
        }
    }
    if is_function_of_module(function)? {
        return Ok(true);
    }
    Ok(function.is_instance_of::<pyo3::types::PyType>())
}

/// Whether a bound method is, under its name, a function of the module of its object's class: the
/// functions of `random` are methods of one hidden object.
fn is_function_of_module(function: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = function.py();
    let (Ok(owner), Ok(name)) = (
        function.getattr(intern!(py, "__self__")),
        function.getattr(intern!(py, "__name__")),
    ) else {
        return Ok(false);
    };
    let (Ok(module), Ok(name)) = (
        owner.get_type().getattr(intern!(py, "__module__")),
        name.cast_into::<PyString>(),
    ) else {
        return Ok(false);
    };
    let modules = py
        .import("sys")?
        .getattr(intern!(py, "modules"))?
        .cast_into::<PyDict>()?;
    let Some(module) = modules.get_item(module)? else {
        return Ok(false);
    };
    Ok(module.getattr(name).is_ok_and(|found| found.is(function)))
}

fn lookup(key: usize) -> Option<Arc<Known>> {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.as_ref()?.get(&key).cloned()
}

/// The definition of a callable; none if it is sent with its arguments.
pub(crate) fn definition(function: &Bound<'_, PyAny>) -> PyResult<Option<Arc<Definition>>> {
    let key = function.as_ptr() as usize;
    if let Some(known) = lookup(key)
        && known
            .reference
            .bind(function.py())
            .upgrade()
            .is_some_and(|live| live.is(function))
    {
        let mut holds = true;
        for check in &known.checks {
            if !check.holds(function)? {
                holds = false;
                break;
            }
        }
        if holds {
            return Ok(Some(known.definition.clone()));
        }
    }
    if !function.is_callable() {
        return Err(not_callable(function));
    }
    if !is_definable(function)? {
        return Ok(None);
    }
    learn(function, key).map(Some)
}

/// What is said of a first argument that cannot be called.
pub(crate) fn not_callable(function: &Bound<'_, PyAny>) -> PyErr {
    match function.get_type().name() {
        Ok(kind) => {
            PyTypeError::new_err(format!("the first argument must be callable, not {kind}"))
        }
        Err(error) => error,
    }
}

fn learn(function: &Bound<'_, PyAny>, key: usize) -> PyResult<Arc<Definition>> {
    let py = function.py();
    let answer = hooks::define(py)?
        .call1((function,))?
        .cast_into::<PyTuple>()?;
    let definition = answer
        .get_item(0)?
        .cast_into::<PyDefinition>()?
        .get()
        .0
        .clone();
    let missing = hooks::missing(py)?;
    let option = |value: Bound<'_, PyAny>| (!value.is(missing)).then(|| value.unbind());
    let mut checks = Vec::new();
    for check in answer.get_item(1)?.cast_into::<PyList>()?.iter() {
        let check = check.cast_into::<PyTuple>()?;
        let kind: String = check.get_item(0)?.extract()?;
        checks.push(match kind.as_str() {
            "global" => Check::Global(
                check.get_item(1)?.cast_into::<PyDict>()?.unbind(),
                check.get_item(2)?.cast_into::<PyString>()?.unbind(),
                option(check.get_item(3)?),
            ),
            "cell" => Check::Cell(check.get_item(1)?.unbind(), option(check.get_item(2)?)),
            _ => {
                let object = check.get_item(1)?;
                // Holding the function itself would keep it alive for ever.
                let object = (!object.is(function)).then(|| object.unbind());
                let name = check.get_item(2)?.cast_into::<PyString>()?.unbind();
                Check::Attribute(object, name, check.get_item(3)?.unbind())
            }
        });
    }
    let forget = pyo3::types::PyCFunction::new_closure(py, None, None, move |args, _| {
        let gone = args.get_item(0)?;
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = known.as_mut().and_then(|known| match known.get(&key) {
            Some(entry) if entry.reference.is(&gone) => known.remove(&key),
            _ => None,
        });
        drop(known); // what it held may run anything when it goes
        drop(entry);
        Ok::<(), PyErr>(())
    })?;
    let reference = PyWeakrefReference::new_with(function, forget)?.unbind();
    let entry = Arc::new(Known {
        reference,
        definition: definition.clone(),
        checks,
    });
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let old = known.get_or_insert_default().insert(key, entry);
    drop(known);
    drop(old);
    Ok(definition)
}

/// From so many bytes of a call on its callable may be kept.
const MUCH: usize = 64 * 1024;

/// Whether the face has kept any callable that is no function.
static ANY_CAPTURED: AtomicBool = AtomicBool::new(false);

/// The definition of a callable that is sent with its arguments elsewhere, if it was kept: see `_captured.py`.
#[inline]
pub(crate) fn captured(function: &Bound<'_, PyAny>) -> PyResult<Option<Arc<Definition>>> {
    // Relaxed: who does not see it yet sends the callable along.
    if !ANY_CAPTURED.load(Ordering::Relaxed) {
        return Ok(None);
    }
    optional(hooks::find_captured(function.py())?.call1((function,))?)
}

/// Keeps such a callable if its call came to many bytes because of it.
pub(crate) fn keep_captured(
    function: &Bound<'_, PyAny>,
    bytes: usize,
) -> PyResult<Option<Arc<Definition>>> {
    if bytes < MUCH {
        return Ok(None);
    }
    let kept = optional(hooks::keep_captured(function.py())?.call1((function,))?)?;
    if kept.is_some() {
        ANY_CAPTURED.store(true, Ordering::Relaxed);
    }
    Ok(kept)
}

fn optional(definition: Bound<'_, PyAny>) -> PyResult<Option<Arc<Definition>>> {
    if definition.is_none() {
        return Ok(None);
    }
    Ok(Some(
        definition.cast_into::<PyDefinition>()?.get().0.clone(),
    ))
}

/// Forgets a function, so that it is looked at anew.
#[pyfunction]
pub(crate) fn forget_function(function: &Bound<'_, PyAny>) {
    let key = function.as_ptr() as usize;
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let gone = known.as_mut().and_then(|known| known.remove(&key));
    drop(known); // what it held may run anything when it goes
    drop(gone);
    calls::forget_bindings();
}

/// Forgets all functions, so that each is looked at anew.
#[pyfunction]
pub(crate) fn forget_functions() {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(known);
    calls::forget_bindings();
}
