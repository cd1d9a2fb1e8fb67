//! What Python's mapping protocol needs beyond `[]`, `len` and `iter`: views, and the registration that makes
//! `isinstance(x, collections.abc.Mapping)` true.

use pyo3::PyTypeInfo;
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyIterator, PyList, PyMapping, PyString, PyType};

/// `collections.abc.KeysView(mapping)`.
pub fn keys<'py>(mapping: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static VIEW: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    VIEW.import(mapping.py(), "collections.abc", "KeysView")?.call1((mapping,))
}

/// `collections.abc.ValuesView(mapping)`.
pub fn values<'py>(mapping: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static VIEW: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    VIEW.import(mapping.py(), "collections.abc", "ValuesView")?.call1((mapping,))
}

/// `collections.abc.ItemsView(mapping)`.
pub fn items<'py>(mapping: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static VIEW: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    VIEW.import(mapping.py(), "collections.abc", "ItemsView")?.call1((mapping,))
}

/// Declares `T` a `collections.abc.Mapping`.
pub fn register<T: PyTypeInfo>(py: Python<'_>) -> PyResult<()> {
    py.import("collections.abc")?.getattr("Mapping")?.call_method1("register", (py.get_type::<T>(),))?;
    Ok(())
}

/// Iterator over names that are known already.
pub fn iter<'py>(py: Python<'py>, names: Vec<Bound<'py, PyString>>) -> PyResult<Bound<'py, PyIterator>> {
    PyList::new(py, names)?.try_iter()
}

/// What `Mapping.get` makes of the outcome of `[]`.
pub fn or_default<'py>(
    py: Python<'py>,
    found: PyResult<Bound<'py, PyAny>>,
    default: Option<Bound<'py, PyAny>>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    match found {
        Err(error) if error.is_instance_of::<PyKeyError>(py) => Ok(default),
        found => found.map(Some),
    }
}

/// The key as a name; `None` for what is not a name, which no mapping of ours has.
pub fn name(key: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
    // Lone surrogates are in no name of a tensor either.
    Ok(key.cast::<PyString>().ok().and_then(|name| name.to_cow().ok().map(std::borrow::Cow::into_owned)))
}

/// `{**left, **right}`; `NotImplemented` when one of them is not a mapping.
pub fn union<'py>(left: &Bound<'py, PyAny>, right: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = left.py();
    let both = PyDict::new(py);
    for side in [left, right] {
        let Ok(mapping) = side.cast::<PyMapping>() else { return Ok(py.NotImplemented().into_bound(py)) };
        both.update(mapping)?;
    }
    Ok(both.into_any())
}
