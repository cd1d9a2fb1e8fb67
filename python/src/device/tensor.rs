//! `daxfs.DeviceTensor`: a tensor in a GPU's memory, lent out by its address, as DLPack or by CUDA's array interface.

use daxfs_device::Place;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCapsule, PyDict, PyTuple};

use super::{DeviceFile, DeviceTensorPart, Held, Placed};
use crate::dlpack::{self, Lent};
use crate::error::OrRaise;
use crate::{array, jax, text};

/// A tensor in a GPU's memory. It holds that memory, and so do arrays made of it.
///
/// torch.from_dlpack(tensor), cupy.from_dlpack(tensor) and jax.dlpack.from_dlpack(tensor) are views of the memory,
/// and so is what takes __cuda_array_interface__; device_ptr is for kernels of your own. The memory is read-only
/// unless Image.to() was called with writable=True: torch has no read-only tensors, and a kernel that writes to one
/// is a fault.
#[pyclass(frozen, weakref, module = "daxfs")]
#[derive(Debug)]
pub struct DeviceTensor {
    tensor: daxfs::Tensor,
    held: Held,
}

impl DeviceTensor {
    pub fn new(tensor: daxfs::Tensor, held: Held) -> Self {
        Self { tensor, held }
    }

    fn place(&self) -> daxfs_device::Result<Place> {
        self.held.mapped.tensor(&self.tensor)?.one()
    }

    /// The place for a protocol, which knows one exception.
    fn lendable(&self) -> PyResult<Place> {
        self.place().map_err(|error| PyBufferError::new_err(error.to_string()))
    }
}

#[pymethods]
impl DeviceTensor {
    /// Name.
    #[getter]
    fn name(&self) -> &str {
        self.tensor.name()
    }

    /// Type of the elements as safetensors names it: "BF16", "F8_E4M3", "U8", ...
    #[getter]
    fn dtype_name(&self) -> &'static str {
        self.tensor.dtype().name()
    }

    /// The numpy.dtype of the array that the tensor becomes: what numpy, JAX and dask take. BF16 and the 8-bit floats
    /// have types of ml_dtypes; F4 and the 6-bit floats are uint8, since arrays hold their packed bytes.
    /// getattr(torch, tensor.dtype.name) is torch's type.
    ///
    /// Where numpy, or ml_dtypes for a type of its, is not installed: the name alone, a str with name and itemsize.
    #[getter]
    fn dtype<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        array::dtype(py, self.tensor.dtype())
    }

    /// Dimensions, in elements.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.tensor.shape())
    }

    /// Number of dimensions.
    #[getter]
    fn ndim(&self) -> usize {
        self.tensor.shape().len()
    }

    /// Number of elements.
    #[getter]
    fn size(&self) -> u64 {
        self.tensor.elements()
    }

    /// Bytes of memory.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.tensor.nbytes()
    }

    /// Position of the first byte in its file.
    #[getter]
    fn offset(&self) -> u64 {
        self.tensor.offset()
    }

    /// The file that holds the tensor.
    #[getter]
    fn file(&self) -> DeviceFile {
        DeviceFile::new(self.tensor.file().clone(), self.held.clone())
    }

    /// The device: "cuda:0".
    #[getter]
    fn device(&self) -> String {
        self.held.device_text()
    }

    /// The GPU's address of the first byte (CUdeviceptr), good as long as this object or another of the image is
    /// alive.
    ///
    /// DeviceError when the bytes lie in several places; NotPlacedError when only a part of them is there.
    #[getter]
    fn device_ptr(&self) -> PyResult<u64> {
        Placed::address(&self.place().or_raise()?)
    }

    /// A copy of the bytes, fetched back from the GPU. To read the tensor take it from the image on the host: this is
    /// for those who want to see what the GPU has.
    fn read<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let places = self.held.mapped.tensor(&self.tensor).or_raise()?;
        self.held.read(py, &places, self.tensor.nbytes())
    }

    /// What is there of the tensor: with a plan that splits it, the part of this rank; without one, all of it.
    ///
    /// NotPlacedError where this rank has nothing of it.
    #[getter]
    fn part(&self) -> PyResult<DeviceTensorPart> {
        DeviceTensorPart::of_rank(self.tensor.clone(), self.held.clone())
    }

    /// A part of one dimension, where it lies: tensor[0:512], tensor[:, 256:512], tensor[3]. Indices count in the whole
    /// tensor, also where a plan has split it.
    ///
    /// IndexError for steps, for parts of several dimensions and for what is outside; DeviceError for what begins or
    /// ends inside a byte, NotPlacedError for what a plan has put elsewhere.
    fn __getitem__(&self, key: &Bound<'_, PyAny>) -> PyResult<DeviceTensorPart> {
        DeviceTensorPart::indexed(self.tensor.clone(), self.held.clone(), key)
    }

    /// TypeError: the elements are in the GPU's memory, and numpy would make objects of them one by one.
    #[pyo3(signature = (dtype=None, copy=None))]
    fn __array__(&self, dtype: Option<&Bound<'_, PyAny>>, copy: Option<bool>) -> PyResult<()> {
        let _ = (dtype, copy);
        Err(super::no_host_array(&self.held))
    }

    fn __len__(&self) -> PyResult<usize> {
        let first =
            self.tensor.shape().first().ok_or_else(|| PyTypeError::new_err("a scalar has no len()"))?;
        usize::try_from(*first).map_err(|_| PyTypeError::new_err("the length does not fit"))
    }

    /// A DLPack capsule, for the from_dlpack functions of array libraries. Those that do not know version 1, which
    /// says what is read-only, get none of a mapped image, whose memory is others' too.
    ///
    /// The bytes were complete before this object was made, so any stream is taken and none is waited for. Nothing is
    /// copied or moved to another device: BufferError. Host memory that a GPU reads is also that GPU's, without a copy,
    /// to who asks for it there by dl_device=(2, N).
    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<&Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let request = dlpack::Request { stream, max_version, device: dl_device, copy: copy.unwrap_or(false) };
        let lent = Lent::Device {
            tensor: &self.tensor,
            place: &self.lendable()?,
            devices: self.held.dl_devices(),
            read_only: !self.held.is_writable(),
        };
        dlpack::capsule(py, lent, &request)
    }

    /// (2, N) for memory of the GPU N; (3, 0) for memory of the host that the GPU reads.
    fn __dlpack_device__(&self) -> (i32, i32) {
        dlpack::pair(self.held.dl_devices().own)
    }

    /// Version 3 of the interface: address, whether it is read-only, shape and type. No stream has to be waited for.
    ///
    /// AttributeError for types that numpy has no name for: BF16 and the floats of 8 bits and fewer.
    #[getter(__cuda_array_interface__)]
    fn cuda_array_interface<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        super::cuda_array_interface(
            py,
            &self.held,
            &self.tensor,
            &self.lendable()?,
            self.tensor.shape(),
            None,
        )
    }

    /// torch.from_dlpack(tensor): a torch.Tensor of the same memory. torch has no read-only tensors: unless the image was
    /// placed with writable=True, a kernel that writes to it, as add_() and copy_() do, is a fault of the GPU.
    fn torch<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        array::torch(slf)
    }

    /// jax.dlpack.from_dlpack(tensor): a jax.Array of the same memory, where JAX runs on that GPU.
    fn jax<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        jax::from_dlpack(slf)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let name = self.tensor.name().into_pyobject(py)?.repr()?;
        let shape = self.shape(py)?.repr()?;
        let (dtype, size) = (self.tensor.dtype().name(), text::size(self.tensor.nbytes()));
        let device = self.held.device_text();
        Ok(format!("<daxfs.DeviceTensor {name}: {dtype} {shape}, {size} on {device}>"))
    }
}
