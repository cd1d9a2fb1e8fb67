//! SVG text under construction: shapes and texts that can hold any name.

use std::fmt::{Display, Write};

/// A picture under construction. Every text goes through [`xml`].
#[derive(Debug, Default)]
pub struct Svg(String);

// Writing to a String cannot fail, so the results of `write!` are dropped below.
impl Svg {
    /// Begins a picture: size in pixels, style, white ground.
    pub fn open(&mut self, width: u32, height: u32, title: &str) {
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

    /// Text of a class of the style sheet.
    pub fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let _ = writeln!(self.0, r#"<text class="{class}" x="{}" y="{}">{}</text>"#, px(x), px(y), xml(text));
    }

    /// Text in a colour.
    pub fn label(&mut self, x: f64, y: f64, ink: &str, text: &str) {
        let _ =
            writeln!(self.0, r#"<text x="{}" y="{}" style="fill:{ink}">{}</text>"#, px(x), px(y), xml(text));
    }

    /// A rectangle; `tip` shows when the mouse rests on it.
    pub fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str, tip: Option<&str>) {
        let (x, y, width, height) = (px(x), px(y), px(width), px(height));
        let _ = write!(self.0, r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}""#);
        let _ = match tip {
            Some(tip) => {
                writeln!(
                    self.0,
                    r##" stroke="#ffffff" stroke-width="0.7"><title>{}</title></rect>"##,
                    xml(tip)
                )
            }
            None => writeln!(self.0, "/>"),
        };
    }

    /// Filled areas.
    pub fn path(&mut self, path: &Path, fill: &str) {
        let _ = writeln!(self.0, r#"<path d="{}" fill="{fill}"/>"#, path.0);
    }

    /// Ends the picture.
    pub fn close(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

/// Many rectangles of one colour.
#[derive(Debug, Default)]
pub struct Path(String);

impl Path {
    /// Adds a rectangle.
    pub fn rect(&mut self, x: f64, y: f64, width: f64, height: f64) {
        let _ = write!(self.0, "M{} {}h{}v{}h-{}z", px(x), px(y), px(width), px(height), px(width));
    }
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
pub fn fit(text: &str, room: f64, per_char: f64) -> String {
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
pub fn fit_tail(text: &str, room: f64, per_char: f64) -> String {
    let reversed: String = text.chars().rev().collect();
    fit(&reversed, room, per_char).chars().rev().collect()
}

/// The text when there is room for all of it.
pub fn fit_or_nothing(text: &str, room: f64, per_char: f64) -> String {
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
}
