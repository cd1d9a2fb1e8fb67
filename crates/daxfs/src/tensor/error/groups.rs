//! Groups of errors, for programs that act by kind. Every variant is in the list of [`TensorError::is_format`].

use super::TensorError;

impl TensorError {
    /// True when a tensor or shard does not exist, as opposed to being broken.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::InFile { fault, .. } => fault.is_not_found(),
            Self::MissingShard { .. }
            | Self::MissingShards { .. }
            | Self::IncompleteShards { .. }
            | Self::NoVariant { .. }
            | Self::MissingTensor { .. }
            | Self::NoTensor { .. }
            | Self::NoTensors { .. } => true,
            _ => false,
        }
    }

    /// True for a file that cannot be used in place, and may be sound all the same.
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::InFile { fault, .. } => fault.is_unsupported(),
            Self::Unsupported { .. } => true,
            _ => false,
        }
    }

    /// True for a list of shards none of which is there, as whoever fetches one format of a model and all of its small
    /// files leaves behind.
    pub fn lists_nothing(&self) -> bool {
        match self {
            Self::InFile { fault, .. } => fault.lists_nothing(),
            Self::MissingShards { missing, count, .. } => missing.len() == *count,
            _ => false,
        }
    }

    /// True when a file, an index or a checkpoint breaks a rule, one that promises a shard or tensor which is not there
    /// included. False for what was asked of valid ones.
    pub fn is_format(&self) -> bool {
        match self {
            Self::InFile { fault, .. } => fault.is_format(),
            Self::Empty
            | Self::NotOfFormat { .. }
            | Self::Malformed { .. }
            | Self::PartialBlock { .. }
            | Self::TooShort { .. }
            | Self::HeaderTooLong { .. }
            | Self::DocumentTooLong { .. }
            | Self::HeaderOutsideFile { .. }
            | Self::NotText { .. }
            | Self::Json { .. }
            | Self::DuplicateKey { .. }
            | Self::UnknownDtype { .. }
            | Self::Offsets { .. }
            | Self::Overflow { .. }
            | Self::PartialByte { .. }
            | Self::Size { .. }
            | Self::DataEnd { .. }
            | Self::OutsideFile { .. }
            | Self::Index { .. }
            | Self::IndexHash { .. }
            | Self::IndexMismatch { .. }
            | Self::ShardPath { .. }
            | Self::MissingShard { .. }
            | Self::MissingShards { .. }
            | Self::IncompleteShards { .. }
            | Self::TensorInTwoShards { .. }
            | Self::MissingTensor { .. } => true,
            Self::NoTensor { .. }
            | Self::NoTensors { .. }
            | Self::Ambiguous { .. }
            | Self::NoVariant { .. }
            | Self::VariantOfFile { .. }
            | Self::Unsupported { .. }
            | Self::NotExportable { .. }
            | Self::NotDequantizable { .. }
            | Self::WrongLength { .. }
            | Self::WrongRank { .. }
            | Self::WrongType { .. }
            | Self::Misaligned { .. }
            | Self::OutsideRows { .. }
            | Self::PartialRows { .. }
            | Self::NotWritable { .. } => false,
        }
    }
}
