//! Context variables: which values a task finds.
//!
//! Between processes those travel that the pool was told, by name. Their values in the context of the caller are a
//! definition, which is sent once to each worker for all tasks with the same values; loading it makes a context
//! there (`_context.py`). In this process the whole context is copied.
//!
//! A task runs in a copy of its context, so that what it sets no other task finds. What runs is an
//! `InContext` around the function then. A program that sets no context variable pays for one look.

use crate::functions::PyDefinition;
use crate::hooks;
use crate::local::{Kind, call_one, kind_of};
use crate::once::intern;
use manyhands_runtime::Definition;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::sync::{Arc, Mutex, PoisonError};

/// The context variables that travel with the tasks of a pool.
pub(crate) struct Carrier {
    /// The method `get` of each variable.
    getters: Vec<Py<PyAny>>,
    /// `(values) -> (Definition, bool)`: the values as workers get them, and whether they stay as they are.
    define: Py<PyAny>,
    last: Mutex<Option<Arc<Last>>>,
}

/// What the last task had.
struct Last {
    /// If these cannot change inside; else nobody compares them, and they are not kept.
    values: Option<Vec<Py<PyAny>>>,
    definition: Arc<Definition>,
}

impl Carrier {
    /// The context of a task that is submitted now.
    pub(crate) fn context(&self, py: Python<'_>) -> PyResult<Arc<Definition>> {
        let missing = hooks::missing(py)?;
        let last = self.last().clone();
        if let Some(last) = &last
            && let Some(values) = &last.values
            && self.are_still(values, missing)?
        {
            return Ok(last.definition.clone());
        }
        let values = self
            .getters
            .iter()
            .map(|get| call_one(get.bind(py), missing).map(Bound::unbind))
            .collect::<PyResult<Vec<_>>>()?;
        let answer = self.define.bind(py).call1((PyList::new(py, &values)?,))?;
        let (definition, is_fixed) = answer.extract::<(Bound<'_, PyDefinition>, bool)>()?;
        let definition = definition.get().0.clone();
        let now = Arc::new(Last {
            values: is_fixed.then_some(values),
            definition: definition.clone(),
        });
        let before = self.last().replace(now);
        drop((before, last)); // what they hold may run anything when it goes
        Ok(definition)
    }

    fn are_still(&self, values: &[Py<PyAny>], missing: &Bound<'_, PyAny>) -> PyResult<bool> {
        for (get, then) in self.getters.iter().zip(values) {
            if !call_one(get.bind(missing.py()), missing)?.is(then) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Arc<Last>>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A `Carrier`, as the face makes it.
#[pyclass(name = "ContextCarrier", module = "manyhands._core", frozen)]
pub(crate) struct PyCarrier(pub(crate) Arc<Carrier>);

#[pymethods]
impl PyCarrier {
    #[new]
    fn new(getters: Vec<Py<PyAny>>, define: Py<PyAny>) -> Self {
        Self(Arc::new(Carrier {
            getters,
            define,
            last: Mutex::new(None),
        }))
    }
}

/// The values of a definition, as a worker has them.
#[pyclass(module = "manyhands._core", frozen)]
pub(crate) struct TaskContext {
    context: Py<PyAny>,
}

#[pymethods]
impl TaskContext {
    #[new]
    fn new(context: Py<PyAny>, carrier: PyRef<'_, PyCarrier>) -> Self {
        let mut known = OF_WORKER.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.replace(carrier.0.clone());
        drop(known);
        drop(before);
        Self { context }
    }
}

/// What carries the variables of this worker's pool on to tasks of its tasks, once a task had any.
static OF_WORKER: Mutex<Option<Arc<Carrier>>> = Mutex::new(None);

/// The context of a task that the task of this worker submits.
pub(crate) fn of_nested(py: Python<'_>) -> PyResult<Option<Arc<Definition>>> {
    let carrier = OF_WORKER
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    carrier.map(|carrier| carrier.context(py)).transpose()
}

impl TaskContext {
    /// A worker is about to run functions in it: what to call for this one.
    pub(crate) fn around<'py>(&self, function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let context = self.context.clone_ref(function.py());
        in_context(function, context)
    }
}

/// What to call for a function that is submitted now to a pool of this process: it is to run in the context of
/// the caller, if anything is set there.
#[inline]
pub(crate) fn around<'py>(function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let context = hooks::copy_context(function.py())?.call0()?;
    if context.len()? == 0 {
        return Ok(function.clone());
    }
    in_context(function, context.unbind())
}

fn in_context<'py>(
    function: &Bound<'py, PyAny>,
    context: Py<PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let made = InContext {
        func: function.clone().unbind(),
        context,
    };
    Ok(Bound::new(function.py(), made)?.into_any())
}

/// A function that runs in a copy of a context. As a `partial` has, it has the function as `func`, by
/// which messages name it.
#[pyclass(module = "manyhands._core", frozen)]
pub(crate) struct InContext {
    #[pyo3(get)]
    func: Py<PyAny>,
    context: Py<PyAny>,
}

#[pymethods]
impl InContext {
    #[pyo3(signature = (*args, **kwargs))]
    fn __call__<'py>(
        &self,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = args.py();
        // A context runs in one thread at a time.
        let context = self.context.bind(py).call_method0(intern!(py, "copy"))?;
        let answer = self.run_in(&context, args, kwargs)?;
        if kind_of(&answer) == Kind::Generator {
            // Its body runs when values are taken.
            return hooks::stream_in_context(py)?.call1((context, answer));
        }
        Ok(answer)
    }
}

impl InContext {
    fn run_in<'py>(
        &self,
        context: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = args.py();
        let run = intern!(py, "run");
        if kwargs.is_none() && args.len() <= 1 {
            let arg = args.get_item(0).ok();
            let arg = arg.map_or(std::ptr::null_mut(), |arg| arg.into_ptr());
            // SAFETY: live objects, and a new reference or an exception. Unlike a call with a tuple this makes
            // neither one nor a bound method; where there is no argument the null ends the list.
            return unsafe {
                let answer = ffi::PyObject_CallMethodObjArgs(
                    context.as_ptr(),
                    run.as_ptr(),
                    self.func.as_ptr(),
                    arg,
                    std::ptr::null_mut::<ffi::PyObject>(),
                );
                ffi::Py_XDECREF(arg);
                Bound::from_owned_ptr_or_err(py, answer)
            };
        }
        let first = std::iter::once(self.func.bind(py).clone());
        let args = PyTuple::new(py, first.chain(args.iter()).collect::<Vec<_>>())?;
        context.getattr(run)?.call(args, kwargs)
    }
}
