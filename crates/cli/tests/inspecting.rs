//! `inspect`: the report, its JSON, and the picture.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Fixture, golden};
use std::fs;

/// Lines that depend on the place of the image and on its file system.
fn without_place(text: &str) -> String {
    let varies = |line: &&str| !line.starts_with("memory:") && !line.starts_with("pages:");
    text.lines().filter(varies).flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn report_matches_the_golden_text() {
    let fixture = Fixture::new();
    fixture.normalise();
    let text = fixture.run(&["inspect", "IMAGE"]).ok();
    golden("inspect.txt", &without_place(&text));
    let memory = text.lines().find(|line| line.starts_with("memory:")).unwrap();
    assert!(memory.contains("file ") && memory.contains(fixture.image().to_str().unwrap()), "{memory}");
    assert!(text.contains("\npages: "), "{text}");
}

#[test]
fn aligned_tensors_are_seen_as_aligned() {
    let fixture = Fixture::new();
    fixture.pack(|packer| packer.exact(true));
    let exact = fixture.run(&["inspect", "IMAGE", "/model.safetensors"]).ok();
    assert!(exact.contains("not aligned to 256 bytes") && exact.contains("  no "), "{exact}");
    fixture.pack(|packer| packer);
    let aligned = fixture.run(&["inspect", "IMAGE", "latest"]).ok();
    assert!(aligned.contains("all aligned to 256 bytes") && !aligned.contains("  no "), "{aligned}");
    assert!(!aligned.contains("model-00001"), "only what was asked for: {aligned}");
    let stricter = fixture.run(&["inspect", "--align", "2M", "IMAGE"]).ok();
    assert!(stricter.contains("not aligned to 2097152 bytes"), "{stricter}");
}

#[test]
fn json_adds_up() {
    let fixture = Fixture::new();
    let json = fixture.run(&["inspect", "--json", "IMAGE"]).json();
    let size = fs::metadata(fixture.image()).unwrap().len();
    assert_eq!(json["image"]["size"], size);
    assert_eq!(json["image"]["version"], 8);
    assert_eq!(json["image"]["view"], "base");
    assert_eq!(json["memory"]["provenance"], "shared");
    assert_eq!(json["image"]["content_hash"].as_str().unwrap().len(), 64);

    let regions = json["regions"].as_array().unwrap();
    assert_eq!(regions.iter().map(|region| region["bytes"].as_u64().unwrap()).sum::<u64>(), size);
    for name in
        ["superblock", "inode table", "directories", "symlinks", "index", "EROFS view", "files", "padding"]
    {
        assert!(regions.iter().any(|region| region["name"] == name), "{name}");
    }
    let checkpoint = &json["checkpoints"][0];
    assert_eq!(checkpoint["path"], "/sharded/model.safetensors.index.json");
    assert_eq!(
        (&checkpoint["complete"], &checkpoint["tensors"], &checkpoint["shards"]),
        (&true.into(), &2.into(), &2.into())
    );

    // A tensor lies where the report says.
    let files = json["files"].as_array().unwrap();
    let model = files.iter().find(|file| file["path"] == "/model.safetensors").unwrap();
    let tensors = model["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 4);
    let head = tensors.iter().find(|tensor| tensor["name"] == "head.weight").unwrap();
    assert_eq!(
        (&head["dtype"], &head["shape"], &head["bytes"]),
        (&"BF16".into(), &serde_json::json!([10, 30]), &600.into())
    );
    let at = |field: &serde_json::Value| usize::try_from(field.as_u64().unwrap()).unwrap();
    let image = fs::read(fixture.image()).unwrap();
    let expected: Vec<u8> = (0..=255).cycle().take(600).collect();
    assert_eq!(image[at(&head["offset"])..][..600], expected);
    assert_eq!(at(&head["offset"]), at(&model["offset"]) + at(&head["offset_in_file"]));
    // Every regular file once, hard links too.
    assert_eq!(files.iter().filter(|file| file["size"] == 12_000).count(), 1);
}

#[test]
fn a_broken_header_does_not_hide_the_rest() {
    let fixture = Fixture::new();
    fs::write(fixture.tree().join("broken.safetensors"), b"not a header at all").unwrap();
    fixture.pack(|packer| packer.plain(true));
    let run = fixture.run(&["inspect", "IMAGE"]);
    assert!(run.text().contains("/model.safetensors: 4 tensors"), "{run:?}");
    assert!(run.error().starts_with("/broken.safetensors: "));
}

#[test]
fn a_missing_shard_is_named() {
    let fixture = Fixture::new();
    fs::remove_file(fixture.tree().join("sharded/model-00002-of-00002.safetensors")).unwrap();
    fixture.pack(|packer| packer.plain(true));
    let error = fixture.run(&["inspect", "IMAGE"]).error();
    assert!(error.contains("model-00002-of-00002.safetensors") && error.contains("index.json"), "{error}");
}

/// Just enough XML to see that every element ends and nothing stands outside.
fn assert_well_formed(xml: &str) {
    let mut open = Vec::new();
    for part in xml.split('<').skip(1) {
        let (tag, _) = part.split_once('>').expect("every tag ends");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().unwrap());
        }
    }
    assert!(open.is_empty(), "{open:?}");
    let entities = xml.split('&').skip(1).map(|rest| rest.split_once(';').expect("entities end").0);
    for entity in entities {
        assert!(["amp", "lt", "gt", "quot", "#39"].contains(&entity), "{entity}");
    }
}

#[test]
fn the_picture_shows_regions_files_and_tensors() {
    let fixture = Fixture::new();
    fixture.run(&["inspect", "--svg", "DIR/map.svg", "IMAGE"]).ok();
    let svg = fs::read_to_string(fixture.path("map.svg")).unwrap();
    assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
    assert_well_formed(&svg);
    for text in [
        "superblock",
        "inode table",
        "directories",
        "symlinks",
        "index",
        "EROFS view",
        "padding",
        "tensors: F32",
        "/model.safetensors\nembed.weight\nF32 [40, 25]",
        "headers of tensors",
    ] {
        assert!(svg.contains(text), "{text}");
    }
    // The head is drawn where its bytes are. 32 KiB are 1024 pixels, and it lies in one row.
    assert!(svg.contains("One row is 32.0 KiB"), "the scale changed: adapt the numbers below");
    let json = fixture.run(&["inspect", "--json", "IMAGE", "model.safetensors"]).json();
    let offset = json["files"][0]["tensors"][1]["offset"].as_u64().unwrap();
    let offset = offset % (32 << 10);
    assert!(offset + 600 <= 32 << 10);
    let before = svg.split("<title>/model.safetensors\nhead.weight").next().unwrap();
    let rect = &before[before.rfind("<rect ").unwrap()..];
    let number = |field: &str| -> f64 {
        let value = rect.split(&format!(" {field}=\"")).nth(1).unwrap();
        value.split('"').next().unwrap().parse().unwrap()
    };
    assert!((number("x") - (116.0 + offset as f64 / 32.0)).abs() < 0.01, "{rect}");
    assert!((number("width") - 600.0 / 32.0).abs() < 0.01, "{rect}");
}

#[test]
fn names_cannot_inject_markup() {
    let fixture = Fixture::new();
    let name = "<script>alert(1)<|script>&\"'\u{1b}\n";
    fs::write(fixture.tree().join(name), vec![1; 20_000]).unwrap();
    fixture.pack(|packer| packer);
    fixture.run(&["inspect", "--svg", "DIR/map.svg", "IMAGE"]).ok();
    let svg = fs::read_to_string(fixture.path("map.svg")).unwrap();
    assert!(!svg.contains("<script") && svg.contains("&lt;script&gt;"));
    assert_well_formed(&svg);
}

#[test]
fn a_picture_that_cannot_be_written_is_an_error() {
    let fixture = Fixture::new();
    let error = fixture.run(&["inspect", "--svg", "DIR/no/such/map.svg", "IMAGE"]).error();
    assert!(error.contains("map.svg: No such file"), "{error}");
}
