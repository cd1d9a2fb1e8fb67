//! Images that the kernel's own DAXFS has mounted: it shows what was packed, and the memory behind the mount is found.
//!
//! The file system is a module that is no part of this project. `tests/kernel/run.py` loads the one that
//! `DAXFS_MODULE` names into its guest and sets `DAXFS_REQUIRE_MODULE=1`: without it, each test says that it did not
//! run.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Error, Image, Provenance, Region};
use daxfs_tests::examine::examine_live;
use daxfs_tests::golden::Golden;
use daxfs_tests::mounts::{self, Mount};
use daxfs_tests::tree::{self, Facts, Item, Tree};
use dmabuf::{CpuAccess, FdKind, HugePages, Mapping};
use mkimage::{Memory, Overlay, Packer};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::collections::BTreeMap;
use std::env;
use std::fs::{self, Permissions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where a slot has type and permissions.
const MODE_OF_INODE: usize = 4;
/// Nobody, who may open what others may.
const NOBODY: u32 = 65534;

/// One of everything that needs no room: names of all kinds, links, nothing, directories of many pages.
fn small() -> Tree {
    let bytes = |len: usize| (0..len).map(|i| (i * 7 % 253).to_le_bytes()[0]).collect();
    let mut tree: Tree = vec![
        (b"config.json".to_vec(), Item::File(0o644, b"{}\n".to_vec())),
        (b"empty".to_vec(), Item::File(0o644, Vec::new())),
        (b"secret".to_vec(), Item::File(0o600, b"secret\n".to_vec())),
        (b"program".to_vec(), Item::File(0o4755, b"#!/bin/sh\n".to_vec())),
        (b"d".to_vec(), Item::Dir(0o755)),
        (b"d/again".to_vec(), Item::HardLink(b"config.json".to_vec())),
        (b"d/up".to_vec(), Item::Symlink(b"../config.json".to_vec())),
        (b"d/nowhere".to_vec(), Item::Symlink(vec![b'x'; 3000])),
        (b"d/emptydir".to_vec(), Item::Dir(0o1777)),
        (b"not utf-8 \xff\xfe\n".to_vec(), Item::File(0o644, b"bytes\n".to_vec())),
        (vec![b'n'; 255], Item::File(0o644, b"long name\n".to_vec())),
        (b"many".to_vec(), Item::Dir(0o755)),
    ];
    // With this number of entries the last one ends in a page that 271 bytes for each would not take.
    tree.extend((0..302).map(|i| (format!("many/{i}").into_bytes(), Item::File(0o644, bytes(i)))));
    tree
}

/// The same, and files of sizes around a page and around 2 MiB.
fn source() -> Tree {
    let bytes = |len: usize| (0..len).map(|i| (i * 7 % 253).to_le_bytes()[0]).collect();
    let sizes = [1, 4095, 4096, 4097, (2 << 20) - 1, 2 << 20, (2 << 20) + 1];
    let file = |len: usize| (format!("bytes-{len}").into_bytes(), Item::File(0o644, bytes(len)));
    [small(), sizes.map(file).into()].concat()
}

/// A folder with a source tree, and folders to mount at, which everybody may enter.
struct Place(tempfile::TempDir);

impl Place {
    fn new(tree: &Tree) -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::set_permissions(place.0.path(), Permissions::from_mode(0o755)).unwrap();
        for folder in [place.tree(), place.mount_point()] {
            fs::create_dir(&folder).unwrap();
            fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        }
        tree::write(tree, &place.tree());
        place
    }

    fn tree(&self) -> PathBuf {
        self.0.path().join("tree")
    }

    fn mount_point(&self) -> PathBuf {
        self.0.path().join("mount")
    }

    fn pack(&self, memory: &Memory) -> OwnedFd {
        Packer::new().input(self.tree()).plain(true).plan().unwrap().write_memory(memory).unwrap().0
    }

    fn mount(&self, memory: impl AsFd) -> Mount {
        Mount::of_dma_buf(memory, &self.mount_point()).unwrap()
    }
}

fn heap() -> Memory {
    Memory::Heap("system".into())
}

/// A dma-buf that holds these bytes.
fn buffer(bytes: &[u8]) -> OwnedFd {
    let fd = dmabuf::heap_allocate("system", bytes.len() as u64).unwrap();
    let mut map = Mapping::read_write(fd.as_fd(), 0, bytes.len()).unwrap();
    let access = CpuAccess::begin(fd.as_fd(), dmabuf::Access::Write).unwrap();
    map.view_mut().unwrap().copy_from(0, bytes).unwrap();
    access.finish().unwrap();
    fd
}

/// A command of the project, which lies one folder above the test programs.
fn daxfs() -> Command {
    let path = env::current_exe().unwrap().ancestors().nth(2).unwrap().join("daxfs");
    assert!(path.exists(), "no {}: build the commands first (cargo build --bins)", path.display());
    Command::new(path)
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// Device and file system keep no common numbers of files: which names are one file is compared all the same.
fn assert_same(found: &BTreeMap<Vec<u8>, Facts>, folder: &Path) {
    tree::assert_same(found, &tree::on_disk(folder));
}

#[test]
fn the_kernel_shows_what_was_packed_and_we_read_the_memory_behind_it() {
    if !mounts::are_possible() {
        return;
    }
    let place = Place::new(&source());
    for (memory, exporter) in [(Memory::Udmabuf, "udmabuf"), (heap(), "system")] {
        let mount = place.mount(place.pack(&memory));
        assert_same(&tree::on_disk(mount.path()), &place.tree());

        let image = Image::open(mount.path()).unwrap();
        let info = image.region().info().unwrap();
        assert!(matches!(&info.kind, FdKind::DmaBuf { exporter: name, .. } if name == exporter), "{info:?}");
        assert_eq!(image.region().provenance(), Provenance::Shared);
        assert!(image.is_current().unwrap());
        examine_live(&image);
        assert_same(&tree::in_image(&image), &place.tree());

        for verb in ["ls", "tree", "inspect", "verify"] {
            let output = daxfs().arg(verb).arg(mount.path()).output().unwrap();
            assert!(output.status.success(), "{verb}: {}", text(&output));
        }
        let listed = text(&daxfs().arg("sources").output().unwrap());
        let line = listed.lines().find(|line| line.starts_with("mounted")).unwrap();
        assert!(line.contains(mount.path().to_str().unwrap()) && line.contains("a dma-buf"), "{line}");
    }
}

/// What `daxfs mount` of a descriptor answers, for everybody or for nobody in particular.
fn mount_command(memory: &OwnedFd, at: &Path, user: Option<u32>) -> Output {
    fcntl(memory, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let mut command = daxfs();
    command.args(["mount", "--as", "kernel"]).arg(format!("fd:{}", memory.as_raw_fd())).arg(at);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    command.output().unwrap()
}

#[test]
fn the_command_mounts_or_says_why_not() {
    let place = Place::new(&small());
    let point = place.mount_point();
    let refused = |output: Output, expected: &[&str]| {
        // Taken away again if it was mounted all the same.
        let _mount = output.status.success().then(|| Mount::by_another(&point));
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(expected.iter().any(|part| said.contains(part)), "{said}");
    };
    // Also where there is no such file system, nor a dma-buf.
    let memfd = place.pack(&Memory::Memfd(HugePages::No));
    refused(mount_command(&memfd, &point, None), &["neither a dma-buf nor physical memory"]);
    if !mounts::are_possible() {
        if Path::new("/dev/dma_heap/system").exists() {
            let output = mount_command(&place.pack(&heap()), &point, None);
            refused(output, &["the file system daxfs is not available", "CAP_SYS_ADMIN"]);
        }
        return;
    }
    for memory in [Memory::Udmabuf, heap()] {
        // The mount keeps what nobody else has any more.
        let output = mount_command(&place.pack(&memory), &point, None);
        assert!(output.status.success(), "{}", text(&output));
        let mount = Mount::by_another(&point);
        assert_same(&tree::on_disk(mount.path()), &place.tree());
        let options = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = options.lines().find(|line| line.contains(point.to_str().unwrap())).unwrap();
        assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
    }
    let good = place.pack(&heap());
    refused(mount_command(&good, &point, Some(NOBODY)), &["CAP_SYS_ADMIN"]);
    refused(mount_command(&good, &place.0.path().join("none"), None), &["none", "No such file or directory"]);
    let link = place.0.path().join("link");
    std::os::unix::fs::symlink(&point, &link).unwrap();
    assert!(mount_command(&good, &link, None).status.success());
    drop(Mount::by_another(&point));

    let image = Image::from_fd(good).unwrap();
    let len = image.region().len();
    // What lies behind the image would be mounted, too.
    let larger = buffer(&[image.region().view().to_vec(), vec![0; 4096]].concat());
    let part = daxfs::Part { offset: 0, len: Some(len) };
    let error =
        Image::from_region(Region::from_fd_part(larger, part).unwrap()).unwrap().mount(&point).unwrap_err();
    assert!(error.to_string().contains("only all of one"), "{error}");
    // What opens here, and what the kernel would not take.
    let mut bytes = image.region().view().to_vec();
    let slots = usize::try_from(image.superblock().inode_table.start).unwrap();
    let ino = usize::try_from(image.file("empty").unwrap().ino()).unwrap();
    let mode = slots + 64 * (ino - 1) + MODE_OF_INODE;
    assert_eq!(bytes[mode..mode + 4], 0o100_644_u32.to_le_bytes());
    bytes[mode..mode + 4].copy_from_slice(&0o010_644_u32.to_le_bytes());
    let fifo = buffer(&bytes);
    assert!(Image::from_fd(fifo.try_clone().unwrap()).is_ok());
    refused(mount_command(&fifo, &point, None), &["the kernel's validation refuses slots"]);
}

#[test]
fn a_mounted_tree_is_packed_again() {
    if !mounts::are_possible() {
        return;
    }
    let place = Place::new(&source());
    let mount = place.mount(place.pack(&heap()));
    let again = place.0.path().join("again.daxfs");
    Packer::new().input(mount.path()).verify(true).plan().unwrap().write_file(&again).unwrap();
    assert_same(&tree::in_image(&Image::open(&again).unwrap()), &place.tree());

    // An image that is a file of the mount is mapped from it, and the kernel copies the pages that are touched.
    let outer = Place::new(&vec![(b"inner.daxfs".to_vec(), Item::File(0o644, fs::read(&again).unwrap()))]);
    let mount = outer.mount(outer.pack(&heap()));
    let image = Image::open(mount.path().join("inner.daxfs")).unwrap();
    assert_same(&tree::in_image(&image), &place.tree());
    image.region().populate().unwrap();
    let sent = tempfile::tempfile().unwrap();
    assert_eq!(image.file("bytes-2097153").unwrap().write_to(&sent).unwrap(), (2 << 20) + 1);
    assert_eq!(image.region().sealed_copy().unwrap().provenance(), Provenance::Sealed);
}

#[test]
fn an_image_outlives_its_mount_and_another_one_there_is_noticed() {
    if !mounts::are_possible() {
        return;
    }
    let place = Place::new(&small());
    let mount = place.mount(place.pack(&heap()));
    let image = Image::open(place.mount_point()).unwrap();
    let before = tree::on_disk(&place.tree());
    drop(mount);
    tree::assert_same(&tree::in_image(&image), &before);
    assert!(!image.is_current().unwrap(), "nothing is mounted there");
    let error = image.refresh().unwrap_err();
    assert!(matches!(error, Error::Memory(dmabuf::Error::NotShareable { .. })), "{error:?}");

    fs::write(place.tree().join("config.json"), b"another one\n").unwrap();
    let mount = place.mount(place.pack(&heap()));
    tree::assert_same(&tree::in_image(&image), &before);
    assert!(!image.is_current().unwrap(), "another image is mounted there");
    let new = image.refresh().unwrap().unwrap();
    assert_same(&tree::in_image(&new), &place.tree());
    assert!(new.is_current().unwrap() && new.refresh().unwrap().is_none());
    drop(mount);
}

/// `0x8000000+16M`, which nobody else uses.
fn reserved_range() -> Option<(u64, u64)> {
    let text = env::var("DAXFS_TEST_RANGE").ok();
    if text.is_none() {
        assert!(env::var_os("DAXFS_REQUIRE_MODULE").is_none(), "DAXFS_TEST_RANGE names no reserved memory");
        eprintln!("not run: DAXFS_TEST_RANGE names no reserved memory");
    }
    match daxfs::Source::parse(format!("phys:{}", text?).as_ref()).unwrap() {
        daxfs::Source::Physical { address, len } => Some((address, len)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_physical_mount_is_found_and_who_may_not_open_it_is_told_its_range() {
    if !mounts::are_possible() {
        return;
    }
    let Some((address, len)) = reserved_range() else { return };
    let place = Place::new(&small());
    let range = format!("phys:{address:#x}+{len:#x}");
    let memory = Memory::parse(range.as_ref(), HugePages::No).unwrap();
    Packer::new().input(place.tree()).plain(true).plan().unwrap().write_region(&memory).unwrap();
    let output = daxfs().args(["mount", &range]).arg(place.mount_point()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let mount = Mount::by_another(&place.mount_point());
    assert_same(&tree::on_disk(mount.path()), &place.tree());

    let image = Image::open(mount.path()).unwrap();
    let region = image.region();
    assert_eq!(region.info().unwrap().kind, FdKind::Physical);
    assert_eq!((region.offset(), region.len()), (address, len));
    assert_same(&tree::in_image(&image), &place.tree());
    assert!(image.is_current().unwrap());

    let output = daxfs().arg("ls").arg(mount.path()).uid(NOBODY).gid(NOBODY).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let expected = [mount.path().to_str().unwrap(), "lies in physical memory", &range, "/dev/mem"];
    assert!(expected.iter().all(|part| said.contains(part)), "{said}");
    let output = daxfs().arg("sources").uid(NOBODY).gid(NOBODY).output().unwrap();
    let listed = text(&output);
    let line = listed.lines().find(|line| line.starts_with("mounted")).unwrap();
    assert!(line.contains(&range) && line.contains(" no "), "{line}");

    drop(mount);
    assert!(!image.is_current().unwrap());
    assert_same(&tree::in_image(&image), &place.tree());
}

#[test]
fn who_can_open_the_root_reads_everything_and_a_closed_root_prevents_it() {
    if !mounts::are_possible() {
        return;
    }
    let place = Place::new(&small());
    let as_nobody = |arguments: &[&str]| {
        daxfs()
            .args(arguments)
            .arg(place.mount_point())
            .arg("/secret")
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap()
    };
    let mount = place.mount(place.pack(&heap()));
    let output = as_nobody(&["cat"]);
    assert_eq!((output.status.success(), text(&output).as_str()), (true, "secret\n"));
    drop(mount);

    fs::set_permissions(place.tree(), Permissions::from_mode(0o700)).unwrap();
    let mount = place.mount(place.pack(&heap()));
    let output = as_nobody(&["cat"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("Permission denied"), "{}", text(&output));
    drop(mount);
}

/// Static images and those with an overlay; what lies in a backing file is no matter of the image's memory.
#[test]
fn golden_images_are_the_same_through_the_kernel() {
    if !mounts::are_possible() {
        return;
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut images: Vec<(String, Vec<u8>)> = ["everything-v8", "plain-v8", "checkpoint-v8", "empty-v8"]
        .map(|name| (name.to_owned(), fs::read(own.join(format!("{name}.daxfs"))).unwrap()))
        .into();
    if let Some(golden) = Golden::find("golden images of others through the kernel") {
        let names = ["v8-mini", "v8-mini-overlay", "v8-empty"];
        images.extend(names.map(|name| (name.to_owned(), golden.image(name))));
    }
    let place = Place::new(&Tree::new());
    for (name, bytes) in images {
        let mount = place.mount(buffer(&bytes));
        let image = Image::open(mount.path()).unwrap();
        let (mut shown, read) = (tree::on_disk(mount.path()), tree::in_image(&image));
        shown.retain(|path, _| path != b"/.daxfs" && !path.starts_with(b"/.daxfs/"));
        // Sizes and link counts of directories are the image's own affair here.
        let contents = |facts: BTreeMap<Vec<u8>, Facts>| -> BTreeMap<_, _> {
            facts.into_iter().map(|(path, facts)| (path, (facts.kind, facts.mode, facts.contents))).collect()
        };
        assert_eq!(contents(shown), contents(read), "{name}");
        assert_eq!(image.region().len(), bytes.len() as u64);
    }
    let old = fs::read(own.join("everything-v5.daxfs")).unwrap();
    let error = Mount::of_dma_buf(buffer(&old), &place.mount_point()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "the module is of version 8");
    assert!(Image::from_region(Region::from_bytes(old)).is_ok());
}

/// Room for what the tests write.
fn room() -> Option<Overlay> {
    Some(Overlay { size: 16 << 20, buckets: None })
}

#[test]
fn what_is_written_through_a_mount_is_read_while_it_is_written_and_after() {
    if !mounts::are_possible() {
        return;
    }
    let place = Place::new(&small());
    let packers = [Packer::new().input(place.tree()).plain(true), Packer::new().empty(true)];
    for (packer, memory) in packers.into_iter().zip([heap(), Memory::Udmabuf]) {
        let fd = packer.overlay(room()).plan().unwrap().write_memory(&memory).unwrap().0;
        let packed = Image::from_fd(fd).unwrap();
        packed.mount(place.mount_point()).unwrap();
        let mount = Mount::by_another(&place.mount_point());
        let at = |name: &str| mount.path().join(name);
        fs::write(at("new"), b"new bytes\n").unwrap();
        fs::create_dir(at("folder")).unwrap();
        fs::write(at("folder/old name"), vec![7; 9000]).unwrap();
        fs::rename(at("folder/old name"), at("new name")).unwrap();
        fs::write(at("gone"), b"gone").unwrap();
        fs::remove_file(at("gone")).unwrap();
        let image = Image::open(mount.path()).unwrap();
        assert!(matches!(image.view_kind(), daxfs::ViewKind::Overlay { .. }));
        assert_eq!(image.file("new").unwrap().to_vec().unwrap(), b"new bytes\n");
        assert_eq!(image.file("new name").unwrap().to_vec().unwrap(), vec![7; 9000]);
        assert!(image.contains("folder") && !image.contains("gone") && !image.contains("folder/old name"));

        // Names that are made meanwhile are seen up to one of them.
        let ended = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..400_u32 {
                    let folder = if number.is_multiple_of(2) { "" } else { "folder/" };
                    fs::write(at(&format!("{folder}made-{number}")), b"x").unwrap();
                }
                ended.store(true, std::sync::atomic::Ordering::Release);
            });
            let mut opened = 0;
            while !ended.load(std::sync::atomic::Ordering::Acquire) || opened == 0 {
                let image = match Image::open(mount.path()) {
                    Ok(image) => image,
                    Err(Error::Changing { .. }) => continue,
                    Err(error) => panic!("{error}"),
                };
                opened += 1;
                let name = |number: u32| {
                    format!("{}made-{number}", if number.is_multiple_of(2) { "" } else { "folder/" })
                };
                let made = (0..400).take_while(|&number| image.contains(name(number))).count();
                let beyond =
                    (u32::try_from(made).unwrap()..400).filter(|&number| image.contains(name(number)));
                assert_eq!(beyond.count(), 0, "{made} names and others beyond");
            }
        });
        assert!(Image::open(mount.path()).unwrap().contains("folder/made-399"));
    }
}

#[test]
fn a_split_image_is_mounted_with_its_backing_file() {
    let place = Place::new(&small());
    let backing = place.0.path().join("backing");
    let packer = Packer::new().input(place.tree()).plain(true).split(Some(backing.clone()));
    let point = place.mount_point();
    let mount = |fd: &OwnedFd, arguments: &[&std::ffi::OsStr]| {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let image = format!("fd:{}", fd.as_raw_fd());
        daxfs().arg("mount").args(arguments).arg(image).arg(&point).output().unwrap()
    };
    let option = "--backing".as_ref();
    if !mounts::are_possible() {
        // A dma-buf it must be all the same.
        let memfd = packer.plan().unwrap().write_memory(&Memory::SharedMemfd(HugePages::No)).unwrap().0;
        let output = mount(&memfd, &[option, backing.as_os_str()]);
        assert!(text(&output).contains("neither a dma-buf nor physical memory"), "{}", text(&output));
        return;
    }
    for room in [None, room()] {
        let fd = packer.clone().overlay(room).plan().unwrap().write_memory(&heap()).unwrap().0;
        let without = mount(&fd, &[]);
        assert!(text(&without).contains("takes a backing file"), "{}", text(&without));
        let wrong = mount(&fd, &[option, "/proc/version".as_ref()]);
        assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong));
        let output = mount(&fd, &[option, backing.as_os_str()]);
        assert!(output.status.success(), "{}", text(&output));
        let mounted = Mount::by_another(&point);
        assert_same(&tree::on_disk(mounted.path()), &place.tree());
        if room.is_some() {
            fs::write(mounted.path().join("new"), b"new").unwrap();
            let region = Region::open(&backing).unwrap();
            let image = daxfs::OpenOptions::new().backing(region).open(mounted.path()).unwrap();
            assert_eq!(image.file("new").unwrap().to_vec().unwrap(), b"new");
        }
    }
    let whole = place.pack(&heap());
    let output = mount(&whole, &[option, backing.as_os_str()]);
    assert!(text(&output).contains("not in a backing file"), "{}", text(&output));
}
