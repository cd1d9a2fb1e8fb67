//! The buffer protocol, from one wheel for Python 3.9 and later.
//!
//! The stable ABI names the buffer slots only since 3.11, so PyO3 offers none for `abi3-py39`. But the interpreter
//! accepts them in a `PyType_Spec` since 3.9 (C API manual, `PyType_Slot`: "Changed in version 3.9: Slots in
//! PyBufferProcs may be set in the unlimited API"), and slot numbers and `Py_buffer` were the same then. So each class
//! with a buffer is a PyO3 class plus a subclass made here with just that slot; Python sees the subclass.
//!
//! What keeps memory alive: the view holds a reference to the object, the object holds the region's owner.

#![allow(unsafe_code, reason = "the buffer protocol is made of raw pointers")]

use std::any::Any;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::Mutex;

use daxfs::SharedBytesMut;
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};
use pyo3::{IntoPyObjectExt, PyClass};

/// `Py_buffer`, which PyO3 leaves out under `abi3-py39`: in the stable ABI since 3.11 (`Include/pybuffer.h`), and no
/// different in 3.9 and 3.10 (`Include/cpython/object.h`).
#[repr(C)]
struct PyBuffer {
    buf: *mut c_void,
    obj: *mut ffi::PyObject,
    len: ffi::Py_ssize_t,
    itemsize: ffi::Py_ssize_t,
    readonly: c_int,
    ndim: c_int,
    format: *mut c_char,
    shape: *mut ffi::Py_ssize_t,
    strides: *mut ffi::Py_ssize_t,
    suboffsets: *mut ffi::Py_ssize_t,
    internal: *mut c_void,
}

const _: () = assert!(size_of::<PyBuffer>() == 9 * size_of::<*mut c_void>() + 2 * size_of::<c_int>());

impl PyBuffer {
    const EMPTY: Self = Self {
        buf: ptr::null_mut(),
        obj: ptr::null_mut(),
        len: 0,
        itemsize: 0,
        readonly: 1,
        ndim: 0,
        format: ptr::null_mut(),
        shape: ptr::null_mut(),
        strides: ptr::null_mut(),
        suboffsets: ptr::null_mut(),
        internal: ptr::null_mut(),
    };
}

// Flags of a request and slot numbers (`Include/pybuffer.h`, `Include/typeslots.h`).
const WRITABLE: c_int = 0x01;
const FORMAT: c_int = 0x04;
const ND: c_int = 0x08;
const STRIDES: c_int = 0x10 | ND;
const F_CONTIGUOUS: c_int = 0x40;
const BF_GETBUFFER: c_int = 1;

#[allow(
    clippy::cast_possible_truncation,
    reason = "the flags of a specification are the low 32 bits of them all"
)]
const TYPE_FLAGS: u32 = ffi::Py_TPFLAGS_DEFAULT as u32;

/// Most dimensions that a `memoryview` takes (`PyBUF_MAX_NDIM`).
const MAX_NDIM: usize = 64;

/// Memory as the buffer protocol describes it: contiguous, the last index running fastest.
#[derive(Debug)]
pub struct Export<'a> {
    /// First byte; never null.
    pub data: *const u8,
    /// Length in bytes.
    pub len: usize,
    /// Whether writing through the buffer is ruled out.
    pub readonly: bool,
    /// Format of one item as module `struct` names it, or the type that has none: such memory goes only to those
    /// who ask for plain bytes (hashes, sockets, `numpy.frombuffer`), not to `memoryview`, which would show a wrong
    /// type.
    pub format: Result<&'static CStr, &'static str>,
    /// Shape and strides.
    pub dimensions: &'a Dimensions,
}

/// Shape and strides of a buffer. Objects keep them, because the views point into them.
#[derive(Debug)]
pub struct Dimensions {
    itemsize: ffi::Py_ssize_t,
    shape: Box<[ffi::Py_ssize_t]>,
    strides: Box<[ffi::Py_ssize_t]>,
}

impl Dimensions {
    /// Dimensions of contiguous memory with items of `itemsize` bytes.
    pub fn new(shape: &[u64], itemsize: usize) -> PyResult<Self> {
        if shape.len() > MAX_NDIM {
            let ndim = shape.len();
            return Err(PyBufferError::new_err(format!(
                "{ndim} dimensions, a buffer has at most {MAX_NDIM}"
            )));
        }
        let shape = shape.iter().map(|&n| ssize(n)).collect::<PyResult<Box<[_]>>>()?;
        let itemsize = ssize(itemsize)?;
        let mut strides = vec![0; shape.len()].into_boxed_slice();
        let mut stride = itemsize;
        for (slot, &n) in strides.iter_mut().zip(&shape).rev() {
            *slot = stride;
            // Saturates only where a dimension of 0 leaves nothing to reach.
            stride = stride.saturating_mul(n.max(1));
        }
        Ok(Self { itemsize, shape, strides })
    }
}

fn ssize(value: impl TryInto<ffi::Py_ssize_t>) -> PyResult<ffi::Py_ssize_t> {
    value.try_into().map_err(|_| PyBufferError::new_err("a size does not fit this machine's address space"))
}

/// A class whose objects lend memory.
///
/// # Safety
/// The memory that `export` describes stays mapped while the object lives, and is writable unless `readonly`. The
/// dimensions belong to the object and never change.
pub unsafe trait Exporter: PyClass<Frozen = True> + Send + Sync {
    /// Name of the class in Python, with its module.
    const CLASS_NAME: &'static CStr;
    /// Documentation of the class in Python.
    const CLASS_DOC: &'static CStr;

    /// Where the class in Python is kept.
    fn class() -> &'static PyOnceLock<Py<PyType>>;

    /// Describes the memory.
    fn export(&self) -> PyResult<Export<'_>>;
}

/// The class as Python sees it.
pub fn class<T: Exporter>(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    Ok(T::class().get_or_try_init(py, || subclass::<T>(py))?.bind(py))
}

/// Makes an object of the class that Python sees.
pub fn create<T: Exporter>(py: Python<'_>, value: T) -> PyResult<Bound<'_, PyAny>> {
    let token = Token(Mutex::new(Some(Box::new(value)))).into_bound_py_any(py)?;
    class::<T>(py)?.call1((token,))
}

/// Carries a value from [`create`] through the call of the class to its `#[new]`. Python code cannot make one.
#[pyclass(frozen)]
struct Token(Mutex<Option<Box<dyn Any + Send + Sync>>>);

/// For `#[new]`: the value in the token, or a `TypeError` when Python code called the class.
pub fn take<T: Exporter>(token: Option<&Bound<'_, PyAny>>) -> PyResult<T> {
    token
        .and_then(|token| token.cast::<Token>().ok())
        .and_then(|token| token.get().0.lock().ok()?.take())
        .and_then(|value| value.downcast::<T>().ok())
        .map(|value| *value)
        .ok_or_else(|| {
            let name = T::CLASS_NAME.to_string_lossy();
            PyTypeError::new_err(format!("{name} cannot be created directly; daxfs.open() leads to one"))
        })
}

fn subclass<T: Exporter>(py: Python<'_>) -> PyResult<Py<PyType>> {
    let getbuffer: unsafe extern "C" fn(*mut ffi::PyObject, *mut PyBuffer, c_int) -> c_int = getbuffer::<T>;
    let mut slots = [
        ffi::PyType_Slot { slot: BF_GETBUFFER, pfunc: getbuffer as *mut c_void },
        ffi::PyType_Slot { slot: ffi::Py_tp_doc, pfunc: T::CLASS_DOC.as_ptr().cast_mut().cast() },
        ffi::PyType_Slot { slot: 0, pfunc: ptr::null_mut() },
    ];
    let mut spec = ffi::PyType_Spec {
        name: T::CLASS_NAME.as_ptr(),
        // 0: the size, the destructor and all else are inherited.
        basicsize: 0,
        itemsize: 0,
        flags: TYPE_FLAGS,
        slots: slots.as_mut_ptr(),
    };
    let bases = PyTuple::new(py, [py.get_type::<T>()])?;
    // SAFETY: the thread is attached (`py`). `spec` and `slots` live through the call, which copies them, as it
    // does the documentation; the name is static, as versions before 3.11 need it. Slot 1 holds a function with the
    // signature of `getbufferproc` over the same `Py_buffer`; a zero slot ends the list. `bases` is a tuple with one
    // class, which PyO3 made with `subclass`.
    let class = unsafe { ffi::PyType_FromSpecWithBases(&mut spec, bases.as_ptr()) };
    // SAFETY: the thread is attached, and the call returns a new reference, or null with an exception set.
    let class = unsafe { Bound::from_owned_ptr_or_err(py, class) }?;
    Ok(class.cast_into::<PyType>()?.unbind())
}

/// `bf_getbuffer`: fills in `view` and returns 0, or sets an exception and returns -1.
///
/// # Safety
/// As CPython calls it: the thread is attached, `object` is an instance of the subclass of `T`, and `view` is
/// valid for writing.
unsafe extern "C" fn getbuffer<T: Exporter>(
    object: *mut ffi::PyObject,
    view: *mut PyBuffer,
    flags: c_int,
) -> c_int {
    Python::attach(|py| {
        // SAFETY: `object` points to a live object for the length of this call (the caller's promise), and the
        // thread is attached.
        let object = unsafe { Bound::from_borrowed_ptr(py, object) };
        let (filled, status) = match fill::<T>(&object, flags) {
            Ok(filled) => (filled, 0),
            Err(error) => {
                error.restore(py);
                (PyBuffer::EMPTY, -1)
            }
        };
        // SAFETY: `view` is valid for writing and properly aligned (the caller's promise); what it held before is
        // uninitialised or plain pointers, so nothing has to be dropped.
        unsafe { view.write(filled) };
        status
    })
}

unsafe extern "C" {
    // Functions of every version, in the stable ABI since 3.11; PyO3 leaves them out as it does the struct.
    fn PyObject_GetBuffer(object: *mut ffi::PyObject, view: *mut PyBuffer, flags: c_int) -> c_int;
    fn PyBuffer_Release(view: *mut PyBuffer);
}

/// Contiguous writable memory that another object lends us; given back on drop.
pub struct Borrowed<'py> {
    // In a box: some exporters keep the address of the view that they filled in.
    view: Box<PyBuffer>,
    _attached: Python<'py>,
}

impl<'py> Borrowed<'py> {
    /// Borrows the memory of `object` for writing.
    pub fn writable(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let mut view = Box::new(PyBuffer::EMPTY);
        // SAFETY: the thread is attached, `object` is alive, and `view` is a `Py_buffer` for the call to fill in; plain
        // bytes (no other flag than WRITABLE) are always contiguous.
        let status = unsafe { PyObject_GetBuffer(object.as_ptr(), &raw mut *view, WRITABLE) };
        if status != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        Ok(Self { view, _attached: object.py() })
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        usize::try_from(self.view.len).unwrap_or(0)
    }

    /// The bytes, to be filled in without the GIL. They are not a slice: the interpreter's other threads also reach them,
    /// and they may be those of a private image.
    pub fn bytes(&mut self) -> SharedBytesMut<'_> {
        let len = self.len();
        let Some(start) = NonNull::new(self.view.buf.cast::<u8>()).filter(|_| len > 0) else {
            return SharedBytesMut::from_slice(&mut []);
        };
        // SAFETY: the exporter lends `len` writable, contiguous bytes, at most `isize::MAX`, until they are released,
        // which the drop of `self` does. Rust code has no references to them: what lends memory to Python here is
        // images, whose views are not those of slices where they are writable (private mappings are `Shared`).
        unsafe { SharedBytesMut::from_raw_parts(start, len) }
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        // SAFETY: filled in by a successful PyObject_GetBuffer and released once; the thread is attached (`_attached`).
        unsafe { PyBuffer_Release(&raw mut *self.view) };
    }
}

fn no_format(dtype: &str) -> PyErr {
    PyBufferError::new_err(format!(
        "the buffer protocol has no name for {dtype}: use numpy.asarray(tensor), or tensor.raw for the bytes"
    ))
}

/// The view that a request gets. There is no `bf_releasebuffer`: nothing is allocated for a view, and numpy would
/// wrap an object that has one in a memoryview of its own.
fn fill<T: Exporter>(object: &Bound<'_, PyAny>, flags: c_int) -> PyResult<PyBuffer> {
    let export = object.cast::<T>()?.get().export()?;
    let Dimensions { itemsize, shape, strides } = export.dimensions;
    let asked = |flag| flags & flag == flag;
    if asked(WRITABLE) && export.readonly {
        return Err(PyBufferError::new_err(
            "the memory is read-only; daxfs.open(..., private=True) gives writable, private memory",
        ));
    }
    if asked(F_CONTIGUOUS) && shape.iter().filter(|&&n| n > 1).count() > 1 {
        return Err(PyBufferError::new_err("the memory is C-contiguous, not Fortran-contiguous"));
    }
    let mut view = PyBuffer {
        buf: export.data.cast_mut().cast(),
        len: ssize(export.len)?,
        itemsize: *itemsize,
        readonly: c_int::from(export.readonly),
        ndim: 1,
        ..PyBuffer::EMPTY
    };
    if asked(FORMAT) {
        if !asked(ND) && shape.len() != 1 {
            return Err(PyBufferError::new_err("a format without a shape makes no sense"));
        }
        view.format = export.format.map_err(no_format)?.as_ptr().cast_mut();
    }
    // The pointers are good as long as the object lives, which the view sees to; nobody writes through them.
    if asked(ND) {
        view.ndim =
            c_int::try_from(shape.len()).map_err(|_| PyBufferError::new_err("too many dimensions"))?;
        view.shape = shape.as_ptr().cast_mut();
    }
    if asked(STRIDES) {
        view.strides = strides.as_ptr().cast_mut();
    }
    // A strong reference, which `PyBuffer_Release` gives back.
    view.obj = object.clone().into_ptr();
    Ok(view)
}
