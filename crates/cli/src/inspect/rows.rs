//! Cuts the memory map into rows of columns, to scale.
//!
//! A row is [`WIDTH`] pixels wide and stands for a power of two of bytes, so that a column of [`COLUMN`] pixels
//! stands for a whole number of bytes. What is at least three pixels wide is drawn for itself. Smaller stretches
//! share columns; of each column it is known how many of its bytes have which paint.

#![allow(
    clippy::arithmetic_side_effects,
    reason = "pixels, and pieces that were cut to the memory: they follow each other and end with it"
)]

use super::layout::{Kind, Layout};
use super::paint::Paint;
use std::ops::Range;

/// Pixels of a row.
pub const WIDTH: u32 = 1024;
/// Pixels of a column.
pub const COLUMN: u32 = 2;
/// Columns of a row.
const COLUMNS: u64 = (WIDTH / COLUMN) as u64;
/// More rows than this make a picture that nobody scrolls through.
const MOST_ROWS: u64 = 40;
/// Stretches that a row should hold on average, so that their names fit.
const PER_ROW: u64 = 6;

/// A stretch of one paint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Absolute bytes.
    pub range: Range<u64>,
    /// Its paint.
    pub paint: Paint,
    /// Number of its file.
    pub file: Option<usize>,
    /// Number of its tensor in the file.
    pub tensor: Option<usize>,
}

/// The stretches of the image, in order: pieces, with files of tensors cut into header, tensors and fillers.
/// Padding and what lies behind the image are left out.
pub fn spans(layout: &Layout) -> Vec<Span> {
    let mut spans = Vec::new();
    for piece in &layout.pieces {
        let range = piece.range.start..piece.range.end.min(layout.image_size);
        if matches!(piece.kind, Kind::Padding | Kind::Behind) || range.is_empty() {
            continue;
        }
        let tensors = piece.file.and_then(|number| layout.files.get(number)?.tensors.as_ref()?.as_ref().ok());
        let Some(tensors) = tensors else {
            spans.push(Span { range, paint: Paint::Kind(piece.kind), file: piece.file, tensor: None });
            continue;
        };
        let mut at = range.start;
        let mut add = |until: u64, paint, tensor| {
            let end = until.min(range.end);
            if at < end {
                spans.push(Span { range: at..end, paint, file: piece.file, tensor });
                at = end;
            }
        };
        let mut gap = Paint::Header;
        for (number, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| tensor.nbytes > 0) {
            let Some(start) = tensor.offset else { continue };
            add(start, gap, None);
            add(start.saturating_add(tensor.nbytes), Paint::of(tensor.dtype), Some(number));
            gap = Paint::Filler;
        }
        add(range.end, gap, None);
    }
    spans
}

/// How bytes become pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// A power of two, at least 4096.
    pub bytes_per_row: u64,
    /// How many rows.
    pub rows: u64,
}

impl Scale {
    /// Rows for `size` bytes that hold `spans`: more for more stretches, but never too many.
    pub fn fit(size: u64, spans: &[Span]) -> Self {
        let size = size.max(1);
        let visible =
            spans.iter().filter(|span| span.range.end - span.range.start >= size / 20_000).count() as u64;
        let least = if spans.len() > 12 { 4 } else { 1 };
        let rows = (visible / PER_ROW).clamp(least, MOST_ROWS);
        // Above half the address space there is no next power of two, and no such memory.
        let bytes_per_row = size.div_ceil(rows).checked_next_power_of_two().unwrap_or(1 << 63).max(4096);
        Self { bytes_per_row, rows: size.div_ceil(bytes_per_row) }
    }

    /// Bytes of a column.
    pub fn bytes_per_column(self) -> u64 {
        self.bytes_per_row / COLUMNS
    }

    /// Pixels of `bytes`.
    pub fn pixels(self, bytes: u64) -> f64 {
        // Rounding below a hundredth of a pixel does not show.
        bytes as f64 * f64::from(WIDTH) / self.bytes_per_row as f64
    }

    fn is_small(self, span: &Span) -> bool {
        u128::from(span.range.end - span.range.start) * u128::from(WIDTH) < 3 * u128::from(self.bytes_per_row)
    }
}

/// A column that several stretches share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its number in the row.
    pub number: u32,
    /// How many of its bytes have which paint, sorted by paint; the rest is padding.
    pub shares: Vec<(Paint, u64)>,
}

/// A row of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Absolute bytes, ending with the image.
    pub range: Range<u64>,
    /// Numbers of the stretches that are drawn for themselves.
    pub wide: Vec<usize>,
    /// Columns that are shared, in order.
    pub columns: Vec<Column>,
}

/// Cuts `size` bytes into rows.
pub fn cut(spans: &[Span], size: u64, scale: Scale) -> Vec<Row> {
    (0..scale.rows)
        .map(|number| {
            let start = number * scale.bytes_per_row;
            row(spans, start..start.saturating_add(scale.bytes_per_row).min(size), scale)
        })
        .collect()
}

fn row(spans: &[Span], range: Range<u64>, scale: Scale) -> Row {
    let first = spans.partition_point(|span| span.range.end <= range.start);
    let last = spans.partition_point(|span| span.range.start < range.end);
    let here = spans.get(first..last).unwrap_or_default();
    let per_column = scale.bytes_per_column();
    let mut row = Row { range: range.clone(), wide: Vec::new(), columns: Vec::new() };

    // Which columns small stretches touch; spans come in order, so the columns do.
    for (number, span) in here.iter().enumerate() {
        if !scale.is_small(span) {
            row.wide.push(first + number);
            continue;
        }
        for column in columns_of(span, &range, per_column) {
            if row.columns.last().is_none_or(|last| last.number < column) {
                row.columns.push(Column { number: column, shares: Vec::new() });
            }
        }
    }
    // Whatever lies in those columns, wide stretches too, takes its share.
    for span in here {
        let touched = columns_of(span, &range, per_column);
        let from = row.columns.partition_point(|column| column.number < touched.start);
        for column in row.columns.iter_mut().skip(from).take_while(|column| column.number < touched.end) {
            let start = range.start + u64::from(column.number) * per_column;
            let bytes = span.range.end.min(start + per_column) - span.range.start.max(start);
            match column.shares.iter_mut().find(|(paint, _)| *paint == span.paint) {
                Some((_, sum)) => *sum += bytes,
                None => column.shares.push((span.paint, bytes)),
            }
        }
    }
    for column in &mut row.columns {
        column.shares.sort_unstable();
    }
    row
}

/// The columns that a span touches in a row.
fn columns_of(span: &Span, row: &Range<u64>, per_column: u64) -> Range<u32> {
    let start = span.range.start.max(row.start) - row.start;
    let end = span.range.end.min(row.end) - row.start;
    // At most COLUMNS, which fits.
    let number = |column: u64| u32::try_from(column).unwrap_or(u32::MAX);
    number(start / per_column)..number(end.div_ceil(per_column))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(range: Range<u64>, kind: Kind) -> Span {
        Span { range, paint: Paint::Kind(kind), file: None, tensor: None }
    }

    #[test]
    fn scale_is_a_power_of_two_and_covers_everything() {
        for size in [1, 4096, 4097, 90_868_376, u64::MAX] {
            let scale = Scale::fit(size, &[]);
            assert!(scale.bytes_per_row.is_power_of_two() && scale.bytes_per_row >= 4096);
            assert!(u128::from(scale.rows) * u128::from(scale.bytes_per_row) >= u128::from(size));
            assert!(scale.rows <= 2 * MOST_ROWS);
        }
    }

    #[test]
    fn small_spans_share_columns_in_proportion() {
        // 4096 bytes per row: 4 bytes per pixel, 8 bytes per column.
        let scale = Scale { bytes_per_row: 4096, rows: 2 };
        let spans = [
            span(0..4, Kind::Superblock),
            span(6..20, Kind::Files),
            span(20..2000, Kind::Index),
            span(4090..4100, Kind::Directories),
        ];
        let rows = cut(&spans, 5000, scale);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].wide, [1, 2]);
        let paint = Paint::Kind;
        assert_eq!(
            rows[0].columns,
            [
                Column { number: 0, shares: vec![(paint(Kind::Superblock), 4), (paint(Kind::Files), 2)] },
                Column { number: 511, shares: vec![(paint(Kind::Directories), 6)] },
            ]
        );
        assert_eq!(rows[1].range, 4096..5000);
        assert_eq!(rows[1].columns, [Column { number: 0, shares: vec![(paint(Kind::Directories), 4)] }]);
    }
}
