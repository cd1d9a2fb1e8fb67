//! `daxfs.Directory`.

use daxfs::{Entry, FileType};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyString, PyTuple};

use crate::error::{OrRaise, not_found};
use crate::image::{file_at, files, is_index};
use crate::text::{self, ImagePath};
use crate::{file, mapping, reduce};

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

/// The file or directory at a path, for `/`.
pub fn at<'py>(py: Python<'py>, image: &daxfs::Image, path: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let entry = image.entry(path).or_raise()?;
    match entry.file_type() {
        FileType::Directory => Directory(entry).into_bound_py_any(py),
        _ => file::create(py, entry.file().or_raise()?),
    }
}

/// The files below a directory whose paths from there match a pattern.
pub fn glob<'py>(py: Python<'py>, top: &Entry, pattern: &str) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let mut place = top.path();
    if !place.ends_with(b"/") {
        place.push(b'/');
    }
    let paths = files(top.image()).filter_map(|entry| {
        let path = entry.path();
        path.strip_prefix(place.as_slice()).map(|rest| text::decode(py, rest))
    });
    let paths = paths.collect::<PyResult<Vec<_>>>()?;
    let found = py.import("daxfs._glob")?.call_method1("matching", (pattern, paths))?;
    let file = |path: PyResult<Bound<'py, PyAny>>| {
        let path = [place.as_slice(), &path?.extract::<ImagePath>()?.0].concat();
        file::create(py, file_at(py, top.image(), &ImagePath(path))?)
    };
    found.try_iter()?.map(file).collect()
}

/// A table of names and bytes for notebooks; a directory has a slash behind its name.
pub fn html<'py>(
    py: Python<'py>,
    title: &str,
    rows: impl Iterator<Item = (Vec<u8>, Entry)>,
) -> PyResult<Bound<'py, PyAny>> {
    let module = py.import("daxfs._html")?;
    let most: usize = module.getattr("ROWS")?.extract()?;
    let mut count = 0;
    let mut shown = Vec::new();
    for (mut name, entry) in rows {
        count += 1;
        if count > most {
            continue;
        }
        let size = match entry.file() {
            Ok(file) => file.len().to_string(),
            Err(_) => {
                name.push(b'/');
                String::new()
            }
        };
        shown.push((text::decode(py, &name)?, size));
    }
    module.call_method1("table", (title, ("name", "bytes"), shown, count))
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

    fn __contains__(&self, key: &Bound<'_, PyAny>) -> bool {
        key.extract::<ImagePath>().is_ok_and(|name| self.child(&name.0).is_some())
    }

    /// The file or directory at a path from here: directory / "sub" / "config.json".
    fn __truediv__<'py>(&self, py: Python<'py>, path: ImagePath) -> PyResult<Bound<'py, PyAny>> {
        at(py, self.0.image(), &[&self.0.path(), b"/".as_slice(), &path.0].concat())
    }

    /// The files below whose paths from here match a pattern, as Image.glob.
    fn glob<'py>(&self, py: Python<'py>, pattern: &str) -> PyResult<Vec<Bound<'py, PyAny>>> {
        glob(py, &self.0, pattern)
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

    /// (function, arguments): see Image.__reduce__.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let path = PyBytes::new(py, &self.0.path());
        reduce::reduced(py, "directory", (reduce::handle(py, self.0.image())?, path))
    }

    fn __copy__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    /// The directory itself, which never changes.
    #[pyo3(signature = (_memo, /))]
    fn __deepcopy__<'py>(slf: Bound<'py, Self>, _memo: &Bound<'py, PyAny>) -> Bound<'py, Self> {
        slf
    }

    fn _ipython_key_completions_<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyString>>> {
        self.children().map(|child| text::decode(py, child.name())).collect()
    }

    /// A table of names and bytes.
    fn _repr_html_<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let entries = self.children().filter_map(|child| Some((child.clone(), self.resolve(child)?)));
        let rows = entries.map(|(child, entry)| (child.name().to_vec(), entry));
        html(py, &self.__repr__(py)?, rows)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let path = text::quoted(py, &self.0.path())?;
        Ok(format!("<daxfs.Directory {path}: {} entries>", self.__len__()))
    }
}
