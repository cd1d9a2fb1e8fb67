//! Arithmetic of cutting: a region into pieces, and a range of the region into spans, one in each piece that it
//! touches.

#![forbid(unsafe_code)]

/// Pieces begin at multiples of this: a huge page, and more than any driver wants buffers aligned to.
pub(super) const PIECE_UNIT: u64 = 2 << 20;

/// How a region is cut. There is at least one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Bytes that are covered, not 0.
    pub(super) total: u64,
    /// Bytes of each piece but the last, which may be shorter: a multiple of [`PIECE_UNIT`] if there are several.
    pub(super) piece: u64,
}

/// Part of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Number of the piece.
    pub(super) piece: usize,
    /// First byte, from the start of the piece.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: u64,
}

impl Cut {
    /// Pieces of at most `limit` bytes; `None` if that is less than one unit and not enough for everything.
    pub(super) fn new(total: u64, limit: u64) -> Option<Self> {
        let piece = if total <= limit { total } else { limit - limit % PIECE_UNIT };
        (piece > 0).then_some(Self { total, piece })
    }

    /// Start and length of piece `n`, which there is.
    fn piece(self, n: u64) -> (u64, u64) {
        let start = n * self.piece;
        (start, self.piece.min(self.total - start))
    }

    /// Start and length of each piece.
    pub(super) fn pieces(self) -> impl Iterator<Item = (u64, u64)> {
        (0..self.total.div_ceil(self.piece)).map(move |n| self.piece(n))
    }

    /// The spans of `offset..offset + len`, in order; one without bytes for an empty range. `None` unless the range
    /// lies in what is covered.
    pub(super) fn spans(self, offset: u64, len: u64) -> Option<Vec<Span>> {
        let end = offset.checked_add(len).filter(|&end| end <= self.total)?;
        let last = self.total.div_ceil(self.piece) - 1;
        let mut spans = Vec::new();
        let mut from = offset;
        for n in (offset / self.piece).min(last)..=last {
            let (start, piece) = self.piece(n);
            let to = end.min(start + piece);
            spans.push(Span { piece: usize::try_from(n).ok()?, offset: from - start, len: to - from });
            from = to;
            if from == end {
                break;
            }
        }
        Some(spans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_limit_just_below_4_gib_gives_whole_units() {
        let cut = Cut::new(9 << 30, (4 << 30) - 1).unwrap();
        assert_eq!(cut.piece, (4 << 30) - 2 * MIB);
        assert_eq!(cut.pieces().collect::<Vec<_>>().len(), 3);
        assert_eq!(Cut::new(4 * MIB, MIB), None);
        // What fits is one piece, of whatever length.
        assert_eq!(Cut::new(5000, 6000).unwrap().pieces().collect::<Vec<_>>(), [(0, 5000)]);
        assert_eq!(Cut::new(3 * MIB, 3 * MIB).unwrap().pieces().collect::<Vec<_>>(), [(0, 3 * MIB)]);
    }

    #[test]
    fn a_range_over_an_edge_has_two_spans() {
        let cut = Cut::new(10 * MIB, 4 * MIB).unwrap();
        assert_eq!(
            cut.spans(4 * MIB - 1, 2).unwrap(),
            [Span { piece: 0, offset: 4 * MIB - 1, len: 1 }, Span { piece: 1, offset: 0, len: 1 }]
        );
        assert_eq!(cut.spans(4 * MIB, 0).unwrap(), [Span { piece: 1, offset: 0, len: 0 }]);
        assert_eq!(cut.spans(10 * MIB, 0).unwrap(), [Span { piece: 2, offset: 2 * MIB, len: 0 }]);
        assert_eq!(cut.spans(10 * MIB, 1), None);
        assert_eq!(cut.spans(u64::MAX, 2), None);
    }

    proptest! {
        #[test]
        fn spans_cover_the_range_once(
            total in 1u64..20 * MIB, limit in 2 * MIB..9 * MIB, a in 0u64..20 * MIB, b in 0u64..20 * MIB,
        ) {
            let cut = Cut::new(total, limit).unwrap();
            let pieces: Vec<_> = cut.pieces().collect();
            let mut at = 0;
            for &(start, len) in &pieces {
                prop_assert_eq!(start, at);
                prop_assert!(len > 0 && len <= limit && start % PIECE_UNIT == 0);
                at += len;
            }
            prop_assert_eq!(at, total);
            let (from, to) = (a.min(b).min(total), a.max(b).min(total));
            let mut at = from;
            for span in cut.spans(from, to - from).unwrap() {
                let (start, len) = pieces[span.piece];
                prop_assert_eq!(start + span.offset, at);
                prop_assert!(span.offset + span.len <= len);
                prop_assert!(span.len > 0 || from == to);
                at += span.len;
            }
            prop_assert_eq!(at, to);
        }
    }
}
