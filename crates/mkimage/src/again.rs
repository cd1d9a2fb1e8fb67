//! System calls that are made again when a signal has interrupted them: see [`uninterrupted`].

use dmabuf::uninterrupted;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::{NixPath, Result};
use std::os::fd::{AsFd, OwnedFd};

/// open(2).
pub(crate) fn open<P: NixPath + ?Sized>(path: &P, flags: OFlag, mode: Mode) -> Result<OwnedFd> {
    uninterrupted(|| nix::fcntl::open(path, flags, mode))
}

/// openat(2).
pub(crate) fn openat<P: NixPath + ?Sized>(
    at: impl AsFd,
    path: &P,
    flags: OFlag,
    mode: Mode,
) -> Result<OwnedFd> {
    uninterrupted(|| nix::fcntl::openat(at.as_fd(), path, flags, mode))
}

/// fsync(2).
pub(crate) fn fsync(file: impl AsFd) -> Result<()> {
    uninterrupted(|| nix::unistd::fsync(file.as_fd()))
}
