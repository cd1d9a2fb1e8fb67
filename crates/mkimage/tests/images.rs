//! Container images and archives as inputs: the image that they become is that of the tree that they stand for.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{list_directory, list_image, noise, open_strict, safetensors, varied_tree, write};
use daxfs::Image;
use mkimage::{Error, Limits, Links, Packer, Summary};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Makes an archive of a directory, by the machine's `tar`.
fn archive(source: &Path, archive: &Path, options: &[&str]) -> PathBuf {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--format=posix"]).args(options).arg("-C").arg(source).arg("-cf").arg(archive);
    assert!(tar.arg(".").status().unwrap().success());
    archive.to_path_buf()
}

fn named(prefix: &str, path: &Path) -> PathBuf {
    PathBuf::from(format!("{prefix}:{}", path.display()))
}

fn pack(input: &Path, packer: Packer) -> (Summary, Image, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let summary = packer.input(input).verify(true).plan().unwrap().write_file(&path).unwrap();
    assert!(summary.verified);
    (summary, open_strict(&path), fs::read(&path).unwrap())
}

fn refused(input: &Path, packer: Packer) -> Error {
    packer.input(input).plan().unwrap_err()
}

#[test]
fn an_archive_is_packed_as_its_tree_is() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    varied_tree(&root);
    // Tensors are moved, from the middle of an archive too.
    write(&root, "model.safetensors", &safetensors(&[("w", "F32", &[9]), ("x", "BF16", &[70_000])]));
    write(&root, "sparse", b"");
    fs::File::options().write(true).open(root.join("sparse")).unwrap().set_len(5 << 20).unwrap();
    let settings = || Packer::new().links(Links::Keep).dedupe(true);
    let (_, tree, of_tree) = pack(&root, settings());
    let same = |left: &Image, right: &Path| list_image(left) == list_directory(right);
    for (name, options) in [
        ("a.tar", &[][..]),
        ("a.tar.gz", &["-z"]),
        ("a.tar.zst", &["--zstd"]),
        ("sparse.tar", &["-S"]),
        ("sparse.tar.gz", &["-S", "-z"]),
    ] {
        let archive = archive(&root, &dir.path().join(name), options);
        let (summary, image, bytes) = pack(&named("tar", &archive), settings());
        assert!(list_image(&image) == list_image(&tree) && bytes == of_tree, "{name} is another image");
        let (_, image, _) = pack(&named("tar", &archive), Packer::new().exact(true));
        assert!(same(&image, &root), "{name}");
        assert!(summary.lost.is_empty() && summary.skipped.is_empty());
    }
}

#[test]
fn globs_and_weights_choose_in_archives_too() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    write(&root, "model.safetensors", &safetensors(&[("w", "F32", &[9])]));
    write(&root, "pytorch_model.bin", b"twin");
    write(&root, "onnx/model.onnx", b"twin");
    write(&root, "text/a.txt", b"a");
    write(&root, "text/deep/b.txt", b"b");
    write(&root, "other/c.bin", b"c");
    let archive = named("tar", &archive(&root, &dir.path().join("a.tar"), &[]));
    for packer in [
        Packer::new().weights_only(true),
        Packer::new().exclude("*.bin").exclude("/text/deep/"),
        Packer::new().include("*.txt"),
        Packer::new().include("/text/").exclude("b.*"),
    ] {
        let (of_tree, tree, _) = pack(&root, packer.clone());
        let (of_archive, image, _) = pack(&archive, packer);
        assert!(list_image(&image) == list_image(&tree));
        let sorted = |summary: Summary| {
            let mut names = summary.left_out;
            names.sort_unstable();
            names
        };
        assert_eq!(sorted(of_archive), sorted(of_tree));
    }
}

#[test]
fn what_cannot_be_stored_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = tar::Builder::new(fs::File::create(dir.path().join("a.tar")).unwrap());
    let header = |kind, size| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(9);
        header.set_size(size);
        header
    };
    let capability = &b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\n\0\0\0\0\0\0\0"[..];
    builder.append_pax_extensions([("SCHILY.xattr.security.capability", capability)]).unwrap();
    builder.append_data(&mut header(tar::EntryType::Regular, 4), "ping", &b"ping"[..]).unwrap();
    builder.append_data(&mut header(tar::EntryType::Char, 0), "console", &b""[..]).unwrap();
    builder.append_link(&mut header(tar::EntryType::Link, 0), "ping6", "ping").unwrap();
    builder.append_data(&mut header(tar::EntryType::Directory, 0), ".daxfs", &b""[..]).unwrap();
    builder.into_inner().unwrap();
    let input = named("tar", &dir.path().join("a.tar"));
    // The EROFS view has room for capabilities.
    assert_eq!(pack(&input, Packer::new()).0.lost, []);
    let (summary, image, _) = pack(&input, Packer::new().erofs(false));
    let lost: Vec<_> =
        summary.lost.iter().map(|lost| (lost.path.as_str(), lost.attributes.join(" "))).collect();
    let attribute = "security.capability".to_owned();
    assert_eq!(lost, [("/ping", attribute.clone()), ("/ping6", attribute)]);
    assert_eq!(summary.skipped, [format!("{}/console (character device)", input.display())]);
    assert_eq!(summary.hard_links, 1);
    assert!(summary.to_string().contains("without their extended attributes: /ping (security.capability)"));
    assert!(summary.warnings.iter().any(|text| text.contains("left out, the packer makes its own")));
    assert_eq!(image.entry("ping").unwrap().metadata().uid, 7);
    assert!(matches!(refused(&input, Packer::new().plain(true)), Error::Name { .. }));
}

#[test]
fn settings_that_make_no_sense_with_archives() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    write(&root, "a", b"a");
    std::os::unix::fs::symlink("a", root.join("l")).unwrap();
    let path = archive(&root, &dir.path().join("a.tar"), &[]);
    let input = named("tar", &path);
    let setting = |error: Error| match error {
        Error::Setting { option, .. } => option,
        other => panic!("{other}"),
    };
    assert_eq!(setting(refused(&input, Packer::new().links(Links::Follow))), "--links");
    assert_eq!(setting(refused(&input, Packer::new().input(&root))), "INPUT");
    assert_eq!(setting(refused(&root, Packer::new().platform("linux/arm64".parse().ok()))), "--platform");
    assert!(matches!(refused(&input, Packer::new().links(Links::Refuse)), Error::Link { .. }));
    let few = Limits { members: 1, ..Limits::default() };
    assert!(matches!(refused(&input, Packer::new().limits(few)), Error::Archive(_)));
    // In the place of its own source.
    let plan = Packer::new().input(&input).plan().unwrap();
    assert!(matches!(plan.write_file(&path), Err(Error::Output { .. })));
}

#[test]
fn an_archive_that_changes_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    write(&root, "a", &noise(1, 100_000));
    let path = archive(&root, &dir.path().join("a.tar"), &[]);
    let plan = Packer::new().input(named("tar", &path)).plan().unwrap();
    let image = dir.path().join("image");
    plan.write_file(&image).unwrap();
    fs::File::options().append(true).open(&path).unwrap().set_len(70_000).unwrap();
    let error = plan.write_file(&image).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

#[test]
fn who_may_read_an_archive_may_read_its_image() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let root = dir.path().join("root");
    // A secret for who runs the image: whoever has the archive has it.
    fs::set_permissions(write(&root, "etc/shadow", b"x"), fs::Permissions::from_mode(0o600)).unwrap();
    let path = archive(&root, &dir.path().join("a.tar"), &[]);
    let image = dir.path().join("image");
    for mode in [0o644, 0o600] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        Packer::new().input(named("tar", &path)).plan().unwrap().write_file(&image).unwrap();
        assert_eq!(fs::metadata(&image).unwrap().mode() & 0o077, mode & 0o077);
    }
}

#[test]
fn the_command_takes_pipes() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    varied_tree(&root);
    let path = archive(&root, &dir.path().join("a.tar.gz"), &["-z"]);
    let run = |input: &str, options: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_daxfs-pack"));
        command.current_dir(dir.path()).args([input]).args(options).stdin(fs::File::open(&path).unwrap());
        command.output().unwrap()
    };
    let output = run("tar:-", &["-o", "image", "--json", "--limit", "ratio=10000"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(list_image(&open_strict(&dir.path().join("image"))) == list_directory(&root));
    let mut cat = Command::new("cat").arg(&path).stdout(Stdio::piped()).spawn().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_daxfs-pack"));
    command.current_dir(dir.path()).args(["tar:-", "-q", "-o", "piped"]).stdin(cat.stdout.take().unwrap());
    assert!(command.status().unwrap().success() && cat.wait().unwrap().success());
    assert!(fs::read(dir.path().join("piped")).unwrap() == fs::read(dir.path().join("image")).unwrap());
    let output = run("tar:-", &[]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && text.contains("name the file"), "{text}");
    let output = run("docker-archive:-", &["-o", "none"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && text.contains("has no manifest.json"), "{text}");
    assert!(!dir.path().join("none").exists());
}

/// An archive as `docker save` writes it, of one layer, with a configuration.
fn saved(dir: &Path, root: &Path, user: &str) -> (PathBuf, String) {
    let layer = archive(root, &dir.join("layer.tar"), &[]);
    let sum = Command::new("sha256sum").arg(&layer).output().unwrap();
    let digest = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","config":{{"User":"{user}"}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
    );
    fs::write(dir.join("config.json"), &config).unwrap();
    fs::write(dir.join("manifest.json"), r#"[{"Config":"config.json","Layers":["layer.tar"]}]"#).unwrap();
    let path = dir.join("saved.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(dir).arg("-cf").arg(&path).args(["config.json", "manifest.json", "layer.tar"]);
    assert!(tar.status().unwrap().success());
    (named("docker-archive", &path), config)
}

#[test]
fn the_configuration_of_an_image_is_kept_and_bound_by_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    write(&root, "etc/passwd", b"web:x:33:33::/:/bin/sh\n");
    write(&root, "model.safetensors", &safetensors(&[("w", "F32", &[9])]));
    let (input, config) = saved(dir.path(), &root, "web");
    let expected = config.as_bytes();
    let platform = || Packer::new().platform(Some("linux/amd64".parse().unwrap()));
    let (_, image, bytes) = pack(&input, platform());
    assert_eq!(image.oci_config().unwrap().as_deref(), Some(expected));
    assert_eq!(image.file("/.daxfs/oci-config.json").unwrap().to_vec().unwrap(), expected);
    let hash = image.content_hash().unwrap();
    assert_eq!(daxfs::beside_index(&image).count(), 0);
    let expecting = |bytes: &[u8]| {
        let options = daxfs::OpenOptions::new().expect(hash);
        options.open_region(daxfs::Region::from_bytes(bytes.to_vec()))
    };
    expecting(&bytes).unwrap();
    // Who would be somebody else: the same image otherwise.
    let at = bytes.windows(12).position(|window| window == br#""User":"web""#).unwrap();
    let mut forged = bytes.clone();
    forged[at + 8..at + 11].copy_from_slice(b"adm");
    let refused = expecting(&forged).unwrap_err().to_string();
    assert!(refused.contains("content hash"), "{refused}");
    // An image of another configuration has another content, the same one the same.
    fs::create_dir(dir.path().join("other")).unwrap();
    let (other, _) = saved(&dir.path().join("other"), &root, "adm");
    assert_ne!(pack(&other, platform()).1.content_hash(), Some(hash));
    assert_eq!(pack(&input, platform()).1.content_hash(), Some(hash));

    let (_, image, _) = pack(&input, platform().erofs(true));
    assert_eq!((image.content_hash(), image.oci_config().unwrap().as_deref()), (Some(hash), Some(expected)));
    assert!(image.check_erofs().unwrap());
    let (_, image, _) = pack(&input, platform().hash(false));
    assert_eq!(image.oci_config().unwrap().as_deref(), Some(expected));
    let (_, image, _) = pack(&input, platform().plain(true));
    assert!(image.oci_config().unwrap().is_none() && image.entry_no_follow("/.daxfs").is_err());
    let archive = named("tar", &dir.path().join("layer.tar"));
    assert!(pack(&archive, Packer::new()).1.oci_config().unwrap().is_none());
}
