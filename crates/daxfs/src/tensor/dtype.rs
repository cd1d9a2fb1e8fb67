//! Element types: those of safetensors 0.8, with codes that never change, and the quantised types of GGUF.
//!
//! Every type packs elements in blocks: one element of `F32` in 4 bytes, two of `F4` in one byte, 256 of `Q4_K` in 144
//! bytes. [`TYPES`] has one row for each.

use std::fmt;

use super::TensorError;

/// Element type of a tensor, named as in safetensors; the quantised types of GGUF are named as there.
///
/// New types may be added; the codes of existing ones never change.
#[allow(non_camel_case_types, reason = "the names that safetensors files, its Rust crate and GGUF use")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u16)]
pub enum Dtype {
    /// Boolean, one byte.
    BOOL = 1,
    /// OCP MX FP4 (e2m1), two to a byte, the first in the low bits.
    F4 = 2,
    /// OCP MX FP6 (e2m3), four to three bytes.
    F6_E2M3 = 3,
    /// OCP MX FP6 (e3m2), four to three bytes.
    F6_E3M2 = 4,
    /// Unsigned, 8 bits.
    U8 = 5,
    /// Signed, 8 bits.
    I8 = 6,
    /// FP8 e5m2 (arXiv 2209.05433).
    F8_E5M2 = 7,
    /// FP8 e4m3 without infinities (arXiv 2209.05433); `float8_e4m3fn` elsewhere.
    F8_E4M3 = 8,
    /// OCP MX scale: eight bits of exponent; `float8_e8m0fnu` elsewhere.
    F8_E8M0 = 9,
    /// FP8 e4m3 without infinities and negative zero (arXiv 2206.02915).
    F8_E4M3FNUZ = 10,
    /// FP8 e5m2 without infinities and negative zero (arXiv 2206.02915).
    F8_E5M2FNUZ = 11,
    /// Signed, 16 bits.
    I16 = 12,
    /// Unsigned, 16 bits.
    U16 = 13,
    /// IEEE half precision.
    F16 = 14,
    /// bfloat16.
    BF16 = 15,
    /// Signed, 32 bits.
    I32 = 16,
    /// Unsigned, 32 bits.
    U32 = 17,
    /// IEEE single precision.
    F32 = 18,
    /// Complex of two IEEE singles.
    C64 = 19,
    /// IEEE double precision.
    F64 = 20,
    /// Signed, 64 bits.
    I64 = 21,
    /// Unsigned, 64 bits.
    U64 = 22,
    /// GGUF: 4 bits, one scale.
    Q4_0 = 23,
    /// GGUF: 4 bits, a scale and a minimum.
    Q4_1 = 24,
    /// GGUF: 5 bits, one scale.
    Q5_0 = 25,
    /// GGUF: 5 bits, a scale and a minimum.
    Q5_1 = 26,
    /// GGUF: 8 bits, one scale.
    Q8_0 = 27,
    /// GGUF: 8 bits, a scale and a sum.
    Q8_1 = 28,
    /// GGUF: 2 bits, scales and minimums of 16 elements each.
    Q2_K = 29,
    /// GGUF: 3 bits, scales of 16 elements each.
    Q3_K = 30,
    /// GGUF: 4 bits, scales and minimums of 32 elements each.
    Q4_K = 31,
    /// GGUF: 5 bits, scales and minimums of 32 elements each.
    Q5_K = 32,
    /// GGUF: 6 bits, scales of 16 elements each.
    Q6_K = 33,
    /// GGUF: 8 bits, one scale and sums.
    Q8_K = 34,
    /// GGUF: 2.0625 bits, from a lattice.
    IQ2_XXS = 35,
    /// GGUF: 2.3125 bits, from a lattice.
    IQ2_XS = 36,
    /// GGUF: 3.0625 bits, from a lattice.
    IQ3_XXS = 37,
    /// GGUF: 1.5625 bits, from a lattice.
    IQ1_S = 38,
    /// GGUF: 4 bits, values from a table.
    IQ4_NL = 39,
    /// GGUF: 3.4375 bits, from a lattice.
    IQ3_S = 40,
    /// GGUF: 2.5625 bits, from a lattice.
    IQ2_S = 41,
    /// GGUF: 4 bits, values from a table, scales of 32 elements each.
    IQ4_XS = 42,
    /// GGUF: 1.75 bits, from a lattice.
    IQ1_M = 43,
    /// GGUF: ternary, five to a byte.
    TQ1_0 = 44,
    /// GGUF: ternary, four to a byte.
    TQ2_0 = 45,
    /// GGUF: OCP MX: e2m1 with one e8m0 scale.
    MXFP4 = 46,
    /// GGUF: e2m1 with a scale of 16 elements each.
    NVFP4 = 47,
    /// GGUF: 1 bit, one scale.
    Q1_0 = 48,
    /// GGUF: 2 bits, one scale.
    Q2_0 = 49,
}

/// How a type packs its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Block {
    /// Elements of a block: 1 for types of whole bytes.
    pub elements: u32,
    /// Bytes of a block.
    pub bytes: u32,
}

/// Why a tensor has no size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SizeFault {
    Overflow,
    PartialByte,
    PartialBlock,
}

/// The last type that has a code of its own in the index.
const LAST_CODE: u16 = Dtype::U64 as u16;

/// All types in the order of their numbers: name, elements of a block, bytes of a block.
const TYPES: [(Dtype, &str, u32, u32); 49] = [
    (Dtype::BOOL, "BOOL", 1, 1),
    (Dtype::F4, "F4", 2, 1),
    (Dtype::F6_E2M3, "F6_E2M3", 4, 3),
    (Dtype::F6_E3M2, "F6_E3M2", 4, 3),
    (Dtype::U8, "U8", 1, 1),
    (Dtype::I8, "I8", 1, 1),
    (Dtype::F8_E5M2, "F8_E5M2", 1, 1),
    (Dtype::F8_E4M3, "F8_E4M3", 1, 1),
    (Dtype::F8_E8M0, "F8_E8M0", 1, 1),
    (Dtype::F8_E4M3FNUZ, "F8_E4M3FNUZ", 1, 1),
    (Dtype::F8_E5M2FNUZ, "F8_E5M2FNUZ", 1, 1),
    (Dtype::I16, "I16", 1, 2),
    (Dtype::U16, "U16", 1, 2),
    (Dtype::F16, "F16", 1, 2),
    (Dtype::BF16, "BF16", 1, 2),
    (Dtype::I32, "I32", 1, 4),
    (Dtype::U32, "U32", 1, 4),
    (Dtype::F32, "F32", 1, 4),
    (Dtype::C64, "C64", 1, 8),
    (Dtype::F64, "F64", 1, 8),
    (Dtype::I64, "I64", 1, 8),
    (Dtype::U64, "U64", 1, 8),
    (Dtype::Q4_0, "Q4_0", 32, 18),
    (Dtype::Q4_1, "Q4_1", 32, 20),
    (Dtype::Q5_0, "Q5_0", 32, 22),
    (Dtype::Q5_1, "Q5_1", 32, 24),
    (Dtype::Q8_0, "Q8_0", 32, 34),
    (Dtype::Q8_1, "Q8_1", 32, 40),
    (Dtype::Q2_K, "Q2_K", 256, 84),
    (Dtype::Q3_K, "Q3_K", 256, 110),
    (Dtype::Q4_K, "Q4_K", 256, 144),
    (Dtype::Q5_K, "Q5_K", 256, 176),
    (Dtype::Q6_K, "Q6_K", 256, 210),
    (Dtype::Q8_K, "Q8_K", 256, 292),
    (Dtype::IQ2_XXS, "IQ2_XXS", 256, 66),
    (Dtype::IQ2_XS, "IQ2_XS", 256, 74),
    (Dtype::IQ3_XXS, "IQ3_XXS", 256, 98),
    (Dtype::IQ1_S, "IQ1_S", 256, 50),
    (Dtype::IQ4_NL, "IQ4_NL", 32, 18),
    (Dtype::IQ3_S, "IQ3_S", 256, 110),
    (Dtype::IQ2_S, "IQ2_S", 256, 82),
    (Dtype::IQ4_XS, "IQ4_XS", 256, 136),
    (Dtype::IQ1_M, "IQ1_M", 256, 56),
    (Dtype::TQ1_0, "TQ1_0", 256, 54),
    (Dtype::TQ2_0, "TQ2_0", 256, 66),
    (Dtype::MXFP4, "MXFP4", 32, 17),
    (Dtype::NVFP4, "NVFP4", 64, 36),
    (Dtype::Q1_0, "Q1_0", 128, 18),
    (Dtype::Q2_0, "Q2_0", 64, 18),
];

impl Dtype {
    /// All types, in the order of their numbers.
    pub const ALL: [Self; TYPES.len()] = {
        let mut all = [Self::BOOL; TYPES.len()];
        let mut at = 0;
        while at < all.len() {
            all[at] = TYPES[at].0;
            at += 1;
        }
        all
    };

    /// The row of the type.
    const fn row(self) -> (Self, &'static str, u32, u32) {
        TYPES[self as usize - 1]
    }

    /// Position in [`Dtype::ALL`], for tables of what belongs to a type.
    pub const fn ordinal(self) -> usize {
        self as usize - 1
    }

    /// How elements are packed. A packed tensor is a whole number of blocks.
    pub const fn block(self) -> Block {
        let (_, _, elements, bytes) = self.row();
        Block { elements, bytes }
    }

    /// True for the types of GGUF that hold integers and scales in place of the elements: their blocks mean something
    /// only as a whole, and the last dimension of a tensor is a multiple of [`Block::elements`].
    pub const fn is_quantized(self) -> bool {
        self as u16 > LAST_CODE
    }

    /// Bits of one element: 4, 6, 8, 16, 32 or 64. `None` for quantised types, whose elements have no bits of their
    /// own.
    pub const fn bits(self) -> Option<usize> {
        let Block { elements, bytes } = self.block();
        if self.is_quantized() { None } else { Some(bytes as usize * 8 / elements as usize) }
    }

    /// Bytes of so many elements that follow each other. `None` where they are not whole blocks, or 64 bits do not
    /// count them.
    pub fn bytes_of(self, elements: u128) -> Option<u64> {
        let Block { elements: per_block, bytes } = self.block();
        let blocks = elements.is_multiple_of(per_block.into()).then(|| elements / u128::from(per_block))?;
        u64::try_from(blocks.checked_mul(bytes.into())?).ok()
    }

    /// Code in the index file, 1 to 22. `None` for quantised types, which the index describes by name and block.
    pub const fn code(self) -> Option<u16> {
        if self.is_quantized() { None } else { Some(self as u16) }
    }

    /// The type with this code in the index file.
    pub fn from_code(code: u16) -> Option<Self> {
        let dtype = Self::ALL.get(usize::from(code).checked_sub(1)?).copied()?;
        (!dtype.is_quantized()).then_some(dtype)
    }

    /// Name in a safetensors header, for example `"BF16"`, or in GGUF, for example `"Q4_K"`.
    pub const fn name(self) -> &'static str {
        self.row().1
    }

    /// The type with this name, spelled exactly as [`Dtype::name`] gives it.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes of a packed tensor of this shape; the product is formed in the order of the dimensions, as the
    /// safetensors crate does, so that both refuse the same overflows.
    pub(crate) fn size_of(self, shape: &[u64]) -> Result<u64, SizeFault> {
        let Block { elements: per_block, bytes } = self.block();
        let (per_block, bytes) = (u64::from(per_block), u64::from(bytes));
        let elements = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
        let elements = elements.ok_or(SizeFault::Overflow)?;
        if self.is_quantized() {
            return match shape.last() {
                Some(last) if last % per_block == 0 => {
                    (elements / per_block).checked_mul(bytes).ok_or(SizeFault::Overflow)
                }
                _ => Err(SizeFault::PartialBlock),
            };
        }
        // 8, 4, 3 and fewer bits for each of a block's elements: all are whole.
        let bits = elements.checked_mul(bytes * 8 / per_block).ok_or(SizeFault::Overflow)?;
        if bits % 8 == 0 { Ok(bits / 8) } else { Err(SizeFault::PartialByte) }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl TryFrom<::safetensors::Dtype> for Dtype {
    type Error = TensorError;

    /// Fails with [`TensorError::UnknownDtype`] for types that the crate gained after this library was written.
    fn try_from(dtype: ::safetensors::Dtype) -> Result<Self, TensorError> {
        use ::safetensors::Dtype as Theirs;
        Ok(match dtype {
            Theirs::BOOL => Self::BOOL,
            Theirs::F4 => Self::F4,
            Theirs::F6_E2M3 => Self::F6_E2M3,
            Theirs::F6_E3M2 => Self::F6_E3M2,
            Theirs::U8 => Self::U8,
            Theirs::I8 => Self::I8,
            Theirs::F8_E5M2 => Self::F8_E5M2,
            Theirs::F8_E4M3 => Self::F8_E4M3,
            Theirs::F8_E8M0 => Self::F8_E8M0,
            Theirs::F8_E4M3FNUZ => Self::F8_E4M3FNUZ,
            Theirs::F8_E5M2FNUZ => Self::F8_E5M2FNUZ,
            Theirs::I16 => Self::I16,
            Theirs::U16 => Self::U16,
            Theirs::F16 => Self::F16,
            Theirs::BF16 => Self::BF16,
            Theirs::I32 => Self::I32,
            Theirs::U32 => Self::U32,
            Theirs::F32 => Self::F32,
            Theirs::C64 => Self::C64,
            Theirs::F64 => Self::F64,
            Theirs::I64 => Self::I64,
            Theirs::U64 => Self::U64,
            newer => return Err(TensorError::UnknownDtype { name: newer.to_string() }),
        })
    }
}

impl TryFrom<Dtype> for ::safetensors::Dtype {
    type Error = TensorError;

    /// Fails with [`TensorError::UnknownDtype`] for the quantised types of GGUF.
    fn try_from(dtype: Dtype) -> Result<Self, TensorError> {
        Ok(match dtype {
            Dtype::BOOL => Self::BOOL,
            Dtype::F4 => Self::F4,
            Dtype::F6_E2M3 => Self::F6_E2M3,
            Dtype::F6_E3M2 => Self::F6_E3M2,
            Dtype::U8 => Self::U8,
            Dtype::I8 => Self::I8,
            Dtype::F8_E5M2 => Self::F8_E5M2,
            Dtype::F8_E4M3 => Self::F8_E4M3,
            Dtype::F8_E8M0 => Self::F8_E8M0,
            Dtype::F8_E4M3FNUZ => Self::F8_E4M3FNUZ,
            Dtype::F8_E5M2FNUZ => Self::F8_E5M2FNUZ,
            Dtype::I16 => Self::I16,
            Dtype::U16 => Self::U16,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
            Dtype::I32 => Self::I32,
            Dtype::U32 => Self::U32,
            Dtype::F32 => Self::F32,
            Dtype::C64 => Self::C64,
            Dtype::F64 => Self::F64,
            Dtype::I64 => Self::I64,
            Dtype::U64 => Self::U64,
            quantised => return Err(TensorError::UnknownDtype { name: quantised.name().into() }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_index_format() {
        let plain: Vec<_> = Dtype::ALL.into_iter().filter(|dtype| !dtype.is_quantized()).collect();
        let names: Vec<_> = plain.iter().map(|dtype| dtype.name()).collect();
        assert_eq!(
            names.join(" "),
            "BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ I16 U16 F16 BF16 \
             I32 U32 F32 C64 F64 I64 U64"
        );
        for (code, dtype) in (1..).zip(plain) {
            assert_eq!(dtype.code(), Some(code));
            assert_eq!(Dtype::from_code(code), Some(dtype));
        }
        for (at, dtype) in Dtype::ALL.into_iter().enumerate() {
            assert_eq!((dtype as usize, dtype.ordinal()), (at + 1, at), "{dtype}: a row in its place");
            assert_eq!(Dtype::parse(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_code(0), None);
        assert_eq!(Dtype::from_code(23), None);
        assert_eq!(Dtype::parse("bf16"), None);
    }

    /// The crate's enum is `non_exhaustive` and has no list of its variants, but serde names them all in its
    /// error. A type that the crate gains, loses or redefines fails here.
    #[test]
    fn the_same_types_and_sizes_as_the_safetensors_crate() {
        let listed = serde_json::from_str::<::safetensors::Dtype>("\"?\"").unwrap_err().to_string();
        let theirs: Vec<_> = listed.split('`').skip(3).step_by(2).collect();
        let plain = Dtype::ALL.into_iter().filter(|dtype| !dtype.is_quantized()).map(Dtype::name);
        assert_eq!(theirs, plain.collect::<Vec<_>>(), "{listed}");
        for name in theirs {
            let their: ::safetensors::Dtype = serde_json::from_str(&format!("\"{name}\"")).unwrap();
            let ours = Dtype::try_from(their).unwrap();
            assert_eq!(ours.name(), name);
            assert_eq!(ours.bits(), Some(their.bitsize()), "{name}");
            assert_eq!(::safetensors::Dtype::try_from(ours).unwrap(), their);
        }
        assert!(::safetensors::Dtype::try_from(Dtype::Q4_K).is_err());
    }

    #[test]
    fn sizes_overflow_and_partial_bytes() {
        assert_eq!(Dtype::F32.size_of(&[2, 3]), Ok(24));
        assert_eq!(Dtype::F32.size_of(&[]), Ok(4));
        assert_eq!(Dtype::F4.size_of(&[2, 3]), Ok(3));
        assert_eq!(Dtype::F4.size_of(&[3]), Err(SizeFault::PartialByte));
        assert_eq!(Dtype::F6_E2M3.size_of(&[4]), Ok(3));
        assert_eq!(Dtype::U8.size_of(&[0, u64::MAX]), Ok(0));
        assert_eq!(Dtype::U8.size_of(&[u64::MAX, 2, 0]), Err(SizeFault::Overflow));
        assert_eq!(Dtype::F64.size_of(&[1 << 58]), Err(SizeFault::Overflow));
    }

    #[test]
    fn quantised_types_are_whole_blocks_of_the_last_dimension() {
        assert_eq!(Dtype::Q4_K.size_of(&[3, 512]), Ok(3 * 2 * 144));
        assert_eq!(Dtype::Q4_K.size_of(&[512, 3]), Err(SizeFault::PartialBlock));
        assert_eq!(Dtype::Q8_0.size_of(&[]), Err(SizeFault::PartialBlock));
        assert_eq!(Dtype::Q8_0.size_of(&[0, 32]), Ok(0));
        assert_eq!(Dtype::Q8_0.size_of(&[1 << 59, 32]), Err(SizeFault::Overflow));
        assert_eq!(Dtype::Q8_K.size_of(&[1 << 54, 256]), Ok(292 << 54));
    }
}
