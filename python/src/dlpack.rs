//! DLPack capsules: how `numpy.from_dlpack`, `torch.from_dlpack` and `jax.dlpack.from_dlpack` take a tensor.
//!
//! A consumer that knows version 1 gets a `dltensor_versioned` capsule with an honest read-only flag, others the
//! older `dltensor`. Either owns a clone of the tensor, and so keeps the memory mapped.

#![allow(unsafe_code, reason = "a capsule is a raw pointer with a destructor")]

use std::ffi::{CStr, c_void};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use daxfs::dlpack::{self, DLDevice, DLManagedTensor, DLManagedTensorVersioned};
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::error::OrRaise;

/// Device type and number of the CPU, where all tensors are.
pub const CPU: (i32, i32) = (DLDevice::CPU.device_type, DLDevice::CPU.device_id);

/// What a consumer asks of `__dlpack__`.
pub struct Request<'a, 'py> {
    pub stream: Option<&'a Bound<'py, PyAny>>,
    pub max_version: Option<(u32, u32)>,
    pub device: Option<(i32, i32)>,
    pub copy: bool,
}

/// Answers `__dlpack__`.
pub fn capsule<'py>(
    py: Python<'py>,
    tensor: &daxfs::Tensor,
    request: &Request<'_, '_>,
) -> PyResult<Bound<'py, PyCapsule>> {
    if request.stream.is_some() {
        return Err(PyBufferError::new_err("memory of the CPU has no streams: stream must be None"));
    }
    if let Some(device) = request.device.filter(|&device| device != CPU) {
        return Err(PyBufferError::new_err(format!("the tensor is on device {CPU:?}, not on {device:?}")));
    }
    if request.max_version.is_some_and(|(major, _)| major >= 1) {
        lend::<DLManagedTensorVersioned>(py, tensor, request.copy)
    } else {
        lend::<DLManagedTensor>(py, tensor, request.copy)
    }
}

/// One of the two forms of a managed tensor.
///
/// # Safety
/// `lend` and `copy` return a live managed tensor that the caller owns and that `deleter` frees, on any thread.
unsafe trait Managed: Sized {
    /// Name of a capsule whose tensor nobody took yet.
    const NAME: &'static CStr;

    fn lend(tensor: &daxfs::Tensor) -> daxfs::Result<NonNull<Self>>;
    fn copy(tensor: &daxfs::Tensor) -> daxfs::Result<NonNull<Self>>;
    fn deleter(&self) -> Option<unsafe extern "C" fn(*mut Self)>;
}

// SAFETY: the functions of `daxfs::dlpack` give the managed tensor away with a deleter that runs on any thread.
unsafe impl Managed for DLManagedTensorVersioned {
    const NAME: &'static CStr = c"dltensor_versioned";

    fn lend(tensor: &daxfs::Tensor) -> daxfs::Result<NonNull<Self>> {
        let read_only = !tensor.file().region().is_writable();
        dlpack::export_versioned(tensor, read_only, DLDevice::CPU)
    }

    fn copy(tensor: &daxfs::Tensor) -> daxfs::Result<NonNull<Self>> {
        dlpack::copy_versioned(tensor)
    }

    fn deleter(&self) -> Option<unsafe extern "C" fn(*mut Self)> {
        self.deleter
    }
}

// SAFETY: as for the other form.
unsafe impl Managed for DLManagedTensor {
    const NAME: &'static CStr = c"dltensor";

    fn lend(tensor: &daxfs::Tensor) -> daxfs::Result<NonNull<Self>> {
        dlpack::export_legacy(tensor)
    }

    fn copy(tensor: &daxfs::Tensor) -> daxfs::Result<NonNull<Self>> {
        dlpack::copy_legacy(tensor)
    }

    fn deleter(&self) -> Option<unsafe extern "C" fn(*mut Self)> {
        self.deleter
    }
}

/// Ends a loan.
///
/// # Safety
/// `this` is from [`Managed::lend`] or [`Managed::copy`], and nobody else ends this loan, before or after.
unsafe fn delete<M: Managed>(this: NonNull<M>) {
    // SAFETY: the managed tensor is live, since nobody ended the loan (the caller's promise), and nobody writes to
    // the struct meanwhile, since the caller owns it.
    let deleter = unsafe { this.as_ref() }.deleter();
    if let Some(deleter) = deleter {
        // SAFETY: it is the deleter of this very tensor, called once (the caller's promise).
        unsafe { deleter(this.as_ptr()) };
    }
}

/// A managed tensor on its way into a capsule.
struct Loan<M: Managed>(NonNull<M>);

// SAFETY: a managed tensor of ours may move between threads: its deleter runs on any thread (`daxfs::dlpack`), and
// what it owns, a clone of a `daxfs::Tensor` or a copy of its bytes, is `Send`.
unsafe impl<M: Managed> Send for Loan<M> {}

impl<M: Managed> Drop for Loan<M> {
    fn drop(&mut self) {
        // SAFETY: the pointer is from `Managed::lend` or `copy`, and this is its only owner: `lend` forgets the
        // loan when the capsule takes over.
        unsafe { delete(self.0) };
    }
}

fn lend<'py, M: Managed>(
    py: Python<'py>,
    tensor: &daxfs::Tensor,
    copy: bool,
) -> PyResult<Bound<'py, PyCapsule>> {
    let loan = if copy {
        // Copying may take long, so it runs without the lock.
        py.detach(|| M::copy(tensor).map(Loan)).or_raise()?
    } else {
        M::lend(tensor).map(Loan).or_raise()?
    };
    let (pointer, destroy) = (loan.0.cast::<c_void>(), Some(destroy::<M> as _));
    // SAFETY: the pointer leads to a live managed tensor, which stays so until its deleter is called: by the consumer
    // that renames the capsule, or else by the destructor, which may run on any thread.
    let capsule = unsafe { PyCapsule::new_with_pointer_and_destructor(py, pointer, M::NAME, destroy) }?;
    // The capsule owns the loan now.
    let _ = ManuallyDrop::new(loan);
    Ok(capsule)
}

/// Destructor of a capsule: ends the loan if no consumer took it. Consumers rename what they take.
///
/// # Safety
/// `capsule` is a capsule that [`lend`] made for the same `M`, and is being destroyed.
unsafe extern "C" fn destroy<M: Managed>(capsule: *mut ffi::PyObject) {
    // SAFETY: `capsule` is a live object (the caller's promise), and the name is a C string. Sets no exception.
    let unclaimed = unsafe { ffi::PyCapsule_IsValid(capsule, M::NAME.as_ptr()) } != 0;
    if !unclaimed {
        return;
    }
    // SAFETY: the capsule is valid under this name, as was just seen.
    let pointer = unsafe { ffi::PyCapsule_GetPointer(capsule, M::NAME.as_ptr()) };
    if let Some(pointer) = NonNull::new(pointer.cast::<M>()) {
        // SAFETY: `lend` put the pointer there. The name shows that no consumer took the tensor, and the capsule
        // that owned it is going, so nobody else ends this loan.
        unsafe { delete(pointer) };
    }
}
