//! Opens the files of the source tree, and makes sure that they are the ones that the scan saw.

use crate::tree::{Identity, Kind, Stamp, Tree};
use crate::{Error, Result};
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Longest path given to one system call; the kernel's limit is 4096 with the NUL.
const LONGEST_PATH: usize = 4000;

/// For a directory that is only passed through.
const THROUGH: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

impl Identity {
    /// Takes what identifies the contents out of a `stat`.
    pub(crate) fn of(stat: &FileStat) -> Identity {
        Identity {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: Stamp { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec },
            changed: Stamp { seconds: stat.st_ctime, nanoseconds: stat.st_ctime_nsec },
        }
    }

    /// What is different now, in words; `None` when nothing is.
    pub(crate) fn difference(&self, now: &Identity) -> Option<String> {
        if (self.dev, self.ino) != (now.dev, now.ino) {
            Some("another file stands in its place".to_owned())
        } else if self.size != now.size {
            Some(format!("{} bytes, {} when it was listed", now.size, self.size))
        } else if self.modified != now.modified {
            Some("it was written to".to_owned())
        } else if self.changed != now.changed {
            Some("its inode was changed".to_owned())
        } else {
            None
        }
    }
}

/// Opens nodes of a tree. Keeps the directory of the last file open: neighbours are opened by name alone,
/// whatever the length of their path.
#[derive(Debug)]
pub(crate) struct Opener<'t> {
    tree: &'t Tree,
    directory: Option<(u32, OwnedFd)>,
}

impl<'t> Opener<'t> {
    /// An opener for `tree`.
    pub(crate) fn new(tree: &'t Tree) -> Opener<'t> {
        Opener { tree, directory: None }
    }

    /// Opens a directory for listing.
    pub(crate) fn directory(&self, number: u32) -> Result<OwnedFd> {
        self.open_below(number, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// Opens a regular file and checks that it is the one that was scanned.
    pub(crate) fn file(&mut self, number: u32) -> Result<SourceFile<'t>> {
        let file = self.unchecked_file(number)?;
        file.check()?;
        Ok(file)
    }

    /// Opens what should be a regular file, for who reads it and checks then: reading something else is in vain, and
    /// does no more than opening it did.
    pub(crate) fn unchecked_file(&mut self, number: u32) -> Result<SourceFile<'t>> {
        // O_NONBLOCK: a FIFO that took the file's place must not hang us; regular files ignore it.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let parent = self.tree.node(number).parent;
        let is_input = self.tree.inputs.binary_search_by_key(&number, |input| input.node).is_ok();
        let fd = if is_input {
            self.open_below(number, flags)?
        } else {
            if self.directory.as_ref().is_none_or(|(open, _)| *open != parent) {
                self.directory = Some((parent, self.open_below(parent, THROUGH)?));
            }
            let (_, directory) = self.directory.as_ref().expect("opened above");
            let name = OsStr::from_bytes(self.tree.name(number));
            openat(directory, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|errno| Error::io("open", &self.tree.source_path(number), errno))?
        };
        Ok(SourceFile { tree: self.tree, number, file: File::from(fd) })
    }

    /// Opens a node by the path from its input. A path that is too long for one call is walked in pieces.
    fn open_below(&self, number: u32, flags: OFlag) -> Result<OwnedFd> {
        let fail = |errno| Error::io("open", &self.tree.source_path(number), errno);
        let Some((input, steps)) = self.tree.origin(number) else {
            return Err(fail(nix::errno::Errno::ENOENT));
        };
        let flags = flags | OFlag::O_CLOEXEC;
        if steps.is_empty() {
            return open(input, flags, Mode::empty()).map_err(fail);
        }
        let mut at = open(input, THROUGH, Mode::empty()).map_err(fail)?;
        let mut piece: Vec<u8> = Vec::new();
        for step in steps {
            let name = self.tree.name(step);
            if piece.len() + 1 + name.len() > LONGEST_PATH {
                let through = THROUGH | OFlag::O_NOFOLLOW;
                at = openat(&at, OsStr::from_bytes(&piece), through, Mode::empty()).map_err(fail)?;
                piece.clear();
            }
            if !piece.is_empty() {
                piece.push(b'/');
            }
            piece.extend_from_slice(name);
        }
        openat(&at, OsStr::from_bytes(&piece), flags | OFlag::O_NOFOLLOW, Mode::empty()).map_err(fail)
    }
}

/// A regular file of the source, open for reading.
#[derive(Debug)]
pub(crate) struct SourceFile<'t> {
    tree: &'t Tree,
    /// Its node.
    pub(crate) number: u32,
    /// The open file.
    pub(crate) file: File,
}

impl SourceFile<'_> {
    /// Bytes of the file, as the scan saw it.
    pub(crate) fn size(&self) -> u64 {
        self.tree.node(self.number).identity.size
    }

    /// The file must still be what the scan saw; called after opening and again after the last read.
    pub(crate) fn check(&self) -> Result<()> {
        let now = fstat(&self.file).map_err(|errno| self.fail("stat", errno))?;
        if let Some(what) = self.tree.node(self.number).identity.difference(&Identity::of(&now)) {
            return Err(self.changed(what));
        }
        Ok(())
    }

    /// There must be nothing behind the size that the scan saw. Files whose size says nothing, as in /proc,
    /// are found out here.
    pub(crate) fn check_end(&self) -> Result<()> {
        let size = self.size();
        match self.file.read_at(&mut [0], size).map_err(|error| self.unreadable(error))? {
            0 => Ok(()),
            _ => Err(self.grew()),
        }
    }

    /// There is something behind the size that the scan saw.
    pub(crate) fn grew(&self) -> Error {
        self.changed(format!("it holds more than its {} bytes", self.size()))
    }

    /// Reads exactly `buf.len()` bytes.
    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        match self.file.read_exact_at(buf, offset) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(self.ended(offset)),
            other => other.map_err(|error| self.unreadable(error)),
        }
    }

    /// The file ended at or behind `offset`, before the size that the scan saw.
    pub(crate) fn ended(&self, offset: u64) -> Error {
        if let Err(error) = self.check() {
            return error;
        }
        let size = self.size();
        self.changed(format!("a read at {offset} found its end, {size} bytes when it was listed"))
    }

    /// Reading failed: it is another file than was scanned, or else that is what is wrong.
    pub(crate) fn unreadable(&self, error: impl Into<std::io::Error>) -> Error {
        self.check().err().unwrap_or_else(|| self.fail("read", error))
    }

    /// Wraps the failure of `op` on this file.
    pub(crate) fn fail(&self, op: &'static str, error: impl Into<std::io::Error>) -> Error {
        Error::io(op, &self.tree.source_path(self.number), error)
    }

    fn changed(&self, what: String) -> Error {
        Error::changed(&self.tree.source_path(self.number), what)
    }
}

/// Type of a file from its mode: what the format can hold, or the name of what it cannot.
pub(crate) fn kind_of(mode: u32) -> std::result::Result<Sort, &'static str> {
    match mode & daxfs::format::S_IFMT {
        daxfs::format::S_IFREG => Ok(Sort::File),
        daxfs::format::S_IFDIR => Ok(Sort::Directory),
        daxfs::format::S_IFLNK => Ok(Sort::Symlink),
        0o010_000 => Err("FIFO"),
        0o140_000 => Err("socket"),
        0o020_000 => Err("character device"),
        0o060_000 => Err("block device"),
        _ => Err("file of unknown type"),
    }
}

/// The types that an image can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    File,
    Directory,
    Symlink,
}

/// The directory that the scan is about to list must be the one whose entry it saw.
pub(crate) fn check_directory(tree: &Tree, number: u32, fd: impl AsFd, path: &Path) -> Result<()> {
    let now = fstat(fd).map_err(|errno| Error::io("stat", path, errno))?;
    let seen = tree.node(number).identity;
    debug_assert!(matches!(tree.node(number).kind, Kind::Directory { .. }));
    if (seen.dev, seen.ino) != (now.st_dev, now.st_ino) {
        return Err(Error::changed(path, "another directory stands in its place"));
    }
    Ok(())
}
