//! `daxfs.DeviceTensors`.

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyString};

use super::{DeviceFile, DeviceTensor, Held};
use crate::error::OrRaise;
use crate::{mapping, metadata};

/// Tensors in a GPU's memory by name, sorted: a read-only mapping over one file or all shards of a
/// checkpoint. With a plan, those of which this rank has something.
#[pyclass(frozen, weakref, module = "daxfs")]
#[derive(Debug)]
pub struct DeviceTensors {
    tensors: daxfs::Tensors,
    held: Held,
}

impl DeviceTensors {
    pub fn new(tensors: daxfs::Tensors, held: Held) -> Self {
        Self { tensors, held }
    }
}

#[pymethods]
impl DeviceTensors {
    pub fn __getitem__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let tensor = self.held.placed(self.tensors.get(name).or_raise()?)?;
        DeviceTensor::new(tensor, self.held.clone()).into_bound_py_any(py)
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

    pub fn __contains__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Some(name) = mapping::name(key)? else { return Ok(false) };
        Ok(self.get(py, &name, None)?.is_some())
    }

    /// A dict of both, where the other mapping's values count.
    fn __or__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        mapping::union(slf, other)
    }

    fn __ror__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        mapping::union(other, slf)
    }

    fn _ipython_key_completions_(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        py.detach(|| self.held.names(&self.tensors))
    }

    /// A table of name, dtype, shape and bytes.
    fn _repr_html_<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        crate::tensors::html(py, &self.__repr__(py)?, &self.tensors)
    }

    pub fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        let names = py.detach(|| self.held.names(&self.tensors))?;
        mapping::iter(py, names.into_iter().map(|name| PyString::new(py, &name)).collect())
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        match self.held.mapped.placement() {
            None => Ok(self.tensors.len()),
            Some(_) => Ok(py.detach(|| self.held.names(&self.tensors))?.len()),
        }
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

    /// What the file says beside its tensors: the __metadata__ of safetensors, the keys and values of GGUF; of a
    /// checkpoint that of all shards.
    #[getter]
    pub fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        metadata::dict(py, &self.tensors.metadata().or_raise()?)
    }

    /// The files that hold the tensors.
    #[getter]
    fn shards(&self) -> PyResult<Vec<DeviceFile>> {
        let shards = self.tensors.shards().or_raise()?;
        Ok(shards.into_iter().map(|shard| DeviceFile::new(shard, self.held.clone())).collect())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (count, device) = (self.__len__(py)?, self.held.device_text());
        Ok(format!("<daxfs.DeviceTensors: {count} tensors on {device}>"))
    }
}
