//! Memory that is there already, and sealed memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{noise, open_strict, varied_tree, write};
use mkimage::{Error, HugePages, Memory, Packer, Plan};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

fn plan(source: &Path, replace: bool) -> Plan {
    Packer::new().input(source).replace(replace).verify(true).plan().unwrap()
}

#[test]
fn a_region_of_fixed_length_is_filled_whole() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in");
    varied_tree(&source);
    let file = dir.path().join("image");
    let total = plan(&source, false).write_file(&file).unwrap().image_bytes;

    let region = dir.path().join("region");
    fs::write(&region, vec![0xff; usize::try_from(total).unwrap() + 12345]).unwrap();
    let memory = Memory::Device(region.clone().into());
    let (_, summary) = plan(&source, false).write_memory(&memory).unwrap();
    assert_eq!(summary.target, region.display().to_string());
    let bytes = fs::read(&region).unwrap();
    let (image, rest) = bytes.split_at(usize::try_from(total).unwrap());
    assert!(image == fs::read(&file).unwrap(), "gaps are zero, whatever was there");
    assert!(rest.iter().all(|&byte| byte == 0xff), "nothing is written behind the image");
    open_strict(&region);

    let error = plan(&source, false).write_memory(&memory).unwrap_err();
    assert!(matches!(error, Error::HoldsImage { .. }), "{error}");
    open_strict(&region);
    plan(&source, true).write_memory(&memory).unwrap();

    // A failure leaves no image: the old one was given up, the new one is not complete.
    let failing = plan(&source, true);
    write(&source, "large/a.bin", &noise(9, 5 << 20));
    assert!(matches!(failing.write_memory(&memory), Err(Error::Changed { .. })));
    assert!(daxfs::Image::open(&region).is_err());
}

#[test]
fn what_does_not_fit_or_is_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in");
    write(&source, "a", b"a");
    let small = dir.path().join("small");
    fs::write(&small, [7; 100]).unwrap();
    let error = plan(&source, false).write_memory(&Memory::Device(small.clone().into())).unwrap_err();
    assert!(matches!(error, Error::TooSmall { have: 100, .. }), "{error}");
    assert_eq!(fs::read(&small).unwrap(), [7; 100]);
    for path in ["/dev/null", "/nonexistent/device"] {
        let error =
            plan(&source, false).write_memory(&Memory::Device(PathBuf::from(path).into())).unwrap_err();
        assert!(error.to_string().contains(path), "{error}");
    }
    let error = plan(&source, false).write_memory(&Memory::Heap("no-such-heap".into())).unwrap_err();
    assert!(matches!(error, Error::Memory(_)), "{error}");
}

#[test]
fn a_memfd_is_final() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a", &noise(1, 5 << 20));
    for pages in [HugePages::No, HugePages::Auto, HugePages::Thp] {
        let (fd, summary) = plan(dir.path(), false).write_memory(&Memory::Memfd(pages)).unwrap();
        let seals = dmabuf::seals(fd.as_fd()).unwrap().unwrap();
        assert!(seals.contains(dmabuf::Seals::IMMUTABLE | dmabuf::Seals::SEAL), "{seals:?}");
        assert!(nix::sys::uio::pwrite(&fd, b"x", 0).is_err());
        let huge = summary.pages.unwrap().huge_bytes;
        assert!(pages != HugePages::No || huge == 0);
        assert!(pages != HugePages::Thp || huge > 0 || !summary.warnings.is_empty(), "{summary:?}");
    }
}

#[test]
fn a_node_is_for_new_memory_that_can_be_placed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "in/a", b"a");
    let out = dir.path().join("out");
    fs::write(&out, [7; 8192]).unwrap();
    let plan = || Packer::new().input(dir.path().join("in")).numa(Some(0)).plan().unwrap();
    let errors = [
        plan().write_file(&out).unwrap_err(),
        plan().write_memory(&Memory::Device(out.clone().into())).unwrap_err(),
        plan().write_memory(&Memory::Heap("linux,cma".into())).unwrap_err(),
    ];
    for (error, why) in errors.iter().zip(["not for files", "lies where it is", "linux,cma has a place"]) {
        assert!(matches!(error, Error::Setting { option: "--numa", .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    assert_eq!(fs::read(&out).unwrap(), [7; 8192]);
}

#[test]
fn pages_that_a_file_cannot_have_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "in/a", b"a");
    let out = dir.path().join("image");
    let packer = Packer::new().input(dir.path().join("in")).huge_pages(HugePages::Hugetlb2M);
    let error = packer.plan().unwrap().write_file(&out).unwrap_err();
    assert!(matches!(error, Error::Setting { option: "--hugepages", .. }), "{error}");
    assert!(!out.exists());
}

#[test]
fn a_region_that_is_its_own_backing_file() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in");
    write(&source, "a", &noise(3, 100_000));
    let region = dir.path().join("region");
    fs::write(&region, vec![7; 1 << 20]).unwrap();
    let hard = dir.path().join("hard");
    fs::hard_link(&region, &hard).unwrap();
    for split in [region.clone(), dir.path().join("in/../region"), hard] {
        let plan = Packer::new().input(&source).split(Some(split)).plan().unwrap();
        let error = plan.write_memory(&Memory::Device(region.clone().into())).unwrap_err();
        assert!(matches!(error, Error::Output { .. }), "{error}");
        assert!(error.to_string().contains("name another file for --split"), "{error}");
        assert_eq!(fs::read(&region).unwrap(), vec![7; 1 << 20]);
    }
    let plan = Packer::new().input(&source).split(Some(dir.path().join("backing"))).plan().unwrap();
    plan.write_memory(&Memory::Device(region.into())).unwrap();
}

/// A tmpfs has no fs-verity: the error names the file that was asked for, and what was there stays.
#[test]
fn a_file_that_cannot_have_fs_verity_is_not_made() {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let (source, image) = (memory.path().join("in"), memory.path().join("image"));
    write(&source, "file", b"contents");
    fs::write(&image, b"older").unwrap();
    let plan = Packer::new().input(&source).fsverity(true).plan().unwrap();
    let error = plan.write_file(&image).unwrap_err();
    assert!(matches!(&error, Error::Memory(dmabuf::Error::Refused { .. })), "{error:?}");
    assert!(error.to_string().contains(image.to_str().unwrap()), "{error}");
    assert_eq!(fs::read(&image).unwrap(), b"older");
    assert_eq!(fs::read_dir(memory.path()).unwrap().count(), 2, "nothing else is left");
}
