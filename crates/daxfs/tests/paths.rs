//! What a path in an image leads to, and what an opened image says of itself.

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use daxfs::{Error, FileType, Image, MAX_LINKS, OpenOptions, Region, ViewKind};
use dmabuf::{HugePages, Memfd, Seals};
use mkimage::{Links, Packer};

/// Packs a folder with links as they are.
fn packed(root: &Path, path: &Path) -> Image {
    Packer::new().input(root).links(Links::Keep).plan().unwrap().write_file(path).unwrap();
    Image::open(path).unwrap()
}

fn made(dir: &Path) -> Image {
    let root = dir.join("tree");
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/b/file"), b"in b").unwrap();
    fs::write(root.join("top"), b"at the top").unwrap();
    for (target, link) in [
        ("b/file", "a/to-file"),
        ("/a/b", "a/absolute"),
        ("../top", "a/up"),
        ("a", "dir"),
        ("dir/to-file", "through"),
        ("top/", "slash"),
        ("top/.", "dot"),
        ("nowhere", "dangling"),
        ("self", "self"),
        ("..", "a/b/parent"),
    ] {
        symlink(target, root.join(link)).unwrap();
    }
    // One link after the other, the first to the last.
    symlink("top", root.join("chain-1")).unwrap();
    for at in 2..=MAX_LINKS + 1 {
        symlink(format!("chain-{}", at - 1), root.join(format!("chain-{at}"))).unwrap();
    }
    packed(&root, &dir.join("image"))
}

#[test]
fn paths_lead_where_the_kernel_would_go() {
    let dir = tempfile::tempdir().unwrap();
    let image = made(dir.path());
    for (path, leads_to) in [
        ("", "/"),
        ("/", "/"),
        ("..", "/"),
        ("a", "/a"),
        ("a/", "/a"),
        ("/a//b/./", "/a/b"),
        ("a/b/file", "/a/b/file"),
        ("a/b/../b/file", "/a/b/file"),
        ("a/to-file", "/a/b/file"),
        ("a/absolute/file", "/a/b/file"),
        ("a/absolute", "/a/b"),
        ("a/up", "/top"),
        ("dir", "/a"),
        ("dir/", "/a"),
        ("dir/.", "/a"),
        ("dir/../top", "/top"),
        ("through", "/a/b/file"),
        ("a/b/parent/to-file", "/a/b/file"),
        ("a/absolute/../up", "/top"),
    ] {
        let found = image.entry(path).unwrap();
        assert_eq!(String::from_utf8(found.path()).unwrap(), leads_to, "{path}");
        assert!(image.contains(path), "{path}");
    }
    for (path, leads_to, kind) in [
        ("dir", "/dir", FileType::Symlink),
        ("dir/", "/a", FileType::Directory),
        ("dir/.", "/a", FileType::Directory),
        ("a/up", "/a/up", FileType::Symlink),
        ("dir/up", "/a/up", FileType::Symlink),
        ("dangling", "/dangling", FileType::Symlink),
        ("a/b", "/a/b", FileType::Directory),
    ] {
        let found = image.entry_no_follow(path).unwrap();
        assert_eq!(
            (String::from_utf8(found.path()).unwrap(), found.file_type()),
            (leads_to.to_owned(), kind),
            "{path}"
        );
    }
}

#[test]
fn paths_that_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let image = made(dir.path());
    for path in ["absent", "a/absent", "dangling", "dangling/x", "a/b/parent/absent"] {
        assert!(matches!(image.entry(path).unwrap_err(), Error::NotFound { .. }), "{path}");
        assert!(!image.contains(path), "{path}");
    }
    assert!(matches!(image.entry_no_follow("absent"), Err(Error::NotFound { .. })));
    // What is near is named, by both.
    for error in [image.entry("a/b/fila").unwrap_err(), image.entry_no_follow("a/b/fila").unwrap_err()] {
        match error {
            Error::NotFound { path, near } => {
                assert_eq!(path, b"a/b/fila");
                assert!(near.iter().any(|near| near.ends_with("a/b/file")), "{near:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    for path in [
        "top/",
        "top/x",
        "top/..",
        "a/to-file/",
        "through/",
        "slash",
        "a/b/file/x",
        "top/.",
        "top//.",
        "a/up/.",
        "dot",
    ] {
        let error = image.entry(path).unwrap_err();
        assert!(
            matches!(&error, Error::NotADirectory { path: named } if named == path.as_bytes()),
            "{path}: {error:?}"
        );
    }
    assert!(matches!(image.entry_no_follow("top/"), Err(Error::NotADirectory { .. })));
    assert!(matches!(image.entry("self"), Err(Error::TooManyLinks { .. })));
    let last = |count: usize| image.file(format!("chain-{count}")).map(|file| file.path());
    assert_eq!(last(MAX_LINKS).unwrap(), b"/top");
    assert!(matches!(last(MAX_LINKS + 1), Err(Error::TooManyLinks { .. })));
}

#[test]
fn what_an_image_says_of_itself() {
    let dir = tempfile::tempdir().unwrap();
    let image = made(dir.path());
    assert_eq!(image.len(), image.walk().count());
    assert!(!image.is_empty());
    assert_eq!((image.view_kind(), image.generation(), image.superblock().version), (ViewKind::Base, 0, 8));
    assert_eq!(image.root().path(), b"/");
    let shown = format!("{image:?}");
    assert!(shown.contains("version: 8") && shown.contains(&format!("entries: {}", image.len())), "{shown}");
    assert!(image.backing().is_none() && image.content_hash().is_some());
    assert!(image.index().unwrap().is_some());
    assert!(matches!(image.charge("a test", u64::MAX), Err(Error::MetadataLimit { .. })));
    image.charge("a test", 1).unwrap();
    let small = OpenOptions::new().max_metadata(1 << 20).open(dir.path().join("image")).unwrap();
    assert_eq!((small.options().metadata_bound(), small.options().is_strict()), (1 << 20, false));
    assert!(matches!(small.charge("a test", 1 << 20), Err(Error::MetadataLimit { .. })));
}

/// Bytes that change are another image, and are opened anew; those that nobody can write are not looked at.
#[test]
fn an_image_is_current_until_another_is_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(
            dir.path().join(name).join("f"),
            vec![name.as_bytes()[0]; if name == "one" { 100 } else { 9000 }],
        )
        .unwrap();
        let path = dir.path().join(format!("{name}.daxfs"));
        packed(&dir.path().join(name), &path);
        fs::read(path).unwrap()
    });
    let memfd = Memfd::create("current", one.len().max(two.len()) as u64, HugePages::No).unwrap();
    memfd.seal(Seals::SHRINK).unwrap();
    let file = fs::File::from(memfd.as_fd().try_clone_to_owned().unwrap());
    file.write_all_at(&one, 0).unwrap();
    let image = Image::from_fd(memfd.as_fd().try_clone_to_owned().unwrap()).unwrap();
    assert!(image.is_current().unwrap() && image.refresh().unwrap().is_none());
    file.write_all_at(&two, 0).unwrap();
    assert!(!image.is_current().unwrap());
    let fresh = image.refresh().unwrap().unwrap();
    assert_eq!(fresh.file("f").unwrap().to_vec().unwrap(), vec![b't'; 9000]);
    assert!(fresh.is_current().unwrap() && !image.is_current().unwrap());
    let sealed = Image::from_region(Region::from_fd(memfd.into()).unwrap().sealed_copy().unwrap()).unwrap();
    file.write_all_at(&one, 0).unwrap();
    assert!(sealed.is_current().unwrap() && !fresh.is_current().unwrap());
}
