//! Arithmetic of parts: a range of one dimension of a tensor as runs of bytes.

#![forbid(unsafe_code)]

use std::ops::Range;

use daxfs::Tensor;
use daxfs::tensor::strides;

/// A range of one dimension of a tensor: `count` runs of `run` bytes, each `step` bytes behind the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// First byte, from the start of the tensor.
    pub(super) start: u64,
    /// Bytes of a run; 0 for a part without elements.
    pub(super) run: u64,
    /// Runs: one where the part is contiguous.
    pub(super) count: u64,
    /// Bytes from the start of a run to that of the next; 0 for one run.
    pub(super) step: u64,
    /// Dimensions of the part.
    pub(super) shape: Vec<u64>,
    /// Elements from one index of a dimension to the next: those of the whole tensor.
    pub(super) strides: Vec<u64>,
}

impl Part {
    /// The part `range` of dimension `dim`; the reason where there is none.
    pub(super) fn of(tensor: &Tensor, dim: usize, range: &Range<u64>) -> Result<Self, &'static str> {
        let mut shape = tensor.shape().to_vec();
        let whole = match shape.get_mut(dim) {
            Some(size) if range.start <= range.end && range.end <= *size => {
                std::mem::replace(size, range.end - range.start)
            }
            Some(_) => return Err("it is not within that dimension"),
            None => return Err("there is no such dimension"),
        };
        let strides = strides(tensor.shape()).ok_or("its dimensions do not fit 64 bits")?;
        if shape.contains(&0) {
            return Ok(Self { start: 0, run: 0, count: 1, step: 0, shape, strides });
        }
        // In 128 bits: a tensor has less than 2^64 bytes.
        let elements = |index: u64| u128::from(index) * u128::from(strides[dim]);
        let outer: u64 = shape[..dim].iter().product();
        // Runs without gaps between them are one.
        let (run, count, step) = match shape[dim] == whole || outer == 1 {
            true => (elements(shape[dim]) * u128::from(outer), 1, 0),
            false => (elements(shape[dim]), outer, elements(whole)),
        };
        let bytes = |elements: u128| tensor.dtype().bytes_of(elements);
        match (bytes(elements(range.start)), bytes(run), bytes(step)) {
            (Some(start), Some(run), Some(step)) => Ok(Self { start, run, count, step, shape, strides }),
            _ if tensor.dtype().is_quantized() => Err("it begins or ends inside a block"),
            _ => Err("it begins or ends inside a byte"),
        }
    }

    /// Bytes from the first one to the last one, with what lies between.
    pub(super) fn reach(&self) -> u64 {
        // No overflow: the part is within the tensor.
        (self.count - 1) * self.step + self.run
    }
}
