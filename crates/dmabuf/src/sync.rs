//! Brackets around CPU access to a dma-buf.

#![allow(unsafe_code, reason = "the DMA_BUF_IOCTL_SYNC ioctl")]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::fd::fd_name;

/// `struct dma_buf_sync` of `linux/dma-buf.h`.
#[repr(C)]
struct DmaBufSync {
    flags: u64,
}

const _: () = assert!(size_of::<DmaBufSync>() == 8 && align_of::<DmaBufSync>() == 8);
const _: () = assert!(nix::request_code_write!(b'b', 0, size_of::<DmaBufSync>()) == 0x4008_6200);

nix::ioctl_write_ptr!(
    /// `DMA_BUF_IOCTL_SYNC`.
    dma_buf_sync,
    b'b',
    0,
    DmaBufSync
);

const SYNC_END: u64 = 1 << 2;

/// What the CPU does with a dma-buf between [`CpuAccess::begin`] and [`CpuAccess::finish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads: what devices wrote before becomes visible.
    Read,
    /// Writes: devices see them after the end.
    Write,
    /// Both.
    ReadWrite,
}

impl Access {
    fn flags(self) -> u64 {
        match self {
            Access::Read => 1,
            Access::Write => 2,
            Access::ReadWrite => 3,
        }
    }
}

/// A bracket around CPU access to a dma-buf's mapping; [`finish`](Self::finish) or drop ends it.
///
/// It keeps CPU caches and devices in step, and waits for device work that fences announce. It is not mutual
/// exclusion: other processes and the device can access the buffer meanwhile.
#[derive(Debug)]
#[must_use = "the access ends when this value is dropped"]
pub struct CpuAccess<'fd> {
    fd: BorrowedFd<'fd>,
    access: Access,
    open: bool,
}

impl<'fd> CpuAccess<'fd> {
    /// Begins CPU access.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `fd` is not a dma-buf, [`Error::Os`] if its driver fails.
    pub fn begin(fd: BorrowedFd<'fd>, access: Access) -> Result<CpuAccess<'fd>> {
        sync(fd, access.flags()).map_err(|e| match e {
            Errno::ENOTTY | Errno::EBADF => Error::invalid(fd_name(fd), "is not a dma-buf"),
            e => Error::os("DMA_BUF_IOCTL_SYNC start", fd_name(fd), e),
        })?;
        Ok(CpuAccess { fd, access, open: true })
    }

    /// Ends CPU access and reports whether that worked; after a failure devices may not see what was written.
    ///
    /// # Errors
    /// [`Error::Os`] if the buffer's driver fails.
    pub fn finish(mut self) -> Result<()> {
        self.open = false;
        self.end().map_err(|e| Error::os("DMA_BUF_IOCTL_SYNC end", fd_name(self.fd), e))
    }

    fn end(&self) -> nix::Result<()> {
        sync(self.fd, SYNC_END | self.access.flags())
    }
}

impl Drop for CpuAccess<'_> {
    fn drop(&mut self) {
        if self.open {
            // Nobody is left to tell; who needs to know calls `finish`.
            let _ = self.end();
        }
    }
}

fn sync(fd: BorrowedFd<'_>, flags: u64) -> nix::Result<()> {
    let request = DmaBufSync { flags };
    loop {
        // SAFETY: `fd` is open for as long as it is borrowed, and the request is a live `struct dma_buf_sync` (layout
        // asserted above), which this ioctl only reads; a descriptor that is no dma-buf answers ENOTTY.
        match unsafe { dma_buf_sync(fd.as_raw_fd(), &raw const request) } {
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            other => return other.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memfd::{HugePages, Memfd};
    use std::os::fd::AsFd;

    #[test]
    fn a_memfd_is_not_a_dma_buf() {
        let memfd = Memfd::create("sync", 4096, HugePages::No).unwrap();
        let error = CpuAccess::begin(memfd.as_fd(), Access::Read).unwrap_err();
        assert_eq!(error.to_string(), "memfd:sync: is not a dma-buf");
    }
}
