//! What a descriptor is: which kind of memory stands behind it, how long it is, who may write it.

#![deny(unsafe_code)]

use std::os::fd::BorrowedFd;

use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Error, Result};
use crate::fd::fd_name;
use crate::kind::{FdKind, Found, recognise};

/// What [`describe`] finds out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FdInfo {
    /// Kind of memory.
    pub kind: FdKind,
    /// Length in bytes.
    pub len: u64,
    /// Whether the descriptor's access mode allows writing (seals may still forbid it).
    pub writable: bool,
    /// `st_dev`; together with `ino` the same for two descriptors exactly when they are of one object.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

impl FdInfo {
    /// Memory of which only this is known, for code that plans before there is a descriptor, and for tests.
    pub fn new(kind: FdKind, len: u64) -> Self {
        Self { kind, len, writable: false, dev: 0, ino: 0 }
    }
}

/// Finds out what `fd` is.
///
/// # Errors
/// [`Error::NotShareable`] for everything that is not memory: directories, pipes, sockets, terminals, block devices,
/// other character devices. [`Error::Unavailable`] for a devdax device without a driver and a PCI device that was
/// removed. [`Error::Invalid`] for descriptors that cannot be read (O_WRONLY, O_PATH).
pub fn describe(fd: BorrowedFd<'_>) -> Result<FdInfo> {
    describe_found(fd).map(|(info, _)| info)
}

/// As [`describe`], with what matters for mapping.
pub(crate) fn describe_found(fd: BorrowedFd<'_>) -> Result<(FdInfo, Found<'_>)> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|e| Error::os("fcntl F_GETFL", fd_name(fd), e))?;
    if flags & libc::O_PATH != 0 {
        return Err(Error::invalid(fd_name(fd), "opened with O_PATH, which gives no access to the contents"));
    }
    let access = flags & libc::O_ACCMODE;
    let found = recognise(fd)?;
    if access == libc::O_WRONLY {
        return Err(Error::invalid(fd_name(fd), "open for writing only, but it has to be read"));
    }
    let info = FdInfo {
        kind: found.kind.describe(&found.seen, &found.layout)?,
        len: found.layout.len,
        writable: access != libc::O_RDONLY,
        dev: found.seen.stat().st_dev,
        ino: found.seen.stat().st_ino,
    };
    Ok((info, found))
}

#[cfg(test)]
#[path = "describe_tests.rs"]
mod tests;
