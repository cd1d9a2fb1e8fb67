//! Superblocks that claim what is not there: regions outside the image or in each other's place, versions and sizes
//! that do not exist, images that were cut.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::format::{PAGE_CACHE_MAGIC, v5, v8};
use daxfs::{Error, Image, OpenOptions, Region, ViewKind};
use daxfs_tests::delta::{Log, attach_main};
use daxfs_tests::examine::examine;
use daxfs_tests::forge::{self, Version, mini, superblock, superblock_v5};
use daxfs_tests::overlay::Overlay;
use daxfs_tests::verdict::{Verdict, kind, open};
use std::os::unix::fs::FileExt;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// An image is refused in both modes, for this reason.
#[track_caller]
fn refused(image: &[u8], error: &'static str, text: &'static str) {
    for strict in [false, true] {
        let answer = open(image.to_vec(), strict);
        assert_eq!(Verdict::Refused(error, text).disagreement(&answer), None, "strict {strict}");
    }
}

/// The mini image with an overlay that changes one file.
fn overlaid() -> Vec<u8> {
    let mut image = mini(Version::V8).finish();
    let mut overlay = Overlay::new(64, 6);
    overlay.page(3, 0, b"changed");
    overlay.attach(&mut image);
    image
}

/// The mini image of version 5 with a branch that changes one file.
fn branching() -> Vec<u8> {
    let mut image = mini(Version::V5).finish();
    attach_main(&mut image, &Log::new().write(3, 0, b"changed", 0));
    image
}

#[test]
fn regions_beyond_the_image_are_refused() {
    type Change = fn(&mut v8::Superblock);
    let cases: [(&str, Change); 7] = [
        ("inode table", |head| head.inode_count = u32::MAX.into()),
        ("inode table", |head| head.inode_offset = u64::MAX.into()),
        ("base image", |head| head.base_size = u64::MAX.into()),
        ("base image", |head| head.base_offset = (u64::MAX - 4095).into()),
        ("overlay", |head| head.overlay_offset = u64::MAX.into()),
        ("page cache", |head| head.pcache_offset = (1 << 40).into()),
        ("truncated", |head| head.total_size = u64::MAX.into()),
    ];
    for (text, change) in cases {
        let mut image = mini(Version::V8).finish();
        change(superblock(&mut image));
        let answer = open(image, false);
        assert_eq!(Verdict::Refused("OutOfBounds", text).disagreement(&answer), None);
    }
}

#[test]
fn a_table_of_four_billion_inodes_in_a_sparse_file_meets_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse");
    let mut image = mini(Version::V8).finish();
    let table = u64::from(u32::MAX) * 64;
    let size = (4096 + table).next_multiple_of(4096) + 4096;
    let head = superblock(&mut image);
    head.inode_count = u32::MAX.into();
    head.base_size = (size - 4096).into();
    head.total_size = size.into();
    let file = std::fs::File::create(&path).unwrap();
    if let Err(error) = file.set_len(size) {
        eprintln!("not run: a sparse file of {size} bytes: {error}");
        return;
    }
    file.write_all_at(&image, 0).unwrap();
    let error = Image::open(&path).unwrap_err();
    assert!(matches!(error, Error::MetadataLimit { .. }), "{error}");
    assert!(error.to_string().contains("max_metadata"), "{error}");
}

#[test]
fn images_cut_at_any_page_are_refused_as_truncated() {
    for image in [mini(Version::V8).finish(), mini(Version::V5).finish(), overlaid(), branching()] {
        assert!(open(image.clone(), false).is_ok());
        for len in (0..image.len()).step_by(4096).chain([1, 111, 4095, image.len() - 1]) {
            let error = open(image[..len].to_vec(), false).unwrap_err();
            let kind = kind(&error);
            assert!(["TooSmall", "OutOfBounds"].contains(&kind.as_str()), "{len}: {kind}: {error}");
        }
    }
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    for (bytes, expected) in [
        (Vec::new(), "TooSmall"),
        (vec![0; 4095], "TooSmall"),
        (vec![0; 4096], "NotAnImage"),
        (b"hsqs".repeat(4096), "NotAnImage"),
        (vec![0xff; 1 << 20], "NotAnImage"),
    ] {
        let error = open(bytes, false).unwrap_err();
        assert_eq!(kind(&error), expected, "{error}");
    }
    for version in [0u32, 1, 4, 6, 7, 9, u32::MAX] {
        let mut image = mini(Version::V8).finish();
        superblock(&mut image).version = version.into();
        refused(&image, "UnsupportedVersion", "supported: 5, 8");
    }
}

#[test]
fn regions_must_not_share_bytes() {
    let mut image = overlaid();
    let overlay = superblock(&mut image).overlay_offset.get();
    superblock(&mut image).base_size = (overlay - 4096 + 1).into();
    refused(&image, "Overlap", "base image");

    let mut image = branching();
    superblock_v5(&mut image).branch_table_offset = 8192.into();
    refused(&image, "Overlap", "branch table");
    let mut image = branching();
    superblock_v5(&mut image).delta_region_offset = 8192.into();
    refused(&image, "Overlap", "delta region");

    // Inside the superblock's own block.
    for offset in [1u64, 112, 4095] {
        let mut image = mini(Version::V8).finish();
        superblock(&mut image).base_offset = offset.into();
        refused(&image, "BaseOffset", "4096");
    }
}

#[test]
fn block_sizes_are_powers_of_two_in_bounds() {
    for size in [0u32, 1, 512, 2048, 4095, 4097, 12_288, 131_072, u32::MAX, 1 << 31] {
        let mut image = mini(Version::V8).finish();
        superblock(&mut image).block_size = size.into();
        refused(&image, "BlockSize", "power of two");
    }
    for size in [4096u32, 8192, 16_384, 32_768, 65_536] {
        let mut image = mini(Version::V8).finish();
        superblock(&mut image).block_size = size.into();
        assert_eq!(examine(&open(image.clone(), false).unwrap()).entries, 6);
        let here = OpenOptions::new().strict(true).open_region(Region::from_bytes(image.clone()));
        match u64::from(size) == dmabuf::page_size() {
            true => assert!(here.is_ok()),
            false => assert_eq!(kind(&here.unwrap_err()), "BlockSizeOfThisMachine"),
        }
        let there = OpenOptions::new().strict(true).page_size(size.into());
        assert!(there.clone().open_region(Region::from_bytes(image.clone())).is_ok());
        let elsewhere = there.page_size(u64::from(size) * 2).open_region(Region::from_bytes(image));
        assert_eq!(kind(&elsewhere.unwrap_err()), "BlockSizeOfThisMachine");
    }
}

#[test]
fn overlay_pages_have_the_size_of_a_block() {
    let mut image = mini(Version::V8).finish();
    let mut overlay = Overlay::with_block(65_536, 64, 6);
    overlay.inode(3, 0o100_644, 200_000, 1);
    overlay.page(3, 1, &[b'1'; 65_536]);
    overlay.page(3, 3, b"last");
    overlay.attach(&mut image);
    let opened = open(image, false).unwrap();
    examine(&opened);
    assert!(matches!(opened.view_kind(), ViewKind::Overlay { .. }));
    let bytes = opened.file("/f").unwrap().to_vec().unwrap();
    let mut expected = vec![0; 200_000];
    expected[..10].copy_from_slice(b"0123456789");
    expected[65_536..131_072].fill(b'1');
    expected[196_608..196_612].copy_from_slice(b"last");
    assert!(bytes == expected);

    // A kernel with such pages can make larger files.
    let mut image = mini(Version::V8).finish();
    let mut overlay = Overlay::with_block(65_536, 64, 6);
    overlay.inode(3, 0o100_644, 0xf_fffe * 65_536, 1);
    overlay.attach(&mut image);
    assert_eq!(open(image, false).unwrap().file("/f").unwrap().len(), 0xf_fffe * 65_536);
}

#[test]
fn unknown_versions_and_flags_inside_the_image_are_refused() {
    for version in [0u32, 1, 3, u32::MAX] {
        let mut image = overlaid();
        let at = usize::try_from(superblock(&mut image).overlay_offset.get()).unwrap();
        v8::OverlayHeader::mut_from_prefix(&mut image[at..]).unwrap().0.version = version.into();
        refused(&image, "UnsupportedVersion", "overlay: version");
    }
    for bit in [0u32, 1, 31] {
        let mut image = mini(Version::V5).finish();
        superblock_v5(&mut image).flags = (1 << bit).into();
        refused(&image, "UnknownFlags", "superblock");
    }
    let header = |change: fn(&mut v5::BaseHeader)| {
        let mut image = mini(Version::V5).finish();
        change(v5::BaseHeader::mut_from_prefix(&mut image[4096..]).unwrap().0);
        image
    };
    refused(&header(|head| head.flags = 2.into()), "UnknownFlags", "base image");
    refused(&header(|head| head.version = 4.into()), "UnsupportedVersion", "base image");
    refused(&header(|head| head.magic = 0.into()), "BaseMagic", "base image");
    refused(&header(|head| head.root_inode = 2.into()), "RootInode", "base image");
    refused(&header(|head| head.inode_count = 0.into()), "NoInodes", "");
    refused(&header(|head| head.inode_offset = u64::MAX.into()), "OutOfBounds", "inode table");
    refused(&header(|head| head.inode_count = u32::MAX.into()), "OutOfBounds", "inode table");
    // Upstream computes this one from the last entry, and it can be too small.
    assert!(open(header(|head| head.total_size = 0.into()), true).is_ok());
}

/// The mini image with a page cache, so that its file data is elsewhere.
fn split(slots: u32, change: impl FnOnce(&mut v8::PageCacheHeader)) -> Vec<u8> {
    let mut image = mini(Version::V8).finish();
    let offset = image.len() as u64;
    let mut header = v8::PageCacheHeader::new_zeroed();
    header.magic = PAGE_CACHE_MAGIC.into();
    header.version = v8::PAGE_CACHE_VERSION.into();
    header.slot_meta_offset = 4096.into();
    header.slot_data_offset = 8192.into();
    change(&mut header);
    image.extend_from_slice(header.as_bytes());
    forge::pad(&mut image);
    image.resize(image.len() + 4096 + 4096 * slots as usize, 0);
    let (end, total) = (image.len() as u64 - offset, image.len() as u64);
    let head = superblock(&mut image);
    head.pcache_offset = offset.into();
    head.pcache_size = end.into();
    head.pcache_slot_count = slots.into();
    head.total_size = total.into();
    image
}

#[test]
fn a_page_cache_must_hold_its_slots_and_hides_the_data() {
    let image = open(split(8, |_| ()), false).unwrap();
    examine(&image);
    assert!(matches!(image.file("/f").unwrap().to_vec().unwrap_err(), Error::NoContents { .. }));
    assert_eq!(image.entry_no_follow("/l").unwrap().read_link().unwrap(), b"f");

    refused(&split(4, |_| ()), "PageCacheSlots", "found 4");
    refused(&split(12, |_| ()), "PageCacheSlots", "found 12");
    refused(&split(8, |head| head.magic = 1.into()), "PageCacheMagic", "page cache");
    refused(&split(8, |head| head.version = 1.into()), "UnsupportedVersion", "page cache");
    refused(&split(8, |head| head.slot_meta_offset = u64::MAX.into()), "OutOfBounds", "page cache: slots");
    refused(&split(8, |head| head.slot_data_offset = 8193.into()), "OutOfBounds", "page cache: slot data");
    let mut image = split(8, |_| ());
    superblock(&mut image).pcache_slot_count = (1 << 31).into();
    refused(&image, "OutOfBounds", "page cache: slots");
}

#[test]
fn a_backing_file_bounds_what_lies_in_it() {
    let mut image = split(8, |_| ());
    let with_backing = |image: &[u8], len| {
        OpenOptions::new()
            .backing(Region::from_bytes(vec![7; len]))
            .open_region(Region::from_bytes(image.to_vec()))
    };
    let at = forge::inode(&mut image, 6).data_offset.get();
    let end = usize::try_from(at + 5000).unwrap();
    let opened = with_backing(&image, end).unwrap();
    examine(&opened);
    assert_eq!(opened.file("/d/g").unwrap().to_vec().unwrap(), [7; 5000]);
    assert_eq!(kind(&with_backing(&image, end - 1).unwrap_err()), "OutOfBounds");
    forge::inode(&mut image, 6).data_offset = (u64::MAX - 100).into();
    assert_eq!(kind(&with_backing(&image, end).unwrap_err()), "OutOfBounds");
    // Without a backing file the offset means nothing and is not looked at.
    examine(&open(image, false).unwrap());
}
