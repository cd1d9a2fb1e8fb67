//! Tensors on 256 bytes by default, and what is packed byte for byte.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{list_directory, list_image, noise, open_strict, pack, safetensors, write};
use mkimage::{DEFAULT_TENSOR_ALIGN, Error, Packer};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// A file as people have them: names of layers, a scalar in between, an odd number of bytes in front of the tensors.
fn model() -> Vec<u8> {
    let bytes = safetensors(&[
        ("model.layers.0.self_attn.q_proj.weight", "BF16", &[40, 40]),
        ("model.layers.0.position", "I32", &[]),
        ("model.layers.0.mlp.down_proj.weight", "BF16", &[40, 24]),
        ("model.norm.scale", "F8_E4M3", &[3]),
        ("lm_head.weight", "F32", &[30, 7]),
    ]);
    // A space behind the header makes its length odd.
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let (odd, header) = (usize::from(len % 2 == 0), 8 + usize::try_from(len).unwrap());
    let length = (len + odd as u64).to_le_bytes();
    [&length, &bytes[8..header], &b" "[..odd], &bytes[header..]].concat()
}

#[test]
fn tensors_are_aligned_by_default_and_the_source_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let source = model();
    assert_eq!(source[0] % 2, 1);
    write(dir.path(), "model.safetensors", &source);
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("image");
    let plan = Packer::new().input(dir.path()).verify(true).plan().unwrap();
    let summary = plan.write_file(&path).unwrap();
    let image = open_strict(&path);
    let tensors = image.tensors().unwrap();
    assert_eq!(tensors.iter().count(), 5);
    for tensor in tensors.iter() {
        let tensor = tensor.unwrap();
        assert!(tensor.alignment() >= DEFAULT_TENSOR_ALIGN, "{} {}", tensor.name(), tensor.alignment());
    }
    let file = image.file("model.safetensors").unwrap();
    assert_ne!(file.to_vec().unwrap(), source);
    let original = file.original().unwrap();
    let mut bytes = Vec::new();
    original.copy_to(&mut bytes).unwrap();
    assert!(bytes == source);
    assert_eq!(original.stored_hash().unwrap(), Some(*blake3::hash(&source).as_bytes()));
    assert_eq!((summary.moved_files, summary.moved_bytes), (1, file.len()));
    assert_eq!((summary.cloned_bytes, summary.unclonable_bytes), (0, 0), "nothing is worth a clone");
    assert!(summary.to_string().contains("tensors moved in 1 file of "), "{summary}");
}

#[test]
fn files_stored_once_are_moved_once() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.safetensors", &model());
    write(dir.path(), "b.safetensors", &model());
    let moved = |dedupe| Packer::new().dedupe(dedupe).input(dir.path()).plan().unwrap().moved();
    let ((two, bytes), one) = (moved(false), moved(true));
    assert_eq!((two, one), (2, (1, bytes / 2)));
}

#[test]
fn exact_images_hold_the_source_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a/model.safetensors", &model());
    write(dir.path(), "b.safetensors", &safetensors(&[("x", "U8", &[5]), ("y", "F32", &[3])]));
    let wanted = list_directory(dir.path());
    for packer in [
        Packer::new().exact(true),
        Packer::new().plain(true),
        Packer::new().exact(true).plain(true),
        Packer::new().exact(true).dedupe(true).hash(false),
    ] {
        let image = pack(dir.path(), packer.clone());
        assert_eq!(list_image(&image), wanted, "{packer:?}");
        assert!(!image.file("a/model.safetensors").unwrap().original().unwrap().differs());
        assert_eq!(packer.input(dir.path()).plan().unwrap().moved(), (0, 0));
    }
}

#[test]
fn what_excludes_alignment_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "model.safetensors", &model());
    for (packer, other) in [
        (Packer::new().exact(true), "--exact"),
        (Packer::new().plain(true), "--plain"),
        (Packer::new().exact(true).plain(true), "--exact"),
    ] {
        let error = packer.tensor_alignment(Some(256)).input(dir.path()).plan().unwrap_err();
        let Error::Setting { option: "--align-tensors", why } = &error else { panic!("{error}") };
        assert!(why.contains(other), "{error}");
    }
}

#[test]
fn what_needs_no_moving_is_stored_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let header = r#"{"a":{"dtype":"U8","shape":[256],"data_offsets":[0,256]},"b":{"dtype":"U8","shape":[3],"data_offsets":[256,259]}}"#;
    let header = format!("{header:<248}");
    let aligned = [&248u64.to_le_bytes()[..], header.as_bytes(), &noise(3, 259)].concat();
    write(dir.path(), "aligned.safetensors", &aligned);
    write(dir.path(), "model.gguf", &[b"GGUF\x03\0\0\0", &noise(1, 5000)[..]].concat());
    write(dir.path(), "broken.safetensors", &model()[..300]);
    write(
        dir.path(),
        "pointer.safetensors",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    );
    write(dir.path(), "pytorch_model.bin", &noise(2, 70_001));
    write(dir.path(), "config.json", b"{}");
    let image = pack(dir.path(), Packer::new());
    assert_eq!(list_image(&image), list_directory(dir.path()));
    assert_eq!(image.tensors_at("aligned.safetensors").unwrap().iter().count(), 2);
    assert_eq!(Packer::new().input(dir.path()).plan().unwrap().moved(), (0, 0));
}

/// A file system with reflinks in a file, unmounted when it goes.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Option<Disk> {
        let dir = tempfile::tempdir().unwrap();
        let (disk, mount) = (dir.path().join("disk"), dir.path().join("mount"));
        fs::create_dir(&mount).unwrap();
        fs::File::create(&disk).unwrap().set_len(400 << 20).unwrap();
        let quiet = |command: &mut Command| {
            let command = command.stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let is_made = quiet(Command::new("mkfs.xfs").arg("-q").arg(&disk))
            || quiet(Command::new("mkfs.btrfs").arg("-q").arg(&disk));
        let is_mounted = is_made && quiet(Command::new("mount").args(["-o", "loop"]).arg(&disk).arg(&mount));
        is_mounted.then_some(Disk(dir))
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("mount")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn moved_files_are_no_clones_and_the_summary_says_so() {
    let Some(disk) = Disk::new() else {
        let required = std::env::var_os("DAXFS_REQUIRE_ROOT").is_some();
        let said = "this machine mounts no file system with reflinks";
        assert!(!required && std::env::var("CI").as_deref() != Ok("true"), "{said}");
        eprintln!("not run: {said}");
        return;
    };
    let (root, out) = (disk.path().join("tree"), |name: &str| disk.path().join(name));
    let large = safetensors(&[("a", "U8", &[3_000_001]), ("b", "BF16", &[1000, 1000])]);
    write(&root, "model.safetensors", &large);
    let summary = |packer: Packer, path: &Path| {
        packer.input(&root).verify(true).plan().unwrap().write_file(path).unwrap()
    };

    let aligned = summary(Packer::new(), &out("aligned"));
    let image = open_strict(&out("aligned"));
    let stored = image.file("model.safetensors").unwrap().len();
    assert_eq!((aligned.cloned_bytes, aligned.unclonable_bytes), (0, stored));
    assert!(aligned.to_string().contains("which --exact would clone"), "{aligned}");

    let exact = summary(Packer::new().exact(true), &out("exact"));
    assert!(exact.cloned_bytes > 4 << 20 && exact.moved_files == 0, "{exact:?}");
    assert_eq!(open_strict(&out("exact")).file("model.safetensors").unwrap().to_vec().unwrap(), large);

    // Files that need no moving are clones beside one that does.
    write(&root, "model.gguf", &noise(1, 1 << 20));
    let both = summary(Packer::new(), &out("both"));
    assert_eq!((both.cloned_bytes, both.moved_files, both.unclonable_bytes), (1 << 20, 1, stored));
}
