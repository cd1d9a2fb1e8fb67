//! JAX: its arrays over the memory of a tensor, and a warning where it takes a copy.

use std::sync::atomic::{AtomicBool, Ordering};

use daxfs::{Dtype, Tensor};
use pyo3::exceptions::{PyBufferError, PyImportError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::IntoPyDict;

use crate::dtype::{Element, element};
use crate::error;

/// What JAX views lies on a multiple of so many bytes (`kMinAlign` of XLA's CPU client); it copies everything else.
const ALIGNMENT: u64 = 64;

/// Whether the warning was given.
static WARNED: AtomicBool = AtomicBool::new(false);

/// `jax.dlpack.from_dlpack(tensor)`.
pub fn from_dlpack<'py>(tensor: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = tensor.py();
    let dlpack = py.import("jax.dlpack").map_err(|cause| {
        if !cause.is_instance_of::<PyImportError>(py) {
            return cause;
        }
        let error = PyImportError::new_err("jax() needs JAX (pip install jax)");
        error.set_cause(py, Some(cause));
        error
    })?;
    dlpack.call_method1("from_dlpack", (tensor,))
}

/// What `jax.numpy.asarray(tensor)` makes of `array`, the numpy array of the tensor: a copy where others may write to
/// the memory, a view where JAX would put the array into it, else what it makes of numpy arrays.
pub fn array<'py>(
    tensor: &Bound<'py, PyAny>,
    is_writable: bool,
    array: impl FnOnce() -> PyResult<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = tensor.py();
    // Arrays of JAX never change, and asarray may view a numpy array.
    let convert = if is_writable { "array" } else { "asarray" };
    if !is_writable && is_on_cpu(py)? {
        match from_dlpack(tensor) {
            // Packed types are none of JAX's, and older versions lack other types.
            Err(error) if is_refusal(py, &error) => {}
            made => return made,
        }
    }
    py.import("jax.numpy")?.call_method1(convert, (array()?,))
}

/// Whether arrays of JAX are in the memory of the CPU, as one device. A view is bound to its device: where there are
/// several, JAX could not spread it over them, as it does with other arrays.
fn is_on_cpu(py: Python<'_>) -> PyResult<bool> {
    let jax = py.import("jax")?;
    let chosen = jax.getattr("config")?.getattr("jax_default_device")?;
    Ok(chosen.is_none()
        && jax.call_method0("default_backend")?.eq("cpu")?
        && jax.call_method0("device_count")?.eq(1)?)
}

fn is_refusal(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyBufferError>(py)
        || error.is_instance_of::<PyRuntimeError>(py)
        || error.is_instance_of::<PyTypeError>(py)
        || error.is_instance_of::<PyValueError>(py)
}

/// Warns, once in a process, when JAX asks for a tensor that it copies for its alignment alone. DLPack does not say who
/// asks, so the module does that calls `__dlpack__`; and JAX passes on nothing of the copy that it was asked for or
/// forbidden, so its functions do.
pub fn warn_of_copy(py: Python<'_>, tensor: &Tensor) -> PyResult<()> {
    let alignment = tensor.alignment();
    if alignment >= ALIGNMENT || tensor.nbytes() == 0 || WARNED.load(Ordering::Relaxed) {
        return Ok(());
    }
    // The native code around this has no frame, so the first one is the caller's. Native programs may have none.
    let mut frame = py.import("sys")?.call_method0("_getframe").ok();
    let mut level = 1;
    while let Some(caller) = frame.filter(|frame| is_jax(frame)) {
        if settles_copy(&caller) {
            return Ok(());
        }
        level += 1;
        frame = Some(caller.getattr("f_back")?).filter(|frame| !frame.is_none());
    }
    if level == 1 || !has_type(py, tensor)? {
        return Ok(());
    }
    let name = tensor.name().into_pyobject(py)?.repr()?;
    let path = crate::text::relative(py, &tensor.file().path())?.repr()?;
    let message = format!(
        "JAX cannot view the tensor {name} of {path} and copies it: its alignment is {alignment}, JAX needs \
         {ALIGNMENT}. daxfs-pack and daxfs.pack align tensors unless told otherwise (--exact, --plain): pack \
         the source again. Further copies are not reported."
    );
    let options = [("stacklevel", level)].into_py_dict(py)?;
    py.import("warnings")?.call_method("warn", (message, error::copy_warning(py)?), Some(&options))?;
    // Not before: where warnings are errors, each copy is one.
    WARNED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Whether JAX has arrays of the tensor's type: it copies others, wherever they lie, or refuses them.
fn has_type(py: Python<'_>, tensor: &Tensor) -> PyResult<bool> {
    match tensor.dtype() {
        Dtype::I64 | Dtype::U64 | Dtype::F64 => {
            py.import("jax")?.getattr("config")?.getattr("jax_enable_x64")?.is_truthy()
        }
        dtype => Ok(!matches!(element(dtype), Element::Nibbles | Element::Bytes | Element::Blocks)),
    }
}

fn is_jax(frame: &Bound<'_, PyAny>) -> bool {
    let name = frame.getattr("f_globals").and_then(|globals| globals.get_item("__name__"));
    name.and_then(|name| name.extract::<String>()).is_ok_and(|name| name == "jax" || name.starts_with("jax."))
}

/// Whether a function of JAX was told to copy, or not to, so that the alignment decides nothing. For `array` not to copy is
/// a wish alone.
fn settles_copy(frame: &Bound<'_, PyAny>) -> bool {
    let name = frame.getattr("f_code").and_then(|code| code.getattr("co_name")?.extract::<String>());
    let copy = || frame.getattr("f_locals")?.get_item("copy")?.extract::<Option<bool>>();
    match name.as_deref() {
        Ok("from_dlpack") => copy().is_ok_and(|copy| copy.is_some()),
        Ok("array") => copy().is_ok_and(|copy| copy == Some(true)),
        _ => false,
    }
}
