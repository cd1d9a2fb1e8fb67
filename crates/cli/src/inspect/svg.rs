//! The memory map of an image as a standalone SVG.
//!
//! Each row has two lanes: above, which file lies there; below, what the bytes are. Hatched ground is padding.

use super::layout::{Kind, Layout};
use super::paint::Paint;
use super::report::{shape, view};
use super::rows::{COLUMN, Column, Row, Scale, Span, WIDTH, cut, spans};
use crate::text::{alignment, count, escape, human, percent};
use daxfs::Image;
use std::collections::BTreeMap;
use std::fmt::{Display, Write};

const LEFT: u32 = 116;
const RIGHT: u32 = 24;
const FILE_LANE: u32 = 15;
const LANE: u32 = 34;
const ROW: u32 = FILE_LANE + LANE + 17;
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

    let mut svg = Svg(String::new());
    svg.open(width, height, title);
    svg.text(16.0, 28.0, "title", &fit(title, f64::from(width - 32), 9.5));
    svg.text(16.0, 48.0, "sub", &subtitle(image, layout));
    svg.text(16.0, 65.0, "sub", &scale_text(scale));
    for (number, entry) in (0..).zip(&legend) {
        let (column, line) = (number % LEGEND_COLUMNS, number / LEGEND_COLUMNS);
        svg.legend_entry(16.0 + f64::from(column * 288), f64::from(80 + 20 * line), entry, layout.image_size);
    }
    for (number, row) in (0..).zip(&rows) {
        Picture { layout, spans: &spans, scale, top: f64::from(top + ROW * number) }.row(&mut svg, row);
    }
    svg.text(f64::from(LEFT), f64::from(height - 10), "note", &footnote(layout, scale));
    svg.0.push_str("</svg>\n");
    svg.0
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
        svg.rect(left, lane, width, f64::from(LANE), "url(#hatch)", None);
        for &number in &row.wide {
            if let Some(span) = self.spans.get(number) {
                self.wide(svg, span, row, lane);
            }
        }
        svg.columns(&row.columns, self.scale, left, lane, row.range.end);
        self.file_lane(svg, row);
        svg.ticks(left, lane + f64::from(LANE), width);
    }

    /// Left edge and width of a span in a row.
    fn place(&self, range: &std::ops::Range<u64>, row: &Row) -> (f64, f64) {
        let start = range.start.max(row.range.start);
        let end = range.end.min(row.range.end);
        (f64::from(LEFT) + self.scale.pixels(start - row.range.start), self.scale.pixels(end.saturating_sub(start)))
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
        match &lines {
            (first, Some(second)) => {
                svg.label(x + 4.0, lane + 14.0, ink, &fit_tail(first, room, 6.1));
                svg.label(x + 4.0, lane + 27.0, ink, &fit(second, room, 6.1));
            }
            (first, None) => svg.label(x + 4.0, lane + 21.0, ink, &fit(first, room, 6.1)),
        }
    }

    /// One or two lines for a span, and the text that shows when the mouse rests on it.
    fn describe(&self, span: &Span) -> ((String, Option<String>), String) {
        let file = span.file.and_then(|number| self.layout.files.get(number));
        let size = human(span.range.end - span.range.start);
        let place = format!("{:#x}..{:#x}, {size}", span.range.start, span.range.end);
        let path = file.map(|file| format!("{}\n", file.label())).unwrap_or_default();
        let tensors = file.and_then(|file| file.tensors.as_ref()?.as_ref().ok());
        match span.tensor.and_then(|number| tensors?.get(number)) {
            Some(tensor) => {
                let name = escape(tensor.name.as_bytes());
                let what = format!("{} {}", tensor.dtype.name(), shape(&tensor.shape));
                let align = alignment(tensor.alignment);
                let tip = format!("{path}{name}\n{what}\n{place}, aligned to {align}");
                ((name, Some(what)), tip)
            }
            None => {
                let name = span.paint.name();
                let short = match span.paint {
                    Paint::Kind(Kind::Files) => size,
                    Paint::Header => "header".to_owned(),
                    Paint::Filler => "filler".to_owned(),
                    _ => name.to_owned(),
                };
                ((short, None), format!("{path}{name}\n{place}"))
            }
        }
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
            svg.file(x, self.top + 2.0, width, &fit(&file.label(), width - 6.0, 5.6));
        }
        for (x, end, files) in small {
            let text = if files > 1 { format!("{files} files") } else { String::new() };
            svg.file(x, self.top + 2.0, (end - x).max(1.0), &fit_or_nothing(&text, end - x - 6.0, 5.6));
        }
    }
}

/// SVG text under construction. Every text goes through [`xml`].
struct Svg(String);

impl Svg {
    fn open(&mut self, width: u32, height: u32, title: &str) {
        let _ = write!(
            self.0,
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif">
<title>Memory map of {}</title>
<style>
text {{ font-size: 10px; fill: #1f2937; }}
.title {{ font-size: 16px; font-weight: bold; }}
.sub {{ font-size: 11px; fill: #4b5563; }}
.offset {{ font-size: 11px; font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; text-anchor: end; }}
.small {{ fill: #6b7280; text-anchor: end; }}
.legend {{ font-size: 11px; }}
.name {{ font-size: 9px; fill: #374151; }}
.note {{ fill: #6b7280; }}
</style>
<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="6" height="6" fill="#f8fafc"/><rect width="1.5" height="6" fill="#cbd5e1"/></pattern></defs>
<rect width="100%" height="100%" fill="#ffffff"/>
"##,
            xml(title)
        );
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let _ = writeln!(self.0, r#"<text class="{class}" x="{}" y="{}">{}</text>"#, px(x), px(y), xml(text));
    }

    fn label(&mut self, x: f64, y: f64, ink: &str, text: &str) {
        let _ = writeln!(self.0, r#"<text x="{}" y="{}" style="fill:{ink}">{}</text>"#, px(x), px(y), xml(text));
    }

    fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str, tip: Option<&str>) {
        let (x, y, width, height) = (px(x), px(y), px(width), px(height));
        let _ = write!(self.0, r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}""#);
        let _ = match tip {
            Some(tip) => {
                writeln!(self.0, r##" stroke="#ffffff" stroke-width="0.7"><title>{}</title></rect>"##, xml(tip))
            }
            None => writeln!(self.0, "/>"),
        };
    }

    fn legend_entry(&mut self, x: f64, y: f64, &(paint, bytes): &(Paint, u64), total: u64) {
        self.rect(x, y, 14.0, 12.0, paint.colour().unwrap_or("url(#hatch)"), None);
        let text = format!("{}  {}  {}", paint.name(), human(bytes), percent(bytes, total));
        self.text(x + 20.0, y + 10.0, "legend", &text);
    }

    fn file(&mut self, x: f64, y: f64, width: f64, name: &str) {
        let (left, right) = (px(x), px(width));
        let _ = writeln!(self.0, r##"<rect x="{left}" y="{}" width="{right}" height="2" fill="#475569"/>"##, px(y + 10.0));
        if !name.is_empty() {
            self.text(x + 1.0, y + 7.5, "name", name);
        }
    }

    fn ticks(&mut self, left: f64, y: f64, width: f64) {
        let step = f64::from(WIDTH) / 8.0;
        let mut path = String::new();
        for tick in 0..=8 {
            let x = f64::from(tick) * step;
            if x <= width {
                let _ = write!(path, "M{} {}v4", px(left + x), px(y));
            }
        }
        let _ = writeln!(self.0, r##"<path d="{path}" stroke="#94a3b8" stroke-width="1"/>"##);
    }

    /// Shared columns: each a stack of its shares over hatched ground. Equal neighbours are drawn as one.
    fn columns(&mut self, columns: &[Column], scale: Scale, left: f64, lane: f64, end: u64) {
        let mut paths: BTreeMap<Option<Paint>, String> = BTreeMap::new();
        let mut run: Option<(u32, u32, Vec<(Paint, f64)>)> = None;
        let mut draw = |(from, until, stack): (u32, u32, Vec<(Paint, f64)>)| {
            let (x, width) = (left + f64::from(from * COLUMN), f64::from((until - from) * COLUMN));
            let mut add = |paint, y: f64, height: f64| {
                let path = paths.entry(paint).or_default();
                let _ = write!(path, "M{} {}h{}v{}h-{}z", px(x), px(y), px(width), px(height), px(width));
            };
            add(None, lane, f64::from(LANE));
            let mut bottom = lane + f64::from(LANE);
            for (paint, height) in stack {
                bottom -= height;
                add(Some(paint), bottom, height);
            }
        };
        for column in columns {
            let stack = stack(column, scale.bytes_per_column());
            match &mut run {
                Some((_, until, last)) if *until == column.number && *last == stack => *until += 1,
                run => {
                    if let Some(done) = run.replace((column.number, column.number + 1, stack)) {
                        draw(done);
                    }
                }
            }
        }
        if let Some(done) = run {
            draw(done);
        }
        debug_assert!(end > 0 || columns.is_empty());
        for (paint, path) in paths {
            let fill = paint.map_or(Some("url(#hatch)"), Paint::colour).unwrap_or("url(#hatch)");
            let _ = writeln!(self.0, r#"<path d="{path}" fill="{fill}"/>"#);
        }
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

/// A coordinate with at most two digits behind the point.
fn px(value: f64) -> impl Display {
    (value * 100.0).round() / 100.0
}

/// Pixels that text takes, estimated: characters outside ASCII count as wide.
fn text_width(text: &str, per_char: f64) -> f64 {
    text.chars().map(|c| if c.is_ascii() { per_char } else { 1.7 * per_char }).sum()
}

/// The text, cut at the end with an ellipsis when it is wider than `room`.
fn fit(text: &str, room: f64, per_char: f64) -> String {
    if text_width(text, per_char) <= room {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut width = 1.7 * per_char;
    for c in text.chars() {
        width += text_width(c.encode_utf8(&mut [0; 4]), per_char);
        if width > room {
            break;
        }
        kept.push(c);
    }
    if kept.is_empty() { kept } else { kept + "…" }
}

/// Like [`fit`], but cut at the front: names of tensors differ at their ends.
fn fit_tail(text: &str, room: f64, per_char: f64) -> String {
    let reversed: String = text.chars().rev().collect();
    fit(&reversed, room, per_char).chars().rev().collect()
}

fn fit_or_nothing(text: &str, room: f64, per_char: f64) -> String {
    if text_width(text, per_char) <= room { text.to_owned() } else { String::new() }
}

/// Text for an XML document: markup is escaped, characters that XML forbids are replaced.
fn xml(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' => safe.push('\n'),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(xml("<a b=\"c\">&'\u{1}\u{ffff}"), "&lt;a b=&quot;c&quot;&gt;&amp;&#39;\u{fffd}\u{fffd}");
    }

    #[test]
    fn text_is_cut_to_its_room() {
        assert_eq!(fit("short", 100.0, 6.0), "short");
        assert_eq!(fit("abcdefghij", 40.0, 6.0), "abcd…");
        assert_eq!(fit_tail("abcdefghij", 40.0, 6.0), "…ghij");
        assert_eq!(fit("abcdefghij", 5.0, 6.0), "");
    }

    #[test]
    fn columns_never_overflow_the_lane() {
        let share = |kind| (Paint::Kind(kind), 1);
        let shares = vec![share(Kind::Superblock), share(Kind::InodeTable), (Paint::Kind(Kind::Files), 998)];
        let stack = stack(&Column { number: 0, shares, begins: 0 }, 1000);
        assert_eq!(stack.iter().map(|(_, height)| height).sum::<f64>(), f64::from(LANE));
        assert!(stack.iter().all(|(_, height)| *height > 0.0));
        assert_eq!(stack[0].1, LEAST);
    }
}
