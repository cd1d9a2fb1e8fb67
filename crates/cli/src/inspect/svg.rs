//! The memory map of an image as a standalone SVG.
//!
//! Each row has two lanes: above, which file lies there; below, what the bytes are. Hatched ground is padding.

#![allow(
    clippy::arithmetic_side_effects,
    reason = "pixels, and pieces that were cut to the memory: they follow each other and end with it"
)]

use super::layout::{Kind, Layout};
use super::markup::{Path, Svg, fit, fit_or_nothing, fit_tail};
use super::paint::Paint;
use super::report::{shape, view};
use super::rows::{COLUMN, Column, Row, Scale, Span, WIDTH, cut, spans};
use crate::text::{alignment, count, escape, human, percent};
use daxfs::Image;
use std::collections::BTreeMap;
use std::fmt::Write;

const LEFT: u32 = 116;
const RIGHT: u32 = 24;
const FILE_LANE: u32 = 15;
/// Estimated pixels of a character in a label.
const PER_CHAR: f64 = 6.1;
const LANE: u32 = 34;
const ROW: u32 = FILE_LANE + LANE + 17;
const HATCH: &str = "url(#hatch)";
const LEGEND_COLUMNS: u32 = 4;
/// Metadata in a shared column is drawn at least this high.
const LEAST: f64 = 4.0;

/// Draws the image. `title` is escaped text.
pub fn draw(image: &Image, layout: &Layout, title: &str) -> String {
    let spans = spans(layout);
    let scale = Scale::fit(layout.image_size, &spans);
    let rows = cut(&spans, layout.image_size, scale);
    let legend = legend(layout, &spans);
    let legend_rows = u32::try_from(legend.len()).unwrap_or(u32::MAX).div_ceil(LEGEND_COLUMNS);
    let top = 86 + 20 * legend_rows;
    let row_count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
    let (width, height) = (LEFT + WIDTH + RIGHT, top + ROW * row_count + 26);

    let mut svg = Svg::default();
    svg.open(width, height, title);
    svg.text(16.0, 28.0, "title", &fit(title, f64::from(width - 32), 9.5));
    svg.text(16.0, 48.0, "sub", &subtitle(image, layout));
    svg.text(16.0, 65.0, "sub", &scale_text(scale));
    for (number, entry) in (0..).zip(&legend) {
        let (column, line) = (number % LEGEND_COLUMNS, number / LEGEND_COLUMNS);
        let (x, y) = (16.0 + f64::from(column * 288), f64::from(80 + 20 * line));
        legend_entry(&mut svg, x, y, entry, layout.image_size);
    }
    for (number, row) in (0..).zip(&rows) {
        Picture { layout, spans: &spans, scale, top: f64::from(top + ROW * number) }.row(&mut svg, row);
    }
    svg.text(f64::from(LEFT), f64::from(height - 10), "note", &footnote(layout, scale));
    svg.close()
}

fn subtitle(image: &Image, layout: &Layout) -> String {
    let superblock = image.superblock();
    format!(
        "DAXFS version {}, {} ({} bytes); {}; {} and {}",
        superblock.version,
        human(superblock.total_size),
        superblock.total_size,
        view(image),
        count(layout.files.len() as u64, "file", "files"),
        count(layout.tensors().count() as u64, "tensor", "tensors"),
    )
}

fn scale_text(scale: Scale) -> String {
    format!(
        "One row is {}, one tick {}; offsets from the start of the image. Upper lane: files. Lower lane: contents.",
        human(scale.bytes_per_row),
        human(scale.bytes_per_row / 8)
    )
}

fn footnote(layout: &Layout, scale: Scale) -> String {
    let mut text = format!(
        "What is narrower than 3 px shares columns of {}; heights in a column are shares of its bytes, but metadata \
         is at least {LEAST} px high.",
        human(scale.bytes_per_column())
    );
    let behind: u64 = layout.usage().get(&Kind::Behind).map_or(0, |usage| usage.bytes);
    if behind > 0 {
        // Writing to a String cannot fail, here and below.
        let _ = write!(text, " Not drawn: {} of memory behind the image.", human(behind));
    }
    text
}

/// Bytes by paint; padding last.
fn legend(layout: &Layout, spans: &[Span]) -> Vec<(Paint, u64)> {
    let mut sums = BTreeMap::new();
    for span in spans {
        *sums.entry(span.paint).or_insert(0) += span.range.end - span.range.start;
    }
    let padding = layout.image_size - sums.values().sum::<u64>().min(layout.image_size);
    sums.into_iter().chain((padding > 0).then_some((Paint::Kind(Kind::Padding), padding))).collect()
}

/// What is written on a span.
enum Lines {
    Tensor { name: String, dtype: &'static str, shape: String },
    Other(String),
}

struct Picture<'a> {
    layout: &'a Layout,
    spans: &'a [Span],
    scale: Scale,
    top: f64,
}

impl Picture<'_> {
    fn row(&self, svg: &mut Svg, row: &Row) {
        let lane = self.top + f64::from(FILE_LANE);
        let left = f64::from(LEFT);
        let width = self.scale.pixels(row.range.end - row.range.start);
        svg.text(left - 8.0, lane + 14.0, "offset", &format!("{:#x}", row.range.start));
        svg.text(left - 8.0, lane + 27.0, "small", &human(row.range.start));
        svg.rect(left, lane, width, f64::from(LANE), HATCH, None);
        for &number in &row.wide {
            if let Some(span) = self.spans.get(number) {
                self.wide(svg, span, row, lane);
            }
        }
        columns(svg, &row.columns, self.scale, left, lane);
        self.file_lane(svg, row);
        ticks(svg, left, lane + f64::from(LANE), width);
    }

    /// Left edge and width of a span in a row.
    fn place(&self, range: &std::ops::Range<u64>, row: &Row) -> (f64, f64) {
        let start = range.start.max(row.range.start);
        let end = range.end.min(row.range.end);
        (
            f64::from(LEFT) + self.scale.pixels(start - row.range.start),
            self.scale.pixels(end.saturating_sub(start)),
        )
    }

    fn wide(&self, svg: &mut Svg, span: &Span, row: &Row, lane: f64) {
        let (x, width) = self.place(&span.range, row);
        let Some(colour) = span.paint.colour() else { return };
        let (lines, tip) = self.describe(span);
        svg.rect(x, lane, width, f64::from(LANE), colour, Some(&tip));
        let room = width - 8.0;
        if room < 20.0 {
            return;
        }
        let ink = span.paint.ink();
        match lines {
            Lines::Tensor { name, dtype, shape } => {
                svg.label(x + 4.0, lane + 14.0, ink, &fit_tensor_name(&name, room));
                let whole = fit_or_nothing(&format!("{dtype} {shape}"), room, PER_CHAR);
                let line = if whole.is_empty() { fit_or_nothing(dtype, room, PER_CHAR) } else { whole };
                svg.label(x + 4.0, lane + 27.0, ink, &line);
            }
            Lines::Other(text) => {
                svg.label(x + 4.0, lane + 21.0, ink, &fit_or_nothing(&text, room, PER_CHAR))
            }
        }
    }

    /// What is written on a span, and the text that shows when the mouse rests on it.
    fn describe(&self, span: &Span) -> (Lines, String) {
        let file = span.file.and_then(|number| self.layout.files.get(number));
        let size = human(span.range.end - span.range.start);
        let place = format!("{:#x}..{:#x}, {size}", span.range.start, span.range.end);
        let path = file.map(|file| format!("{}\n", file.label())).unwrap_or_default();
        let tensors = file.and_then(|file| file.tensors.as_ref()?.as_ref().ok());
        if let Some(tensor) = span.tensor.and_then(|number| tensors?.get(number)) {
            let name = escape(tensor.name.as_bytes());
            let (dtype, shape) = (tensor.dtype.name(), shape(&tensor.shape));
            let align = alignment(tensor.alignment);
            let tip = format!("{path}{name}\n{dtype} {shape}\n{place}, aligned to {align}");
            return (Lines::Tensor { name, dtype, shape }, tip);
        }
        let name = span.paint.name();
        let short = match span.paint {
            Paint::Kind(Kind::Files) => size,
            Paint::Header => "header".to_owned(),
            Paint::Filler => "filler".to_owned(),
            _ => name.to_owned(),
        };
        (Lines::Other(short), format!("{path}{name}\n{place}"))
    }

    /// Which file lies where: names where they fit, counts where many small ones stand together.
    fn file_lane(&self, svg: &mut Svg, row: &Row) {
        let mut small: Vec<(f64, f64, u32)> = Vec::new();
        let pieces = &self.layout.pieces;
        let first = pieces.partition_point(|piece| piece.range.end <= row.range.start);
        for piece in pieces.iter().skip(first).take_while(|piece| piece.range.start < row.range.end) {
            let Some(file) = piece.file.and_then(|number| self.layout.files.get(number)) else { continue };
            let (x, width) = self.place(&piece.range, row);
            if width < 24.0 {
                let gap = f64::from(COLUMN);
                let begins = u32::from(piece.range.start >= row.range.start);
                match small.last_mut() {
                    Some((_, end, files)) if x - *end < gap => (*end, *files) = (x + width, *files + begins),
                    _ => small.push((x, x + width, begins)),
                }
                continue;
            }
            file_bar(svg, x, self.top + 2.0, width, &fit(&file.label(), width - 6.0, 5.6));
        }
        for (x, end, files) in small {
            let text = if files > 1 { format!("{files} files") } else { String::new() };
            file_bar(svg, x, self.top + 2.0, (end - x).max(1.0), &fit_or_nothing(&text, end - x - 6.0, 5.6));
        }
    }
}

fn legend_entry(svg: &mut Svg, x: f64, y: f64, &(paint, bytes): &(Paint, u64), total: u64) {
    svg.rect(x, y, 14.0, 12.0, paint.colour().unwrap_or(HATCH), None);
    let text = format!("{}  {}  {}", paint.name(), human(bytes), percent(bytes, total));
    svg.text(x + 20.0, y + 10.0, "legend", &text);
}

/// As many of a tensor's last name components as fit: they tell it from its neighbours. `.weight` does not, so it
/// goes first.
fn fit_tensor_name(name: &str, room: f64) -> String {
    let short = name.strip_suffix(".weight").unwrap_or(name);
    let behind_dots = short.match_indices('.').map(|(dot, _)| &short[dot + 1..]);
    let fits = |text: &&str| !fit_or_nothing(text, room, PER_CHAR).is_empty();
    match [name, short].into_iter().chain(behind_dots).find(fits) {
        Some(text) => text.to_owned(),
        None => fit_tail(short, room, PER_CHAR),
    }
}

/// A line as long as the file, and its name above.
fn file_bar(svg: &mut Svg, x: f64, y: f64, width: f64, name: &str) {
    svg.rect(x, y + 10.0, width, 2.0, "#475569", None);
    if !name.is_empty() {
        svg.text(x + 1.0, y + 7.5, "name", name);
    }
}

/// Eighths of a row, as far as the image goes.
fn ticks(svg: &mut Svg, left: f64, y: f64, width: f64) {
    let step = f64::from(WIDTH) / 8.0;
    for x in (0..=8).map(|tick| f64::from(tick) * step).take_while(|x| *x <= width) {
        svg.rect(left + x - 0.5, y, 1.0, 4.0, "#94a3b8", None);
    }
}

/// Equal columns side by side: numbers of the first and behind the last, and the heights of their shares.
struct Run {
    from: u32,
    until: u32,
    stack: Vec<(Paint, f64)>,
}

/// Shared columns: each a stack of its shares over hatched ground. Equal neighbours are drawn as one.
fn columns(svg: &mut Svg, columns: &[Column], scale: Scale, left: f64, lane: f64) {
    let mut runs: Vec<Run> = Vec::new();
    for column in columns {
        let stack = stack(column, scale.bytes_per_column());
        match runs.last_mut() {
            Some(run) if run.until == column.number && run.stack == stack => run.until += 1,
            _ => runs.push(Run { from: column.number, until: column.number + 1, stack }),
        }
    }
    let mut ground = Path::default();
    let mut paths: BTreeMap<Paint, Path> = BTreeMap::new();
    for Run { from, until, stack } in runs {
        let (x, width) = (left + f64::from(from * COLUMN), f64::from((until - from) * COLUMN));
        let mut top = lane + f64::from(LANE);
        ground.rect(x, lane, width, f64::from(LANE));
        for (paint, height) in stack {
            top -= height;
            paths.entry(paint).or_default().rect(x, top, width, height);
        }
    }
    if columns.is_empty() {
        return;
    }
    svg.path(&ground, HATCH);
    for (paint, path) in &paths {
        svg.path(path, paint.colour().unwrap_or(HATCH));
    }
}

/// Heights of the shares of a column, in half pixels, the sum at most the lane.
fn stack(column: &Column, bytes: u64) -> Vec<(Paint, f64)> {
    let lane = f64::from(LANE);
    let mut stack: Vec<_> = column
        .shares
        .iter()
        .map(|&(paint, share)| {
            let least = if paint.is_metadata() { LEAST } else { 0.5 };
            let height = (share as f64 / bytes as f64 * lane * 2.0).round() / 2.0;
            (paint, height.max(least))
        })
        .collect();
    let mut excess = stack.iter().map(|(_, height)| height).sum::<f64>() - lane;
    // What was made visible is taken from the largest.
    while excess > 0.0 {
        let Some(largest) = stack.iter_mut().max_by(|a, b| a.1.total_cmp(&b.1)) else { break };
        let cut = excess.min((largest.1 - 0.5).max(0.5));
        largest.1 -= cut;
        excess -= cut;
    }
    stack
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tensors_keep_their_ends() {
        let name = "model.layers.0.self_attn.q_proj.weight";
        assert_eq!(fit_tensor_name(name, 300.0), name);
        assert_eq!(fit_tensor_name(name, 100.0), "self_attn.q_proj");
        assert_eq!(fit_tensor_name(name, 40.0), "q_proj");
        assert_eq!(fit_tensor_name(name, 30.0), "…roj");
    }

    #[test]
    fn columns_never_overflow_the_lane() {
        let share = |kind| (Paint::Kind(kind), 1);
        let shares = vec![share(Kind::Superblock), share(Kind::InodeTable), (Paint::Kind(Kind::Files), 998)];
        let stack = stack(&Column { number: 0, shares }, 1000);
        assert_eq!(stack.iter().map(|(_, height)| height).sum::<f64>(), f64::from(LANE));
        assert!(stack.iter().all(|(_, height)| *height > 0.0));
        assert_eq!(stack[0].1, LEAST);
    }
}
