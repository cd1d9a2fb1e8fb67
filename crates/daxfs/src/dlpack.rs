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

#[cfg(feature = "cuda")]
use crate::device::{Place, TensorSlice, cuda};
use crate::tensor::safetensors::read_exact;
use crate::tensor::strides;
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
    /// to be given it as the GPU's (`DLDevice::gpu`).
    pub const CUDA_HOST: Self = Self { device_type: 3, device_id: 0 };
    /// Host memory that ROCm has pinned, `kDLROCMHost`.
    pub const ROCM_HOST: Self = Self { device_type: 11, device_id: 0 };

    /// A GPU of CUDA, `kDLCUDA`.
    #[cfg(feature = "cuda")]
    pub fn gpu(device: &cuda::Device) -> Self {
        // Nobody has 2^31 devices.
        Self { device_type: 2, device_id: i32::try_from(device.ordinal()).unwrap_or(i32::MAX) }
    }

    /// Where memory lies: on a GPU of CUDA, or in the host where a GPU reads it.
    #[cfg(feature = "cuda")]
    pub fn of(buffer: &cuda::Buffer) -> Self {
        if buffer.is_resident() { Self::gpu(buffer.device()) } else { Self::CUDA_HOST }
    }

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
    /// The data type of an element; `None` for the 6-bit types, which no consumer takes.
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
            Dtype::F6_E2M3 | Dtype::F6_E3M2 => return None,
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
/// [`TensorError::NotExportable`] for 6-bit types, F4 with an odd last dimension, dimensions beyond 2^63, and
/// devices whose pointers are not the CPU's; [`TensorError::NotWritable`] for a writable loan of memory that is not
/// mapped copy-on-write; as for [`Tensor::bytes`].
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

/// Lends a tensor out where it lies in a GPU's memory, in the form of DLPack 1.x: `place` is what
/// [`MappedImage::tensor`](crate::device::MappedImage::tensor) gave for it. `device` is what the consumer is told that
/// the memory is: [`DLDevice::of`] its buffer, or [`DLDevice::gpu`] also for host memory that this GPU reads in place,
/// by the GPU's address. The bytes are there already, so every stream of the consumer may use them at once.
///
/// # Errors
/// [`TensorError::NotExportable`] as for [`export_versioned`], for a place that is not as long as the tensor, for one
/// of a device that DLPack's consumers do not share, and for a `device` that is none of the two;
/// [`TensorError::NotWritable`] for a writable loan of memory that this process's kernels may only read
/// ([`cuda::Buffer::is_writable`]).
#[cfg(feature = "cuda")]
pub fn export_place_versioned(
    tensor: &Tensor,
    place: &Place,
    read_only: bool,
    device: DLDevice,
) -> Result<NonNull<DLManagedTensorVersioned>> {
    lend_place(tensor, Array::at(tensor, place, device)?, place, read_only)
}

#[cfg(feature = "cuda")]
fn lend_place(
    tensor: &Tensor,
    array: Array,
    place: &Place,
    read_only: bool,
) -> Result<NonNull<DLManagedTensorVersioned>> {
    if !read_only && !place.buffer().as_cuda().is_some_and(cuda::Buffer::is_writable) {
        return Err(TensorError::NotWritable { tensor: tensor.name().into() }.into());
    }
    let flags = if read_only { FLAG_READ_ONLY } else { 0 };
    Ok(lend_versioned(array, Box::new(place.clone()), flags))
}

/// Lends a part of a tensor out where it lies in a GPU's memory, with its strides, in the form of DLPack 1.x: `slice`
/// is what [`MappedImage::slice`](crate::device::MappedImage::slice) gave for it.
///
/// # Errors
/// As for [`export_place_versioned`], and [`TensorError::NotExportable`] for types of less than 8 bits.
#[cfg(feature = "cuda")]
pub fn export_slice_versioned(
    tensor: &Tensor,
    slice: &TensorSlice,
    read_only: bool,
    device: DLDevice,
) -> Result<NonNull<DLManagedTensorVersioned>> {
    lend_place(tensor, Array::part(tensor, slice, device)?, slice.place(), read_only)
}

/// Like [`export_place_versioned`], in the form before DLPack 1, for a copy in the device's own memory. This form
/// cannot say that the memory is read-only: the consumer must be known not to write, which would be a fault of its
/// kernel.
///
/// # Errors
/// As for [`export_place_versioned`], and [`TensorError::NotExportable`] for host memory, which belongs to others too.
#[cfg(feature = "cuda")]
pub fn export_place_legacy(tensor: &Tensor, place: &Place) -> Result<NonNull<DLManagedTensor>> {
    lend_place_legacy(tensor, Array::at(tensor, place, own(place))?, place)
}

/// Like [`export_slice_versioned`], in the form before DLPack 1, as [`export_place_legacy`].
///
/// # Errors
/// As for [`export_slice_versioned`], and [`TensorError::NotExportable`] for host memory, which belongs to others too.
#[cfg(feature = "cuda")]
pub fn export_slice_legacy(tensor: &Tensor, slice: &TensorSlice) -> Result<NonNull<DLManagedTensor>> {
    lend_place_legacy(tensor, Array::part(tensor, slice, own(slice.place()))?, slice.place())
}

/// Where a place lies. One that is not CUDA's has no device here, and is refused whatever is said of it.
#[cfg(feature = "cuda")]
fn own(place: &Place) -> DLDevice {
    place.buffer().as_cuda().map_or(DLDevice::CUDA_HOST, DLDevice::of)
}

#[cfg(feature = "cuda")]
fn lend_place_legacy(tensor: &Tensor, array: Array, place: &Place) -> Result<NonNull<DLManagedTensor>> {
    if array.device.is_host() {
        return Err(
            fault(tensor, "host memory that others share is lent to consumers of DLPack 1 only").into()
        );
    }
    Ok(lend_legacy(array, Box::new(place.clone())))
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

/// A tensor in the terms of DLPack.
struct Array {
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

    /// The array of the tensor's bytes in a device's memory.
    #[cfg(feature = "cuda")]
    fn at(tensor: &Tensor, place: &Place, device: DLDevice) -> Result<Self> {
        let data = Self::address(tensor, place, device)?;
        if place.len() != tensor.nbytes() {
            return Err(fault(tensor, "the place is not that of the whole tensor").into());
        }
        Ok(Self { data, ..Self::describe(tensor, device)? })
    }

    /// The array of a part of the tensor in a device's memory.
    #[cfg(feature = "cuda")]
    fn part(tensor: &Tensor, slice: &TensorSlice, device: DLDevice) -> Result<Self> {
        let whole = Self::describe(tensor, DLDevice::CPU)?;
        if whole.dtype.lanes != 1 || slice.dtype() != tensor.dtype() {
            return Err(fault(tensor, "parts are lent of whole-byte types, and with their own tensor").into());
        }
        let too_large = || fault(tensor, "its dimensions do not fit 63 bits");
        let shape = signed(slice.shape()).ok_or_else(too_large)?;
        let strides = signed(slice.strides()).ok_or_else(too_large)?;
        let ndim = i32::try_from(shape.len()).map_err(|_| too_large())?;
        let data = Self::address(tensor, slice.place(), device)?;
        Ok(Self { data, device, ndim, shape, strides, ..whole })
    }

    /// The pointer to a place on a device.
    #[cfg(feature = "cuda")]
    fn address(tensor: &Tensor, place: &Place, device: DLDevice) -> Result<*mut c_void> {
        let buffer =
            place.buffer().as_cuda().ok_or_else(|| fault(tensor, "no consumer shares this device"))?;
        // The CPU's address need not be the GPU's.
        let start = match buffer.host_address() {
            _ if device == DLDevice::gpu(buffer.device()) => buffer.address(),
            Some(address) if device == DLDevice::of(buffer) => address as u64,
            _ => return Err(fault(tensor, "its memory is not that of the device asked for").into()),
        };
        let address =
            usize::try_from(start + place.offset()).map_err(|_| fault(tensor, "its address does not fit"))?;
        Ok(std::ptr::without_provenance_mut(address))
    }

    /// Everything but the data.
    fn describe(tensor: &Tensor, device: DLDevice) -> Result<Self> {
        let fault = |why| fault(tensor, why);
        let dtype = DLDataType::of(tensor.dtype())
            .ok_or_else(|| fault("no consumer takes 6-bit types; use the bytes"))?;
        let shape = dimensions(tensor.shape(), dtype.lanes)
            .ok_or_else(|| fault("the last dimension is not a whole number of pairs; use the bytes"))?;
        let too_large = || fault("its dimensions do not fit 63 bits");
        let strides = strides(&shape).and_then(|strides| signed(&strides)).ok_or_else(too_large)?;
        let shape = signed(&shape).ok_or_else(too_large)?;
        let ndim = i32::try_from(shape.len()).map_err(|_| too_large())?;
        Ok(Self { data: std::ptr::null_mut(), device, ndim, dtype, shape, strides })
    }
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

fn lend_versioned(array: Array, owner: Box<dyn Any + Send>, flags: u64) -> NonNull<DLManagedTensorVersioned> {
    lend(array, owner, |dl_tensor| DLManagedTensorVersioned {
        version: VERSION,
        manager_ctx: std::ptr::null_mut(),
        deleter: Some(delete::<DLManagedTensorVersioned>),
        flags,
        dl_tensor,
    })
}

fn lend_legacy(array: Array, owner: Box<dyn Any + Send>) -> NonNull<DLManagedTensor> {
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
