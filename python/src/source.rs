//! What Python code can name as the place of an image.

use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use daxfs::signature::PublicKeys;
use daxfs::{Image, OpenOptions, Part, Region, RemoteAddress, Source};
use daxfs_holder::client::Given;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyInt, PyString};

use crate::error::OrRaise;

/// Environment variable that names the image where the program was started on one.
const VARIABLE: &str = "DAXFS_IMAGE";

/// Where an image lies.
pub enum Place {
    /// A source by its text, see [`Source`].
    Named(OsString),
    /// A descriptor of our own, duplicated, so that the caller's stays his.
    Descriptor(OwnedFd),
}

impl Place {
    /// Reads what Python code gave.
    pub fn of(source: &Bound<'_, PyAny>) -> PyResult<Self> {
        if source.is_instance_of::<PyString>() {
            return Ok(Self::Named(source.extract()?));
        }
        if is_path(source)? {
            return Ok(Self::Named(plain(path(source)?)));
        }
        if source.is_instance_of::<PyInt>() && !source.is_instance_of::<PyBool>() {
            return duplicate(source);
        }
        if source.hasattr("fileno")? {
            return duplicate(&source.call_method0("fileno")?);
        }
        let kind = source.get_type().name()?;
        let message = format!("a source is a path, a file descriptor or an object with fileno(), not {kind}");
        Err(PyTypeError::new_err(message))
    }

    /// Whether it lies elsewhere, and is fetched.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Named(text) if RemoteAddress::parse(text).is_some())
    }

    /// Opens the image there; `private` maps it copy-on-write.
    pub fn open(self, options: OpenOptions, private: bool) -> daxfs::Result<Image> {
        match self {
            Self::Named(text) => options.private(private).open(text),
            Self::Descriptor(fd) if private => options.open_region(Region::from_fd_private(fd)?),
            Self::Descriptor(fd) => options.open_region(Region::from_fd(fd)?),
        }
    }

    /// Has one of `keys` sign: in the file that is named, or in one beside a path. Both are read when the image is opened,
    /// and again when it is refreshed.
    pub fn signed(&self, options: OpenOptions, keys: PublicKeys, named: Option<PathBuf>) -> OpenOptions {
        if let Some(path) = named {
            return options.signed_in(keys, path);
        }
        match self {
            Self::Named(text) => match Source::parse(text) {
                Ok(Source::Path { path, part: Part::WHOLE }) => options.signed_beside(keys, path),
                _ => options.signed(keys, None),
            },
            Self::Descriptor(_) => options.signed(keys, None),
        }
    }

    /// As a holder's load takes it.
    pub fn given(self) -> Given {
        match self {
            Self::Named(text) => Given::Named(text),
            Self::Descriptor(fd) => Given::Descriptor(fd),
        }
    }

    /// Maps what lies there.
    pub fn map(self) -> daxfs::Result<Region> {
        match self {
            Self::Named(text) => Region::open(text),
            Self::Descriptor(fd) => Region::from_fd(fd),
        }
    }
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

/// A path that was meant as one, in a form that is not taken for another kind of source.
fn plain(path: PathBuf) -> OsString {
    match Source::parse(path.as_os_str()) {
        Ok(Source::Path { part: Part::WHOLE, .. }) => path.into_os_string(),
        // Nothing but a path begins so.
        _ if path.is_absolute() => {
            let mut text = OsString::from("/.");
            text.push(path);
            text
        }
        _ => Path::new(".").join(path).into_os_string(),
    }
}

/// A descriptor, or that of an object with fileno(), duplicated; `what` is the word for it in messages.
pub fn descriptor(what: &str, object: &Bound<'_, PyAny>) -> PyResult<OwnedFd> {
    let number = match object.is_instance_of::<PyInt>() && !object.is_instance_of::<PyBool>() {
        true => object.clone(),
        false if object.hasattr("fileno")? => object.call_method0("fileno")?,
        false => {
            let kind = object.get_type().name()?;
            let message = format!("{what} is a file descriptor or an object with fileno(), not {kind}");
            return Err(PyTypeError::new_err(message));
        }
    };
    match duplicate(&number)? {
        Place::Descriptor(fd) => Ok(fd),
        Place::Named(_) => Err(PyTypeError::new_err(format!("{what} is a file descriptor"))),
    }
}

fn duplicate(number: &Bound<'_, PyAny>) -> PyResult<Place> {
    let number: RawFd = number.extract()?;
    if number < 0 {
        return Err(PyValueError::new_err(format!("{number} is not a file descriptor")));
    }
    dmabuf::duplicate(number).or_raise().map(Place::Descriptor)
}
