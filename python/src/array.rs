//! numpy arrays over the memory of a tensor. numpy and ml_dtypes are imported when the first array is made.

use daxfs::Dtype;
use pyo3::exceptions::{PyAttributeError, PyImportError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::dtype::{Layout, Numpy};

/// `numpy.ndarray(shape, dtype, tensor)`: a view that holds the tensor, read-only as its buffer says.
pub fn view<'py>(tensor: &Bound<'py, PyAny>, dtype: Dtype, layout: &Layout) -> PyResult<Bound<'py, PyAny>> {
    static NDARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = tensor.py();
    let ndarray = NDARRAY.get_or_try_init(py, || Ok::<_, PyErr>(numpy(py)?.getattr("ndarray")?.unbind()))?;
    ndarray.bind(py).call1((&layout.shape, numpy_dtype(py, dtype)?, tensor))
}

/// What `__array__(dtype, copy)` of numpy 2 makes of the view.
pub fn convert<'py>(
    view: Bound<'py, PyAny>,
    dtype: Option<&Bound<'py, PyAny>>,
    copy: Option<bool>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = view.py();
    if let Some(dtype) = dtype {
        let wanted = numpy(py)?.call_method1("dtype", (dtype,))?;
        if !wanted.eq(view.getattr("dtype")?)? {
            if copy == Some(false) {
                let have = view.getattr("dtype")?;
                return Err(PyValueError::new_err(format!("{have} becomes {wanted} only by a copy")));
            }
            return view.call_method1("astype", (wanted,));
        }
    }
    if copy == Some(true) { view.call_method0("copy") } else { Ok(view) }
}

fn numpy_dtype(py: Python<'_>, dtype: Dtype) -> PyResult<&Bound<'_, PyAny>> {
    static CACHE: [PyOnceLock<Py<PyAny>>; Dtype::ALL.len()] =
        [const { PyOnceLock::new() }; Dtype::ALL.len()];
    todo!()
}
