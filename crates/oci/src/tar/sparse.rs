//! Sparse files: where the bytes that an archive holds of them lie, in each of the forms that GNU tar has had.
//!
//! The oldest has the map in its header; in those of POSIX's records it is a record for each number (0.0), one record
//! (0.1), or the beginning of the data (1.0).

use super::header::{BLOCK, Placed};
use super::pax::decimal;
use crate::decode::Unpacked;
use crate::error::Result;
use crate::limits::{Budget, FIXED, Limits, within};

/// Stretches of one file.
const MOST: u64 = 1 << 20;
/// Largest number in a map.
const LARGEST: u64 = i64::MAX as u64;

/// Where the bytes of a sparse file lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    /// Bytes of the file.
    pub(crate) len: u64,
    /// First byte in the file, and bytes: in order, without overlaps. The archive has them one behind the other.
    pub(crate) stretches: Vec<(u64, u64)>,
}

impl Map {
    /// The stretches must be in order and in the file, and together as long as what the archive has.
    pub(crate) fn new(len: u64, mut stretches: Vec<(u64, u64)>, stored: u64, placed: &Placed) -> Result<Map> {
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for &(offset, count) in &stretches {
            let next = offset.checked_add(count).filter(|&next| offset >= end && next <= len);
            let found = || format!("{count} bytes at {offset}, behind {end}, in a file of {len}");
            end = next.ok_or_else(|| {
                placed.wrong("stretches of a sparse file must be in order, and in it", found())
            })?;
            sum = sum.saturating_add(count);
        }
        if sum != stored {
            let rule = "the stretches of a sparse file must be as long as what is stored of it";
            return Err(placed.wrong(rule, format!("{sum} bytes, {stored} are stored")));
        }
        stretches.retain(|(_, count)| *count > 0);
        Ok(Map { len, stretches })
    }
}

/// Reads the map of GNU's oldest form, which begins in the header.
pub(crate) fn old(placed: &Placed, stored: u64, source: &mut Unpacked<'_>, budget: &Budget) -> Result<Map> {
    let (len, mut stretches, mut more) = placed.sparse()?;
    budget.stretches(stretches.len() as u64, source.place())?;
    while more {
        let mut block = [0; BLOCK];
        if !source.read_exact(&mut block, "the map of a sparse file")? {
            return Err(source.truncated("the map of a sparse file"));
        }
        let (next, follows) = placed.extension(&block)?;
        budget.stretches(next.len() as u64, source.place())?;
        stretches.extend(next);
        let count = stretches.len() as u64;
        within(count, MOST, source.place(), "stretches of a sparse file", FIXED)?;
        more = follows;
    }
    Map::new(len, stretches, stored, placed)
}

/// What POSIX's records say of a sparse file.
#[derive(Debug, Default)]
pub(crate) struct PaxMap {
    major: Option<u64>,
    minor: Option<u64>,
    /// The name that the file has; the header has one for programs that know nothing of this.
    pub(crate) name: Option<Vec<u8>>,
    len: Option<u64>,
    /// Numbers of a map: offsets and counts in turn.
    numbers: Vec<u64>,
    /// Whether there was any map.
    is_there: bool,
}

impl PaxMap {
    /// Takes a record, whose key has lost its beginning. `None`: its value is wrong.
    pub(crate) fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.major = Some(decimal(value, LARGEST)?),
            b"minor" => self.minor = Some(decimal(value, LARGEST)?),
            b"name" => self.name = (!value.is_empty()).then(|| value.to_vec()),
            b"size" | b"realsize" => self.len = Some(decimal(value, LARGEST)?),
            b"numblocks" => {
                decimal(value, MOST)?;
                self.is_there = true;
            }
            b"offset" | b"numbytes" => {
                // An offset and a count in turn.
                let is_count = self.numbers.len() % 2 == 1;
                self.numbers.push(decimal(value, LARGEST)?);
                self.is_there = true;
                if is_count != (key == b"numbytes") {
                    return None;
                }
            }
            b"map" => {
                self.numbers = match value {
                    b"" => Vec::new(),
                    _ => value.split(|&b| b == b',').map(|n| decimal(n, LARGEST)).collect::<Option<_>>()?,
                };
                self.is_there = true;
            }
            _ => {}
        }
        Some(())
    }

    /// The map of the member behind these records, of which the archive has `stored` bytes, and how many of them are
    /// left; `None`: it is no sparse file.
    pub(crate) fn finish(
        &self,
        stored: u64,
        placed: &Placed,
        source: &mut Unpacked<'_>,
        budget: &Budget,
    ) -> Result<Option<(Map, u64)>> {
        let (numbers, left) = match (self.major, self.minor) {
            (None | Some(0), None | Some(0 | 1)) if self.is_there => (self.numbers.clone(), stored),
            (None | Some(0), None | Some(0 | 1)) => return Ok(None),
            (Some(1), Some(0)) => {
                let mut reader = Lines { placed, source, line: Vec::new(), block: Vec::new(), left: stored };
                let count = reader.number(MOST)?;
                budget.stretches(count, reader.source.place())?;
                let mut numbers = Vec::new();
                for _ in 0..count.saturating_mul(2) {
                    numbers.push(reader.number(LARGEST)?);
                }
                (numbers, reader.left)
            }
            (major, minor) => {
                let found = format!("{}.{}", major.unwrap_or(0), minor.unwrap_or(0));
                return Err(placed.wrong("maps of sparse files must be of version 0.0, 0.1 or 1.0", found));
            }
        };
        let rule = "a sparse file must have a size, and a count for each offset";
        let (pairs, rest) = numbers.as_chunks::<2>();
        let Some(len) = self.len.filter(|_| rest.is_empty()) else {
            return Err(placed.wrong(rule, format!("{} numbers, size {:?}", numbers.len(), self.len)));
        };
        if left == stored {
            budget.stretches(pairs.len() as u64, source.place())?;
        }
        let stretches = pairs.iter().map(|&[offset, count]| (offset, count)).collect();
        Ok(Some((Map::new(len, stretches, left, placed)?, left)))
    }
}

/// The lines in front of the data, in whole blocks.
struct Lines<'r, 's> {
    placed: &'r Placed,
    source: &'r mut Unpacked<'s>,
    line: Vec<u8>,
    /// What was read and not used, in reverse.
    block: Vec<u8>,
    /// What the archive still has of the member.
    left: u64,
}

impl Lines<'_, '_> {
    fn number(&mut self, bound: u64) -> Result<u64> {
        const RULE: &str = "the map of a sparse file must be lines of numbers";
        self.line.clear();
        loop {
            let Some(byte) = self.block.pop() else {
                let Some(left) = self.left.checked_sub(BLOCK as u64) else {
                    return Err(self.placed.wrong(RULE, "its end"));
                };
                self.left = left;
                let mut block = [0; BLOCK];
                if !self.source.read_exact(&mut block, "the map of a sparse file")? {
                    return Err(self.source.truncated("the map of a sparse file"));
                }
                self.block = block.iter().rev().copied().collect();
                continue;
            };
            if byte == b'\n' {
                let value = decimal(&self.line, bound);
                return value
                    .ok_or_else(|| self.placed.wrong(RULE, format!("\"{}\"", self.line.escape_ascii())));
            }
            if self.line.len() >= 20 {
                return Err(self.placed.wrong(RULE, format!("\"{}\"", self.line.escape_ascii())));
            }
            self.line.push(byte);
        }
    }
}

// `Limits` bounds the stretches of all files; see there.
const _: () = assert!(MOST <= Limits::STRETCHES);
