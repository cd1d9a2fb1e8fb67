//! Exceptions: a small hierarchy of our own, and Python's built-in ones where those say it better.
//!
//! `DaxfsError` is the root of our own; `CopyWarning` is a `UserWarning`. `FormatError` is a `ValueError`,
//! `NotFoundError` a `KeyError`, `SourceError` a `ValueError`, `DeviceError` a `RuntimeError`, `DeviceMemoryError` a
//! `DeviceError` and a `MemoryError`, `NotPlacedError` a `DeviceError` and a `NotFoundError`. What the operating system refuses is an `OSError` with its
//! number, and so becomes `FileNotFoundError`, `PermissionError` and the like by itself.

use daxfs::holder::HolderError;
use daxfs::holder::message::Refusal;
use daxfs::signature::SignatureError;
use daxfs::{RemoteError, TensorError};
use daxfs_device::DeviceError;
use daxfs_holder::client::LoadError;
use pyo3::exceptions::{
    PyBufferError, PyConnectionError, PyException, PyFileExistsError, PyKeyError, PyMemoryError, PyOSError,
    PyPermissionError, PyRuntimeError, PyTimeoutError, PyTypeError, PyUserWarning, PyValueError,
};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyTuple, PyType};

struct Hierarchy {
    base: Py<PyType>,
    format: Py<PyType>,
    not_found: Py<PyType>,
    source: Py<PyType>,
    device: Py<PyType>,
    device_memory: Py<PyType>,
    not_placed: Py<PyType>,
    copy_warning: Py<PyType>,
}

static HIERARCHY: PyOnceLock<Hierarchy> = PyOnceLock::new();

impl Hierarchy {
    fn get(py: Python<'_>) -> PyResult<&Self> {
        HIERARCHY.get_or_try_init(py, || Self::new(py))
    }

    fn new(py: Python<'_>) -> PyResult<Self> {
        let exception = py.get_type::<PyException>();
        let value = py.get_type::<PyValueError>();
        let base = class(py, "DaxfsError", "What daxfs itself has to complain about.", &[&exception])?;
        let format = class(
            py,
            "FormatError",
            "An image, a safetensors header or a checkpoint breaks a rule, or is not the content that was expected or \
             signed; the message says where.",
            &[&base, &value],
        )?;
        let not_found = class(
            py,
            "NotFoundError",
            "No such file, directory or tensor.",
            &[&base, &py.get_type::<PyKeyError>()],
        )?;
        // A `KeyError` shows the repr of its argument; ours is a sentence.
        not_found.setattr("__str__", exception.getattr("__str__")?)?;
        let source = class(
            py,
            "SourceError",
            "This cannot hold an image or be mapped: a pipe, a raw block device, a device that is not there.",
            &[&base, &value],
        )?;
        let device = class(
            py,
            "DeviceError",
            "A GPU or its driver is missing, refuses the memory or failed, or a copy to it was cancelled.",
            &[&base, &py.get_type::<PyRuntimeError>()],
        )?;
        let device_memory = class(
            py,
            "DeviceMemoryError",
            "A GPU has too little free memory for the image; the message has both numbers.",
            &[&device, &py.get_type::<PyMemoryError>()],
        )?;
        let not_placed = class(
            py,
            "NotPlacedError",
            "By its plan, this rank does not have that tensor, file or part on its GPU.",
            &[&device, &not_found],
        )?;
        let copy_warning = class(
            py,
            "CopyWarning",
            "A library copies a tensor that it would view if it were aligned; the message names it and the cure.",
            &[&py.get_type::<PyUserWarning>()],
        )?;
        Ok(Self {
            base: base.unbind(),
            format: format.unbind(),
            not_found: not_found.unbind(),
            source: source.unbind(),
            device: device.unbind(),
            device_memory: device_memory.unbind(),
            not_placed: not_placed.unbind(),
            copy_warning: copy_warning.unbind(),
        })
    }
}

/// `type(name, bases, {...})`, which is how Python makes a class with several bases.
fn class<'py>(
    py: Python<'py>,
    name: &str,
    doc: &str,
    bases: &[&Bound<'py, PyType>],
) -> PyResult<Bound<'py, PyType>> {
    let body = [("__module__", "daxfs"), ("__doc__", doc)].into_py_dict(py)?;
    let class = py.get_type::<PyType>().call1((name, PyTuple::new(py, bases)?, body))?;
    Ok(class.cast_into::<PyType>()?)
}

/// Adds the exception classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let types = Hierarchy::get(py)?;
    let own = [
        &types.base,
        &types.format,
        &types.not_found,
        &types.source,
        &types.device,
        &types.device_memory,
        &types.not_placed,
        &types.copy_warning,
    ];
    for class in own {
        let class = class.bind(py);
        module.add(class.name()?, class)?;
    }
    Ok(())
}

fn raise(message: impl Into<String>, choose: impl FnOnce(&Hierarchy) -> &Py<PyType>) -> PyErr {
    let message = message.into();
    Python::attach(|py| match Hierarchy::get(py) {
        Ok(types) => PyErr::from_type(choose(types).bind(py).clone(), message),
        Err(error) => error,
    })
}

/// The class `CopyWarning`.
pub fn copy_warning(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    Ok(Hierarchy::get(py)?.copy_warning.bind(py).clone())
}

/// A `NotFoundError`.
pub fn not_found(message: impl Into<String>) -> PyErr {
    raise(message, |types| &types.not_found)
}

/// A `DaxfsError`.
pub fn base(message: impl Into<String>) -> PyErr {
    raise(message, |types| &types.base)
}

/// A `SourceError`.
pub fn source(message: impl Into<String>) -> PyErr {
    raise(message, |types| &types.source)
}

/// A `DeviceError`.
pub fn device(message: impl Into<String>) -> PyErr {
    raise(message, |types| &types.device)
}

/// Turns errors of the Rust crates into exceptions.
pub trait OrRaise<T> {
    /// The value, or the exception that fits.
    fn or_raise(self) -> PyResult<T>;
}

impl<T> OrRaise<T> for Result<T, dmabuf::Error> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(|error| from_memory(&error))
    }
}

impl<T> OrRaise<T> for Result<T, daxfs::Error> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(|error| from_daxfs(&error))
    }
}

impl<T> OrRaise<T> for Result<T, daxfs_device::Error> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(|error| from_device(&error))
    }
}

impl<T> OrRaise<T> for Result<T, HolderError> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(|error| from_holder(&error, error.to_string()))
    }
}

impl<T> OrRaise<T> for Result<T, LoadError> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(|error| from_load(&error))
    }
}

impl<T> OrRaise<T> for Result<T, mkimage::Error> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(|error| from_pack(&error))
    }
}

fn from_memory(error: &dmabuf::Error) -> PyErr {
    match error {
        dmabuf::Error::Os { op, subject, source } => match source.raw_os_error() {
            Some(number) => os_error(op, subject, number),
            None => PyOSError::new_err(error.to_string()),
        },
        dmabuf::Error::Refused { op, subject, source, advice } => match source.raw_os_error() {
            Some(number) => {
                PyOSError::new_err((number, format!("{op}: {source}: {advice}"), subject.clone()))
            }
            None => PyOSError::new_err(error.to_string()),
        },
        dmabuf::Error::OutOfBounds { .. } => raise(error.to_string(), |types| &types.format),
        _ => self::source(error.to_string()),
    }
}

/// `OSError(number, text, subject)`: Python picks the subclass by the number.
pub fn os_error(op: &str, subject: &str, number: i32) -> PyErr {
    Python::attach(|py| {
        let text = py
            .import("os")
            .and_then(|os| os.call_method1("strerror", (number,)))
            .and_then(|text| text.extract::<String>());
        match text {
            // For `open` the number and the path say it all, as everywhere in Python.
            Ok(text) if op == "open" => PyOSError::new_err((number, text, subject.to_owned())),
            Ok(text) => PyOSError::new_err((number, format!("{op}: {text}"), subject.to_owned())),
            Err(error) => error,
        }
    })
}

fn from_daxfs(error: &daxfs::Error) -> PyErr {
    use daxfs::Error;
    match error {
        Error::Memory(error) => from_memory(error),
        Error::Holder(error) => from_holder(error, error.to_string()),
        Error::Source { .. } => PyValueError::new_err(error.to_string()),
        Error::Remote(fault) => from_remote(fault),
        Error::OutsideSource { .. } | Error::PhysicalMount { .. } | Error::NotMountable { .. } => {
            source(error.to_string())
        }
        Error::Write(error) => PyOSError::new_err(error.to_string()),
        Error::NotContiguous { .. } => PyBufferError::new_err(error.to_string()),
        Error::Tensor(fault) => from_tensor(fault),
        Error::Signature(SignatureError::Read { path, source }) => match source.raw_os_error() {
            Some(number) => os_error("open", &path.to_string_lossy(), number),
            None => PyOSError::new_err(error.to_string()),
        },
        Error::Signature(_) | Error::NoHashes { .. } => raise(error.to_string(), |types| &types.format),
        error if error.is_format() || error.is_other_content() => {
            raise(error.to_string(), |types| &types.format)
        }
        error if error.is_not_found() => not_found(error.to_string()),
        _ => raise(error.to_string(), |types| &types.base),
    }
}

fn from_remote(error: &RemoteError) -> PyErr {
    let text = error.to_string();
    match (error, error.raw_os_error()) {
        _ if error.is_not_found() => not_found(text),
        _ if error.is_format() || error.is_other_content() => raise(text, |types| &types.format),
        (RemoteError::Failed { kind, .. }, _) if kind == "address" => PyValueError::new_err(text),
        // The number chooses PermissionError, TimeoutError or FileNotFoundError.
        (_, Some(number)) => PyOSError::new_err((number, text)),
        _ => PyConnectionError::new_err(text),
    }
}

fn from_device(error: &daxfs_device::Error) -> PyErr {
    use daxfs_device::Error;
    match error {
        Error::Image(error) => from_daxfs(error),
        Error::Device(DeviceError::OutOfMemory { .. } | DeviceError::OutOfHostMemory { .. }) => {
            raise(error.to_string(), |types| &types.device_memory)
        }
        Error::Device(DeviceError::NotPlaced { .. }) => raise(error.to_string(), |types| &types.not_placed),
        Error::Plan(_) => PyValueError::new_err(error.to_string()),
        _ => device(error.to_string()),
    }
}

fn from_holder(error: &HolderError, text: String) -> PyErr {
    match error {
        error if error.is_not_found() => not_found(text),
        // As where this process finds it.
        error if error.is_other_content() => raise(text, |types| &types.format),
        HolderError::Refused { refusal, .. } => match refusal {
            Refusal::NotAllowed => PyPermissionError::new_err(text),
            Refusal::NameTaken => PyFileExistsError::new_err(text),
            Refusal::Limit => PyMemoryError::new_err(text),
            Refusal::Busy => PyConnectionError::new_err(text),
            Refusal::BadRequest => PyValueError::new_err(text),
            Refusal::NotSigned => raise(text, |types| &types.format),
            _ => source(text),
        },
        // By its number: who may not connect gets a PermissionError, whatever listens there.
        HolderError::System { source, .. } => from_memory(source),
        HolderError::Timeout { .. } => PyTimeoutError::new_err(text),
        HolderError::NotAsSaid { .. } | HolderError::Protocol { .. } => PyConnectionError::new_err(text),
        HolderError::GivenUp { .. } => raise(text, |types| &types.base),
        error if error.is_unreachable() => PyConnectionError::new_err(text),
        _ => source(text),
    }
}

fn from_load(error: &LoadError) -> PyErr {
    let text = error.to_string();
    match error {
        LoadError::Source(error) => from_daxfs(error),
        LoadError::Pack(error) => from_pack(error),
        LoadError::Signature(SignatureError::Read { path, source }) => match source.raw_os_error() {
            Some(number) => os_error("open", &path.to_string_lossy(), number),
            None => PyOSError::new_err(text),
        },
        LoadError::Signature(_) => raise(text, |types| &types.format),
        LoadError::NoEffect { place, option, why } => {
            let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
            PyValueError::new_err(format!("{place}{} {why}", option.replace('-', "_")))
        }
        LoadError::Refused { source, .. } => from_holder(source, text),
        LoadError::Holder(source) => from_holder(source, text),
        _ => PyValueError::new_err(text),
    }
}

fn from_tensor(fault: &TensorError) -> PyErr {
    match innermost(fault) {
        TensorError::VariantOfFile { .. } => PyValueError::new_err(fault.to_string()),
        TensorError::NotDequantizable { .. } => PyTypeError::new_err(fault.to_string()),
        TensorError::NotExportable { .. } | TensorError::NotWritable { .. } => {
            PyBufferError::new_err(fault.to_string())
        }
        TensorError::Unsupported { .. } => raise(fault.to_string(), |types| &types.format),
        // First, since a shard or tensor that a checkpoint promises and does not have makes it invalid.
        inner if inner.is_format() => raise(fault.to_string(), |types| &types.format),
        inner if inner.is_not_found() => not_found(fault.to_string()),
        _ => raise(fault.to_string(), |types| &types.base),
    }
}

fn innermost(fault: &TensorError) -> &TensorError {
    match fault {
        TensorError::InFile { fault, .. } => innermost(fault),
        fault => fault,
    }
}

fn from_pack(error: &mkimage::Error) -> PyErr {
    use mkimage::Error;
    match error {
        Error::Memory(error) => from_memory(error),
        Error::Reader(error) | Error::Target(error) => from_daxfs(error),
        Error::Io { op, path, source } => match source.raw_os_error() {
            Some(number) => os_error(op, &path.to_string_lossy(), number),
            None => PyOSError::new_err(error.to_string()),
        },
        Error::NoInput | Error::Setting { .. } => PyValueError::new_err(error.to_string()),
        _ => raise(error.to_string(), |types| &types.base),
    }
}
