//! Metadata of files with tensors as Python's values.

use std::collections::BTreeMap;

use daxfs::tensor::Value;
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

/// A dict of str, int, float, bool, bytes and lists of them.
pub fn dict<'py>(py: Python<'py>, metadata: &BTreeMap<String, Value>) -> PyResult<Bound<'py, PyAny>> {
    let dict = PyDict::new(py);
    for (key, value) in metadata {
        dict.set_item(key, object(py, value)?)?;
    }
    Ok(dict.into_any())
}

fn object<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::Text(text) => text.into_bound_py_any(py),
        Value::Unsigned(number) => number.into_bound_py_any(py),
        Value::Signed(number) => number.into_bound_py_any(py),
        Value::Float(number) => number.into_bound_py_any(py),
        Value::Bool(is_true) => is_true.into_bound_py_any(py),
        Value::Bytes(bytes) => Ok(PyBytes::new(py, bytes).into_any()),
        Value::List(list) => {
            let objects = PyList::empty(py);
            for at in 0..list.len() {
                // Texts are many, and need no copy in between.
                if let Some(text) = list.text(at) {
                    objects.append(text)?;
                } else if let Some(value) = list.get(at) {
                    objects.append(object(py, &value)?)?;
                }
            }
            Ok(objects.into_any())
        }
        _ => Ok(py.None().into_bound(py)),
    }
}
