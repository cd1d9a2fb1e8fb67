//! `daxfs.Tensor`: a named, typed, shaped part of a file, lent out as a buffer, a numpy array or a DLPack capsule.

#![allow(unsafe_code, reason = "promises of the buffer protocol")]

use std::ffi::CStr;
use std::sync::OnceLock;

use daxfs::Dtype;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyCapsule, PySlice, PyTuple, PyType};

use crate::buffer::{self, Borrowed, Dimensions, Export, Exporter};
use crate::dtype::{Element, Layout, element};
use crate::error::OrRaise;
use crate::{array, dlpack, file, jax, reduce, text};

/// The PyO3 half of `daxfs.Tensor`; see [`crate::buffer`].
#[pyclass(frozen, subclass, weakref, module = "daxfs", name = "_TensorBase")]
#[derive(Debug)]
pub struct TensorBase {
    tensor: daxfs::Tensor,
    /// Those of the buffer, made when the first view is asked for.
    dimensions: OnceLock<Dimensions>,
}

// SAFETY: the memory is a view into the region of the tensor's file, which the `daxfs::Tensor` in the object keeps
// mapped. It is declared writable only for a region that is mapped so. The dimensions are a field of the
// frozen object that is set once.
unsafe impl Exporter for TensorBase {
    const CLASS_NAME: &'static CStr = c"daxfs.Tensor";
    const CLASS_DOC: &'static CStr = c"A tensor of an image. Nothing is read before it is used.

numpy.asarray(tensor), torch.from_dlpack(tensor), jax.dlpack.from_dlpack(tensor) and memoryview(tensor) are views of
the image's memory: they copy nothing, keep it mapped, and are read-only unless the image was opened private. torch does
not heed that: a write through its tensor ends the process; see torch().";

    fn class() -> &'static PyOnceLock<Py<PyType>> {
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        &CLASS
    }

    fn export(&self) -> PyResult<Export<'_>> {
        file::check(self.tensor.file())?;
        let bytes = self.tensor.bytes().or_raise()?;
        Ok(Export {
            data: bytes.as_ptr(),
            len: bytes.len(),
            readonly: !self.tensor.file().region().is_writable(),
            format: match element(self.tensor.dtype()) {
                Element::Native { format, .. } => Ok(format),
                Element::Nibbles | Element::Bytes => Ok(c"B"),
                Element::Extension(_) | Element::Blocks => Err(self.tensor.dtype().name()),
            },
            dimensions: self.dimensions()?,
        })
    }
}

/// Makes a `daxfs.Tensor`.
pub fn create(py: Python<'_>, tensor: daxfs::Tensor) -> PyResult<Bound<'_, PyAny>> {
    buffer::create(py, TensorBase { tensor, dimensions: OnceLock::new() })
}

impl TensorBase {
    fn layout(&self) -> Layout {
        Layout::of(self.tensor.dtype(), self.tensor.shape(), self.tensor.nbytes())
    }

    fn dimensions(&self) -> PyResult<&Dimensions> {
        if let Some(dimensions) = self.dimensions.get() {
            return Ok(dimensions);
        }
        let layout = match element(self.tensor.dtype()) {
            Element::Extension(_) | Element::Blocks => Layout::flat(self.tensor.nbytes()),
            _ => self.layout(),
        };
        let dimensions = Dimensions::new(&layout.shape, layout.itemsize)?;
        Ok(self.dimensions.get_or_init(|| dimensions))
    }
}

#[pymethods]
impl TensorBase {
    #[new]
    #[pyo3(signature = (token=None), text_signature = None)]
    fn new(token: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        buffer::take(token)
    }

    /// Name of the tensor.
    #[getter]
    fn name(&self) -> &str {
        self.tensor.name()
    }

    /// Type of the elements as safetensors names it: "BF16", "F8_E4M3", "U8", ...; quantised types as GGUF does:
    /// "Q4_K".
    #[getter]
    fn dtype_name(&self) -> &'static str {
        self.tensor.dtype().name()
    }

    /// The numpy.dtype of the array that the tensor becomes: what numpy, JAX and dask take. BF16 and the 8-bit floats
    /// have types of ml_dtypes; F4 and the 6-bit floats are uint8, since arrays hold their packed bytes.
    /// getattr(torch, tensor.dtype.name) is torch's type.
    ///
    /// Where numpy, or ml_dtypes for a type of its, is not installed: the name alone, a str with name and itemsize.
    /// So it is for quantised types, which numpy does not have; their itemsize is that of a block.
    #[getter]
    fn dtype<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        array::dtype(py, self.tensor.dtype())
    }

    /// Elements per dimension.
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

    /// Largest power of two, up to 2 MiB, that divides both the address of the image's memory and the position in it: the
    /// address of the array is a multiple of it. Beyond a page it may differ from process to process.
    #[getter]
    fn alignment(&self) -> u64 {
        self.tensor.alignment()
    }

    /// Position of the first byte in its file.
    #[getter]
    fn offset(&self) -> u64 {
        self.tensor.offset()
    }

    /// The file that holds the tensor.
    #[getter]
    fn file<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        file::create(py, self.tensor.file().clone())
    }

    /// The bytes, as a flat memoryview of type "B". Works for every dtype and needs no other package.
    #[getter]
    fn raw<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let file = file::create(py, self.tensor.file().clone())?;
        let view = py.import("builtins")?.getattr("memoryview")?.call1((file,))?;
        // The file was opened, so its length fits an index; the tensor lies inside it.
        let index = |n: u64| n.into_pyobject(py);
        let start = self.tensor.offset();
        let range = py.get_type::<PySlice>().call1((index(start)?, index(start + self.tensor.nbytes())?))?;
        view.get_item(range)
    }

    /// The tensor as a numpy array without a copy.
    ///
    /// BF16 and the 8-bit floats take the types of ml_dtypes. F4 comes as uint8, two elements a byte, with the last
    /// dimension halved; the 6-bit floats come as flat uint8. Quantised types raise a TypeError: see dequantize() and
    /// blocks().
    fn numpy<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        array::view(slf, this.tensor.dtype(), &this.layout().shape)
    }

    /// The elements as a new numpy array of float32: of F32, F16 and BF16, and of the quantised types of GGUF (Q4_0,
    /// Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS, MXFP4, TQ1_0, TQ2_0). Other types raise a TypeError.
    /// Several threads work on a large one, without the GIL.
    fn dequantize<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        file::check(self.tensor.file())?;
        let array = array::empty(py, Dtype::F32, self.tensor.shape())?;
        let mut memory = Borrowed::writable(&array)?;
        let memory = memory.bytes();
        py.detach(|| self.tensor.dequantize_to(memory)).or_raise()?;
        Ok(array)
    }

    /// The blocks of a quantised tensor as a numpy array of uint8, without a copy: the last dimension is that of the
    /// bytes of a block, the one before it counts blocks. A TypeError for other types.
    fn blocks<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let tensor = &slf.get().tensor;
        let layout = Layout::blocks(tensor.dtype(), tensor.shape()).ok_or_else(|| {
            PyTypeError::new_err(format!("{} is not quantised: it has elements, see numpy()", tensor.dtype()))
        })?;
        array::view(slf, Dtype::U8, &layout.shape)
    }

    /// The tensor as a torch.Tensor without a copy: torch.from_dlpack(tensor).
    ///
    /// torch has no read-only tensors. A write to one of a read-only image, as add_(), copy_() and optimizers do it, ends
    /// the process by SIGSEGV: open the image with private=True to write, or clone() the tensor.
    /// daxfs.explain_faults() has the process say so before it ends.
    fn torch<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        array::torch(slf)
    }

    /// The tensor as a jax.Array: jax.dlpack.from_dlpack(tensor). JAX views what lies on 64 bytes, as it does unless it
    /// was packed with exact=True or plain=True, and copies everything else; the first such copy is warned of
    /// (CopyWarning). Of an image that was opened with private=True it is a view as well: what is written to the image then
    /// changes the array, which JAX does not expect. jax.numpy.asarray(tensor) copies there.
    fn jax<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        jax::from_dlpack(slf)
    }

    /// What jax.numpy.asarray(tensor) and the operators of JAX's arrays take: jax() where the CPU is the one device of
    /// JAX, it has the type, and the image is read-only, else what it makes of numpy(). JAX's other functions refuse what
    /// is none of its arrays or numpy's: pass them jax.numpy.asarray(tensor).
    fn __jax_array__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        jax::array(slf, slf.get().tensor.file().region().is_writable(), || Self::numpy(slf))
    }

    #[pyo3(signature = (dtype=None, copy=None))]
    fn __array__<'py>(
        slf: &Bound<'py, Self>,
        dtype: Option<&Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        array::convert(Self::numpy(slf)?, dtype, copy)
    }

    /// Part of the tensor, as numpy indexes it; basic slices are views.
    fn __getitem__<'py>(slf: &Bound<'py, Self>, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Self::numpy(slf)?.get_item(key)
    }

    fn __len__(&self) -> PyResult<usize> {
        let first =
            self.tensor.shape().first().ok_or_else(|| PyTypeError::new_err("a scalar has no len()"))?;
        usize::try_from(*first).map_err(|_| PyTypeError::new_err("the length does not fit"))
    }

    /// A DLPack capsule, for the from_dlpack functions of array libraries.
    ///
    /// It says that the memory is read-only, unless the image was opened with private=True. numpy and JAX heed that;
    /// torch does not: see torch(). When JAX asks for a tensor that it will copy, a CopyWarning says so, once in a
    /// process.
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
        let capsule = dlpack::capsule(py, dlpack::Lent::Host(&self.tensor), &request)?;
        if !request.copy {
            jax::warn_of_copy(py, &self.tensor)?;
        }
        Ok(capsule)
    }

    /// (1, 0): the CPU.
    fn __dlpack_device__(&self) -> (i32, i32) {
        dlpack::CPU
    }

    /// (function, arguments): see Image.__reduce__.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let file = self.tensor.file();
        let kind = (self.tensor.dtype().name(), self.shape(py)?, self.tensor.offset());
        let arguments =
            (reduce::handle(py, file.image())?, PyBytes::new(py, &file.path()), self.tensor.name(), kind);
        reduce::reduced(py, "tensor", arguments)
    }

    fn __copy__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    /// The tensor itself, which never changes; copy.deepcopy(tensor.numpy()) copies the elements.
    #[pyo3(signature = (_memo, /))]
    fn __deepcopy__<'py>(slf: Bound<'py, Self>, _memo: &Bound<'py, PyAny>) -> Bound<'py, Self> {
        slf
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let name = self.tensor.name().into_pyobject(py)?.repr()?;
        let shape = self.shape(py)?.repr()?;
        let file = text::relative(py, &self.tensor.file().path())?.repr()?;
        let (dtype, size) = (self.tensor.dtype().name(), text::size(self.tensor.nbytes()));
        let alignment = self.tensor.alignment();
        Ok(format!("<daxfs.Tensor {name}: {dtype} {shape}, {size}, alignment {alignment}, in {file}>"))
    }
}
