//! The bytes of files, on their way to the kernel.
//!
//! Of memory that nobody can write the kernel gets the place itself, and copies once. Other memory is never a `&[u8]`:
//! its bytes are copied into a buffer of the thread before, by bounded reads that never touch a page which a file may
//! have lost; and then it is asked whether the image was still there.

use std::cell::RefCell;

use daxfs::{Entry, File, Image, PieceSource, Provenance, Region};
use fuser::{Errno, ReplyData};

/// Most bytes that are answered at once. The kernel asks for no more than a MiB.
const MOST: usize = 16 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Answers a read of a file. `is_current` says whether what was read is of the image.
pub fn answer(entry: &Entry, offset: u64, len: u32, is_current: impl Fn() -> bool, reply: ReplyData) {
    let file = match entry.file() {
        Ok(file) => file,
        Err(_) => return reply.error(Errno::EISDIR),
    };
    let left = file.len().saturating_sub(offset);
    let len = usize::try_from(left).unwrap_or(usize::MAX).min(len as usize).min(MOST);
    if let Some(bytes) = in_place(&file, offset, len) {
        return match bytes {
            Ok(bytes) => reply.data(bytes),
            Err(_) => reply.error(Errno::EIO),
        };
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let bytes = &mut buffer[..len];
        match copy(&file, offset, bytes) {
            _ if !is_current() => reply.error(Errno::ESTALE),
            Ok(()) => reply.data(bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    });
}

/// The bytes themselves, where nobody can write them and no touch of them can fail: with fs-verity one can.
fn in_place(file: &File, offset: u64, len: usize) -> Option<daxfs::Result<&[u8]>> {
    let region = file.region();
    let is_immutable = region.provenance() != Provenance::Shared && region.verity().is_none();
    (is_immutable && file.extent().is_some()).then(|| file.range_as_slice(offset, len as u64))
}

/// Copies `bytes.len()` bytes, which the file has, from `offset` on.
fn copy(file: &File, offset: u64, bytes: &mut [u8]) -> daxfs::Result<()> {
    file.check()?;
    if let Some(extent) = file.extent() {
        return file.region().read_at(extent.offset.saturating_add(offset), bytes);
    }
    let pieces = file.pieces()?;
    let first = pieces.partition_point(|piece| piece.start.saturating_add(piece.len) <= offset);
    let (mut offset, mut rest) = (offset, bytes);
    for piece in pieces.iter().skip(first) {
        if rest.is_empty() {
            break;
        }
        let skip = offset.saturating_sub(piece.start);
        let len = usize::try_from(piece.len.saturating_sub(skip)).unwrap_or(usize::MAX).min(rest.len());
        let (part, behind) = rest.split_at_mut(len);
        match region_of(file.image(), piece.source) {
            Some((region, at)) => region.read_at(at.saturating_add(skip), part)?,
            None => part.fill(0),
        }
        (offset, rest) = (offset.saturating_add(len as u64), behind);
    }
    // Pieces cover their file.
    rest.fill(0);
    Ok(())
}

/// Where a piece lies; `None` for a hole.
fn region_of(image: &Image, source: PieceSource) -> Option<(&Region, u64)> {
    match source {
        PieceSource::Image(at) => Some((image.region(), at)),
        PieceSource::Backing(at) => image.backing().map(|backing| (backing, at)),
        _ => None,
    }
}

/// What lseek(2) finds from `offset` on: data, or with `hole` a hole, of which there is one behind the end of every
/// file.
pub fn seek(file: &File, offset: u64, hole: bool) -> Result<u64, Errno> {
    let len = file.len();
    if offset >= len {
        return Err(Errno::ENXIO);
    }
    if file.extent().is_some() {
        return Ok(if hole { len } else { offset });
    }
    let pieces = file.pieces().map_err(|_| Errno::EIO)?;
    let behind = pieces.iter().filter(|piece| piece.start.saturating_add(piece.len) > offset);
    let found = behind.into_iter().find(|piece| (piece.source == PieceSource::Zeros) == hole);
    match found {
        Some(piece) => Ok(piece.start.max(offset)),
        None if hole => Ok(len),
        None => Err(Errno::ENXIO),
    }
}
