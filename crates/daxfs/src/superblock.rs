//! Superblock of either version, reduced to what a reader needs: where each region lies. Pure checks over a copy.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::ops::Range;

use dmabuf::SharedBytes;
use zerocopy::FromBytes;

use crate::Rule;
use crate::error::{Error, Result};
use crate::format::{self, v5, v8};

/// Where the regions of an image lie. All ranges are bytes from the start of the region that holds the image,
/// and were checked to lie in it and not to overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Superblock {
    /// Format version: 5 or 8.
    pub version: u32,
    /// Page size of the machine that made the image.
    pub block_size: u32,
    /// Size of the image as it says itself; the region may be larger.
    pub total_size: u64,
    /// Base image: inode table, directories and data. `None` when everything lies in the overlay.
    pub base: Option<Range<u64>>,
    /// Inode table, 64 bytes a slot; empty without a base image.
    pub inode_table: Range<u64>,
    /// Slots of the inode table.
    pub inode_count: u32,
    /// Overlay region (version 8): changes made by kernels that mounted the image.
    pub overlay: Option<Range<u64>>,
    /// Buckets of the overlay's hash table; 0 without one.
    pub overlay_buckets: u32,
    /// Page cache region: when present, the data of regular files lies outside the image.
    pub page_cache: Option<Range<u64>>,
    /// Branch table (version 5).
    pub branch_table: Option<Range<u64>>,
    /// Delta region (version 5): logs of the branches.
    pub delta_region: Option<Range<u64>>,
}

impl Superblock {
    /// An image of version 8 with nothing but a base image of one inode, at `base`: where it ends the image ends.
    #[doc(hidden)]
    pub fn of_base(base: Range<u64>, block_size: u32) -> Self {
        let slot = size_of::<format::Inode>() as u64;
        Self {
            version: v8::VERSION,
            block_size,
            total_size: base.end,
            inode_table: base.start..base.start.saturating_add(slot),
            base: Some(base),
            inode_count: 1,
            overlay: None,
            overlay_buckets: 0,
            page_cache: None,
            branch_table: None,
            delta_region: None,
        }
    }

    /// Reads and checks a copy of the superblock's 4096 bytes, for a region of `len` bytes. `header` is a copy of
    /// 4096 bytes at any offset, for the headers of the regions. Blocks have to have the size `page`, if there is one.
    pub(crate) fn parse(
        block: &[u8; format::SUPERBLOCK_SIZE],
        len: u64,
        page: Option<u64>,
        header: &mut dyn FnMut(&'static str, u64) -> Result<Vec<u8>>,
    ) -> Result<Self> {
        let (magic, version) = match format::U32::read_from_prefix(block) {
            Ok((magic, rest)) => (magic.get(), format::U32::read_from_prefix(rest).map_or(0, |v| v.0.get())),
            Err(_) => (0, 0),
        };
        if magic != format::MAGIC {
            return Err(Error::NotAnImage { found: magic });
        }
        let superblock = match version {
            v8::VERSION => parse_v8(block, len, page, header)?,
            v5::VERSION => parse_v5(block, len, header)?,
            found => return Err(Error::UnsupportedVersion { place: "superblock", found, supported: "5, 8" }),
        };
        if superblock.total_size > len {
            return Err(Error::OutOfBounds {
                place: "superblock: image".into(),
                range: 0..superblock.total_size,
                within: "region; the image is truncated",
                bound: len,
            });
        }
        superblock.check_overlaps()?;
        Ok(superblock)
    }

    /// Reads and checks the superblock of the image in a region, and nothing else of it.
    ///
    /// # Errors
    /// [`Error`] when there is none or it is wrong.
    pub fn read(region: SharedBytes<'_>) -> Result<Self> {
        let mut block = [0; format::SUPERBLOCK_SIZE];
        region.read_at(0, &mut block)?;
        let len = region.len() as u64;
        Self::parse(&block, len, None, &mut |place, offset| {
            let end = bounded(place, offset, format::SUPERBLOCK_SIZE as u64, len, "region")?;
            Ok(region.get(end.start, format::SUPERBLOCK_SIZE as u64)?.to_vec())
        })
    }

    /// Size of the base image, 0 without one.
    pub(crate) fn base_len(&self) -> u64 {
        self.base.as_ref().map_or(0, |base| base.end.saturating_sub(base.start))
    }

    /// True when the data of regular files lies outside the image.
    pub fn data_is_external(&self) -> bool {
        self.page_cache.is_some()
    }

    /// The regions that an image is made of, by name, in no particular order.
    pub fn regions(&self) -> impl Iterator<Item = (&'static str, Range<u64>)> + '_ {
        let block = format::SUPERBLOCK_SIZE as u64;
        [
            ("superblock", Some(0..block)),
            ("base image", self.base.clone()),
            ("overlay", self.overlay.clone()),
            ("page cache", self.page_cache.clone()),
            ("branch table", self.branch_table.clone()),
            ("delta region", self.delta_region.clone()),
        ]
        .into_iter()
        .filter_map(|(name, range)| Some((name, range?)))
    }

    fn check_overlaps(&self) -> Result<()> {
        let mut regions: Vec<_> = self.regions().filter(|(_, range)| !range.is_empty()).collect();
        regions.sort_by_key(|(_, range)| range.start);
        for pair in regions.windows(2) {
            if let [(first, a), (second, b)] = pair
                && a.end > b.start
            {
                return Err(Error::Overlap {
                    first,
                    first_range: a.clone(),
                    second,
                    second_range: b.clone(),
                });
            }
        }
        Ok(())
    }
}

fn parse_v8(
    block: &[u8; format::SUPERBLOCK_SIZE],
    len: u64,
    page: Option<u64>,
    header: &mut dyn FnMut(&'static str, u64) -> Result<Vec<u8>>,
) -> Result<Superblock> {
    let raw = prefix::<v8::Superblock>(block, "superblock")?;
    let block_size = raw.block_size.get();
    if !block_size.is_power_of_two() || !(4096..=65536).contains(&block_size) {
        return Err(invalid("superblock", Rule::BlockSize, block_size));
    }
    if page.is_some_and(|page| page != u64::from(block_size)) {
        return Err(invalid("superblock", Rule::BlockSizeOfThisMachine, block_size));
    }
    let (base, inode_table, inode_count) = if raw.base_offset.get() == 0 {
        (None, 0..0, 0)
    } else {
        let base =
            bounded("superblock: base image", raw.base_offset.get(), raw.base_size.get(), len, "region")?;
        if base.start < format::SUPERBLOCK_SIZE as u64 {
            return Err(invalid("superblock", Rule::BaseOffset, base.start));
        }
        if raw.root_inode.get() != format::ROOT_INO {
            return Err(invalid("superblock", Rule::RootInode, raw.root_inode.get()));
        }
        let count = raw.inode_count.get();
        let table = inode_table(&base, raw.inode_offset.get(), count)?;
        (Some(base), table, count)
    };
    let overlay = optional("superblock: overlay", raw.overlay_offset.get(), raw.overlay_size.get(), len)?;
    let page_cache = optional("superblock: page cache", raw.pcache_offset.get(), raw.pcache_size.get(), len)?;
    if base.is_none() && overlay.is_none() {
        return Err(invalid("superblock", Rule::NoRoot, "neither"));
    }
    if let Some(range) = &overlay {
        check_overlay(&raw, range, header)?;
    }
    if let Some(range) = &page_cache {
        let head = header("page cache", range.start)?;
        let head = prefix::<v8::PageCacheHeader>(&head, "page cache")?;
        check_page_cache(head.magic.get(), head.version.get(), v8::PAGE_CACHE_VERSION)?;
        let slots = u64::from(raw.pcache_slot_count.get());
        if !slots.is_power_of_two() || slots < 8 {
            return Err(invalid("superblock", Rule::PageCacheSlots, slots));
        }
        let within = (range.end.saturating_sub(range.start), "page cache");
        bounded("page cache: slots", head.slot_meta_offset.get(), slots * 16, within.0, within.1)?;
        let data = slots.saturating_mul(u64::from(block_size));
        bounded("page cache: slot data", head.slot_data_offset.get(), data, within.0, within.1)?;
    }
    Ok(Superblock {
        version: v8::VERSION,
        block_size,
        total_size: raw.total_size.get(),
        base,
        inode_table,
        inode_count,
        overlay_buckets: if overlay.is_some() { raw.overlay_bucket_count.get() } else { 0 },
        overlay,
        page_cache,
        branch_table: None,
        delta_region: None,
    })
}

/// Checks what the kernel's validation checks of an overlay: header, buckets, room for the bucket array.
fn check_overlay(
    raw: &v8::Superblock,
    range: &Range<u64>,
    header: &mut dyn FnMut(&'static str, u64) -> Result<Vec<u8>>,
) -> Result<()> {
    let head = header("overlay", range.start)?;
    let head = prefix::<v8::OverlayHeader>(&head, "overlay")?;
    if head.magic.get() != v8::OVERLAY_MAGIC {
        return Err(invalid("overlay", Rule::OverlayMagic, format_args!("{:#010x}", head.magic.get())));
    }
    if head.version.get() != v8::OVERLAY_VERSION {
        let found = head.version.get();
        return Err(Error::UnsupportedVersion { place: "overlay", found, supported: "2" });
    }
    let buckets = u64::from(raw.overlay_bucket_count.get());
    if !buckets.is_power_of_two() {
        return Err(invalid("superblock", Rule::OverlayBuckets, buckets));
    }
    let block = u64::from(raw.block_size.get());
    let table = buckets.saturating_mul(16).checked_next_multiple_of(block).unwrap_or(u64::MAX);
    let needed = block.saturating_add(table);
    let len = range.end.saturating_sub(range.start);
    bounded("overlay: header and buckets", 0, needed, len, "overlay")?;
    bounded("overlay: buckets", head.bucket_offset.get(), buckets * 16, len, "overlay")?;
    bounded("overlay: pool", head.pool_offset.get(), head.pool_size.get(), len, "overlay")?;
    Ok(())
}

fn check_page_cache(magic: u32, version: u32, supported: u32) -> Result<()> {
    if magic != format::PAGE_CACHE_MAGIC {
        return Err(invalid("page cache", Rule::PageCacheMagic, format_args!("{magic:#010x}")));
    }
    if version != supported {
        let supported = if supported == v8::PAGE_CACHE_VERSION { "2" } else { "1" };
        return Err(Error::UnsupportedVersion { place: "page cache", found: version, supported });
    }
    Ok(())
}

fn parse_v5(
    block: &[u8; format::SUPERBLOCK_SIZE],
    len: u64,
    header: &mut dyn FnMut(&'static str, u64) -> Result<Vec<u8>>,
) -> Result<Superblock> {
    let raw = prefix::<v5::Superblock>(block, "superblock")?;
    if raw.flags.get() != 0 {
        return Err(Error::UnknownFlags { place: "superblock", bits: raw.flags.get() });
    }
    let base = bounded("superblock: base image", raw.base_offset.get(), raw.base_size.get(), len, "region")?;
    if base.start < format::SUPERBLOCK_SIZE as u64 {
        return Err(invalid("superblock", Rule::BaseOffset, base.start));
    }
    bounded(
        "base image: header",
        0,
        v5::BASE_HEADER_SIZE,
        base.end.saturating_sub(base.start),
        "base image",
    )?;
    let head = header("base image", base.start)?;
    let head = prefix::<v5::BaseHeader>(&head, "base image")?;
    if head.magic.get() != v5::BASE_MAGIC {
        return Err(invalid("base image", Rule::BaseMagic, format_args!("{:#010x}", head.magic.get())));
    }
    if head.version.get() != v5::VERSION {
        let found = head.version.get();
        return Err(Error::UnsupportedVersion { place: "base image", found, supported: "5" });
    }
    let unknown = head.flags.get() & !v5::BASE_EXTERNAL_DATA;
    if unknown != 0 {
        return Err(Error::UnknownFlags { place: "base image", bits: unknown });
    }
    if head.root_inode.get() != format::ROOT_INO {
        return Err(invalid("base image", Rule::RootInode, head.root_inode.get()));
    }
    let inode_count = head.inode_count.get();
    let inode_table = inode_table(&base, head.inode_offset.get(), inode_count)?;
    let page_cache = optional("superblock: page cache", raw.pcache_offset.get(), raw.pcache_size.get(), len)?;
    if let Some(range) = &page_cache {
        let head = header("page cache", range.start)?;
        let head = prefix::<v5::PageCacheHeader>(&head, "page cache")?;
        check_page_cache(head.magic.get(), head.version.get(), v5::PAGE_CACHE_VERSION)?;
    }
    let records = u64::from(raw.branch_table_entries.get());
    let (branch_table, delta_region) = if records == 0 {
        (None, None)
    } else {
        let size = records.saturating_mul(size_of::<v5::BranchRecord>() as u64);
        let offset = raw.branch_table_offset.get();
        let table = bounded("superblock: branch table", offset, size, len, "region")?;
        let offset = raw.delta_region_offset.get();
        let delta = optional("superblock: delta region", offset, raw.delta_region_size.get(), len)?;
        (Some(table), delta)
    };
    Ok(Superblock {
        version: v5::VERSION,
        block_size: raw.block_size.get(),
        total_size: raw.total_size.get(),
        base: Some(base),
        inode_table,
        inode_count,
        overlay: None,
        overlay_buckets: 0,
        page_cache,
        branch_table,
        delta_region,
    })
}

fn inode_table(base: &Range<u64>, offset: u64, count: u32) -> Result<Range<u64>> {
    if count == 0 {
        return Err(invalid("superblock", Rule::NoInodes, 0));
    }
    let size = u64::from(count).saturating_mul(size_of::<format::Inode>() as u64);
    let table =
        bounded("superblock: inode table", offset, size, base.end.saturating_sub(base.start), "base image")?;
    Ok(base.start.saturating_add(table.start)..base.start.saturating_add(table.end))
}

/// `offset..offset + size` when it lies in `0..bound`.
pub(crate) fn bounded(
    place: &str,
    offset: u64,
    size: u64,
    bound: u64,
    within: &'static str,
) -> Result<Range<u64>> {
    match offset.checked_add(size) {
        Some(end) if end <= bound => Ok(offset..end),
        end => Err(Error::OutOfBounds {
            place: place.to_owned(),
            range: offset..end.unwrap_or(u64::MAX),
            within,
            bound,
        }),
    }
}

fn optional(place: &'static str, offset: u64, size: u64, len: u64) -> Result<Option<Range<u64>>> {
    if offset == 0 { Ok(None) } else { bounded(place, offset, size, len, "region").map(Some) }
}

pub(crate) fn invalid(place: impl Into<String>, rule: Rule, found: impl std::fmt::Display) -> Error {
    Error::Invalid { place: place.into(), rule, found: found.to_string() }
}

fn prefix<T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable>(
    bytes: &[u8],
    place: &'static str,
) -> Result<T> {
    T::read_from_prefix(bytes).map(|(value, _)| value).map_err(|_| Error::OutOfBounds {
        place: place.to_owned(),
        range: 0..size_of::<T>() as u64,
        within: "region",
        bound: bytes.len() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    fn parse(edit: impl FnOnce(&mut v8::Superblock)) -> Result<Superblock> {
        let mut raw = v8::Superblock::read_from_bytes(&[0; size_of::<v8::Superblock>()]).unwrap();
        raw.magic = format::MAGIC.into();
        raw.version = 8.into();
        raw.block_size = 4096.into();
        raw.total_size = 0x8000.into();
        raw.base_offset = 0x1000.into();
        raw.base_size = 0x7000.into();
        raw.inode_count = 3.into();
        raw.root_inode = 1.into();
        edit(&mut raw);
        let mut block = [0; format::SUPERBLOCK_SIZE];
        block[..size_of::<v8::Superblock>()].copy_from_slice(raw.as_bytes());
        Superblock::parse(&block, 0x8000, None, &mut |_, _| Ok(vec![0; 4096]))
    }

    fn message(edit: impl FnOnce(&mut v8::Superblock)) -> String {
        parse(edit).unwrap_err().to_string()
    }

    #[test]
    fn accepts_a_static_image() {
        let superblock = parse(|_| ()).unwrap();
        assert_eq!(superblock.base, Some(0x1000..0x8000));
        assert_eq!(superblock.inode_table, 0x1000..0x10c0);
        assert!(!superblock.data_is_external());
    }

    #[test]
    fn refusals_name_place_and_bound() {
        assert!(message(|raw| raw.magic = 1.into()).contains("0x00000001"));
        assert!(message(|raw| raw.version = 9.into()).contains("version 9 is not supported"));
        assert!(message(|raw| raw.block_size = 8191.into()).contains("power of two"));
        assert_eq!(
            message(|raw| raw.base_size = 0x7001.into()),
            "superblock: base image 0x1000..0x8001 is outside the region (0x8000 bytes)"
        );
        assert!(message(|raw| raw.base_size = u64::MAX.into()).contains("0xffffffffffffffff"));
        assert!(message(|raw| raw.inode_count = u32::MAX.into()).contains("inode table"));
        assert!(message(|raw| raw.inode_offset = u64::MAX.into()).contains("inode table"));
        assert!(message(|raw| raw.inode_count = 0.into()).contains("at least one inode"));
        assert!(message(|raw| raw.root_inode = 2.into()).contains("root inode must be 1"));
        assert!(message(|raw| raw.total_size = 0x8001.into()).contains("truncated"));
        assert!(message(|raw| raw.base_offset = 0.into()).contains("must be a base image or an overlay"));
        assert!(message(|raw| raw.base_offset = 64.into()).contains("at or after byte 4096"));
        assert!(message(|raw| raw.overlay_offset = 0x2000.into()).contains("0x6f766c79"));
        assert!(message(|raw| raw.pcache_offset = 0x2000.into()).contains("0x70636163"));
    }
}
