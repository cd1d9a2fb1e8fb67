//! Layers as the image specification has them, and odd ones: what they become, whatever they are compressed with.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Attributes, Layer, Layout, Node, PLAIN, at, brief, gzip, list, read, read_bytes};
use daxfs_oci::{Kind, ROOT};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use tar::EntryType;

/// Cases by name: layers, and what is left of them, without directories.
fn cases() -> Vec<(&'static str, Vec<Layer>, Vec<&'static str>)> {
    let base = || {
        Layer::new().dir("d").file("d/a", "1").file("d/b", "2").dir("d/s").file("d/s/c", "3").file("f", "4")
    };
    let new = Layer::new;
    vec![
        ("one layer", vec![base()], vec!["/d/a=1", "/d/b=2", "/d/s/c=3", "/f=4"]),
        ("a whiteout takes away a file", vec![base(), new().gone("d/a")], vec!["/d/b=2", "/d/s/c=3", "/f=4"]),
        ("a whiteout takes away a directory", vec![base(), new().gone("d")], vec!["/f=4"]),
        (
            "a whiteout of nothing",
            vec![base(), new().gone("none").gone("no/ne")],
            vec!["/d/a=1", "/d/b=2", "/d/s/c=3", "/f=4"],
        ),
        (
            "a directory is added again",
            vec![base(), new().gone("d"), new().dir("d").file("d/n", "5")],
            vec!["/d/n=5", "/f=4"],
        ),
        (
            "added and taken away in one layer",
            vec![base(), new().dir("d").file("d/n", "5").gone("d")],
            vec!["/d/n=5", "/f=4"],
        ),
        (
            "taken away and added in one layer",
            vec![base(), new().gone("d").dir("d").file("d/n", "5")],
            vec!["/d/n=5", "/f=4"],
        ),
        (
            "a whiteout spares its own layer",
            vec![base(), new().file("d/a", "9").gone("d/a")],
            vec!["/d/a=9", "/d/b=2", "/d/s/c=3", "/f=4"],
        ),
        (
            "opaque",
            vec![base(), new().dir("d").file("d/.wh..wh..opq", "").file("d/n", "5")],
            vec!["/d/n=5", "/f=4"],
        ),
        (
            "opaque behind what it spares",
            vec![base(), new().file("d/s/n", "5").file("d/.wh..wh..opq", "")],
            vec!["/d/s/n=5", "/f=4"],
        ),
        ("opaque root", vec![base(), new().file(".wh..wh..opq", "").file("n", "5")], vec!["/n=5"]),
        (
            "opaque twice",
            vec![
                base(),
                new().file("d/n", "5").file("d/.wh..wh..opq", "").file("d/m", "6").file("d/.wh..wh..opq", ""),
            ],
            vec!["/d/m=6", "/d/n=5", "/f=4"],
        ),
        (
            "what AUFS keeps is passed over",
            vec![
                new()
                    .dir(".wh..wh.plnk")
                    .file(".wh..wh.plnk/1.2", "x")
                    .file(".wh..wh.aufs", "")
                    .file("a", "1"),
            ],
            vec!["/a=1"],
        ),
        (
            "a hard link into a lower layer",
            vec![base(), new().hard_link("l", "d/a"), new().gone("d/a")],
            vec!["/d/b=2", "/d/s/c=3", "/f=4", "/l=1"],
        ),
        (
            "a hard link keeps what is replaced",
            vec![base().hard_link("l", "f"), new().file("f", "new")],
            vec!["/d/a=1", "/d/b=2", "/d/s/c=3", "/f=new", "/l=4"],
        ),
        (
            "a hard link to a link",
            vec![new().symlink("s", "f").hard_link("l", "s").file("f", "4")],
            vec!["/f=4", "/l->f", "/s->f"],
        ),
        (
            "hard links with roots",
            vec![new().file("f", "4").hard_link("/l", "/f").hard_link("m", "./l").hard_link("n", "../../m")],
            vec!["/f=4", "/l=4", "/m=4", "/n=4"],
        ),
        ("a directory becomes a file", vec![base(), new().file("d", "5")], vec!["/d=5", "/f=4"]),
        (
            "a file becomes a directory",
            vec![base(), new().dir("f").file("f/n", "5"), new().gone("d")],
            vec!["/f/n=5"],
        ),
        (
            "a link becomes a directory",
            vec![base().symlink("l", "d"), new().dir("l").file("l/n", "5"), new().gone("d")],
            vec!["/f=4", "/l/n=5"],
        ),
        (
            "a directory becomes a link",
            vec![base(), new().symlink("d/s", "/f"), new().gone("d/a")],
            vec!["/d/b=2", "/d/s->/f", "/f=4"],
        ),
        (
            "a link in place of a directory is followed inside",
            vec![base().symlink("l", "/d/s"), new().file("l/n", "5").gone("l/c")],
            vec!["/d/a=1", "/d/b=2", "/d/s/n=5", "/f=4", "/l->/d/s"],
        ),
        (
            "a relative link in place of a directory",
            vec![base().symlink("d/l", "../d/./s"), new().file("d/l/n", "5"), new().gone("d/a")],
            vec!["/d/b=2", "/d/l->../d/./s", "/d/s/c=3", "/d/s/n=5", "/f=4"],
        ),
        (
            "no link leads out",
            vec![new().symlink("l", "../../../etc").symlink("m", "/../..").file("l/n", "5").file("m/o", "6")],
            vec!["/etc/n=5", "/l->../../../etc", "/m->/../..", "/o=6"],
        ),
        (
            "a link to nothing makes what it leads to",
            vec![new().symlink("l", "x/../y/z").file("l/n", "5")],
            vec!["/l->x/../y/z", "/y/z/n=5"],
        ),
        (
            "names that lead out",
            vec![new().file("../../a", "1").file("/b", "2").file("c/../../d", "3").file("./e//f/.", "4")],
            vec!["/a=1", "/b=2", "/d=3", "/e/f=4"],
        ),
        (
            "the last of several members counts",
            vec![new().file("f", "1").file("f", "2").symlink("f", "x").file("f", "3")],
            vec!["/f=3"],
        ),
        ("no names at all", vec![new()], vec![]),
        ("directories that no archive has", vec![new().file("x/y/z", "1")], vec!["/x/y/z=1"]),
        (
            "old archives name directories by a slash",
            vec![new().old_dir("o/").file("o/f", "1")],
            vec!["/o/f=1"],
        ),
    ]
}

#[test]
fn cases_become_what_they_must() {
    for (name, layers, wanted) in cases() {
        let listing = read(&layers).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(brief(&listing), wanted, "{name}");
    }
}

/// What umoci unpacks, as a listing.
fn unpacked(root: &Path) -> BTreeMap<String, Node> {
    let mut listing = BTreeMap::new();
    let mut todo = vec![(root.to_path_buf(), String::new())];
    while let Some((path, name)) = todo.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let (mode, owner) = (stat.mode() & 0o7777, (stat.uid(), stat.gid()));
        let node = if stat.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                let entry = entry.unwrap();
                todo.push((entry.path(), format!("{name}/{}", entry.file_name().to_str().unwrap())));
            }
            Node::Directory { mode, owner }
        } else if stat.is_symlink() {
            Node::Symlink { owner, target: fs::read_link(&path).unwrap().to_str().unwrap().to_owned() }
        } else {
            Node::File { mode, owner, contents: fs::read(&path).unwrap() }
        };
        listing.insert(if name.is_empty() { "/".to_owned() } else { name }, node);
    }
    listing
}

/// Each case as umoci unpacks it: names, kinds, permissions, owners, contents.
#[test]
fn umoci_unpacks_the_same() {
    let is_root = fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0);
    if !is_root || Command::new("umoci").arg("--version").output().is_err() {
        let required = std::env::var_os("DAXFS_REQUIRE_ROOT").is_some();
        assert!(
            !required && std::env::var_os("CI").is_none(),
            "umoci, as root, is what layers are compared with"
        );
        eprintln!("not run: umoci, as root, is what layers are compared with");
        return;
    }
    let owned = Attributes { mode: 0o4751, owner: (1000, 70_000), mtime: 1 };
    let more = [
        (
            "owners and permissions",
            vec![
                Layer::new()
                    .member(
                        EntryType::Directory,
                        "./",
                        "",
                        b"",
                        Attributes { mode: 0o711, owner: (3, 4), mtime: 1 },
                    )
                    .member(EntryType::Regular, "suid", "", b"#!", owned)
                    .member(EntryType::Directory, "d", "", b"", Attributes { mode: 0o1777, ..owned })
                    .member(EntryType::Symlink, "l", "suid", b"", owned)
                    .hard_link("h", "suid"),
                Layer::new().member(EntryType::Directory, "d", "", b"", Attributes { mode: 0o2750, ..PLAIN }),
            ],
        ),
        (
            "long names",
            vec![
                Layer::new()
                    .file(&format!("{}/{}", "d".repeat(200), "f".repeat(255)), "1")
                    .symlink("l", &"t/".repeat(400))
                    .pax(&[("path", "p\u{e4}x/\u{1f600}".as_bytes())])
                    .file("short", "2"),
            ],
        ),
    ];
    let cases = cases().into_iter().map(|(name, layers, _)| (name, layers)).chain(more);
    for (name, layers) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let mut layout = Layout::new(&path);
        let manifest = layout.image(&layers, gzip, "amd64");
        layout.tag(manifest, "case");
        layout.finish();
        let root = dir.path().join("root");
        let image = format!("{}:case", path.display());
        let run =
            Command::new("umoci").args(["raw", "unpack", "--image", &image]).arg(&root).output().unwrap();
        // AUFS left files of its own in layers of old, which umoci takes for whiteouts of other names.
        if name.contains("AUFS") {
            continue;
        }
        assert!(run.status.success(), "{name}: {}", String::from_utf8_lossy(&run.stderr));
        let mut theirs = unpacked(&root);
        let mut ours = list(&common::read_name(&format!("oci:{image}"), &common::options()).unwrap());
        if layers.len() < 2 || !name.contains("owners") {
            // What no archive describes: umoci makes the root for its owner alone.
            for listing in [&mut theirs, &mut ours] {
                listing.remove("/");
            }
        }
        assert_eq!(ours, theirs, "{name}");
    }
}

#[test]
fn attributes_of_all_kinds() {
    let capability = b"\x01\0\0\x02\n=\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let layer = Layer::new()
        .pax(&[
            ("mtime", b"1700000000.25"),
            ("uid", b"3000000000"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.a", b"\n"),
        ])
        .member(EntryType::Regular, "ping", "", b"", Attributes { mode: 0o755, ..PLAIN })
        .hard_link("ping6", "ping")
        .member(EntryType::Char, "console", "", b"", PLAIN)
        .member(EntryType::Block, "sda", "", b"", PLAIN)
        .member(EntryType::Fifo, "initctl", "", b"", PLAIN)
        .hard_link("pipe", "initctl");
    let rootfs = read_bytes(&[layer.bytes()], &common::options()).unwrap();
    let tree = &rootfs.tree;
    let names: Vec<_> =
        tree.children(ROOT).iter().map(|&id| String::from_utf8(tree.path(id)).unwrap()).collect();
    assert_eq!(names, ["/console", "/initctl", "/ping", "/ping6", "/pipe", "/sda"]);
    let children = tree.children(ROOT);
    let ping = tree.inode(children[2]);
    assert_eq!((ping.mtime, ping.uid, ping.gid), (at(1_700_000_000, 250_000_000), 3_000_000_000, 0));
    let attributes: Vec<(&[u8], &[u8])> =
        ping.attributes.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(attributes, [(&b"security.capability"[..], &capability[..]), (b"user.a", b"\n")]);
    assert_eq!(tree.inode_number(children[2]), tree.inode_number(children[3]));
    assert_eq!(tree.inode_number(children[1]), tree.inode_number(children[4]));
    assert!(matches!(tree.inode(children[4]).kind, Kind::Special(_)));
}

#[test]
fn sparse_files_of_all_forms() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let file = fs::File::create(&path).unwrap();
    file.set_len(3 << 20).unwrap();
    use std::os::unix::fs::FileExt;
    file.write_all_at(b"begin", 0).unwrap();
    for at in 1..20 {
        file.write_all_at(&common::noise(5000), at * 131_072).unwrap();
    }
    let contents = fs::read(&path).unwrap();
    fs::write(dir.path().join("other"), "other").unwrap();
    for form in [
        "gnu",
        "oldgnu",
        "posix --sparse-version=0.0",
        "posix --sparse-version=0.1",
        "posix --sparse-version=1.0",
    ] {
        let archive = dir.path().join("archive.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(dir.path()).arg("-cSf").arg(&archive);
        let format = form
            .split(' ')
            .enumerate()
            .map(|(at, word)| if at == 0 { format!("--format={word}") } else { word.to_owned() });
        assert!(tar.args(format).args(["sparse", "other"]).status().unwrap().success());
        let bytes = fs::read(&archive).unwrap();
        assert!(bytes.len() < 1 << 20, "{form}: tar found no holes");
        for bytes in [bytes.clone(), gzip(&bytes)] {
            let listing = list(&read_bytes(&[bytes], &common::options()).unwrap());
            let Node::File { contents: found, .. } = &listing["/sparse"] else { panic!("{form}") };
            assert!(*found == contents, "{form}");
            assert!(
                matches!(&listing["/other"], Node::File { contents, .. } if contents == b"other"),
                "{form}"
            );
        }
    }
}

#[test]
fn archives_end_in_several_ways() {
    let layer = Layer::new().file("a", "1");
    let whole = layer.bytes();
    let ends = [
        whole.clone(),
        layer.cut(1024),
        [&layer.cut(1024)[..], &[0; 512]].concat(),
        [&whole[..], &[0; 8192]].concat(),
        [&whole[..], b"what lies behind the end is not looked at"].concat(),
    ];
    for bytes in ends {
        let listing = list(&read_bytes(&[bytes], &common::options()).unwrap());
        assert_eq!(brief(&listing), ["/a=1"]);
    }
}
