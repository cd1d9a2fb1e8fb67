//! A tree, the image of it, and a way to run the command. Each test program uses part of this.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "every test program compiles this module and uses part of it")]

pub mod holder;

use daxfs::{Image, format};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::mem::offset_of;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The built command.
pub const DAXFS: &str = env!("CARGO_BIN_EXE_daxfs");

/// A directory with `tree/` and `image.daxfs`, the image of it.
pub struct Fixture {
    pub dir: tempfile::TempDir,
}

impl Fixture {
    /// The tree of [`make_tree`].
    pub fn new() -> Self {
        let fixture = Self { dir: tempfile::tempdir().unwrap() };
        make_tree(&fixture.tree());
        fixture.pack(|packer| packer);
        fixture
    }

    pub fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    pub fn image(&self) -> PathBuf {
        self.dir.path().join("image.daxfs")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Packs the tree anew.
    pub fn pack(&self, options: impl FnOnce(mkimage::Packer) -> mkimage::Packer) {
        let _ = fs::remove_file(self.image());
        let packer = options(mkimage::Packer::new().input(self.tree()));
        packer.plan().unwrap().write_file(self.image()).unwrap();
    }

    /// Makes the image the same whoever packs it: all owners 0.
    pub fn normalise(&self) {
        let image = Image::open(self.image()).unwrap();
        let table = image.superblock().inode_table.clone();
        let file = fs::OpenOptions::new().write(true).open(self.image()).unwrap();
        for inode in table.step_by(size_of::<format::Inode>()) {
            file.write_all_at(&[0; 8], inode + offset_of!(format::Inode, uid) as u64).unwrap();
        }
    }

    /// Overwrites bytes of the image.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(self.image()).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    /// Where the contents of a file lie in the image.
    pub fn offset_of(&self, path: &str) -> u64 {
        Image::open(self.image()).unwrap().file(path).unwrap().extent().unwrap().offset
    }

    /// Where the inode of an entry lies in the image.
    pub fn inode_of(&self, path: &str) -> u64 {
        let image = Image::open(self.image()).unwrap();
        let ino = image.entry_no_follow(path).unwrap().metadata().ino;
        image.superblock().inode_table.start + (ino - 1) * 64
    }

    /// Gives the index a second name beside it, `/.daxfs/extra`, and the link count that goes with it. Behind the names of
    /// that directory must be room, as in small images.
    pub fn add_beside_index(&self) {
        let directory = Image::open(self.image()).unwrap().entry("/.daxfs").unwrap();
        assert_eq!(directory.children().len(), 1);
        let inode = self.inode_of("/.daxfs");
        let file = fs::File::open(self.image()).unwrap();
        let (mut array, mut other) = ([0; 8], vec![0; 272]);
        file.read_exact_at(&mut array, inode + 24).unwrap();
        let array = 4096 + u64::from_le_bytes(array);
        file.read_exact_at(&mut other, array).unwrap();
        other[16..21].copy_from_slice(b"extra");
        self.poke(self.inode_of("/.daxfs/index") + 32, &2u32.to_le_bytes());
        self.poke(array + 272, &other);
        self.poke(inode + 16, &(2u64 * 271).to_le_bytes());
    }

    /// Gives what is named `_daxfs` in the root the name of the index's directory, which no packer takes.
    pub fn rename_to_index_directory(&self) {
        let bytes = fs::read(self.image()).unwrap();
        let at: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"_daxfs\0")).collect();
        assert_eq!(at.len(), 1);
        self.poke(at[0] as u64, b".");
    }

    /// Runs `daxfs ARGS`, where `IMAGE` stands for the image, `TREE` for the tree and `DIR/x` for a path beside them.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Run {
        Run::of(Command::new(DAXFS).args(args.iter().map(|arg| self.expand(arg.as_ref()))))
    }

    /// See [`Fixture::run`].
    pub fn expand(&self, arg: &OsStr) -> OsString {
        match arg.to_str() {
            Some("IMAGE") => self.image().into(),
            Some("TREE") => self.tree().into(),
            Some(text) => match text.strip_prefix("DIR/") {
                Some(name) => self.path(name).into(),
                None => text.into(),
            },
            None => arg.to_owned(),
        }
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Run {
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// The one warning of who packs the tree of [`Fixture`].
fn is_of_the_fixture(line: &str) -> bool {
    line.starts_with("daxfs: warning: ")
        && line.ends_with("/dangling: the symbolic link to /nowhere leads nowhere")
}

impl Run {
    pub fn of(command: &mut Command) -> Self {
        let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
        Self::new(status.code().expect("not killed by a signal"), stdout, stderr)
    }

    pub fn new(status: i32, stdout: Vec<u8>, stderr: Vec<u8>) -> Self {
        Self { status, stdout, stderr: String::from_utf8(stderr).unwrap() }
    }

    pub fn text(&self) -> &str {
        str::from_utf8(&self.stdout).unwrap()
    }

    /// Standard output of a run that must have gone well and said nothing else but the fixture's warning.
    pub fn ok(self) -> String {
        let is_silent = self.stderr.lines().all(is_of_the_fixture);
        assert!(self.status == 0 && is_silent, "{self:?}");
        String::from_utf8(self.stdout).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap()
    }

    /// The one line of a run that must have failed, behind the fixture's warning.
    pub fn error(self) -> String {
        assert_eq!(self.status, 2, "{self:?}");
        let lines: Vec<_> = self.stderr.lines().filter(|line| !is_of_the_fixture(line)).collect();
        assert_eq!(lines.len(), 1, "{self:?}");
        lines[0].strip_prefix("daxfs: ").expect("begins with the name of the command").trim_end().to_owned()
    }
}

/// A safetensors file: names, types, shapes and data in this order, with `pad` spaces behind the header.
pub fn safetensors(tensors: &[(&str, &str, &[u64], &[u8])], pad: usize) -> Vec<u8> {
    let mut at = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| {
            let begin = at;
            at += data.len();
            format!(r#"{name:?}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{at}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}{}", entries.join(","), " ".repeat(pad));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    for (_, _, _, data) in tensors {
        file.extend(*data);
    }
    file
}

/// A name that is not UTF-8.
pub fn bad_name() -> OsString {
    OsString::from_vec(b"latin1-\xe9.txt".to_vec())
}

/// Some of everything that an image can hold.
pub fn make_tree(tree: &Path) {
    let data: Vec<u8> = (0..=255).cycle().take(12_000).collect();
    for dir in ["", "dir", "dir/sub", "empty-dir", "sharded"] {
        fs::create_dir(tree.join(dir)).unwrap();
    }
    let write = |name: &str, bytes: &[u8]| fs::write(tree.join(name), bytes).unwrap();
    write("config.json", b"{\"hidden_size\": 384}\n");
    write("empty", b"");
    write("dir/data.bin", &data);
    write("dir/run.sh", b"#!/bin/sh\n");
    write("dir/sub/deep.txt", b"deep\n");
    write("tab\there", b"1");
    fs::write(tree.join(bad_name()), b"2").unwrap();
    fs::hard_link(tree.join("dir/data.bin"), tree.join("dir/sub/same.bin")).unwrap();
    symlink("model.safetensors", tree.join("latest")).unwrap();
    symlink("../config.json", tree.join("dir/up")).unwrap();
    symlink("/nowhere", tree.join("dangling")).unwrap();
    let model: &[(&str, &str, &[u64], &[u8])] = &[
        ("embed.weight", "F32", &[40, 25], &data[..4000]),
        ("head.weight", "BF16", &[10, 30], &data[..600]),
        ("ids", "I64", &[3], &data[..24]),
        ("scale", "F8_E4M3", &[], &data[..1]),
    ];
    write("model.safetensors", &safetensors(model, 5));
    let shard = |name: &str| safetensors(&[(name, "F16", &[8, 8], &data[..128])], 0);
    write("sharded/model-00001-of-00002.safetensors", &shard("a"));
    write("sharded/model-00002-of-00002.safetensors", &shard("b"));
    let map = r#"{"metadata":{"total_size":256},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    write("sharded/model.safetensors.index.json", map.as_bytes());
    set_modes(tree);
    let mode =
        |name: &str, mode| fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).unwrap();
    mode("dir/run.sh", 0o4755);
    mode("empty-dir", 0o1777);
}

/// 0755 for directories, 0644 for files, whatever the umask.
fn set_modes(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            set_modes(&path);
        } else if metadata.is_file() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
    }
}

/// Compares with `tests/golden/NAME`; writes it instead when `DAXFS_UPDATE_GOLDEN` is set.
pub fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("DAXFS_UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    assert!(text == expected, "{name} differs (set DAXFS_UPDATE_GOLDEN=1 and look at the diff):\n{text}");
}
