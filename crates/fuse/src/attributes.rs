//! What an image says of an inode, as FUSE has it.

use std::time::UNIX_EPOCH;

use daxfs::{File, Metadata, PieceSource};
use fuser::{FileAttr, FileType, INodeNo};

/// Of what `stat` counts blocks in.
const SECTOR: u64 = 512;
/// The unit in which programs should read.
const BLOCK: u32 = 4096;

/// The type of an inode; `None` for what is no type of Linux.
pub fn kind(mode: u32) -> Option<FileType> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFREG => FileType::RegularFile,
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => return None,
    })
}

/// Owners that all files have, instead of those in the image.
#[derive(Debug, Clone, Copy, Default)]
pub struct Owners {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// The attributes of an inode under the number `id`. DAXFS stores no times: they are 0. Device nodes have no numbers.
pub fn attributes(id: u64, metadata: &Metadata, holes: u64, owners: Owners) -> Option<FileAttr> {
    let kind = kind(metadata.mode)?;
    Some(FileAttr {
        ino: INodeNo(id),
        size: metadata.size,
        blocks: metadata.size.saturating_sub(holes).div_ceil(SECTOR),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: (metadata.mode & 0o7777) as u16,
        // An inode without links is one that the kernel forgets at once.
        nlink: metadata.nlink.max(1),
        uid: owners.uid.unwrap_or(metadata.uid),
        gid: owners.gid.unwrap_or(metadata.gid),
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    })
}

/// Bytes of a file that are stored nowhere, since a kernel that changed it left them out.
pub fn holes(file: &File) -> u64 {
    if file.extent().is_some() {
        return 0;
    }
    let pieces = file.pieces().unwrap_or_default();
    let holes = pieces.iter().filter(|piece| piece.source == PieceSource::Zeros);
    holes.fold(0, |sum: u64, piece| sum.saturating_add(piece.len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_those_of_linux() {
        assert_eq!(kind(0o100_644), Some(FileType::RegularFile));
        assert_eq!(kind(0o040_755), Some(FileType::Directory));
        assert_eq!(kind(0o060_600), Some(FileType::BlockDevice));
        assert_eq!([0, 0o030_000, 0o170_000].map(kind), [None; 3]);
    }
}
