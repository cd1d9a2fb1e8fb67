//! Element types: those of safetensors 0.8, with codes that never change.

use std::fmt;

use super::TensorError;

/// Element type of a tensor, named as in safetensors.
///
/// New types may be added; the codes of existing ones never change.
#[allow(non_camel_case_types, reason = "the names that safetensors files and its Rust crate use")]
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
}

/// Why a tensor has no size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SizeFault {
    Overflow,
    PartialByte,
}

impl Dtype {
    /// All types, in the order of their codes.
    pub const ALL: [Self; 22] = [
        Self::BOOL,
        Self::F4,
        Self::F6_E2M3,
        Self::F6_E3M2,
        Self::U8,
        Self::I8,
        Self::F8_E5M2,
        Self::F8_E4M3,
        Self::F8_E8M0,
        Self::F8_E4M3FNUZ,
        Self::F8_E5M2FNUZ,
        Self::I16,
        Self::U16,
        Self::F16,
        Self::BF16,
        Self::I32,
        Self::U32,
        Self::F32,
        Self::C64,
        Self::F64,
        Self::I64,
        Self::U64,
    ];

    /// Bits of one element: 4, 6, 8, 16, 32 or 64.
    pub const fn bits(self) -> usize {
        match self {
            Self::F4 => 4,
            Self::F6_E2M3 | Self::F6_E3M2 => 6,
            Self::BOOL
            | Self::U8
            | Self::I8
            | Self::F8_E5M2
            | Self::F8_E4M3
            | Self::F8_E8M0
            | Self::F8_E4M3FNUZ
            | Self::F8_E5M2FNUZ => 8,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 16,
            Self::I32 | Self::U32 | Self::F32 => 32,
            Self::C64 | Self::F64 | Self::I64 | Self::U64 => 64,
        }
    }

    /// Code in the index file, 1 to 22.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The type with this code in the index file.
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }

    /// Name in a safetensors header, for example `"BF16"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BOOL => "BOOL",
            Self::F4 => "F4",
            Self::F6_E2M3 => "F6_E2M3",
            Self::F6_E3M2 => "F6_E3M2",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8_E5M2 => "F8_E5M2",
            Self::F8_E4M3 => "F8_E4M3",
            Self::F8_E8M0 => "F8_E8M0",
            Self::F8_E4M3FNUZ => "F8_E4M3FNUZ",
            Self::F8_E5M2FNUZ => "F8_E5M2FNUZ",
            Self::I16 => "I16",
            Self::U16 => "U16",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::F32 => "F32",
            Self::C64 => "C64",
            Self::F64 => "F64",
            Self::I64 => "I64",
            Self::U64 => "U64",
        }
    }

    /// The type with this name, spelled exactly as in a safetensors header.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Bytes of a packed tensor of this shape; the product is formed in the order of the dimensions, as the
    /// safetensors crate does, so that both refuse the same overflows.
    pub(crate) fn size_of(self, shape: &[u64]) -> Result<u64, SizeFault> {
        let elements = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
        let bits = elements.and_then(|elements| elements.checked_mul(self.bits() as u64));
        let bits = bits.ok_or(SizeFault::Overflow)?;
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

impl From<Dtype> for ::safetensors::Dtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_index_format() {
        let names: Vec<_> = Dtype::ALL.iter().map(|dtype| dtype.name()).collect();
        assert_eq!(
            names.join(" "),
            "BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ I16 U16 F16 BF16 \
             I32 U32 F32 C64 F64 I64 U64"
        );
        for (code, dtype) in (1..).zip(Dtype::ALL) {
            assert_eq!(dtype.code(), code);
            assert_eq!(Dtype::from_code(code), Some(dtype));
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
        assert_eq!(theirs, Dtype::ALL.map(Dtype::name), "{listed}");
        for name in theirs {
            let their: ::safetensors::Dtype = serde_json::from_str(&format!("\"{name}\"")).unwrap();
            let ours = Dtype::try_from(their).unwrap();
            assert_eq!(ours.name(), name);
            assert_eq!(ours.bits(), their.bitsize(), "{name}");
            assert_eq!(::safetensors::Dtype::from(ours), their);
        }
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
}
