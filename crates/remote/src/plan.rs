//! Which parts of an image are fetched at once, and what each of them has to be.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use daxfs::{FileType, Groups, Image};

use crate::Result;
use crate::fetch::Fetch;
use crate::target::Target;

/// Bytes of a part, unless one piece is longer.
const PART: u64 = 8 << 20;

/// The longest file that is one piece: groups begin where a file is longer than one of them.
const LONGEST: u64 = daxfs::format::index::GROUP_LEN;

/// What a piece costs in memory.
const PIECE_BYTES: u64 = size_of::<Piece>() as u64;

/// A range of the image that is fetched by one request, and the pieces of files in it.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) range: Range<u64>,
    /// In ascending order, without overlaps, within the range.
    pub(crate) pieces: Vec<Piece>,
}

impl Part {
    /// A range of which nothing is known.
    pub(crate) fn of(range: Range<u64>) -> Self {
        Self { range, pieces: Vec::new() }
    }
}

/// A piece of a file that has a hash of its own.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    /// Bytes of the image.
    pub(crate) range: Range<u64>,
    pub(crate) path: Arc<str>,
    /// The first of its bytes in the file.
    pub(crate) from: u64,
    pub(crate) expected: Expected,
}

impl Piece {
    /// Whether another piece says the same.
    fn is_same(&self, other: &Self) -> bool {
        let same = match (&self.expected, &other.expected) {
            (Expected::File(a), Expected::File(b)) => a == b,
            (Expected::Group(a, m), Expected::Group(b, n)) => m == n && a == b,
            _ => false,
        };
        same && self.range == other.range
    }
}

/// What the bytes of a piece have to give.
#[derive(Debug, Clone)]
pub(crate) enum Expected {
    /// BLAKE3 of a whole file.
    File([u8; 32]),
    /// The chaining value of one group of a file.
    Group(Arc<Groups>, usize),
}

/// The parts of an image.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) parts: Vec<Part>,
    /// Pieces that are compared in the memory when all is there: those that the metadata was fetched with.
    pub(crate) later: Vec<Piece>,
    /// Whether these pieces are all files. Files that overlap are not among them, nor those without groups that are
    /// longer than one.
    pub(crate) is_whole: bool,
}

impl Plan {
    /// Plans what is missing of an image whose metadata is there.
    pub(crate) fn new(fetch: &Fetch, image: &Image, target: &Target) -> Result<Self> {
        let (mut pieces, mut is_whole) = pieces(fetch, image)?;
        pieces.sort_by_key(|piece| piece.range.start);
        // Of pieces that overlap the first one stays; others say the same if they are the same.
        let mut last: Option<Piece> = None;
        pieces.retain(|piece| match &last {
            Some(last) if piece.range.start < last.range.end => {
                is_whole &= last.is_same(piece);
                false
            }
            _ => {
                last = Some(piece.clone());
                true
            }
        });
        let mut plan = Self { parts: Vec::new(), later: Vec::new(), is_whole };
        let mut pieces = pieces.into_iter().peekable();
        for missing in target.missing(0..target.len()) {
            let mut part = Part::of(missing.start..missing.start);
            while let Some(piece) = pieces.next_if(|piece| piece.range.end <= missing.end) {
                if piece.range.start < missing.start {
                    plan.later.push(piece);
                    continue;
                }
                if piece.range.end - part.range.start > PART {
                    let start = piece.range.start;
                    plan.push(Part { range: part.range.start..start, pieces: part.pieces });
                    part = Part::of(start..start);
                }
                part.pieces.push(piece);
            }
            plan.push(Part { range: part.range.start..missing.end, pieces: part.pieces });
        }
        plan.later.extend(pieces);
        Ok(plan)
    }

    /// Takes a part; what lies behind its pieces is cut off where it is long.
    fn push(&mut self, part: Part) {
        let end = part.pieces.last().map_or(part.range.start, |piece| piece.range.end);
        let (start, behind) = (part.range.start, part.range.end);
        if behind.saturating_sub(end) <= PART {
            if start < behind {
                self.parts.push(part);
            }
            return;
        }
        if start < end {
            self.parts.push(Part { range: start..end, ..part });
        }
        let mut at = end;
        while at < behind {
            let next = at.saturating_add(PART).min(behind);
            self.parts.push(Part::of(at..next));
            at = next;
        }
    }
}

/// The pieces of all files that have hashes, and whether no file is left out.
fn pieces(fetch: &Fetch, image: &Image) -> Result<(Vec<Piece>, bool)> {
    let (mut pieces, mut is_whole) = (Vec::new(), true);
    let failed = |error| fetch.image(error);
    let Some(index) = image.index().map_err(failed)? else { return Ok((pieces, false)) };
    let mut seen = HashSet::new();
    for entry in image.walk().filter(|entry| entry.file_type() == FileType::File) {
        let file = entry.file().map_err(failed)?;
        if !daxfs::is_content(&file.path()) || !seen.insert(file.ino()) || file.is_empty() {
            continue;
        }
        let record = index.file(file.ino()).map_err(failed)?.filter(|record| record.size == file.len());
        let found = record.as_ref().and_then(|record| Some((file.extent()?, record, record.hash?)));
        let Some((extent, record, hash)) = found else {
            is_whole = false;
            continue;
        };
        let groups = index.groups(record).map_err(failed)?.map(Arc::new);
        let count = groups.as_ref().map_or(1, |groups| groups.count());
        // 32 bytes of a group are 1 MiB of the image, a piece is a few times as long: linear in the image, and charged.
        image.charge("pieces of files", (count as u64).saturating_mul(PIECE_BYTES)).map_err(failed)?;
        let path: Arc<str> = String::from_utf8_lossy(&file.path()).into();
        let piece = |from: Range<u64>, expected| Piece {
            range: extent.offset.saturating_add(from.start)..extent.offset.saturating_add(from.end),
            path: Arc::clone(&path),
            from: from.start,
            expected,
        };
        match groups {
            Some(groups) => pieces.extend(
                (0..count)
                    .map(|group| piece(groups.range(group), Expected::Group(Arc::clone(&groups), group))),
            ),
            None if file.len() <= LONGEST => pieces.push(piece(0..file.len(), Expected::File(hash))),
            None => is_whole = false,
        }
    }
    Ok((pieces, is_whole))
}
