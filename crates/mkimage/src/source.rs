//! Opens the files of the source tree, and makes sure that they are the ones that the scan saw.

use crate::again::{open, openat};
use crate::block::index;
use crate::tree::{Identity, ROOT, Stamp, Tree};
use crate::{Error, Result};
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, fstat};
use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Longest path given to one system call; the kernel's limit is 4096 with the NUL.
const LONGEST_PATH: usize = 4000;

/// For a directory that is only passed through.
pub(crate) const THROUGH: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

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

/// A step on the way down to a file or directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step<'n> {
    pub(crate) name: &'n [u8],
    /// Whether it is a symbolic link that the scan followed. All others are no links, or were swapped in.
    pub(crate) followed: bool,
}

/// Opens what `steps` lead to from `at`. A path that is too long for one call is walked in pieces; so is one with
/// links, of which the kernel follows 40 in a call.
pub(crate) fn descend<'n>(
    at: BorrowedFd<'_>,
    steps: impl IntoIterator<Item = Step<'n>>,
    flags: OFlag,
) -> nix::Result<OwnedFd> {
    let no_follow = |step: Step<'_>| if step.followed { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    let mut steps = steps.into_iter().peekable();
    let mut open: Option<OwnedFd> = None;
    let mut piece: Vec<u8> = Vec::new();
    while let Some(step) = steps.next() {
        if !piece.is_empty() {
            piece.push(b'/');
        }
        piece.extend_from_slice(step.name);
        let next = steps.peek().map(|next| next.name.len());
        if next.is_some_and(|len| !step.followed && piece.len() + 1 + len <= LONGEST_PATH) {
            continue;
        }
        let wanted = if next.is_some() { THROUGH } else { flags | OFlag::O_CLOEXEC } | no_follow(step);
        let from = open.as_ref().map_or(at, AsFd::as_fd);
        open = Some(openat(from, OsStr::from_bytes(&piece), wanted, Mode::empty())?);
        piece.clear();
    }
    match open {
        Some(open) => Ok(open),
        None => openat(at, ".", flags | OFlag::O_CLOEXEC, Mode::empty()),
    }
}

/// Opens nodes of a tree. Keeps the directory of the last file open: neighbours are opened by name alone, and what
/// lies below them from there, whatever the length of their path.
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

    /// A directory to open what it holds from; the one that was asked for last stays open.
    pub(crate) fn through(&mut self, number: u32) -> Result<BorrowedFd<'_>> {
        if self.directory.as_ref().is_none_or(|(open, _)| *open != number) {
            self.directory = Some((number, self.open_below(number, THROUGH)?));
        }
        let (_, directory) = self.directory.as_ref().expect("opened above");
        Ok(directory.as_fd())
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
        if let Some(archive) = &self.tree.archive {
            let Some((held, place)) = archive.place(self.tree.node(number).identity.ino) else {
                return Err(Error::io("open", &self.tree.source_path(number), nix::errno::Errno::ENOENT));
            };
            let part = Some(Part { start: place.offset, seen: held.identity });
            return Ok(SourceFile { tree: self.tree, number, file: Arc::clone(&held.file), part });
        }
        // O_NONBLOCK: a FIFO that took the file's place must not hang us; regular files ignore it.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let parent = self.tree.node(number).parent;
        let is_input = self.tree.input_at(number).is_some();
        let fd = if is_input {
            self.open_below(number, flags)?
        } else {
            let (tree, step) = (self.tree, self.step(number));
            descend(self.through(parent)?, [step], flags)
                .map_err(|errno| Error::io("open", &tree.source_path(number), errno))?
        };
        Ok(SourceFile { tree: self.tree, number, file: Arc::new(File::from(fd)), part: None })
    }

    fn step(&self, number: u32) -> Step<'t> {
        Step { name: self.tree.name(number), followed: self.tree.node(number).followed }
    }

    /// Opens a node from the directory that is open, where that lies above it, else by the path from its input.
    fn open_below(&self, number: u32, flags: OFlag) -> Result<OwnedFd> {
        let fail = |errno| Error::io("open", &self.tree.source_path(number), errno);
        let mut steps = Vec::new();
        let mut at = number;
        loop {
            if let Some((open, directory)) = &self.directory
                && *open == at
            {
                return descend(directory.as_fd(), steps.into_iter().rev(), flags).map_err(fail);
            }
            if let Some(input) = self.tree.input_at(at) {
                if steps.is_empty() {
                    return open(input, flags | OFlag::O_CLOEXEC, Mode::empty()).map_err(fail);
                }
                let top = open(input, THROUGH, Mode::empty()).map_err(fail)?;
                return descend(top.as_fd(), steps.into_iter().rev(), flags).map_err(fail);
            }
            if at == ROOT {
                return Err(fail(nix::errno::Errno::ENOENT));
            }
            steps.push(self.step(at));
            at = self.tree.node(at).parent;
        }
    }
}

/// A regular file of the source, open for reading.
#[derive(Debug)]
pub(crate) struct SourceFile<'t> {
    tree: &'t Tree,
    /// Its node.
    pub(crate) number: u32,
    /// The open file.
    file: Arc<File>,
    /// Where in it the contents lie, when it holds others, too.
    part: Option<Part>,
}

/// A part of a file that holds the contents of many.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// The first byte.
    start: u64,
    /// What identifies the file; `None` where nobody else can reach it.
    seen: Option<Identity>,
}

impl SourceFile<'_> {
    /// Bytes of the file, as the scan saw it.
    pub(crate) fn size(&self) -> u64 {
        self.tree.node(self.number).identity.size
    }

    /// The file that all of the contents lie in from the first byte on; `None` where there are others in it.
    pub(crate) fn whole(&self) -> Option<&File> {
        self.part.is_none().then_some(&self.file)
    }

    /// The descriptor to read from, and where in the file `position` lies.
    pub(crate) fn place(&self, position: u64) -> (BorrowedFd<'_>, u64) {
        (self.file.as_fd(), self.offset(position))
    }

    fn offset(&self, position: u64) -> u64 {
        self.part.map_or(position, |part| part.start.saturating_add(position))
    }

    /// The file must still be what the scan saw; called after opening and again after the last read.
    pub(crate) fn check(&self) -> Result<()> {
        let seen = match self.part {
            None => self.tree.node(self.number).identity,
            Some(Part { seen: Some(seen), .. }) => seen,
            Some(Part { seen: None, .. }) => return Ok(()),
        };
        let now = fstat(&self.file).map_err(|errno| self.fail("stat", errno))?;
        if let Some(what) = seen.difference(&Identity::of(&now)) {
            return Err(self.changed(what));
        }
        Ok(())
    }

    /// There must be nothing behind the size that the scan saw. Files whose size says nothing, as in /proc,
    /// are found out here.
    pub(crate) fn check_end(&self) -> Result<()> {
        if self.part.is_some() {
            return Ok(());
        }
        let size = self.size();
        // This one is made again when a signal interrupts it.
        match self.file.read_exact_at(&mut [0], size) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
            Ok(()) => Err(self.grew()),
            Err(error) => Err(self.unreadable(error)),
        }
    }

    /// Reads everything from `offset` on. The file must end where the scan saw it, as [`SourceFile::check_end`] says.
    pub(crate) fn read_end(&self, offset: u64) -> Result<Vec<u8>> {
        // One byte more is asked for: that it does not come says what another call would.
        let mut bytes = vec![0; index(self.size() - offset) + 1];
        let mut len = 0;
        loop {
            match self.file.read_at(&mut bytes[len..], self.offset(offset + len as u64)) {
                Ok(0) => break,
                Ok(count) => len += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.unreadable(error)),
            }
            if len + 1 >= bytes.len() {
                break;
            }
        }
        let expected = bytes.len() - 1;
        bytes.truncate(expected);
        match len.cmp(&expected) {
            Ordering::Less => Err(self.ended(offset + len as u64)),
            Ordering::Equal => Ok(bytes),
            Ordering::Greater => Err(self.grew()),
        }
    }

    /// There is something behind the size that the scan saw.
    pub(crate) fn grew(&self) -> Error {
        self.changed(format!("it holds more than its {} bytes", self.size()))
    }

    /// Reads exactly `buf.len()` bytes.
    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        match self.file.read_exact_at(buf, self.offset(offset)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::Threads;
    use crate::scan::{Rules, scan};
    use std::io::Write;

    #[test]
    fn the_end_of_a_file_is_read_where_the_scan_saw_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let tree = scan(&[dir.path().to_path_buf()], &Rules::default(), Threads::Most(1)).unwrap();
        let source = Opener::new(&tree).file(1).unwrap();
        for (offset, rest) in [(0, &b"0123456789"[..]), (8, b"89"), (10, b"")] {
            assert_eq!(source.read_end(offset).unwrap(), rest);
        }
        let reason = |offset| source.read_end(offset).unwrap_err().to_string();
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"a").unwrap();
        for offset in [0, 8, 10] {
            assert!(
                reason(offset).contains("11 bytes, 10 when") || reason(offset).contains("more than its 10")
            );
        }
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(9).unwrap();
        for offset in [0, 8] {
            assert!(reason(offset).contains("9 bytes, 10 when it was listed"), "{}", reason(offset));
        }
    }
}
