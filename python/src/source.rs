//! What Python code can name as the place of an image, turned into a mapped region.

use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;

use daxfs::{Region, Source};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyInt, PyString};

use crate::error::OrRaise;

/// Environment variable that names the image where the program was started on one.
const VARIABLE: &str = "DAXFS_IMAGE";

/// Opens and maps a source. `private` maps copy-on-write.
pub fn region(source: &Bound<'_, PyAny>, private: bool) -> PyResult<Region> {
    let fd = descriptor(source)?;
    let map = if private { Region::from_fd_private } else { Region::from_fd };
    source.py().detach(|| map(fd)).or_raise()
}

/// The source named in the environment.
pub fn from_environment(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    // Through Python, so that a change made by `os.environ[...] = ...` counts and nobody reads while it is made.
    let value = py.import("os")?.getattr("environ")?.call_method1("get", (VARIABLE,))?;
    if value.is_none() || !value.is_truthy()? {
        return Err(PyValueError::new_err(format!(
            "no source was given, and the environment has no {VARIABLE}; \
             name a path or a descriptor, or start the program with: daxfs-pack DIR --into memfd -- COMMAND"
        )));
    }
    Ok(value)
}

/// A descriptor of our own: opened read-only, or duplicated, so that the caller's stays his.
fn descriptor(source: &Bound<'_, PyAny>) -> PyResult<OwnedFd> {
    let py = source.py();
    if source.is_instance_of::<PyString>() {
        let text: OsString = source.extract()?;
        return py.detach(|| Source::parse(&text).open()).or_raise();
    }
    if is_path(source)? {
        let path = path(source)?;
        return py.detach(|| dmabuf::open_read_only(&path)).or_raise();
    }
    if source.is_instance_of::<PyBool>() {
        return Err(unfit(source));
    }
    if source.is_instance_of::<PyInt>() {
        return duplicate(source);
    }
    if !source.hasattr("fileno")? {
        return Err(unfit(source));
    }
    duplicate(&source.call_method0("fileno")?)
}

/// True for `str`, `bytes` and `os.PathLike`.
pub fn is_path(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(object.is_instance_of::<PyString>()
        || object.is_instance_of::<PyBytes>()
        || object.hasattr("__fspath__")?)
}

/// A path of the file system, as `os.fsdecode` reads it.
pub fn path(object: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    object.py().import("os")?.call_method1("fsdecode", (object,))?.extract()
}

fn duplicate(number: &Bound<'_, PyAny>) -> PyResult<OwnedFd> {
    let number: RawFd = number.extract()?;
    if number < 0 {
        return Err(PyValueError::new_err(format!("{number} is no file descriptor")));
    }
    dmabuf::duplicate(number).or_raise()
}

fn unfit(source: &Bound<'_, PyAny>) -> PyErr {
    let kind = source.get_type().name().map_or_else(|_| "this".into(), |name| name.to_string());
    PyTypeError::new_err(format!(
        "a source is a path, a file descriptor or an object with fileno(), not {kind}"
    ))
}
