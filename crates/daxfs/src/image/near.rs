//! Paths that are like one that is not in the image.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use crate::nearest::{MOST, PROPOSED, nearest};
use crate::snapshot::components;
use crate::text::Escaped;
use crate::{Entry, FileType, Image};

/// Most entries of an image that are looked at for a name in another directory.
const FARTHEST: usize = 1 << 16;

/// Paths that are like one that is not in the image, escaped: in the directory where the path ends to be right, then
/// those that end in the same name elsewhere.
pub(super) fn nearest_paths(image: &Image, path: &[u8]) -> Vec<String> {
    let mut names: Vec<&[u8]> = components(path).collect();
    let Some(last) = names.pop() else { return Vec::new() };
    let mut directory = image.root();
    let mut missing = None;
    for name in names {
        let below = directory.child(name).and_then(|child| match child.file_type() {
            FileType::Symlink => image.entry(child.path()).ok(),
            _ => Some(child),
        });
        match below {
            Some(child) if child.file_type() == FileType::Directory => directory = child,
            _ => {
                missing = Some(name);
                break;
            }
        }
    }
    let text = |entry: &Entry| Escaped(entry.name()).to_string();
    let wanted = missing.unwrap_or(last);
    let siblings = directory.children().take(MOST);
    let base = directory.path();
    let base = Escaped(base.strip_suffix(b"/").unwrap_or(&base)).to_string();
    let mut found: Vec<String> = nearest(&Escaped(wanted).to_string(), siblings.map(|entry| text(&entry)))
        .into_iter()
        .map(|name| format!("{base}/{name}"))
        .collect();
    // What is found here as well is a link that leads nowhere.
    let elsewhere =
        image.walk().take(FARTHEST).filter(|entry| entry.name() == last && entry.followed().is_ok());
    for entry in elsewhere.take(PROPOSED) {
        let path = entry.path();
        let path = Escaped(&path).to_string();
        if found.len() < PROPOSED && path.len() < 4096 && !found.contains(&path) {
            found.push(path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::test_image::TestImage;

    #[test]
    fn paths_are_looked_for_here_and_elsewhere() {
        let image = TestImage::new()
            .file("/config.json", b"{}".as_slice())
            .file("/onnx/model.onnx", b"".as_slice())
            .file("/onnx/int8/special.bin", b"".as_slice())
            .link("/latest", "onnx")
            .open();
        let near = |path: &str| nearest_paths(&image, path.as_bytes());
        assert_eq!(near("/confg.json"), ["/config.json"]);
        assert_eq!(near("onx/model.onnx"), ["/onnx", "/onnx/model.onnx"]);
        assert_eq!(near("latest/modl.onnx"), ["/onnx/model.onnx"]);
        assert_eq!(near("special.bin"), ["/onnx/int8/special.bin"]);
        assert!(near("/").is_empty() && near("zzz").is_empty());
    }
}
