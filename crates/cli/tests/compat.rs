//! `daxfs mount --compat-check`: which kernels mount an image, by what it is, and what would be chosen here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::Fixture;
use mkimage::{Format, Overlay, Packer};
use serde_json::Value;

/// The report of an image that is packed so, and for each way of any machine why it is none.
fn check(fixture: &Fixture) -> (Value, Vec<(String, Option<String>)>) {
    let json = fixture.run(&["mount", "--compat-check", "--json", "IMAGE"]).json();
    let ways = json["ways"].as_array().unwrap().iter().map(|way| {
        let why = way["why_not"].as_str().map(str::to_owned);
        (way["by"].as_str().unwrap().to_owned(), why)
    });
    let ways = ways.collect();
    (json, ways)
}

#[test]
fn every_way_is_listed_with_its_kernels() {
    let fixture = Fixture::new();
    let (json, ways) = check(&fixture);
    let names: Vec<&str> = ways.iter().map(|(by, _)| by.as_str()).collect();
    assert_eq!(names, ["DAXFS", "EROFS", "EROFS", "EROFS", "FUSE"]);
    assert!(ways.iter().all(|(_, why)| why.is_none()), "{ways:?}");
    let kernels = |at: usize| json["ways"][at]["kernels"].as_str().unwrap();
    assert!(kernels(0).contains("the module daxfs, pages of 4096 bytes"), "{json}");
    for (at, version) in [(1, "Linux 6.12"), (2, "Linux 5.4"), (3, "Linux 5.15")] {
        assert!(kernels(at).starts_with(version), "{json}");
    }
    assert_eq!((&json["format"], &json["block_size"]), (&8.into(), &4096.into()));
    assert_eq!((&json["capabilities"], &json["times"]), (&0.into(), &false.into()));
    assert_eq!(json["erofs_bytes"], 4096);
    assert_eq!(json["here"]["page_size"], dmabuf::page_size());
    assert_eq!(json["here"]["ways"].as_array().unwrap().len(), 3);

    let text = fixture.run(&["mount", "--compat-check", "IMAGE"]).ok();
    for part in [
        "image.daxfs: format 8, blocks of 4096 bytes, an EROFS view of 4.0 KiB with the capabilities of 0 files and no times\n",
        "\n  DAXFS  a dma-buf, physical memory  with the module daxfs",
        "\n  EROFS  pmem, virtio-pmem           Linux 5.15",
        "\n  FUSE   anywhere                    every Linux\n",
        "\nHere, on Linux ",
        "\n  the kernel's DAXFS  no: the image lies in neither a dma-buf nor physical memory\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn what_an_image_lacks_is_said_of_each_way() {
    type Variant = fn(Packer) -> Packer;
    let fixture = Fixture::new();
    let overlay = |packer: Packer| packer.overlay(Some(Overlay { size: 1 << 20, buckets: None }));
    let variants: [(Variant, Option<&str>, Option<&str>); 4] = [
        (|packer| packer.erofs(false), None, Some("it has no EROFS view")),
        (overlay, None, Some("it has no EROFS view")),
        (|packer| packer.format(Format::V5).exact(true), Some("it is of format 5, the module takes 8"), None),
        (|packer| packer.mtimes(true), None, None),
    ];
    for (variant, daxfs, erofs) in variants {
        fixture.pack(variant);
        let (json, ways) = check(&fixture);
        let starts = |why: &Option<String>, expected: Option<&str>| match expected {
            None => why.is_none(),
            Some(expected) => why.as_ref().is_some_and(|why| why.starts_with(expected)),
        };
        assert!(starts(&ways[0].1, daxfs), "{ways:?}");
        assert!(ways[1..4].iter().all(|(_, why)| starts(why, erofs)), "{ways:?}");
        assert_eq!(ways[4].1, None);
        assert_eq!(json["erofs_bytes"].is_null(), erofs.is_some());
        if erofs.is_some() {
            assert_eq!(json["here"]["chosen"], "FUSE");
            let text = fixture.run(&["mount", "--compat-check", "IMAGE"]).ok();
            assert!(
                text.contains(", no EROFS view\n") && text.contains("\n  FUSE                chosen\n"),
                "{text}"
            );
        }
    }
    assert_eq!(check(&fixture).0["times"], true);

    // Larger blocks are for kernels with such pages.
    fixture.pack(|packer| packer.block_size(65536));
    let (json, ways) = check(&fixture);
    assert!(ways.iter().all(|(_, why)| why.is_none()), "{ways:?}");
    for at in 0..4 {
        let kernels = json["ways"][at]["kernels"].as_str().unwrap();
        assert!(kernels.contains("65536 bytes") && !kernels.contains("5.4"), "{kernels}");
    }
    if dmabuf::page_size() < 65536 {
        let here = json["here"]["ways"][1]["why_not"].as_str().unwrap();
        assert!(here.contains("blocks have 65536 bytes"), "{here}");
    }

    // A forged view is one for no kernel.
    fixture.pack(|packer| packer);
    let view = fixture.offset_of("/.daxfs/erofs");
    fixture.poke(view + 36, &[0xff]);
    let (json, ways) = check(&fixture);
    assert!(ways[1].1.as_ref().unwrap().contains("at the inode of /"), "{ways:?}");
    assert!(json["here"]["ways"][1]["why_not"].as_str().unwrap().contains("at the inode of /"), "{json}");
    assert_eq!(json["erofs_bytes"], Value::Null);
}

#[test]
fn nothing_is_mounted_and_options_are_those_of_mounting() {
    let fixture = Fixture::new();
    for (line, said) in [
        (&["mount", "IMAGE"][..], "<DIR>"),
        (&["mount", "--json", "IMAGE", "DIR/x"], "cannot be used with"),
        (&["mount", "--compat-check", "IMAGE", "DIR/x"], "cannot be used with"),
    ] {
        let run = fixture.run(line);
        assert!(run.status == 2 && run.stderr.contains(said), "{run:?}");
    }
    let json = fixture.run(&["mount", "--compat-check", "--json", "-o", "uid=3", "IMAGE"]).json();
    assert_eq!(json["here"]["chosen"], "FUSE");
    assert!(json["here"]["ways"][1]["why_not"].as_str().unwrap().contains("the option uid"), "{json}");
    let error = fixture.run(&["mount", "--compat-check", "--as", "erofs", "-o", "uid=3", "IMAGE"]).error();
    assert!(error.contains("the option uid takes a process"), "{error}");
}
