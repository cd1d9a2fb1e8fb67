//! The rules of the format that errors name.

#![forbid(unsafe_code)]

use std::fmt;

/// A rule of the format; its text is what errors show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// The block size is a power of two from 4096 to 65536.
    BlockSize,
    /// Strict: the kernel mounts only images whose block size is its page size.
    BlockSizeOfThisMachine,
    /// Some region holds the root directory.
    NoRoot,
    /// `root_inode` is 1.
    RootInode,
    /// Inode 1 is a directory.
    RootIsDirectory,
    /// The base image has at least one inode.
    NoInodes,
    /// The base image begins at or after byte 4096.
    BaseOffset,
    /// The base header's magic is right.
    BaseMagic,
    /// The overlay's magic is right.
    OverlayMagic,
    /// The overlay has a power of two of buckets.
    OverlayBuckets,
    /// An overlay entry has the type that its key stands for.
    OverlayEntryKind,
    /// A chain of overlay entries ends, and is no longer than the pool can hold.
    OverlayChain,
    /// The page cache's magic is right.
    PageCacheMagic,
    /// The page cache has a power of two of slots, at least 8.
    PageCacheSlots,
    /// A referenced inode is a file, a directory or a symbolic link (or a special file).
    FileType,
    /// Strict: every inode slot, used or not, is a file, a directory or a symbolic link.
    SlotType,
    /// A directory's size is a multiple of 271.
    DirectorySize,
    /// A directory is named by exactly one entry.
    DirectoryParents,
    /// Every directory can be reached from the root.
    DirectoryReachable,
    /// A directory entry names an inode of the table.
    EntryInode,
    /// A name has 1 to 255 bytes.
    NameLength,
    /// A name holds neither `/` nor NUL and is not `.` or `..`.
    Name,
    /// Names in a directory are unique.
    NameUnique,
    /// A link count is not 0 and not less than the names that the image holds.
    LinkCount,
    /// A symbolic link's target has 1 to 4095 bytes, none of them NUL, and a NUL follows.
    LinkTarget,
    /// A changed file is no larger than a kernel can make it or the image could hold.
    ChangedSize,
    /// An entry of the delta log is at least as long as its fields and ends inside the log.
    LogEntry,
    /// An entry of the delta log has one of the eight known types.
    LogEntryKind,
    /// An entry of the delta log names an inode that exists and has the right type.
    LogInode,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BlockSize => "the block size must be a power of two from 4096 to 65536",
            Self::BlockSizeOfThisMachine => {
                "the kernel mounts only images whose block size is its page size; pack with --block-size page for this \
                 machine's"
            }
            Self::NoRoot => "there must be a base image or an overlay that holds the root",
            Self::RootInode => "the root inode must be 1",
            Self::RootIsDirectory => "the root inode must be a directory",
            Self::NoInodes => "the base image must have at least one inode",
            Self::BaseOffset => "the base image must begin at or after byte 4096",
            Self::BaseMagic => "the base header must begin with 0x64646135",
            Self::OverlayMagic => "the overlay must begin with 0x6f766c79",
            Self::OverlayBuckets => "the overlay's bucket count must be a power of two",
            Self::OverlayEntryKind => "the overlay entry must have the type that its key stands for",
            Self::OverlayChain => "a chain of overlay entries must end and hold no foreign entries",
            Self::PageCacheMagic => "the page cache must begin with 0x70636163",
            Self::PageCacheSlots => "the page cache's slot count must be a power of two, at least 8",
            Self::FileType => "unsupported file type",
            Self::SlotType => {
                "the kernel's validation refuses slots that are not a file, a directory or a symbolic link"
            }
            Self::DirectorySize => "a directory's size must be a multiple of 271",
            Self::DirectoryParents => "a directory must have one parent and not contain itself",
            Self::DirectoryReachable => "every directory must be reachable from the root",
            Self::EntryInode => "an entry's inode must be in the inode table",
            Self::NameLength => "a name must have 1 to 255 bytes",
            Self::Name => "a name must not hold '/' or NUL, and must not be '.' or '..'",
            Self::NameUnique => "names in a directory must be unique",
            Self::LinkCount => "the link count must not be 0 or less than the names in the image",
            Self::LinkTarget => {
                "a symbolic link's target must have 1 to 4095 bytes without NUL, and a NUL after it"
            }
            Self::ChangedSize => "a file that was changed after packing must not be larger than 0xffffe pages, its packed size, and the image",
            Self::LogEntry => "a log entry must hold its fields and end inside the log",
            Self::LogEntryKind => "a log entry's type must be 1 to 8",
            Self::LogInode => "a log entry must name an existing inode of the right type",
        })
    }
}
