//! Parts of tensors as tensor parallelism cuts them: a range of one dimension, where it lies.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::{DeviceError, MappedImage, Place};
use crate::error::Result;
use crate::tensor::strides;
use crate::{Dtype, Tensor};

/// A range of one dimension of a tensor in a device's memory, as a strided view: nothing is moved.
///
/// A part of the first dimension (rows) is contiguous. One of a later dimension (columns) has gaps: its place reaches
/// from its first byte to its last one and holds other parts' bytes in between, so a consumer that does not take strides
/// has to copy it.
#[derive(Debug, Clone)]
pub struct TensorSlice {
    place: Place,
    dtype: Dtype,
    shape: Vec<u64>,
    strides: Vec<u64>,
}

impl TensorSlice {
    /// From the first byte to the last one.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Dimensions of the part.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Elements from one index of a dimension to the next: those of the whole tensor.
    pub fn strides(&self) -> &[u64] {
        &self.strides
    }

    /// Whether the place holds nothing else.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        let dimensions = self.shape.iter().zip(&self.strides).rev().filter(|(dim, _)| **dim != 1);
        self.shape.contains(&0)
            || dimensions.into_iter().all(|(dim, stride)| {
                let fits = *stride == step;
                step = stride.saturating_mul(*dim);
                fits
            })
    }
}

impl MappedImage {
    /// The part `range` of dimension `dim` of a tensor, where it lies.
    ///
    /// # Errors
    /// [`DeviceError::NoSuchSlice`] for a dimension or a range that the tensor has not, and for one that begins or ends
    /// inside a byte (types of less than 8 bits); [`DeviceError::NotOnePlace`] where the region was mapped in pieces and
    /// the part lies in several; and as for [`MappedImage::file_range`].
    pub fn slice(&self, tensor: &Tensor, dim: usize, range: Range<u64>) -> Result<TensorSlice> {
        let refuse = |why| DeviceError::NoSuchSlice {
            tensor: tensor.name().into(),
            shape: tensor.shape().to_vec(),
            dim,
            range: range.clone(),
            why,
        };
        let mut shape = tensor.shape().to_vec();
        match shape.get_mut(dim) {
            Some(size) if range.start <= range.end && range.end <= *size => *size = range.end - range.start,
            Some(_) => return Err(refuse("it is not within that dimension").into()),
            None => return Err(refuse("there is no such dimension").into()),
        }
        let strides = strides(tensor.shape()).ok_or_else(|| refuse("its dimensions do not fit 64 bits"))?;
        // In bits and 128 of them: a tensor has less than 2^64 bytes.
        let bits = |elements: u64| u128::from(elements) * tensor.dtype().bits() as u128;
        let start = bits(range.start * strides[dim]);
        let last: u64 = shape.iter().zip(&strides).map(|(dim, stride)| dim.saturating_sub(1) * stride).sum();
        let len = if shape.contains(&0) { 0 } else { bits(last + 1) };
        let mut edges = vec![start, bits(shape[dim] * strides[dim])];
        edges
            .extend(shape.iter().zip(&strides).take(dim).filter(|(dim, _)| **dim > 1).map(|(_, s)| bits(*s)));
        if len > 0 && edges.iter().any(|edge| edge % 8 != 0) {
            return Err(refuse("it begins or ends inside a byte").into());
        }
        let bytes = |bits: u128| u64::try_from(bits.div_ceil(8)).unwrap_or(u64::MAX);
        let start = if len > 0 { bytes(start) } else { 0 };
        let places = self.file_range(tensor.file(), tensor.offset() + start, bytes(len))?;
        Ok(TensorSlice { place: places.one()?, dtype: tensor.dtype(), shape, strides })
    }
}
