//! The EROFS view of an image: the structs of Linux's EROFS that it is made of, and our own header in front of them.
//!
//! The kernel's EROFS finds its superblock at byte 1024, where DAXFS reserves everything. The rest of the view is the
//! file [`PATH`]:
//!
//! ```text
//! slot 0         Header 32, of ours: the kernel's number 0 is nobody's
//! slots 1..      inodes, 32 or 64 bytes, in the order of the image's inode numbers; what a directory holds in its last
//!                block, and the target of a link, follow at once where they fit into the block
//! from a block   directory blocks and long targets, in the same order
//! behind them    Capability 32 for each file that has any
//! ```
//!
//! Files have no bytes here: their inodes point at the extents of the image. All addresses count from the start of the
//! image, in its blocks. [`crate::erofs`] says how the view is made, and compared.

use super::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Name of the view in the directory of the index.
pub const NAME: &str = "erofs";
/// Absolute path of the view.
pub const PATH: &str = "/.daxfs/erofs";
/// First eight bytes of the view.
pub const HEADER_MAGIC: [u8; 8] = *b"DAXEROFS";
/// The layout described here.
pub const VERSION: u32 = 1;
/// Bit of [`Header::flags`]: inodes have the times at which the sources were modified.
pub const HAS_TIMES: u32 = 1;
/// Bytes of a slot: numbers of inodes count in these.
pub const SLOT: u64 = 32;
/// Where the kernel looks for its superblock.
pub const SUPERBLOCK_OFFSET: usize = 1024;
/// [`Superblock::magic`].
pub const MAGIC: u32 = 0xe0f5_e1e2;
/// Bit of [`Superblock::feature_compat`]: times are those of modification.
pub const COMPAT_MTIME: u32 = 2;
/// Volume name.
pub const VOLUME: &[u8] = b"daxfs";

/// Bit of an inode's format: 64 bytes.
pub const EXTENDED: u16 = 1;
/// Layout of an inode's data, from bit 1 of its format on: contiguous blocks.
pub const FLAT_PLAIN: u16 = 0;
/// As [`FLAT_PLAIN`], but the last block follows the inode.
pub const FLAT_INLINE: u16 = 2;

/// [`XattrEntry::name_index`] of names that begin with `security.`.
pub const XATTR_SECURITY: u8 = 6;

/// What the packer says of the view: slot 0.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// 0: [`HEADER_MAGIC`].
    pub magic: [u8; 8],
    /// 8: [`VERSION`].
    pub version: U32,
    /// 12: see [`HAS_TIMES`]; unknown bits are refused.
    pub flags: U32,
    /// 16: number of [`Capability`] records at the end.
    pub capabilities: U32,
    /// 20: zero.
    pub reserved: [u8; 12],
}

/// What `security.capability` is of one file: EROFS has it beside the inode, DAXFS cannot hold it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Capability {
    /// 0: inode number of the image; records are in their order.
    pub ino: U32,
    /// 4: bytes of the value, 20 or 24.
    pub len: U32,
    /// 8: the value, zeros behind it.
    pub value: [u8; 24],
}

/// The superblock, at [`SUPERBLOCK_OFFSET`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Superblock {
    /// 0: [`MAGIC`].
    pub magic: U32,
    /// 4: zero: a checksum would cover the generation record, which changes.
    pub checksum: U32,
    /// 8: see [`COMPAT_MTIME`].
    pub feature_compat: U32,
    /// 12: log2 of the block size.
    pub block_bits: u8,
    /// 13: zero.
    pub extension_slots: u8,
    /// 14: number of the root's inode.
    pub root_nid: U16,

    /// 16: inodes.
    pub inodes: U64,
    /// 24: zero.
    pub build_time: U64,

    /// 32: zero.
    pub build_time_nsec: U32,
    /// 36: blocks of the image.
    pub blocks: U32,
    /// 40: block in which the view begins.
    pub meta_block: U32,
    /// 44: zero: attributes are not shared.
    pub xattr_block: U32,

    /// 48: from the BLAKE3 of the view.
    pub uuid: [u8; 16],
    /// 64: [`VOLUME`].
    pub volume: [u8; 16],

    /// 80: zero: every kernel with EROFS mounts it (5.4 and later).
    pub feature_incompat: U32,
    /// 84: zero: of compression, further devices and the like.
    pub reserved: [u8; 44],
}

/// An inode of 32 bytes: owners and links below 2^16, sizes below 4 GiB, no times.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CompactInode {
    /// 0: layout of the data, see [`FLAT_PLAIN`].
    pub format: U16,
    /// 2: 0 without attributes, otherwise 1 and their words of 4 bytes.
    pub xattr_count: U16,
    /// 4: `st_mode`.
    pub mode: U16,
    /// 6: links.
    pub nlink: U16,
    /// 8: bytes.
    pub size: U32,
    /// 12: zero.
    pub reserved: U32,

    /// 16: first block of the data.
    pub block: U32,
    /// 20: inode number of the image.
    pub ino: U32,
    /// 24: owner.
    pub uid: U16,
    /// 26: group.
    pub gid: U16,
    /// 28: zero.
    pub reserved2: U32,
}

/// An inode of 64 bytes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtendedInode {
    /// 0: as in [`CompactInode`], with [`EXTENDED`].
    pub format: U16,
    /// 2: as in [`CompactInode`].
    pub xattr_count: U16,
    /// 4: `st_mode`.
    pub mode: U16,
    /// 6: zero.
    pub reserved: U16,
    /// 8: bytes.
    pub size: U64,

    /// 16: first block of the data.
    pub block: U32,
    /// 20: inode number of the image.
    pub ino: U32,
    /// 24: owner.
    pub uid: U32,
    /// 28: group.
    pub gid: U32,

    /// 32: seconds since 1970, signed.
    pub seconds: U64,
    /// 40: nanoseconds.
    pub nanoseconds: U32,
    /// 44: links.
    pub nlink: U32,

    /// 48: zero.
    pub reserved2: [u8; 16],
}

/// An entry of a directory block; the names follow behind the last one.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Dirent {
    /// 0: number of the inode: its place behind the beginning of the view, in slots.
    pub nid: U64,
    /// 8: where the name begins, from the start of the block; it ends where the next one begins, the last one at a NUL
    /// or with the block or the directory.
    pub name_offset: U16,
    /// 10: 1 file, 2 directory, 3 and 4 devices of characters and blocks, 5 FIFO, 6 socket, 7 link.
    pub file_type: u8,
    /// 11: zero.
    pub reserved: u8,
}

/// In front of the attributes of an inode.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrHeader {
    /// 0: zero: no filter, none shared.
    pub reserved: [u8; 12],
}

/// One attribute; name and value follow, up to a multiple of 4.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrEntry {
    /// 0: bytes of the name without its beginning.
    pub name_len: u8,
    /// 1: the beginning, see [`XATTR_SECURITY`].
    pub name_index: u8,
    /// 2: bytes of the value.
    pub value_len: U16,
}

const _: () = {
    assert!(size_of::<Header>() == 32);
    assert!(size_of::<Capability>() == 32);
    assert!(size_of::<Superblock>() == 128);
    assert!(core::mem::offset_of!(Superblock, root_nid) == 14);
    assert!(core::mem::offset_of!(Superblock, meta_block) == 40);
    assert!(core::mem::offset_of!(Superblock, feature_incompat) == 80);
    assert!(size_of::<CompactInode>() == 32);
    assert!(core::mem::offset_of!(CompactInode, uid) == 24);
    assert!(size_of::<ExtendedInode>() == 64);
    assert!(core::mem::offset_of!(ExtendedInode, seconds) == 32);
    assert!(size_of::<Dirent>() == 12);
    assert!(size_of::<XattrHeader>() == 12);
    assert!(size_of::<XattrEntry>() == 4);
};
