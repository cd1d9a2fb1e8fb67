//! Tensors: typed, shaped byte ranges of the files of an image.
//!
//! A [`Tensors`] is one flat set of names, over one file with tensors or over the shards of a checkpoint. Behind it
//! is either the index that the packer wrote, read in place, or the headers, parsed once per file. A [`Tensor`] is a
//! description and a file; its bytes are never copied. [`ContainerKind`] says which formats of files are read.

#![forbid(unsafe_code)]

mod cache;
pub mod checkpoint;
mod container;
mod dequantize;
mod dtype;
pub(crate) mod error;
mod header;
pub mod index;
mod json;
mod leftover;
mod listing;
mod metadata;
mod names;
mod paths;
mod select;
mod set;
mod shards;
mod theirs;
mod typed;

use std::fmt;
use std::sync::Arc;

pub(crate) use cache::{Place, TensorCache};
pub(crate) use container::read_exact;
pub use container::{ContainerKind, HeaderSource, safetensors};
pub use dtype::{Block, Dtype};
pub use error::TensorError;
pub use header::Header;
pub(crate) use index::load_index;
pub use index::{Groups, Index, IndexedCheckpoint, IndexedFile};
pub use leftover::is_leftover;
pub use listing::{Names, NamesIter};
pub use metadata::{List, Value};
pub(crate) use select::usable_index;
pub(crate) use select::{default_tensors, tensors_at, tensors_of_file};
pub use select::{is_checkpoint, listed_kind, shard_sets};
pub use set::Tensors;
pub use typed::Rows;

use crate::{File, Result, SharedBytes};

/// Strides of a packed array in C order, in elements. Empty dimensions count as 1, as in torch. `None` if a stride does
/// not fit 64 bits.
pub fn strides(shape: &[u64]) -> Option<Vec<u64>> {
    let mut strides = vec![1; shape.len()];
    let mut step = 1_u64;
    for (stride, &dim) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        step = step.checked_mul(dim.max(1))?;
    }
    Some(strides)
}

/// What a header or the index says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, the last one varies fastest; empty for a scalar.
    pub shape: Vec<u64>,
    /// First byte of the data, from the start of the file.
    pub offset: u64,
    /// Bytes of data: elements times bits, divided by 8; whole blocks of quantised types.
    pub size: u64,
}

/// A tensor in an image: packed, in C order, little-endian, as it lies in its file.
///
/// It holds the image, so the memory stays mapped while it lives. Cloning is cheap.
#[derive(Clone)]
pub struct Tensor {
    info: Arc<TensorInfo>,
    file: File,
}

impl Tensor {
    /// The largest alignment that [`Tensor::alignment`] reports.
    pub const MAX_ALIGNMENT: u64 = 2 << 20;

    /// Binds a description to a file, inside which it must lie.
    pub(crate) fn new(info: Arc<TensorInfo>, file: File) -> Result<Self> {
        let end = info.offset.checked_add(info.size);
        if end.is_none_or(|end| end > file.len()) {
            let fault = TensorError::OutsideFile {
                tensor: info.name.clone(),
                begin: info.offset,
                end: end.unwrap_or(u64::MAX),
                file_len: file.len(),
            };
            return Err(fault.in_file(&file.path()).into());
        }
        Ok(Self { info, file })
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.info.dtype
    }

    /// Dimensions in elements, the last one varies fastest; empty for a scalar.
    pub fn shape(&self) -> &[u64] {
        &self.info.shape
    }

    /// Number of elements: the product of the dimensions, 1 for a scalar.
    pub fn elements(&self) -> u64 {
        // No overflow: header and index are refused when this product times the bits exceeds 64 bits.
        self.info.shape.iter().product()
    }

    /// Bytes of data. Sub-byte types are packed; quantised types are blocks ([`Dtype::block`]).
    pub fn nbytes(&self) -> u64 {
        self.info.size
    }

    /// First byte of the data, from the start of the file.
    pub fn offset(&self) -> u64 {
        self.info.offset
    }

    /// The file that holds it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The data as a bounded view, without a copy.
    ///
    /// # Errors
    /// As for [`File::bytes`].
    pub fn bytes(&self) -> Result<SharedBytes<'_>> {
        self.file.range(self.offset(), self.nbytes())
    }

    /// [`Tensor::bytes`] of which nothing is compared.
    pub(crate) fn bytes_unchecked(&self) -> Result<SharedBytes<'_>> {
        Ok(self.file.bytes_unchecked()?.get(self.offset(), self.nbytes())?)
    }

    /// The data as a slice, without a copy.
    ///
    /// # Errors
    /// As for [`File::as_slice`]: only memory that nobody can write is handed out like this.
    pub fn as_slice(&self) -> Result<&[u8]> {
        self.file.range_as_slice(self.offset(), self.nbytes())
    }

    /// The largest power of two, at most [`Tensor::MAX_ALIGNMENT`], that divides both the address that the region is
    /// mapped at and the offset of the data in it: the address of [`Tensor::bytes`] is a multiple of it.
    ///
    /// The address is new with each mapping. A mapping begins on a page of the machine, or the offset of a
    /// [`Part`](crate::Part) behind one, and the bytes of [`Region::from_bytes`](crate::Region::from_bytes) on a multiple
    /// of 4096: up to that the value is the same in all processes, beyond it may differ. 1 for files in pieces, which
    /// have no one address.
    pub fn alignment(&self) -> u64 {
        let Some(extent) = self.file.extent() else { return 1 };
        let offset = extent.offset.saturating_add(self.offset());
        let start = self.file.region().view().as_ptr().addr() as u64;
        1 << (start | offset | Self::MAX_ALIGNMENT).trailing_zeros()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor")
            .field("name", &self.name())
            .field("dtype", &self.dtype())
            .field("shape", &self.shape())
            .field("offset", &self.offset())
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod indexed_tests;
#[cfg(test)]
mod listing_tests;
#[cfg(test)]
pub(crate) mod test_image;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod typed_tests;
