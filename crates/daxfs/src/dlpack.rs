//! Tensors as DLPack, the C structs by which array libraries lend each other memory.
//!
//! The structs are those of `dlpack.h` 1.1 (github.com/dmlc/dlpack); later 1.x versions keep their layout. An
//! exported tensor is one allocation that owns its shape, its strides and a clone of the [`Tensor`], so the memory
//! stays mapped until the consumer calls the deleter, on any thread, exactly once.

#![allow(unsafe_code, reason = "the deleters of a C interface take ownership back from raw pointers")]

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::tensor::{read_exact, strides};
use crate::{Dtype, Result, Tensor, TensorError};

/// Version of the structs, as [`DLManagedTensorVersioned::version`] says it.
pub const VERSION: DLPackVersion = DLPackVersion { major: 1, minor: 1 };

/// Flag: the consumer must not write to the memory. numpy obeys it; torch ignores it (seen in 2.15).
pub const FLAG_READ_ONLY: u64 = 1;
/// Flag: the memory is a copy made for this consumer.
pub const FLAG_IS_COPIED: u64 = 2;
/// Flag: elements smaller than a byte take a byte each. Without it they are packed, the first in the low bits.
pub const FLAG_SUBBYTE_PADDED: u64 = 4;

/// `DLPackVersion`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct DLPackVersion {
    /// Changes with the layout of the structs.
    pub major: u32,
    /// Changes with new codes.
    pub minor: u32,
}

/// `DLDevice`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct DLDevice {
    /// `DLDeviceType`, for example 1 for `kDLCPU`.
    pub device_type: i32,
    /// Number of the device; 0 for memory of the host.
    pub device_id: i32,
}

impl DLDevice {
    /// Ordinary memory of the host, `kDLCPU`.
    pub const CPU: Self = Self { device_type: 1, device_id: 0 };
    /// Host memory that CUDA has pinned, `kDLCUDAHost`. numpy takes it, torch does not (seen in 2.11 and 2.15) and is
    /// to be given it as the GPU's.
    pub const CUDA_HOST: Self = Self { device_type: 3, device_id: 0 };
    /// Host memory that ROCm has pinned, `kDLROCMHost`.
    pub const ROCM_HOST: Self = Self { device_type: 11, device_id: 0 };

    /// `device_type` of a GPU of CUDA, `kDLCUDA`.
    pub const CUDA: i32 = 2;

    /// True when pointers to the device's memory are pointers of the CPU.
    pub fn is_host(self) -> bool {
        [Self::CPU, Self::CUDA_HOST, Self::ROCM_HOST].contains(&self)
    }
}

/// `DLDataType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct DLDataType {
    /// `DLDataTypeCode`.
    pub code: u8,
    /// Bits of one lane.
    pub bits: u8,
    /// Lanes of one element.
    pub lanes: u16,
}

impl DLDataType {
    /// The data type of an element; `None` for the 6-bit types, which no consumer takes, and for quantised types.
    ///
    /// F4 is exported as pairs, `bits` 4 and `lanes` 2, the only form that torch takes (seen in 2.15); the last
    /// dimension of such an export is half of the tensor's.
    pub fn of(dtype: Dtype) -> Option<Self> {
        let (code, bits, lanes) = match dtype {
            Dtype::I8 => (0, 8, 1),
            Dtype::I16 => (0, 16, 1),
            Dtype::I32 => (0, 32, 1),
            Dtype::I64 => (0, 64, 1),
            Dtype::U8 => (1, 8, 1),
            Dtype::U16 => (1, 16, 1),
            Dtype::U32 => (1, 32, 1),
            Dtype::U64 => (1, 64, 1),
            Dtype::F16 => (2, 16, 1),
            Dtype::F32 => (2, 32, 1),
            Dtype::F64 => (2, 64, 1),
            Dtype::BF16 => (4, 16, 1),
            Dtype::C64 => (5, 64, 1),
            Dtype::BOOL => (6, 8, 1),
            Dtype::F8_E4M3 => (10, 8, 1),
            Dtype::F8_E4M3FNUZ => (11, 8, 1),
            Dtype::F8_E5M2 => (12, 8, 1),
            Dtype::F8_E5M2FNUZ => (13, 8, 1),
            Dtype::F8_E8M0 => (14, 8, 1),
            Dtype::F4 => (17, 4, 2),
            // F6_E2M3 and F6_E3M2, and quantised types.
            _ => return None,
        };
        Some(Self { code, bits, lanes })
    }
}

/// `DLTensor`: a borrowed array.
#[derive(Debug)]
#[repr(C)]
pub struct DLTensor {
    /// The memory, at any alignment.
    pub data: *mut c_void,
    /// Where the memory is.
    pub device: DLDevice,
    /// Number of dimensions.
    pub ndim: i32,
    /// Type of the elements.
    pub dtype: DLDataType,
    /// `ndim` dimensions.
    pub shape: *mut i64,
    /// `ndim` strides in elements.
    pub strides: *mut i64,
    /// Bytes from `data` to the first element; 0 in our exports.
    pub byte_offset: u64,
}

/// `DLManagedTensor`: the form before version 1, without flags.
#[derive(Debug)]
#[repr(C)]
pub struct DLManagedTensor {
    /// The array.
    pub dl_tensor: DLTensor,
    /// Of the producer.
    pub manager_ctx: *mut c_void,
    /// Ends the loan; frees the struct too.
    pub deleter: Option<unsafe extern "C" fn(*mut DLManagedTensor)>,
}

/// `DLManagedTensorVersioned`: the form since version 1.
#[derive(Debug)]
#[repr(C)]
pub struct DLManagedTensorVersioned {
    /// [`VERSION`].
    pub version: DLPackVersion,
    /// Of the producer.
    pub manager_ctx: *mut c_void,
    /// Ends the loan; frees the struct too.
    pub deleter: Option<unsafe extern "C" fn(*mut DLManagedTensorVersioned)>,
    /// See [`FLAG_READ_ONLY`] and its neighbours.
    pub flags: u64,
    /// The array.
    pub dl_tensor: DLTensor,
}

/// Layout on 64-bit machines, from a C compiler and `dlpack.h` 1.1.
#[cfg(target_pointer_width = "64")]
const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<DLDevice>() == 8);
    assert!(size_of::<DLDataType>() == 4);
    assert!(size_of::<DLTensor>() == 48);
    assert!(offset_of!(DLTensor, device) == 8);
    assert!(offset_of!(DLTensor, ndim) == 16);
    assert!(offset_of!(DLTensor, dtype) == 20);
    assert!(offset_of!(DLTensor, shape) == 24);
    assert!(offset_of!(DLTensor, strides) == 32);
    assert!(offset_of!(DLTensor, byte_offset) == 40);
    assert!(size_of::<DLManagedTensor>() == 64);
    assert!(offset_of!(DLManagedTensor, manager_ctx) == 48);
    assert!(offset_of!(DLManagedTensor, deleter) == 56);
    assert!(size_of::<DLManagedTensorVersioned>() == 80);
    assert!(offset_of!(DLManagedTensorVersioned, manager_ctx) == 8);
    assert!(offset_of!(DLManagedTensorVersioned, deleter) == 16);
    assert!(offset_of!(DLManagedTensorVersioned, flags) == 24);
    assert!(offset_of!(DLManagedTensorVersioned, dl_tensor) == 32);
};

/// Lends a tensor out in the form of DLPack 1.x, without a copy.
///
/// The pointer owns a loan: whoever has it must call its deleter once, or the image stays mapped for good. `device`
/// says what the memory is besides ordinary host memory; the pointer is the CPU's in any case.
///
/// # Errors
/// [`TensorError::NotExportable`] for quantised and 6-bit types, F4 with an odd last dimension, dimensions beyond
/// 2^63, and devices whose pointers are not the CPU's; [`TensorError::NotWritable`] for a writable loan of memory
/// that is not mapped copy-on-write; as for [`Tensor::bytes`].
pub fn export_versioned(
    tensor: &Tensor,
    read_only: bool,
    device: DLDevice,
) -> Result<NonNull<DLManagedTensorVersioned>> {
    if !read_only && !tensor.file().region().is_writable() {
        return Err(TensorError::NotWritable { tensor: tensor.name().into() }.into());
    }
    let flags = if read_only { FLAG_READ_ONLY } else { 0 };
    Ok(lend_versioned(Array::of(tensor, device)?, Box::new(tensor.clone()), flags))
}

/// Lends a tensor out in the form before DLPack 1, without a copy.
///
/// This form cannot say that the memory is read-only: the consumer must be known not to write (JAX arrays are
/// immutable). See [`export_versioned`] for ownership.
///
/// # Errors
/// As for [`export_versioned`], except that writing is not spoken of.
pub fn export_legacy(tensor: &Tensor) -> Result<NonNull<DLManagedTensor>> {
    Ok(lend_legacy(Array::of(tensor, DLDevice::CPU)?, Box::new(tensor.clone())))
}

/// Copies a tensor into memory of the consumer's own, aligned to [`COPY_ALIGNMENT`], which it may write.
///
/// Works for files in pieces, too. See [`export_versioned`] for ownership.
///
/// # Errors
/// [`TensorError::NotExportable`] as for [`export_versioned`], and as for [`File::read_at`](crate::File::read_at).
pub fn copy_versioned(tensor: &Tensor) -> Result<NonNull<DLManagedTensorVersioned>> {
    let (array, owner) = copied(tensor)?;
    Ok(lend_versioned(array, owner, FLAG_IS_COPIED))
}

/// Like [`copy_versioned`], in the form before DLPack 1.
///
/// # Errors
/// As for [`copy_versioned`].
pub fn copy_legacy(tensor: &Tensor) -> Result<NonNull<DLManagedTensor>> {
    let (array, owner) = copied(tensor)?;
    Ok(lend_legacy(array, owner))
}

/// Alignment of copies in bytes: what JAX needs to take memory without copying it again.
pub const COPY_ALIGNMENT: usize = 64;

/// Memory at [`COPY_ALIGNMENT`].
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(64))]
struct Line([u8; COPY_ALIGNMENT]);

fn copied(tensor: &Tensor) -> Result<(Array, Box<dyn Any + Send>)> {
    let mut array = Array::describe(tensor, DLDevice::CPU)?;
    let no_memory = || dmabuf::Error::Invalid {
        what: format!("a copy of {} bytes", tensor.nbytes()),
        why: "there is not enough memory".into(),
    };
    let len = usize::try_from(tensor.nbytes()).map_err(|_| no_memory())?;
    let count = len.div_ceil(COPY_ALIGNMENT);
    let mut lines = Vec::new();
    lines.try_reserve_exact(count).map_err(|_| no_memory())?;
    lines.resize(count, Line([0; COPY_ALIGNMENT]));
    read_exact(tensor.file(), tensor.offset(), &mut lines.as_mut_bytes()[..len])?;
    array.data = lines.as_mut_ptr().cast();
    Ok((array, Box::new(lines)))
}

/// A tensor, or a part of one, in the terms of DLPack: for memory that is not the image's own, such as a device's.
/// [`lend_versioned`] and [`lend_legacy`] make a loan of it.
#[derive(Debug, Clone)]
pub struct Array {
    data: *mut c_void,
    device: DLDevice,
    ndim: i32,
    dtype: DLDataType,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

impl Array {
    /// The array of the tensor's own bytes.
    fn of(tensor: &Tensor, device: DLDevice) -> Result<Self> {
        if !device.is_host() {
            return Err(fault(tensor, "its memory is the CPU's, not that of the device asked for").into());
        }
        // The pointer is that of the view for tensors without elements, too: `dlpack.h` suggests NULL, for which
        // numpy (2.4) makes an array of its own that says it is writable.
        let data = tensor.bytes()?.as_ptr().cast_mut().cast();
        Ok(Self { data, ..Self::describe(tensor, device)? })
    }

    /// All of the tensor, at `address` of `device`.
    ///
    /// # Errors
    /// [`TensorError::NotExportable`] as for [`export_versioned`], but for what is said of devices.
    pub fn at(tensor: &Tensor, address: u64, device: DLDevice) -> Result<Self> {
        Ok(Self { data: pointer(tensor, address)?, ..Self::describe(tensor, device)? })
    }

    /// A part of the tensor, at `address` of `device`; `shape` and `strides` count elements.
    ///
    /// # Errors
    /// As for [`Array::at`], and [`TensorError::NotExportable`] for types of less than 8 bits.
    pub fn part(
        tensor: &Tensor,
        shape: &[u64],
        strides: &[u64],
        address: u64,
        device: DLDevice,
    ) -> Result<Self> {
        let whole = Self::describe(tensor, DLDevice::CPU)?;
        if whole.dtype.lanes != 1 {
            return Err(fault(tensor, "parts are lent of whole-byte types").into());
        }
        let too_large = || fault(tensor, "its dimensions do not fit 63 bits");
        let shape = signed(shape).ok_or_else(too_large)?;
        let strides = signed(strides).filter(|strides| strides.len() == shape.len()).ok_or_else(too_large)?;
        let ndim = i32::try_from(shape.len()).map_err(|_| too_large())?;
        Ok(Self { data: pointer(tensor, address)?, device, ndim, shape, strides, ..whole })
    }

    /// Everything but the data.
    fn describe(tensor: &Tensor, device: DLDevice) -> Result<Self> {
        let fault = |why| fault(tensor, why);
        let dtype = DLDataType::of(tensor.dtype()).ok_or_else(|| {
            fault(match tensor.dtype().is_quantized() {
                true => "its elements are quantised; use the bytes, which are blocks, or dequantize it",
                false => "no consumer takes 6-bit types; use the bytes",
            })
        })?;
        let shape = dimensions(tensor.shape(), dtype.lanes)
            .ok_or_else(|| fault("the last dimension is not a whole number of pairs; use the bytes"))?;
        let too_large = || fault("its dimensions do not fit 63 bits");
        let strides = strides(&shape).and_then(|strides| signed(&strides)).ok_or_else(too_large)?;
        let shape = signed(&shape).ok_or_else(too_large)?;
        let ndim = i32::try_from(shape.len()).map_err(|_| too_large())?;
        Ok(Self { data: std::ptr::null_mut(), device, ndim, dtype, shape, strides })
    }
}

/// An address of a device as the structs have it.
fn pointer(tensor: &Tensor, address: u64) -> Result<*mut c_void> {
    let address = usize::try_from(address).map_err(|_| fault(tensor, "its address does not fit"))?;
    Ok(std::ptr::without_provenance_mut(address))
}

fn fault(tensor: &Tensor, why: &'static str) -> TensorError {
    TensorError::NotExportable {
        tensor: tensor.name().into(),
        dtype: tensor.dtype(),
        shape: tensor.shape().to_vec(),
        why,
    }
}

/// The dimensions counted in elements of `lanes` values; `None` if the last one does not divide.
fn dimensions(shape: &[u64], lanes: u16) -> Option<Vec<u64>> {
    let mut shape = shape.to_vec();
    if lanes != 1 {
        let last = shape.last_mut()?;
        if *last % u64::from(lanes) != 0 {
            return None;
        }
        *last /= u64::from(lanes);
    }
    Some(shape)
}

/// Dimensions or strides as DLPack has them; `None` where they do not fit 63 bits.
fn signed(values: &[u64]) -> Option<Vec<i64>> {
    values.iter().map(|&value| i64::try_from(value).ok()).collect()
}

/// The allocation behind an exported tensor. The consumer gets a pointer to `managed`, its first field.
#[repr(C)]
struct Loan<M> {
    managed: M,
    shape: Vec<i64>,
    strides: Vec<i64>,
    /// Keeps the memory alive; only dropped.
    owner: Box<dyn Any + Send>,
}

const _: () = {
    assert!(core::mem::offset_of!(Loan<DLManagedTensor>, managed) == 0);
    assert!(core::mem::offset_of!(Loan<DLManagedTensorVersioned>, managed) == 0);
};

/// Moves everything into one allocation and gives it away; [`delete`] takes it back.
fn lend<M>(array: Array, owner: Box<dyn Any + Send>, managed: impl FnOnce(DLTensor) -> M) -> NonNull<M> {
    let Array { data, device, ndim, dtype, mut shape, mut strides } = array;
    // The buffers of the vectors stay where they are when the vectors move.
    let tensor = DLTensor {
        data,
        device,
        ndim,
        dtype,
        shape: shape.as_mut_ptr(),
        strides: strides.as_mut_ptr(),
        byte_offset: 0,
    };
    let loan = Box::new(Loan { managed: managed(tensor), shape, strides, owner });
    NonNull::from(Box::leak(loan)).cast()
}

/// Lends memory out in the form of DLPack 1.x, with [`FLAG_READ_ONLY`] and its neighbours; `owner` is dropped by the
/// deleter. See [`export_versioned`] for ownership.
///
/// What follows the pointer trusts it: whoever makes the [`Array`] says that its memory holds the tensor for as long as
/// `owner` lives.
pub fn lend_versioned(
    array: Array,
    owner: Box<dyn Any + Send>,
    flags: u64,
) -> NonNull<DLManagedTensorVersioned> {
    lend(array, owner, |dl_tensor| DLManagedTensorVersioned {
        version: VERSION,
        manager_ctx: std::ptr::null_mut(),
        deleter: Some(delete::<DLManagedTensorVersioned>),
        flags,
        dl_tensor,
    })
}

/// Like [`lend_versioned`], in the form before DLPack 1, which cannot say that the memory is read-only: the consumer must
/// be known not to write.
pub fn lend_legacy(array: Array, owner: Box<dyn Any + Send>) -> NonNull<DLManagedTensor> {
    lend(array, owner, |dl_tensor| DLManagedTensor {
        dl_tensor,
        manager_ctx: std::ptr::null_mut(),
        deleter: Some(delete::<DLManagedTensor>),
    })
}

/// Deleter of both forms: ends the loan and frees it. NULL is ignored.
///
/// # Safety
/// `this` is NULL or what [`lend`] returned for the same `M`, and the deleter was not called on it before.
unsafe extern "C" fn delete<M>(this: *mut M) {
    if this.is_null() {
        return;
    }
    // SAFETY: `this` is not NULL, so by the contract of this function it came from `lend::<M>`, that is from
    // `Box::leak` of a `Box<Loan<M>>`, and was cast to a pointer to its first field, which is at offset 0 (asserted
    // above); the cast back restores the box's pointer, with the provenance of the whole allocation, since it was
    // only ever cast. The loan was not deleted before, so this is its only owner.
    let loan = unsafe { Box::from_raw(this.cast::<Loan<M>>()) };
    // Unmapping does not panic, but nothing may unwind into C.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(loan)));
}

#[cfg(test)]
#[path = "dlpack_tests.rs"]
mod tests;
