//! Quantised tensors as `f32`: the values that the blocks of GGUF stand for.
//!
//! A type that can be read has a row in [`decoder`]; the others are refused by name. What a block means is in the
//! files of this folder, which know nothing of tensors.

mod k_quants;
mod legacy;
mod ternary;

use std::num::NonZero;
use std::thread;

use zerocopy::IntoBytes;

use super::{Dtype, Tensor, TensorError};
use crate::{Result, SharedBytes, SharedBytesMut};

/// Values of one block: `bytes` are those of the block, `out` has its elements.
type Decode = fn(bytes: &[u8], out: &mut [f32]);

/// Elements that are worked on at a time: a multiple of every block, and little enough to stay in the cache.
const STEP: usize = 8 << 10;
/// Elements for which another thread is worth its start.
const PER_THREAD: u64 = 512 << 10;
const VALUE: u64 = size_of::<f32>() as u64;

/// How blocks of a type are read.
fn decoder(dtype: Dtype) -> Option<Decode> {
    Some(match dtype {
        Dtype::F32 => legacy::f32,
        Dtype::F16 => legacy::f16,
        Dtype::BF16 => legacy::bf16,
        Dtype::Q4_0 => legacy::q4_0,
        Dtype::Q4_1 => legacy::q4_1,
        Dtype::Q5_0 => legacy::q5_0,
        Dtype::Q5_1 => legacy::q5_1,
        Dtype::Q8_0 => legacy::q8_0,
        Dtype::IQ4_NL => legacy::iq4_nl,
        Dtype::IQ4_XS => legacy::iq4_xs,
        Dtype::MXFP4 => legacy::mxfp4,
        Dtype::Q2_K => k_quants::q2_k,
        Dtype::Q3_K => k_quants::q3_k,
        Dtype::Q4_K => k_quants::q4_k,
        Dtype::Q5_K => k_quants::q5_k,
        Dtype::Q6_K => k_quants::q6_k,
        Dtype::TQ1_0 => ternary::tq1_0,
        Dtype::TQ2_0 => ternary::tq2_0,
        _ => return None,
    })
}

impl Dtype {
    /// Whether [`Tensor::dequantize`] reads this type.
    pub fn can_dequantize(self) -> bool {
        decoder(self).is_some()
    }
}

impl Tensor {
    /// The elements as `f32`, in C order: of F32, F16 and BF16, and of the types of GGUF but for those that
    /// [`Dtype::can_dequantize`] is false of. A copy, made by several threads where it is large.
    ///
    /// # Errors
    /// [`TensorError::NotDequantizable`], and as for [`Tensor::bytes`].
    pub fn dequantize(&self) -> Result<Vec<f32>> {
        let decode = self.decode()?;
        let no_memory = || dmabuf::Error::Invalid {
            what: format!("a copy of {} elements", self.elements()),
            why: "there is not enough memory".into(),
        };
        let len = usize::try_from(self.elements()).map_err(|_| no_memory())?;
        let mut values = Vec::new();
        values.try_reserve_exact(len).map_err(|_| no_memory())?;
        values.resize(len, 0.0f32);
        self.dequantize_by(decode, SharedBytesMut::from_slice(values.as_mut_slice().as_mut_bytes()))?;
        Ok(values)
    }

    /// [`Tensor::dequantize`] into memory of the caller's: 4 bytes for each element, in the byte order of the machine.
    ///
    /// # Errors
    /// As for [`Tensor::dequantize`], and [`TensorError::WrongLength`] for memory of another length.
    pub fn dequantize_to(&self, out: SharedBytesMut<'_>) -> Result<()> {
        let decode = self.decode()?;
        let wanted = self.elements().saturating_mul(VALUE);
        if out.len() as u64 != wanted {
            let (tensor, got) = (self.name().into(), out.len() as u64);
            return Err(self.fault(TensorError::WrongLength { tensor, got, wanted }));
        }
        self.dequantize_by(decode, out)
    }

    fn decode(&self) -> Result<Decode> {
        decoder(self.dtype()).ok_or_else(|| {
            self.fault(TensorError::NotDequantizable {
                tensor: self.name().into(),
                dtype: self.dtype(),
                shape: self.shape().to_vec(),
            })
        })
    }

    fn dequantize_by(&self, decode: Decode, out: SharedBytesMut<'_>) -> Result<()> {
        let work = Work { dtype: self.dtype(), decode };
        let (bytes, elements) = (self.bytes()?, self.elements());
        let processors = thread::available_parallelism().map_or(1, NonZero::get) as u64;
        let threads = (elements / PER_THREAD).clamp(1, processors);
        // Parts are whole steps, so that none begins within a block.
        let part = elements.div_ceil(threads).next_multiple_of(STEP as u64);
        thread::scope(|scope| {
            let (mut left, mut first) = (out, 0u64);
            let mut running = Vec::new();
            while first.saturating_add(part) < elements {
                let mid = usize::try_from(part * VALUE).unwrap_or(usize::MAX);
                let (mine, rest) = left.split_at(mid)?;
                let bytes = work.part(bytes, first, part)?;
                running.push(scope.spawn(move || work.run(bytes, mine)));
                (left, first) = (rest, first + part);
            }
            let last = work.run(work.part(bytes, first, elements - first)?, left);
            let joined = running.into_iter().map(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.chain([last]).collect()
        })
    }
}

/// What one thread does.
#[derive(Clone, Copy)]
struct Work {
    dtype: Dtype,
    decode: Decode,
}

impl Work {
    /// Bytes of the elements from `first` on, both whole blocks.
    fn part(self, bytes: SharedBytes<'_>, first: u64, elements: u64) -> Result<SharedBytes<'_>> {
        let block = self.dtype.block();
        let bytes_of = |elements: u64| elements / u64::from(block.elements) * u64::from(block.bytes);
        Ok(bytes.get(bytes_of(first), bytes_of(elements))?)
    }

    fn run(self, bytes: SharedBytes<'_>, mut out: SharedBytesMut<'_>) -> Result<()> {
        let block = self.dtype.block();
        let (per_block, size) = (block.elements as usize, block.bytes as usize);
        let mut values = [0.0f32; STEP];
        let mut blocks = vec![0; STEP / per_block * size];
        let mut at = 0;
        while at < bytes.len() {
            let len = blocks.len().min(bytes.len() - at);
            let copied = &mut blocks[..len];
            bytes.read_at(at as u64, copied)?;
            let count = len / size * per_block;
            for (block, values) in copied.chunks_exact(size).zip(values.chunks_exact_mut(per_block)) {
                (self.decode)(block, values);
            }
            let offset = (at / size * per_block) as u64 * VALUE;
            out.copy_from(offset, values[..count].as_bytes())?;
            at += len;
        }
        Ok(())
    }
}

/// Half precision to single precision, exactly.
fn half(bytes: [u8; 2]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    let (sign, exponent, fraction) = ((bits & 0x8000) << 16, bits >> 10 & 0x1f, bits & 0x3ff);
    let magnitude = match exponent {
        // 2^-24 for each unit of the fraction.
        0 => fraction as f32 * f32::from_bits(0x3380_0000),
        31 => f32::from_bits(0x7f80_0000 | fraction << 13),
        _ => f32::from_bits((exponent + 112) << 23 | fraction << 13),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

/// Half precision at a position of a block.
fn half_at(block: &[u8], at: usize) -> f32 {
    half([block[at], block[at + 1]])
}

#[cfg(test)]
mod tests;
