//! Becomes the command that uses the image.

use crate::Error;
use daxfs::Part;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Replaces this process by `program`, which inherits `fd`, with the image in `part` of it: no process stays behind,
/// signals and the exit status are the command's own. Returns only when that fails.
pub(super) fn exec(program: &OsStr, arguments: &[OsString], fd: OwnedFd, part: Part) -> Error {
    if let Err(errno) = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())) {
        return Error::io("hand over the image to", Path::new(program), errno);
    }
    let number = fd.as_raw_fd();
    let error = Command::new(program)
        .args(arguments)
        .env("DAXFS_FD", number.to_string())
        .env("DAXFS_IMAGE", format!("fd:{number}{part}"))
        .exec();
    Error::io("run", Path::new(program), error)
}
