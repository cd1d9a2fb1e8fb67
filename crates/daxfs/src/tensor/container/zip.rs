//! The directory of a zip archive, for containers that are archives: where each stored entry's bytes lie.
//!
//! Entries are used in place, so only stored ones have bytes, and no decompressor is needed: the central directory at
//! the end of the archive (with its 64-bit forms) and one local header for each entry that is used are all that is
//! read.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::BTreeMap;
use std::ops::Range;

use super::HeaderSource;
use crate::Result;
use crate::tensor::TensorError;

/// First bytes of an archive with entries.
const MAGIC: &[u8] = b"PK\x03\x04";

const LOCAL: u32 = 0x0403_4b50;
const LOCAL_LEN: usize = 30;
const CENTRAL: u32 = 0x0201_4b50;
const CENTRAL_LEN: usize = 46;
const END: u32 = 0x0605_4b50;
const END_LEN: usize = 22;
const LOCATOR: u32 = 0x0706_4b50;
const LOCATOR_LEN: usize = 20;
const END64: u32 = 0x0606_4b50;
const END64_LEN: usize = 56;
/// Identifies the field with 64-bit sizes among an entry's extra fields.
const EXTRA64: u16 = 1;
/// Longest comment at the end.
const MAX_COMMENT: usize = 0xffff;
/// Longest central directory: of a checkpoint with 500,000 storages.
const MAX_DIRECTORY: u64 = 64 << 20;

/// Bytes of an archive as its container calls it in errors.
pub(super) struct Archive<'a> {
    format: &'static str,
    source: &'a dyn HeaderSource,
    entries: BTreeMap<String, Entry>,
}

/// An entry of the central directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    header: u64,
    packed: u64,
    size: u64,
    method: u16,
    flags: u16,
}

/// The name of the first entry of a file that begins with `head`, if it is an archive, and the name ends in there.
pub(super) fn first_name(head: &[u8]) -> Option<&[u8]> {
    let len = usize::from(u16_at(head, 26));
    head.get(LOCAL_LEN..)?.get(..len).filter(|_| head.starts_with(MAGIC))
}

/// Little-endian numbers out of a record, whose length was checked; zero behind its end.
fn u16_at(record: &[u8], at: usize) -> u16 {
    let bytes = record.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(record: &[u8], at: usize) -> u32 {
    let bytes = record.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(record: &[u8], at: usize) -> u64 {
    let bytes = record.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl<'a> Archive<'a> {
    /// Reads the central directory.
    pub fn read(format: &'static str, source: &'a dyn HeaderSource) -> Result<Self> {
        let mut archive = Self { format, source, entries: BTreeMap::new() };
        let (directory, count) = archive.directory()?;
        let len = usize::try_from(directory.end.saturating_sub(directory.start)).unwrap_or(usize::MAX);
        source.charge("directories of archives", (len as u64).saturating_mul(4))?;
        let mut bytes = vec![0; len];
        source.read(directory.start, &mut bytes)?;
        archive.entries(&bytes, count)?;
        Ok(archive)
    }

    fn fault(&self, place: impl Into<String>, rule: &'static str, found: impl Into<String>) -> TensorError {
        TensorError::Malformed { format: self.format, place: place.into(), rule, found: found.into() }
    }

    /// Where the central directory lies, and how many entries it says that it has.
    fn directory(&self) -> Result<(Range<u64>, u64)> {
        let len = self.source.len();
        let tail_len = usize::try_from(len).unwrap_or(usize::MAX).min(END_LEN.saturating_add(MAX_COMMENT));
        let mut tail = vec![0; tail_len];
        let tail_start = len.saturating_sub(tail_len as u64);
        self.source.read(tail_start, &mut tail)?;
        // The last one whose comment ends with the file.
        let is_end = |at: &usize| {
            let record = tail.get(*at..).unwrap_or_default();
            u32_at(record, 0) == END
                && record.len()
                    == END_LEN.saturating_add(usize::from(u16_at(record, END_LEN.saturating_sub(2))))
        };
        let at = (0..tail.len().saturating_sub(END_LEN).saturating_add(1)).rev().find(is_end);
        let Some(at) = at else {
            let rule = "an archive must end with its directory; is the file cut off?";
            return Err(self.fault("end of the archive", rule, format!("none in {len:#x} bytes")).into());
        };
        let end = tail.get(at..).unwrap_or_default();
        let (mut count, mut size, mut start) =
            (u64::from(u16_at(end, 10)), u64::from(u32_at(end, 12)), u64::from(u32_at(end, 16)));
        let locator = at.checked_sub(LOCATOR_LEN).and_then(|at| tail.get(at..)).unwrap_or_default();
        if u32_at(locator, 0) == LOCATOR {
            let mut end64 = [0; END64_LEN];
            let place = u64_at(locator, 8);
            if place.saturating_add(END64_LEN as u64) > len {
                let rule = "the end in 64 bits must lie in the file";
                return Err(self.fault("end of the archive", rule, format!("{place:#x} of {len:#x}")).into());
            }
            self.source.read(place, &mut end64)?;
            if u32_at(&end64, 0) != END64 {
                let rule = "the end in 64 bits must be where its locator says";
                return Err(self
                    .fault("end of the archive", rule, format!("{:#x}", u32_at(&end64, 0)))
                    .into());
            }
            (count, size, start) = (u64_at(&end64, 32), u64_at(&end64, 40), u64_at(&end64, 48));
        }
        let range = start..start.saturating_add(size);
        if range.end > tail_start.saturating_add(at as u64) || size > MAX_DIRECTORY {
            let rule = "the directory must lie in front of the end, in at most 64 MiB";
            let found = format!("{:#x}..{:#x} of {len:#x}", range.start, range.end);
            return Err(self.fault("directory of the archive", rule, found).into());
        }
        Ok((range, count))
    }

    fn entries(&mut self, mut bytes: &[u8], count: u64) -> Result<(), TensorError> {
        for number in 0..count {
            let quoted = || format!("entry {number} of the archive");
            let record = bytes.get(..CENTRAL_LEN).filter(|record| u32_at(record, 0) == CENTRAL);
            let Some(record) = record else {
                let rule = "the directory must have as many entries as the end says";
                return Err(self.fault(quoted(), rule, format!("{number} of {count}")));
            };
            let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(record, at)));
            let name_end = CENTRAL_LEN.saturating_add(name);
            let extra_end = name_end.saturating_add(extra);
            let end = extra_end.saturating_add(comment);
            let (Some(name), Some(extra), Some(rest)) =
                (bytes.get(CENTRAL_LEN..name_end), bytes.get(name_end..extra_end), bytes.get(end..))
            else {
                return Err(self.fault(quoted(), "it must lie in the directory", format!("{end} bytes")));
            };
            let mut entry = Entry {
                flags: u16_at(record, 8),
                method: u16_at(record, 10),
                packed: u32_at(record, 20).into(),
                size: u32_at(record, 24).into(),
                header: u32_at(record, 42).into(),
            };
            entry.widen(extra);
            let name = std::str::from_utf8(name).map_err(|_| {
                self.fault(quoted(), "its name must be UTF-8", name.escape_ascii().to_string())
            })?;
            if self.entries.insert(name.to_owned(), entry).is_some() {
                return Err(TensorError::DuplicateKey { what: "archive", key: name.to_owned() });
            }
            bytes = rest;
        }
        Ok(())
    }

    /// The names of all entries, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Where the bytes of an entry lie in the file; `None` where there is no such entry.
    pub fn find(&self, name: &str) -> Result<Option<Range<u64>>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let quoted = || format!("entry {name:?}");
        if entry.method != 0 || entry.packed != entry.size || entry.flags & 1 != 0 {
            let what = "compressed or encrypted entries cannot be used in place; save it without compression";
            return Err(TensorError::Unsupported { format: self.format, place: quoted(), what }.into());
        }
        let len = self.source.len();
        let mut local = [0; LOCAL_LEN];
        if entry.header.saturating_add(LOCAL_LEN as u64) > len {
            let rule = "its header must lie in the file";
            return Err(self.fault(quoted(), rule, format!("{:#x} of {len:#x}", entry.header)).into());
        }
        self.source.read(entry.header, &mut local)?;
        if u32_at(&local, 0) != LOCAL {
            let rule = "its header must be where the directory says";
            return Err(self.fault(quoted(), rule, format!("{:#x}", u32_at(&local, 0))).into());
        }
        let names = u64::from(u16_at(&local, 26)).saturating_add(u16_at(&local, 28).into());
        let start = entry.header.saturating_add(LOCAL_LEN as u64).saturating_add(names);
        let end = start.saturating_add(entry.size);
        if end > len {
            let rule = "its bytes must lie in the file; is the file cut off?";
            return Err(self.fault(quoted(), rule, format!("{start:#x}..{end:#x} of {len:#x}")).into());
        }
        Ok(Some(start..end))
    }
}

impl Entry {
    /// Takes what does not fit into 32 bits from the extra field, in the order that the format has.
    fn widen(&mut self, mut extra: &[u8]) {
        while extra.len() >= 4 {
            let len = usize::from(u16_at(extra, 2));
            let field = extra.get(4..).unwrap_or_default();
            if u16_at(extra, 0) == EXTRA64 {
                let mut values = field.get(..len.min(field.len())).unwrap_or_default().chunks_exact(8);
                for value in [&mut self.size, &mut self.packed, &mut self.header] {
                    if *value == u64::from(u32::MAX)
                        && let Some(wide) = values.next()
                    {
                        *value = u64_at(wide, 0);
                    }
                }
                return;
            }
            extra = field.get(len..).unwrap_or_default();
        }
    }
}
