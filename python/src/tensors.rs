//! `daxfs.Tensors`.

use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyString};

use crate::error::OrRaise;
use crate::{file, mapping, tensor, text};

/// Tensors by name, sorted: a read-only mapping over one safetensors file or all shards of a checkpoint.
#[pyclass(frozen, weakref, module = "daxfs")]
#[derive(Debug)]
pub struct Tensors(pub daxfs::Tensors);

#[pymethods]
impl Tensors {
    pub fn __getitem__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        tensor::create(py, self.0.get(name).or_raise()?)
    }

    /// The tensor of that name, or default when there is none.
    #[pyo3(signature = (name, default=None, /))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        mapping::or_default(py, self.__getitem__(py, name), default)
    }

    pub fn __contains__(&self, py: Python<'_>, name: &str) -> PyResult<bool> {
        Ok(self.get(py, name, None)?.is_some())
    }

    pub fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        mapping::iter(py, self.0.names().map(|name| PyString::new(py, &name)).collect())
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// The names of the tensors.
    fn keys<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::keys(slf)
    }

    /// The tensors.
    fn values<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::values(slf)
    }

    /// All pairs of name and tensor.
    fn items<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::items(slf)
    }

    /// The __metadata__ of the file, or of the checkpoint's index.
    #[getter]
    pub fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.0.metadata().or_raise()?.into_pyobject(py)?.into_any())
    }

    /// The files that hold the tensors.
    #[getter]
    fn shards<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.0.shards().or_raise()?.into_iter().map(|shard| file::create(py, shard)).collect()
    }

    /// True when the packer's index was read; False when the headers were parsed.
    #[getter]
    fn indexed(&self) -> bool {
        self.0.indexed()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let shards = self.0.shards().or_raise()?;
        let place = match shards.as_slice() {
            [file] => text::relative(py, &file.path())?.repr()?.to_string(),
            _ => format!("{} files", shards.len()),
        };
        let size = text::size(shards.iter().map(daxfs::File::len).sum());
        Ok(format!("<daxfs.Tensors: {} tensors in {place}, {size}>", self.0.len()))
    }
}
