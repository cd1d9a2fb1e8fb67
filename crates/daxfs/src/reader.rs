//! A file as a stream, for code that takes `Read` and `Seek`.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::io::{self, Read, Seek, SeekFrom};

use crate::File;

/// Reads a file from a position of its own. Files in pieces are read as well; nothing is buffered, since a read is a copy
/// out of memory.
///
/// What fails is an [`io::Error`] with the [`crate::Error`] inside ([`io::Error::get_ref`]).
#[derive(Debug, Clone)]
pub struct FileReader {
    file: File,
    position: u64,
}

impl File {
    /// The file as a stream, at its beginning. It holds the image, as the file does.
    ///
    /// [`File::copy_to`] and [`File::write_to`] move a whole file with fewer copies.
    pub fn reader(&self) -> FileReader {
        FileReader { file: self.clone(), position: 0 }
    }
}

impl FileReader {
    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(self.position, buffer)?;
        self.position = self.position.saturating_add(count as u64);
        Ok(count)
    }
}

impl Seek for FileReader {
    /// A position behind the end is allowed, as in any file: reads there give nothing.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => self.file.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or_else(|| {
            let text = format!(
                "{}: no position {to:?} in {} bytes, from {}",
                crate::Escaped(&self.file.path()),
                self.file.len(),
                self.position
            );
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        Ok(self.position)
    }
}

impl From<crate::Error> for io::Error {
    /// Of the kind that the system named, where it did.
    fn from(error: crate::Error) -> Self {
        match error {
            crate::Error::Write(error) => error,
            error => {
                let kind = match (&error, error.raw_os_error()) {
                    (crate::Error::Memory(memory), _) => memory.io_kind(),
                    (_, Some(number)) => io::Error::from_raw_os_error(number).kind(),
                    (_, None) => io::ErrorKind::Other,
                };
                io::Error::new(kind, error)
            }
        }
    }
}
