//! A regular file of an image: a bounded extent, or pieces when it was changed after packing.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::ops::Range;
use std::os::fd::AsFd;

use dmabuf::{MemoryClass, SharedBytes, SharedBytesMut, Transfer};

use crate::error::{Error, Result};
use crate::region::COPY_CHUNK;
use crate::snapshot::{Content, Piece, PieceSource};
use crate::tensor::{self, Tensors};
use crate::{Entry, Image, Original, Provenance, Region};

/// Where a file lies in its region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Extent {
    /// First byte, from the start of the region ([`File::region`]).
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A regular file. It holds the image, so its memory stays mapped while it lives. Cloning is cheap.
#[derive(Clone)]
pub struct File {
    entry: Entry,
}

impl File {
    pub(crate) fn new(entry: Entry) -> Self {
        Self { entry }
    }

    /// The name it was opened by.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The image that holds it.
    pub fn image(&self) -> &Image {
        self.entry.image()
    }

    /// Absolute path in the image.
    pub fn path(&self) -> Vec<u8> {
        self.entry.path()
    }

    /// Inode number; hard links share it.
    pub fn ino(&self) -> u64 {
        self.entry.metadata().ino
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.entry.metadata().size
    }

    /// True for a file without bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The one extent that holds the file; `None` when it is made of pieces or its contents are elsewhere. An
    /// empty file lies at offset 0.
    pub fn extent(&self) -> Option<Extent> {
        match self.entry.content() {
            Content::Image(range) | Content::Backing(range) => {
                Some(Extent { offset: range.start, len: range.end.saturating_sub(range.start) })
            }
            Content::Empty => Some(Extent { offset: 0, len: 0 }),
            _ => None,
        }
    }

    /// Pieces that make up the file: 1, or more when it was changed after packing.
    pub fn piece_count(&self) -> usize {
        match self.entry.content() {
            Content::Pieces(pieces) => pieces.len(),
            _ => 1,
        }
    }

    /// Where the file's bytes lie: pieces in order and without gaps, none for an empty file, and more than one only when
    /// it was changed after packing.
    ///
    /// # Errors
    /// [`Error::NoContents`] when they are not in the image.
    pub fn pieces(&self) -> Result<Cow<'_, [Piece]>> {
        let one = |source, range: &Range<u64>| {
            let len = range.end.saturating_sub(range.start);
            let piece = (len > 0).then_some(Piece { start: 0, len, source });
            Ok(Cow::Owned(piece.into_iter().collect()))
        };
        match self.entry.content() {
            Content::Image(range) => one(PieceSource::Image(range.start), range),
            Content::Backing(range) => one(PieceSource::Backing(range.start), range),
            Content::Pieces(pieces) => Ok(Cow::Borrowed(pieces)),
            Content::Elsewhere(why) => Err(Error::NoContents { path: self.path(), why }),
            _ => Ok(Cow::Owned(Vec::new())),
        }
    }

    /// True when it was changed after packing, so that the packer's records say nothing of its bytes.
    pub fn is_changed(&self) -> bool {
        matches!(self.entry.content(), Content::Pieces(_))
    }

    /// The region that its extent lies in: the image's, or the backing file's for a split image.
    pub fn region(&self) -> &Region {
        match (self.entry.content(), self.image().backing()) {
            (Content::Backing(_), Some(backing)) => backing,
            _ => self.image().region(),
        }
    }

    /// True when its one extent lies in the backing file.
    pub(crate) fn is_backed(&self) -> bool {
        matches!(self.entry.content(), Content::Backing(_))
    }

    /// Compares the bytes with the hash that the content hash has of them, for an image that was opened with
    /// [`Verify::Lazy`](crate::Verify::Lazy): at the first call, which takes as long as hashing the file; other threads
    /// that ask meanwhile wait. Every method that gives bytes away calls it. In any other image it does nothing.
    ///
    /// # Errors
    /// [`Error::WrongHash`], also when it is called again; as for [`File::read_at`].
    pub fn check(&self) -> Result<()> {
        match self.image().lazy() {
            Some(lazy) => lazy.check(self, self.entry.inode_number()),
            None => Ok(()),
        }
    }

    /// The whole file as a bounded view, without a copy.
    ///
    /// # Errors
    /// [`Error::NotContiguous`] when it is made of pieces, [`Error::NoContents`] when the image does not hold them;
    /// [`Error::WrongHash`] as for [`File::check`].
    pub fn bytes(&self) -> Result<SharedBytes<'_>> {
        self.check()?;
        self.bytes_unchecked()
    }

    /// [`File::bytes`] of which nothing is compared.
    pub(crate) fn bytes_unchecked(&self) -> Result<SharedBytes<'_>> {
        let extent = self.extent().ok_or_else(|| self.no_extent())?;
        Ok(self.region().view().get(extent.offset, extent.len)?)
    }

    /// A part of the file as a bounded view, without a copy. `offset` and `len` are bytes in the file.
    ///
    /// # Errors
    /// As for [`File::bytes`], and [`Error::OutsideFile`].
    pub fn range(&self, offset: u64, len: u64) -> Result<SharedBytes<'_>> {
        self.check_range(offset, len)?;
        Ok(self.bytes()?.get(offset, len)?)
    }

    /// The whole file as a slice, without a copy.
    ///
    /// # Errors
    /// [`Error::NotImmutable`] unless nobody can write to the region, and as for [`File::bytes`].
    pub fn as_slice(&self) -> Result<&[u8]> {
        self.check()?;
        let extent = self.extent().ok_or_else(|| self.no_extent())?;
        self.region().slice(extent.offset, extent.len)
    }

    /// A part of the file as a slice; see [`File::as_slice`] and [`File::range`].
    ///
    /// # Errors
    /// As for those.
    pub fn range_as_slice(&self, offset: u64, len: u64) -> Result<&[u8]> {
        self.check_range(offset, len)?;
        self.check()?;
        let extent = self.extent().ok_or_else(|| self.no_extent())?;
        // The range lies in the file and the file in the region.
        self.region().slice(extent.offset.saturating_add(offset), len)
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            end => Err(Error::OutsideFile {
                path: self.path(),
                range: offset..end.unwrap_or(u64::MAX),
                len: self.len(),
            }),
        }
    }

    fn no_extent(&self) -> Error {
        match self.entry.content() {
            Content::Elsewhere(why) => Error::NoContents { path: self.path(), why },
            _ => Error::NotContiguous { path: self.path(), pieces: self.piece_count() },
        }
    }

    /// Copies bytes from `offset` on into `buffer` and returns how many: fewer than asked for only at the end of
    /// the file. Works for files in pieces, too.
    ///
    /// # Errors
    /// [`Error::NoContents`]; [`Error::Memory`] when the device that has the image has gone; [`Error::WrongHash`] as for
    /// [`File::check`].
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.read_into(offset, &mut SharedBytesMut::from_slice(buffer))
    }

    /// [`File::read_at`] into memory that is no slice, since code outside of Rust reaches it, too.
    ///
    /// # Errors
    /// As there.
    pub fn read_into(&self, offset: u64, target: &mut SharedBytesMut<'_>) -> Result<usize> {
        self.check()?;
        let _access = self.region().cpu_access()?;
        let len = self.copy_out(offset, target)?;
        self.region().check_present()?;
        Ok(len)
    }

    fn copy_out(&self, offset: u64, buffer: &mut SharedBytesMut<'_>) -> Result<usize> {
        let left = self.len().saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if len == 0 {
            return Ok(0);
        }
        let mut target = buffer.get_mut(0, len as u64)?;
        match self.entry.content() {
            Content::Pieces(pieces) => self.copy_pieces(pieces, offset, target)?,
            _ => self.bytes_unchecked()?.get(offset, len as u64)?.copy_into(0, &mut target)?,
        }
        Ok(len)
    }

    /// Copies from pieces; `offset..offset + target.len()` lies in the file, which they cover without gaps.
    fn copy_pieces(&self, pieces: &[Piece], mut offset: u64, mut target: SharedBytesMut<'_>) -> Result<()> {
        let first = pieces.partition_point(|piece| piece.start.saturating_add(piece.len) <= offset);
        for piece in pieces.iter().skip(first) {
            let skip = offset.saturating_sub(piece.start);
            let len = usize::try_from(piece.len.saturating_sub(skip)).unwrap_or(usize::MAX).min(target.len());
            let (mut part, rest) = target.split_at(len)?;
            match (piece.source, self.image().backing()) {
                (PieceSource::Image(at), _) => {
                    self.image().region().view().copy_into(at.saturating_add(skip), &mut part)?;
                }
                (PieceSource::Backing(at), Some(backing)) => {
                    // Callers see to the image's own memory.
                    let _access = backing.cpu_access()?;
                    backing.view().copy_into(at.saturating_add(skip), &mut part)?;
                    backing.check_present()?;
                }
                _ => part.fill_zero(0, len as u64)?,
            }
            if rest.is_empty() {
                break;
            }
            offset = offset.saturating_add(len as u64);
            target = rest;
        }
        Ok(())
    }

    /// Copies the whole file.
    ///
    /// # Errors
    /// [`Error::NoContents`], or [`Error::Memory`] when there is not enough memory.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let too_large = || dmabuf::Error::Invalid {
            what: format!("a copy of {} bytes", self.len()),
            why: "there is not enough memory".into(),
        };
        let len = usize::try_from(self.len()).map_err(|_| too_large())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| too_large())?;
        bytes.resize(len, 0);
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Calls `each` with some of the file's bytes in order, of which nothing is compared. What is proven immutable is not
    /// copied, and a file that was cut short is an error where that can be.
    pub(crate) fn each_chunk_unchecked(
        &self,
        range: Range<u64>,
        buffer: &mut Vec<u8>,
        mut each: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let extent = self.extent().ok_or_else(|| self.no_extent())?;
        let (region, len) = (self.region(), range.end.saturating_sub(range.start));
        let start = extent.offset.saturating_add(range.start);
        // A page of a file that the disk has changed is SIGBUS in a mapping.
        if region.provenance() != Provenance::Shared && region.verity().is_none() {
            return each(region.slice(start, len)?);
        }
        let mut done = 0_u64;
        while done < len {
            let left = usize::try_from(len.saturating_sub(done)).unwrap_or(usize::MAX);
            buffer.resize(left.min(COPY_CHUNK), 0);
            region.read_at(start.saturating_add(done), buffer)?;
            each(buffer)?;
            done = done.saturating_add(buffer.len() as u64);
        }
        Ok(())
    }

    /// Calls `each` with the file's bytes in order, at most 256 KiB at a time.
    fn for_each_chunk(&self, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let _access = self.region().cpu_access()?;
        let mut buffer = vec![0; usize::try_from(self.len()).unwrap_or(COPY_CHUNK).min(COPY_CHUNK)];
        let mut offset = 0_u64;
        loop {
            let len = self.copy_out(offset, &mut SharedBytesMut::from_slice(&mut buffer))?;
            self.region().check_present()?;
            match buffer.get(..len) {
                Some(bytes) if len > 0 => each(bytes)?,
                _ => return Ok(()),
            }
            offset = offset.saturating_add(len as u64);
        }
    }

    /// Writes the whole file to a writer of this process and returns its length; for descriptors see
    /// [`File::write_to`].
    ///
    /// # Errors
    /// [`Error::Write`] with what the writer answered, and as for [`File::read_at`].
    pub fn copy_to(&self, writer: &mut (impl Write + ?Sized)) -> Result<u64> {
        self.check()?;
        self.for_each_chunk(|bytes| writer.write_all(bytes).map_err(Error::Write))?;
        Ok(self.len())
    }

    /// Writes the whole file to a file, pipe or socket, at its position, and returns its length. The kernel moves the
    /// bytes where it can (see [`Transfer`]); a target that takes no more at the moment is waited for.
    ///
    /// # Errors
    /// [`Error::Write`] with what the kernel answered, also when the image's own file was cut short;
    /// [`Error::NoContents`]; [`Error::Memory`] when the device that has the image has gone, also after the first
    /// bytes.
    pub fn write_to(&self, to: impl AsFd) -> Result<u64> {
        self.check()?;
        let to = to.as_fd();
        let _access = self.region().cpu_access()?;
        match self.transfer()? {
            Some(mut transfer) => {
                transfer.finish(to, None).map_err(Error::Write)?;
                self.region().check_present()?;
            }
            None => self.for_each_chunk(|bytes| {
                Transfer::new(SharedBytes::from_slice(bytes), None).finish(to, None).map_err(Error::Write)
            })?,
        }
        Ok(self.len())
    }

    /// The file as something that is sent step by step; `None` when it is made of pieces. CPU access to a dma-buf has
    /// to be bracketed ([`Region::cpu_access`]).
    ///
    /// # Errors
    /// [`Error::NoContents`]; [`Error::WrongHash`] as for [`File::check`].
    pub fn transfer(&self) -> Result<Option<Transfer<'_>>> {
        let extent = match (self.extent(), self.entry.content()) {
            (Some(extent), _) => extent,
            (None, Content::Pieces(_)) => return Ok(None),
            (None, _) => return Err(self.no_extent()),
        };
        let region = self.region();
        // Private pages are not those of the file.
        let is_file = region.class() == MemoryClass::Pages && !region.is_writable();
        let file =
            region.fd().filter(|_| is_file).map(|fd| (fd, region.offset().saturating_add(extent.offset)));
        Ok(Some(Transfer::new(self.bytes()?, file)))
    }

    /// BLAKE3 hash of the contents, computed now.
    ///
    /// # Errors
    /// As for [`File::read_at`].
    pub fn hash(&self) -> Result<[u8; 32]> {
        let mut hasher = blake3::Hasher::new();
        self.for_each_chunk(|bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        Ok(hasher.finalize().into())
    }

    /// The bytes that the file had in the source that the image was packed from.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the index is wrong.
    pub fn original(&self) -> Result<Original> {
        Original::of(self)
    }

    /// The tensors of a safetensors file. The header is parsed once per file, or found in the image's index.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the header is wrong.
    pub fn tensors(&self) -> Result<Tensors> {
        tensor::tensors_of_file(self)
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path();
        f.debug_struct("File")
            .field("path", &format_args!("{}", crate::text::Escaped(&path)))
            .field("len", &self.len())
            .field("extent", &self.extent())
            .finish_non_exhaustive()
    }
}
