//! Having the kernel's own DAXFS mount memory.

#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::error::{Error, Result};

/// Memory that the kernel can mount.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Mountable<'a> {
    /// All of a dma-buf.
    DmaBuf(BorrowedFd<'a>),
    /// A range of physical memory.
    Physical {
        /// First byte.
        address: u64,
        /// Bytes.
        len: u64,
    },
}

/// Mounts the image in `memory` at the directory `at`, by the kernel's module `daxfs` (format version 8), which also
/// checks it by its own rules (`validate`). The mount holds the memory: the descriptor can be closed.
///
/// Those rules leave out what makes the kernel fail later, and memory that others write can change after them: mount
/// only what was checked before, and what only those write who may bring the kernel down.
///
/// # Errors
/// [`Error::Unavailable`] when the kernel has no such file system; [`Error::Refused`] without CAP_SYS_ADMIN, and with
/// the kernel's own words for an image or memory that it does not take; [`Error::Os`] with what else it answers.
pub fn mount(memory: Mountable<'_>, at: &Path) -> Result<()> {
    let place = at.display().to_string();
    let context = fsopen("daxfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
        Errno::NODEV => Error::Unavailable {
            what: "the file system daxfs".into(),
            needs: "the kernel's module daxfs (multikernel.io), loaded".into(),
        },
        Errno::PERM => refused("fsopen", "daxfs", errno, "mounting takes CAP_SYS_ADMIN".into()),
        _ => Error::os("fsopen", "daxfs", errno),
    })?;
    let context = context.as_fd();
    let said = |op, errno| match log(context) {
        words if words.is_empty() => Error::os(op, &place, errno),
        words => refused(op, &place, errno, words),
    };
    match memory {
        Mountable::DmaBuf(fd) => fsconfig_set_fd(context, "dmabuf", fd),
        Mountable::Physical { address, len } => fsconfig_set_string(context, "phys", format!("{address:#x}"))
            .and_then(|()| fsconfig_set_string(context, "size", len.to_string())),
    }
    .and_then(|()| fsconfig_set_flag(context, "validate"))
    .and_then(|()| fsconfig_create(context))
    .map_err(|errno| said("fsconfig", errno))?;
    let tree = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(|errno| said("fsmount", errno))?;
    move_mount(&tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| Error::os("move_mount", &place, errno))
}

/// Takes a mount away. Who has files of it open keeps them.
///
/// # Errors
/// [`Error::Os`] with the kernel's answer.
pub fn unmount(at: &Path) -> Result<()> {
    rustix::mount::unmount(at, UnmountFlags::DETACH)
        .map_err(|errno| Error::os("umount", at.display().to_string(), errno))
}

fn refused(op: &'static str, subject: &str, errno: Errno, advice: String) -> Error {
    Error::Refused { op, subject: subject.into(), source: io::Error::from(errno), advice }
}

/// What the kernel says of a mount that failed: lines that begin with a letter for how bad it is and a blank
/// (`e daxfs: ...`), one with each read.
fn log(context: BorrowedFd<'_>) -> String {
    let mut lines = Vec::new();
    let Ok(owned) = context.try_clone_to_owned() else { return String::new() };
    let (mut file, mut line) = (std::fs::File::from(owned), [0; 1024]);
    // There is a limited number of them, and then ENODATA.
    while let Ok(len @ 1..) = file.read(&mut line) {
        let text = String::from_utf8_lossy(&line[..len]);
        let text = text.trim_end();
        lines.push(text.get(2..).unwrap_or(text).to_owned());
    }
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        let place = tempfile::tempdir().unwrap();
        let memory = crate::Memfd::create("mount", 4096, crate::HugePages::No).unwrap();
        let error = mount(Mountable::DmaBuf(memory.as_fd()), place.path()).unwrap_err();
        // Without the right to, without the module, or with it: this is no dma-buf.
        let expected = ["CAP_SYS_ADMIN", "module daxfs", "fsconfig"];
        assert!(expected.iter().any(|part| error.to_string().contains(part)), "{error}");
        let error = unmount(place.path()).unwrap_err();
        assert!(matches!(error, Error::Os { op: "umount", .. }), "{error}");
    }
}
