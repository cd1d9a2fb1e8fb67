//! A file as it was before it was packed.

#![forbid(unsafe_code)]

use std::fmt;
use std::io::Write;

use crate::error::{Error, Result};
use crate::region::COPY_CHUNK;
use crate::tensor::index::IndexedOriginal;
use crate::tensor::usable_index;
use crate::{File, Index};

/// The bytes that a file had in the source that the image was packed from.
///
/// The packer moves the tensors of safetensors files so that they are aligned, unless it is told not to; then the file
/// in the image is another, valid one with the same tensors, and this puts the source together again. For every other
/// file it is the file itself. That both have the same tensors in the same bytes is proven when it is made, so sums of the
/// original speak for what readers of the file get. It holds the image. Cloning is cheap but for a few bytes for each stretch.
#[derive(Clone)]
pub struct Original {
    file: File,
    moved: Option<(Index, IndexedOriginal)>,
}

impl Original {
    pub(crate) fn of(file: &File) -> Result<Self> {
        let moved = match usable_index(file.image())? {
            None => None,
            Some(index) => match index.file(file.ino())? {
                None => None,
                Some(record) => {
                    index.check_size(&record, file)?;
                    let original = index.original(&record)?;
                    if let Some(original) = &original {
                        index.check_original(file, &record, original)?;
                    }
                    original.map(|original| (index, original))
                }
            },
        };
        Ok(Self { file: file.clone(), moved })
    }

    /// The file in the image.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.moved.as_ref().map_or_else(|| self.file.len(), |(_, original)| original.size)
    }

    /// True for a file without bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True where the bytes are not those of the file in the image.
    pub fn differs(&self) -> bool {
        self.moved.is_some()
    }

    /// What the tensors were moved to multiples of; `None` for a file that lies in the image as it is.
    pub fn alignment(&self) -> Option<u64> {
        self.moved.as_ref().map(|(_, original)| original.alignment)
    }

    /// BLAKE3 of the original as the packer stored it; `None` where the image has no hashes, or none of this file.
    /// Nothing is computed here.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a broken index.
    pub fn stored_hash(&self) -> Result<Option<[u8; 32]>> {
        match &self.moved {
            Some((_, original)) => Ok(original.hash),
            None => match usable_index(self.file.image())? {
                Some(index) => index.file_hash(self.file.ino()),
                None => Ok(None),
            },
        }
    }

    /// Copies bytes from `offset` on into `buffer` and returns how many: fewer than asked for only at the end.
    ///
    /// # Errors
    /// As for [`File::read_at`].
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let Some((index, original)) = &self.moved else { return self.file.read_at(offset, buffer) };
        let left = usize::try_from(original.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.len());
        let (mut at, mut done) = (offset, 0);
        while let Some(rest) = buffer.get_mut(done..wanted).filter(|rest| !rest.is_empty()) {
            let count = if at < original.start_len() {
                let start = index.original_start(original)?;
                let len = usize::try_from(original.start_len() - at).unwrap_or(usize::MAX).min(rest.len());
                let (part, _) = rest.split_at_mut(len);
                start.read_at(at, part)?;
                len
            } else {
                let (from, len) = original.run(at).ok_or_else(|| self.ended(at))?;
                let len = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
                let (part, _) = rest.split_at_mut(len);
                match self.file.read_at(from, part)? {
                    0 => return Err(self.ended(at)),
                    count => count,
                }
            };
            done += count;
            at += count as u64;
        }
        Ok(done)
    }

    /// The length was checked against the runs, so this is a file that is shorter than its record.
    fn ended(&self, at: u64) -> Error {
        Error::OutsideFile { path: self.file.path(), range: at..self.len(), len: self.file.len() }
    }

    /// Calls `each` with the bytes in order, at most 256 KiB at a time.
    ///
    /// # Errors
    /// What `each` returns, and as for [`File::read_at`].
    pub fn for_each_chunk<E: From<Error>>(
        &self,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = vec![0; usize::try_from(self.len()).unwrap_or(COPY_CHUNK).min(COPY_CHUNK)];
        let mut offset = 0;
        loop {
            let len = self.read_at(offset, &mut buffer)?;
            match buffer.get(..len) {
                Some(bytes) if len > 0 => each(bytes)?,
                _ => return Ok(()),
            }
            offset += len as u64;
        }
    }

    /// Writes the whole original to a writer and returns its length.
    ///
    /// # Errors
    /// [`Error::Write`] with what the writer answered, and as for [`File::read_at`].
    pub fn copy_to(&self, writer: &mut (impl Write + ?Sized)) -> Result<u64> {
        self.for_each_chunk(|bytes| writer.write_all(bytes).map_err(Error::Write))?;
        Ok(self.len())
    }

    /// BLAKE3 of the original, computed now.
    ///
    /// # Errors
    /// As for [`File::read_at`].
    pub fn hash(&self) -> Result<[u8; 32]> {
        let mut hasher = blake3::Hasher::new();
        self.for_each_chunk::<Error>(|bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        Ok(hasher.finalize().into())
    }
}

impl fmt::Debug for Original {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Original")
            .field("file", &self.file)
            .field("len", &self.len())
            .field("differs", &self.differs())
            .finish_non_exhaustive()
    }
}
