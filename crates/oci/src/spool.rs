//! Where contents wait that cannot be read twice: a file without a name, written by several threads.

use crate::error::{Error, Result};
use crate::input::Opened;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// What a writer takes of the spool at a time, at least, so that small files of one layer lie together.
const PIECE: u64 = 4 << 20;
/// Bytes that are written at a time.
const BUFFER: usize = 1 << 20;

/// A file that goes when nobody has it open any more. It is made when the first byte comes.
#[derive(Debug)]
pub(crate) struct Spool {
    directory: PathBuf,
    file: OnceLock<Arc<File>>,
    next: AtomicU64,
}

impl Spool {
    /// One in `directory`; by default in `$TMPDIR`, or else /var/tmp, which is on a disk.
    pub(crate) fn new(directory: Option<&Path>) -> Spool {
        let named = directory.map(Path::to_path_buf);
        let directory =
            named.or_else(|| std::env::var_os("TMPDIR").filter(|d| !d.is_empty()).map(PathBuf::from));
        let directory = directory.unwrap_or_else(|| PathBuf::from("/var/tmp"));
        Spool { directory, file: OnceLock::new(), next: AtomicU64::new(0) }
    }

    fn file(&self) -> Result<&Arc<File>> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let made = tempfile::tempfile_in(&self.directory);
        let made = made.map_err(|error| Error::io("make a temporary file in", &self.directory, error))?;
        Ok(self.file.get_or_init(|| Arc::new(made)))
    }

    /// What was written, for reading; `None` when nothing was.
    pub(crate) fn opened(&self) -> Option<Opened> {
        let file = Arc::clone(self.file.get()?);
        let len = Some(self.next.load(Ordering::Relaxed));
        Some(Opened { file, path: self.directory.clone(), len, is_spool: true })
    }

    /// Someone who writes contents one after the other.
    pub(crate) fn writer(self: &Arc<Self>) -> Writer {
        Writer { spool: Arc::clone(self), at: 0, end: 0, flushed: 0, buffer: Vec::new() }
    }

    /// Puts bytes behind all others, and says where.
    pub(crate) fn append(&self, bytes: &[u8]) -> Result<u64> {
        let offset = self.take(bytes.len() as u64)?;
        self.write(bytes, offset)?;
        Ok(offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let written = self.file()?.write_all_at(bytes, offset);
        written.map_err(|error| Error::io("write a temporary file in", &self.directory, error))
    }

    fn take(&self, len: u64) -> Result<u64> {
        let taken = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            next.checked_add(len).filter(|&next| next <= i64::MAX as u64)
        });
        taken.map_err(|next| Error::Limit {
            place: self.directory.display().to_string(),
            what: "bytes of temporary files",
            got: next.saturating_add(len),
            bound: i64::MAX as u64,
            advice: crate::limits::FIXED,
        })
    }
}

/// Writes contents into a part of the spool of its own.
#[derive(Debug)]
pub(crate) struct Writer {
    spool: Arc<Spool>,
    /// Where the next byte goes, and where the part ends.
    at: u64,
    end: u64,
    /// Where the buffer begins.
    flushed: u64,
    buffer: Vec<u8>,
}

impl Writer {
    /// Takes room for `len` bytes, which are put behind each other next, and says where they begin.
    pub(crate) fn begin(&mut self, len: u64) -> Result<u64> {
        if self.at.checked_add(len).is_none_or(|end| end > self.end) {
            self.flush()?;
            let part = len.max(PIECE);
            self.at = self.spool.take(part)?;
            self.end = self.at.saturating_add(part);
            self.flushed = self.at;
        }
        Ok(self.at)
    }

    /// Puts the next bytes.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        self.at = self.at.saturating_add(bytes.len() as u64);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Leaves a hole, which reads as zeros.
    pub(crate) fn hole(&mut self, len: u64) -> Result<()> {
        self.flush()?;
        self.at = self.at.saturating_add(len);
        self.flushed = self.at;
        // The file must reach as far as its holes.
        let file = self.spool.file()?;
        let fail = |error| Error::io("set the length of a temporary file in", &self.spool.directory, error);
        if file.metadata().map_err(fail)?.len() < self.at && len > 0 {
            self.spool.write(&[0], self.at.saturating_sub(1))?;
        }
        Ok(())
    }

    /// Writes what waits.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.spool.write(&self.buffer, self.flushed)?;
            self.buffer.clear();
        }
        self.flushed = self.at;
        Ok(())
    }
}
