//! Tensors as slices of Rust's types, and the rows of their first dimension.

use std::any::{TypeId, type_name};
use std::ops::Range;

use zerocopy::{FromBytes, Immutable};

use super::{Dtype, Tensor, TensorError};
use crate::{Result, SharedBytes};

impl Tensor {
    /// The dimensions as an array, for a tensor that has to have `N` of them.
    ///
    /// # Errors
    /// [`TensorError::WrongRank`].
    pub fn dims<const N: usize>(&self) -> Result<[u64; N]> {
        <[u64; N]>::try_from(self.shape()).map_err(|_| {
            self.fault(TensorError::WrongRank {
                tensor: self.name().into(),
                dtype: self.dtype(),
                shape: self.shape().to_vec(),
                wanted: N,
            })
        })
    }

    /// The elements as a slice, without a copy.
    ///
    /// `f32`, `f64` and the signed integers take tensors of the data type of their name. Unsigned integers take the bits
    /// of every data type of their size: `u16` those of `BF16`, `u8` a `BOOL`. Any other type, such as a `half::bf16` or a
    /// struct for `C64`, is compared by its size, and may hold any bits, which [`FromBytes`] says. The bytes of the tensor
    /// are little-endian, and are not converted.
    ///
    /// # Errors
    /// [`TensorError::WrongType`]; [`TensorError::Misaligned`] where [`Tensor::alignment`] is less than the type takes and
    /// the address is not a multiple of that; as for [`Tensor::as_slice`].
    pub fn as_slice_of<T: FromBytes + Immutable + 'static>(&self) -> Result<&[T]> {
        self.elements_of(0, self.nbytes())
    }

    /// One row: the elements at `index` of the first dimension.
    ///
    /// # Errors
    /// As for [`Tensor::rows`].
    pub fn row(&self, index: u64) -> Result<Rows<'_>> {
        let outside =
            || TensorError::OutsideRows { tensor: self.name().into(), range: index..index, count: u64::MAX };
        self.rows(index..index.checked_add(1).ok_or_else(|| self.fault(outside()))?)
    }

    /// The rows in a range of the first dimension, which lie one after the other.
    ///
    /// # Errors
    /// [`TensorError::OutsideRows`], also for a scalar, which has no rows; [`TensorError::PartialRows`] for rows of packed
    /// types that do not begin and end with a byte or, if quantised, a block.
    pub fn rows(&self, range: Range<u64>) -> Result<Rows<'_>> {
        let (count, row) = match self.shape() {
            [count, row @ ..] => (*count, row),
            [] => (0, &[][..]),
        };
        if self.shape().is_empty() || range.start > range.end || range.end > count {
            return Err(self.fault(TensorError::OutsideRows { tensor: self.name().into(), range, count }));
        }
        let bytes_of = |rows| self.dtype().size_of(&[&[rows], row].concat());
        let (Ok(offset), Ok(end)) = (bytes_of(range.start), bytes_of(range.end)) else {
            return Err(self.fault(TensorError::PartialRows {
                tensor: self.name().into(),
                dtype: self.dtype(),
                shape: self.shape().to_vec(),
                range,
            }));
        };
        Ok(Rows { tensor: self, range, offset, nbytes: end.saturating_sub(offset) })
    }

    /// Bytes of the tensor as elements.
    fn elements_of<T: FromBytes + Immutable + 'static>(&self, offset: u64, nbytes: u64) -> Result<&[T]> {
        if !holds::<T>(self.dtype()) {
            return Err(self.fault(TensorError::WrongType {
                tensor: self.name().into(),
                dtype: self.dtype(),
                wanted: type_name::<T>(),
                size: size_of::<T>(),
            }));
        }
        let bytes = self.file.range_as_slice(self.offset().saturating_add(offset), nbytes)?;
        if bytes.is_empty() {
            return Ok(&[]);
        }
        // The length is one of whole elements, so that only the address can be wrong.
        <[T]>::ref_from_bytes(bytes).map_err(|_| {
            self.fault(TensorError::Misaligned {
                tensor: self.name().into(),
                address: bytes.as_ptr().addr() as u64,
                wanted: type_name::<T>(),
                align: align_of::<T>(),
            })
        })
    }

    pub(super) fn fault(&self, fault: TensorError) -> crate::Error {
        fault.in_file(&self.file.path()).into()
    }
}

/// Whether elements of `dtype` may be taken for values of `T`.
fn holds<T: 'static>(dtype: Dtype) -> bool {
    let named = [
        (TypeId::of::<i8>(), Dtype::I8),
        (TypeId::of::<i16>(), Dtype::I16),
        (TypeId::of::<i32>(), Dtype::I32),
        (TypeId::of::<i64>(), Dtype::I64),
        (TypeId::of::<isize>(), Dtype::I64),
        (TypeId::of::<f32>(), Dtype::F32),
        (TypeId::of::<f64>(), Dtype::F64),
    ];
    match named.into_iter().find(|(id, _)| *id == TypeId::of::<T>()) {
        Some((_, only)) => dtype == only,
        None => dtype.bits().is_some() && size_of::<T>().checked_mul(8) == dtype.bits(),
    }
}

/// Rows of a tensor that follow each other: a range of its first dimension.
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    tensor: &'a Tensor,
    range: Range<u64>,
    /// First byte, from the start of the tensor.
    offset: u64,
    nbytes: u64,
}

impl<'a> Rows<'a> {
    /// The tensor.
    pub fn tensor(&self) -> &'a Tensor {
        self.tensor
    }

    /// Which rows these are.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Dimensions of one row; empty for the elements of a vector.
    pub fn row_shape(&self) -> &'a [u64] {
        self.tensor.shape().get(1..).unwrap_or_default()
    }

    /// Bytes of data.
    pub fn nbytes(&self) -> u64 {
        self.nbytes
    }

    /// The data as a bounded view, without a copy.
    ///
    /// # Errors
    /// As for [`Tensor::bytes`].
    pub fn bytes(&self) -> Result<SharedBytes<'a>> {
        self.tensor.file.range(self.tensor.offset().saturating_add(self.offset), self.nbytes)
    }

    /// The data as a slice, without a copy.
    ///
    /// # Errors
    /// As for [`Tensor::as_slice`].
    pub fn as_slice(&self) -> Result<&'a [u8]> {
        self.tensor.file.range_as_slice(self.tensor.offset().saturating_add(self.offset), self.nbytes)
    }

    /// The elements as a slice, without a copy.
    ///
    /// # Errors
    /// As for [`Tensor::as_slice_of`].
    pub fn as_slice_of<T: FromBytes + Immutable + 'static>(&self) -> Result<&'a [T]> {
        self.tensor.elements_of(self.offset, self.nbytes)
    }
}
