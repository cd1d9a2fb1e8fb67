//! Whether each thread can have a queue of the kernel's requests of its own.

#![allow(unsafe_code, reason = "ioctl(2)")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// `FUSE_DEV_IOC_CLONE`, `_IOR(229, 0, u32)`: makes a descriptor one of the mount that another one is of.
const CLONE: u64 = 2 << 30 | 4 << 16 | 229 << 8;

/// Whether the system knows descriptors with queues of their own: kernels from 4.2 on do, some emulators of system calls do
/// not. Without them all threads wait at one descriptor.
pub(crate) fn are_known() -> bool {
    // Who cannot open it mounts through a program that can, on a kernel that is no such emulator's.
    let (Ok(one), Ok(other)) = (device(), device()) else { return true };
    let number: RawFd = other.as_raw_fd();
    // SAFETY: the request reads an `u32` from the address, and `number` is one of four bytes, which lives until the call
    // returns; that its sign differs means nothing to the kernel. `one` is open for as long.
    let answer = unsafe { libc::ioctl(one.as_raw_fd(), CLONE as _, &raw const number) };
    // The other one is of no mount, which a system that knows the request says otherwise.
    answer == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOTTY)
}

fn device() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/fuse")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_system_says_what_mounts_find() {
        // A descriptor of something else knows no such request, wherever it is asked.
        let null = File::open("/dev/null").unwrap();
        let number: RawFd = null.as_raw_fd();
        // SAFETY: as above.
        let answer = unsafe { libc::ioctl(number, CLONE as _, &raw const number) };
        assert_eq!((answer, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ENOTTY)));
        if device().is_ok() && !cfg!(target_arch = "aarch64") {
            assert!(are_known());
        }
    }
}
