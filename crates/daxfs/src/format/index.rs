//! The index `/.daxfs/index`, version 2: ours, not the kernel's. Version 1 is in [`v1`].
//!
//! The packer writes it so that a reader reaches a tensor by binary search in the mapped memory, without
//! parsing any JSON, and so that the content has an identity: an index without tensors holds hashes only. It is an
//! ordinary file of the image: readers that do not know it see a small binary file.
//! All offsets are from the start of the file unless said otherwise. A record is trusted only after its own bounds
//! were checked.
//!
//! ```text
//! Header 128 | Section 64 * sections | the sections, in any order
//! ```
//!
//! | kind | section | record |
//! |---|---|---|
//! | 1 | files, sorted by inode number | [`FileRecord`] 96 |
//! | 2 | tensors; those of one file are adjacent and sorted by name (bytes) | [`TensorRecord`] 48 |
//! | 3 | checkpoints, sorted by inode number | [`CheckpointRecord`] 32 |
//! | 4 | entries of checkpoints: numbers of tensor records, sorted by the tensors' names | u32 |
//! | 5 | dimensions | u64 |
//! | 6 | strings: paths and names | bytes |
//! | 7 | data types that have no code of their own | [`DtypeRecord`] 32 |
//! | 8 | originals: files that lie here otherwise than in their source, in the order of their files | [`OriginalRecord`] 96 |
//! | 9 | runs of originals, in the order of the originals | [`RunRecord`] 16 |
//! | 10 | bytes: where originals begin otherwise | bytes |
//! | 11 | groups: BLAKE3 of 1 MiB each, in the order of the files | 32 bytes |
//!
//! **Growing.** A section of a kind that a reader does not know is skipped, unless it has the flag
//! [`SECTION_REQUIRED`]: then the reader does without the index. Each section says how long its records are; a later
//! version may add fields at their end, and readers step over them. Kinds, codes of data types and of containers are
//! given out in this file. A kind stands there once.
//!
//! **What covers what.** Every section has its BLAKE3 in the table. The records hash is BLAKE3 over
//! `b"daxfs index v2\n"`, the header with both hashes zeroed, and the table; so it covers each byte that a reader
//! believes, and a reader that uses one section need not read the others.
//! The content hash is BLAKE3 over `b"daxfs content v2\n"`, the records hash, and the tree hash of the root.
//! The tree hash of a directory is BLAKE3 over its entries, sorted by name (bytes), `.daxfs` of the root left out:
//!
//! | entry | bytes |
//! |---|---|
//! | any | kind: `d`, `f`, `l`, or `s` for a device, FIFO or socket; length of the name (u32); name |
//! | `d` | tree hash |
//! | `f` | size (u64), BLAKE3 of the contents |
//! | `l` | size of the target (u64), BLAKE3 of the target |
//!
//! The configuration of a container image, `/.daxfs/oci-config.json`, is in the tree hash of the root as a file named
//! `.daxfs/oci-config.json`, behind all entries.
//!
//! An image without an index has such a hash, too, with a records hash of 32 zeros, which is stored nowhere.
//! Modes, owners and times are not part of the content.
//!
//! **Groups.** A file of more than 1 MiB that has a hash has one value for each 1 MiB, the last one for what is left:
//! the chaining value of that subtree of BLAKE3's tree. Merged as BLAKE3 does they give the file's hash, so each 1 MiB
//! is checked alone, in any order.
//!
//! **Originals.** The packer moves tensors so that they are aligned, which changes the file that holds them. The
//! original is the bytes at the start of the source, verbatim, and then runs: stretches of the file in the image, each
//! behind the one before it. So no original is longer than its file and the bytes that are kept of it.
//! Filler tensors that the packer inserted are not listed among the tensors.

pub mod v1;

use super::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Directory that holds the index, at the root of the image.
pub const DIR: &str = ".daxfs";
/// Name of the index in that directory.
pub const NAME: &str = "index";
/// Absolute path of the index.
pub const PATH: &str = "/.daxfs/index";
/// Name, in that directory, of the configuration of the container image that an image was packed from, byte for byte.
/// With an index of version 2 the tree hash of the root covers it, behind all entries, as a file named
/// [`CONFIG_HASHED_NAME`].
pub const CONFIG_NAME: &str = "oci-config.json";
/// Absolute path of the configuration.
pub const CONFIG_PATH: &str = "/.daxfs/oci-config.json";
/// What the configuration is called in the tree hash; no entry of a directory can have such a name.
pub const CONFIG_HASHED_NAME: &[u8] = b".daxfs/oci-config.json";
/// Most bytes of a configuration, as of all documents of container images.
pub const CONFIG_MOST: u64 = 4 << 20;
/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"DAXINDEX";
/// The version described here.
pub const VERSION: u32 = 2;
/// Bit of [`Header::flags`]: file hashes and the content hash are present.
pub const HAS_HASHES: u32 = 1;
/// First bytes of what [`Header::records_hash`] covers.
pub const RECORDS_PREFIX: &[u8] = b"daxfs index v2\n";
/// First bytes of what [`Header::content_hash`] covers.
pub const CONTENT_PREFIX: &[u8] = b"daxfs content v2\n";
/// Names of filler tensors begin with this; views hide them.
pub const FILLER_PREFIX: &str = "__daxfs_pad_";
/// Most sections of an index.
pub const MAX_SECTIONS: u32 = 1024;
/// Bytes that one value of the section of groups stands for.
pub const GROUP_LEN: u64 = 1 << 20;

/// Bit of [`Section::flags`]: who does not know the kind must not use the index. Other bits mean nothing yet and are
/// ignored.
pub const SECTION_REQUIRED: u32 = 1;

/// Kind of the section of [`FileRecord`]s.
pub const FILES: u32 = 1;
/// Kind of the section of [`TensorRecord`]s.
pub const TENSORS: u32 = 2;
/// Kind of the section of [`CheckpointRecord`]s.
pub const CHECKPOINTS: u32 = 3;
/// Kind of the section of checkpoint entries, u32 each.
pub const ENTRIES: u32 = 4;
/// Kind of the section of dimensions, u64 each.
pub const DIMS: u32 = 5;
/// Kind of the section of strings.
pub const STRINGS: u32 = 6;
/// Kind of the section of [`DtypeRecord`]s.
pub const DTYPES: u32 = 7;
/// Kind of the section of [`OriginalRecord`]s.
pub const ORIGINALS: u32 = 8;
/// Kind of the section of [`RunRecord`]s.
pub const RUNS: u32 = 9;
/// Kind of the section of bytes that originals begin with.
pub const BYTES: u32 = 10;
/// Kind of the section of groups, 32 bytes each.
pub const GROUPS: u32 = 11;

/// Bit of [`FileRecord::flags`]: the tensors of the file are listed.
pub const FILE_TENSORS: u32 = 1;
/// Bit of [`FileRecord::flags`]: the file has groups.
pub const FILE_GROUPS: u32 = 2;
/// Bit of [`FileRecord::flags`]: the file has an original.
pub const FILE_ORIGINAL: u32 = 4;

/// [`FileRecord::container`] of a file that is taken for no container of tensors.
pub const CONTAINER_NONE: u32 = 0;
/// [`FileRecord::container`] of a safetensors file. Who does not know a container takes the file for plain bytes.
pub const CONTAINER_SAFETENSORS: u32 = 1;
/// [`FileRecord::container`] of a GGUF file.
pub const CONTAINER_GGUF: u32 = 2;
/// [`FileRecord::container`] of a checkpoint of PyTorch.
pub const CONTAINER_TORCH: u32 = 3;
/// [`FileRecord::container`] of an archive of numpy's arrays.
pub const CONTAINER_NPZ: u32 = 4;
/// [`FileRecord::container`] of one of numpy's arrays.
pub const CONTAINER_NPY: u32 = 5;

/// Codes of data types from here on are numbers of [`DtypeRecord`]s, with this added.
pub const DTYPE_RECORDS: u16 = 0x8000;

/// Bit of [`OriginalRecord::flags`]: the hash is present.
pub const ORIGINAL_HASH: u32 = 1;

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
    /// 24: number of sections, at most [`MAX_SECTIONS`]; their table follows the header.
    pub section_count: U32,
    /// 28: zero.
    pub reserved0: U32,

    /// 32: content hash; zero without [`HAS_HASHES`].
    pub content_hash: [u8; 32],
    /// 64: records hash, always present.
    pub records_hash: [u8; 32],
    /// 96: zero.
    pub reserved1: [u8; 32],
}

/// Where a section lies.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Section {
    /// 0: kind.
    pub kind: U32,
    /// 4: see [`SECTION_REQUIRED`].
    pub flags: U32,
    /// 8: first byte, behind the table; anything for an empty section.
    pub offset: U64,

    /// 16: bytes, a multiple of `record_size`.
    pub len: U64,
    /// 24: bytes from one record to the next, not less than the record of this version; 1 for bytes.
    pub record_size: U32,
    /// 28: zero.
    pub reserved: U32,

    /// 32: BLAKE3 of the section.
    pub hash: [u8; 32],
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

    /// 32: see [`FILE_TENSORS`], [`FILE_GROUPS`] and [`FILE_ORIGINAL`]; unknown bits are refused.
    pub flags: U32,
    /// 36: what kind of container it is, see [`CONTAINER_SAFETENSORS`].
    pub container: U32,
    /// 40: where tensor data begins, behind the header of the container; 0 for other files.
    pub data_start: U64,

    /// 48: number of its first group, with [`FILE_GROUPS`]; one for each [`GROUP_LEN`] follows.
    pub first_group: U64,
    /// 56: number of its original, with [`FILE_ORIGINAL`].
    pub original: U32,
    /// 60: zero.
    pub reserved: U32,

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
    /// 36: [`Dtype::code`](crate::Dtype::code), or [`DTYPE_RECORDS`] plus the number of a [`DtypeRecord`].
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

/// A data type that is described here: elements that are packed together, in blocks. A block of 256 elements in 144
/// bytes is quantised; 2 elements in 1 byte, or 4 in 3, are smaller than a byte. The last dimension of a tensor is a
/// multiple of the block.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DtypeRecord {
    /// 0: name as its container has it, offset in the strings.
    pub name_offset: U64,
    /// 8: bytes of the name.
    pub name_len: U32,
    /// 12: elements of a block, at least 1.
    pub block_elements: U32,

    /// 16: bytes of a block, at least 1.
    pub block_bytes: U32,
    /// 20: zero.
    pub reserved: [u8; 12],
}

/// The source of a file that was changed when it was packed.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct OriginalRecord {
    /// 0: bytes of the source.
    pub size: U64,
    /// 8: what its tensors were moved to multiples of.
    pub alignment: U64,

    /// 16: the bytes that it begins with, offset in their section; those of each original follow those of the one
    /// before it.
    pub start_offset: U64,
    /// 24: how many.
    pub start_len: U64,

    /// 32: number of its first run; its runs follow those of the original before it.
    pub first_run: U32,
    /// 36: how many; together they are as long as what follows the first bytes.
    pub run_count: U32,
    /// 40: number of the file record.
    pub file: U32,
    /// 44: see [`ORIGINAL_HASH`]; other bits are ignored.
    pub flags: U32,

    /// 48: zero.
    pub reserved: [u8; 16],

    /// 64: BLAKE3 of the source; zero without [`ORIGINAL_HASH`].
    pub hash: [u8; 32],
}

/// A stretch of an original.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RunRecord {
    /// 0: where it lies in the file in the image, behind the run before it.
    pub offset: U64,
    /// 8: bytes.
    pub len: U64,
}

const _: () = {
    assert!(size_of::<Header>() == 128);
    assert!(core::mem::offset_of!(Header, content_hash) == 32);
    assert!(core::mem::offset_of!(Header, records_hash) == 64);
    assert!(size_of::<Section>() == 64);
    assert!(core::mem::offset_of!(Section, hash) == 32);
    assert!(size_of::<FileRecord>() == 96);
    assert!(core::mem::offset_of!(FileRecord, hash) == 64);
    assert!(size_of::<TensorRecord>() == 48);
    assert!(size_of::<CheckpointRecord>() == 32);
    assert!(size_of::<DtypeRecord>() == 32);
    assert!(size_of::<OriginalRecord>() == 96);
    assert!(core::mem::offset_of!(OriginalRecord, hash) == 64);
    assert!(size_of::<RunRecord>() == 16);
};
