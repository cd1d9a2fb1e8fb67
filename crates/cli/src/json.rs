//! What entries look like in JSON, the same in every verb.

use crate::text::{hex, kind_name};
use daxfs::{Entry, FileType};
use serde::Serialize;
use std::io::Write;

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
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_appear_only_when_text_is_not_enough() {
        let text = |path: &[u8]| serde_json::to_string(&PathJson::new(path)).unwrap();
        assert_eq!(text("/é\n".as_bytes()), r#"{"path":"/é\n"}"#);
        assert_eq!(text(b"/a\xff"), "{\"path\":\"/a\u{fffd}\",\"path_hex\":\"2f61ff\"}");
    }
}
