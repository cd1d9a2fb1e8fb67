//! Having the kernel mount memory and files: by its own DAXFS, or by EROFS.

#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::error::{Error, Result};
use crate::fd::{fd_link, fd_name};
use crate::loops::{Backing, LoopDevice};

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

const CHANGED: &str = "somebody has given the device to another file meanwhile; try again";
const NO_RIGHTS: &str = "mounting takes CAP_SYS_ADMIN, and that of the first user namespace";

/// Mounts the image in `memory` at the directory `at`, by the kernel's module `daxfs` (format version 8), which also
/// checks it by its own rules (`validate`). `backing` is the file with the contents of a split image, which the kernel
/// opens by its path, and keeps open; for such images its rules are wrong, and left out. The mount holds the memory: the descriptor can be closed. Set-user-ID bits
/// and device nodes are of no effect there (`nosuid`, `nodev`), since who can read a mounted dma-buf can write it.
///
/// The kernel's rules leave out what makes it fail later, and memory that others write can change after them: mount
/// only what was checked before, and what only those write who may bring the kernel down.
///
/// # Errors
/// [`Error::Unavailable`] when the kernel has no such file system; [`Error::Refused`] without CAP_SYS_ADMIN, and with
/// the kernel's own words for an image or memory that it does not take; [`Error::Os`] with what else it answers.
pub fn mount(memory: Mountable<'_>, at: &Path, backing: Option<&Path>) -> Result<()> {
    let point = mount_point(at)?;
    let context = open_file_system("daxfs", "the kernel's module daxfs (multikernel.io), loaded")?;
    let context = context.as_fd();
    let said = |op, errno| refused(op, memory.to_string(), errno, log(context));
    match memory {
        Mountable::DmaBuf(fd) => fsconfig_set_fd(context, "dmabuf", fd),
        Mountable::Physical { address, len } => fsconfig_set_string(context, "phys", format!("{address:#x}"))
            .and_then(|()| fsconfig_set_string(context, "size", len.to_string())),
    }
    .and_then(|()| match backing {
        None => fsconfig_set_flag(context, "validate"),
        Some(path) => fsconfig_set_string(context, "backing", path),
    })
    .and_then(|()| fsconfig_create(context))
    .map_err(|errno| said("fsconfig", errno))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let tree = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|errno| said("fsmount", errno))?;
    put(tree.as_fd(), point.as_fd(), at)
}

/// What an EROFS lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErofsMount {
    /// The file itself (Linux 6.12).
    File,
    /// This loop device, which goes with its last mount.
    Loop(PathBuf),
}

/// Mounts the EROFS that begins at byte `offset` of a file or memfd, and has `len` bytes, at the directory `at`. All mounts
/// of the same bytes, by whatever process, have one loop device and so one copy in the page cache; of a file on a disk
/// that is the only one, of memory a second. `state` is another number when the contents are others: mounts after that
/// do not see pages that were read before. Without loop devices the kernel mounts the file itself, where it does that.
/// Set-user-ID bits, file capabilities and device nodes are of no effect there (`nosuid`, `nodev`).
///
/// The kernel believes what it finds, and reads it again and again: mount only what was checked before, and what only
/// those write who may bring the kernel down.
///
/// # Errors
/// [`Error::Unavailable`] when the kernel has no EROFS or no loop devices; [`Error::Refused`] without CAP_SYS_ADMIN, and
/// with the kernel's own words; [`Error::Os`] with what else it answers.
pub fn mount_erofs(fd: BorrowedFd<'_>, offset: u64, len: u64, state: u64, at: &Path) -> Result<ErofsMount> {
    let point = mount_point(at)?;
    let backing = Backing { fd, offset, len, state };
    let device = match LoopDevice::of(backing) {
        Ok(device) => device,
        Err(error) => {
            let file = mount_file(backing).ok_or(error)?;
            return put(file.as_fd(), point.as_fd(), at).map(|()| ErofsMount::File);
        }
    };
    let tree = configure_erofs(device.path())?;
    if !device.is_of(backing) {
        return Err(refused(
            "LOOP_GET_STATUS64",
            device.path().display().to_string(),
            Errno::BUSY,
            CHANGED.into(),
        ));
    }
    put(tree.as_fd(), point.as_fd(), at)?;
    Ok(ErofsMount::Loop(device.path().to_path_buf()))
}

/// Mounts all of a file without a device (Linux 6.12), where its file system allows it.
fn mount_file(backing: Backing<'_>) -> Option<OwnedFd> {
    // The kernel takes files by their paths.
    let path = fd_link(backing.fd).filter(|_| backing.offset == 0)?;
    std::fs::File::open(&path).ok().filter(|file| same_file(file.as_fd(), backing.fd))?;
    configure_erofs(&path).ok()
}

/// Has EROFS read a file or a device.
fn configure_erofs(source: &Path) -> Result<OwnedFd> {
    let context = open_file_system("erofs", "Linux 5.4 or later with the module erofs")?;
    let context = context.as_fd();
    let said = |op, errno| refused(op, source.display().to_string(), errno, log(context));
    fsconfig_set_string(context, "source", source)
        .and_then(|()| fsconfig_set_flag(context, "ro"))
        .and_then(|()| fsconfig_create(context))
        .map_err(|errno| said("fsconfig", errno))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|errno| said("fsmount", errno))
}

/// Whether this process may mount a file system, and the kernel has it; it may load a module for that.
///
/// # Errors
/// [`Error::Unavailable`] or [`Error::Refused`] with what is missing.
pub fn has_file_system(name: &str) -> Result<()> {
    let context = open_file_system(name, "a kernel that has it, or its module")?;
    // Root of another user namespace gets this far. Whether it may mount is looked at before the source that is missing.
    match fsconfig_create(context.as_fd()) {
        Err(errno @ Errno::PERM) => Err(refused("fsconfig", name.to_owned(), errno, String::new())),
        _ => Ok(()),
    }
}

fn open_file_system(name: &str, needs: &str) -> Result<OwnedFd> {
    fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
        Errno::NODEV => {
            Error::Unavailable { what: format!("the file system {name}"), needs: needs.to_owned() }
        }
        errno => refused("fsopen", name.to_owned(), errno, String::new()),
    })
}

fn mount_point(at: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(at, flags, Mode::empty())
        .map_err(|errno| Error::os("open", at.display().to_string(), errno))
}

/// Puts a mount at a directory.
fn put(tree: BorrowedFd<'_>, point: BorrowedFd<'_>, at: &Path) -> Result<()> {
    let by_descriptors = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", point, "", by_descriptors)
        .map_err(|errno| refused("move_mount", at.display().to_string(), errno, String::new()))
}

/// Whether two descriptors are of one file.
fn same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let id = |fd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
    id(one).is_some_and(|found| id(other) == Some(found))
}

impl fmt::Display for Mountable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DmaBuf(fd) => f.write_str(&fd_name(*fd)),
            Self::Physical { address, len } => write!(f, "phys:{address:#x}+{len:#x}"),
        }
    }
}

/// Takes a mount away. Who has files of it open keeps them.
///
/// # Errors
/// [`Error::Os`] with the kernel's answer.
pub fn unmount(at: &Path) -> Result<()> {
    rustix::mount::unmount(at, UnmountFlags::DETACH)
        .map_err(|errno| Error::os("umount", at.display().to_string(), errno))
}

/// An error with what the kernel has said of it, if anything, or what is known of it.
fn refused(op: &'static str, subject: String, errno: Errno, words: String) -> Error {
    let advice = if words.is_empty() && errno == Errno::PERM { NO_RIGHTS.into() } else { words };
    match advice.is_empty() {
        true => Error::os(op, subject, errno),
        false => Error::Refused { op, subject, source: io::Error::from(errno), advice },
    }
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
        let error = mount(Mountable::DmaBuf(memory.as_fd()), place.path(), None).unwrap_err();
        // Without the right to, without the module, or with it: this is no dma-buf.
        let expected = ["CAP_SYS_ADMIN", "module daxfs", "fsconfig"];
        assert!(expected.iter().any(|part| error.to_string().contains(part)), "{error}");
        let memory = || Mountable::Physical { address: 0x1000, len: 4096 };
        let file = place.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (path, number) in [(place.path().join("none"), libc::ENOENT), (file, libc::ENOTDIR)] {
            let error = mount(memory(), &path, None).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(number), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
        assert_eq!(memory().to_string(), "phys:0x1000+0x1000");
        let error = unmount(place.path()).unwrap_err();
        assert!(matches!(error, Error::Os { op: "umount", .. }), "{error}");
    }
}
