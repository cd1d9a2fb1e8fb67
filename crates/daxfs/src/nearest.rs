//! "Did you mean": names that are like one that is not there.
//!
//! The cost is bounded whatever the image holds: so many names are looked at, and no longer ones.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use crate::snapshot::components;
use crate::text::Escaped;
use crate::{Entry, FileType, Image};

/// Most names that are compared.
pub(crate) const MOST: usize = 4096;
/// Longest name that is compared, in characters.
const LONGEST: usize = 200;
/// Most entries of an image that are looked at for a name in another directory.
const FARTHEST: usize = 1 << 16;
/// Most names that are proposed.
const PROPOSED: usize = 3;

/// Those of `names` that are like `wanted`, the nearest first, at most three.
pub(crate) fn nearest(wanted: &str, names: impl Iterator<Item = String>) -> Vec<String> {
    let length = wanted.chars().count();
    if length == 0 || length > LONGEST {
        return Vec::new();
    }
    // Of a longer name more characters may be wrong.
    let bound = (length / 4).clamp(1, 8);
    let mut found: Vec<(usize, String)> = Vec::new();
    for name in names.take(MOST).filter(|name| name != wanted) {
        let other = name.chars().count();
        if other > LONGEST {
            continue;
        }
        // A prefix or a suffix that was left out or added: `model.`, `.weight`.
        let part = length >= 4 && other >= 4 && (name.contains(wanted) || wanted.contains(name.as_str()));
        let distance = if part {
            1
        } else if length.abs_diff(other) > bound {
            continue;
        } else {
            strsim::osa_distance(&wanted.to_lowercase(), &name.to_lowercase())
        };
        if distance <= bound {
            found.push((distance, name));
        }
    }
    found.sort();
    found.truncate(PROPOSED);
    found.into_iter().map(|(_, name)| name).collect()
}

/// Paths that are like one that is not in the image, escaped: in the directory where the path ends to be right, then
/// those that end in the same name elsewhere.
pub(crate) fn nearest_paths(image: &Image, path: &[u8]) -> Vec<String> {
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

    fn of(wanted: &str, names: &[&str]) -> Vec<String> {
        nearest(wanted, names.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn likely_mistakes_are_seen_through() {
        let names = ["model.embed.weight", "model.norm.weight", "lm_head.weight", "x"];
        assert_eq!(of("embed.weight", &names), ["model.embed.weight"]);
        assert_eq!(of("model.norn.weight", &names), ["model.norm.weight"]);
        assert_eq!(of("LM_HEAD.WEIGHT", &names), ["lm_head.weight"]);
        assert_eq!(of("y", &names), ["x"]);
        assert!(of("quite.another.thing", &names).is_empty());
        assert!(of("", &names).is_empty() && of(&"w".repeat(300), &names).is_empty());
        let many: Vec<_> = (0..100_000).map(|n| format!("layer.{n}.weight")).collect();
        assert_eq!(nearest("layer.7.weigth", many.into_iter()).len(), PROPOSED);
    }

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
