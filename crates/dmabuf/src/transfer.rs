//! Sending memory to a file, pipe or socket by the best way that both sides have.
//!
//! | way | when | copies |
//! |---|---|---|
//! | copy_file_range(2) | the memory is a file or memfd, the target a file of the same file system | none where blocks can be shared |
//! | sendfile(2) | the memory is a file or memfd | none into pipes and sockets, else one in the kernel |
//! | write(2) of the mapping | any memory | one in the kernel |
//! | write(2) of a buffer | where the kernel cannot reach the mapping (EFAULT: O_DIRECT from a dma-buf) | two |
//!
//! A way that the kernel refuses is left for the next one; nothing is sent twice.

#![allow(unsafe_code, reason = "write(2) from memory that has no slice, poll(2), sendfile(2)")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::sys::stat::{SFlag, fstat};

use crate::view::{BOUNCE, SharedBytes};

/// Bytes per step: enough for the system call not to count, little enough to look for signals in between.
const STEP: usize = 16 << 20;
/// What O_DIRECT wants of a buffer's address on every disk in use.
const SECTOR: usize = 4096;

/// How bytes are sent; see the table of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Way {
    /// `copy_file_range(2)`.
    CopyFileRange,
    /// `sendfile(2)`.
    SendFile,
    /// `write(2)` from the mapping.
    Write,
    /// `write(2)` from a buffer of this process.
    Bounce,
}

/// Memory on its way to a descriptor, step by step.
///
/// What is sent without a copy, into a pipe or socket, is read when the other side takes it: if somebody writes to the
/// memory meanwhile, later bytes may arrive.
#[derive(Debug)]
pub struct Transfer<'a> {
    view: SharedBytes<'a>,
    /// The file that the view maps, and where in it the view begins.
    file: Option<(BorrowedFd<'a>, u64)>,
    done: usize,
    way: Option<Way>,
    bounce: Vec<u8>,
}

impl<'a> Transfer<'a> {
    /// Sends the bytes of `view`. If they are those of a file or memfd, `file` says which, and where they begin in it.
    #[must_use]
    pub fn new(view: SharedBytes<'a>, file: Option<(BorrowedFd<'a>, u64)>) -> Transfer<'a> {
        Transfer { view, file, done: 0, way: None, bounce: Vec::new() }
    }

    /// Bytes sent so far.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done as u64
    }

    /// Whether all is sent.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done == self.view.len()
    }

    /// How the last bytes went; `None` before the first.
    #[must_use]
    pub fn way(&self) -> Option<Way> {
        self.way
    }

    /// Sends up to 16 MiB to `to`, at its file position, and returns how many bytes; 0 only when all is sent.
    ///
    /// # Errors
    /// Those of the system calls, also EINTR and EAGAIN, after which the step can be repeated;
    /// [`io::ErrorKind::UnexpectedEof`] when the file was cut short.
    pub fn step(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        while !self.is_done() {
            let way = match self.way {
                Some(way) => way,
                None => self.first(to)?,
            };
            self.way = Some(way);
            let sent = match way {
                Way::CopyFileRange => self.copy_file_range(to),
                Way::SendFile => self.send_file(to),
                Way::Write => self.write(to),
                Way::Bounce => self.write_bounced(to),
            };
            match sent {
                Ok(0) => {
                    let text =
                        format!("{} bytes are missing: the file was cut short", self.view.len() - self.done);
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                Ok(sent) => {
                    self.done += sent;
                    return Ok(sent);
                }
                Err(error) => match self.next(way, &error) {
                    Some(next) => self.way = Some(next),
                    None => return Err(error),
                },
            }
        }
        Ok(0)
    }

    /// Sends all that is left, waiting where `to` does not take more at the moment, at most `patience` each time.
    ///
    /// # Errors
    /// As [`step`](Self::step), without EINTR and EAGAIN; [`io::ErrorKind::TimedOut`].
    pub fn finish(&mut self, to: BorrowedFd<'_>, patience: Option<Duration>) -> io::Result<()> {
        while !self.is_done() {
            match self.step(to) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_through_signals(to, patience)?
                }
                other => drop(other?),
            }
        }
        Ok(())
    }

    fn first(&self, to: BorrowedFd<'_>) -> io::Result<Way> {
        if self.file.is_none() {
            return Ok(Way::Write);
        }
        let kind = SFlag::from_bits_truncate(fstat(to)?.st_mode & SFlag::S_IFMT.bits());
        Ok(if kind == SFlag::S_IFREG { Way::CopyFileRange } else { Way::SendFile })
    }

    /// What to try when `way` failed so; `None` when no other way would do better.
    fn next(&self, way: Way, error: &io::Error) -> Option<Way> {
        let number = error.raw_os_error()?;
        let refused = matches!(
            number,
            libc::EXDEV
                | libc::EINVAL
                | libc::ENOSYS
                | libc::EOPNOTSUPP
                | libc::EPERM
                | libc::EBADF
                | libc::ETXTBSY
                | libc::EOVERFLOW
        );
        match way {
            Way::CopyFileRange if refused => Some(Way::SendFile),
            Way::SendFile if refused => Some(Way::Write),
            // Pages of a file that are gone answer the same, and reading them here would end the process.
            Way::Write if number == libc::EFAULT && self.file.is_none() => Some(Way::Bounce),
            _ => None,
        }
    }

    fn copy_file_range(&self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let Some((fd, start)) = self.file else { return Err(Errno::EINVAL.into()) };
        let mut from = self.position(start)?;
        Ok(copy_file_range(fd, Some(&mut from), to, None, self.left())?)
    }

    fn send_file(&self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let Some((fd, start)) = self.file else { return Err(Errno::EINVAL.into()) };
        let mut from = self.position(start)?;
        // SAFETY: both descriptors are open while they are borrowed, and `from` is a live offset that the kernel
        // updates.
        let sent = unsafe { libc::sendfile(to.as_raw_fd(), fd.as_raw_fd(), &raw mut from, self.left()) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn write(&self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let ptr = self.view.as_ptr().wrapping_add(self.done);
        // SAFETY: the kernel reads at most `left` bytes of the view's readable memory, which lives for `'a`; what
        // others write meanwhile is the kernel's to copy. `to` is open while it is borrowed.
        let sent = unsafe { libc::write(to.as_raw_fd(), ptr.cast(), self.left()) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn write_bounced(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let len = self.left().min(BOUNCE);
        self.bounce.resize(BOUNCE + SECTOR, 0);
        let start = self.bounce.as_ptr().align_offset(SECTOR).min(SECTOR);
        let bytes = &mut self.bounce[start..start + len];
        self.view.read_at(self.done as u64, bytes).map_err(io::Error::other)?;
        Ok(nix::unistd::write(to, bytes)?)
    }

    fn left(&self) -> usize {
        (self.view.len() - self.done).min(STEP)
    }

    fn position(&self, start: u64) -> io::Result<libc::off_t> {
        libc::off_t::try_from(start + self.done as u64).map_err(|_| Errno::EOVERFLOW.into())
    }
}

/// As [`wait_writable`], without EINTR; signals do not make it wait longer.
fn wait_through_signals(fd: BorrowedFd<'_>, patience: Option<Duration>) -> io::Result<()> {
    // Without an end when the patience is longer than the clock can count.
    let end = patience.and_then(|patience| Instant::now().checked_add(patience));
    loop {
        match wait_writable(fd, end.map(|end| end.saturating_duration_since(Instant::now()))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Waits until `fd` takes bytes, at most `patience`.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`], and those of `poll(2)`, EINTR included.
pub fn wait_writable(fd: BorrowedFd<'_>, patience: Option<Duration>) -> io::Result<()> {
    wait_for(fd, libc::POLLOUT, patience)
}

/// Waits until `fd` has bytes or a message, or its other end is gone, at most `patience`.
///
/// # Errors
/// As for [`wait_writable`].
pub fn wait_readable(fd: BorrowedFd<'_>, patience: Option<Duration>) -> io::Result<()> {
    wait_for(fd, libc::POLLIN, patience)
}

fn wait_for(fd: BorrowedFd<'_>, events: libc::c_short, patience: Option<Duration>) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    let timeout = patience.map_or(-1, |patience| {
        // A rest of a millisecond is one: 0 would not wait at all.
        libc::c_int::try_from(patience.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
    });
    // SAFETY: one live `pollfd`, which the kernel updates.
    match unsafe { libc::poll(&raw mut poll, 1, timeout) } {
        0 => Err(io::ErrorKind::TimedOut.into()),
        1 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
