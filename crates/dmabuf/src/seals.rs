//! Seals of memory.

#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Error, Result};
use crate::fd::fd_name;

bitflags::bitflags! {
    /// Seals of a memfd: what nobody can do to it any more, whatever descriptor or mapping they hold.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Seals: u32 {
        /// No further seals.
        const SEAL = 0x01;
        /// The length cannot decrease: mappings never raise SIGBUS. A udmabuf requires it.
        const SHRINK = 0x02;
        /// The length cannot increase.
        const GROW = 0x04;
        /// The contents cannot change. Refused (EBUSY) while a writable shared mapping or a udmabuf exists.
        const WRITE = 0x08;
        /// No new write access; writable mappings and dma-bufs made before keep theirs.
        const FUTURE_WRITE = 0x10;
        /// The executable bits cannot change.
        const EXEC = 0x20;
    }
}

impl Seals {
    /// The seals that prove that contents and length are final.
    pub const IMMUTABLE: Seals = Seals::WRITE.union(Seals::SHRINK).union(Seals::GROW);
}

/// The seals of `fd`, or `None` if it cannot be sealed at all (a file outside of tmpfs, a device, a pipe).
///
/// A file on tmpfs that is no memfd answers `Some(Seals::SEAL)`.
///
/// # Errors
/// [`Error::Os`] if the kernel answers anything but a set of seals or "not sealable".
pub fn seals(fd: BorrowedFd<'_>) -> Result<Option<Seals>> {
    match fcntl(fd, FcntlArg::F_GET_SEALS) {
        Ok(bits) => Ok(Some(Seals::from_bits_retain(bits.cast_unsigned()))),
        Err(Errno::EINVAL) => Ok(None),
        Err(e) => Err(Error::os("fcntl F_GET_SEALS", fd_name(fd), e)),
    }
}
