//! numpy arrays over the memory of a tensor. numpy and ml_dtypes are imported when the first array needs them.

use daxfs::Dtype;
use pyo3::exceptions::{PyAttributeError, PyImportError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::dtype::{Element, array_type, element};

/// `numpy.empty(shape, dtype)`.
pub fn empty<'py>(py: Python<'py>, dtype: Dtype, shape: &[u64]) -> PyResult<Bound<'py, PyAny>> {
    numpy(py)?.call_method1("empty", (shape, numpy_dtype(py, dtype)?))
}

/// `numpy.ndarray(shape, dtype, tensor)`: a view that holds the tensor, read-only where its buffer is.
pub fn view<'py>(tensor: &Bound<'py, PyAny>, dtype: Dtype, shape: &[u64]) -> PyResult<Bound<'py, PyAny>> {
    static NDARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = tensor.py();
    let ndarray = NDARRAY.get_or_try_init(py, || numpy(py)?.getattr("ndarray").map(Bound::unbind))?;
    ndarray.bind(py).call1((shape, numpy_dtype(py, dtype)?, tensor))
}

/// What `__array__(dtype, copy)` of numpy 2 makes of the view.
pub fn convert<'py>(
    view: Bound<'py, PyAny>,
    dtype: Option<&Bound<'py, PyAny>>,
    copy: Option<bool>,
) -> PyResult<Bound<'py, PyAny>> {
    if let Some(dtype) = dtype {
        let wanted = numpy(view.py())?.call_method1("dtype", (dtype,))?;
        let have = view.getattr("dtype")?;
        if !wanted.eq(&have)? {
            if copy == Some(false) {
                return Err(PyValueError::new_err(format!("{have} becomes {wanted} only by a copy")));
            }
            return view.call_method1("astype", (wanted,));
        }
    }
    if copy == Some(true) { view.call_method0("copy") } else { Ok(view) }
}

/// What `dtype` of a tensor is: the `numpy.dtype` of the array that it becomes; its name, a `str` with `name` and
/// `itemsize`, where numpy, or ml_dtypes for what only that has, is not installed, and for quantised types.
pub fn dtype(py: Python<'_>, dtype: Dtype) -> PyResult<Bound<'_, PyAny>> {
    match numpy_dtype(py, dtype) {
        Err(error) if error.is_instance_of::<PyImportError>(py) || dtype.is_quantized() => {
            py.import("daxfs._dtype")?.getattr("DtypeName")?.call1(array_type(dtype))
        }
        made => made.cloned(),
    }
}

/// `torch.from_dlpack(tensor)`.
pub fn torch<'py>(tensor: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = tensor.py();
    let torch = py.import("torch").map_err(|cause| {
        missing(
            py,
            cause,
            "torch() needs torch (pip install torch); other libraries have from_dlpack functions, too",
        )
    })?;
    torch.call_method1("from_dlpack", (tensor,))
}

/// The `numpy.dtype` of a type, made once.
fn numpy_dtype(py: Python<'_>, dtype: Dtype) -> PyResult<&Bound<'_, PyAny>> {
    static MADE: [PyOnceLock<Py<PyAny>>; Dtype::ALL.len()] = [const { PyOnceLock::new() }; Dtype::ALL.len()];
    let make = || -> PyResult<Py<PyAny>> {
        let numpy_dtype = numpy(py)?.getattr("dtype")?;
        let made = match element(dtype) {
            Element::Native { numpy, .. } => numpy_dtype.call1((numpy,)),
            Element::Extension(name) => numpy_dtype.call1((extension(py, dtype, name)?,)),
            Element::Nibbles | Element::Bytes => numpy_dtype.call1(("u1",)),
            Element::Blocks => return Err(no_elements(dtype)),
        };
        made.map(Bound::unbind)
    };
    Ok(MADE[dtype.ordinal()].get_or_try_init(py, make)?.bind(py))
}

fn no_elements(dtype: Dtype) -> PyErr {
    PyTypeError::new_err(format!(
        "{dtype} is quantised: numpy has no such elements; tensor.dequantize() makes an array of float32, \
         tensor.blocks() is a view of the blocks as uint8"
    ))
}

fn numpy(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import("numpy").map_err(|cause| {
        missing(py, cause, "arrays need numpy (pip install numpy); memoryview(tensor) and DLPack do not")
    })
}

/// A type of ml_dtypes.
fn extension<'py>(py: Python<'py>, dtype: Dtype, name: &str) -> PyResult<Bound<'py, PyAny>> {
    let module = py.import("ml_dtypes").map_err(|cause| {
        let why = format!(
            "numpy arrays of {dtype} need ml_dtypes (pip install ml_dtypes); \
             memoryview(tensor.raw) and DLPack do not"
        );
        missing(py, cause, why)
    })?;
    module.getattr(name).map_err(|cause| {
        missing(py, cause, format!("numpy arrays of {dtype} need a newer ml_dtypes, one that has {name}"))
    })
}

/// An `ImportError` that says what to install; anything else that an import raises stays what it is.
fn missing(py: Python<'_>, cause: PyErr, message: impl Into<String>) -> PyErr {
    if !cause.is_instance_of::<PyImportError>(py) && !cause.is_instance_of::<PyAttributeError>(py) {
        return cause;
    }
    let error = PyImportError::new_err(message.into());
    error.set_cause(py, Some(cause));
    error
}
