//! Images as the kernel's EROFS shows them. It takes root; where that is missing and `DAXFS_REQUIRE_ROOT` is in the
//! environment, the tests fail, elsewhere they say that they did not run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{erofs_tree, list_directory, write};
use daxfs::Image;
use dmabuf::{ErofsMount, HugePages};
use mkimage::{Links, Memory, Packer};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A mount, which ends with this.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = dmabuf::unmount(&self.0);
    }
}

/// Whether the kernel mounts EROFS for this process.
fn can_mount() -> bool {
    match dmabuf::has_file_system("erofs") {
        Ok(()) => true,
        Err(error) => {
            assert!(std::env::var_os("DAXFS_REQUIRE_ROOT").is_none(), "{error}");
            eprintln!("not run: {error}");
            false
        }
    }
}

fn packer(source: &Path) -> Packer {
    Packer::new().input(source).links(Links::Keep).erofs(true)
}

/// Paths by device and inode: what is one file.
fn links(root: &Path) -> Vec<Vec<PathBuf>> {
    let mut found: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_path_buf();
        found.entry((stat.dev(), stat.ino())).or_default().push(name);
        if stat.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    let mut groups: Vec<_> = found.into_values().collect();
    groups.iter_mut().for_each(|group| group.sort());
    groups.sort();
    groups
}

/// The mount shows what is in the source.
fn compare(source: &Path, at: &Path, with_links: bool) {
    assert!(list_directory(at) == list_directory(source), "names, modes, owners, contents");
    if with_links {
        assert_eq!(links(at), links(source));
    }
    for (path, _) in list_directory(source) {
        let path = Path::new(OsStr::from_bytes(&path[1..]));
        let [shown, original] = [at, source].map(|root| fs::symlink_metadata(root.join(path)).unwrap());
        if with_links && !original.is_dir() {
            assert_eq!((shown.nlink(), shown.len()), (original.nlink(), original.len()), "{path:?}");
        }
    }
}

#[test]
fn a_file_is_mounted_as_the_source_was() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = erofs_tree(&dir.path().join("in"));
    let at = dir.path().join("at");
    fs::create_dir(&at).unwrap();
    for (dedupe, times) in [(false, false), (true, false), (false, true)] {
        let path = dir.path().join("image");
        packer(&source).dedupe(dedupe).mtimes(times).plan().unwrap().write_file(&path).unwrap();
        let image = Image::open(&path).unwrap();
        image.mount_erofs(&at).unwrap();
        let mounted = Mounted(at.clone());
        compare(&source, &at, !dedupe);
        let [shown, original] = [&at, &source].map(|root| fs::metadata(root.join("setuid")).unwrap());
        let time = |stat: &fs::Metadata| (stat.mtime(), stat.mtime_nsec());
        assert_eq!(time(&shown), if times { time(&original) } else { (0, 0) });
        assert!(!at.join(".daxfs").exists(), "the source and nothing else");
        // Read only, and without rights for anybody.
        assert!(fs::write(at.join("new"), "").is_err());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts.lines().find(|line| line.contains(at.to_str().unwrap())).unwrap();
        assert!(line.contains(" erofs ro,nosuid,nodev"), "{line}");
        drop(mounted);
    }
}

#[test]
fn memory_and_a_part_of_a_file_are_mounted_by_a_loop_device() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = erofs_tree(&dir.path().join("in"));
    let at = dir.path().join("at");
    fs::create_dir(&at).unwrap();
    let plan = packer(&source).plan().unwrap();
    let (fd, _) = plan.write_memory(&Memory::Memfd(HugePages::No)).unwrap();
    // The same image further back in a file.
    let part = dir.path().join("part");
    let file = fs::File::create(&part).unwrap();
    let image = Image::from_fd(fd).unwrap();
    let len = image.region().len();
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    image.region().view().read_at(0, &mut bytes).unwrap();
    file.write_all_at(&bytes, 1 << 20).unwrap();
    let region = daxfs::Region::from_fd_part(
        fs::File::open(&part).unwrap().into(),
        daxfs::Part { offset: 1 << 20, len: Some(len) },
    );
    for image in [image, Image::from_region(region.unwrap()).unwrap()] {
        let by = image.mount_erofs(&at).unwrap();
        assert!(matches!(&by, ErofsMount::Loop(path) if path.starts_with("/dev")), "{by:?}");
        let _mounted = Mounted(at.clone());
        compare(&source, &at, true);
    }
}

#[test]
fn an_overlay_lies_on_top() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in");
    write(&source, "below/file", b"packed");
    let [image, lower, upper, work, at] =
        ["image", "lower", "upper", "work", "at"].map(|name| dir.path().join(name));
    for path in [&lower, &upper, &work, &at] {
        fs::create_dir(path).unwrap();
    }
    packer(&source).plan().unwrap().write_file(&image).unwrap();
    Image::open(&image).unwrap().mount_erofs(&lower).unwrap();
    let _lower = Mounted(lower.clone());
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let done = std::process::Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(&at)
        .status();
    assert!(done.unwrap().success());
    let _at = Mounted(at.clone());
    fs::write(at.join("below/file"), "changed").unwrap();
    fs::rename(at.join("below/file"), at.join("moved")).unwrap();
    assert_eq!(fs::read(at.join("moved")).unwrap(), b"changed");
    assert_eq!(fs::read(lower.join("below/file")).unwrap(), b"packed");
}

#[test]
fn a_mount_keeps_the_image_that_is_replaced_beside_it() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = erofs_tree(&dir.path().join("in"));
    let [region, first, second] = ["region", "first", "second"].map(|name| dir.path().join(name));
    for path in [&first, &second] {
        fs::create_dir(path).unwrap();
    }
    let plan = || packer(&source).replace(true).plan().unwrap();
    let len = plan().total_size().next_multiple_of(2 << 20) * 2;
    fs::File::create(&region).unwrap().set_len(len).unwrap();
    let write_it = || plan().write_memory(&Memory::Device(region.clone().into())).unwrap().1;
    write_it();
    let old = list_directory(&source);
    Image::open(&region).unwrap().mount_erofs(&first).unwrap();
    let _first = Mounted(first.clone());
    write(&source, "order/a new one", b"of the second image");
    assert!(write_it().keeps_previous);
    Image::open(&region).unwrap().mount_erofs(&second).unwrap();
    let _second = Mounted(second.clone());
    compare(&source, &second, true);
    assert!(list_directory(&first) == old, "whole");
}

#[test]
fn what_cannot_be_mounted_is_refused_before_the_kernel_sees_it() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("in");
    write(&source, "file", b"x");
    let path = dir.path().join("image");
    let refused = |image: &Image| image.mount_erofs(dir.path()).unwrap_err().to_string();
    packer(&source).erofs(false).plan().unwrap().write_file(&path).unwrap();
    let expected = "the kernel cannot mount this image: it has no EROFS view; pack it with --erofs";
    assert_eq!(refused(&Image::open(&path).unwrap()), expected);
    packer(&source).plan().unwrap().write_file(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert!(refused(&Image::from_bytes(bytes).unwrap()).contains("neither a file nor a memfd"));
    let private =
        daxfs::Region::from_fd_private(fs::File::open(&path).unwrap().as_fd().try_clone_to_owned().unwrap());
    assert!(refused(&Image::from_region(private.unwrap()).unwrap()).contains("opened privately"));
    // Forged: the root's mode.
    let view = Image::open(&path).unwrap().file("/.daxfs/erofs").unwrap().extent().unwrap().offset;
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0xff], view + 36).unwrap();
    assert!(refused(&Image::open(&path).unwrap()).contains("byte 0x24, at the inode of /"));
}
