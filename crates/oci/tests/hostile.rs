//! Archives that are damaged or made to do harm: each is refused with a word about what is wrong, in bounded time and
//! memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{
    Attributes, FEW, Layer, PLAIN, brief, file, gzip, list, noise, options, read, read_bytes, zstd,
};
use daxfs_oci::{Error, Limits, Options};
use tar::EntryType;

fn refused(layers: &[Layer], words: &str) {
    let error = read(layers).unwrap_err().to_string();
    assert!(error.contains(words), "{words:?} is not in {error:?}");
}

#[test]
fn members_that_cannot_be_there() {
    let new = Layer::new;
    let long = "n".repeat(256);
    refused(
        &[new().file("a", "1").file("a/b", "2")],
        "layer 1: a/b: what lies around a member must be a directory (found /a is none)",
    );
    refused(&[new().file("a", "1"), new().file("a/b", "2")], "layer 2: a/b: what lies around");
    refused(
        &[new().hard_link("l", "none")],
        "a hard link must lead to a file that is there (found nothing at \"none\")",
    );
    refused(&[new().dir("d").hard_link("l", "d")], "found the directory \"d\"");
    refused(&[new().hard_link("l", "/")], "found the directory \"/\"");
    refused(&[new().file("f", "1").hard_link("f", "f")], "found nothing at \"f\"");
    refused(&[new().dir("d").file("d/f", "1").hard_link("d", "d/f")], "found nothing at \"d/f\"");
    refused(&[new().symlink("l", "")], "a symbolic link must have a target");
    refused(
        &[new().symlink("l", &"t".repeat(4096))],
        "a symbolic link must have a target of 1 to 4095 bytes",
    );
    refused(&[new().file(&long, "1")], "a name must be of at most 255 bytes (found 256 bytes)");
    refused(&[new().file(&format!("{long}/f"), "1")], "a name must be of at most 255 bytes");
    refused(&[new().symlink("a", "b").symlink("b", "a").file("a/f", "1")], "at most 40 symbolic links");
    refused(&[new().symlink("a", "a/a").file("a/f", "1")], "at most 40 symbolic links");
    refused(&[new().file(".", "1")], "the root must be a directory");
    refused(&[new().symlink("..", "/etc")], "the root must be a directory");
    refused(&[new().file(".wh.", "")], "behind .wh. there must be a name");
    refused(&[new().file("d/.wh...", "")], "behind .wh. there must be a name");
    refused(&[new().pax(&[("path", b"a\0b")]).file("x", "")], "a name must hold no NUL");
    refused(&[new().member(EntryType::new(b'D'), "d", "", b"", PLAIN)], "type 'D' of \"d\"");
}

#[test]
fn archives_that_are_cut_off() {
    let layer = Layer::new().pax(&[("mtime", b"1.5")]).file("a", noise(3000)).file("b", "1");
    let whole = layer.bytes();
    // Where a header begins, an archive may end.
    let ends = [1024 + 512 + 3072, 1024 + 512 + 3072 + 1024];
    for len in (1..whole.len() - 1024).step_by(97).chain([512, 1024, 1536]) {
        let cut = whole[..len].to_vec();
        for bytes in [cut.clone(), gzip(&cut), zstd(&cut)] {
            let error = read_bytes(&[bytes], &options()).unwrap_err();
            assert!(ends.contains(&len) || matches!(error, Error::Truncated { .. }), "{len}: {error}");
        }
    }
    for compressed in [gzip(&whole), zstd(&whole)] {
        for len in (7..compressed.len()).step_by(61) {
            let error = read_bytes(&[compressed[..len].to_vec()], &options()).unwrap_err();
            assert!(matches!(error, Error::Compression { .. }), "{len}: {error}");
        }
    }
}

#[test]
fn headers_that_are_damaged() {
    let whole = Layer::new().file("a", noise(600)).bytes();
    for at in [0, 100, 124, 148, 156, 257, 511] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x15;
        let error = read_bytes(&[bytes], &options()).unwrap_err();
        assert!(matches!(error, Error::Header { offset: 0, .. }), "{at}: {error}");
    }
    let behind = [&Layer::new().file("a", "1").cut(1024)[..], &[0; 512], &whole].concat();
    let error = read_bytes(&[behind], &options()).unwrap_err().to_string();
    assert!(error.contains("behind a block of zeros"), "{error}");
    let error = read_bytes(&[b"<html>no archive</html>".repeat(40)], &options()).unwrap_err();
    assert!(matches!(error, Error::Header { offset: 0, .. }), "{error}");
    for (start, name) in [(&b"\xfd7zXZ\0"[..], "xz"), (b"BZh91AY", "bzip2"), (b"\x04\x22\x4d\x18xx", "lz4")] {
        let error = read_bytes(&[start.to_vec()], &options()).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains(name)), "{error}");
    }
}

/// A header with sizes of its own.
fn sized(kind: EntryType, name: &str, size: u64) -> Layer {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Layer::new().block(header.as_bytes())
}

#[test]
fn sizes_that_are_absurd() {
    for size in [u64::MAX >> 1, 1 << 62, 1 << 41] {
        for encode in [<[u8]>::to_vec, gzip] {
            let bytes = encode(&sized(EntryType::Regular, "f", size).bytes());
            let error = read_bytes(&[bytes], &options()).unwrap_err();
            assert!(matches!(error, Error::Limit { what: "bytes of files", .. }), "{size}: {error}");
        }
    }
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader, EntryType::XGlobalHeader]
    {
        let error = read_bytes(&[sized(kind, "f", 1 << 40).bytes()], &options()).unwrap_err();
        assert!(matches!(error, Error::Limit { what: "bytes of headers of one member", .. }), "{error}");
    }
    refused_size("-1");
    refused_size("9223372036854775808");
    let error = read(&[Layer::new().pax(&[("size", b"4611686018427387904")]).file("f", "1")]).unwrap_err();
    assert!(matches!(error, Error::Limit { .. }), "{error}");
    // What has no bytes may say that it has some.
    let listing =
        read(&[Layer::new().block(&sized(EntryType::Symlink, "l", 1 << 30).cut(512)).file("f", "1")]);
    assert!(matches!(listing, Err(Error::Member { .. })), "a link without a target");
    let listing =
        read(&[Layer::new().block(&sized(EntryType::Directory, "d", 1 << 30).cut(512)).file("f", "1")]);
    assert_eq!(brief(&listing.unwrap()), ["/f=1"]);
}

fn refused_size(size: &str) {
    let error = read(&[Layer::new().pax(&[("size", size.as_bytes())]).file("f", "1")]).unwrap_err();
    assert!(matches!(error, Error::Header { .. }), "{error}");
}

#[test]
fn bombs() {
    let few = Options { limits: FEW, threads: 2, ..Options::default() };
    let zeros = Layer::new().file("f", vec![0; 80 << 20]).bytes();
    for bytes in [gzip(&zeros), zstd(&zeros)] {
        let error = read_bytes(std::slice::from_ref(&bytes), &few).unwrap_err();
        assert!(error.to_string().contains("(--limit allows more)"), "{error}");
        let more = Options { limits: Limits { ratio: 1 << 40, ..FEW }, ..Options::default() };
        read_bytes(&[bytes], &more).unwrap();
    }
    // Behind the end of the archive.
    let behind = [Layer::new().file("f", "1").bytes(), vec![0; 80 << 20]].concat();
    assert!(matches!(read_bytes(&[gzip(&behind)], &few), Err(Error::Limit { .. })));
    // Holes, in a file of a few bytes.
    let sparse = |len: &str| {
        Layer::new()
            .pax(&[
                ("GNU.sparse.map", b"0,1"),
                ("GNU.sparse.size", len.as_bytes()),
                ("GNU.sparse.name", b"hole"),
            ])
            .file("f", "1")
    };
    assert!(matches!(read_bytes(&[sparse("1000000000000").bytes()], &few), Err(Error::Limit { .. })));
    let listing = list(&read_bytes(&[sparse("100000").bytes()], &few).unwrap());
    assert!(matches!(&listing["/hole"], common::Node::File { contents, .. } if contents.len() == 100_000));
    // Names.
    let mut many = Layer::new();
    for number in 0..101 {
        many = many.file(&number.to_string(), "");
    }
    assert!(matches!(read_bytes(&[many.bytes()], &few), Err(Error::Limit { what: "members", .. })));
    // Directories that nobody wrote, from one name each.
    let deep = Layer::new().file(&"d/".repeat(200), "");
    assert!(matches!(read_bytes(&[deep.bytes()], &few), Err(Error::Limit { what: "members", .. })));
}

#[test]
fn maps_of_sparse_files_that_lie() {
    let records = |map: &'static [u8], size: &'static [u8]| {
        Layer::new().pax(&[("GNU.sparse.map", map), ("GNU.sparse.size", size)]).file("f", "12345")
    };
    for (map, size) in [
        (&b"0,5"[..], &b"4"[..]),
        (b"5,5,0,0", b"10"),
        (b"0,3,2,2", b"10"),
        (b"0,4", b"10"),
        (b"0,6", b"10"),
        (b"0,5,9223372036854775807,1", b"9223372036854775807"),
        (b"0,5,1", b"10"),
    ] {
        let error = read(&[records(map, size)]).unwrap_err();
        assert!(matches!(error, Error::Header { .. }), "{}: {error}", map.escape_ascii());
    }
    for map in ["", "1\n", "1\n0\n", "x\n", "99999999999999\n0\n5\n", "1\n0\n5", "1000000\n"] {
        let data = [map.as_bytes(), &vec![0; 512 - map.len()], b"12345"].concat();
        let layer = Layer::new()
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"10")])
            .file("f", data);
        let error = read(&[layer]).unwrap_err();
        assert!(matches!(error, Error::Header { .. }), "{map:?}: {error}");
    }
    let error =
        read(&[Layer::new().pax(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")]).file("f", "")]);
    assert!(error.unwrap_err().to_string().contains("0.0, 0.1 or 1.0 (found 2.0)"));
}

#[test]
fn ways_through_links_are_bounded() {
    // Each member walks a long way; all of them together would walk too long.
    let target = "a/../".repeat(800);
    let mut layer = Layer::new().dir("a").symlink("l0", &target);
    for number in 1..30 {
        layer = layer.symlink(&format!("l{number}"), &format!("{target}l{}", number - 1));
    }
    for number in 0..2000 {
        layer = layer.file(&format!("l29/{number}"), "");
    }
    let error = read_bytes(&[layer.bytes()], &options()).unwrap_err();
    assert!(matches!(error, Error::Limit { what: "names on ways through symbolic links", .. }), "{error}");
    // Paths beyond those that the kernel resolves.
    let step = "d/".repeat(1000);
    let mut layer = Layer::new().dir(&step).symlink("l0", &step);
    for number in 1..4 {
        layer = layer.symlink(&format!("l{number}"), &format!("l{}/{step}", number - 1));
    }
    let error = read_bytes(&[layer.file("l3/f", "").bytes()], &options()).unwrap_err();
    assert!(matches!(error, Error::Limit { what: "bytes of a path", .. }), "{error}");
}

#[test]
fn repeated_whiteouts_cost_nothing_more() {
    // Would be quadratic if each looked at all of the directory again.
    let mut layer = Layer::new();
    for number in 0..20_000 {
        layer = layer.file(&format!("d/{number}"), "").file("d/.wh..wh..opq", "").gone("d");
    }
    let rootfs = read_bytes(&[Layer::new().file("d/old", "").bytes(), layer.bytes()], &options()).unwrap();
    assert_eq!(list(&rootfs).len(), 20_002);
    // Members that replace each other.
    let mut layer = Layer::new();
    for _ in 0..20_000 {
        layer = layer.file("d/f", "").gone("x").dir("d/f");
    }
    assert_eq!(list(&read_bytes(&[layer.bytes()], &options()).unwrap()).len(), 3);
}

#[test]
#[ignore = "long: make test-long"]
fn long_a_million_members() {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_size(0);
    let mut bytes = Vec::with_capacity(512 << 20);
    for number in 0..1_000_000_u32 {
        header.set_path(format!("{:03}/{number:07}", number % 1000)).unwrap();
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
    }
    let rootfs = read_bytes(&[gzip(&bytes), gzip(&bytes[..512_000])], &options()).unwrap();
    drop(bytes);
    let tree = &rootfs.tree;
    let children = tree.children(daxfs_oci::ROOT);
    assert_eq!(children.len(), 1000);
    assert_eq!(children.iter().map(|&id| tree.children(id).len()).sum::<usize>(), 1_000_000);
}

#[test]
fn work_that_nobody_wants_ends() {
    let layer = Layer::new().file("f", noise(100)).bytes();
    let layers = || [file(&layer), file(&gzip(&layer)), file(&zstd(&layer))];
    for threads in [1, 2] {
        let options = Options { threads, ..Options::default() };
        for only in layers() {
            let error = daxfs_oci::read_layers([only], &options, &|| true).unwrap_err();
            assert!(matches!(error, Error::Cancelled), "{error}");
        }
        let error = daxfs_oci::read_layers(layers(), &options, &|| true).unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
    }
}

#[test]
fn owners_are_numbers_of_32_bits() {
    let root = |uid: &[u8]| read(&[Layer::new().pax(&[("uid", uid)]).file("f", "")]);
    assert!(matches!(root(b"4294967296"), Err(Error::Header { .. })));
    let listing = root(b"4294967295").unwrap();
    assert!(matches!(listing["/f"], common::Node::File { owner: (u32::MAX, 0), .. }));
    let attributes = Attributes { mode: 0o7777, ..PLAIN };
    let listing = read(&[Layer::new().member(EntryType::Regular, "f", "", b"", attributes)]).unwrap();
    assert!(matches!(listing["/f"], common::Node::File { mode: 0o7777, .. }));
}
