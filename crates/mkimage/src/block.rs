//! A stretch of the image while it is being filled: a part of the target's own memory, or a buffer from which it
//! is written to the target.

use crate::Result;
use crate::hash::{Leaf, RangeHasher};
use crate::source::SourceFile;
use dmabuf::SharedBytesMut;
use std::convert::Infallible;
use std::ops::Range;

/// Gaps up to this many bytes are written as zeros; larger ones become holes of the file.
pub(crate) const SMALL_GAP: u64 = 64 << 10;

/// Where the bytes of a block are put.
#[derive(Debug)]
enum Place<'a> {
    /// Into the target.
    Target(SharedBytesMut<'a>),
    /// Into a buffer. The ranges `runs` of it are to be written, in order.
    Buffer { bytes: &'a mut [u8], runs: Vec<Range<u64>> },
}

/// A part of the image, from `start` on. All offsets are absolute.
#[derive(Debug)]
pub(crate) struct Block<'a> {
    start: u64,
    place: Place<'a>,
}

impl<'a> Block<'a> {
    /// A block that lies in the target's memory.
    pub(crate) fn mapped(view: SharedBytesMut<'a>, start: u64) -> Block<'a> {
        Block { start, place: Place::Target(view) }
    }

    /// A block in a buffer, whose contents are garbage before something is put there.
    pub(crate) fn buffered(bytes: &'a mut [u8], start: u64) -> Block<'a> {
        Block { start, place: Place::Buffer { bytes, runs: Vec::new() } }
    }

    /// What has to be written of a buffer.
    pub(crate) fn runs(&self) -> &[Range<u64>] {
        match &self.place {
            Place::Target(_) => &[],
            Place::Buffer { runs, .. } => runs,
        }
    }

    /// Puts bytes of our own making.
    pub(crate) fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.include(offset, bytes.len() as u64)?;
        Ok(self.part(offset, bytes.len() as u64)?.copy_from(0, bytes)?)
    }

    /// Puts zeros.
    pub(crate) fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        self.include(offset, len)?;
        Ok(self.part(offset, len)?.fill_zero(0, len)?)
    }

    /// Reads `len` bytes from `position` of a source, straight into the block.
    pub(crate) fn read(
        &mut self,
        offset: u64,
        len: u64,
        source: &SourceFile<'_>,
        position: u64,
    ) -> Result<()> {
        self.include(offset, len)?;
        self.read_aside(offset, len, source, position)
    }

    /// As [`Block::read`], for the last bytes of a source, which must end there. `false`: whether it does was not seen.
    pub(crate) fn read_last(
        &mut self,
        offset: u64,
        len: u64,
        source: &SourceFile<'_>,
        position: u64,
    ) -> Result<bool> {
        // One byte more is asked for: that it does not come says what a second call would. Whatever lies behind is
        // filled later, or is zero and stays so.
        if len == 0 || !self.reaches(offset + len + 1) || source.whole().is_none() {
            return self.read(offset, len, source, position).map(|()| false);
        }
        self.include(offset, len)?;
        let (file, place) = source.place(position);
        let count =
            self.part(offset, len + 1)?.pread_from(file, place).map_err(|error| source.unreadable(error))?
                as u64;
        match count {
            0 => Err(source.ended(position)),
            _ if count > len => Err(source.grew()),
            _ if count == len => Ok(true),
            _ => self.read_aside(offset + count, len - count, source, position + count).map(|()| false),
        }
    }

    /// As [`Block::read`], for bytes that are needed for hashing only: the target has them already.
    pub(crate) fn read_aside(
        &mut self,
        offset: u64,
        len: u64,
        source: &SourceFile<'_>,
        position: u64,
    ) -> Result<()> {
        let mut done = 0;
        while done < len {
            let mut rest = self.part(offset + done, len - done)?;
            let (file, place) = source.place(position + done);
            let count = rest.pread_from(file, place).map_err(|error| source.unreadable(error))?;
            if count == 0 {
                return Err(source.ended(position + done));
            }
            done += count as u64;
        }
        Ok(())
    }

    /// Hashes bytes that were put or read before: those of the target by way of `scratch`, since no reference to shared
    /// memory is made.
    pub(crate) fn hash(
        &self,
        offset: u64,
        len: u64,
        scratch: &mut [u8],
        hasher: &mut RangeHasher,
        leaves: &mut Vec<Leaf>,
    ) -> Result<()> {
        let from = offset - self.start;
        match &self.place {
            Place::Target(view) => {
                let part = view.as_shared().get(from, len)?.with_wide_loads();
                let Ok(()) = part.chunks(scratch, |_, piece| {
                    hasher.update(piece, leaves);
                    Ok::<(), Infallible>(())
                });
            }
            Place::Buffer { bytes, .. } => hasher.update(&bytes[index(from)..index(from + len)], leaves),
        }
        Ok(())
    }

    /// Whether the block has the bytes up to `end`.
    fn reaches(&self, end: u64) -> bool {
        let len = match &self.place {
            Place::Target(view) => view.len() as u64,
            Place::Buffer { bytes, .. } => bytes.len() as u64,
        };
        end - self.start <= len
    }

    /// The bytes from `offset` on.
    fn part(&mut self, offset: u64, len: u64) -> Result<SharedBytesMut<'_>> {
        let from = offset - self.start;
        match &mut self.place {
            Place::Target(view) => Ok(view.get_mut(from, len)?),
            Place::Buffer { bytes, .. } => {
                Ok(SharedBytesMut::from_slice(&mut bytes[index(from)..index(from + len)]))
            }
        }
    }

    /// Adds a range to what a buffer has to write. Blocks are filled in the order of offsets.
    fn include(&mut self, offset: u64, len: u64) -> Result<()> {
        let Place::Buffer { runs, .. } = &mut self.place else { return Ok(()) };
        match runs.last_mut() {
            Some(run) if offset <= run.end => run.end = run.end.max(offset + len),
            Some(run) if offset - run.end <= SMALL_GAP => {
                let gap = run.end..offset;
                run.end = offset + len;
                self.part(gap.start, gap.end - gap.start)?.fill_zero(0, gap.end - gap.start)?;
            }
            _ => runs.push(offset..offset + len),
        }
        Ok(())
    }

    /// Ends the current run: what lies before `offset` and was not put must not be written.
    pub(crate) fn leave_out(&mut self, offset: u64, len: u64) {
        if let Place::Buffer { runs, .. } = &mut self.place {
            runs.push(offset + len..offset + len);
        }
    }
}

/// An offset in memory, which is never too large for it.
pub(crate) fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
