//! Element types as the buffer protocol, numpy and ml_dtypes name them.

use std::ffi::CStr;

use daxfs::Dtype;

/// How Python can name a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// numpy and module `struct` have it.
    Native {
        /// Argument of `numpy.dtype`; little-endian, as safetensors is.
        numpy: &'static str,
        /// Format of the buffer protocol, as numpy writes it too.
        format: &'static CStr,
    },
    /// Only ml_dtypes has it, under this name; the buffer protocol has no format for it.
    Extension(&'static str),
    /// Two elements a byte.
    Nibbles,
    /// Nothing in Python holds it packed: shown as bytes.
    Bytes,
    /// Quantised: blocks, which are no elements.
    Blocks,
}

/// The names of a type.
pub const fn element(dtype: Dtype) -> Element {
    const fn native(numpy: &'static str, format: &'static CStr) -> Element {
        Element::Native { numpy, format }
    }
    match dtype {
        Dtype::BOOL => native("?", c"?"),
        Dtype::U8 => native("u1", c"B"),
        Dtype::I8 => native("i1", c"b"),
        Dtype::U16 => native("<u2", c"H"),
        Dtype::I16 => native("<i2", c"h"),
        Dtype::F16 => native("<f2", c"e"),
        Dtype::U32 => native("<u4", c"I"),
        Dtype::I32 => native("<i4", c"i"),
        Dtype::F32 => native("<f4", c"f"),
        // `l` and `L` have 8 bytes only on some machines, `q` and `Q` on all.
        Dtype::U64 => native("<u8", c"Q"),
        Dtype::I64 => native("<i8", c"q"),
        Dtype::F64 => native("<f8", c"d"),
        Dtype::C64 => native("<c8", c"Zf"),
        Dtype::BF16 => Element::Extension("bfloat16"),
        Dtype::F8_E4M3 => Element::Extension("float8_e4m3fn"),
        Dtype::F8_E5M2 => Element::Extension("float8_e5m2"),
        Dtype::F8_E8M0 => Element::Extension("float8_e8m0fnu"),
        Dtype::F8_E4M3FNUZ => Element::Extension("float8_e4m3fnuz"),
        Dtype::F8_E5M2FNUZ => Element::Extension("float8_e5m2fnuz"),
        Dtype::F4 => Element::Nibbles,
        dtype if dtype.is_quantized() => Element::Blocks,
        // F6_E2M3 and F6_E3M2: four elements in three bytes.
        _ => Element::Bytes,
    }
}

/// numpy's name of the type of the array that a tensor becomes, and the bytes of an item.
pub const fn array_type(dtype: Dtype) -> (&'static str, usize) {
    match dtype {
        Dtype::BOOL => ("bool", 1),
        Dtype::I8 => ("int8", 1),
        Dtype::U16 => ("uint16", 2),
        Dtype::I16 => ("int16", 2),
        Dtype::F16 => ("float16", 2),
        Dtype::U32 => ("uint32", 4),
        Dtype::I32 => ("int32", 4),
        Dtype::F32 => ("float32", 4),
        Dtype::U64 => ("uint64", 8),
        Dtype::I64 => ("int64", 8),
        Dtype::F64 => ("float64", 8),
        Dtype::C64 => ("complex64", 8),
        _ => match element(dtype) {
            Element::Extension(name) => (name, itemsize(dtype)),
            Element::Blocks => (dtype.name(), itemsize(dtype)),
            // U8, and what is shown as bytes.
            _ => ("uint8", 1),
        },
    }
}

/// Bytes of an element of a whole-byte type, or of a block.
const fn itemsize(dtype: Dtype) -> usize {
    dtype.block().bytes as usize
}

/// Shape and item size of a tensor's memory as Python sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// Items per dimension.
    pub shape: Vec<u64>,
    /// Bytes of an item.
    pub itemsize: usize,
}

impl Layout {
    /// The layout of a tensor.
    pub fn of(dtype: Dtype, shape: &[u64], nbytes: u64) -> Self {
        match (element(dtype), shape) {
            (Element::Native { .. } | Element::Extension(_), _) => {
                Self { shape: shape.to_vec(), itemsize: itemsize(dtype) }
            }
            // Halving the last dimension is exact only where it is even.
            (Element::Nibbles, [outer @ .., last]) if last % 2 == 0 => {
                Self { shape: [outer, &[last / 2]].concat(), itemsize: 1 }
            }
            (Element::Nibbles | Element::Bytes | Element::Blocks, _) => Self::flat(nbytes),
        }
    }

    /// The blocks of a quantised type: bytes in a dimension of their own.
    pub fn blocks(dtype: Dtype, shape: &[u64]) -> Option<Self> {
        let block = dtype.block();
        match shape {
            [outer @ .., last] if dtype.is_quantized() => {
                let inner = [last / u64::from(block.elements), block.bytes.into()];
                Some(Self { shape: [outer, &inner].concat(), itemsize: 1 })
            }
            _ => None,
        }
    }

    /// Plain bytes.
    pub fn flat(nbytes: u64) -> Self {
        Self { shape: vec![nbytes], itemsize: 1 }
    }
}
