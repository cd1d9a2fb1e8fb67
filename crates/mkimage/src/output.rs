//! A file that appears complete or not at all.
//!
//! It is written without a name (O_TMPFILE), so that nothing is left behind however the process ends, and gets
//! its name when it is complete and synced. File systems without O_TMPFILE get a hidden name beside the final one,
//! which is removed when packing fails, but not when the process is killed.

use crate::again::{fsync, open, openat};
use crate::{Error, Result};
use dmabuf::VerityDigest;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, renameat};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use rustix::fs::fremovexattr;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Permissions of a file that everybody may read, before the umask.
const MODE: u32 = 0o666;
/// How many hidden names are tried.
const ATTEMPTS: u32 = 100;

/// Who may read a file that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Whom a mode names.
    Mode(u32),
    /// No more people than all of some files, within what the umask leaves.
    Of {
        /// Whether everybody may read them.
        others: bool,
        /// The group whose members may read them.
        group: Option<u32>,
    },
}

impl Readers {
    /// Its owner alone.
    pub(crate) const NOBODY: Readers = Readers::Of { others: false, group: None };

    /// Permissions to begin with, before the umask; the group of the file is not known then.
    fn first(self) -> Mode {
        let bits = match self {
            Readers::Mode(_) => 0o600,
            Readers::Of { others: true, .. } => MODE,
            Readers::Of { others: false, group: Some(_) } => MODE & 0o660,
            Readers::Of { others: false, group: None } => MODE & 0o600,
        };
        Mode::from_bits_truncate(bits)
    }

    /// Gives an open file that was made with [`Readers::first`] its permissions, and returns them.
    fn apply(self, fd: BorrowedFd<'_>) -> nix::Result<u32> {
        // A directory may give its files a list that lets in whom the sources do not, and then no umask counts.
        let had_list = match fremovexattr(fd, c"system.posix_acl_access") {
            Ok(()) => true,
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => false,
            Err(errno) => return Err(Errno::from_raw(errno.raw_os_error())),
        };
        let mut stat = fstat(fd)?;
        if had_list {
            stat.st_mode = stat.st_mode & !0o777 | self.first().bits() & 0o644;
            fchmod(fd, Mode::from_bits_truncate(stat.st_mode))?;
        }
        let wanted = match self {
            Readers::Mode(mode) => mode,
            Readers::Of { others: false, group } if group != Some(stat.st_gid) => stat.st_mode & 0o700,
            Readers::Of { .. } => stat.st_mode & 0o777,
        };
        if wanted != stat.st_mode & 0o777 {
            fchmod(fd, Mode::from_bits_truncate(wanted))?;
        }
        Ok(wanted)
    }
}

/// A file on its way to a name.
#[derive(Debug)]
pub(crate) struct Output {
    fd: OwnedFd,
    directory: OwnedFd,
    name: OsString,
    path: PathBuf,
    /// The hidden name that it has now.
    temporary: Option<OsString>,
    /// Its permissions.
    pub(crate) mode: u32,
}

impl Output {
    /// Opens a file that will be `path`, for `readers`.
    ///
    /// # Errors
    ///
    /// [`Error::Output`] when `path` is something other than a regular file now, or names none.
    pub(crate) fn create(path: &Path, readers: Readers) -> Result<Output> {
        let refuse = |why: &str| Error::Output { path: path.to_path_buf(), why: why.to_owned() };
        match path.symlink_metadata() {
            Ok(found) if found.is_dir() => return Err(refuse("is a directory; name a file to write")),
            Ok(found) if found.file_type().is_char_device() || found.file_type().is_block_device() => {
                return Err(refuse("is a device; --into writes into devices"));
            }
            Ok(found) if !found.is_file() && !found.is_symlink() => {
                return Err(refuse("is not a regular file"));
            }
            _ => {}
        }
        let parent = parent(path);
        let directory = open(parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| Error::io("open", parent, errno))?;
        Output::create_in(directory, path, readers)
    }

    /// As [`Output::create`], of a file whose directory is open; its path is for errors, but for the name. What has the
    /// name and is no directory gives way.
    ///
    /// # Errors
    ///
    /// [`Error::Output`] when `path` names no file.
    pub(crate) fn create_in(directory: OwnedFd, path: &Path, readers: Readers) -> Result<Output> {
        let name = path
            .file_name()
            .ok_or_else(|| Error::Output { path: path.to_path_buf(), why: "names no file".to_owned() })?;
        let (name, parent) = (name.to_owned(), parent(path));
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let first = readers.first();
        let (fd, temporary) = match openat(&directory, ".", flags, first) {
            Ok(fd) => (fd, None),
            // Not every file system knows it; kernels say so in several ways.
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL | Errno::ENOENT | Errno::ENOSYS) => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
                hidden_name(&name, |hidden| openat(&directory, hidden, flags, first))
                    .map(|(fd, hidden)| (fd, Some(hidden)))
                    .map_err(|errno| Error::io("create a file beside", path, errno))?
            }
            Err(errno) => return Err(Error::io("create a file in", parent, errno)),
        };
        let mut output = Output { fd, directory, name, path: path.to_path_buf(), temporary, mode: 0 };
        output.mode = readers
            .apply(output.fd.as_fd())
            .map_err(|errno| Error::io("set the permissions of", path, errno))?;
        Ok(output)
    }

    /// Turns fs-verity on, before the file has its name: whoever finds it finds it so. Nobody else may have it open for
    /// writing. Returns the digest.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] with advice where the file system has none.
    pub(crate) fn protect(&mut self) -> Result<VerityDigest> {
        let place = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let reading = open(place.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        // The last descriptor for writing goes.
        self.fd = reading.map_err(|errno| Error::io("open for reading", &self.path, errno))?;
        dmabuf::enable_verity(self.fd.as_fd()).map_err(|error| named(error, &self.path))?;
        let digest = dmabuf::measure_verity(self.fd.as_fd())?;
        digest.ok_or_else(|| Error::Output {
            path: self.path.clone(),
            why: "has fs-verity that the kernel does not check by itself; use ext4, btrfs or f2fs".to_owned(),
        })
    }

    /// Gives the file its name, in place of a file that has it. With `sync` it is on the disk before and the name
    /// is after.
    pub(crate) fn commit(mut self, sync: bool) -> Result<()> {
        if sync {
            fsync(&self.fd).map_err(|errno| Error::io("sync", &self.path, errno))?;
        }
        let fail = |errno| Error::io("name", &self.path, errno);
        if self.temporary.is_none() {
            match link(self.fd.as_fd(), &self.directory, &self.name) {
                Ok(()) => return self.sync_directory(sync),
                Err(Errno::EEXIST) => {
                    let linked =
                        hidden_name(&self.name, |hidden| link(self.fd.as_fd(), &self.directory, hidden));
                    self.temporary = Some(linked.map_err(fail)?.1);
                }
                Err(errno) => return Err(fail(errno)),
            }
        }
        if let Some(hidden) = &self.temporary {
            renameat(&self.directory, hidden.as_os_str(), &self.directory, self.name.as_os_str())
                .map_err(fail)?;
        }
        self.temporary = None;
        self.sync_directory(sync)
    }

    fn sync_directory(&self, sync: bool) -> Result<()> {
        if sync { sync_directory(&self.directory, parent(&self.path)) } else { Ok(()) }
    }
}

/// Brings the names in a directory to the disk; `path` is for errors.
pub(crate) fn sync_directory(directory: impl AsFd, path: &Path) -> Result<()> {
    match fsync(directory) {
        // Some file systems have nothing to sync in a directory.
        Ok(()) | Err(Errno::EINVAL | Errno::EROFS) => Ok(()),
        Err(errno) => Err(Error::io("sync", path, errno)),
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(hidden) = &self.temporary {
            // Nobody is left to tell, and the error that brought us here is the one that matters.
            let _ = unlinkat(&self.directory, hidden.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// The directory that a path's last component lies in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Gives a name to a file that has none.
fn link(fd: BorrowedFd<'_>, directory: &OwnedFd, name: &OsStr) -> nix::Result<()> {
    let proc = format!("/proc/self/fd/{}", fd.as_raw_fd());
    match linkat(AT_FDCWD, proc.as_str(), directory, name, AtFlags::AT_SYMLINK_FOLLOW) {
        // No /proc: the direct way needs CAP_DAC_READ_SEARCH.
        Err(Errno::ENOENT) => linkat(fd, "", directory, name, AtFlags::AT_EMPTY_PATH),
        other => other,
    }
}

/// An error of the file, which has no name of its own yet, with the name that it is to get.
fn named(error: dmabuf::Error, path: &Path) -> dmabuf::Error {
    match error {
        dmabuf::Error::Refused { op, source, advice, .. } => {
            dmabuf::Error::Refused { op, subject: path.display().to_string(), source, advice }
        }
        error => error,
    }
}

/// Tries names such as `.model.daxfs-1234-0` until `make` finds one free.
fn hidden_name<T>(name: &OsStr, make: impl Fn(&OsStr) -> nix::Result<T>) -> nix::Result<(T, OsString)> {
    // Names have at most 255 bytes; the suffix takes less than 40.
    let kept = &name.as_bytes()[..name.len().min(200)];
    for attempt in 0..ATTEMPTS {
        let mut hidden = OsString::from(".");
        hidden.push(OsStr::from_bytes(kept));
        hidden.push(format!(".daxfs-{}-{attempt}", std::process::id()));
        match make(&hidden) {
            Err(Errno::EEXIST) => {}
            other => return other.map(|made| (made, hidden)),
        }
    }
    Err(Errno::EEXIST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Write;

    const ALL: Readers = Readers::Of { others: true, group: None };

    fn names(dir: &Path) -> Vec<OsString> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    fn write(output: &Output, bytes: &[u8]) {
        File::from(output.fd.try_clone().unwrap()).write_all(bytes).unwrap();
    }

    #[test]
    fn it_appears_complete_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let output = Output::create(&path, ALL).unwrap();
        write(&output, b"half");
        assert!(!path.exists());
        drop(output);
        assert!(names(dir.path()).is_empty());

        for contents in [&b"first"[..], b"second"] {
            let output = Output::create(&path, ALL).unwrap();
            write(&output, contents);
            output.commit(true).unwrap();
            assert_eq!(fs::read(&path).unwrap(), contents);
            assert_eq!(names(dir.path()), ["image"]);
        }
    }

    #[test]
    fn a_hidden_name_is_removed_and_fits() {
        let dir = tempfile::tempdir().unwrap();
        let long = "n".repeat(255);
        let path = dir.path().join(&long);
        for fail in [true, false] {
            let output = Output::create(&path, ALL).unwrap();
            let linked =
                hidden_name(OsStr::new(&long), |hidden| link(output.as_fd(), &output.directory, hidden));
            let output = Output {
                temporary: Some(linked.unwrap().1),
                fd: output.fd.try_clone().unwrap(),
                directory: output.directory.try_clone().unwrap(),
                name: output.name.clone(),
                path: path.clone(),
                mode: output.mode,
            };
            assert_eq!(names(dir.path()).len(), 1);
            if fail {
                drop(output);
                assert!(names(dir.path()).is_empty());
            } else {
                output.commit(false).unwrap();
                assert_eq!(names(dir.path()), [long.as_str()]);
            }
        }
    }

    #[test]
    fn no_more_people_may_read_it_than_its_sources() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let own = fstat(File::open(dir.path()).unwrap()).unwrap().st_gid;
        // What the umask of the tests leaves.
        let left = |bits: u32| {
            let made = File::create(dir.path().join("probe")).unwrap();
            fstat(made).unwrap().st_mode & bits
        };
        for (readers, mode) in [
            (ALL, left(0o666)),
            (Readers::Of { others: false, group: None }, left(0o600)),
            (Readers::Of { others: false, group: Some(own) }, left(0o660)),
            (Readers::Of { others: false, group: Some(own + 1) }, left(0o600)),
            (Readers::Mode(0o604), 0o604),
            (Readers::Mode(0o777), 0o777),
        ] {
            let output = Output::create(&path, readers).unwrap();
            assert_eq!(output.mode, mode, "{readers:?}");
            output.commit(false).unwrap();
            assert_eq!(fstat(File::open(&path).unwrap()).unwrap().st_mode & 0o777, mode, "{readers:?}");
        }
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path(), Path::new("/dev/null"), Path::new("..")] {
            let error = Output::create(path, ALL).unwrap_err();
            assert!(matches!(error, Error::Output { .. }), "{error}");
        }
        let error = Output::create(&dir.path().join("missing/image"), ALL).unwrap_err();
        assert!(matches!(error, Error::Io { op: "open", .. }), "{error}");
    }
}
