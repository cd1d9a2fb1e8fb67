//! A new directory, and calls that make entries below it and cannot reach anything else.
//!
//! Every call is relative to a descriptor of the directory. The way to a parent is resolved by openat2(2) with
//! RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS, so neither `..` nor a symbolic link that somebody slips in leads out;
//! where the kernel has no openat2 each component is opened with O_NOFOLLOW. The last component is only ever
//! made, with O_EXCL or a call that fails when the name exists.

use anyhow::{Context, bail};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{Gid, LinkatFlags, Uid, fchown, fchownat, linkat, symlinkat};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Longest path that is given to the kernel at once; PATH_MAX is 4096 with the NUL.
const CHUNK: usize = 4000;

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The directory that everything is written into.
#[derive(Debug)]
pub struct Beneath {
    top: OwnedFd,
}

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
}

impl Beneath {
    /// Makes `path`, or takes an empty directory that is there. A symbolic link at its end is refused.
    ///
    /// # Errors
    /// When it cannot be made, is not a directory, or holds anything.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
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
        let mut entries = Dir::from_fd(open_here(&top)?).with_context(name)?;
        for entry in entries.iter() {
            let entry = entry.with_context(name)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                bail!("{} is not empty; extract into a new or an empty directory", name());
            }
        }
        Ok(Self { top })
    }

    /// Opens a directory below; the empty path is the top.
    ///
    /// # Errors
    /// When it is not there, is no directory, or a symbolic link is in the way.
    pub fn open_directory(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let mut directory = open_here(&self.top)?;
        let mut rest = path;
        while !rest.is_empty() {
            let (chunk, behind) = split(rest);
            directory = descend(&directory, chunk)?;
            rest = behind;
        }
        Ok(directory)
    }

    /// Makes a directory with mode 0700.
    ///
    /// # Errors
    /// What the operating system says; the name must be free.
    pub fn make_directory(&self, path: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(mkdirat(&parent, name, Mode::S_IRWXU)?)
    }

    /// Makes a file with mode 0600 and opens it for writing.
    ///
    /// # Errors
    /// What the operating system says; the name must be free.
    pub fn make_file(&self, path: &[u8]) -> io::Result<File> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into())
    }

    /// Makes a symbolic link, which is never followed.
    ///
    /// # Errors
    /// What the operating system says; the name must be free.
    pub fn make_symlink(&self, path: &[u8], target: &[u8], owner: Option<(u32, u32)>) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        symlinkat(OsStr::from_bytes(target), &parent, name)?;
        if let Some((uid, gid)) = owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            fchownat(&parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// Makes `path` another name of the file `first`.
    ///
    /// # Errors
    /// What the operating system says; the name must be free.
    pub fn make_link(&self, first: &[u8], path: &[u8]) -> io::Result<()> {
        let (first_parent, first_name) = self.parent(first)?;
        let (parent, name) = self.parent(path)?;
        Ok(linkat(&first_parent, first_name, &parent, name, LinkatFlags::empty())?)
    }

    /// The open directory that holds `path`, and the last component.
    fn parent<'p>(&self, path: &'p [u8]) -> io::Result<(OwnedFd, &'p OsStr)> {
        let (directory, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        // Names of an image are checked when it is opened. These would lead out, so they are checked where it counts.
        if path.starts_with(b"/") || name.is_empty() || name == b"." || name == b".." {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a name of an entry"));
        }
        Ok((self.open_directory(directory)?, OsStr::from_bytes(name)))
    }
}

/// Another descriptor of an open directory, with a reading position of its own.
fn open_here(directory: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(openat(directory, ".", DIRECTORY, Mode::empty())?)
}

/// Splits a path at a slash so that the first part is short enough for one call.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    if path.len() <= CHUNK {
        return (path, &[]);
    }
    // A component has at most 255 bytes, so there is a slash; without one the kernel answers ENAMETOOLONG.
    match path[..CHUNK].iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (path, &[]),
    }
}

fn descend(directory: &OwnedFd, path: &[u8]) -> io::Result<OwnedFd> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    match openat2(directory, OsStr::from_bytes(path), OpenHow::new().flags(DIRECTORY).resolve(resolve)) {
        Ok(directory) => Ok(directory),
        // Before Linux 5.6, and in sandboxes that do not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => descend_by_components(directory, path),
        Err(error) => Err(error.into()),
    }
}

fn descend_by_components(directory: &OwnedFd, path: &[u8]) -> io::Result<OwnedFd> {
    let mut directory = open_here(directory)?;
    for name in path.split(|&byte| byte == b'/') {
        if name.is_empty() || name == b".." {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a name of an entry"));
        }
        directory = openat(&directory, OsStr::from_bytes(name), DIRECTORY, Mode::empty())?;
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A destination and a directory beside it that must stay empty.
    fn dest() -> (tempfile::TempDir, Beneath) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        let beneath = Beneath::create(&dir.path().join("dest")).unwrap();
        (dir, beneath)
    }

    fn assert_nothing_outside(dir: &tempfile::TempDir) {
        assert_eq!(std::fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn planted_links_are_not_followed() {
        let (dir, dest) = dest();
        for target in ["../outside", dir.path().join("outside").to_str().unwrap()] {
            let link = dir.path().join("dest/link");
            symlink(target, &link).unwrap();
            assert!(dest.make_file(b"link/f").is_err());
            assert!(dest.make_directory(b"link/d").is_err());
            assert!(dest.make_symlink(b"link/s", b"x", None).is_err());
            assert!(dest.open_directory(b"link").is_err());
            assert!(dest.make_file(b"link").is_err());
            assert!(descend_by_components(&dest.top, b"link").is_err());
            std::fs::remove_file(link).unwrap();
        }
        symlink("../outside/f", dir.path().join("dest/f")).unwrap();
        assert!(dest.make_file(b"f").is_err());
        assert_nothing_outside(&dir);
    }

    #[test]
    fn dots_do_not_lead_out() {
        let (dir, dest) = dest();
        for path in [&b"../f"[..], b"..", b".", b"", b"/f", b"a/../../f", b"/"] {
            assert!(dest.make_file(path).is_err(), "{path:?}");
            assert!(dest.make_directory(path).is_err(), "{path:?}");
        }
        assert!(descend_by_components(&dest.top, b"../outside").is_err());
        assert_nothing_outside(&dir);
    }

    #[test]
    fn both_ways_down_agree() {
        let (dir, dest) = dest();
        dest.make_directory(b"a").unwrap();
        dest.make_directory(b"a/b").unwrap();
        dest.make_file(b"a/b/f").unwrap();
        let directory = descend_by_components(&dest.top, b"a/b").unwrap();
        assert!(openat(&directory, "f", OFlag::O_RDONLY, Mode::empty()).is_ok());
        dest.make_link(b"a/b/f", b"a/g").unwrap();
        assert!(dir.path().join("dest/a/g").exists());
        assert!(dest.make_link(b"a/b/f", b"a/g").is_err());
    }

    #[test]
    fn paths_longer_than_path_max() {
        let (_dir, dest) = dest();
        let name = [b'n'; 200];
        let mut path = Vec::new();
        for _ in 0..60 {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            dest.make_directory(&path).unwrap();
        }
        assert!(path.len() > 3 * CHUNK - CHUNK / 2);
        dest.open_directory(&path).unwrap();
    }

    #[test]
    fn the_top_must_be_new_or_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        Beneath::create(&path).unwrap();
        Beneath::create(&path).unwrap().make_file(b"f").unwrap();
        assert!(Beneath::create(&path).unwrap_err().to_string().contains("not empty"));
        assert!(Beneath::create(&path.join("f")).unwrap_err().to_string().contains("not a directory"));
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        symlink("empty", dir.path().join("link")).unwrap();
        assert!(Beneath::create(&dir.path().join("link")).unwrap_err().to_string().contains("symbolic link"));
        assert!(Beneath::create(&dir.path().join("no/parent")).is_err());
    }
}
