//! Bytes as they lie in files or come through pipes: counted, and left alone when nobody wants them any more.

use crate::error::{Error, Result};
use crate::limits::Budget;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Says whether the work is still wanted.
pub(crate) type Cancelled<'a> = &'a (dyn Fn() -> bool + Sync);

/// What all readers of one image have in common.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    pub(crate) budget: &'a Budget,
    pub(crate) cancelled: Cancelled<'a>,
}

/// A file that is open for reading, with the path that messages name it by.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
    /// Bytes of a regular file; `None` for what is read once, from front to back.
    pub(crate) len: Option<u64>,
    /// Whether it is of our own making: what is read of it was read before.
    pub(crate) is_spool: bool,
}

impl Opened {
    /// Opens a file or a pipe.
    pub(crate) fn open(path: &Path) -> Result<Opened> {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        Opened::new(file, path)
    }

    /// Opens what must be a regular file; a pipe in its place does not hang us.
    pub(crate) fn open_regular(path: &Path) -> Result<Opened> {
        // O_NONBLOCK has the same value on all architectures that daxfs runs on.
        const O_NONBLOCK: i32 = 0o4000;
        let mut options = std::fs::OpenOptions::new();
        let opened = options.read(true).custom_flags(O_NONBLOCK).open(path);
        let opened = Opened::new(opened.map_err(|error| Error::io("open", path, error))?, path)?;
        match opened.len {
            Some(_) => Ok(opened),
            None => Err(Error::Layout { path: path.to_path_buf(), why: "is no regular file".to_owned() }),
        }
    }

    /// What was opened already.
    pub(crate) fn new(file: File, path: &Path) -> Result<Opened> {
        let metadata = file.metadata().map_err(|error| Error::io("stat", path, error))?;
        if metadata.is_dir() {
            let why = "is a directory, where a file is needed".to_owned();
            return Err(Error::Layout { path: path.to_path_buf(), why });
        }
        let len = metadata.is_file().then_some(metadata.len());
        Ok(Opened { file: Arc::new(file), path: path.to_path_buf(), len, is_spool: false })
    }

    /// The first bytes of a regular file; less where it is shorter.
    pub(crate) fn start<const N: usize>(&self, offset: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; N];
        let mut len = 0;
        while let Some(rest) = bytes.get_mut(len..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset.saturating_add(len as u64)) {
                Ok(0) => break,
                Ok(count) => len = len.saturating_add(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", &self.path, error)),
            }
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    /// A part of a regular file.
    pub(crate) fn part<'a>(&self, offset: u64, len: u64, shared: Shared<'a>) -> Raw<'a> {
        let end = offset.saturating_add(len);
        Raw {
            opened: self.clone(),
            at: Some(offset),
            end,
            head: VecDeque::new(),
            shared,
            fault: Fault::default(),
        }
    }

    /// All of it, from where a pipe stands.
    pub(crate) fn whole<'a>(&self, shared: Shared<'a>) -> Raw<'a> {
        let at = self.len.map(|_| 0);
        let end = self.len.unwrap_or(u64::MAX);
        Raw { opened: self.clone(), at, end, head: VecDeque::new(), shared, fault: Fault::default() }
    }
}

/// Why a reader failed, for who sees only what a decoder makes of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fault(Arc<Mutex<Option<Error>>>);

impl Fault {
    fn set(&self, error: Error) -> io::Error {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(error);
        io::Error::other("failed")
    }

    /// The first failure.
    pub(crate) fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Reads a part of a file by positions, or a pipe.
pub(crate) struct Raw<'a> {
    opened: Opened,
    /// Where the next byte lies; `None` for a pipe.
    at: Option<u64>,
    /// Where reading ends.
    end: u64,
    /// What was read of a pipe to look at it.
    head: VecDeque<u8>,
    shared: Shared<'a>,
    fault: Fault,
}

impl Raw<'_> {
    /// Where failures of this reader are noted.
    pub(crate) fn fault(&self) -> Fault {
        self.fault.clone()
    }

    /// Where the next byte lies in the file.
    pub(crate) fn position(&self) -> Option<u64> {
        self.at
    }

    /// The next bytes, which stay the next ones; less than `N` at the end.
    pub(crate) fn peek<const N: usize>(&mut self) -> Result<Vec<u8>> {
        if let Some(at) = self.at {
            let mut start = self.opened.start::<N>(at)?;
            start.truncate(usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX));
            return Ok(start);
        }
        let mut start = [0; N];
        let mut len = 0;
        while let Some(rest) = start.get_mut(len..).filter(|rest| !rest.is_empty()) {
            match self.read_file(rest) {
                Ok(0) => break,
                Ok(count) => len = len.saturating_add(count),
                Err(error) => return Err(self.fault.take().unwrap_or_else(|| self.failed(error))),
            }
        }
        self.head.extend(start.iter().take(len));
        Ok(self.head.iter().copied().collect())
    }

    /// Passes over bytes without reading them, which only files can. `false`: there are not so many.
    pub(crate) fn pass(&mut self, count: u64) -> bool {
        let Some(at) = self.at.and_then(|at| at.checked_add(count)).filter(|&at| at <= self.end) else {
            return false;
        };
        self.at = Some(at);
        self.count(count);
        true
    }
}

impl Raw<'_> {
    fn read_file(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if (self.shared.cancelled)() {
            return Err(self.fault.set(Error::Cancelled));
        }
        let left = usize::try_from(self.end.saturating_sub(self.at.unwrap_or(0))).unwrap_or(usize::MAX);
        let len = buf.len().min(left);
        let buf = buf.get_mut(..len).unwrap_or_default();
        loop {
            let count = match self.at {
                Some(at) => self.opened.file.read_at(buf, at),
                None => (&*self.opened.file).read(buf),
            };
            match count {
                Ok(count) => {
                    self.count(count as u64);
                    self.at = self.at.map(|at| at.saturating_add(count as u64));
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.fault.set(self.failed(error))),
            }
        }
    }

    fn count(&self, bytes: u64) {
        if !self.opened.is_spool {
            self.shared.budget.read(bytes);
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io("read", &self.opened.path, error)
    }
}

impl Read for Raw<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.head.is_empty() {
            return self.head.read(buf);
        }
        self.read_file(buf)
    }
}
