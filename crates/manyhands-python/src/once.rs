//! Values that are made at first use, and for which nobody waits.
//!
//! PyO3's own `PyOnceLock`, which its `intern!` is made of, gives the GIL away while a thread makes the value, and
//! lets others wait for that thread. A program may fork just then, and a child of fork has no other thread: it would
//! wait for ever. Here whoever comes makes one, and the first that is ready stays.
//!
//! What PyO3 keeps in such cells itself, and comes to from here, is made when the module is imported.

use once_cell::race::OnceBox;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

/// A value that is made at first use.
pub(crate) struct Once<T>(OnceBox<T>);

impl<T> Once<T> {
    pub(crate) const fn new() -> Self {
        Self(OnceBox::new())
    }

    #[inline]
    pub(crate) fn get(&self, _py: Python<'_>) -> Option<&T> {
        self.0.get()
    }

    #[inline]
    pub(crate) fn get_or_init(&self, _py: Python<'_>, make: impl FnOnce() -> T) -> &T {
        self.0.get_or_init(|| Box::new(make()))
    }

    #[inline]
    pub(crate) fn get_or_try_init<E>(
        &self,
        _py: Python<'_>,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<&T, E> {
        self.0.get_or_try_init(|| make().map(Box::new))
    }
}

/// A string that Python has once, as its names are.
pub(crate) struct Name(Once<Py<PyString>>, &'static str);

impl Name {
    pub(crate) const fn new(text: &'static str) -> Self {
        Self(Once::new(), text)
    }

    #[inline]
    pub(crate) fn get<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        let make = || PyString::intern(py, self.1).unbind();
        self.0.get_or_init(py, make).bind(py)
    }
}

/// As PyO3's macro of that name.
macro_rules! intern {
    ($py:expr, $text:expr) => {{
        static NAME: $crate::once::Name = $crate::once::Name::new($text);
        NAME.get($py)
    }};
}
pub(crate) use intern;

/// Fills the cells in PyO3 that are come to from here, while the module is imported.
pub(crate) fn fill_cells(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let _length_hint = PyTuple::empty(py).try_iter()?.size_hint();
    // What is asked of NumPy's kind of bool, and what an argument of a wrong type is noted with.
    let _refused = py.None().extract::<bool>(py);
    let function = module.getattr("seed_words")?;
    let _refused = (function.call1(("", "")), function.call1((0, py.None())));
    // A thread without the GIL that asks for it looks for once whether there is an interpreter.
    py.detach(|| Python::attach(|_| ()));
    Ok(())
}
