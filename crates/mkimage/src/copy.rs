//! Fills stretches of the image from the source files, hashing what it copies.

use crate::align::{Content, Rewrite};
use crate::block::{Block, index};
use crate::hash::{Leaf, RangeHasher};
use crate::metadata;
use crate::packer::Plan;
use crate::progress::Progress;
use crate::source::{Opener, SourceFile};
use crate::target::Target;
use crate::{Error, Result};
use std::collections::HashSet;
use std::ops::Range;

/// Bytes copied before they are hashed: source and copy are still in the second-level cache then.
const UNIT: u64 = 128 << 10;

/// Bytes that are hashed at a time: enough for the widest vector units, little enough for the first-level cache.
const HASH_STEP: usize = 32 << 10;

/// What BLAKE3's parts start on multiples of.
const CHUNK: u64 = blake3::CHUNK_LEN as u64;

/// What a copier has to know besides the plan.
#[derive(Debug)]
pub(crate) struct Task<'p> {
    pub(crate) plan: &'p Plan,
    pub(crate) target: &'p Target,
    /// Whether contents are hashed.
    pub(crate) hash: bool,
    /// Files that the target has already, because they were cloned.
    pub(crate) present: HashSet<u32>,
    pub(crate) progress: &'p dyn Progress,
}

/// Copies for one thread.
#[derive(Debug)]
pub(crate) struct Copier<'p> {
    task: &'p Task<'p>,
    opener: Opener<'p>,
    current: Option<Current<'p>>,
    scratch: Vec<u8>,
    /// Hashes of what was copied.
    pub(crate) leaves: Vec<Leaf>,
    /// Hashes of the sources of files that are made anew.
    pub(crate) original_leaves: Vec<Leaf>,
}

/// The file being copied.
#[derive(Debug)]
struct Current<'p> {
    ino: u32,
    /// Open as soon as a byte of it is needed.
    source: Option<SourceFile<'p>>,
    /// Whether the last read saw its end.
    ended: bool,
    hasher: Option<RangeHasher>,
    original: Option<OriginalHasher>,
}

/// Hashes the part of a source that lies in a window, while the file that is made of it is copied. Parts of a hash start
/// on multiples of 1024, and in the source these are elsewhere than in the file: so bytes up to the first such place are
/// left to the window before, and those up to the one behind the window are read for it.
#[derive(Debug)]
struct OriginalHasher {
    hasher: RangeHasher,
    /// Next byte of the source that comes by, and the next one that is hashed.
    at: u64,
    from: u64,
    /// Where hashing ends.
    end: u64,
}

impl OriginalHasher {
    /// For the bytes `part` of a file that is made anew.
    fn new(ino: u32, rewrite: &Rewrite, part: Range<u64>, leaves: &mut Vec<Leaf>) -> Option<OriginalHasher> {
        let (at, end) = (rewrite.source_position(part.start), rewrite.source_position(part.end));
        let whole = |position: u64| position.next_multiple_of(CHUNK).min(rewrite.source_len);
        let range = whole(at)..whole(end);
        if range.is_empty() {
            return None;
        }
        let hasher = RangeHasher::new(ino, rewrite.source_len, range.clone());
        let mut new = OriginalHasher { hasher, at, from: range.start, end: range.end };
        if at == 0 {
            new.hasher.update(&rewrite.source_start, leaves);
            new.at = rewrite.source_start.len() as u64;
            new.from = new.at;
        }
        Some(new)
    }

    /// Takes `len` bytes of the source that lie at `offset` of the image.
    fn take(
        &mut self,
        block: &Block<'_>,
        offset: u64,
        len: u64,
        scratch: &mut [u8],
        leaves: &mut Vec<Leaf>,
    ) -> Result<()> {
        let skip = self.from.saturating_sub(self.at).min(len);
        let count = (len - skip).min(self.end - self.from);
        if count > 0 {
            block.hash(offset + skip, count, scratch, &mut self.hasher, leaves)?;
            self.from += count;
        }
        self.at += len;
        Ok(())
    }

    /// Reads what is missing at the end.
    fn finish(mut self, source: &SourceFile<'_>, leaves: &mut Vec<Leaf>) -> Result<()> {
        if self.from < self.end {
            let mut rest = vec![0; index(self.end - self.from)];
            source.read_exact_at(&mut rest, self.from)?;
            self.hasher.update(&rest, leaves);
        }
        Ok(())
    }
}

impl<'p> Copier<'p> {
    /// A copier for `task`.
    pub(crate) fn new(task: &'p Task<'p>) -> Copier<'p> {
        Copier {
            task,
            opener: Opener::new(&task.plan.tree),
            current: None,
            scratch: vec![0; HASH_STEP],
            leaves: Vec::new(),
            original_leaves: Vec::new(),
        }
    }

    /// Fills `block`, which is the part `range` of `window`. The blocks of a window are filled in order, and
    /// [`Copier::finish`] is called after the last one.
    pub(crate) fn fill(
        &mut self,
        block: &mut Block<'_>,
        range: Range<u64>,
        window: &Range<u64>,
    ) -> Result<()> {
        let plan = self.task.plan;
        let layout = &plan.layout;
        let mut filled = range.start;
        if range.start < layout.metadata_end {
            filled = range.end.min(layout.metadata_end);
            block.zero(range.start, filled - range.start)?;
            let mut outcome = Ok(());
            metadata::render(layout, &plan.tree, range.start..filled, &mut |offset, bytes| {
                if outcome.is_ok() {
                    outcome = block.put(offset, bytes);
                }
            });
            outcome?;
        }
        let first = layout.files.partition_point(|&ino| layout.extent(ino).end() <= range.start);
        for &ino in &layout.files[first..] {
            let extent = layout.extent(ino);
            if extent.offset >= range.end {
                break;
            }
            let part = extent.offset.max(range.start)..extent.end().min(range.end);
            self.gap(block, filled..part.start)?;
            self.copy(block, ino, part.clone(), window)?;
            filled = part.end;
        }
        // Regions are zero but for a few bytes of each.
        let mut outcome = Ok(());
        metadata::render_regions(layout, range.clone(), &mut |offset, bytes| {
            if outcome.is_ok() {
                outcome = self.gap(block, filled.min(offset)..offset).and_then(|()| block.put(offset, bytes));
                filled = offset + bytes.len() as u64;
            }
        });
        outcome?;
        self.gap(block, filled..range.end)
    }

    /// What lies between extents is zero.
    fn gap(&self, block: &mut Block<'_>, gap: Range<u64>) -> Result<()> {
        if self.task.target.zeroed || gap.is_empty() {
            return Ok(());
        }
        block.zero(gap.start, gap.end - gap.start)
    }

    /// Copies the bytes `part` of the image, which belong to the file `ino`.
    fn copy(&mut self, block: &mut Block<'_>, ino: u32, part: Range<u64>, window: &Range<u64>) -> Result<()> {
        if self.current.as_ref().is_none_or(|current| current.ino != ino) {
            self.finish()?;
            self.begin(ino, window);
        }
        let extent = self.task.plan.layout.extent(ino);
        let present = self.task.present.contains(&ino);
        // What is neither read nor hashed is passed over at once.
        let unit = if present && !self.task.hash { u64::MAX } else { UNIT };
        let mut at = part.start;
        while at < part.end {
            let end = part.end.min(at.saturating_add(unit));
            self.copy_unit(block, at..end, extent.offset, present)?;
            self.task.progress.advance(end - at);
            at = end;
        }
        if part.end == extent.end() {
            self.finish()?;
        }
        Ok(())
    }

    fn begin(&mut self, ino: u32, window: &Range<u64>) {
        let extent = self.task.plan.layout.extent(ino);
        let hasher = self.task.hash.then(|| {
            let part = extent.offset.max(window.start)..extent.end().min(window.end);
            RangeHasher::new(ino, extent.len, part.start - extent.offset..part.end - extent.offset)
        });
        let original = self.task.plan.rewrite(ino).filter(|_| self.task.hash).and_then(|rewrite| {
            let part = extent.offset.max(window.start)..extent.end().min(window.end);
            let part = part.start - extent.offset..part.end - extent.offset;
            OriginalHasher::new(ino, rewrite, part, &mut self.original_leaves)
        });
        self.current = Some(Current { ino, source: None, ended: false, hasher, original });
    }

    fn copy_unit(
        &mut self,
        block: &mut Block<'_>,
        unit: Range<u64>,
        start: u64,
        present: bool,
    ) -> Result<()> {
        if self.task.progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let Some(current) = &mut self.current else { return Ok(()) };
        let len = unit.end - unit.start;
        if present {
            block.leave_out(unit.start, len);
            if current.hasher.is_none() {
                return Ok(());
            }
        }
        let plan = self.task.plan;
        let source = match &current.source {
            Some(source) => source,
            None => {
                let node = plan.layout.numbers.node_of(current.ino);
                current.source.insert(self.opener.unchecked_file(node)?)
            }
        };
        let rewrite = plan.rewrite(current.ino);
        match rewrite {
            None if present => block.read_aside(unit.start, len, source, unit.start - start)?,
            None if unit.end - start == source.size() => {
                current.ended = block.read_last(unit.start, len, source, unit.start - start)?;
            }
            None => block.read(unit.start, len, source, unit.start - start)?,
            Some(rewrite) => copy_segments(block, rewrite, unit.clone(), start, source)?,
        }
        if let Some(hasher) = &mut current.hasher {
            block.hash(unit.start, len, &mut self.scratch, hasher, &mut self.leaves)?;
        }
        if let (Some(original), Some(rewrite)) = (&mut current.original, rewrite) {
            let wanted = unit.start - start..unit.end - start;
            for (part, _) in rewrite.parts(wanted).filter(|(_, segment)| segment.is_source()) {
                let (offset, len) = (start + part.start, part.end - part.start);
                original.take(block, offset, len, &mut self.scratch, &mut self.original_leaves)?;
            }
        }
        Ok(())
    }

    /// Closes the file being copied; it must not have changed.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if let Some(Current { source: Some(source), ended, original, .. }) = self.current.take() {
            if let Some(original) = original {
                original.finish(&source, &mut self.original_leaves)?;
            }
            if !ended {
                source.check_end()?;
            }
            source.check()?;
        }
        Ok(())
    }
}

/// Copies `unit` of a file that is made anew and starts at `start`.
fn copy_segments(
    block: &mut Block<'_>,
    rewrite: &Rewrite,
    unit: Range<u64>,
    start: u64,
    source: &SourceFile<'_>,
) -> Result<()> {
    for (part, segment) in rewrite.parts(unit.start - start..unit.end - start) {
        let (skip, len) = (part.start - segment.offset, part.end - part.start);
        match &segment.content {
            Content::Source(from) => block.read(start + part.start, len, source, from + skip)?,
            Content::Zeros => block.zero(start + part.start, len)?,
            Content::Header(bytes) => {
                let skip = usize::try_from(skip).unwrap_or(usize::MAX);
                let end = skip.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
                block.put(start + part.start, bytes.get(skip..end).unwrap_or_default())?;
            }
        }
    }
    Ok(())
}
