//! `daxfs sources`: every kind is listed, and what is missing has a reason.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

fn daxfs(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_daxfs")).args(args).output().unwrap()
}

#[test]
fn every_kind_is_listed_with_what_is_missing() {
    let output = daxfs(&["sources", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let listing: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let sources = listing["sources"].as_array().unwrap();
    let kinds: BTreeSet<_> = sources.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    // A file is where its path leads, so this machine's are not listed.
    let memory = dmabuf::kinds().map(|facts| facts.name).filter(|name| *name != "file");
    assert_eq!(kinds, memory.chain(["mounted", "drm", "gpu", "holder"]).collect());
    for line in sources {
        let kind = line["kind"].as_str().unwrap();
        let note = line["note"].as_str().unwrap();
        assert!(
            line["available"].as_bool().unwrap() || !note.is_empty(),
            "{kind} is missing without a reason"
        );
        if kind == "memfd" {
            assert_eq!((line["available"].as_bool(), line["name"].as_str()), (Some(true), Some("memfd")));
        }
    }
    let find = |kind: &str| sources.iter().find(|line| line["kind"] == kind).unwrap();
    if !Path::new("/dev/udmabuf").exists() {
        assert!(find("dma-buf")["note"].as_str().unwrap().contains("modprobe udmabuf"));
    }
    if !Path::new("/dev/mem").exists() {
        assert!(find("physical range")["note"].as_str().unwrap().contains("CONFIG_DEVMEM"));
    }
    for line in sources.iter().filter(|line| line["kind"] == "PCI memory" && line["available"] == true) {
        let name = Path::new(line["name"].as_str().unwrap());
        assert!(name.exists() && line["size"].as_u64().unwrap() >= 1 << 20, "{line}");
    }
}

#[test]
fn the_table_has_a_head_and_takes_no_flags_of_images() {
    let output = daxfs(&["sources"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("KIND ") && text.lines().count() > 10, "{text}");
    assert_eq!(daxfs(&["sources", "--strict"]).status.code(), Some(2));
}

#[test]
fn sources_that_cannot_be_opened_say_why() {
    for (source, words) in [
        ("phys:0x8000000", "phys:ADDRESS+LENGTH"),
        ("/dev/dax0.0@1", "multiple of 4096"),
        ("/dev/null", "character device"),
        ("/", "it is a directory"),
        ("/sys/kernel/mm/transparent_hugepage/enabled", "sysfs"),
        ("/sys/bus/pci/devices/nowhere", "No such file"),
        ("/dev/dax99.99@2M", "No such file"),
    ] {
        let output = daxfs(&["ls", source]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{source}: {text}");
        assert!(text.contains(words) && text.lines().count() == 1, "{source}: {text}");
    }
}
