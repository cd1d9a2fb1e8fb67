//! Trees as people have them: links out of the tree, stores of blobs, leftovers, twins; docs/compatibility.md lists them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{list_directory, list_image, open_strict, safetensors, write};
use daxfs::{FileType, Image};
use mkimage::{Error, Links, Memory, Packer, Result, Summary};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// What is packed, and an image of it beside it.
fn pack(dir: &Path, packer: Packer) -> (Summary, Image) {
    let path = dir.join("image.daxfs");
    let summary = packer.verify(true).plan().unwrap().write_file(&path).unwrap();
    (summary, open_strict(&path))
}

fn plan(packer: Packer) -> Result<()> {
    packer.plan().map(|_| ())
}

fn names(image: &Image) -> Vec<String> {
    let mut names: Vec<_> = image
        .walk()
        .map(|entry| String::from_utf8(entry.path()).unwrap())
        .filter(|path| !path.starts_with("/.daxfs") && path != "/")
        .collect();
    names.sort();
    names
}

fn ino(image: &Image, path: &str) -> u64 {
    image.entry(path).unwrap().metadata().ino
}

const REVISION: &str = "models--org--name/snapshots/0123456789abcdef0123456789abcdef01234567";

/// What a download of Hugging Face leaves: blobs named by their hashes, and links to them.
fn hugging_face(dir: &Path) {
    let root = dir.join("models--org--name");
    let revision = dir.join(REVISION);
    fs::create_dir_all(revision.join("sub")).unwrap();
    write(&root, "refs/main", b"0123456789abcdef0123456789abcdef01234567");
    let map =
        br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    for (name, hash, contents) in [
        ("config.json", "c0", b"{}".to_vec()),
        ("model-00001-of-00002.safetensors", "a1", safetensors(&[("a", "F32", &[300])])),
        ("model-00002-of-00002.safetensors", "b2", safetensors(&[("b", "F32", &[7])])),
        ("model.safetensors.index.json", "d3", map.to_vec()),
        ("sub/again.safetensors", "a1", safetensors(&[("a", "F32", &[300])])),
    ] {
        let blob = hash.repeat(32);
        write(&root, format!("blobs/{blob}"), &contents);
        let up = if name.contains('/') { "../../../" } else { "../../" };
        symlink(format!("{up}blobs/{blob}"), revision.join(name)).unwrap();
    }
}

#[test]
fn a_snapshot_of_hugging_face() {
    let dir = tempfile::tempdir().unwrap();
    hugging_face(dir.path());
    let (summary, image) = pack(dir.path(), Packer::new().input(dir.path().join(REVISION)));
    assert_eq!((summary.files, summary.symlinks, summary.followed_links, summary.hard_links), (4, 0, 5, 1));
    assert_eq!((summary.tensors, &summary.warnings[..]), (2, &[][..]));
    assert!(summary.to_string().contains("5 links followed"), "{summary}");
    let tensors = image.tensors().unwrap();
    assert!(tensors.indexed());
    assert_eq!(tensors.get("b").unwrap().shape(), [7]);
    assert_eq!(tensors.get("a").unwrap().bytes().unwrap().len(), 1200);
    assert_eq!(image.file("config.json").unwrap().to_vec().unwrap(), b"{}");
    // Each blob is stored once.
    assert_eq!(ino(&image, "/sub/again.safetensors"), ino(&image, "/model-00001-of-00002.safetensors"));

    // As it was: links without files.
    let (summary, image) =
        pack(dir.path(), Packer::new().input(dir.path().join(REVISION)).links(Links::Keep));
    assert_eq!((summary.files, summary.symlinks, summary.followed_links), (0, 5, 0));
    assert!(image.tensors().is_err() && summary.warnings.is_empty());

    let error = plan(Packer::new().input(dir.path().join(REVISION)).links(Links::Refuse)).unwrap_err();
    assert!(matches!(error, Error::Link { .. }) && error.to_string().contains("config.json"), "{error}");
    let error = plan(Packer::new().input(dir.path().join(REVISION)).confined(true)).unwrap_err();
    assert!(matches!(error, Error::Confined { .. }), "{error}");
}

#[test]
fn a_whole_cache_of_hugging_face() {
    let dir = tempfile::tempdir().unwrap();
    hugging_face(dir.path());
    for links in [Links::Auto, Links::Keep, Links::Follow] {
        let (summary, image) =
            pack(dir.path(), Packer::new().input(dir.path().join("models--org--name")).links(links));
        let is_followed = links == Links::Follow;
        assert_eq!((summary.files, summary.tensors), (5, 2), "{links}");
        assert_eq!(summary.followed_links, if is_followed { 5 } else { 0 });
        assert_eq!(summary.symlinks, if is_followed { 0 } else { 5 });
        assert!(summary.warnings.is_empty(), "{:?}", summary.warnings);
        let revision = format!("/{}", REVISION.split_once('/').unwrap().1);
        let tensors = image.tensors_at(&revision).unwrap();
        assert_eq!(tensors.get("a").unwrap().shape(), [300]);
        assert_eq!(image.tensors().unwrap().len(), 2);
        let file = image.file(format!("{revision}/model-00002-of-00002.safetensors")).unwrap();
        if !is_followed {
            assert_eq!(file.path(), format!("/blobs/{}", "b2".repeat(32)).as_bytes());
        }
        assert!(file.tensors().unwrap().indexed());
        let index = image.index().unwrap().unwrap();
        for entry in image.walk().filter(|entry| entry.file_type() == FileType::File) {
            index.verify_file(&entry.file().unwrap()).unwrap();
            index.verify_checkpoint(&entry.file().unwrap()).unwrap();
        }
    }
}

#[test]
fn contents_tell_where_no_name_does() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("blobs");
    write(&blobs, "ab".repeat(20), &safetensors(&[("small", "U8", &[3])]));
    write(&blobs, "weights", &safetensors(&[("large", "U8", &[3000])]));
    write(&blobs, "text", &b"{\"no\": \"header\"}".repeat(200));
    write(&blobs, "cd".repeat(20), b"short");
    let (summary, image) = pack(dir.path(), Packer::new().input(&blobs));
    assert_eq!((summary.tensors, summary.warnings.len()), (2, 0));
    assert!(image.file("weights").unwrap().tensors().unwrap().indexed());
}

#[test]
fn links_that_stay_and_links_that_leave() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
    write(&outside, "far", b"far");
    write(&outside, "folder/one", b"1");
    symlink("one", outside.join("folder/inner")).unwrap();
    symlink("../far", outside.join("folder/up")).unwrap();
    symlink(dir.path().join("tree/a/file"), outside.join("folder/back")).unwrap();
    write(&tree, "a/file", b"here");
    fs::create_dir(tree.join("b")).unwrap();
    for (name, target) in [
        ("b/inside", "../a/file"),
        ("b/rooted", "/a/file"),
        ("b/chain", "leaves"),
        ("b/leaves", "../../outside/far"),
        ("b/nowhere", "../gone"),
        ("b/circle", "circle"),
        ("b/device", "/dev/null"),
        ("first", "../outside/folder"),
        ("second", "../outside/folder"),
        ("through", "first/one"),
    ] {
        symlink(target, tree.join(name)).unwrap();
    }
    symlink(tree.join("a"), tree.join("b/host")).unwrap();

    let (summary, image) = pack(dir.path(), Packer::new().input(&tree));
    let link = |path: &str| {
        let entry = image.entry_no_follow(path).unwrap();
        (entry.file_type() == FileType::Symlink)
            .then(|| String::from_utf8(entry.read_link().unwrap().to_vec()).unwrap())
    };
    let read = |path: &str| image.file(path).unwrap().to_vec().unwrap();
    for (path, target) in [
        ("/b/inside", Some("../a/file")),
        ("/b/rooted", Some("/a/file")),
        ("/b/chain", Some("leaves")),
        ("/b/leaves", None),
        ("/b/nowhere", Some("../gone")),
        ("/b/circle", Some("circle")),
        ("/b/device", Some("/dev/null")),
        ("/first", None),
        ("/first/inner", Some("one")),
        ("/first/up", None),
        ("/first/back", None),
        // A folder is listed once.
        ("/second", Some("first")),
        ("/through", Some("first/one")),
        ("/b/host", Some("../a")),
    ] {
        assert_eq!(link(path).as_deref(), target, "{path}");
    }
    for (path, contents) in [
        ("/b/inside", &b"here"[..]),
        ("/b/rooted", b"here"),
        ("/b/chain", b"far"),
        ("/b/leaves", b"far"),
        ("/first/one", b"1"),
        ("/second/inner", b"1"),
        ("/first/up", b"far"),
        ("/first/back", b"here"),
        ("/through", b"1"),
        ("/b/host/file", b"here"),
    ] {
        assert_eq!(read(path), contents, "{path}");
    }
    assert_eq!(ino(&image, "/first/back"), ino(&image, "/a/file"));
    assert_eq!(ino(&image, "/first/up"), ino(&image, "/b/leaves"));
    assert_eq!((summary.files, summary.followed_links), (3, 6));
    let warnings = summary.warnings.join("\n");
    assert_eq!(summary.warnings.len(), 3, "{warnings}");
    for text in ["b/nowhere: the symbolic link to ../gone leads nowhere", "in a circle", "character device"] {
        assert!(warnings.contains(text), "{warnings}");
    }

    // Whatever the number of threads, the image is the same.
    let bytes = fs::read(dir.path().join("image.daxfs")).unwrap();
    pack(dir.path(), Packer::new().input(&tree).threads(1));
    assert_eq!(fs::read(dir.path().join("image.daxfs")).unwrap(), bytes);
}

/// One link of several names leads to the same folder from different depths.
#[test]
fn names_of_one_link_have_targets_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    write(&tree, "data/file", b"found");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    symlink(tree.join("data"), tree.join("first")).unwrap();
    symlink("data/file", tree.join("kept")).unwrap();
    for name in ["a/second", "a/b/third"] {
        fs::hard_link(tree.join("first"), tree.join(name)).unwrap();
    }
    fs::hard_link(tree.join("kept"), tree.join("kept again")).unwrap();
    let (_, image) = pack(dir.path(), Packer::new().input(&tree));
    for name in ["first", "a/second", "a/b/third"] {
        assert_eq!(image.file(format!("/{name}/file")).unwrap().to_vec().unwrap(), b"found", "{name}");
    }
    assert_eq!(ino(&image, "/kept"), ino(&image, "/kept again"));
}

#[test]
fn all_links_followed() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    write(&tree, "a/file", b"here");
    symlink("a", tree.join("b")).unwrap();
    symlink("b/file", tree.join("c")).unwrap();
    let follow = |tree: &Path| Packer::new().input(tree).links(Links::Follow);
    let (summary, image) = pack(dir.path(), follow(&tree));
    assert_eq!(names(&image), ["/a", "/a/file", "/b", "/b/file", "/c"]);
    assert_eq!((summary.files, summary.symlinks, summary.followed_links, summary.hard_links), (1, 0, 2, 2));
    assert_eq!(image.file("/b/file").unwrap().to_vec().unwrap(), b"here");

    symlink("gone", tree.join("d")).unwrap();
    let error = plan(follow(&tree)).unwrap_err();
    assert!(error.to_string().contains("tree/d: the symbolic link to gone leads nowhere"), "{error}");
    fs::remove_file(tree.join("d")).unwrap();
    symlink("..", tree.join("a/up")).unwrap();
    let error = plan(follow(&tree)).unwrap_err();
    assert!(matches!(&error, Error::Link { .. }) && error.to_string().contains("hold itself"), "{error}");
    assert!(error.to_string().contains("--links keep"), "{error}");
    // In the tree it may stay.
    plan(Packer::new().input(&tree)).unwrap();
    // A folder around the tree holds the tree.
    symlink("../..", tree.join("a/out")).unwrap();
    let error = plan(Packer::new().input(&tree)).unwrap_err();
    assert!(matches!(&error, Error::Link { .. }) && error.to_string().contains("hold itself"), "{error}");
    plan(Packer::new().input(&tree).links(Links::Keep)).unwrap();
}

/// 2 links in each of 40 folders would be 2^40 names.
#[test]
fn links_do_not_multiply() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for at in 0..40 {
        let folder = dir.path().join(format!("d{at}"));
        fs::create_dir(&folder).unwrap();
        for name in ["x", "y"] {
            symlink(format!("../d{}", at + 1), folder.join(name)).unwrap();
        }
    }
    write(dir.path(), "d40/file", b"deep");
    symlink("../d0", tree.join("start")).unwrap();
    let (summary, image) = pack(dir.path(), Packer::new().input(&tree));
    assert_eq!((summary.files, summary.directories, summary.symlinks), (1, 42, 40));
    let path = format!("/start{}/file", "/x".repeat(40));
    assert_eq!(image.file(path).unwrap().to_vec().unwrap(), b"deep");
    let error = plan(Packer::new().input(&tree).links(Links::Follow)).unwrap_err();
    assert!(matches!(error, Error::TooMany { .. }), "{error}");
}

#[test]
fn globs_choose_what_is_packed() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    for name in
        ["config.json", "model.bin", "original/a.pth", "original/b.json", "deep/er/x.json", "deep/er/y"]
    {
        write(&tree, name, name.as_bytes());
    }
    let (summary, image) =
        pack(dir.path(), Packer::new().input(&tree).exclude("*.bin").exclude("/original/"));
    assert_eq!(names(&image), ["/config.json", "/deep", "/deep/er", "/deep/er/x.json", "/deep/er/y"]);
    assert_eq!(summary.left_out, ["model.bin", "original/"]);
    assert!(summary.to_string().contains("left out: model.bin, original/"), "{summary}");

    let (summary, image) = pack(dir.path(), Packer::new().input(&tree).include("*.json").exclude("b.*"));
    assert_eq!(names(&image), ["/config.json", "/deep", "/deep/er", "/deep/er/x.json"]);
    assert_eq!(summary.left_out, ["model.bin", "original/", "deep/er/y"]);

    let (_, image) = pack(dir.path(), Packer::new().input(&tree).include("/deep/"));
    assert_eq!(names(&image), ["/deep", "/deep/er", "/deep/er/x.json", "/deep/er/y"]);

    // Names of several inputs are those that they have in the image.
    let inputs = || Packer::new().input(tree.join("deep")).input(tree.join("config.json"));
    let (_, image) = pack(dir.path(), inputs().include("deep/er/y"));
    assert_eq!(names(&image), ["/deep", "/deep/er", "/deep/er/y"]);
    let (summary, image) = pack(dir.path(), inputs().exclude("*.json").exclude("deep"));
    assert!(names(&image).is_empty() && summary.warnings[0].contains("no file is left"), "{summary:?}");
    assert_eq!(summary.left_out, ["config.json", "deep/"]);

    // A link that leads to a folder is one to a glob that means folders.
    symlink("../original", tree.join("deep/linked")).unwrap();
    let (summary, _) = pack(dir.path(), Packer::new().input(tree.join("deep")).exclude("linked/"));
    assert_eq!(summary.left_out, ["linked"]);

    let error = plan(Packer::new().input(&tree).exclude("[")).unwrap_err();
    assert!(matches!(error, Error::Setting { option: "--exclude", .. }), "{error}");
}

/// No link brings back what a glob left out.
#[test]
fn links_to_what_globs_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    for name in ["secret.txt", "sub/hidden/key", "sub/open", "z"] {
        write(&tree, name, name.as_bytes());
    }
    write(dir.path(), "outside/file", b"outside");
    write(dir.path(), "other/file", b"other");
    for (target, name) in [
        ("secret.txt", "a"),
        ("a", "b"),
        ("sub/hidden", "c"),
        ("sub/hidden/key", "d"),
        ("../outside/file", "e.skip"),
        ("e.skip", "f"),
        ("sub/open", "kept"),
        ("../other/file", "out"),
        ("nowhere", "sub/dangling"),
    ] {
        symlink(target, tree.join(name)).unwrap();
    }
    // By the path on the machine: to a file, to a folder, into a folder, to one of these links.
    for (target, name) in [("secret.txt", "g"), ("sub/hidden", "h"), ("sub/hidden/key", "sub/i"), ("a", "j")]
    {
        symlink(tree.join(target), tree.join(name)).unwrap();
    }
    let packer =
        || Packer::new().input(&tree).exclude("/secret.txt").exclude("/sub/hidden/").exclude("*.skip");
    let (summary, image) = pack(dir.path(), packer());
    assert_eq!(names(&image), ["/kept", "/out", "/sub", "/sub/dangling", "/sub/open", "/z"]);
    assert_eq!(image.file("/out").unwrap().to_vec().unwrap(), b"other");
    assert_eq!(image.file("/kept").unwrap().to_vec().unwrap(), b"sub/open");
    assert_eq!(image.file("/sub/open").unwrap().to_vec().unwrap(), b"sub/open");
    let mut left_out = summary.left_out;
    left_out.sort();
    let wanted = ["a", "b", "c", "d", "e.skip", "f", "g", "h", "j", "secret.txt", "sub/hidden/", "sub/i"];
    assert_eq!(left_out, wanted);

    // A folder that is listed twice has its files under other paths.
    fs::remove_file(tree.join("sub/dangling")).unwrap();
    symlink("sub", tree.join("again")).unwrap();
    let (_, image) = pack(dir.path(), packer().links(Links::Follow));
    assert_eq!(names(&image), ["/again", "/again/open", "/kept", "/out", "/sub", "/sub/open", "/z"]);

    // What is merely not chosen may be led to.
    let (_, image) = pack(dir.path(), Packer::new().input(&tree).include("/a"));
    assert_eq!(image.file("/a").unwrap().to_vec().unwrap(), b"secret.txt");
    let (_, image) = pack(dir.path(), Packer::new().input(&tree).include("/a").include("!secret.txt"));
    assert!(!names(&image).contains(&"/a".to_owned()));
    // Several inputs: the one that is left out may be led to by another.
    let inputs = Packer::new().input(tree.join("a")).input(tree.join("sub")).input(tree.join("secret.txt"));
    symlink("../secret.txt", tree.join("sub/up")).unwrap();
    let (_, image) = pack(dir.path(), inputs.exclude("secret.txt").exclude("a"));
    assert_eq!(names(&image), ["/sub", "/sub/hidden", "/sub/hidden/key", "/sub/i", "/sub/open"]);
}

#[test]
fn weights_only() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    let weights = safetensors(&[("w", "U8", &[9])]);
    for name in ["model.safetensors", "unet/diffusion_pytorch_model.safetensors"] {
        write(&tree, name, &weights);
    }
    for name in [
        "pytorch_model.bin",
        "original/consolidated.00.pth",
        "config.json",
        "tokenizer.model",
        "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.bin",
        ".git/config",
        "x.incomplete",
        "._model.safetensors",
    ] {
        write(&tree, name, name.as_bytes());
    }
    let (summary, image) = pack(dir.path(), Packer::new().input(&tree).weights_only(true));
    assert_eq!(
        names(&image),
        [
            "/config.json",
            "/model.safetensors",
            "/tokenizer.model",
            "/unet",
            "/unet/diffusion_pytorch_model.safetensors",
            "/vae",
            // Its weights have no other form there.
            "/vae/diffusion_pytorch_model.bin",
        ]
    );
    assert_eq!(summary.left_out.len(), 6, "{:?}", summary.left_out);
    assert!(summary.left_out.contains(&"unet/diffusion_pytorch_model.bin".to_owned()));
}

/// The only copy of weights stays, whatever safetensors files seem to be beside it.
#[test]
fn weights_only_leaves_the_only_copy() {
    let dir = tempfile::tempdir().unwrap();
    let weights = safetensors(&[("w", "U8", &[9])]);
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 4976698672\n",
        "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    );
    let pack_beside = |case: &str, make: &dyn Fn(&Path)| {
        let tree = dir.path().join(case);
        write(&tree, "pytorch_model.bin", b"the only copy");
        write(&tree, "original/consolidated.00.pth", b"the only copy");
        make(&tree.join("model.safetensors"));
        let (summary, image) = pack(dir.path(), Packer::new().input(&tree).weights_only(true));
        (summary.left_out, names(&image))
    };
    for case in ["pointer", "empty", "cut", "nowhere", "directory"] {
        let (left_out, names) = pack_beside(case, &|path| match case {
            "pointer" => fs::write(path, &pointer).unwrap(),
            "empty" => fs::write(path, b"").unwrap(),
            "cut" => fs::write(path, &weights[..20]).unwrap(),
            "nowhere" => symlink("nowhere", path).unwrap(),
            _ => fs::create_dir(path).unwrap(),
        });
        assert!(left_out.is_empty(), "{case}: {left_out:?}");
        assert!(names.contains(&"/pytorch_model.bin".to_owned()), "{case}: {names:?}");
    }
    // As in a snapshot of Hugging Face.
    let blob = write(dir.path(), "blob", &weights);
    let (left_out, _) = pack_beside("link", &|path| symlink(&blob, path).unwrap());
    assert_eq!(left_out, ["original/", "pytorch_model.bin"]);
    let (left_out, _) = pack_beside("adapter", &|path| {
        fs::write(path.with_file_name("adapter_model.safetensors"), &weights).unwrap();
        fs::write(path.with_file_name("adapter_model.bin"), b"twin").unwrap();
    });
    assert_eq!(left_out, ["adapter_model.bin"]);
}

#[test]
fn leftovers_are_no_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    let weights = safetensors(&[("w", "U8", &[9])]);
    write(&tree, "sub/model.safetensors", &weights);
    write(&tree, "sub/._model.safetensors", b"a resource fork of macOS");
    write(&tree, ".git/lfs/objects/model.safetensors", &weights[..20]);
    write(&tree, ".cache/huggingface/download/model.safetensors", &safetensors(&[("other", "U8", &[1])]));
    write(&tree, "sub/model.safetensors.lock", b"");
    write(&tree, "sub/x.safetensors.incomplete", b"half");
    for plain in [false, true] {
        let (_, image) = pack(dir.path(), Packer::new().input(&tree).plain(plain));
        assert!(image.tensors().unwrap().get("w").is_ok());
        assert!(image.tensors_at("/sub").unwrap().get("w").is_ok());
        // Who names one, means it.
        assert!(image.tensors_at("/.cache/huggingface/download").unwrap().get("other").is_ok());
    }
    let (summary, _) = pack(dir.path(), Packer::new().input(tree.join("sub")));
    assert!(summary.warnings.is_empty(), "{:?}", summary.warnings);
}

#[test]
fn pointers_of_git_lfs() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 4976698672\n",
        "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    );
    write(&tree, "model.safetensors", pointer.as_bytes());
    write(&tree, "sub/pytorch_model.bin", pointer.as_bytes());
    write(&tree, "notes.txt", pointer.as_bytes());
    let (summary, _) = pack(dir.path(), Packer::new().input(&tree));
    assert_eq!(summary.warnings.len(), 2, "{:?}", summary.warnings);
    for (warning, name) in summary.warnings.iter().zip(["model.safetensors: ", "pytorch_model.bin: "]) {
        assert!(warning.contains(name), "{warning}");
        assert!(warning.contains("not downloaded: run git lfs pull"), "{warning}");
    }
}

#[test]
fn an_output_that_is_an_input_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let contents = common::noise(1, 3 << 20);
    let a = write(dir.path(), "in/a", &contents);
    write(dir.path(), "other/b", b"b");
    fs::hard_link(&a, dir.path().join("other/hard")).unwrap();
    symlink("../in/a", dir.path().join("other/soft")).unwrap();
    symlink("in", dir.path().join("way")).unwrap();
    let outputs = ["in/a", "in/./a", "in/../in/a", "way/a", "other/hard", "other/soft"];
    for output in outputs.map(|output| dir.path().join(output)) {
        for input in ["in/a", "other/soft", "other/hard"].map(|input| dir.path().join(input)) {
            for packer in
                [Packer::new().input(&input), Packer::new().input(dir.path().join("other/b")).input(&input)]
            {
                let error = packer.clone().plan().unwrap().write_file(&output).unwrap_err();
                assert!(matches!(error, Error::Output { .. }), "{error}");
                assert!(error.to_string().contains("is being packed"), "{error}");
                let memory = Memory::parse(output.as_os_str(), mkimage::HugePages::No).unwrap();
                let error = packer.plan().unwrap().write_memory(&memory).unwrap_err();
                assert!(matches!(error, Error::Output { .. }), "{error}");
            }
        }
    }
    assert_eq!(fs::read(&a).unwrap(), contents);
    assert!(dir.path().join("other/soft").is_symlink());
    // A file that a link leads to is as much an input.
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    symlink("../in/a", tree.join("link")).unwrap();
    let error = Packer::new().input(&tree).plan().unwrap().write_file(&a).unwrap_err();
    assert!(matches!(error, Error::Output { .. }), "{error}");
}

/// A chain of directories that no path reaches, with directories beside it that wait for their turn.
#[test]
fn deeper_than_a_path_can_be() {
    use nix::fcntl::{OFlag, open, openat};
    use nix::sys::stat::{Mode, mkdirat};
    const DEPTH: usize = 3000;
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    write(&tree, "file", b"top");
    write(dir.path(), "outside/file", b"outside");
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut at = open(&tree, flags, Mode::empty()).unwrap();
    for depth in 0..DEPTH {
        mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
        if depth % 10 == 0 {
            mkdirat(&at, "e", Mode::S_IRWXU).unwrap();
            mkdirat(&at, "a", Mode::S_IRWXU).unwrap();
        }
        at = openat(&at, "d", flags, Mode::empty()).unwrap();
    }
    let mut file = fs::File::from(
        openat(&at, "deep", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::from_bits_truncate(0o644)).unwrap(),
    );
    std::io::Write::write_all(&mut file, b"deep").unwrap();
    let outside = dir.path().join("outside");
    nix::unistd::symlinkat(&outside, &at, "out").unwrap();
    let (summary, image) = pack(dir.path(), Packer::new().input(&tree));
    assert_eq!((summary.files, summary.followed_links), (3, 1));
    assert_eq!(summary.directories, 1 + DEPTH as u64 + 2 * (DEPTH as u64).div_ceil(10) + 1);
    let deepest = "/d".repeat(DEPTH);
    assert_eq!(image.file(format!("{deepest}/deep")).unwrap().to_vec().unwrap(), b"deep");
    assert_eq!(image.file(format!("{deepest}/out/file")).unwrap().to_vec().unwrap(), b"outside");
}

#[test]
fn links_are_as_before_in_a_tree_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    common::varied_tree(&dir.path().join("tree"));
    let (summary, image) = pack(dir.path(), Packer::new().input(dir.path().join("tree")));
    assert_eq!(list_image(&image), list_directory(&dir.path().join("tree")));
    assert_eq!((summary.followed_links, summary.warnings.len()), (0, 2), "{:?}", summary.warnings);
}
