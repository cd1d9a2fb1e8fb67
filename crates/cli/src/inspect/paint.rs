//! Colours of the memory map.

use super::layout::Kind;
use daxfs::Dtype;

/// What a stretch of the map is painted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Paint {
    /// A piece of the image other than tensors.
    Kind(Kind),
    /// Tensors, by the class of their type.
    Tensor(Class),
    /// The header of a file with tensors.
    Header,
    /// Bytes of such a file that no tensor holds: padding of GGUF, fillers that the packer inserted.
    Filler,
}

/// Classes of tensor types that share a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// 64-bit floats and complex numbers.
    Float64,
    /// F32.
    Float32,
    /// BF16.
    BFloat16,
    /// F16.
    Float16,
    /// 8-bit floats.
    Float8,
    /// Floats of less than 8 bits.
    Float4,
    /// Quantised types of GGUF.
    Quantised,
    /// Integers and booleans.
    Integer,
}

impl Class {
    fn of(dtype: Dtype) -> Self {
        let Some(bits) = dtype.bits() else { return Self::Quantised };
        match (dtype.name(), bits) {
            ("BF16", _) => Self::BFloat16,
            (name, _) if name.starts_with(['I', 'U', 'B']) => Self::Integer,
            (_, bits) if bits >= 64 => Self::Float64,
            (_, bits) if bits >= 32 => Self::Float32,
            (_, bits) if bits >= 16 => Self::Float16,
            (_, bits) if bits >= 8 => Self::Float8,
            _ => Self::Float4,
        }
    }
}

impl Paint {
    /// The paint of tensors of this type.
    pub fn of(dtype: Dtype) -> Self {
        Self::Tensor(Class::of(dtype))
    }

    /// The text in the legend.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kind(Kind::Files) => "other files",
            Self::Kind(kind) => kind.name(),
            Self::Tensor(Class::Float64) => "tensors: F64, C64",
            Self::Tensor(Class::Float32) => "tensors: F32",
            Self::Tensor(Class::BFloat16) => "tensors: BF16",
            Self::Tensor(Class::Float16) => "tensors: F16",
            Self::Tensor(Class::Float8) => "tensors: 8-bit floats",
            Self::Tensor(Class::Float4) => "tensors: 4- and 6-bit floats",
            Self::Tensor(Class::Quantised) => "tensors: quantised",
            Self::Tensor(Class::Integer) => "tensors: integers, booleans",
            Self::Header => "headers of tensors",
            Self::Filler => "fillers in files",
        }
    }

    /// Fill colour; `None` for what stays hatched.
    pub fn colour(self) -> Option<&'static str> {
        Some(match self {
            Self::Kind(Kind::Padding | Kind::Behind) => return None,
            Self::Kind(Kind::Superblock) => "#0f172a",
            Self::Kind(Kind::BaseHeader) => "#334155",
            Self::Kind(Kind::InodeTable) => "#be123c",
            Self::Kind(Kind::Directories) => "#f43f5e",
            Self::Kind(Kind::Symlinks) => "#fb7ec0",
            Self::Kind(Kind::Index) => "#7c3aed",
            Self::Kind(Kind::Erofs) => "#c4b5fd",
            Self::Kind(Kind::Files) => "#94a3b8",
            Self::Kind(Kind::Overlay) => "#a16207",
            Self::Kind(Kind::BranchTable) => "#78350f",
            Self::Kind(Kind::DeltaRegion) => "#ca8a04",
            Self::Kind(Kind::PageCache) => "#57534e",
            Self::Kind(Kind::BaseRest) => "#d6d3d1",
            Self::Tensor(Class::Float64) => "#1e3a8a",
            Self::Tensor(Class::Float32) => "#2563eb",
            Self::Tensor(Class::BFloat16) => "#0d9488",
            Self::Tensor(Class::Float16) => "#0ea5e9",
            Self::Tensor(Class::Float8) => "#65a30d",
            Self::Tensor(Class::Float4) => "#bef264",
            Self::Tensor(Class::Quantised) => "#16a34a",
            Self::Tensor(Class::Integer) => "#ea580c",
            Self::Header => "#facc15",
            Self::Filler => "#e5e7eb",
        })
    }

    /// Colour of text on top.
    pub fn ink(self) -> &'static str {
        match self {
            Self::Header
            | Self::Filler
            | Self::Tensor(Class::Float4)
            | Self::Kind(Kind::Padding | Kind::Behind | Kind::BaseRest | Kind::Symlinks) => "#111827",
            _ => "#ffffff",
        }
    }

    /// Metadata is small beside weights, so the map never lets it vanish.
    pub fn is_metadata(self) -> bool {
        matches!(self, Self::Header)
            || matches!(self, Self::Kind(kind) if !matches!(kind, Kind::Files | Kind::Padding | Kind::Behind | Kind::BaseRest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_fall_into_classes() {
        let class = |name: &str| Class::of(Dtype::parse(name).unwrap());
        assert_eq!(class("Q4_K"), Class::Quantised);
        assert_eq!(class("IQ4_NL"), Class::Quantised);
        assert_eq!(class("F64"), Class::Float64);
        assert_eq!(class("C64"), Class::Float64);
        assert_eq!(class("F32"), Class::Float32);
        assert_eq!(class("BF16"), Class::BFloat16);
        assert_eq!(class("F16"), Class::Float16);
        assert_eq!(class("F8_E4M3"), Class::Float8);
        assert_eq!(class("F8_E8M0"), Class::Float8);
        assert_eq!(class("F6_E2M3"), Class::Float4);
        assert_eq!(class("F4"), Class::Float4);
        assert_eq!(class("I8"), Class::Integer);
        assert_eq!(class("U64"), Class::Integer);
        assert_eq!(class("BOOL"), Class::Integer);
    }
}
