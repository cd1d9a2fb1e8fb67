//! Mounting an image by the kernel's own DAXFS, which is a module that few machines have.

#![allow(unsafe_code, reason = "fsopen(2) and its kin, for which no crate of the workspace has a wrapper")]

use std::env;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

/// Commands of fsconfig(2), from `linux/mount.h`.
const SET_FLAG: libc::c_uint = 0;
const SET_STRING: libc::c_uint = 1;
const SET_FD: libc::c_uint = 5;
const CMD_CREATE: libc::c_uint = 6;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

/// Whether this kernel has the file system. What is missing is printed.
///
/// # Panics
/// Where it is missing and `DAXFS_REQUIRE_MODULE` is in the environment, as in the kernel tests that were given it.
pub fn are_possible() -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = known.lines().any(|line| line.split_whitespace().last() == Some("daxfs"));
    if !known {
        assert!(env::var_os("DAXFS_REQUIRE_MODULE").is_none(), "the kernel's module daxfs is not loaded");
        eprintln!("not run: the kernel's module daxfs is not loaded");
    }
    known
}

/// A mounted DAXFS; unmounted on drop.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts the image in a dma-buf at an existing directory, with the option `validate`.
    ///
    /// # Errors
    /// What the kernel answered: EINVAL for what is no image to it.
    pub fn of_dma_buf(memory: impl AsFd, at: &Path) -> io::Result<Mount> {
        let memory = memory.as_fd();
        Self::new(at, |context| configure(context, SET_FD, Some("dmabuf"), None, memory.as_raw_fd()))
    }

    /// Mounts the image in a range of physical memory.
    ///
    /// # Errors
    /// As for [`Mount::of_dma_buf`].
    pub fn of_range(address: u64, len: u64, at: &Path) -> io::Result<Mount> {
        Self::new(at, |context| {
            configure(context, SET_STRING, Some("phys"), Some(&format!("{address:#x}")), 0)?;
            configure(context, SET_STRING, Some("size"), Some(&len.to_string()), 0)
        })
    }

    fn new(at: &Path, source: impl Fn(&OwnedFd) -> io::Result<()>) -> io::Result<Mount> {
        // SAFETY: the name is a string with a NUL, which the kernel only reads.
        let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, c"daxfs".as_ptr(), 1) })?;
        source(&context)?;
        configure(&context, SET_FLAG, Some("validate"), None, 0)?;
        configure(&context, CMD_CREATE, None, None, 0)?;
        let number = context.as_raw_fd();
        // SAFETY: this call takes integers only.
        let tree = descriptor(unsafe { libc::syscall(libc::SYS_fsmount, number, FSMOUNT_CLOEXEC, 0) })?;
        let target = CString::new(at.as_os_str().as_bytes())?;
        // SAFETY: both paths are strings with a NUL, which the kernel only reads.
        let moved = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        if moved != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Mount(at.to_owned()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Ok(path) = CString::new(self.0.as_os_str().as_bytes()) {
            // SAFETY: the path is a string with a NUL, which the kernel only reads.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

/// One fsconfig(2).
fn configure(
    context: &OwnedFd,
    command: libc::c_uint,
    key: Option<&str>,
    value: Option<&str>,
    number: libc::c_int,
) -> io::Result<()> {
    let [key, value] = [key, value].map(|text| text.map(|text| CString::new(text).unwrap()));
    let [key_ptr, value_ptr] =
        [&key, &value].map(|text| text.as_ref().map_or(ptr::null(), |text| text.as_ptr()));
    // SAFETY: null, or strings with a NUL that live until the end of this function and that the kernel only reads.
    let done = unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key_ptr, value_ptr, number)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    match libc::c_int::try_from(answer) {
        // SAFETY: the kernel has just opened it for the call whose answer this is: owned by nobody.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
