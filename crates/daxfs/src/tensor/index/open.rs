//! Opening an index: the header and the table of sections are copied once and checked, in each version.
//!
//! Afterwards every section that is used lies in the index file. What a record holds is not looked at here.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::record::{self, Section};
use super::{Index, original};
use crate::format::index as raw;
use crate::tensor::TensorError;
use crate::{Error, Extent, Region, Result, SharedBytes};

const PLACE: &str = "/.daxfs/index";

impl Index {
    /// Copies and checks the header of the index that lies in `extent` of `region`.
    pub(crate) fn open(region: Region, extent: Extent) -> Result<Self> {
        let view = region.view().get(extent.offset, extent.len)?;
        let first: [u8; 16] = header(view, extent)?;
        let (magic, version) = first.split_at(8);
        if magic != raw::MAGIC {
            return Err(rule("it must begin with \"DAXINDEX\"", format!("{magic:02x?}")));
        }
        match u32::read_from_prefix(version).map(|(version, _)| u32::from_le(version)) {
            Ok(raw::v1::VERSION) => Self::open_v1(&region, extent),
            Ok(raw::VERSION) => Self::open_v2(&region, extent),
            found => Err(Error::UnsupportedVersion {
                place: PLACE,
                found: found.unwrap_or_default(),
                supported: "1, 2",
            }),
        }
    }

    fn open_v1(region: &Region, extent: Extent) -> Result<Self> {
        let header: raw::v1::Header = header(region.view().get(extent.offset, extent.len)?, extent)?;
        check_header(header.flags.get(), header.total_size.get(), extent)?;
        let (start, bound) = (size_of::<raw::v1::Header>() as u64, extent.len);
        let (offset, size) = (header.strings_offset.get(), header.strings_size.get());
        let records = (header.files_offset, header.tensors_offset, header.checkpoints_offset);
        Ok(Self {
            version: raw::v1::VERSION,
            flags: header.flags.get(),
            content_hash: header.content_hash.into(),
            header: None,
            table: [].into(),
            files: Section::new("file records", records.0, header.file_count.into(), start, bound)?,
            tensors: Section::new("tensor records", records.1, header.tensor_count.into(), start, bound)?,
            checkpoints: Section::new(
                "checkpoint records",
                records.2,
                header.checkpoint_count.into(),
                start,
                bound,
            )?,
            entries: Section::new(
                "checkpoint entries",
                header.entries_offset,
                header.entry_count.into(),
                start,
                bound,
            )?,
            dims: Section::new("dimensions", header.dims_offset, header.dim_count.get(), start, bound)?,
            dtypes: Section::default(),
            groups: Section::default(),
            originals: Section::default(),
            runs: Section::default(),
            bytes: 0..0,
            strings: record::range("strings", offset, size, start, bound)?,
            region: region.clone(),
            extent,
        })
    }

    fn open_v2(region: &Region, extent: Extent) -> Result<Self> {
        let view = region.view().get(extent.offset, extent.len)?;
        let header: raw::Header = header(view, extent)?;
        check_header(header.flags.get(), header.total_size.get(), extent)?;
        let table = table(view, &header, extent)?;
        let found = Table { sections: &table, end: behind(&header, &table), bound: extent.len };
        found.check()?;
        let originals = found.records(raw::ORIGINALS, Counted::In32)?;
        let runs: Section<raw::RunRecord> = found.records(raw::RUNS, Counted::In32)?;
        let bytes = found.range(raw::BYTES)?;
        original::check(view, &originals, runs.count(), bytes.end - bytes.start)?;
        Ok(Self {
            version: raw::VERSION,
            flags: header.flags.get(),
            content_hash: header.content_hash.into(),
            files: found.records(raw::FILES, Counted::In32)?,
            tensors: found.records(raw::TENSORS, Counted::In32)?,
            checkpoints: found.records(raw::CHECKPOINTS, Counted::In32)?,
            entries: found.records(raw::ENTRIES, Counted::In32)?,
            dims: found.records(raw::DIMS, Counted::Close)?,
            dtypes: found.records(raw::DTYPES, Counted::In32)?,
            groups: found.records(raw::GROUPS, Counted::Close)?,
            originals,
            runs,
            bytes,
            strings: found.range(raw::STRINGS)?,
            table: table.into(),
            header: Some(Arc::new(header)),
            region: region.clone(),
            extent,
        })
    }
}

/// The records hash of a header and a table, as [`crate::format::index`] defines it.
pub fn records_hash(header: &raw::Header, table: &[raw::Section]) -> [u8; 32] {
    let header = raw::Header { content_hash: [0; 32], records_hash: [0; 32], ..*header };
    let mut hasher = blake3::Hasher::new();
    hasher.update(raw::RECORDS_PREFIX).update(header.as_bytes()).update(table.as_bytes());
    hasher.finalize().into()
}

/// How errors name a section.
pub(super) fn section_name(kind: u32) -> &'static str {
    match kind {
        raw::FILES => "file records",
        raw::TENSORS => "tensor records",
        raw::CHECKPOINTS => "checkpoint records",
        raw::ENTRIES => "checkpoint entries",
        raw::DIMS => "dimensions",
        raw::STRINGS => "strings",
        raw::DTYPES => "data types",
        raw::ORIGINALS => "originals",
        raw::RUNS => "runs of originals",
        raw::BYTES => "bytes of originals",
        raw::GROUPS => "groups",
        _ => "section of an unknown kind",
    }
}

fn rule(rule: &'static str, found: String) -> Error {
    TensorError::Index { place: "header".into(), rule, found }.into()
}

/// Copies what the index begins with.
fn header<T: FromBytes + IntoBytes>(view: SharedBytes<'_>, extent: Extent) -> Result<T> {
    record::copy(view, 0).map_err(|_| Error::OutOfBounds {
        place: "index: header".into(),
        range: 0..size_of::<T>() as u64,
        within: "index",
        bound: extent.len,
    })
}

fn check_header(flags: u32, total: u64, extent: Extent) -> Result<()> {
    if flags & !raw::HAS_HASHES != 0 {
        return Err(Error::UnknownFlags { place: PLACE, bits: flags & !raw::HAS_HASHES });
    }
    if total != extent.len {
        let found = format!("{total:#x} in a file of {:#x}", extent.len);
        return Err(rule("its size must be that of the file", found));
    }
    Ok(())
}

/// Where the table ends.
fn behind(_: &raw::Header, table: &[raw::Section]) -> u64 {
    (size_of::<raw::Header>() + size_of_val(table)) as u64
}

/// Copies the table.
fn table(view: SharedBytes<'_>, header: &raw::Header, extent: Extent) -> Result<Vec<raw::Section>> {
    let count = header.section_count.get();
    if count > raw::MAX_SECTIONS {
        return Err(rule("it must have at most 1024 sections", count.to_string()));
    }
    let mut table = vec![raw::Section::new_zeroed(); count as usize];
    let start = size_of::<raw::Header>() as u64;
    let end = behind(header, &table);
    if end > extent.len {
        let place = "index: table of sections".into();
        return Err(Error::OutOfBounds { place, range: start..end, within: "index", bound: extent.len });
    }
    view.read_at(start, table.as_mut_slice().as_mut_bytes())?;
    Ok(table)
}

/// How records are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    /// In 32 bits; a later version may have made them longer.
    In32,
    /// In 64 bits; plain values, of one length in every version.
    Close,
}

/// A table that was copied.
struct Table<'a> {
    sections: &'a [raw::Section],
    /// Where it ends.
    end: u64,
    /// Bytes of the index.
    bound: u64,
}

impl Table<'_> {
    /// Every section lies in the index, no kind stands there twice, and nothing is required that is not known.
    fn check(&self) -> Result<()> {
        let mut kinds = BTreeSet::new();
        for section in self.sections {
            let kind = section.kind.get();
            let name = section_name(kind);
            record::range(name, section.offset.get(), section.len.get(), self.end, self.bound)?;
            if !kinds.insert(kind) {
                return Err(rule("a section must stand there once", format!("{name} ({kind}) again")));
            }
            let is_known = (raw::FILES..=raw::GROUPS).contains(&kind);
            if !is_known && section.flags.get() & raw::SECTION_REQUIRED != 0 {
                let place = "/.daxfs/index: required section";
                return Err(Error::UnsupportedVersion { place, found: kind, supported: "1 to 11" });
            }
        }
        self.check_disjoint()
    }

    /// Sections share no bytes, so that hashing all of them takes no longer than reading the index.
    fn check_disjoint(&self) -> Result<()> {
        let mut sections: Vec<_> = self.sections.iter().filter(|section| section.len.get() != 0).collect();
        sections.sort_unstable_by_key(|section| section.offset.get());
        for pair in sections.windows(2) {
            let [left, right] = pair else { continue };
            // No overflow: they lie in the index.
            if left.offset.get() + left.len.get() > right.offset.get() {
                let [left, right] = [left, right].map(|section| section_name(section.kind.get()));
                return Err(rule("its sections must not overlap", format!("{left} and {right} do")));
            }
        }
        Ok(())
    }

    fn find(&self, kind: u32) -> Option<&raw::Section> {
        self.sections.iter().find(|section| section.kind.get() == kind && section.len.get() != 0)
    }

    /// The bytes of a section; an empty range when there is none.
    fn range(&self, kind: u32) -> Result<Range<u64>> {
        self.find(kind).map_or(Ok(0..0), |section| {
            record::range(section_name(kind), section.offset.get(), section.len.get(), self.end, self.bound)
        })
    }

    /// The records of a section; none when it is missing.
    fn records<T: FromBytes + IntoBytes>(&self, kind: u32, counted: Counted) -> Result<Section<T>> {
        let Some(section) = self.find(kind) else { return Ok(Section::default()) };
        let (own, stride) = (size_of::<T>() as u64, u64::from(section.record_size.get()));
        let (len, name) = (section.len.get(), section_name(kind));
        let is_long_enough = if counted == Counted::Close { stride == own } else { stride >= own };
        if !is_long_enough || len % stride != 0 {
            let found = format!("{name} of {stride} bytes, {len} in all; this version has {own}");
            return Err(rule("its records must be of the length that the section says", found));
        }
        if counted == Counted::In32 && len / stride > u64::from(u32::MAX) {
            return Err(rule("its records must be counted in 32 bits", format!("{} {name}", len / stride)));
        }
        Ok(Section::with_stride(&self.range(kind)?, stride))
    }
}
