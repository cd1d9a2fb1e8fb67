//! Clones ranges of files: on file systems that can (XFS, btrfs, bcachefs), two files then share their blocks
//! until one of them is written to, and nothing is copied.

#![allow(unsafe_code, reason = "the FICLONERANGE ioctl")]

use dmabuf::uninterrupted;
use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;
use std::fs::File;
use std::os::fd::AsRawFd;

/// `struct file_clone_range` of `linux/fs.h`.
#[repr(C)]
struct FileCloneRange {
    source: i64,
    source_offset: u64,
    source_length: u64,
    target_offset: u64,
}

const _: () = assert!(size_of::<FileCloneRange>() == 32 && align_of::<FileCloneRange>() == 8);
const _: () = assert!(std::mem::offset_of!(FileCloneRange, target_offset) == 24);
const _: () = assert!(nix::request_code_write!(0x94, 13, size_of::<FileCloneRange>()) == 0x4020_940d);

nix::ioctl_write_ptr!(
    /// `FICLONERANGE`.
    clone_range,
    0x94,
    13,
    FileCloneRange
);

/// What lengths and offsets of clones into this file are multiples of: the blocks of its file system.
pub(crate) fn unit(target: &File) -> u64 {
    // A guess that is wrong costs a refusal, after which the bytes are copied.
    fstatvfs(target).map_or(4096, |system| system.block_size()).max(1)
}

/// Shares the first `len` bytes of `source` with `target` from `target_offset` on. Lengths and offsets have to be
/// multiples of the file system's block size.
///
/// `Ok(false)`: these two files, or this range, cannot be cloned.
pub(crate) fn clone(source: &File, target: &File, target_offset: u64, len: u64) -> nix::Result<bool> {
    let request = FileCloneRange {
        source: i64::from(source.as_raw_fd()),
        source_offset: 0,
        source_length: len,
        target_offset,
    };
    // SAFETY: both descriptors are open while borrowed, and the request is a live `struct file_clone_range` (layout
    // asserted above), which this ioctl only reads. It changes the file `target`, no memory of this process: a
    // mapping of that file, if somebody made one, is a matter of the one who made it.
    match uninterrupted(|| unsafe { clone_range(target.as_raw_fd(), &raw const request) }) {
        Ok(_) => Ok(true),
        // EOPNOTSUPP, ENOTTY: no such operation; EXDEV: two file systems; EINVAL: not whole blocks, or a file that
        // cannot share its blocks; EPERM, ETXTBSY: swap files and the like. Copying decides about those.
        Err(
            Errno::EOPNOTSUPP
            | Errno::ENOTTY
            | Errno::EXDEV
            | Errno::EINVAL
            | Errno::EPERM
            | Errno::ETXTBSY
            | Errno::ENOSYS,
        ) => Ok(false),
        Err(errno) => Err(errno),
    }
}
