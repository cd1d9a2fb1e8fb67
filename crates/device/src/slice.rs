//! Parts of tensors as tensor parallelism cuts them: a range of one dimension, where it lies.

#![forbid(unsafe_code)]

use std::ops::Range;

use daxfs::tensor::strides;
use daxfs::{Dtype, Tensor};

use crate::image::named;
use crate::part::Part;
use crate::{DeviceError, MappedImage, Place, Result};

/// A range of one dimension of a tensor in a device's memory, as a strided view: nothing is moved.
///
/// A part of the first dimension (rows) is contiguous. One of a later dimension (columns) has gaps: its place reaches
/// from its first byte to its last one and holds other parts' bytes in between, so a consumer that does not take
/// strides has to copy it.
#[derive(Debug, Clone)]
pub struct TensorSlice {
    place: Place,
    dtype: Dtype,
    shape: Vec<u64>,
    strides: Vec<u64>,
}

impl TensorSlice {
    /// Shape and strides are those of the bytes at `place`.
    pub(super) fn new(place: Place, dtype: Dtype, shape: Vec<u64>, strides: Vec<u64>) -> Self {
        Self { place, dtype, shape, strides }
    }

    /// The same without dimension `dim`, which has one index, as arrays are indexed by a number. `None` where there is
    /// no such dimension, or it has another size.
    #[must_use]
    pub fn squeeze(mut self, dim: usize) -> Option<Self> {
        if self.shape.get(dim) != Some(&1) {
            return None;
        }
        self.shape.remove(dim);
        self.strides.remove(dim);
        Some(self)
    }

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

    /// Elements from one index of a dimension to the next, in the memory of the place.
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
    /// All of a tensor, as a part of it.
    ///
    /// # Errors
    /// As for [`MappedImage::tensor`], [`DeviceError::NotOnePlace`] where it lies in several, and
    /// [`DeviceError::NoSuchSlice`] for one without elements whose dimensions do not fit 64 bits.
    pub fn whole(&self, tensor: &Tensor) -> Result<TensorSlice> {
        let shape = tensor.shape().to_vec();
        let strides = strides(&shape).ok_or_else(|| DeviceError::NoSuchSlice {
            tensor: tensor.name().into(),
            shape: shape.clone(),
            dim: 0,
            range: 0..0,
            why: "its dimensions do not fit 64 bits",
        })?;
        Ok(TensorSlice::new(self.tensor(tensor)?.one()?, tensor.dtype(), shape, strides))
    }

    /// The part `range` of dimension `dim` of a tensor, where it lies.
    ///
    /// # Errors
    /// [`DeviceError::NoSuchSlice`] for a dimension or a range that the tensor has not, and for one that begins or ends
    /// inside a byte (types of less than 8 bits); [`DeviceError::NotOnePlace`] where the region was mapped in pieces
    /// and the part lies in several; [`DeviceError::NotPlaced`] when there is a placement that has not all of it,
    /// counted in the whole tensor; and as for [`MappedImage::file_range`].
    pub fn slice(&self, tensor: &Tensor, dim: usize, range: Range<u64>) -> Result<TensorSlice> {
        let refuse = |why| DeviceError::NoSuchSlice {
            tensor: tensor.name().into(),
            shape: tensor.shape().to_vec(),
            dim,
            range: range.clone(),
            why,
        };
        let part = Part::of(tensor, dim, &range).map_err(refuse)?;
        let places =
            self.file_range(tensor.file(), tensor.offset() + part.start, part.reach()).map_err(|error| {
                named(error, || format!("{range:?} of dimension {dim} of tensor {:?}", tensor.name()))
            })?;
        Ok(TensorSlice::new(places.one()?, tensor.dtype(), part.shape, part.strides))
    }
}
