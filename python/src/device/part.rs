//! `daxfs.DeviceTensorPart`: a part of a tensor in a GPU's memory, and the indices that mean one.

use std::ops::Range;

use daxfs_device::{Place, TensorSlice};
use pyo3::exceptions::{PyIndexError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCapsule, PyDict, PyEllipsis, PySlice, PyTuple};

use super::{Held, Placed};
use crate::dlpack::{self, Lent};
use crate::error::OrRaise;
use crate::{array, jax, text};

/// A part of a tensor in a GPU's memory, where it lies: tensor[0:512], tensor[:, 256:512] or tensor.part. It holds that
/// memory, and so do arrays made of it.
///
/// torch.from_dlpack(part), cupy.from_dlpack(part) and what takes __cuda_array_interface__ get views with these
/// strides. A part of the first dimension is contiguous; one of a later dimension has gaps, and is copied by who wants
/// it without.
#[pyclass(frozen, weakref, module = "daxfs")]
#[derive(Debug)]
pub struct DeviceTensorPart {
    tensor: daxfs::Tensor,
    slice: TensorSlice,
    held: Held,
}

impl DeviceTensorPart {
    /// What the rank of a plan has of a tensor; without a plan all of it.
    pub fn of_rank(tensor: daxfs::Tensor, held: Held) -> PyResult<Self> {
        let slice = held.mapped.part(&tensor).or_raise()?;
        Ok(Self { tensor, slice, held })
    }

    /// What an index means.
    pub fn indexed(tensor: daxfs::Tensor, held: Held, key: &Bound<'_, PyAny>) -> PyResult<Self> {
        let slice = match Index::parse(key, tensor.shape())? {
            None => held.mapped.whole(&tensor).or_raise()?,
            Some(Index { dim, range, is_number }) => {
                let slice = held.mapped.slice(&tensor, dim, range).or_raise()?;
                if is_number { slice.clone().squeeze(dim).unwrap_or(slice) } else { slice }
            }
        };
        Ok(Self { tensor, slice, held })
    }

    /// Whether it is all of the tensor, which is lent as such, also with types of less than 8 bits.
    fn is_whole(&self) -> bool {
        self.slice.shape() == self.tensor.shape() && self.slice.place().len() == self.tensor.nbytes()
    }

    fn place(&self) -> &Place {
        self.slice.place()
    }

    fn elements(&self) -> u64 {
        // No overflow: they are some of the tensor's.
        self.slice.shape().iter().product()
    }

    /// The elements alone, of the bytes of the place.
    fn pick(&self, bytes: &[u8]) -> Vec<u8> {
        let (shape, strides) = (self.slice.shape(), self.slice.strides());
        let bytes_of = |elements: u64| {
            let bytes = self.slice.dtype().bytes_of(elements.into());
            bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX)
        };
        // Runs without gaps: the last dimensions, as far as they follow each other.
        let (mut run, mut outer) = (1, shape.len());
        while let Some(last) = outer.checked_sub(1).filter(|&last| strides[last] == run || shape[last] == 1) {
            (run, outer) = (run * shape[last], last);
        }
        let mut starts = vec![0_u64];
        for (dim, stride) in shape.iter().zip(strides).take(outer) {
            starts = starts.iter().flat_map(|start| (0..*dim).map(move |i| start + i * stride)).collect();
        }
        let runs = starts.into_iter().map(bytes_of);
        runs.flat_map(|start| bytes[start..start + bytes_of(run)].iter().copied()).collect()
    }
}

#[pymethods]
impl DeviceTensorPart {
    /// Name of the tensor.
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

    /// Dimensions of the part, in elements.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.slice.shape())
    }

    /// Elements from one index of a dimension to the next, as torch counts them.
    #[getter]
    fn strides<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.slice.strides())
    }

    /// Number of dimensions.
    #[getter]
    fn ndim(&self) -> usize {
        self.slice.shape().len()
    }

    /// Number of elements.
    #[getter]
    fn size(&self) -> u64 {
        self.elements()
    }

    /// Bytes of the elements, without the gaps between them.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.tensor.dtype().bytes_of(self.elements().into()).unwrap_or(u64::MAX)
    }

    /// True when nothing lies between the elements.
    #[getter]
    fn is_contiguous(&self) -> bool {
        self.slice.is_contiguous()
    }

    /// The device: "cuda:0".
    #[getter]
    fn device(&self) -> String {
        self.held.device_text()
    }

    /// The GPU's address of the first element (CUdeviceptr), good as long as this object or another of the image is
    /// alive.
    #[getter]
    fn device_ptr(&self) -> PyResult<u64> {
        Placed::address(self.place())
    }

    /// A copy of the elements without gaps, fetched back from the GPU, for those who want to see what it has.
    fn read<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let no_memory = || PyValueError::new_err("the size does not fit the address space");
        let len = usize::try_from(self.place().len()).map_err(|_| no_memory())?;
        let picked = py.detach(|| {
            let mut bytes = vec![0; len];
            if len > 0 {
                self.place().buffer().read(self.place().offset(), &mut bytes)?;
            }
            Ok::<_, daxfs_device::Error>(if self.slice.is_contiguous() { bytes } else { self.pick(&bytes) })
        });
        Ok(PyBytes::new(py, &picked.or_raise()?))
    }

    /// TypeError: the elements are in the GPU's memory, and numpy would make objects of them one by one.
    #[pyo3(signature = (dtype=None, copy=None))]
    fn __array__(&self, dtype: Option<&Bound<'_, PyAny>>, copy: Option<bool>) -> PyResult<()> {
        let _ = (dtype, copy);
        Err(super::no_host_array(&self.held))
    }

    fn __len__(&self) -> PyResult<usize> {
        let first =
            self.slice.shape().first().ok_or_else(|| PyTypeError::new_err("a scalar has no len()"))?;
        usize::try_from(*first).map_err(|_| PyTypeError::new_err("the length does not fit"))
    }

    /// A DLPack capsule with shape and strides of the part, as DeviceTensor's.
    ///
    /// BufferError for parts of types of less than 8 bits.
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
        let (tensor, devices, read_only) = (&self.tensor, self.held.dl_devices(), !self.held.is_writable());
        let lent = match self.is_whole() {
            true => Lent::Device { tensor, place: self.place(), devices, read_only },
            false => Lent::Part { tensor, slice: &self.slice, devices, read_only },
        };
        dlpack::capsule(py, lent, &request)
    }

    /// (2, N) for memory of the GPU N; (3, 0) for memory of the host that the GPU reads.
    fn __dlpack_device__(&self) -> (i32, i32) {
        dlpack::pair(self.held.dl_devices().own)
    }

    /// Version 3 of the interface, as DeviceTensor's, with strides in bytes where there are gaps.
    #[getter(__cuda_array_interface__)]
    fn cuda_array_interface<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let strides = (!self.slice.is_contiguous()).then_some(self.slice.strides());
        super::cuda_array_interface(py, &self.held, &self.tensor, self.place(), self.slice.shape(), strides)
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
        let (dtype, size) = (self.tensor.dtype().name(), text::size(self.nbytes()));
        let device = self.held.device_text();
        let gaps = if self.slice.is_contiguous() { "" } else { ", with gaps" };
        Ok(format!("<daxfs.DeviceTensorPart of {name}: {dtype} {shape}, {size}{gaps} on {device}>"))
    }
}

/// A part of one dimension.
struct Index {
    dim: usize,
    range: Range<u64>,
    /// Whether the dimension goes, as with arrays.
    is_number: bool,
}

impl Index {
    /// Reads what stands between brackets: numbers, slices without steps, an ellipsis, with at most one dimension that
    /// is not taken as a whole. `None` for all of the tensor.
    fn parse(key: &Bound<'_, PyAny>, shape: &[u64]) -> PyResult<Option<Self>> {
        let mut keys: Vec<Bound<'_, PyAny>> = match key.cast::<PyTuple>() {
            Ok(tuple) => tuple.iter().collect(),
            Err(_) => vec![key.clone()],
        };
        let is_ellipsis = |key: &Bound<'_, PyAny>| key.is_instance_of::<PyEllipsis>();
        if let Some(at) = keys.iter().position(is_ellipsis) {
            let others = keys.len() - 1;
            let all = PySlice::full(key.py()).into_any();
            keys.splice(at..=at, std::iter::repeat_n(all, shape.len().saturating_sub(others)));
            if keys.iter().any(is_ellipsis) {
                return Err(PyIndexError::new_err("an index has one ellipsis at most"));
            }
        }
        if keys.len() > shape.len() {
            let message = format!("{} indices for a tensor of {} dimensions", keys.len(), shape.len());
            return Err(PyIndexError::new_err(message));
        }
        let mut found = None;
        for (dim, key) in keys.iter().enumerate() {
            let (range, is_number) = match key.cast::<PySlice>() {
                Ok(slice) => (Self::range(slice, shape[dim])?, false),
                Err(_) => (Self::number(key, dim, shape[dim])?, true),
            };
            if !is_number && range == (0..shape[dim]) {
                continue;
            }
            if found.replace(Self { dim, range, is_number }).is_some() {
                let message = "a part is cut from one dimension; cut the rest from the array made of it";
                return Err(PyIndexError::new_err(message));
            }
        }
        Ok(found)
    }

    fn range(slice: &Bound<'_, PySlice>, size: u64) -> PyResult<Range<u64>> {
        let size = isize::try_from(size).map_err(|_| PyIndexError::new_err("the dimension is too long"))?;
        let indices = slice.indices(size)?;
        if indices.step != 1 {
            return Err(PyIndexError::new_err("a part is without steps; step through the array made of it"));
        }
        // Within the size, and not negative without a negative step.
        let start = u64::try_from(indices.start).unwrap_or(0);
        Ok(start..start + indices.slicelength as u64)
    }

    fn number(key: &Bound<'_, PyAny>, dim: usize, size: u64) -> PyResult<Range<u64>> {
        if key.is_instance_of::<pyo3::types::PyBool>() || !key.hasattr("__index__")? {
            let kind = key.get_type().name()?;
            let message = format!("an index is made of numbers and slices, not of {kind}");
            return Err(PyTypeError::new_err(message));
        }
        let outside = || PyIndexError::new_err(format!("no such index in dimension {dim}, of {size}"));
        let number: i128 = key.call_method0("__index__")?.extract::<i64>().map_err(|_| outside())?.into();
        let from_start = if number < 0 { number + i128::from(size) } else { number };
        let start = u64::try_from(from_start).ok().filter(|&start| start < size).ok_or_else(outside)?;
        Ok(start..start + 1)
    }
}
