//! The EROFS view: the same for the same input, right by the judgement of EROFS's own tool, and compared with the tree
//! bit by bit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{erofs_tree as tree, noise, write};
use daxfs::format::erofs as raw;
use daxfs::{Error as ReadError, Image, OpenOptions};
use mkimage::{Error, Format, Memory, Overlay, Packer};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

fn packer(source: &Path) -> Packer {
    Packer::new().input(source).links(mkimage::Links::Keep).erofs(true)
}

fn pack(packer: Packer, path: &Path) -> Image {
    packer.verify(true).plan().unwrap().write_file(path).unwrap();
    Image::open(path).unwrap()
}

/// Has EROFS's own tool look at an image, where there is one: it is among what `make setup` installs.
fn fsck(path: &Path) {
    match Command::new("fsck.erofs").arg("--extract").arg(path).output() {
        Err(_) => {
            let required = std::env::var_os("DAXFS_REQUIRE_ROOT").is_some();
            assert!(!required, "fsck.erofs is not installed (erofs-utils)");
        }
        Ok(done) => assert!(done.status.success(), "{done:?}"),
    }
}

/// Settings of a packer.
type Variant = fn(Packer) -> Packer;

#[test]
fn a_view_is_one_of_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    let source = tree(&dir.path().join("in"));
    let variants: [(&str, Variant); 7] = [
        ("default", |packer| packer),
        ("dedupe", |packer| packer.dedupe(true)),
        ("times", |packer| packer.mtimes(true)),
        ("dedupe and times", |packer| packer.dedupe(true).mtimes(true)),
        ("no hashes", |packer| packer.hash(false)),
        ("blocks of 16 KiB", |packer| packer.block_size(16384).dedupe(true)),
        ("format 5", |packer| packer.format(Format::V5)),
    ];
    for (name, variant) in variants {
        let path = dir.path().join("image");
        let image = pack(variant(packer(&source)), &path);
        assert!(image.check_erofs().unwrap() && image.has_erofs().unwrap(), "{name}");
        if image.superblock().block_size == 4096 {
            fsck(&path);
        }
        // Bit by bit the same again.
        let again = dir.path().join("again");
        pack(variant(packer(&source)), &again);
        assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap(), "{name}");
        let expected = image.content_hash();
        if let Some(expected) = expected {
            OpenOptions::new().expect(expected).open(&path).unwrap();
            // The content is that of an image without a view, too.
            let other = pack(variant(packer(&source)).mtimes(false).erofs(false), &again);
            assert_eq!(other.content_hash(), image.content_hash(), "{name}");
            assert!(!other.check_erofs().unwrap(), "{name}");
        }
    }
}

#[test]
fn images_have_a_view_by_default() {
    let dir = tempfile::tempdir().unwrap();
    let source = tree(&dir.path().join("in"));
    let path = dir.path().join("image");
    let summary = Packer::new().input(&source).plan().unwrap().write_file(&path).unwrap();
    let image = Image::open(&path).unwrap();
    assert!(image.check_erofs().unwrap());
    assert_eq!((summary.erofs_bytes, &summary.no_erofs), (Some(image.file(raw::PATH).unwrap().len()), &None));
    assert!(summary.to_string().contains(", an EROFS view of "), "{summary}");
    let without = Packer::new().input(&source).erofs(false).plan().unwrap().write_file(&path).unwrap();
    assert_eq!((without.erofs_bytes, without.content_hash), (None, summary.content_hash));
    // Memory gets one, too, with and without hashes.
    for hash in [false, true] {
        let plan = Packer::new().input(&source).hash(hash).plan().unwrap();
        let (region, summary) = plan.write_region(&Memory::Memfd(dmabuf::HugePages::No)).unwrap();
        assert!(summary.erofs_bytes.is_some() && Image::from_region(region).unwrap().check_erofs().unwrap());
    }
}

/// The largest image that EROFS can count the blocks of, and one above; nothing of it is written.
#[test]
fn an_image_beyond_the_blocks_of_erofs_is_planned_without_a_view() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = |each: u64| {
        for name in ["one", "two"] {
            fs::File::create(dir.path().join(name)).unwrap().set_len(each).unwrap();
        }
        Packer::new().input(dir.path().join("one")).input(dir.path().join("two")).hash(false)
    };
    assert!(sizes((7 << 40) - 1).erofs(true).plan().is_ok());
    let large = || sizes((8 << 40) - 4096);
    let with = |on| large().erofs(on).plan();
    assert!(matches!(with(true), Err(Error::Setting { option: "--erofs", .. })));
    assert_eq!(large().plan().unwrap().total_size(), with(false).unwrap().total_size());
    assert!(large().mtimes(true).plan().is_err());
}

#[test]
fn a_small_file_takes_few_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..2000 {
        write(dir.path(), format!("in/{}/a name of 27 bytes 0 {number:04}", number % 4), b"");
    }
    let image = pack(packer(&dir.path().join("in")), &dir.path().join("image"));
    let view = image.file(raw::PATH).unwrap().len();
    assert!(view < 80 * 2000, "{view}");
}

/// Every byte of the view and of its superblock counts, and half a view is none.
#[test]
fn every_bit_is_compared() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in");
    for number in 0..40 {
        write(&source, format!("some directory/a file {number}"), b"x");
    }
    symlink("file", source.join("link")).unwrap();
    fs::set_permissions(write(&source, "one", &noise(1, 5000)), fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(write(&source, "two", &noise(1, 5000)), fs::Permissions::from_mode(0o600)).unwrap();
    let path = dir.path().join("image");
    let image = pack(packer(&source).dedupe(true).mtimes(true), &path);
    let bytes = fs::read(&path).unwrap();
    let extent = image.file(raw::PATH).unwrap().extent().unwrap();
    let expected = image.content_hash().unwrap();
    let view = usize::try_from(extent.offset).unwrap()..usize::try_from(extent.offset + extent.len).unwrap();
    for (at, mask) in
        (raw::SUPERBLOCK_OFFSET..raw::SUPERBLOCK_OFFSET + 128).chain(view).zip([1, 0x80].iter().cycle())
    {
        let mut forged = bytes.clone();
        forged[at] ^= mask;
        let error = Image::from_bytes(forged.clone()).unwrap().check_erofs().unwrap_err();
        let is_named = matches!(error, ReadError::ErofsView { .. })
            || matches!(error, ReadError::UnknownFlags { .. } | ReadError::UnsupportedVersion { .. });
        assert!(is_named && error.is_format(), "{at:#x}: {error}");
        if at % 64 == 0 {
            let opened = OpenOptions::new().expect(expected).open_region(daxfs::Region::from_bytes(forged));
            assert!(opened.is_err(), "{at:#x}");
        }
    }
}

#[test]
fn what_is_wrong_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in");
    write(&source, "file", b"x");
    let path = dir.path().join("image");
    let image = pack(packer(&source), &path);
    let bytes = fs::read(&path).unwrap();
    let view = usize::try_from(image.file(raw::PATH).unwrap().extent().unwrap().offset).unwrap();
    let said = |at: usize, new: &[u8]| {
        let mut forged = bytes.clone();
        forged[at..at + new.len()].copy_from_slice(new);
        Image::from_bytes(forged).unwrap().check_erofs().unwrap_err().to_string()
    };
    let advice = "; pack the image again, or with --no-erofs";
    for (at, new, expected) in [
        (1024, &[0; 4][..], format!("superblock: there is none at byte 1024 for this view{advice}")),
        (1024 + 40, &[7], format!("superblock: it is not that of the view in /.daxfs/erofs{advice}")),
        (view, &[0], format!("header: it begins with \\u{{0}}AXEROFS{advice}")),
        (view + 8, &[2], "version 2 is not supported (supported: 1)".to_owned()),
        (view + 12, &[4], "unknown flag bits 0x4".to_owned()),
        (
            view + 16,
            &[0, 0, 0, 1],
            "capabilities: 16777216 records are more than its 0x1000 bytes".to_owned(),
        ),
        // The root's mode, and that of the file behind it.
        (view + 36, &[0xff], "byte 0x24, at the inode of /: it is not what".to_owned()),
        (view + 0x86, &[9], "at the inode of /file: it is not what".to_owned()),
        (view + 0xfff, &[1], "byte 0xfff, ".to_owned()),
    ] {
        let error = said(at, new);
        assert!(error.starts_with("/.daxfs/erofs: ") && error.contains(&expected), "{error}\n{expected}");
    }
    // A superblock in an image without a view: kernels would mount whatever it leads to.
    let plain = pack(Packer::new().input(&source).erofs(false), &path);
    let expected = plain.content_hash().unwrap();
    let mut forged = fs::read(&path).unwrap();
    forged[1024..1152].copy_from_slice(&bytes[1024..1152]);
    let opened = OpenOptions::new().expect(expected).open_region(daxfs::Region::from_bytes(forged));
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("kernels find one at byte 1024, and the image has no view for it"), "{error}");
}

#[test]
fn a_replacement_beside_the_old_image_has_a_view_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let source = tree(&dir.path().join("in"));
    let region = dir.path().join("region");
    let plan = || packer(&source).dedupe(true).replace(true).verify(true).plan().unwrap();
    let len = plan().total_size().next_multiple_of(2 << 20) * 2;
    fs::File::create(&region).unwrap().set_len(len).unwrap();
    let into = || plan().write_memory(&Memory::Device(region.clone().into())).unwrap().1;
    assert_eq!(into().generation, None);
    let first = Image::open(&region).unwrap();
    let start = first.file(raw::PATH).unwrap().extent().unwrap().offset;
    let old = first.file(raw::PATH).unwrap().to_vec().unwrap();
    write(&source, "new", b"new");
    let summary = into();
    assert!(summary.keeps_previous);
    let second = first.refresh().unwrap().unwrap();
    assert!(second.check_erofs().unwrap());
    assert!(second.file(raw::PATH).unwrap().extent().unwrap().offset > start + (2 << 20), "it was moved");
    // Who has the old one mounted keeps it.
    assert!(first.file(raw::PATH).unwrap().to_vec().unwrap() == old);
    fsck(&region);
    // One without a view takes the superblock away.
    let plan = Packer::new().input(&source).links(mkimage::Links::Keep).erofs(false).replace(true);
    plan.plan().unwrap().write_memory(&Memory::Device(region.clone().into())).unwrap();
    assert!(!Image::open(&region).unwrap().check_erofs().unwrap());
}

#[test]
fn capabilities_of_programs_go_into_the_view() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in");
    let (size, revision) = (20, 0x0200_0001_u32);
    let mut value = revision.to_le_bytes().to_vec();
    value.extend(0x2000_u32.to_le_bytes());
    value.resize(size, 0);
    for name in ["ping", "same"] {
        let path = write(&source, name, &noise(3, 4096));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let set = rustix::fs::setxattr(
        source.join("ping"),
        c"security.capability",
        &value,
        rustix::fs::XattrFlags::empty(),
    );
    if set.is_err() {
        assert!(std::env::var_os("DAXFS_REQUIRE_ROOT").is_none(), "capabilities take root");
        return;
    }
    let path = dir.path().join("image");
    let image = pack(packer(&source).dedupe(true), &path);
    assert!(image.check_erofs().unwrap());
    fsck(&path);
    let view = image.file(raw::PATH).unwrap().to_vec().unwrap();
    let found = view.windows(value.len()).filter(|window| *window == value).count();
    assert_eq!(found, 2, "beside the inode, and in the records");
    // Not of the content.
    let before = image.content_hash();
    rustix::fs::removexattr(source.join("ping"), c"security.capability").unwrap();
    assert_eq!(pack(packer(&source).dedupe(true), &path).content_hash(), before);
}

#[test]
fn what_can_have_no_view_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "in/file", b"x");
    let source = dir.path().join("in");
    let overlay = Some(Overlay { size: 1 << 20, buckets: None });
    for packer in [
        packer(&source).plain(true),
        packer(&source).overlay(overlay),
        packer(&source).split(Some(dir.path().join("backing"))),
        Packer::new().empty(true).overlay(overlay).erofs(true),
        Packer::new().input(&source).erofs(false).mtimes(true),
    ] {
        let error = packer.plan().unwrap_err();
        assert!(matches!(error, Error::Setting { option: "--erofs" | "--mtimes", .. }), "{error}");
    }
    // Without the word it is left out there, and it is said why.
    let left_out = |packer: Packer| {
        let summary = packer.plan().unwrap().write_file(dir.path().join("image")).unwrap();
        assert_eq!(summary.erofs_bytes, None);
        let text = summary.to_string();
        assert_eq!(text.contains("EROFS"), summary.no_erofs.is_some(), "{text}");
        summary.no_erofs.unwrap_or_default()
    };
    let by_default = || Packer::new().input(&source);
    assert!(left_out(by_default().plain(true)).contains("--plain"));
    assert!(left_out(by_default().overlay(overlay)).contains("--overlay"));
    assert!(left_out(by_default().split(Some(dir.path().join("backing")))).contains("--split"));
    assert!(left_out(Packer::new().empty(true).overlay(overlay)).contains("without files"));
    assert_eq!(left_out(by_default().erofs(false)), "", "that was asked for");
    // A name of the source's own in the place of the view gives way.
    write(&source, OsStr::from_bytes(b".daxfs/erofs"), b"not one");
    assert!(pack(packer(&source), &dir.path().join("image")).check_erofs().unwrap());
}
