//! Pack, open, compare.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{list_directory, list_image, noise, open_strict, pack, varied_tree, write};
use mkimage::{Format, HugePages, Links, Memory, Packer};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

#[test]
fn every_setting_gives_the_source_tree() {
    let dir = tempfile::tempdir().unwrap();
    varied_tree(dir.path());
    let wanted = list_directory(dir.path());
    let settings = [
        Packer::new(),
        Packer::new().format(Format::V5),
        Packer::new().block_size(16384).verify(true),
        Packer::new().block_size(65536).align(1),
        Packer::new().align(1 << 20).threads(1),
        Packer::new().threads(7).dedupe(true).sync(false),
        Packer::new().plain(true).verify(true),
    ];
    for packer in settings {
        let image = pack(dir.path(), packer.clone());
        assert_eq!(list_image(&image), wanted, "{packer:?}");
        let names = |path: &str| image.entry(path).unwrap().metadata().nlink;
        assert_eq!(names("/sizes/4097"), 3);
        assert_eq!(names("/links"), 2);
        let own = u32::from(image.entry("/.daxfs").is_ok());
        assert_eq!(names("/"), 2 + 5 + own);
        let ino = |path: &str| image.entry(path).unwrap().metadata().ino;
        assert_eq!(ino("/sizes/4097"), ino("/links/again"));
    }
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    varied_tree(&a);
    // The same names made in another order, at another time.
    for (path, _) in list_directory(&a).iter().rev() {
        let path = Path::new(std::str::from_utf8(path).unwrap_or("skip").trim_start_matches('/'));
        if path.components().count() > 0 && a.join(path).is_file() && !path.starts_with("links") {
            fs::create_dir_all(b.join(path).parent().unwrap()).unwrap();
            fs::write(b.join(path), b"").unwrap();
        }
    }
    fs::remove_dir_all(&b).unwrap();
    varied_tree(&b);
    let images: Vec<_> = [(&a, 1), (&b, 3), (&a, 2)]
        .into_iter()
        .map(|(source, threads)| {
            let path = dir.path().join("image");
            Packer::new().input(source).threads(threads).plan().unwrap().write_file(&path).unwrap();
            fs::read(&path).unwrap()
        })
        .collect();
    assert!(images[0] == images[1] && images[0] == images[2]);
}

#[test]
fn all_targets_get_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    varied_tree(&source);
    write(&source, "model.safetensors", &common::safetensors(&[("w", "F32", &[100])]));
    let plan = Packer::new().input(&source).verify(true).plan().unwrap();
    let file = dir.path().join("image");
    plan.write_file(&file).unwrap();
    let wanted = fs::read(&file).unwrap();

    for pages in [HugePages::No, HugePages::Auto] {
        let (fd, summary) = plan.write_memory(&Memory::Memfd(pages)).unwrap();
        assert!(summary.verified && summary.pages.is_some());
        let image = daxfs::Image::from_fd(fd).unwrap();
        assert_eq!(image.region().provenance(), daxfs::Provenance::Sealed);
        assert!(image.region().as_slice().unwrap() == wanted);
    }
    if let Ok(memory) = tempfile::tempdir_in("/dev/shm") {
        let path = memory.path().join("image");
        let summary = plan.write_file(&path).unwrap();
        assert!(summary.pages.is_some());
        assert!(fs::read(&path).unwrap() == wanted);
    }
}

#[test]
fn files_are_the_same_whether_the_kernel_copies_them_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return eprintln!("not run: no /dev/shm") };
    // Within a file system the kernel copies; between two kinds it refuses, and the bytes go through a buffer.
    let images = [dir.path().join("in"), memory.path().join("in")].map(|source| {
        varied_tree(&source);
        write(&source, "unaligned", &noise(8, (3 << 20) + 12345));
        let path = dir.path().join("image");
        let plan = Packer::new().input(&source).verify(true).align(4096).plan().unwrap();
        let summary = plan.write_file(&path).unwrap();
        assert!(list_image(&open_strict(&path)) == list_directory(&source));
        (summary.content_hash, fs::read(path).unwrap())
    });
    assert!(images[0] == images[1]);
}

#[test]
fn a_directory_of_100_000_entries() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..100_000 {
        fs::File::create(dir.path().join(format!("entry-{n}"))).unwrap();
    }
    write(dir.path(), "entry-99999", b"the last one in the order of time");
    let image = pack(dir.path(), Packer::new());
    assert_eq!(image.len(), 100_004, "the root, the entries, and the index and the view in their directory");
    assert_eq!(image.root().metadata().size, 271 * 100_001);
    let last = image.file("/entry-99999").unwrap().to_vec().unwrap();
    assert_eq!(last, b"the last one in the order of time");
    assert_eq!(image.file("/entry-12345").unwrap().len(), 0);
}

#[test]
fn a_tree_deeper_than_a_path_can_be_long() {
    const DEPTH: usize = 300;
    let dir = tempfile::tempdir().unwrap();
    let name = "directory-of-a-deep-tree";
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let mut at = nix::fcntl::open(dir.path(), flags, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        mkdirat(&at, name, Mode::S_IRWXU).unwrap();
        at = openat(&at, name, flags, Mode::empty()).unwrap();
    }
    let file = openat(&at, "leaf", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRUSR).unwrap();
    nix::unistd::write(&file, b"found").unwrap();

    let image = pack(dir.path(), Packer::new().dedupe(true).verify(true));
    let path = format!("{}/leaf", format!("/{name}").repeat(DEPTH));
    assert!(path.len() > 4096);
    assert_eq!(image.file(&path).unwrap().to_vec().unwrap(), b"found");
}

#[test]
fn equal_files_are_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let long = noise(3, 3 << 20);
    let mut other = long.clone();
    *other.last_mut().unwrap() ^= 1;
    for (name, contents) in [("a", &long), ("b/c", &long), ("d", &other), ("e", &long)] {
        write(dir.path(), name, contents);
    }
    write(dir.path(), "f", b"short");
    write(dir.path(), "g", b"short");
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("image");
    let plan = Packer::new().input(dir.path()).dedupe(true).verify(true).plan().unwrap();
    let summary = plan.write_file(&path).unwrap();
    assert_eq!(summary.deduplicated_bytes, 2 * (3 << 20) + 5);
    let image = open_strict(&path);
    assert_eq!(list_image(&image), list_directory(dir.path()));
    let extent = |path: &str| image.file(path).unwrap().extent();
    let ino = |path: &str| image.file(path).unwrap().ino();
    assert_eq!(extent("/a"), extent("/e"));
    assert_eq!(extent("/f"), extent("/g"));
    assert_ne!(extent("/a"), extent("/d"));
    assert_ne!(ino("/a"), ino("/e"));
    assert_eq!(image.entry("/a").unwrap().metadata().nlink, 1);
}

#[derive(Debug, Clone)]
enum Part {
    File(usize),
    Directory,
    Link(String),
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        3 => prop_oneof![Just(0usize), 1usize..5000, Just(4096), 60_000usize..70_000].prop_map(Part::File),
        1 => Just(Part::Directory),
        1 => "[a-z/.]{1,40}".prop_map(Part::Link),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn generated_trees_come_back(
        parts in proptest::collection::btree_map("[a-c]{1,2}(/[a-c.]?[x-z]{1,3}){0,3}", part(), 0..40),
        threads in 1usize..4,
        small in proptest::bool::ANY,
    ) {
        let dir = tempfile::tempdir().unwrap();
        for (name, part) in &parts {
            let path = dir.path().join(name);
            // A file may stand where a directory would have to be, or the other way round.
            if fs::create_dir_all(path.parent().unwrap()).is_err() || path.symlink_metadata().is_ok() {
                continue;
            }
            match part {
                Part::File(len) => fs::write(&path, noise(u32::try_from(*len).unwrap(), *len)).unwrap(),
                Part::Directory => fs::create_dir(&path).unwrap(),
                Part::Link(target) => symlink(target, &path).unwrap(),
            }
        }
        // Links as they are: some lead out of the tree.
        let packer = Packer::new().links(Links::Keep);
        let packer = packer.threads(threads).align(if small { 1 } else { 2 << 20 }).sync(false);
        let image = pack(dir.path(), packer.verify(true));
        prop_assert_eq!(list_image(&image), list_directory(dir.path()));
    }
}
