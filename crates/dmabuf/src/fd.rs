//! Descriptors: opening, duplicating and comparing them, and what they are called in messages.

#![allow(unsafe_code, reason = "fcntl on a descriptor that is known by its number only")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;
use nix::sys::statfs::Statfs;

use crate::error::{Error, Result};

/// `F_DUPFD_QUERY` of `linux/fcntl.h` (Linux 6.10): whether two descriptors of this process are duplicates.
const F_DUPFD_QUERY: libc::c_int = 1024 + 3;
/// `KCMP_FILE` of `linux/kcmp.h`: compare what two descriptors of two processes lead to.
const KCMP_FILE: libc::c_long = 0;

/// The type of a file system: one of the numbers of `linux/magic.h`.
pub(crate) fn fs_type(fs: &Statfs) -> u32 {
    // The magic numbers have 32 bits; f_type is a signed word of the architecture's size.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "keeps the 32 bits that are defined"
    )]
    let magic = fs.filesystem_type().0 as u32;
    magic
}

/// Where `/proc/self/fd` says that a descriptor leads now: `/memfd:NAME (deleted)`, `/dmabuf:NAME`, a path. For people
/// only: a file may be replaced in the next moment. `None` without a mounted `/proc`.
pub fn fd_link(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()
}

/// A name for messages: `memfd:llama`, `dmabuf:`, a path, or `fd 7`.
pub(crate) fn fd_name(fd: BorrowedFd<'_>) -> String {
    let Some(link) = fd_link(fd) else { return format!("fd {}", fd.as_raw_fd()) };
    let text = link.to_string_lossy();
    let text = text.strip_suffix(" (deleted)").unwrap_or(&text);
    match text.strip_prefix('/') {
        Some(rest) if rest.starts_with("memfd:") || rest.starts_with("dmabuf:") => rest.to_owned(),
        _ => text.to_owned(),
    }
}

/// Duplicates a descriptor that this process inherited and knows by its number only, as `fd:N` on a command line.
/// The copy is close-on-exec; the original stays as it is.
///
/// # Errors
/// [`Error::Os`] with EBADF if no such descriptor is open.
pub fn duplicate(raw: RawFd) -> Result<OwnedFd> {
    // SAFETY: this fcntl takes integers only and touches no memory; a number that is not open is answered EBADF.
    let new = unsafe { libc::fcntl(raw, libc::F_DUPFD_CLOEXEC, 3) };
    if new < 0 {
        return Err(Error::os("duplicate", format!("fd {raw}"), io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just opened `new` for this call, so it is valid and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Opens the memory of `fd` once more, through `/proc/self/fd`, for writing too if `fd` is for reading and writing: a
/// new open file, which nobody else has, over the same memory.
///
/// # Errors
/// [`Error::Os`]: a dma-buf cannot be opened by any path (ENXIO); EACCES where the mode of a memfd or a device does not
/// allow it; ENOENT without a mounted `/proc`.
pub fn reopen(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|e| Error::os("fcntl F_GETFL", fd_name(fd), e))?;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(Path::new(&path), flags & libc::O_ACCMODE == libc::O_RDWR)
}

/// Whether two descriptors are of one open file, as duplicates are, and descriptors that were passed over a socket.
/// Where the kernel does not tell (it is older than 6.10, and kcmp(2) is left out or forbidden, as in containers),
/// all descriptors of one memory count as that.
///
/// # Errors
/// [`Error::Os`] from fstat.
pub fn same_open_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Result<bool> {
    let object = |fd| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    let object = |fd| object(fd).map_err(|e| Error::os("fstat", fd_name(fd), e));
    if object(one)? != object(other)? {
        return Ok(false);
    }
    Ok(are_duplicates(one, other).or_else(|| compare_files(one, other)).unwrap_or(true))
}

/// `F_DUPFD_QUERY`; `None` where the kernel does not know it.
fn are_duplicates(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Option<bool> {
    // SAFETY: this fcntl takes integers only and touches no memory; both descriptors are open.
    match unsafe { libc::fcntl(one.as_raw_fd(), F_DUPFD_QUERY, libc::c_long::from(other.as_raw_fd())) } {
        1 => Some(true),
        0 => Some(false),
        _ => None,
    }
}

/// kcmp(2); `None` where the kernel does not have it or forbids it.
fn compare_files(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> Option<bool> {
    let pid = libc::c_long::from(std::process::id().cast_signed());
    // The call takes words: a number of 32 bits would leave the upper half of its word open.
    let [one, other] = [one, other].map(|fd| libc::c_long::from(fd.as_raw_fd()));
    // SAFETY: this system call takes five integers and touches no memory of the process.
    match unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, one, other) } {
        0 => Some(true),
        // They differ, and this is the order in which they are.
        1..=3 => Some(false),
        _ => None,
    }
}

/// Opens `path` for reading, close-on-exec. A FIFO does not block and a terminal does not become the controlling one.
///
/// # Errors
/// [`Error::Os`] with the kernel's answer.
pub fn open_read_only(path: &Path) -> Result<OwnedFd> {
    open(path, false)
}

/// Opens `path` as [`open_read_only`] does, if it is no symbolic link.
///
/// # Errors
/// [`Error::Os`] with the kernel's answer: `ELOOP` for a link.
pub fn open_no_follow(path: &Path) -> Result<OwnedFd> {
    open_with(path, false, OFlag::O_NOFOLLOW)
}

/// Opens `path` for reading, and for writing if asked to.
pub(crate) fn open(path: &Path, write: bool) -> Result<OwnedFd> {
    open_with(path, write, OFlag::empty())
}

fn open_with(path: &Path, write: bool, more: OFlag) -> Result<OwnedFd> {
    fs::OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY | more).bits())
        .open(path)
        .map(OwnedFd::from)
        .map_err(|e| Error::os("open", path.display().to_string(), e))
}

#[cfg(test)]
#[path = "fd_tests.rs"]
mod tests;
