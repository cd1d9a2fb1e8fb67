//! `daxfs.DeviceFile`: a file of an image in a GPU's memory.

use std::sync::OnceLock;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyString};

use super::{DeviceTensor, DeviceTensors, Held, Placed};
use crate::error::OrRaise;
use crate::{mapping, text};

/// A file of an image in a GPU's memory. It holds that memory.
///
/// A safetensors file gives its tensors by name: file["lm_head.weight"].
#[pyclass(frozen, weakref, module = "daxfs")]
#[derive(Debug)]
pub struct DeviceFile {
    file: daxfs::File,
    held: Held,
    /// Parsed at first use, from the host's image.
    tensors: OnceLock<daxfs::Tensors>,
}

impl DeviceFile {
    pub fn new(file: daxfs::File, held: Held) -> Self {
        Self { file, held, tensors: OnceLock::new() }
    }

    fn parsed(&self, py: Python<'_>) -> PyResult<&daxfs::Tensors> {
        if let Some(tensors) = self.tensors.get() {
            return Ok(tensors);
        }
        let tensors = py.detach(|| self.file.tensors()).or_raise()?;
        Ok(self.tensors.get_or_init(|| tensors))
    }
}

#[pymethods]
impl DeviceFile {
    /// Name of the file, without directories.
    #[getter]
    fn name<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        text::decode(py, self.file.entry().name())
    }

    /// Path in the image.
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        text::relative(py, &self.file.path())
    }

    /// Size in bytes.
    #[getter]
    fn size(&self) -> u64 {
        self.file.len()
    }

    /// The device: "cuda:0".
    #[getter]
    fn device(&self) -> String {
        self.held.device_text()
    }

    /// The GPU's address of the first byte (CUdeviceptr), good as long as this object or another of the image is
    /// alive.
    ///
    /// DeviceError when the bytes lie in several places; NotPlacedError when this rank of a plan has not all of them.
    #[getter]
    fn device_ptr(&self) -> PyResult<u64> {
        Placed::address(&self.held.mapped.file(&self.file).or_raise()?.one().or_raise()?)
    }

    /// A copy of all contents, fetched back from the GPU. To read the file take it from the image on the host: this is for
    /// those who want to see what the GPU has.
    fn read_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.read_at(py, 0, None)
    }

    /// A copy of length bytes from offset on, or of all from there, as read_bytes(); fewer where the file ends.
    #[pyo3(signature = (offset, length=None))]
    fn read_at<'py>(
        &self,
        py: Python<'py>,
        offset: u64,
        length: Option<u64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let offset = offset.min(self.file.len());
        let left = self.file.len() - offset;
        let size = length.unwrap_or(left).min(left);
        let places = self.held.mapped.file_range(&self.file, offset, size).or_raise()?;
        self.held.read(py, &places, size)
    }

    /// The tensors of a safetensors file.
    fn tensors(&self, py: Python<'_>) -> PyResult<DeviceTensors> {
        Ok(DeviceTensors::new(self.parsed(py)?.clone(), self.held.clone()))
    }

    /// What a file with tensors says beside them: the __metadata__ of safetensors, the keys and values of GGUF.
    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.tensors(py)?.metadata(py)
    }

    fn __getitem__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let tensor = self.held.placed(self.parsed(py)?.get(name).or_raise()?)?;
        DeviceTensor::new(tensor, self.held.clone()).into_bound_py_any(py)
    }

    fn __contains__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.tensors(py)?.__contains__(py, key)
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        self.tensors(py)?.__iter__(py)
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

    /// The names of the tensors.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        mapping::keys(&self.tensors(py)?.into_bound_py_any(py)?)
    }

    /// The tensors.
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        mapping::values(&self.tensors(py)?.into_bound_py_any(py)?)
    }

    /// All pairs of name and tensor.
    fn items<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        mapping::items(&self.tensors(py)?.into_bound_py_any(py)?)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let path = text::relative(py, &self.file.path())?.repr()?;
        let (size, device) = (text::size(self.file.len()), self.held.device_text());
        Ok(format!("<daxfs.DeviceFile {path}: {size} on {device}>"))
    }
}
