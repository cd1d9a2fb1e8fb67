//! Where bytes that come are written: a memfd, or a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::{Error, Result};

/// A file of a length that stays.
#[derive(Debug)]
pub(crate) struct Sink {
    file: File,
    len: u64,
}

impl Sink {
    /// `file` has `len` bytes already.
    pub(crate) fn new(file: File, len: u64) -> Self {
        Self { file, len }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Writes bytes that came. Any thread may do so: parts do not overlap.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        // Beyond the end a write would make it larger.
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= self.len);
        if end.is_none() {
            let error = io::Error::other(format!("{} bytes at {offset}, of {}", bytes.len(), self.len));
            return Err(Error::system("write behind the end", error));
        }
        self.file.write_all_at(bytes, offset).map_err(|error| Error::system("write what was fetched", error))
    }
}
