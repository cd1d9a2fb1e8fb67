//! DLPack capsules: how `numpy.from_dlpack`, `torch.from_dlpack` and `jax.dlpack.from_dlpack` take a tensor.
//!
//! A consumer that knows version 1 gets a `dltensor_versioned` capsule with an honest read-only flag, others the
//! older `dltensor`. Either owns a clone of the tensor, or of its place in a device's memory, and so keeps the
//! memory.

#![allow(unsafe_code, reason = "a capsule is a raw pointer with a destructor")]

use std::ffi::{CStr, c_void};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use daxfs::Tensor;
use daxfs::dlpack::{self, DLDevice, DLManagedTensor, DLManagedTensorVersioned};
use daxfs_device::{Place, TensorSlice};
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::error::OrRaise;
use crate::{file, unlocked};

/// Device type and number of the CPU, where the tensors of images are.
pub const CPU: (i32, i32) = (DLDevice::CPU.device_type, DLDevice::CPU.device_id);

/// What a consumer asks of `__dlpack__`.
pub struct Request<'a, 'py> {
    pub stream: Option<&'a Bound<'py, PyAny>>,
    pub max_version: Option<(u32, u32)>,
    pub device: Option<(i32, i32)>,
    pub copy: bool,
}

/// What a capsule lends.
#[derive(Debug, Clone, Copy)]
pub enum Lent<'a> {
    /// A tensor where the image has it.
    Host(&'a Tensor),
    /// A tensor in the one place where a GPU reads it.
    Device { tensor: &'a Tensor, place: &'a Place, devices: Devices, read_only: bool },
    /// A part of a tensor there.
    Part { tensor: &'a Tensor, slice: &'a TensorSlice, devices: Devices, read_only: bool },
}

/// What memory is on: what it is by itself, and the GPU that reads it.
#[derive(Debug, Clone, Copy)]
pub struct Devices {
    pub own: DLDevice,
    pub gpu: Option<DLDevice>,
}

impl Lent<'_> {
    fn devices(&self) -> Devices {
        match *self {
            Self::Host(_) => Devices { own: DLDevice::CPU, gpu: None },
            Self::Device { devices, .. } | Self::Part { devices, .. } => devices,
        }
    }
}

/// Device type and number, as DLPack counts them.
pub fn pair(device: DLDevice) -> (i32, i32) {
    (device.device_type, device.device_id)
}

/// Answers `__dlpack__`.
pub fn capsule<'py>(
    py: Python<'py>,
    lent: Lent<'_>,
    request: &Request<'_, '_>,
) -> PyResult<Bound<'py, PyCapsule>> {
    if let Lent::Host(tensor) = &lent {
        file::check(tensor.file())?;
    }
    // What is in a device's memory was complete before anybody could ask for it, so any stream may use it at once.
    if matches!(lent, Lent::Host(_)) && request.stream.is_some() {
        return Err(PyBufferError::new_err("memory of the CPU has no streams: stream must be None"));
    }
    let Devices { own, gpu } = lent.devices();
    let wanted = request.device.unwrap_or(pair(own));
    let Some(device) = [Some(own), gpu].into_iter().flatten().find(|&device| pair(device) == wanted) else {
        let own = pair(own);
        return Err(PyBufferError::new_err(format!("the tensor is on device {own:?}, not on {wanted:?}")));
    };
    if request.max_version.is_some_and(|(major, _)| major >= 1) {
        lend::<DLManagedTensorVersioned>(py, lent, device, request.copy)
    } else {
        lend::<DLManagedTensor>(py, lent, device, request.copy)
    }
}

/// One of the two forms of a managed tensor.
///
/// # Safety
/// `lend` and `copy` return a live managed tensor that the caller owns and that `deleter` frees, on any thread.
unsafe trait Managed: Sized {
    /// Name of a capsule whose tensor nobody took yet.
    const NAME: &'static CStr;

    /// As memory of one of its devices.
    fn lend(lent: Lent<'_>, device: DLDevice) -> daxfs_device::Result<NonNull<Self>>;
    fn copy(tensor: &Tensor) -> daxfs_device::Result<NonNull<Self>>;
    fn deleter(&self) -> Option<unsafe extern "C" fn(*mut Self)>;
}

// SAFETY: the functions of `daxfs::dlpack` give the managed tensor away with a deleter that runs on any thread.
unsafe impl Managed for DLManagedTensorVersioned {
    const NAME: &'static CStr = c"dltensor_versioned";

    fn lend(lent: Lent<'_>, device: DLDevice) -> daxfs_device::Result<NonNull<Self>> {
        match lent {
            Lent::Host(tensor) => {
                let read_only = !tensor.file().region().is_writable();
                Ok(dlpack::export_versioned(tensor, read_only, device)?)
            }
            Lent::Device { tensor, place, read_only, .. } => {
                daxfs_device::dlpack::export_versioned(tensor, place, read_only, device)
            }
            Lent::Part { tensor, slice, read_only, .. } => {
                daxfs_device::dlpack::export_slice_versioned(tensor, slice, read_only, device)
            }
        }
    }

    fn copy(tensor: &Tensor) -> daxfs_device::Result<NonNull<Self>> {
        Ok(dlpack::copy_versioned(tensor)?)
    }

    fn deleter(&self) -> Option<unsafe extern "C" fn(*mut Self)> {
        self.deleter
    }
}

// SAFETY: as for the other form.
unsafe impl Managed for DLManagedTensor {
    const NAME: &'static CStr = c"dltensor";

    // Host memory of a GPU, which alone is of two devices, is not lent in this form.
    fn lend(lent: Lent<'_>, _device: DLDevice) -> daxfs_device::Result<NonNull<Self>> {
        match lent {
            Lent::Host(tensor) => Ok(dlpack::export_legacy(tensor)?),
            Lent::Device { tensor, place, .. } => daxfs_device::dlpack::export_legacy(tensor, place),
            Lent::Part { tensor, slice, .. } => daxfs_device::dlpack::export_slice_legacy(tensor, slice),
        }
    }

    fn copy(tensor: &Tensor) -> daxfs_device::Result<NonNull<Self>> {
        Ok(dlpack::copy_legacy(tensor)?)
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
// what it owns, a clone of a `daxfs::Tensor` or `Place` or a copy of its bytes, is `Send`.
unsafe impl<M: Managed> Send for Loan<M> {}

impl<M: Managed> Drop for Loan<M> {
    fn drop(&mut self) {
        // SAFETY: the pointer is from `Managed::lend` or `copy`, and this is its only owner: `lend` forgets the
        // loan when the capsule takes over, and `destroy` takes it back only from a capsule that still has it.
        unsafe { delete(self.0) };
    }
}

fn lend<'py, M: Managed>(
    py: Python<'py>,
    lent: Lent<'_>,
    device: DLDevice,
    copy: bool,
) -> PyResult<Bound<'py, PyCapsule>> {
    let loan = match lent {
        // Copying may take long, so it runs without the lock.
        Lent::Host(tensor) if copy => py.detach(|| M::copy(tensor).map(Loan)).or_raise()?,
        Lent::Device { .. } | Lent::Part { .. } if copy => {
            let why = "nothing is copied within a device's memory: copy must be None or False";
            return Err(PyBufferError::new_err(why));
        }
        lent => M::lend(lent, device).map(Loan).or_raise()?,
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
        // The name shows that no consumer took the tensor, and the capsule that owned it is going, so the loan that
        // `lend` put there is ours again. The end of a device's memory waits for the device, which needs no lock.
        unlocked::drop_unlocked(Loan(pointer));
    }
}
