//! What entries look like in JSON, the same in every verb.

use crate::text::{hex, is_unsafe, kind_name};
use daxfs::{Entry, FileType};
use serde::Serialize;
use std::io::{self, Write};

/// A path: `path` as text, and its bytes in `path_hex` when they are not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PathJson {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
}

impl PathJson {
    /// Of the bytes of a path.
    pub fn new(path: &[u8]) -> Self {
        let (path, path_hex) = lossy(path);
        Self { path, path_hex }
    }
}

/// The text, and the hexadecimal digits when the text is not the whole truth.
fn lossy(bytes: &[u8]) -> (String, Option<String>) {
    match str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (String::from_utf8_lossy(bytes).into_owned(), Some(hex(bytes))),
    }
}

/// An entry with its metadata.
#[derive(Debug, Serialize)]
pub struct EntryJson {
    #[serde(flatten)]
    path: PathJson,
    #[serde(rename = "type")]
    kind: &'static str,
    /// Permission bits in octal, as in `chmod`.
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    nlink: u32,
    ino: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_hex: Option<String>,
}

impl EntryJson {
    /// Describes `entry`.
    ///
    /// # Errors
    /// When a symbolic link's target cannot be read.
    pub fn new(entry: &Entry) -> daxfs::Result<Self> {
        let metadata = entry.metadata();
        let (target, target_hex) = match entry.file_type() {
            FileType::Symlink => {
                let (text, hex) = lossy(entry.read_link()?);
                (Some(text), hex)
            }
            _ => (None, None),
        };
        Ok(Self {
            path: PathJson::new(&entry.path()),
            kind: kind_name(metadata.mode),
            mode: format!("{:04o}", metadata.mode & 0o7777),
            uid: metadata.uid,
            gid: metadata.gid,
            size: metadata.size,
            nlink: metadata.nlink,
            ino: metadata.ino,
            target,
            target_hex,
        })
    }
}

/// Writes `value` as indented JSON and a newline.
///
/// # Errors
/// What `out` reports.
pub fn write(out: &mut impl Write, value: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(Harmless(&mut *out), value)?;
    writeln!(out)?;
    Ok(())
}

/// Passes JSON on with the characters escaped that could harm a terminal: what text output escapes and JSON does not,
/// C1 controls and those that reorder or hide text. They can stand in strings only.
struct Harmless<W>(W);

impl<W: Write> Write for Harmless<W> {
    /// serde_json writes whole pieces of text.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let is_harmful = |c: char| c >= '\u{7f}' && is_unsafe(c);
        match str::from_utf8(bytes) {
            Ok(text) if text.contains(is_harmful) => {
                for c in text.chars() {
                    if is_harmful(c) {
                        // None of them is beyond the first plane.
                        write!(self.0, "\\u{:04x}", u32::from(c))?;
                    } else {
                        self.0.write_all(c.encode_utf8(&mut [0; 4]).as_bytes())?;
                    }
                }
            }
            _ => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_appear_only_when_text_is_not_enough() {
        let text = |path: &[u8]| serde_json::to_string(&PathJson::new(path)).unwrap();
        assert_eq!(text("/é\n".as_bytes()), r#"{"path":"/é\n"}"#);
        let mut out = Vec::new();
        write(&mut out, &["\u{9b}31m\u{202e}é\u{7f}\u{2028}\u{1f980}", "\n"]).unwrap();
        let written = String::from_utf8(out).unwrap();
        assert_eq!(written, "[\n  \"\\u009b31m\\u202eé\\u007f\\u2028\u{1f980}\",\n  \"\\n\"\n]\n");
        let back: Vec<String> = serde_json::from_str(&written).unwrap();
        assert_eq!(back[0], "\u{9b}31m\u{202e}é\u{7f}\u{2028}\u{1f980}");
        assert_eq!(text(b"/a\xff"), "{\"path\":\"/a\u{fffd}\",\"path_hex\":\"2f61ff\"}");
    }
}
