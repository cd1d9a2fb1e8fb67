//! Format version 5: superblock, base header, branch table and delta log.

use super::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version number.
pub const VERSION: u32 = 5;
/// Magic of the base header.
pub const BASE_MAGIC: u32 = 0x6464_6135;
/// Bit of [`BaseHeader::flags`]: file data lies in a backing file.
pub const BASE_EXTERNAL_DATA: u32 = 1;
/// Bytes of the base header with its reserve.
pub const BASE_HEADER_SIZE: u64 = 4096;
/// The page cache version that goes with format 5.
pub const PAGE_CACHE_VERSION: u32 = 1;

/// Superblock at offset 0, 4040 bytes with its reserve.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Superblock {
    /// 0: [`super::MAGIC`].
    pub magic: U32,
    /// 4: 5.
    pub version: U32,
    /// 8: zero.
    pub flags: U32,
    /// 12: 4096.
    pub block_size: U32,

    /// 16: size of the whole image.
    pub total_size: U64,
    /// 24: start of the base header.
    pub base_offset: U64,

    /// 32: size of the base image with its header.
    pub base_size: U64,
    /// 40: branch table.
    pub branch_table_offset: U64,

    /// 48: records in it; 0 for a static image.
    pub branch_table_entries: U32,
    /// 52: live.
    pub active_branches: U32,
    /// 56: live.
    pub next_branch_id: U64,

    /// 64: live.
    pub next_inode_id: U64,
    /// 72: delta region.
    pub delta_region_offset: U64,

    /// 80: its size.
    pub delta_region_size: U64,
    /// 88: next free byte of it, absolute; live.
    pub delta_alloc_offset: U64,

    /// 96: commit sequence, last committed branch, lock; live. Upstream's comments say 152, which is wrong.
    pub coordination: [u8; 64],

    /// 160: page cache region; 0 when there is none.
    pub pcache_offset: U64,
    /// 168: its size.
    pub pcache_size: U64,

    /// 176: its slots.
    pub pcache_slot_count: U32,
    /// 180: log2 of that.
    pub pcache_hash_shift: U32,
    /// 184: live.
    pub pcache_pending: U32,
    /// 188: zero.
    pub reserved: U32,
}

/// Header at the start of the base image. Its offsets are relative to the base image.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BaseHeader {
    /// 0: [`BASE_MAGIC`].
    pub magic: U32,
    /// 4: 5.
    pub version: U32,
    /// 8: see [`BASE_EXTERNAL_DATA`].
    pub flags: U32,
    /// 12: 4096.
    pub block_size: U32,

    /// 16: can be smaller than the data (upstream computes it from the last entry); use the superblock's.
    pub total_size: U64,
    /// 24: inode table.
    pub inode_offset: U64,

    /// 32: its slots.
    pub inode_count: U32,
    /// 36: 1.
    pub root_inode: U32,
    /// 40: informative.
    pub data_offset: U64,
}

/// Record of the branch table.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BranchRecord {
    /// 0: number.
    pub branch_id: U64,
    /// 8: parent; 0 for none.
    pub parent_id: U64,

    /// 16: log, absolute.
    pub delta_log_offset: U64,
    /// 24: bytes of it in use.
    pub delta_log_size: U64,

    /// 32: bytes reserved for it.
    pub delta_log_capacity: U64,
    /// 40: 0 free, 1 active, 2 committed, 3 aborted.
    pub state: U32,
    /// 44: mounts.
    pub refcount: U32,

    /// 48: next inode number.
    pub next_local_ino: U64,
    /// 56: name, NUL-terminated.
    pub name: [u8; 32],
    /// 88: counts changes.
    pub generation: U32,
    /// 92: zero.
    pub reserved: [u8; 36],
}

/// Head of every entry of a delta log. Entries are packed without alignment.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeltaHeader {
    /// 0: 1 write, 2 create, 3 delete, 4 truncate, 5 mkdir, 6 rename, 7 setattr, 8 symlink.
    pub kind: U32,
    /// 4: bytes of the entry with this head.
    pub total_size: U32,
    /// 8: inode.
    pub ino: U64,
    /// 16: nanoseconds; informative.
    pub timestamp: U64,
}

/// Kind 1. The data is the *last* `len` bytes of the entry: writes through mmap pad before it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeltaWrite {
    /// 0: offset in the file.
    pub offset: U64,
    /// 8: bytes.
    pub len: U32,
    /// 12: zero.
    pub flags: U32,
}

/// Kinds 2 and 5; the name follows.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeltaCreate {
    /// 0: directory.
    pub parent_ino: U64,
    /// 8: new inode.
    pub new_ino: U64,
    /// 16: full mode.
    pub mode: U32,
    /// 20: owner.
    pub uid: U32,
    /// 24: group.
    pub gid: U32,
    /// 28: bytes of the name.
    pub name_len: U16,
    /// 30: zero.
    pub flags: U16,
}

/// Kind 3; the name follows. The head's inode loses a link.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeltaDelete {
    /// 0: directory.
    pub parent_ino: U64,
    /// 8: bytes of the name.
    pub name_len: U16,
    /// 10: zero.
    pub reserved: [u8; 6],
}

/// Kind 4.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeltaTruncate {
    /// 0: bytes.
    pub new_size: U64,
}

/// Kind 6; the old name follows, then the new one.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeltaRename {
    /// 0: directory that holds the old name.
    pub old_parent_ino: U64,
    /// 8: directory that gets the new one.
    pub new_parent_ino: U64,
    /// 16: inode.
    pub ino: U64,
    /// 24: bytes of the old name.
    pub old_name_len: U16,
    /// 26: bytes of the new one.
    pub new_name_len: U16,
    /// 28: zero.
    pub reserved: U32,
}

/// Kind 7.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeltaSetattr {
    /// 0: full mode.
    pub mode: U32,
    /// 4: owner.
    pub uid: U32,
    /// 8: group.
    pub gid: U32,
    /// 12: which fields count: 1 mode, 2 uid, 4 gid, 8 size.
    pub valid: U32,
    /// 16: bytes.
    pub size: U64,
}

/// Kind 8; the name follows, then the target and a NUL.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeltaSymlink {
    /// 0: directory.
    pub parent_ino: U64,
    /// 8: new inode.
    pub new_ino: U64,
    /// 16: owner.
    pub uid: U32,
    /// 20: group.
    pub gid: U32,
    /// 24: bytes of the name.
    pub name_len: U16,
    /// 26: bytes of the target.
    pub target_len: U16,
    /// 28: the C struct's padding to 8 bytes.
    pub padding: U32,
}

/// Header of the page cache region.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PageCacheHeader {
    /// 0: [`super::PAGE_CACHE_MAGIC`].
    pub magic: U32,
    /// 4: 1.
    pub version: U32,
    /// 8: slots.
    pub slot_count: U32,
    /// 12: log2 of that.
    pub hash_shift: U32,
    /// 16: slot metadata, from the start of the region.
    pub slot_meta_offset: U64,
    /// 24: slot data, from the start of the region.
    pub slot_data_offset: U64,
}

const _: () = {
    assert!(size_of::<Superblock>() == 192);
    assert!(core::mem::offset_of!(Superblock, branch_table_entries) == 48);
    assert!(core::mem::offset_of!(Superblock, coordination) == 96);
    assert!(core::mem::offset_of!(Superblock, pcache_offset) == 160);
    assert!(size_of::<BaseHeader>() == 48);
    assert!(size_of::<BranchRecord>() == 128);
    assert!(core::mem::offset_of!(BranchRecord, name) == 56);
    assert!(size_of::<DeltaHeader>() == 24);
    assert!(size_of::<DeltaWrite>() == 16);
    assert!(size_of::<DeltaCreate>() == 32);
    assert!(size_of::<DeltaDelete>() == 16);
    assert!(size_of::<DeltaRename>() == 32);
    assert!(size_of::<DeltaSetattr>() == 24);
    assert!(size_of::<DeltaSymlink>() == 32);
    assert!(size_of::<PageCacheHeader>() == 32);
};
