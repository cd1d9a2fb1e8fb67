//! A file that a log wrote to, as a map of ranges: what of the packed bytes still shows, and what lies over them.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Content, Piece, PieceSource};

/// Bytes of a changed file.
pub(super) struct Written {
    /// What of the packed bytes still shows: a truncation hides the rest for good.
    base_len: u64,
    /// Written ranges by start: end and absolute offset. They do not overlap.
    written: BTreeMap<u64, (u64, u64)>,
}

impl Written {
    /// A file whose first `base_len` packed bytes show.
    pub fn new(base_len: u64) -> Self {
        Self { base_len, written: BTreeMap::new() }
    }

    /// How many packed bytes still show.
    pub fn base_len(&self) -> u64 {
        self.base_len
    }

    /// Forgets what is written in `range`, keeping the parts of older writes that stick out.
    fn cut(&mut self, range: Range<u64>) {
        let mut overlapping: Vec<_> = Vec::new();
        for (&start, &(end, _)) in self.written.range(..range.end).rev() {
            if end <= range.start {
                break;
            }
            overlapping.push(start);
        }
        for start in overlapping {
            let Some((end, source)) = self.written.remove(&start) else { continue };
            if start < range.start {
                self.written.insert(start, (range.start, source));
            }
            if end > range.end {
                self.written.insert(range.end, (end, source.saturating_add(range.end.saturating_sub(start))));
            }
        }
    }

    /// Lays `len` bytes at `source` of the image over the file from `start` on.
    pub fn write(&mut self, start: u64, len: u64, source: u64) {
        if len > 0 {
            let end = start.saturating_add(len);
            self.cut(start..end);
            self.written.insert(start, (end, source));
        }
    }

    /// Cuts the file; what is beyond `size` does not come back.
    pub fn truncate(&mut self, size: u64) {
        self.base_len = self.base_len.min(size);
        self.cut(size..u64::MAX);
    }

    /// The file of `size` bytes as pieces without gaps.
    pub fn pieces(&self, size: u64, base: &Content) -> Content {
        let mut pieces = Vec::new();
        let mut end = 0;
        let fill = |pieces: &mut Vec<Piece>, from: &mut u64, to: u64| {
            let shown = to.min(self.base_len);
            if *from < shown {
                let source = match base {
                    Content::Image(range) => PieceSource::Image(range.start.saturating_add(*from)),
                    Content::Backing(range) => PieceSource::Backing(range.start.saturating_add(*from)),
                    _ => PieceSource::Zeros,
                };
                pieces.push(Piece { start: *from, len: shown.saturating_sub(*from), source });
                *from = shown;
            }
            if *from < to {
                let len = to.saturating_sub(*from);
                pieces.push(Piece { start: *from, len, source: PieceSource::Zeros });
                *from = to;
            }
        };
        for (&start, &(stop, source)) in &self.written {
            let (start, stop) = (start.min(size), stop.min(size));
            fill(&mut pieces, &mut end, start);
            if start < stop {
                let len = stop.saturating_sub(start);
                pieces.push(Piece { start, len, source: PieceSource::Image(source) });
                end = stop;
            }
        }
        fill(&mut pieces, &mut end, size);
        if pieces.is_empty() { Content::Empty } else { Content::Pieces(pieces.into_boxed_slice()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "the test's numbers are below 512")]

    use super::*;

    /// Replays writes and truncations on bytes and on pieces, and compares.
    #[test]
    fn pieces_equal_a_byte_array() {
        let mut state = 7_u64;
        let mut random = move |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        for _ in 0..500 {
            let image: Vec<u8> = (0..400).map(|_| random(256) as u8).collect();
            let mut bytes = image[100..130].to_vec();
            let mut data = Written::new(30);
            for _ in 0..random(8) {
                if random(3) == 0 {
                    let size = random(60);
                    data.truncate(size);
                    bytes.resize(usize::try_from(size).unwrap(), 0);
                } else {
                    let (start, len, source) = (random(60), random(20), 200 + random(100));
                    data.write(start, len, source);
                    let (start, len, source) = (start as usize, len as usize, source as usize);
                    bytes.resize(bytes.len().max(start + len), 0);
                    bytes[start..start + len].copy_from_slice(&image[source..source + len]);
                }
            }
            let content = data.pieces(bytes.len() as u64, &Content::Image(100..130));
            let mut got = Vec::new();
            if let Content::Pieces(pieces) = content {
                for piece in pieces {
                    assert_eq!(piece.start, got.len() as u64);
                    match piece.source {
                        PieceSource::Image(at) => got.extend(&image[at as usize..(at + piece.len) as usize]),
                        PieceSource::Zeros => got.resize(got.len() + piece.len as usize, 0),
                        PieceSource::Backing(_) => unreachable!(),
                    }
                }
            }
            assert_eq!(got, bytes);
        }
    }
}
