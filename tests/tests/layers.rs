//! The layers of DESIGN.md: what each crate may stand on, and which modules may hold `unsafe` code.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use daxfs_tests::golden::project_root;
use serde_json::Value;

/// Each crate of ours, and those of ours that it may depend on; what it does not name it may not use.
const LAYERS: [(&str, &[&str]); 11] = [
    ("dmabuf", &[]),
    ("daxfs-protocol", &["dmabuf"]),
    ("daxfs", &["daxfs-protocol", "dmabuf"]),
    ("daxfs-device", &["daxfs", "daxfs-protocol", "dmabuf"]),
    // A process of its own: nothing of ours may need its libraries.
    ("daxfs-remote", &["daxfs", "dmabuf"]),
    // Of images of containers alone: knows nothing of ours.
    ("daxfs-oci", &[]),
    ("mkimage", &["daxfs", "daxfs-oci", "daxfs-protocol", "dmabuf"]),
    // Never the devices: a holder keeps descriptors of their memory, and no driver.
    ("daxfs-holder", &["daxfs", "daxfs-protocol", "dmabuf", "mkimage"]),
    ("daxfs-fuse", &["daxfs"]),
    (
        "daxfs-cli",
        &["daxfs", "daxfs-device", "daxfs-fuse", "daxfs-holder", "daxfs-protocol", "dmabuf", "mkimage"],
    ),
    (
        "daxfs-python",
        &["daxfs", "daxfs-cli", "daxfs-device", "daxfs-holder", "daxfs-protocol", "dmabuf", "mkimage"],
    ),
];

fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--locked", "--offline"])
        .current_dir(project_root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::from_value(metadata["packages"].take()).unwrap()
}

#[test]
fn crates_stand_on_lower_layers_only() {
    let layers: BTreeMap<_, _> = LAYERS.into_iter().collect();
    let mut seen = BTreeSet::new();
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let Some(allowed) = layers.get(name) else { continue };
        seen.insert(name.to_owned());
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            // Tests may use what lies above.
            if dependency["kind"] != "dev" && layers.contains_key(on) {
                assert!(allowed.contains(&on), "{name} must not depend on {on}");
            }
        }
    }
    assert_eq!(seen.len(), LAYERS.len(), "{seen:?}");
}

/// A program sees the same types of `daxfs`, whatever else is built with it: its one feature takes a library in, and
/// without it keys of that kind are refused.
#[test]
fn the_reader_has_no_features_that_change_it() {
    let daxfs = packages().into_iter().find(|package| package["name"] == "daxfs").unwrap();
    let features: Vec<_> = daxfs["features"].as_object().unwrap().keys().collect();
    assert_eq!(features, ["p256"]);
    let source = project_root().join("crates/daxfs/src");
    visit(&source, &mut |path, text| {
        let gates = text.lines().filter(|line| line.contains("cfg(") && line.contains("feature"));
        let is_key = path.starts_with(source.join("signature"));
        assert!(is_key || gates.count() == 0, "{}: a feature decides what there is", path.display());
    });
}

/// Modules of the reader that may allow `unsafe` code, each with its proofs; all others forbid it.
const UNSAFE: [&str; 3] = ["dlpack.rs", "dlpack_tests.rs", "region/"];

#[test]
fn unsafe_code_of_the_reader_is_in_few_modules() {
    let source = project_root().join("crates/daxfs/src");
    let mut places = Vec::new();
    visit(&source, &mut |path, text| {
        let name = path.strip_prefix(&source).unwrap().to_str().unwrap().to_owned();
        let is_unsafe = text.lines().any(|line| {
            let code = line.trim_start();
            let forms = ["{", "fn", "impl"].map(|form| format!("unsafe {form}"));
            !code.starts_with("//") && forms.iter().any(|form| code.contains(form))
        });
        if is_unsafe && !UNSAFE.iter().any(|allowed| name.starts_with(allowed)) {
            places.push(name);
        }
    });
    assert_eq!(places, Vec::<String>::new(), "unsafe code outside of {UNSAFE:?}");
}

/// Crates whose modules import each other one way only. A module is a file or a folder right below `src`.
const WITHOUT_CIRCLES: [&str; 5] = ["dmabuf", "protocol", "daxfs", "device", "cli"];

/// Imports that close a circle and stay: the one type of errors holds those of regions and of tensors as values, and both
/// give errors of that type.
const KEPT: [(&str, &str, &str); 2] = [("daxfs", "error", "region"), ("daxfs", "error", "tensor")];

#[test]
fn modules_import_each_other_one_way() {
    for name in WITHOUT_CIRCLES {
        let source = project_root().join("crates").join(name).join("src");
        let module = |path: &Path| {
            let first = path.strip_prefix(&source).unwrap().components().next().unwrap();
            first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
        };
        let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        visit(&source, &mut |path, text| {
            if !path.to_str().unwrap().ends_with("tests.rs") {
                // Tests use what they need, and stand at the end.
                let code = text.split("#[cfg(test)]").next().unwrap();
                let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
                let used = code.flat_map(|line| line.split("crate::").skip(1)).filter_map(|rest| {
                    let word = rest.split(|c: char| !c.is_ascii_lowercase() && c != '_').next()?;
                    rest[word.len()..].starts_with("::").then(|| word.to_owned())
                });
                imports.entry(module(path)).or_default().extend(used);
            }
        });
        let known: BTreeSet<_> = imports.keys().cloned().collect();
        imports
            .iter_mut()
            .for_each(|(module, used)| used.retain(|other| other != module && known.contains(other)));
        for (_, importer, imported) in KEPT.iter().filter(|(of, ..)| *of == name) {
            let removed = imports.get_mut(*importer).unwrap().remove(*imported);
            assert!(removed, "{name}: {importer} no longer imports {imported}: take it out of the list");
        }
        // What imports nothing, or only what was taken away before, is in no circle.
        while let Some(free) =
            imports.iter().find(|(_, used)| used.is_empty()).map(|(module, _)| module.clone())
        {
            imports.remove(&free);
            imports.values_mut().for_each(|used| used.retain(|other| *other != free));
        }
        assert!(imports.is_empty(), "{name}: circles of imports among {imports:?}");
    }
}

/// Modules of the reader, and modules that stand on them: to name one of those would close a circle of imports.
const LOW: [(&str, &[&str]); 6] = [
    ("text.rs", &["crate::"]),
    ("nearest.rs", &["crate::error"]),
    ("tensor/header.rs", &["container", "tensor::index", "super::index", "checkpoint", "select", "set"]),
    ("tensor/cache.rs", &["container", "checkpoint", "select", "super::set"]),
    ("tensor/shards.rs", &["container", "checkpoint", "super::index", "select", "super::set"]),
    (
        "tensor/container/",
        &["tensor::index", "super::index", "checkpoint", "shards", "select", "tensor::set"],
    ),
];

#[test]
fn low_modules_of_the_reader_name_none_that_stand_on_them() {
    let source = project_root().join("crates/daxfs/src");
    let mut seen = BTreeSet::new();
    visit(&source, &mut |path, text| {
        let name = path.strip_prefix(&source).unwrap().to_str().unwrap();
        let tests = name.contains("tests");
        for (module, above) in LOW.iter().filter(|(module, _)| name.starts_with(module) && !tests) {
            seen.insert(*module);
            for line in text.lines().filter(|line| line.starts_with("use ")) {
                let named = above.iter().find(|above| line.contains(**above));
                assert_eq!(named, None, "{name}: {line}");
            }
        }
    });
    assert_eq!(seen.len(), LOW.len(), "{seen:?}");
}

fn visit(folder: &Path, each: &mut dyn FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, each);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            each(&path, &fs::read_to_string(&path).unwrap());
        }
    }
}
