//! Images that kernels can write to, empty ones, and split ones: what the packer makes of `--overlay`, `--empty` and
//! `--split` is what the reader and an independent reader find, before and after a kernel has written.
//!
//! The kernel's stores are those of `daxfs_tests::writer`; `kernel_module` has the real one mount and write.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Image, OpenOptions, Region, ViewKind};
use daxfs_tests::forge::PAGE;
use daxfs_tests::golden::Golden;
use daxfs_tests::tree::{self, Item, Tree};
use daxfs_tests::writer::Writer;
use mkimage::{Format, Memory, Overlay, Packer, Summary};
use std::fs::{self, File, OpenOptions as FileOptions};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

const DIR: u32 = 0o040_755;
const FILE: u32 = 0o100_644;

/// Files of sizes around a page and large ones, with a hard link, links and an empty directory.
fn source() -> Tree {
    let bytes = |len: usize| (0..len).map(|i| (i * 7 % 253).to_le_bytes()[0]).collect::<Vec<u8>>();
    vec![
        (b"config.json".to_vec(), Item::File(0o644, b"{}\n".to_vec())),
        (b"empty".to_vec(), Item::File(0o600, Vec::new())),
        (b"d".to_vec(), Item::Dir(0o750)),
        (b"d/again".to_vec(), Item::HardLink(b"config.json".to_vec())),
        (b"d/up".to_vec(), Item::Symlink(b"../config.json".to_vec())),
        (b"d/none".to_vec(), Item::Dir(0o755)),
        (b"page".to_vec(), Item::File(0o644, bytes(4096))),
        (b"more".to_vec(), Item::File(0o644, bytes(4097))),
        (b"large".to_vec(), Item::File(0o644, bytes((2 << 20) + 5))),
    ]
}

/// A folder with the source, and places for images beside it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("tree")).unwrap();
        tree::write(&source(), &place.path("tree"));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn packer(&self) -> Packer {
        Packer::new().input(self.path("tree")).sync(false).verify(true)
    }

    fn pack(&self, packer: Packer) -> (PathBuf, Summary) {
        let path = self.path("image");
        let summary = packer.plan().unwrap().write_file(&path).unwrap();
        (path, summary)
    }

    fn assert_holds_source(&self, image: &Image) {
        tree::assert_same(&tree::in_image(image), &tree::on_disk(&self.path("tree")));
    }
}

fn overlay(size: u64) -> Option<Overlay> {
    Some(Overlay { size, buckets: None })
}

/// The writer of a file that stands for memory.
fn mount(path: &Path) -> Writer {
    let file = FileOptions::new().read(true).write(true).open(path).unwrap();
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    Writer::mount(file.as_fd(), len)
}

/// Both readers see the same.
fn assert_readers_agree(image: &Image, path: &Path, backing: Option<&Path>) {
    let Some(golden) = Golden::find("the independent reader") else { return };
    let mut command = Command::new("python3");
    command.arg(golden.path("readimg.py")).arg("manifest").arg(path).args(backing);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let manifest: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let entries = manifest["entries"].as_array().unwrap();
    assert_eq!(entries.len(), image.len());
    for found in entries {
        let path = found["path"].as_str().unwrap();
        let entry = image.entry_no_follow(path).unwrap();
        let metadata = entry.metadata();
        assert_eq!(format!("{:04o}", metadata.mode & 0o7777), found["mode"].as_str().unwrap(), "{path}");
        if let Ok(file) = entry.file() {
            assert_eq!(found["size"], metadata.size, "{path}");
            let hash = daxfs_tests::golden::sha256(&file.to_vec().unwrap());
            assert_eq!(found["sha256"], hash, "{path}");
        }
    }
}

/// New and changed names in an image that has a directory `d`; what they are then.
fn change(writer: &Writer, parent: u64) {
    let page = |byte: u8| vec![byte; usize::try_from(PAGE).unwrap()];
    let made = writer.create(parent, "made", FILE);
    writer.append(made, &page(1));
    writer.append(made, &page(2));
    let folder = writer.create(parent, "folder", DIR);
    let inner = writer.create(folder, "inner", FILE);
    writer.append(inner, &page(3));
    writer.rename(inner, FILE, (folder, "inner"), (parent, "moved"));
    writer.create(folder, "gone", FILE);
    writer.unlink(folder, "gone");
}

fn assert_changed(image: &Image) {
    assert!(matches!(image.view_kind(), ViewKind::Overlay { .. }));
    let made = image.file("made").unwrap().to_vec().unwrap();
    assert_eq!((made.len(), made[0], made[8191]), (8192, 1, 2));
    assert_eq!(image.file("moved").unwrap().to_vec().unwrap(), vec![3; 4096]);
    assert!(image.contains("folder") && !image.contains("folder/inner") && !image.contains("folder/gone"));
}

#[test]
fn an_image_with_an_overlay_reads_as_one_without_until_it_is_written_to() {
    let place = Place::new();
    for block_size in [4096, 16384, 65536] {
        let packer = place.packer().block_size(block_size);
        // An image with an overlay has no view.
        let (path, plain) = place.pack(packer.clone().erofs(false));
        assert_eq!((plain.overlay_bytes, plain.backing_bytes), (None, None));
        let base = fs::read(&path).unwrap();
        let (path, summary) = place.pack(packer.overlay(overlay(1 << 20)));
        assert_eq!(summary.overlay_bytes, Some(1 << 20));
        assert_eq!(summary.content_hash, plain.content_hash);
        let image = OpenOptions::new().strict(true).page_size(block_size.into()).open(&path).unwrap();
        assert_eq!(image.view_kind(), ViewKind::Base);
        place.assert_holds_source(&image);
        let superblock = image.superblock();
        let region = superblock.overlay.clone().unwrap();
        let block = u64::from(block_size);
        let buckets = 1024.max((1 << 20) / block * 4);
        assert_eq!(u64::from(superblock.overlay_buckets), buckets);
        let table = (buckets * 16).next_multiple_of(block);
        assert_eq!(region, base.len() as u64..base.len() as u64 + block + table + (1 << 20));
        assert_eq!(superblock.total_size, region.end);
        // The base image is the same, byte for byte.
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes[4096..base.len()], base[4096..]);
        assert_readers_agree(&image, &path, None);
    }

    let (path, _) = place.pack(place.packer().overlay(Some(Overlay { size: 1 << 20, buckets: Some(64) })));
    change(&mount(&path), 1);
    let image = Image::open(&path).unwrap();
    assert_changed(&image);
    assert_eq!(image.file("large").unwrap().len(), (2 << 20) + 5);
    assert_readers_agree(&image, &path, None);
}

#[test]
fn an_empty_image_is_a_root_until_it_is_written_to() {
    let place = Place::new();
    let packer = || Packer::new().empty(true).overlay(overlay(100_000)).sync(false).verify(true);
    let (path, summary) = place.pack(packer());
    assert_eq!((summary.files, summary.directories, summary.overlay_bytes), (0, 1, Some(102_400)));
    let image = OpenOptions::new().strict(true).page_size(4096).open(&path).unwrap();
    let top = image.root();
    let root = top.metadata();
    assert_eq!((image.len(), root.mode, root.uid, root.nlink), (1, 0o040_755, 0, 2));
    assert!(image.superblock().base.is_none());
    assert_readers_agree(&image, &path, None);
    change(&mount(&path), 1);
    let image = Image::open(&path).unwrap();
    assert_changed(&image);
    assert_readers_agree(&image, &path, None);
    // The same as what upstream's writer makes, but for its size.
    if let Some(golden) = Golden::find("an empty image of others") {
        let theirs = Image::from_bytes(golden.image("v8-empty")).unwrap();
        assert_eq!(theirs.root().metadata().mode, root.mode);
    }
    for (packer, expected) in [
        (Packer::new().empty(true), "--overlay"),
        (packer().input(place.path("tree")), "inputs"),
        (packer().split(Some(place.path("b"))), "--split"),
        (packer().format(Format::V5), "format 8"),
        (Packer::new().input(place.path("tree")).split(Some(place.path("b"))).format(Format::V5), "format 8"),
        (Packer::new().input(place.path("tree")).overlay(overlay(0)), "block"),
    ] {
        let error = packer.plan().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_split_image_has_its_contents_in_the_backing_file() {
    let place = Place::new();
    let backing = place.path("backing");
    let (whole, plain) = place.pack(place.packer());
    let whole = fs::metadata(whole).unwrap().len();
    for room in [None, overlay(1 << 20)] {
        let (path, summary) = place.pack(place.packer().split(Some(backing.clone())).overlay(room));
        assert_eq!(summary.content_hash, plain.content_hash);
        let bytes = fs::metadata(&backing).unwrap().len();
        assert_eq!(summary.backing_bytes, Some(bytes));
        // Nothing lies in front of the contents there.
        assert!(bytes <= whole && bytes > 2 << 20, "{bytes}");
        let image = OpenOptions::new().backing(Region::open(&backing).unwrap()).open(&path).unwrap();
        place.assert_holds_source(&image);
        assert_readers_agree(&image, &path, Some(&backing));
        assert!(image.contains("/.daxfs/index") && image.content_hash().is_some());
        let large = image.file("large").unwrap().extent().unwrap();
        assert!(large.offset.is_multiple_of(2 << 20), "{large:?}");
        // Metadata only, without it.
        let alone = Image::open(&path).unwrap();
        assert_eq!(alone.len(), image.len());
        assert!(alone.file("large").unwrap().to_vec().is_err());
        let slots = image.superblock().page_cache.clone().unwrap();
        assert!(slots.start.is_multiple_of(4096) && slots.end == image.superblock().total_size);
        if room.is_some() {
            change(&mount(&path), 1);
            let image = OpenOptions::new().backing(Region::open(&backing).unwrap()).open(&path).unwrap();
            assert_changed(&image);
            assert_readers_agree(&image, &path, Some(&backing));
        }
        // A file that is too short is noticed.
        File::options().write(true).open(&backing).unwrap().set_len(4096).unwrap();
        let cut = OpenOptions::new().backing(Region::open(&backing).unwrap()).open(&path).unwrap_err();
        assert!(cut.to_string().contains("backing file"), "{cut}");
    }
    let error = place.packer().split(Some(place.path("image"))).plan().unwrap();
    let error = error.write_file(place.path("image")).unwrap_err();
    assert!(error.to_string().contains("another one"), "{error}");
    let inside = place.packer().split(Some(place.path("tree/b"))).plan().unwrap();
    assert!(inside.write_file(place.path("image")).unwrap_err().to_string().contains("inside the tree"));
}

#[test]
fn memory_that_nobody_can_write_gets_no_overlay() {
    let place = Place::new();
    let plan = place.packer().overlay(overlay(1 << 20)).plan().unwrap();
    let error = plan.write_memory(&Memory::Memfd(mkimage::HugePages::No)).unwrap_err();
    assert!(error.to_string().contains("stays writable"), "{error}");
    let (fd, _) = plan.write_memory(&Memory::SharedMemfd(mkimage::HugePages::Auto)).unwrap();
    let len = usize::try_from(plan.total_size()).unwrap();
    change(&Writer::mount(fd.as_fd(), len), 1);
    assert_changed(&Image::from_fd(fd).unwrap());
    // A region that had other bytes before, and one image after the other with its overlay.
    let region = place.path("region");
    fs::write(&region, vec![0xa5; 4 * len]).unwrap();
    let memory = Memory::parse(region.as_os_str(), mkimage::HugePages::No).unwrap();
    for round in 0..3 {
        let plan = place.packer().overlay(overlay(1 << 20)).replace(round > 0).plan().unwrap();
        let (_, summary) = plan.write_memory(&memory).unwrap();
        assert_eq!(summary.keeps_previous, round > 0, "{summary}");
        let image = OpenOptions::new().strict(true).page_size(4096).open(&region).unwrap();
        place.assert_holds_source(&image);
        assert_eq!(image.view_kind(), ViewKind::Base);
        change(&mount(&region), 1);
        assert_changed(&Image::open(&region).unwrap());
    }
}

#[test]
fn the_command_makes_them() {
    let place = Place::new();
    let pack = |arguments: &[&str]| {
        let path = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("daxfs-pack");
        let mut command = Command::new(path);
        command.current_dir(place.0.path()).args(arguments).output().unwrap()
    };
    for (arguments, said) in [
        (&["tree", "--overlay", "1M", "-o", "a"][..], "room for 1.0 MiB of changes"),
        (&["--empty", "--overlay", "64K,1024", "-o", "b"], "room for 64.0 KiB"),
        (&["tree", "--split", "c.data", "-o", "c"], "contents in a backing file of"),
        (&["tree", "--split", "d.data", "--overlay", "1M", "--verify", "-o", "d"], "verified"),
    ] {
        let output = pack(arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(said), "{arguments:?}: {output:?}");
    }
    let data = Region::open(place.path("d.data")).unwrap();
    place.assert_holds_source(&OpenOptions::new().backing(data).open(place.path("d")).unwrap());
    let output = pack(&["--empty", "-o", "e"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!place.path("e").exists());
}
