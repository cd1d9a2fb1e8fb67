//! A new directory, and calls that make entries below it and cannot reach anything else.
//!
//! Every call is relative to a descriptor of a directory, and takes one name in it. Directories are entered one by one
//! without following links ([`Descent`]), so neither `..` nor a symbolic link that somebody slips in leads out. The way
//! to the first name of a hard link is resolved by openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS; where the
//! kernel has no openat2 each component is opened with O_NOFOLLOW. Names are only ever made, with O_EXCL or a call that
//! fails when the name exists.

use crate::descent::DIRECTORY;
use anyhow::{Context, bail};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{Gid, LinkatFlags, Uid, fchown, fchownat, linkat, symlinkat};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Owner and permission bits to restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// User and group, when they are restored.
    pub owner: Option<(u32, u32)>,
    /// Permission bits.
    pub mode: u32,
}

impl Attributes {
    /// Gives an open file or directory its owner, then its mode: changing the owner clears setuid bits.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn apply(self, file: impl AsFd) -> io::Result<()> {
        if let Some((uid, gid)) = self.owner {
            fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        fchmod(&file, Mode::from_bits_truncate(self.mode))?;
        Ok(())
    }

    /// True when the owner of a directory with these could not go on working in it.
    pub fn locks_out(self) -> bool {
        self.mode & 0o700 != 0o700
    }
}

/// Makes the directory `path`, or takes an empty one that is there, and opens it. A symbolic link at its end is refused.
///
/// # Errors
/// When it cannot be made, is not a directory, or holds anything.
pub fn create(path: &Path) -> anyhow::Result<OwnedFd> {
    let name = || crate::text::escape(path.as_os_str().as_bytes());
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => (),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
        Err(error) => return Err(error).with_context(|| format!("cannot make {}", name())),
    }
    let top = match open(path, DIRECTORY, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::ELOOP | Errno::ENOTDIR) => {
            bail!("{} exists and is not a directory (a symbolic link to one is not followed)", name())
        }
        Err(error) => return Err(error).with_context(name),
    };
    let mut entries = Dir::from_fd(open_here(top.as_fd())?).with_context(name)?;
    for entry in entries.iter() {
        let entry = entry.with_context(name)?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            bail!("{} is not empty; extract into a new or an empty directory", name());
        }
    }
    Ok(top)
}

/// Names of an image are checked when it is opened. These would lead out, so they are checked where it counts.
fn checked(name: &[u8]) -> io::Result<&OsStr> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a name of an entry"));
    }
    Ok(OsStr::from_bytes(name))
}

/// Makes a directory with mode 0700.
///
/// # Errors
/// What the operating system says; the name must be free.
pub fn make_directory(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    Ok(mkdirat(parent, checked(name)?, Mode::S_IRWXU)?)
}

/// Makes a file with mode 0600 and opens it for writing.
///
/// # Errors
/// What the operating system says; the name must be free.
pub fn make_file(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(parent, checked(name)?, flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into())
}

/// Makes a symbolic link, which is never followed.
///
/// # Errors
/// What the operating system says; the name must be free.
pub fn make_symlink(
    parent: BorrowedFd<'_>,
    name: &[u8],
    target: &[u8],
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    let name = checked(name)?;
    symlinkat(OsStr::from_bytes(target), parent, name)?;
    if let Some((uid, gid)) = owner {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// Makes `name` in `parent` another name of the file `first` in `first_parent`.
///
/// # Errors
/// What the operating system says; the name must be free.
pub fn make_link(
    first_parent: BorrowedFd<'_>,
    first: &[u8],
    parent: BorrowedFd<'_>,
    name: &[u8],
) -> io::Result<()> {
    Ok(linkat(first_parent, checked(first)?, parent, checked(name)?, LinkatFlags::empty())?)
}

/// Opens the directory at a path below `top` that is shorter than PATH_MAX; the empty path is the top. Only to name what
/// is in it.
///
/// # Errors
/// When it is not there, is no directory, or a symbolic link is in the way.
pub fn open_below(top: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    if path.is_empty() {
        return open_here(top);
    }
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    match openat2(top, OsStr::from_bytes(path), OpenHow::new().flags(DIRECTORY).resolve(resolve)) {
        Ok(directory) => Ok(directory),
        // Before Linux 5.6, and in sandboxes that do not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => open_by_components(top, path),
        Err(error) => Err(error.into()),
    }
}

/// Another descriptor of an open directory, with a reading position of its own.
fn open_here(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(openat(directory, ".", DIRECTORY, Mode::empty())?)
}

fn open_by_components(top: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let mut directory = open_here(top)?;
    for name in path.split(|&byte| byte == b'/') {
        directory = openat(&directory, checked(name)?, DIRECTORY, Mode::empty())?;
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A destination and a directory beside it that must stay empty.
    fn dest() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        let top = create(&dir.path().join("dest")).unwrap();
        (dir, top)
    }

    fn assert_nothing_outside(dir: &tempfile::TempDir) {
        assert_eq!(std::fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn planted_links_are_not_followed() {
        let (dir, top) = dest();
        for target in ["../outside", dir.path().join("outside").to_str().unwrap()] {
            let link = dir.path().join("dest/link");
            symlink(target, &link).unwrap();
            assert!(open_below(top.as_fd(), b"link").is_err());
            assert!(open_by_components(top.as_fd(), b"link").is_err());
            assert!(
                crate::descent::Descent::new(open_here(top.as_fd()).unwrap(), ()).enter(b"link", ()).is_err()
            );
            assert!(make_file(top.as_fd(), b"link").is_err());
            assert!(make_directory(top.as_fd(), b"link").is_err());
            assert!(make_symlink(top.as_fd(), b"link", b"x", None).is_err());
            std::fs::remove_file(link).unwrap();
        }
        symlink("../outside/f", dir.path().join("dest/f")).unwrap();
        assert!(make_file(top.as_fd(), b"f").is_err());
        assert_nothing_outside(&dir);
    }

    #[test]
    fn dots_and_slashes_do_not_lead_out() {
        let (dir, top) = dest();
        let top = top.as_fd();
        for name in [&b"../f"[..], b"..", b".", b"", b"/f", b"a/f", b"/"] {
            assert!(make_file(top, name).is_err(), "{name:?}");
            assert!(make_directory(top, name).is_err(), "{name:?}");
            assert!(make_symlink(top, name, b"x", None).is_err(), "{name:?}");
            assert!(make_link(top, name, top, b"g").is_err(), "{name:?}");
        }
        assert!(open_below(top, b"../outside").is_err());
        assert!(open_by_components(top, b"../outside").is_err());
        assert_nothing_outside(&dir);
    }

    #[test]
    fn both_ways_down_agree() {
        let (dir, top) = dest();
        make_directory(top.as_fd(), b"a").unwrap();
        let a = open_below(top.as_fd(), b"a").unwrap();
        make_directory(a.as_fd(), b"b").unwrap();
        let b = open_below(top.as_fd(), b"a/b").unwrap();
        make_file(b.as_fd(), b"f").unwrap();
        let same = open_by_components(top.as_fd(), b"a/b").unwrap();
        assert!(openat(&same, "f", OFlag::O_RDONLY, Mode::empty()).is_ok());
        make_link(same.as_fd(), b"f", a.as_fd(), b"g").unwrap();
        assert!(dir.path().join("dest/a/g").exists());
        assert!(make_link(same.as_fd(), b"f", a.as_fd(), b"g").is_err());
    }

    #[test]
    fn the_top_must_be_new_or_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        create(&path).unwrap();
        make_file(create(&path).unwrap().as_fd(), b"f").unwrap();
        assert!(create(&path).unwrap_err().to_string().contains("not empty"));
        assert!(create(&path.join("f")).unwrap_err().to_string().contains("not a directory"));
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        symlink("empty", dir.path().join("link")).unwrap();
        assert!(create(&dir.path().join("link")).unwrap_err().to_string().contains("symbolic link"));
        assert!(create(&dir.path().join("no/parent")).is_err());
    }
}
