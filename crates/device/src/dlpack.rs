//! Tensors in a device's memory as DLPack: see [`daxfs::dlpack`], which has the structs and the loans of host memory.
//!
//! A loan holds the place, so the memory stays on the device until the consumer calls the deleter.

#![forbid(unsafe_code)]

use std::ptr::NonNull;

use daxfs::dlpack::{
    Array, DLDevice, DLManagedTensor, DLManagedTensorVersioned, FLAG_READ_ONLY, lend_legacy, lend_versioned,
};
use daxfs::{Tensor, TensorError};

use crate::{Place, Result, TensorSlice};

/// Lends a tensor out where it lies in a device's memory, in the form of DLPack 1.x: `place` is what
/// [`MappedImage::tensor`](crate::MappedImage::tensor) gave for it. `device` is what the consumer is told that the
/// memory is: [`Buffer::dl_device`](crate::Buffer::dl_device), or [`Buffer::dl_gpu`](crate::Buffer::dl_gpu) also for
/// host memory that this GPU reads in place, by the GPU's address. The bytes are there already, so every stream of the
/// consumer may use them at once.
///
/// # Errors
/// [`TensorError::NotExportable`] as for [`daxfs::dlpack::export_versioned`], for a place that is not as long as the
/// tensor, for one of a device that DLPack's consumers do not share, and for a `device` that is neither of the two;
/// [`TensorError::NotWritable`] for a writable loan of memory that this process's work on the device may only read
/// ([`Buffer::is_writable`](crate::Buffer::is_writable)).
pub fn export_versioned(
    tensor: &Tensor,
    place: &Place,
    read_only: bool,
    device: DLDevice,
) -> Result<NonNull<DLManagedTensorVersioned>> {
    lend(tensor, whole(tensor, place, device)?, place, read_only)
}

/// Like [`export_versioned`], in the form before DLPack 1, for a copy in the device's own memory. This form cannot say
/// that the memory is read-only: the consumer must be known not to write, which would be a fault of its kernel.
///
/// # Errors
/// As for [`export_versioned`], and [`TensorError::NotExportable`] for host memory, which belongs to others too.
pub fn export_legacy(tensor: &Tensor, place: &Place) -> Result<NonNull<DLManagedTensor>> {
    let device = own(tensor, place)?;
    Ok(lend_legacy(whole(tensor, place, device)?, Box::new(place.clone())))
}

/// Lends a part of a tensor out where it lies in a device's memory, with its strides, in the form of DLPack 1.x:
/// `slice` is what [`MappedImage::slice`](crate::MappedImage::slice) gave for it.
///
/// # Errors
/// As for [`export_versioned`], and [`TensorError::NotExportable`] for types of less than 8 bits.
pub fn export_slice_versioned(
    tensor: &Tensor,
    slice: &TensorSlice,
    read_only: bool,
    device: DLDevice,
) -> Result<NonNull<DLManagedTensorVersioned>> {
    lend(tensor, part(tensor, slice, device)?, slice.place(), read_only)
}

/// Like [`export_slice_versioned`], in the form before DLPack 1, as [`export_legacy`].
///
/// # Errors
/// As for [`export_slice_versioned`], and [`TensorError::NotExportable`] for host memory, which belongs to others too.
pub fn export_slice_legacy(tensor: &Tensor, slice: &TensorSlice) -> Result<NonNull<DLManagedTensor>> {
    let device = own(tensor, slice.place())?;
    Ok(lend_legacy(part(tensor, slice, device)?, Box::new(slice.place().clone())))
}

fn lend(
    tensor: &Tensor,
    array: Array,
    place: &Place,
    read_only: bool,
) -> Result<NonNull<DLManagedTensorVersioned>> {
    if !read_only && !place.buffer().is_writable() {
        return Err(daxfs::Error::from(TensorError::NotWritable { tensor: tensor.name().into() }).into());
    }
    let flags = if read_only { FLAG_READ_ONLY } else { 0 };
    Ok(lend_versioned(array, Box::new(place.clone()), flags))
}

fn whole(tensor: &Tensor, place: &Place, device: DLDevice) -> Result<Array> {
    let address = address(tensor, place, device)?;
    if place.len() != tensor.nbytes() {
        return Err(fault(tensor, "the place is not that of the whole tensor"));
    }
    Ok(Array::at(tensor, address, device)?)
}

fn part(tensor: &Tensor, slice: &TensorSlice, device: DLDevice) -> Result<Array> {
    if slice.dtype() != tensor.dtype() {
        return Err(fault(tensor, "parts are lent with their own tensor"));
    }
    let address = address(tensor, slice.place(), device)?;
    Ok(Array::part(tensor, slice.shape(), slice.strides(), address, device)?)
}

/// Where the place lies for those who are told that it is on `device`: the CPU's address need not be the GPU's.
fn address(tensor: &Tensor, place: &Place, device: DLDevice) -> Result<u64> {
    let buffer = place.buffer();
    let (Some(own), Some(reader)) = (buffer.dl_own(), buffer.dl_reader()) else {
        return Err(fault(tensor, "no consumer shares this device"));
    };
    let found = [reader, own].into_iter().find(|(known, _)| *known == device);
    let (_, start) = found.ok_or_else(|| fault(tensor, "its memory is not that of the device asked for"))?;
    // No overflow: the buffer's addresses are valid to its end.
    Ok(start + place.offset())
}

/// The device that alone has the memory.
fn own(tensor: &Tensor, place: &Place) -> Result<DLDevice> {
    let device = place.buffer().dl_device().ok_or_else(|| fault(tensor, "no consumer shares this device"))?;
    match device.is_host() {
        true => Err(fault(tensor, "host memory that others share is lent to consumers of DLPack 1 only")),
        false => Ok(device),
    }
}

fn fault(tensor: &Tensor, why: &'static str) -> crate::Error {
    daxfs::Error::from(TensorError::NotExportable {
        tensor: tensor.name().into(),
        dtype: tensor.dtype(),
        shape: tensor.shape().to_vec(),
        why,
    })
    .into()
}
