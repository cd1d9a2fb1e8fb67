//! Images in files with fs-verity: packed so, taken by their digest, and immutable.
//!
//! They need root, `mkfs.ext4` and a kernel with CONFIG_FS_VERITY, ext4 and loop devices, as the guest of
//! `tests/kernel/run.py` has, where a missing one is a failure. Elsewhere each test says that it did not run.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use std::fs::{self, File, OpenOptions as Open};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use daxfs::{Error, Image, OpenOptions, Provenance, Verify, VerityDigest};
use mkimage::Packer;

/// A mounted ext4 on a file, which is unmounted at the end.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// With or without fs-verity; `None` where that cannot be had.
    fn new(features: &str) -> Option<Self> {
        let disk = Self { dir: tempfile::tempdir().unwrap() };
        let (file, at) = (disk.dir.path().join("disk"), disk.at());
        fs::create_dir(&at).unwrap();
        File::create(&file).unwrap().set_len(64 << 20).unwrap();
        let run = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let made = run(Command::new("mkfs.ext4").args(["-q", "-F", "-O", features]).arg(&file))
            && run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&at));
        if !made {
            let why = format!("no ext4 -O {features} on a loop device");
            assert!(std::env::var_os("DAXFS_REQUIRE_GUEST").is_none(), "{why}");
            eprintln!("not run: {why}");
            return None;
        }
        Some(disk)
    }

    fn at(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn tree(&self) -> PathBuf {
        let tree = self.dir.path().join("tree");
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("weights"), vec![7; 3 << 20]).unwrap();
        tree
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.at()).output();
    }
}

fn packed(tree: &Path, image: &Path) -> Result<Option<VerityDigest>, mkimage::Error> {
    let summary = Packer::new().input(tree).fsverity(true).plan().unwrap().write_file(image)?;
    Ok(summary.fsverity.map(|digest| digest.parse().unwrap()))
}

/// `None` where the kernel has no fs-verity.
fn packed_here(tree: &Path, image: &Path) -> Option<VerityDigest> {
    match packed(tree, image) {
        Ok(digest) => Some(digest.unwrap()),
        Err(error) => {
            assert!(std::env::var_os("DAXFS_REQUIRE_GUEST").is_none(), "{error}");
            eprintln!("not run: {error}");
            None
        }
    }
}

#[test]
fn an_image_with_fs_verity_is_taken_by_its_digest_and_cannot_change() {
    let Some(disk) = Disk::new("verity") else { return };
    let image = disk.at().join("image.daxfs");
    let Some(digest) = packed_here(&disk.tree(), &image) else { return };
    if let Ok(output) = Command::new("fsverity").arg("measure").arg(&image).output() {
        assert!(String::from_utf8(output.stdout).unwrap().starts_with(&digest.to_string()));
    }
    let opened = OpenOptions::new().expect_verity(digest.clone()).open(&image).unwrap();
    assert_eq!(opened.region().verity(), Some(&digest));
    assert_eq!(opened.region().provenance(), Provenance::Sealed);
    assert_eq!(opened.file("weights").unwrap().as_slice().unwrap(), vec![7; 3 << 20]);
    // The hashes agree with it, too.
    let content = opened.content_hash().unwrap();
    OpenOptions::new()
        .expect_verity(digest.clone())
        .expect(content)
        .verify(Verify::Full)
        .open(&image)
        .unwrap();
    assert!(OpenOptions::new().expect(content).sealed_copy(true).open(&image).is_ok());

    // Nobody writes it, cuts it or turns that off.
    let denied = Open::new().write(true).open(&image).unwrap_err();
    assert_eq!(denied.raw_os_error(), Some(libc::EPERM));
    let path = image.as_os_str();
    assert!(!Command::new("truncate").args(["-s", "0"]).arg(path).output().unwrap().status.success());

    // Another file under the name is another digest, and a copy has none.
    let tree = disk.tree();
    fs::write(tree.join("weights"), vec![8; 3 << 20]).unwrap();
    let other = packed(&tree, &image).unwrap().unwrap();
    assert_ne!(other, digest);
    let refused = OpenOptions::new().expect_verity(digest.clone()).open(&image).unwrap_err();
    assert!(
        matches!(&refused, Error::OtherVerity { found: Some(found), .. } if *found == other),
        "{refused}"
    );
    let copy = disk.at().join("copy.daxfs");
    fs::copy(&image, &copy).unwrap();
    let refused = OpenOptions::new().expect_verity(other).open(&copy).unwrap_err();
    assert!(matches!(refused, Error::OtherVerity { found: None, .. }), "{refused}");
    assert_eq!(Image::open(&copy).unwrap().region().provenance(), Provenance::Shared);
    // What was opened before is as it was.
    assert_eq!(opened.file("weights").unwrap().as_slice().unwrap()[0], 7);
}

/// The disk says other bytes than those of the digest: an error, not these bytes.
#[test]
fn bytes_that_the_disk_changed_are_not_read() {
    let Some(disk) = Disk::new("verity") else { return };
    let image = disk.at().join("image.daxfs");
    let Some(digest) = packed_here(&disk.tree(), &image) else { return };
    assert!(Command::new("umount").arg(disk.at()).status().unwrap().success());
    let file = Open::new().read(true).write(true).open(disk.dir.path().join("disk")).unwrap();
    let (mut bytes, run) = (vec![0; 64 << 20], vec![7; 1 << 20]);
    file.read_exact_at(&mut bytes, 0).unwrap();
    let at = bytes.windows(run.len()).position(|window| window == run).unwrap();
    file.write_all_at(&[9], (at + (1 << 19)) as u64).unwrap();
    file.sync_all().unwrap();
    let mount =
        Command::new("mount").args(["-o", "loop"]).arg(disk.dir.path().join("disk")).arg(disk.at()).status();
    assert!(mount.unwrap().success());
    let content = Image::open(&image).unwrap().content_hash().unwrap();
    OpenOptions::new().expect_verity(digest).open(&image).unwrap();
    let refused = OpenOptions::new().expect(content).open(&image).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EIO), "{refused}");
}

#[test]
fn a_file_system_without_it_says_what_to_do() {
    let Some(disk) = Disk::new("^verity") else { return };
    let image = disk.at().join("image.daxfs");
    let error = packed(&disk.tree(), &image).unwrap_err();
    assert!(
        error.to_string().contains("tune2fs -O verity") || error.to_string().contains("CONFIG_FS_VERITY"),
        "{error}"
    );
    assert_eq!(
        fs::read_dir(disk.at())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name() != "lost+found")
            .count(),
        0
    );
}
