//! A stretch of the image while it is being filled: a part of the target's own memory, or a buffer from which it
//! is written to the target.

use crate::Result;
use crate::hash::{Leaf, RangeHasher};
use crate::source::SourceFile;
use dmabuf::SharedBytesMut;
use std::convert::Infallible;
use std::ops::Range;
use std::os::fd::AsFd;

/// Gaps up to this many bytes are written as zeros; larger ones become holes of the file.
const SMALL_GAP: u64 = 64 << 10;

/// Where the bytes of a block end up.
#[derive(Debug)]
enum Backing {
    /// In the target already.
    Target,
    /// In a buffer. These ranges of it are to be written, in order.
    Buffer(Vec<Range<u64>>),
}

/// The bytes `range` of the image. All offsets are absolute.
#[derive(Debug)]
pub(crate) struct Block<'a> {
    view: SharedBytesMut<'a>,
    start: u64,
    backing: Backing,
}

impl<'a> Block<'a> {
    /// A block that lies in the target's memory.
    pub(crate) fn mapped(view: SharedBytesMut<'a>, start: u64) -> Block<'a> {
        Block { view, start, backing: Backing::Target }
    }

    /// A block in a buffer, whose contents are garbage before something is put there.
    pub(crate) fn buffered(bytes: &'a mut [u8], start: u64) -> Block<'a> {
        let view = SharedBytesMut::from_slice(bytes);
        Block { view, start, backing: Backing::Buffer(Vec::new()) }
    }

    /// What has to be written of a buffer.
    pub(crate) fn runs(&self) -> &[Range<u64>] {
        match &self.backing {
            Backing::Target => &[],
            Backing::Buffer(runs) => runs,
        }
    }

    /// Puts bytes of our own making.
    pub(crate) fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.include(offset, bytes.len() as u64)?;
        Ok(self.view.copy_from(offset - self.start, bytes)?)
    }

    /// Puts zeros.
    pub(crate) fn zero(&mut self, offset: u64, len: u64) -> Result<()> {
        self.include(offset, len)?;
        Ok(self.view.fill_zero(offset - self.start, len)?)
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
            let mut rest = self.view.get_mut(offset - self.start + done, len - done)?;
            let count = rest
                .pread_from(source.file.as_fd(), position + done)
                .map_err(|error| source.fail("read", error))?;
            if count == 0 {
                return Err(source.ended(position + done));
            }
            done += count as u64;
        }
        Ok(())
    }

    /// Hashes bytes that were put or read before, by way of `scratch`: no reference to shared memory is made.
    pub(crate) fn hash(
        &self,
        offset: u64,
        len: u64,
        scratch: &mut [u8],
        hasher: &mut RangeHasher,
        leaves: &mut Vec<Leaf>,
    ) -> Result<()> {
        let bytes = self.view.as_shared().get(offset - self.start, len)?;
        let Ok(()) = bytes.chunks(scratch, |_, piece| {
            hasher.update(piece, leaves);
            Ok::<(), Infallible>(())
        });
        Ok(())
    }

    /// Adds a range to what a buffer has to write. Blocks are filled in the order of offsets.
    fn include(&mut self, offset: u64, len: u64) -> Result<()> {
        let Backing::Buffer(runs) = &mut self.backing else { return Ok(()) };
        match runs.last_mut() {
            Some(run) if offset <= run.end => run.end = run.end.max(offset + len),
            Some(run) if offset - run.end <= SMALL_GAP => {
                let gap = run.end..offset;
                run.end = offset + len;
                self.view.fill_zero(gap.start - self.start, gap.end - gap.start)?;
            }
            _ => runs.push(offset..offset + len),
        }
        Ok(())
    }

    /// Ends the current run: what lies before `offset` and was not put must not be written.
    pub(crate) fn leave_out(&mut self, offset: u64, len: u64) {
        if let Backing::Buffer(runs) = &mut self.backing {
            runs.push(offset + len..offset + len);
        }
    }
}
