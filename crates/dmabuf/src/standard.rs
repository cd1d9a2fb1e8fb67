//! Standard input, output and error that are there, whatever a process was started with.

#![allow(unsafe_code, reason = "fcntl on a descriptor that is known by its number only")]

use std::os::fd::IntoRawFd;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// Opens `/dev/null` in the place of each of the descriptors 0, 1 and 2 that is closed. Otherwise the next file that is
/// opened gets such a number, and what is written to standard error goes into it. To be called first in a command, before
/// other threads open anything.
pub fn fill_standard_descriptors() {
    for number in 0..3 {
        // SAFETY: this fcntl takes integers only and touches no memory; a number that is no open descriptor is EBADF.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } != -1 {
            continue;
        }
        // The lowest free number is the one that was looked at. It stays open for the life of the process.
        match open("/dev/null", OFlag::O_RDWR, Mode::empty()) {
            Ok(fd) => drop(fd.into_raw_fd()),
            // Without /dev/null nothing can be put there.
            Err(_) => return,
        }
    }
}
