//! Has a disk write while there is more to come.

#![allow(unsafe_code, reason = "sync_file_range(2), which nix does not have")]

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Has the kernel begin to write `range` of a file to its disk. Who syncs the file in the end waits for the rest only,
/// and hears of all that went wrong: so nothing is said here, not even that a file system has no such thing.
pub(crate) fn begin(file: &File, range: Range<u64>) {
    let (Ok(start), Ok(len)) = (i64::try_from(range.start), i64::try_from(range.end - range.start)) else {
        return;
    };
    let (fd, flags) = (file.as_raw_fd(), nix::libc::SYNC_FILE_RANGE_WRITE);
    // SAFETY: `file` is borrowed, so its descriptor is open. The call gets numbers only, and changes neither memory nor
    // what the file holds; without the flags that wait it takes no error of the file either, which fsync(2) is to report.
    let _ = unsafe { nix::libc::sync_file_range(fd, start, len, flags) };
}
