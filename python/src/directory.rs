//! `daxfs.Directory`.

use daxfs::{Entry, FileType};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyString};

use crate::error::{OrRaise, not_found};
use crate::image::is_index;
use crate::text::{self, ImagePath};
use crate::{file, mapping};

/// A directory of an image: a read-only mapping from the names in it to files and directories.
///
/// Symbolic links are followed; those that lead nowhere and special files are left out.
#[pyclass(frozen, weakref, module = "daxfs")]
#[derive(Debug)]
pub struct Directory(pub Entry);

impl Directory {
    /// A child, symbolic links resolved; `None` for what is not shown.
    fn resolve(&self, child: Entry) -> Option<Entry> {
        if is_index(&child.path()) {
            return None;
        }
        let entry = match child.file_type() {
            FileType::Symlink => self.0.image().entry(child.path()).ok()?,
            _ => child,
        };
        matches!(entry.file_type(), FileType::File | FileType::Directory).then_some(entry)
    }

    fn child(&self, name: &[u8]) -> Option<Entry> {
        self.0.child(name).and_then(|child| self.resolve(child))
    }

    /// Names and entries, in stored order.
    fn children(&self) -> impl Iterator<Item = Entry> {
        self.0.children().filter(|child| self.resolve(child.clone()).is_some())
    }
}

#[pymethods]
impl Directory {
    /// Name of the directory; "" for the root.
    #[getter]
    fn name<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        text::decode(py, self.0.name())
    }

    /// Path in the image; "" for the root.
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        text::relative(py, &self.0.path())
    }

    fn __getitem__<'py>(&self, py: Python<'py>, name: ImagePath) -> PyResult<Bound<'py, PyAny>> {
        let Some(entry) = self.child(&name.0) else {
            let (name, path) = (text::quoted(py, &name.0)?, text::quoted(py, &self.0.path())?);
            return Err(not_found(format!("no {name} in directory {path}")));
        };
        match entry.file_type() {
            FileType::Directory => Self(entry).into_bound_py_any(py),
            _ => file::create(py, entry.file().or_raise()?),
        }
    }

    /// The file or directory of that name, or default when there is none.
    #[pyo3(signature = (name, default=None, /))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        name: ImagePath,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        mapping::or_default(py, self.__getitem__(py, name), default)
    }

    fn __contains__(&self, name: ImagePath) -> bool {
        self.child(&name.0).is_some()
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        let names = self.children().map(|child| text::decode(py, child.name()));
        mapping::iter(py, names.collect::<PyResult<_>>()?)
    }

    fn __len__(&self) -> usize {
        self.children().count()
    }

    /// The names in the directory.
    fn keys<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::keys(slf)
    }

    /// The files and directories in it.
    fn values<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::values(slf)
    }

    /// All pairs of name and file or directory.
    fn items<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::items(slf)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let path = text::quoted(py, &self.0.path())?;
        Ok(format!("<daxfs.Directory {path}: {} entries>", self.__len__()))
    }
}
