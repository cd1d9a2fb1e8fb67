//! The project's own golden set: images that our packer makes of one fixed tree, and what our reader shows.
//!
//! `tests/golden/*.daxfs` are compared byte for byte with what is packed now, `*.txt` with the dump of it.
//! After a deliberate change run this test with `DAXFS_BLESS=1` and read the difference of the text files.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::Image;
use daxfs::format::Inode;
use daxfs_tests::dump::dump;
use daxfs_tests::examine::examine;
use daxfs_tests::tree::{self, Item, Tree};
use daxfs_tests::verdict::open;
use mkimage::{Format, Packer};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use zerocopy::FromBytes;

/// The most that the folder may hold.
const LIMIT: u64 = 256 << 10;

/// The image that is packed from an archive, in which the owners are 0 whoever runs the test.
const WITH_VIEW: &str = "view-v8";

/// A header and two tensors of these names, one of them in bfloat16.
fn safetensors(bias: &str, weight: &str, fill: u8) -> Vec<u8> {
    let mut header = format!(
        r#"{{"__metadata__":{{"format":"pt"}},"{bias}":{{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}},"{weight}":{{"dtype":"F32","shape":[2,3],"data_offsets":[8,32]}}}}"#
    )
    .into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &[fill; 32]].concat()
}

/// Two shards whose tensors have different names, and the list that joins them.
fn checkpoint() -> Tree {
    let shard = |bias, weight, fill| Item::File(0o644, safetensors(bias, weight, fill));
    let list = br#"{"metadata":{"total_size":64},"weight_map":{"b.1":"model-1.safetensors","w.1":"model-1.safetensors","b.2":"model-2.safetensors","w.2":"model-2.safetensors"}}"#;
    vec![
        (b"model.safetensors.index.json".to_vec(), Item::File(0o644, list.to_vec())),
        (b"model-1.safetensors".to_vec(), shard("b.1", "w.1", 1)),
        (b"model-2.safetensors".to_vec(), shard("b.2", "w.2", 2)),
    ]
}

/// One of everything.
fn everything() -> Tree {
    vec![
        (b"config.json".to_vec(), Item::File(0o600, b"{}\n".to_vec())),
        (b"empty".to_vec(), Item::File(0o644, Vec::new())),
        (b"model.safetensors".to_vec(), Item::File(0o444, safetensors("bias", "weight", 7))),
        (b"page".to_vec(), Item::File(0o644, vec![b'p'; 4096])),
        (b"more".to_vec(), Item::File(0o755, vec![b'm'; 4097])),
        (b"emptydir".to_vec(), Item::Dir(0o700)),
        (b"deep".to_vec(), Item::Dir(0o1777)),
        (b"deep/er".to_vec(), Item::Dir(0o2755)),
        (b"deep/er/leaf".to_vec(), Item::File(0o4755, b"leaf\n".to_vec())),
        (b"deep/again".to_vec(), Item::HardLink(b"config.json".to_vec())),
        (b"deep/up".to_vec(), Item::Symlink(b"../config.json".to_vec())),
        (b"dangling".to_vec(), Item::Symlink(b"no/where".to_vec())),
        (b"not utf-8 \xff\xfe".to_vec(), Item::File(0o644, b"bytes\n".to_vec())),
        (vec![b'n'; 255], Item::File(0o644, b"long name\n".to_vec())),
    ]
}

/// Name, tree and packer of each image.
fn subjects() -> Vec<(&'static str, Tree, Packer)> {
    let packer = || Packer::new().align(4096).erofs(false);
    vec![
        ("everything-v8", everything(), packer()),
        ("everything-v5", everything(), packer().format(Format::V5).exact(true)),
        ("plain-v8", everything(), packer().plain(true)),
        ("checkpoint-v8", checkpoint(), packer()),
        ("empty-v8", Vec::new(), packer()),
        // As it is by default, with a view, which has the owners, too.
        (WITH_VIEW, everything(), Packer::new().align(4096).dedupe(true)),
    ]
}

/// Owners are those of whoever runs the test; in the stored images they are 0.
fn without_owners(mut bytes: Vec<u8>) -> Vec<u8> {
    let table = open(bytes.clone(), false).unwrap().superblock().inode_table.clone();
    let table = usize::try_from(table.start).unwrap()..usize::try_from(table.end).unwrap();
    for inode in <[Inode]>::mut_from_bytes(&mut bytes[table]).unwrap() {
        inode.uid = 0.into();
        inode.gid = 0.into();
    }
    bytes
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn pack(name: &str, source: &Tree, packer: Packer) -> Vec<u8> {
    use std::os::unix::fs::PermissionsExt;
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("tree");
    fs::create_dir(&root).unwrap();
    tree::write(source, &root);
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    let image = work.path().join("image");
    if name == WITH_VIEW {
        let archive = work.path().join("files.tar");
        let mut tar = Command::new("tar");
        tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-cf"]).arg(&archive);
        assert!(tar.arg("-C").arg(&root).arg(".").status().unwrap().success());
        let mut input = OsString::from("tar:");
        input.push(&archive);
        packer.input(input).plan().unwrap().write_file(&image).unwrap();
        assert!(Image::open(&image).unwrap().check_erofs().unwrap());
        return fs::read(&image).unwrap();
    }
    packer.input(&root).plan().unwrap().write_file(&image).unwrap();
    without_owners(fs::read(&image).unwrap())
}

#[test]
fn images_and_dumps_are_what_they_were() {
    let bless = std::env::var_os("DAXFS_BLESS").is_some();
    for (name, source, packer) in subjects() {
        let packed = pack(name, &source, packer);
        let image = open(packed.clone(), true).unwrap();
        examine(&image);
        let shown = dump(&image);
        let (image_file, dump_file) =
            (folder().join(format!("{name}.daxfs")), folder().join(format!("{name}.txt")));
        if bless {
            fs::write(&image_file, &packed).unwrap();
            fs::write(&dump_file, &shown).unwrap();
        }
        let stored = fs::read(&image_file).unwrap();
        let first = packed.iter().zip(&stored).position(|(now, then)| now != then);
        assert!(
            packed == stored,
            "{name}: {} bytes packed, {} stored, first difference at {first:#x?}",
            packed.len(),
            stored.len()
        );
        similar(&shown, &fs::read_to_string(&dump_file).unwrap(), name);
    }
}

/// Images with an index of version 1, as this packer made them before version 2.
#[test]
fn an_index_of_version_1_is_read() {
    for name in ["everything-v8", "checkpoint-v8"] {
        let path = folder().join("v1").join(name);
        let image = Image::open(path.with_extension("daxfs")).unwrap();
        let index = image.index().unwrap().unwrap();
        assert_eq!(index.version(), 1);
        assert!(image.tensors().unwrap().indexed());
        index.check(&image).unwrap();
        let content = image.content_hash().unwrap();
        assert_eq!(daxfs::content_hash(&image, |_, _| Ok::<_, daxfs::Error>(())).unwrap(), content);
        daxfs::OpenOptions::new().expect(content).open(path.with_extension("daxfs")).unwrap();
        similar(&dump(&image), &fs::read_to_string(path.with_extension("txt")).unwrap(), name);
    }
}

fn similar(shown: &str, stored: &str, name: &str) {
    for (now, then) in shown.lines().zip(stored.lines()) {
        assert_eq!(now, then, "{name}: shown left, stored right");
    }
    assert_eq!(shown.lines().count(), stored.lines().count(), "{name}");
}

#[test]
fn the_stored_images_open_from_the_file_too() {
    if std::env::var_os("DAXFS_BLESS").is_some() {
        // The other test is writing them.
        return;
    }
    let mut total = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        total += fs::metadata(&path).unwrap().len();
        if path.extension().is_some_and(|extension| extension == "daxfs") {
            let image = Image::open(&path).unwrap();
            similar(
                &dump(&image),
                &fs::read_to_string(path.with_extension("txt")).unwrap(),
                &path.to_string_lossy(),
            );
        }
    }
    assert!(total <= LIMIT, "{total} bytes in {}", folder().display());
}
