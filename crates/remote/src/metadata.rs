//! What names, shapes and listings need of an image: superblock, inodes, directories, links and the index, in a few
//! requests, since the packer puts all of them at the front.

use std::ops::Range;
use std::sync::Arc;

use daxfs::format::{self, DIRENT_SIZE, DIRENT_STRIDE, Inode, S_IFDIR, S_IFLNK, S_IFMT, SUPERBLOCK_SIZE, v8};
use daxfs::{Image, OpenOptions, Superblock, Verify};
use zerocopy::FromBytes;

use crate::fetch::Fetch;
use crate::target::Target;
use crate::{Error, Result};

/// Bytes of the first request: of most images all metadata.
const FRONT: u64 = 1 << 20;

/// Ranges that are no farther apart are fetched together.
const GAP: u64 = 64 << 10;

/// Requests for one kind of metadata.
const MOST_REQUESTS: usize = 256;

/// Bytes of an inode in the table.
const INODE: usize = size_of::<Inode>();

/// Fetches the metadata into `target`, and opens the image that it is part of. Files that lie elsewhere are zeros.
pub(crate) async fn fetch(fetch: &Arc<Fetch>, target: &Arc<Target>) -> Result<Image> {
    let mut wanted = Wanted { fetch, limit: fetch.options.max_metadata };
    let front = 0..FRONT.min(target.len());
    wanted.get(target, "the superblock", Vec::from([front])).await?;
    let region = target.region()?;
    let read = |range: Range<u64>| -> Result<Vec<u8>> {
        let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len];
        region.read_at(range.start, &mut bytes).map_err(|error| fetch.image(error))?;
        Ok(bytes)
    };
    // The header of an overlay lies in front of it, and says how much is in use; all of it is fetched.
    if target.len() >= SUPERBLOCK_SIZE as u64 {
        let block = read(0..SUPERBLOCK_SIZE as u64)?;
        if let Ok((block, _)) = v8::Superblock::read_from_prefix(&block)
            && (block.magic.get(), block.version.get()) == (format::MAGIC, v8::VERSION)
        {
            let overlay = bounded(block.overlay_offset.get(), block.overlay_size.get(), target.len());
            wanted.get(target, "the overlay", Vec::from([overlay])).await?;
        }
    }
    let superblock = Superblock::read(region.view()).map_err(|error| fetch.image(error))?;
    let rest = [superblock.branch_table.clone(), superblock.delta_region.clone()].into_iter().flatten();
    wanted.get(target, "the branches", rest.collect()).await?;
    wanted.get(target, "the inode table", Vec::from([superblock.inode_table.clone()])).await?;
    if let Some(base) = &superblock.base {
        let table = read(superblock.inode_table.clone())?;
        let (inodes, _) = table.as_chunks::<INODE>();
        let places =
            inodes.iter().filter_map(|bytes| place(&Inode::read_from_bytes(bytes).ok()?, base, target.len()));
        wanted.get(target, "directories and links", places.collect()).await?;
    }
    let options = OpenOptions::new().max_metadata(fetch.options.max_metadata).verify(Verify::Stored);
    let image = options.open_region(region.clone()).map_err(|error| fetch.image(error))?;
    let extent = |path| image.entry_no_follow(path).ok()?.file().ok()?.extent();
    let Some(index) = extent(format::index::PATH) else { return Ok(image) };
    // A view is compared with the tree where a content is expected; the packer puts it beside the index.
    let view = extent(format::erofs::PATH).filter(|_| fetch.options.expect.is_some());
    let own = [Some(index), view].into_iter().flatten();
    let own = own.map(|extent| bounded(extent.offset, extent.len, target.len())).collect();
    wanted.get(target, "the index", own).await?;
    // Anew, since what was looked up before is kept.
    drop(image);
    let options = match fetch.options.expect {
        Some(expected) => options.expect(expected),
        None => options,
    };
    options.open_region(region).map_err(|error| fetch.image(error))
}

/// Where a directory or a link keeps what it holds.
fn place(inode: &Inode, base: &Range<u64>, len: u64) -> Option<Range<u64>> {
    let size = inode.size.get();
    let bytes = match inode.mode.get() & S_IFMT {
        _ if size == 0 => return None,
        S_IFDIR => (size / DIRENT_SIZE).saturating_mul(DIRENT_STRIDE),
        // Its NUL is looked at.
        S_IFLNK => size.saturating_add(1),
        _ => return None,
    };
    Some(bounded(base.start.saturating_add(inode.data_offset.get()), bytes, len))
}

/// The part of a range that is in the object; what is not, the reader refuses.
fn bounded(offset: u64, bytes: u64, len: u64) -> Range<u64> {
    let start = offset.min(len);
    start..start.saturating_add(bytes).min(len)
}

/// Ranges in ascending order, those together that are no farther apart than `gap`.
fn join(ranges: &[Range<u64>], gap: u64) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        match joined.last_mut() {
            Some(last) if last.end.saturating_add(gap) >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range.clone()),
        }
    }
    joined
}

/// Fetches within a budget.
struct Wanted<'a> {
    fetch: &'a Arc<Fetch>,
    limit: u64,
}

impl Wanted<'_> {
    /// Fetches what is missing of some ranges, neighbours at once.
    async fn get(
        &mut self,
        target: &Arc<Target>,
        what: &'static str,
        mut ranges: Vec<Range<u64>>,
    ) -> Result<()> {
        ranges.sort_by_key(|range| range.start);
        let mut gap = GAP;
        let mut joined = join(&ranges, gap);
        // What lies scattered is fetched with what lies between, as far as the budget goes.
        while joined.len() > MOST_REQUESTS {
            gap = gap.saturating_mul(2);
            joined = join(&ranges, gap);
        }
        let missing: Vec<_> = joined.into_iter().flat_map(|range| target.missing(range)).collect();
        let bytes = missing.iter().fold(0_u64, |sum, range| sum.saturating_add(range.end - range.start));
        if bytes > self.limit {
            let place = self.fetch.place();
            return Err(Error::TooMuch { place, what, got: bytes, bound: self.fetch.options.max_metadata });
        }
        self.limit -= bytes;
        self.fetch
            .all(target.sink(), missing.iter().cloned().map(crate::plan::Part::of).collect(), None)
            .await?;
        target.note(missing);
        Ok(())
    }
}
