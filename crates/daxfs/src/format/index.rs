//! The tensor index `/.daxfs/index`, version 1: ours, not the kernel's.
//!
//! The packer writes it so that a reader reaches a tensor by binary search in the mapped memory, without
//! parsing any JSON, and so that the content has an identity: an index without tensors holds hashes only. It is an
//! ordinary file of the image: readers that do not know it see a small binary file.
//! All offsets are from the start of the file. A record is trusted only after its own bounds were checked.
//!
//! ```text
//! Header 160 | FileRecord * files | TensorRecord * tensors | CheckpointRecord * checkpoints
//!            | entries: u32 * entries | dims: u64 * dims | strings
//! ```
//!
//! File records are sorted by inode number. The tensors of one file are adjacent and sorted by name (bytes).
//! The entries of a checkpoint are numbers of tensor records, sorted by name. Filler tensors that the packer
//! inserted for alignment are not listed.
//!
//! The content hash is BLAKE3 over `b"daxfs content v1\n"` and then, for every name of a regular file or
//! symbolic link outside `/.daxfs`, in bytewise order of the absolute paths: `b'f'` or `b'l'`, the length of
//! the path (u64), the path, the size (u64), and the 32-byte BLAKE3 of the contents (symlink: of the target).

use super::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Directory that holds the index, at the root of the image.
pub const DIR: &str = ".daxfs";
/// Absolute path of the index.
pub const PATH: &str = "/.daxfs/index";
/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"DAXINDEX";
/// The version described here.
pub const VERSION: u32 = 1;
/// Bit of [`Header::flags`]: file hashes and the content hash are present.
pub const HAS_HASHES: u32 = 1;
/// Bit of [`FileRecord::flags`]: the file is a safetensors file and its tensors are listed.
pub const FILE_TENSORS: u32 = 1;
/// First bytes of what [`Header::content_hash`] covers.
pub const CONTENT_PREFIX: &[u8] = b"daxfs content v1\n";
/// Names of filler tensors begin with this; views hide them.
pub const FILLER_PREFIX: &str = "__daxfs_pad_";

/// Header at offset 0.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// 0: [`MAGIC`].
    pub magic: [u8; 8],
    /// 8: [`VERSION`].
    pub version: U32,
    /// 12: see [`HAS_HASHES`]; unknown bits are refused.
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

    /// 128: content hash; zero without [`HAS_HASHES`].
    pub content_hash: [u8; 32],
}

/// One regular file, once per inode.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FileRecord {
    /// 0: first absolute path of the file, offset in the strings.
    pub path_offset: U64,
    /// 8: bytes of the path.
    pub path_len: U32,
    /// 12: inode number.
    pub ino: U32,

    /// 16: bytes of the file.
    pub size: U64,
    /// 24: number of its first tensor record.
    pub first_tensor: U32,
    /// 28: how many follow.
    pub tensor_count: U32,

    /// 32: see [`FILE_TENSORS`].
    pub flags: U32,
    /// 36: zero.
    pub reserved0: U32,
    /// 40: where tensor data begins: 8 + header length; 0 for other files.
    pub data_start: U64,

    /// 48: zero.
    pub reserved1: [u8; 16],

    /// 64: BLAKE3 of the contents; zero without [`HAS_HASHES`].
    pub hash: [u8; 32],
}

/// One tensor.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TensorRecord {
    /// 0: name, offset in the strings.
    pub name_offset: U64,
    /// 8: bytes of the name.
    pub name_len: U32,
    /// 12: number of its first dimension.
    pub first_dim: U32,

    /// 16: first byte of the data, from the start of the file.
    pub offset: U64,
    /// 24: bytes of data.
    pub size: U64,

    /// 32: number of the file record.
    pub file: U32,
    /// 36: [`Dtype::code`](crate::Dtype::code).
    pub dtype: U16,
    /// 38: number of dimensions.
    pub rank: U16,
    /// 40: zero.
    pub reserved: [u8; 8],
}

/// One sharded checkpoint: a `*.safetensors.index.json`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CheckpointRecord {
    /// 0: inode number of the JSON file.
    pub ino: U32,
    /// 4: number of its first entry.
    pub first_entry: U32,
    /// 8: how many follow.
    pub entry_count: U32,
    /// 12: zero.
    pub reserved: [u8; 20],
}

const _: () = {
    assert!(size_of::<Header>() == 160);
    assert!(core::mem::offset_of!(Header, content_hash) == 128);
    assert!(size_of::<FileRecord>() == 96);
    assert!(core::mem::offset_of!(FileRecord, hash) == 64);
    assert!(size_of::<TensorRecord>() == 48);
    assert!(size_of::<CheckpointRecord>() == 32);
};
