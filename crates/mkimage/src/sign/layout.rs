//! An OCI image layout with a signature: written beside an image, in place of an older one and of nothing else.
//!
//! All in it is reached from the descriptor of its folder, and through no symbolic link: whoever may write there does
//! not choose what is written or removed elsewhere.

use crate::again::{open, openat};
use crate::output::{Output, Readers, parent, sync_directory};
use crate::{Error, Result};
use daxfs::signature::{SignatureError, cosign};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, mkdir, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const FOLDER: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
/// Permissions of a folder, before the umask.
const MODE: Mode = Mode::S_IRWXU.union(Mode::S_IRWXG).union(Mode::S_IRWXO);
/// Longest file that is looked at where there is no index: a layout's own have some hundred bytes.
const PART_MAX: u64 = 64 << 10;

/// Refuses a place where something else lies than a layout that may give way, or the beginning of one.
///
/// # Errors
/// [`Error::Output`], [`Error::Io`].
pub(super) fn check(path: &Path) -> Result<()> {
    match folder(open(path, FOLDER, Mode::empty()), path)? {
        Some(root) => replaced(&root, path).map(drop),
        None => Ok(()),
    }
}

/// Writes the files of a layout. Blobs have the names of what they hold, so those of an older signature stay until the
/// index, which comes last, leads to the new ones. What no index led to stays.
///
/// # Errors
/// As for [`check`]; then a layout that is new is not there.
pub(super) fn write(path: &Path, files: &[(PathBuf, Vec<u8>)], sync: bool) -> Result<()> {
    let is_new = match mkdir(path, MODE) {
        Ok(()) => true,
        Err(Errno::EEXIST) => false,
        Err(errno) => return Err(Error::io("create", path, errno)),
    };
    let root = folder(open(path, FOLDER, Mode::empty()), path)?;
    let root = root.ok_or_else(|| Error::io("open", path, Errno::ENOENT))?;
    let written = write_in(&root, path, files, sync);
    if is_new && written.is_err() {
        take_back(&root, path, files);
    }
    written
}

fn write_in(root: &OwnedFd, path: &Path, files: &[(PathBuf, Vec<u8>)], sync: bool) -> Result<()> {
    let old = replaced(root, path)?;
    let blobs = make(root, "blobs", path)?;
    let hashes = make(&blobs, "sha256", &path.join("blobs"))?;
    for (name, bytes) in files {
        let at = if name.starts_with("blobs") { &hashes } else { root };
        let path = path.join(name);
        let failed = |error| Error::io("write", &path, error);
        let readers = Readers::Of { others: true, group: None };
        let output = Output::create_in(at.try_clone().map_err(failed)?, &path, readers)?;
        let fd = output.as_fd().try_clone_to_owned().map_err(failed)?;
        File::from(fd).write_all(bytes).map_err(failed)?;
        output.commit(sync)?;
    }
    for name in old.iter().filter(|old| files.iter().all(|(name, _)| name != *old)) {
        match unlinkat(&hashes, last(name), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(Error::io("clean up", &path.join(name), errno)),
        }
    }
    if sync {
        sync_directory(&hashes, &path.join("blobs/sha256"))?;
        sync_directory(&blobs, &path.join("blobs"))?;
        sync_directory(root, path)?;
        let above = parent(path);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let opened = open(above, flags, Mode::empty()).map_err(|errno| Error::io("open", above, errno))?;
        sync_directory(&opened, above)?;
    }
    Ok(())
}

/// The blobs that go with the layout which lies in a folder: those that its index leads to. Where there is none, all
/// that lies there is the beginning of a layout, and stays.
fn replaced(root: &OwnedFd, path: &Path) -> Result<Vec<PathBuf>> {
    let open = |name: &Path| dmabuf::open_beneath(root.as_fd(), name);
    let (old, is_begun) = match cosign::replaceable_blobs(path, &open) {
        Ok(Some(old)) => (old, false),
        Err(SignatureError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {
            (Vec::new(), true)
        }
        Ok(None) | Err(_) => return Err(refuse(path)),
    };
    let is_part = |name: &Path| {
        let mut bytes = Vec::new();
        let opened = open(name).map(File::from);
        let read = opened.is_ok_and(|file| {
            file.metadata().is_ok_and(|found| found.is_file())
                && file.take(PART_MAX + 1).read_to_end(&mut bytes).is_ok()
        });
        read && cosign::is_part(name, &bytes)
    };
    for name in list(root, path)? {
        match name.as_bytes() {
            b"blobs" | b"index.json" => {}
            b"oci-layout" if !is_begun || is_part(Path::new(&name)) => {}
            _ => return Err(refuse(path)),
        }
    }
    let Some(blobs) = inner(root, "blobs", path)? else { return Ok(old) };
    let hashes = inner(&blobs, "sha256", path)?;
    if is_begun {
        let others = list(&blobs, path)?.iter().any(|name| name != "sha256");
        let below = hashes.map_or(Ok(Vec::new()), |hashes| list(&hashes, path))?;
        if others || !below.iter().all(|name| is_part(&Path::new("blobs/sha256").join(name))) {
            return Err(refuse(path));
        }
    }
    Ok(old)
}

/// Removes what [`write`] has made of a new layout, as far as it can: the error that led here is the one that counts.
fn take_back(root: &OwnedFd, path: &Path, files: &[(PathBuf, Vec<u8>)]) {
    let remove = |at: &OwnedFd, name: &OsStr, flag| {
        let _ = unlinkat(at, name, flag);
    };
    let blobs = inner(root, "blobs", path).ok().flatten();
    let hashes = blobs.as_ref().and_then(|blobs| inner(blobs, "sha256", path).ok().flatten());
    for (name, _) in files {
        match &hashes {
            Some(hashes) if name.starts_with("blobs") => {
                remove(hashes, last(name), UnlinkatFlags::NoRemoveDir)
            }
            _ => remove(root, last(name), UnlinkatFlags::NoRemoveDir),
        }
    }
    if let Some(blobs) = &blobs {
        remove(blobs, OsStr::new("sha256"), UnlinkatFlags::RemoveDir);
    }
    remove(root, OsStr::new("blobs"), UnlinkatFlags::RemoveDir);
    // Fails where something else lies in it by now.
    let _ = std::fs::remove_dir(path);
}

/// A folder in another, made where it is not there.
fn make(at: &OwnedFd, name: &str, path: &Path) -> Result<OwnedFd> {
    match mkdirat(at, name, MODE) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(Error::io("create", &path.join(name), errno)),
    }
    inner(at, name, path)?.ok_or_else(|| Error::io("open", &path.join(name), Errno::ENOENT))
}

/// A folder in another; `path` is the place that is refused when it is something else.
fn inner(at: &OwnedFd, name: &str, path: &Path) -> Result<Option<OwnedFd>> {
    folder(openat(at, name, FOLDER, Mode::empty()), path)
}

fn folder(opened: nix::Result<OwnedFd>, path: &Path) -> Result<Option<OwnedFd>> {
    match opened {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT) => Ok(None),
        Err(Errno::ELOOP | Errno::ENOTDIR) => Err(refuse(path)),
        Err(errno) => Err(Error::io("open", path, errno)),
    }
}

/// The names in a folder.
fn list(at: &impl AsFd, path: &Path) -> Result<Vec<OsString>> {
    let failed = |errno| Error::io("list", path, errno);
    let mut stream = Dir::from_fd(openat(at, ".", FOLDER, Mode::empty()).map_err(failed)?).map_err(failed)?;
    let mut names = Vec::new();
    for entry in stream.iter() {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

fn last(name: &Path) -> &OsStr {
    name.file_name().unwrap_or_default()
}

fn refuse(path: &Path) -> Error {
    Error::Output {
        path: path.to_owned(),
        why: "is the place of the signature, and holds something other than one of daxfs-pack; move it away"
            .to_owned(),
    }
}
