//! Trees of mounts that are in no place yet: cut out of the machine by a path, and put at another one of the container,
//! wherever that path leads by then.

#![allow(unsafe_code, reason = "mount_setattr(2)")]

use anyhow::Context;
use nix::errno::Errno;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// A file or directory of the machine, with what is mounted below it.
#[derive(Debug)]
pub struct Tree {
    fd: OwnedFd,
    pub is_directory: bool,
}

/// What holds for all that is mounted in a tree, beside what holds already.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    pub read_only: bool,
    /// No programs, devices or set-user-ID bits.
    pub data_alone: bool,
}

impl Tree {
    /// What a path leads to now.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(path: &Path, limits: Limits) -> anyhow::Result<Self> {
        let subject = || path.display().to_string();
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let fd = open_tree(CWD, path, flags).with_context(subject)?;
        let metadata = std::fs::metadata(path).with_context(subject)?;
        let tree = Self { fd, is_directory: metadata.is_dir() };
        tree.limit(limits).with_context(|| format!("{}: mount_setattr (Linux 5.12)", subject()))?;
        Ok(tree)
    }

    /// Sets what holds for it, and that mounts of the machine that come and go do not in it.
    fn limit(&self, limits: Limits) -> nix::Result<()> {
        let mut set = 0;
        if limits.read_only {
            set |= libc::MOUNT_ATTR_RDONLY;
        }
        if limits.data_alone {
            set |= libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        }
        let attributes =
            libc::mount_attr { attr_set: set, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
        let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
        // SAFETY: the descriptor is open, the path is a string with its NUL, and the call reads one `struct mount_attr` of
        // the size that it is told.
        let status = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.fd.as_raw_fd(),
                c"".as_ptr(),
                flags,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            )
        };
        Errno::result(status).map(drop)
    }

    /// Puts it at a path, which is of its kind.
    ///
    /// # Errors
    /// What the system says.
    pub fn put(&self, at: &Path) -> anyhow::Result<()> {
        let subject = || at.display().to_string();
        let point =
            rustix::fs::open(at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).with_context(subject)?;
        let by_descriptors =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(self.fd.as_fd(), "", point.as_fd(), "", by_descriptors).with_context(subject)
    }

    /// Puts it at a path, where a file or directory is made for it if there is none.
    ///
    /// # Errors
    /// What the system says.
    pub fn put_new(&self, at: &Path) -> anyhow::Result<()> {
        let made = if at.exists() {
            Ok(())
        } else if self.is_directory {
            std::fs::create_dir_all(at)
        } else {
            let folder = at.parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(folder).and_then(|()| std::fs::File::create(at).map(drop))
        };
        made.with_context(|| at.display().to_string())?;
        self.put(at)
    }
}
