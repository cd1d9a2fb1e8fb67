//! Places with a tree, an image of it, and what is mounted there.

use daxfs::{Image, OpenOptions};
use daxfs_fuse::{Mount, Options};
use daxfs_tests::tree::{self, Item, Tree};
use mkimage::Packer;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Nobody, who may do what others may.
pub const NOBODY: u32 = 65534;

/// Whether file systems can be mounted here. What is missing is printed, or an error where it is required.
pub fn can_mount() -> bool {
    let missing = match (nix::unistd::geteuid().is_root(), Path::new("/dev/fuse").exists()) {
        (true, true) => return true,
        (false, _) => "mounting for all users needs root",
        (_, false) => "there is no /dev/fuse",
    };
    let required =
        env::var_os("DAXFS_REQUIRE_ROOT").is_some() || env::var_os("CI").is_some_and(|ci| ci == "true");
    assert!(!required, "{missing}");
    eprintln!("not run: {missing}");
    false
}

/// Whether others than root may open /dev/fuse, as udev has it; some machines keep it for root.
pub fn others_can_mount() -> bool {
    let is_open =
        std::fs::metadata("/dev/fuse").is_ok_and(|device| device.permissions().mode() & 0o006 == 0o006);
    if !is_open {
        eprintln!("not run: /dev/fuse is for root alone");
    }
    is_open
}

/// A tree with one of everything, and a second name of a file.
pub fn everything() -> Tree {
    let bytes = |len: usize| (0..len).map(|i| (i * 7 % 253).to_le_bytes()[0]).collect::<Vec<u8>>();
    let mut tree: Tree = vec![
        (b"config.json".to_vec(), Item::File(0o644, b"{}\n".to_vec())),
        (b"empty".to_vec(), Item::File(0o644, Vec::new())),
        (b"secret".to_vec(), Item::File(0o600, b"secret\n".to_vec())),
        (b"program".to_vec(), Item::File(0o4755, b"#!/bin/sh\necho ran\n".to_vec())),
        (b"d".to_vec(), Item::Dir(0o755)),
        (b"d/again".to_vec(), Item::HardLink(b"config.json".to_vec())),
        (b"d/up".to_vec(), Item::Symlink(b"../config.json".to_vec())),
        (b"d/nowhere".to_vec(), Item::Symlink(vec![b'x'; 3000])),
        (b"d/round".to_vec(), Item::Symlink(b"round".to_vec())),
        (b"d/emptydir".to_vec(), Item::Dir(0o1777)),
        (b"closed".to_vec(), Item::Dir(0o700)),
        (b"closed/in".to_vec(), Item::File(0o644, b"in\n".to_vec())),
        (b"not utf-8 \xff\xfe\n".to_vec(), Item::File(0o644, b"bytes\n".to_vec())),
        (vec![b'n'; 255], Item::File(0o644, b"long name\n".to_vec())),
        (b"many".to_vec(), Item::Dir(0o755)),
    ];
    tree.extend((0..302).map(|i| (format!("many/{i}").into_bytes(), Item::File(0o644, bytes(i)))));
    let sizes = [1, 4095, 4096, 4097, (2 << 20) - 1, 2 << 20, (2 << 20) + 1];
    tree.extend(sizes.map(|len| (format!("bytes-{len}").into_bytes(), Item::File(0o644, bytes(len)))));
    tree
}

/// A folder with a tree, its image, and a place to mount at. What is mounted there is taken away at the end.
pub struct Place(tempfile::TempDir);

impl Place {
    /// With a tree and its image, without an index.
    pub fn new(tree: &Tree) -> Self {
        let place = Self::empty();
        tree::write(tree, &place.tree());
        place.pack();
        place
    }

    /// With an empty tree and no image.
    pub fn empty() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for folder in [place.0.path(), &place.tree(), &place.at(), &place.reference()] {
            fs::create_dir_all(folder).unwrap();
            fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
        }
        place
    }

    pub fn tree(&self) -> PathBuf {
        self.0.path().join("tree")
    }

    pub fn image(&self) -> PathBuf {
        self.0.path().join("image.daxfs")
    }

    pub fn at(&self) -> PathBuf {
        self.0.path().join("mount")
    }

    pub fn reference(&self) -> PathBuf {
        self.0.path().join("reference")
    }

    /// Packs the tree as it is now.
    pub fn pack(&self) {
        Packer::new().input(self.tree()).plain(true).plan().unwrap().write_file(self.image()).unwrap();
    }

    /// Mounts the image for all users, from memory that nobody can write.
    pub fn mount(&self) -> Mount {
        self.mount_as(OpenOptions::new().sealed_copy(true).open(self.image()).unwrap())
    }

    /// Mounts an image for all users.
    pub fn mount_as(&self, image: Image) -> Mount {
        let options = Options { allow_other: true, suid: true, ..Options::new("test") };
        Mount::new(image, self.at(), &options).unwrap()
    }

    /// Mounts a tmpfs with a copy of the tree, which nobody can write.
    pub fn mount_reference(&self) {
        let at = self.reference();
        mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::MS_NODEV, Some("mode=755,size=50%")).unwrap();
        let copied = Command::new("cp").arg("-a").arg(self.tree().join(".")).arg(&at).status().unwrap();
        assert!(copied.success());
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
        mount(None::<&str>, &at, None::<&str>, flags, None::<&str>).unwrap();
    }

    /// Whether something is mounted at the place.
    pub fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let at = self.at();
        table.lines().any(|line| line.split(' ').nth(4) == at.to_str())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for at in [self.at(), self.reference()] {
            while umount2(&at, MntFlags::MNT_DETACH).is_ok() {}
        }
    }
}

/// A command of the project, which lies one folder above the test programs.
pub fn daxfs() -> PathBuf {
    let path = env::current_exe().unwrap().ancestors().nth(2).unwrap().join("daxfs");
    assert!(path.exists(), "no {}: build the commands first (cargo build --bins)", path.display());
    path
}

/// `daxfs mount`, with these arguments behind it.
pub fn mount_command(args: &[&std::ffi::OsStr]) -> Output {
    Command::new(daxfs()).arg("mount").args(args).output().unwrap()
}

pub fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}
