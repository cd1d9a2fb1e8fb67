//! Header of version 1 of the index, which is read and no longer written.
//!
//! ```text
//! Header 160 | FileRecord * files | TensorRecord * tensors | CheckpointRecord * checkpoints
//!            | entries: u32 * entries | dims: u64 * dims | strings
//! ```
//!
//! The records are those of version 2, without what was added there: [`FileRecord::flags`](super::FileRecord::flags)
//! has the bit [`FILE_TENSORS`](super::FILE_TENSORS) only, and `container`, `original` and `first_group` are zero.
//! Nothing in the file covers the records, so a reader that was asked for one content compares them with the headers
//! of the files.
//!
//! The content hash is BLAKE3 over `b"daxfs content v1\n"` and then, for every name of a regular file or
//! symbolic link outside `/.daxfs`, in bytewise order of the absolute paths: `b'f'` or `b'l'`, the length of
//! the path (u64), the path, the size (u64), and the 32-byte BLAKE3 of the contents (symlink: of the target).

use crate::format::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version described here.
pub const VERSION: u32 = 1;
/// First bytes of what [`Header::content_hash`] covers.
pub const CONTENT_PREFIX: &[u8] = b"daxfs content v1\n";

/// Header at offset 0.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// 0: [`MAGIC`](super::MAGIC).
    pub magic: [u8; 8],
    /// 8: [`VERSION`].
    pub version: U32,
    /// 12: see [`HAS_HASHES`](super::HAS_HASHES); unknown bits are refused.
    pub flags: U32,

    /// 16: bytes of the index file.
    pub total_size: U64,
    /// 24: file records.
    pub files_offset: U64,

    /// 32: number of file records.
    pub file_count: U32,
    /// 36: number of tensor records.
    pub tensor_count: U32,
    /// 40: tensor records.
    pub tensors_offset: U64,

    /// 48: checkpoint records.
    pub checkpoints_offset: U64,
    /// 56: number of checkpoint records.
    pub checkpoint_count: U32,
    /// 60: number of checkpoint entries.
    pub entry_count: U32,

    /// 64: checkpoint entries.
    pub entries_offset: U64,
    /// 72: dimensions.
    pub dims_offset: U64,

    /// 80: number of dimensions.
    pub dim_count: U64,
    /// 88: strings.
    pub strings_offset: U64,

    /// 96: bytes of strings.
    pub strings_size: U64,
    /// 104: zero.
    pub reserved: [u8; 24],

    /// 128: content hash; zero without [`HAS_HASHES`](super::HAS_HASHES).
    pub content_hash: [u8; 32],
}

const _: () = {
    assert!(size_of::<Header>() == 160);
    assert!(core::mem::offset_of!(Header, content_hash) == 128);
};
