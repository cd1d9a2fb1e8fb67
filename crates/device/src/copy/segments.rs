//! What a copy consists of: runs of a region's bytes, packed one after the other into a buffer.

#![forbid(unsafe_code)]

use crate::Result;
use daxfs::Region;

/// `count` runs of `run` bytes, each `step` bytes behind the one before in the region, and close together in the
/// buffer. The order of the fields is that in which gathered segments are searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Segment {
    /// First byte in the region.
    pub(crate) from: u64,
    /// Bytes of a run, not 0.
    pub(crate) run: u64,
    /// Runs, at least one.
    pub(crate) count: u64,
    /// 0 for one run.
    pub(crate) step: u64,
    /// First byte in the buffer.
    pub(crate) to: u64,
}

impl Segment {
    /// Bytes in the buffer.
    pub(crate) fn len(&self) -> u64 {
        self.run * self.count
    }

    /// The first byte in the buffer behind it.
    pub(crate) fn end(&self) -> u64 {
        self.to + self.len()
    }

    /// The first byte in the region behind it.
    pub(crate) fn source_end(&self) -> u64 {
        self.from + (self.count - 1) * self.step + self.run
    }
}

/// The segments of a copy, in the order of the buffer, which they fill but for gaps of zeros between them. No sum in
/// one of them exceeds 64 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segments(Vec<Segment>);

impl Segments {
    /// `list` is in the order of the buffer.
    pub(crate) fn new(list: Vec<Segment>) -> Self {
        Self(list)
    }

    /// The first `len` bytes, not 0, where they are.
    pub(crate) fn whole(len: u64) -> Self {
        Self(vec![Segment { from: 0, run: len, count: 1, step: 0, to: 0 }])
    }

    /// Whether it is a region from its beginning on, without a gap.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.0[..], [Segment { from: 0, count: 1, to: 0, .. }])
    }

    /// In order.
    pub(crate) fn as_slice(&self) -> &[Segment] {
        &self.0
    }

    /// Bytes of the buffer.
    pub(crate) fn len(&self) -> u64 {
        self.0.last().map_or(0, Segment::end)
    }

    /// Bytes that the region has at least.
    pub(crate) fn source_len(&self) -> u64 {
        self.0.iter().map(Segment::source_end).max().unwrap_or(0)
    }

    /// What the buffer has from `at` on, read from the region.
    pub(crate) fn read_at(&self, region: &Region, mut at: u64, mut bytes: &mut [u8]) -> Result<()> {
        let first = self.0.partition_point(|segment| segment.end() <= at);
        let mut segments = self.0.iter().skip(first);
        let mut next = segments.next();
        while !bytes.is_empty() {
            // Where the bytes begin in the region, if not in a gap, and how many follow each other there.
            let (from, len) = match next {
                None => (None, u64::MAX),
                Some(segment) if at < segment.to => (None, segment.to - at),
                Some(segment) => {
                    let (number, skip) = ((at - segment.to) / segment.run, (at - segment.to) % segment.run);
                    (Some(segment.from + number * segment.step + skip), segment.run - skip)
                }
            };
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
            let (part, rest) = std::mem::take(&mut bytes).split_at_mut(len);
            match from {
                Some(from) => region.read_at(from, part)?,
                None => part.fill(0),
            }
            (at, bytes) = (at + len as u64, rest);
            if next.is_some_and(|segment| segment.end() <= at) {
                next = segments.next();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_gathered_and_gaps_are_zeros() {
        let region = Region::from_bytes((0..100).collect());
        let segments = Segments::new(vec![
            Segment { from: 50, run: 3, count: 1, step: 0, to: 2 },
            Segment { from: 10, run: 2, count: 3, step: 20, to: 6 },
        ]);
        assert_eq!((segments.len(), segments.source_len()), (12, 53));
        let whole = [0, 0, 50, 51, 52, 0, 10, 11, 30, 31, 50, 51];
        for start in 0..whole.len() {
            for end in start..=whole.len() {
                let mut bytes = vec![255; end - start];
                segments.read_at(&region, start as u64, &mut bytes).unwrap();
                assert_eq!(bytes, whole[start..end]);
            }
        }
        let mut bytes = [1; 4];
        segments.read_at(&region, 11, &mut bytes).unwrap();
        assert_eq!(bytes, [51, 0, 0, 0], "nothing lies behind the last one");
        assert!(Segments::whole(101).read_at(&region, 0, &mut [0; 101]).is_err());
    }
}
