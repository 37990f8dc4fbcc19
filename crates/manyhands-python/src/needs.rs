//! What objects say they need while they are pickled.
//!
//! A `Broadcast` is pickled as a name. That what it holds has to be there before the name is read it says
//! itself, from its `__reduce__`, to whoever pickles in this thread and listens. So no pickle has to be searched
//! for it, and what has none in it costs nothing.

use crate::functions::PyDefinition;
use manyhands_runtime::Definition;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::cell::{Cell, RefCell};
use std::sync::Arc;

thread_local! {
    /// What was said to who listens, if somebody does.
    static SAID: RefCell<Option<Vec<Arc<Definition>>>> = const { RefCell::new(None) };
    /// Whether something is pickled for a process that has what it needs.
    static RETURNS: Cell<bool> = const { Cell::new(false) };
}

/// Listens while something is pickled. Who listened before hears nothing of that.
#[inline]
pub(crate) fn hear<T>(pickle: impl FnOnce() -> T) -> (T, Vec<Arc<Definition>>) {
    let before = SAID.replace(Some(Vec::new()));
    let made = pickle();
    (made, SAID.replace(before).unwrap_or_default())
}

/// Pickles what goes to where the task came from, or stays here.
#[inline]
pub(crate) fn returning<T>(pickle: impl FnOnce() -> T) -> T {
    let before = RETURNS.replace(true);
    let made = pickle();
    RETURNS.set(before);
    made
}

/// Calls the function, and gives what the objects that it pickled have said they need.
#[pyfunction]
#[pyo3(signature = (function, *args))]
pub(crate) fn hear_needs(
    function: &Bound<'_, PyAny>,
    args: &Bound<'_, PyTuple>,
) -> PyResult<Vec<PyDefinition>> {
    let (answer, said) = hear(|| function.call1(args));
    answer?;
    Ok(said.into_iter().map(PyDefinition).collect())
}

/// Whether somebody listens: what is pickled now goes to a task.
#[pyfunction]
pub(crate) fn is_heard() -> bool {
    SAID.with_borrow(Option::is_some)
}

/// Whether what is pickled now stays among the processes of this program.
#[pyfunction]
pub(crate) fn is_sent() -> bool {
    RETURNS.get() || is_heard()
}

/// Says what has to be known before that can be read which is pickled now.
#[pyfunction]
pub(crate) fn say_need(definition: &Bound<'_, PyDefinition>) {
    let definition = &definition.get().0;
    SAID.with_borrow_mut(|said| {
        if let Some(said) = said
            && !said.iter().any(|other| Arc::ptr_eq(other, definition))
        {
            said.push(definition.clone());
        }
    });
}
