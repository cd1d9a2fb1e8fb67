//! Two processes: one rewrites an image all the time, the other opens it in a loop.
//!
//! The reader must see only sound views or typed errors. What it does not promise is that a view is one of the
//! images that the writer meant: a copy of metadata taken half-way through a rewrite may pass every check.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Image, Region};
use daxfs_tests::examine::{examine, examine_live};
use daxfs_tests::forge::{self, Version};
use dmabuf::{HugePages, Memfd};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Names the file that the second process rewrites.
const TARGET: &str = "DAXFS_TEST_REWRITE_TARGET";
/// How long the reader loops, and the most it waits for both kinds of answers.
const LOOP: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);

/// Two sound images of one size with different trees.
fn images() -> [Vec<u8>; 2] {
    let mut other = forge::Forge::new(6);
    other.dir(1, &[(2, "first"), (3, "second"), (4, "third")]);
    other.dir(2, &[(5, "f")]).dir(3, &[(6, "g")]).symlink(4, b"second/g");
    other.file(5, &[b'x'; 4000]).file(6, b"9876543210");
    let mut images = [forge::mini(Version::V8).finish(), other.finish()];
    let size = images.iter().map(Vec::len).max().unwrap();
    for image in &mut images {
        image.resize(size, 0);
    }
    images
}

/// The writer: whole images, images half-way between the two, and single changed words; until it is killed.
fn rewrite_forever(target: &str) {
    let images = images();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(target).unwrap();
    let mut word = 0usize;
    let started = Instant::now();
    // The reader kills this process; if it is gone, the time limit ends it.
    while started.elapsed() < 2 * PATIENCE {
        for image in &images {
            for (at, line) in image.chunks(64).enumerate() {
                file.write_all_at(line, at as u64 * 64).unwrap();
            }
            std::thread::sleep(Duration::from_millis(1));
            for _ in 0..200 {
                word = (word * 25 + 13) % (image.len() / 4);
                let junk = [0, 0xff, 0x7f, 0x80][word % 4];
                file.write_all_at(&[junk; 4], word as u64 * 4).unwrap();
                file.write_all_at(&image[word * 4..word * 4 + 4], word as u64 * 4).unwrap();
            }
        }
    }
}

/// Ends the writer also when the test fails.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_reader_beside_a_writer_sees_sound_views_or_typed_errors() {
    if let Ok(target) = std::env::var(TARGET) {
        return rewrite_forever(&target);
    }
    let [image, _] = images();
    let memfd = Memfd::create("rewritten", image.len() as u64, HugePages::No).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), memfd.as_fd().as_raw_fd());
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&image, 0).unwrap();
    let own_name = "a_reader_beside_a_writer_sees_sound_views_or_typed_errors";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", own_name]).env(TARGET, &path).stdout(Stdio::null());
    let _writer = Writer(command.spawn().unwrap());

    let (mut opened, mut refused) = (0u64, 0u64);
    let started = Instant::now();
    while started.elapsed() < LOOP || ((opened == 0 || refused == 0) && started.elapsed() < PATIENCE) {
        match Image::from_fd(memfd.as_fd().try_clone_to_owned().unwrap()) {
            Ok(image) => {
                opened += 1;
                assert!(examine_live(&image).entries > 0);
            }
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
        }
    }
    assert!(opened > 0 && refused > 0, "{opened} opened, {refused} refused: the writer did not write");
}

#[test]
fn a_file_replaced_by_rename_keeps_its_bytes_for_those_who_have_it_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let [first, second] = images();
    std::fs::write(&path, &first).unwrap();
    let before = Image::open(&path).unwrap();
    std::fs::write(folder.path().join("new"), &second).unwrap();
    std::fs::rename(folder.path().join("new"), &path).unwrap();
    assert_eq!(before.file("/f").unwrap().to_vec().unwrap(), b"0123456789");
    examine(&before);
    let after = Image::open(&path).unwrap();
    assert_eq!(after.file("/second/g").unwrap().to_vec().unwrap(), b"9876543210");
}

#[test]
fn a_sealed_copy_does_not_follow_later_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let [first, second] = images();
    std::fs::write(&path, &first).unwrap();
    let copy = Region::open(&path).unwrap().sealed_copy().unwrap();
    let image = Image::from_region(copy).unwrap();
    let live = Image::open(&path).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&second, 0).unwrap();
    assert_eq!(image.file("/f").unwrap().as_slice().unwrap(), b"0123456789");
    // The other view shares the file: its tree is the one it copied, its contents are what is there now.
    assert!(live.file("/f").unwrap().as_slice().is_err());
    assert_ne!(live.file("/f").unwrap().to_vec().unwrap(), b"0123456789");
}
