//! Images that are opened while a kernel writes to their overlay.
//!
//! The kernel is a thread that makes the kernel's stores in its order (`daxfs_tests::writer`). Where the real one is,
//! `kernel_module` has it write.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Error, FileType, Image};
use daxfs_tests::forge::{self, PAGE, Version};
use daxfs_tests::overlay::Overlay;
use daxfs_tests::writer::Writer;
use dmabuf::{HugePages, Memfd};
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const DIR: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
/// Inodes of the mini image: the root and the directory `d`; the first one that is free.
const ROOT: u64 = 1;
const D: u64 = 5;
const FIRST: u64 = 7;
/// Opens that must have been done while something was written.
const OPENS: usize = 12;
const PATIENCE: Duration = Duration::from_secs(120);
/// What the base image of these tests has in its root.
const BASE: [&str; 2] = ["d", "f"];

/// A mounted image: the mini image under an empty overlay with room for many changes.
struct Mounted {
    memory: Memfd,
    writer: Writer,
}

fn mounted() -> Mounted {
    let mut image = forge::mini(Version::V8).finish();
    let inodes = forge::superblock(&mut image).inode_count.get();
    let mut overlay = Overlay::new(1 << 14, inodes);
    overlay.room(24 << 20);
    overlay.attach(&mut image);
    let memory = Memfd::create("mounted", image.len() as u64, HugePages::No).unwrap();
    let mut map = dmabuf::Mapping::read_write(memory.as_fd(), 0, image.len()).unwrap();
    map.view_mut().unwrap().copy_from(0, &image).unwrap();
    let writer = Writer::mount(memory.as_fd(), image.len());
    Mounted { memory, writer }
}

impl Mounted {
    fn open(&self) -> daxfs::Result<Image> {
        Image::from_fd(self.memory.as_fd().try_clone_to_owned().unwrap())
    }
}

/// Opens images in a loop while `write` is called with rising numbers and writes, in fresh images when one is full.
fn open_while(write: impl Fn(&Writer, u64) + Sync, mut look: impl FnMut(daxfs::Result<Image>)) {
    let (started, mut opens) = (Instant::now(), 0);
    while opens < OPENS {
        let mounted = mounted();
        let (begun, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let writer = &mounted.writer;
                for number in 0..1000 {
                    if !writer.has_room() {
                        break;
                    }
                    write(writer, number);
                    begun.store(true, Ordering::Release);
                    // Some changes for each look at the image, and some looks for each image.
                    std::thread::sleep(Duration::from_micros(10));
                }
                ended.store(true, Ordering::Release);
            });
            while !begun.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            while !ended.load(Ordering::Acquire) {
                let opened = mounted.open();
                if !ended.load(Ordering::Acquire) {
                    opens += 1;
                }
                look(opened);
            }
        });
        look(mounted.open());
        assert!(started.elapsed() < PATIENCE, "{opens} of {OPENS} opens while the writer wrote");
    }
}

fn bytes_of(ino: u64, page: u64) -> Vec<u8> {
    (0..PAGE).map(|at| (ino * 31 + page * 7 + at / 8 + 1).to_le_bytes()[0] | 1).collect()
}

/// Names that do not belong to the base image, without their directory.
fn made(image: &Image) -> BTreeSet<u64> {
    let names = image.walk().filter_map(|entry| {
        let path = String::from_utf8(entry.path()).unwrap();
        let name = path.rsplit('/').next().unwrap().to_owned();
        name.strip_prefix("made-").map(|number| number.parse().unwrap())
    });
    names.collect()
}

/// Files are made one after the other, each in the next of four directories, some of which are made on the way: what is
/// seen is what was there at one moment, all up to some number and nothing beyond. Every file has all its bytes.
#[test]
fn names_that_are_made_meanwhile_are_seen_up_to_one_moment() {
    let write = |writer: &Writer, number: u64| {
        let directory = |index: u64| if index == 0 { ROOT } else { FIRST - 1 + index };
        if number == 0 {
            for index in 1..4 {
                assert_eq!(writer.create(ROOT, &format!("directory-{index}"), DIR), directory(index));
            }
        }
        let ino = writer.create(directory(number % 4), &format!("made-{number}"), FILE);
        if number.is_multiple_of(8) {
            for page in 0..2 {
                writer.append(ino, &bytes_of(ino, page));
            }
        }
    };
    let (mut most, mut with_bytes) = (0, 0);
    open_while(write, |opened| {
        let image = opened.unwrap();
        let made = made(&image);
        let count = made.len() as u64;
        assert_eq!(made, (0..count).collect::<BTreeSet<_>>(), "all up to one moment");
        most = most.max(count);
        for name in BASE {
            assert!(image.contains(name), "{name}");
        }
        for entry in image.walk().filter(|entry| entry.file_type() == FileType::File) {
            let file = entry.file().unwrap();
            if file.ino() < FIRST {
                continue;
            }
            let bytes = file.to_vec().unwrap();
            with_bytes += usize::from(!bytes.is_empty());
            let expected = [bytes_of(file.ino(), 0), bytes_of(file.ino(), 1)].concat();
            assert!(expected.starts_with(&bytes), "inode {}: {} bytes", file.ino(), bytes.len());
        }
    });
    assert!(most > 100 && with_bytes > 0, "{most} names, {with_bytes} files with bytes");
}

/// Files that are renamed all the time keep a name: each is there, under the old one or the new one.
#[test]
fn what_is_renamed_meanwhile_is_not_lost() {
    const FILES: u64 = 8;
    let write = |writer: &Writer, number: u64| {
        let name = |round: u64, file: u64| format!("file-{file}-{}", round % 5);
        let parent = |round: u64, file: u64| if (round + file).is_multiple_of(2) { ROOT } else { D };
        if number == 0 {
            for file in 0..FILES {
                assert_eq!(writer.create(parent(0, file), &name(0, file), FILE), FIRST + file);
            }
            return;
        }
        let (round, file) = ((number - 1) / FILES, (number - 1) % FILES);
        let (from, to) = (name(round, file), name(round + 1, file));
        let (old, new) = (parent(round, file), parent(round + 1, file));
        writer.rename(FIRST + file, FILE, (old, &from), (new, &to));
        if number.is_multiple_of(32) {
            writer.replace_inode(FIRST + file);
        }
    };
    let (mut seen, mut changing) = (0, 0);
    open_while(write, |opened| match opened {
        Ok(image) => {
            seen += 1;
            for file in 0..FILES {
                let prefix = format!("/file-{file}-");
                let has = |entry: &daxfs::Entry| {
                    let path = String::from_utf8(entry.path()).unwrap();
                    path.contains(&prefix)
                };
                assert!(image.walk().any(|entry| has(&entry)), "file {file} of {FILES} is gone");
            }
        }
        Err(Error::Changing { attempts }) => {
            assert!(attempts > 1);
            changing += 1;
        }
        Err(error) => panic!("{error}"),
    });
    eprintln!("{seen} seen, {changing} changing");
    assert!(seen > 0, "nothing was seen");
}

/// The entries of many files are replaced by others all the time, faster than they can be read: that is said, and not
/// some state that never was.
#[test]
fn what_changes_all_the_time_is_said_to_be_changing() {
    // Many times those that one attempt follows; reading them takes longer than a thread runs at a time.
    const FILES: u64 = 800;
    const WRITERS: u64 = 2;
    let mounted = mounted();
    let writer = &mounted.writer;
    for number in 0..FILES {
        assert_eq!(writer.create(ROOT, &format!("made-{number}"), FILE), FIRST + number);
    }
    assert_eq!(made(&mounted.open().unwrap()).len() as u64, FILES, "nobody writes yet");
    let ended = AtomicBool::new(false);
    let error = std::thread::scope(|scope| {
        for part in 0..WRITERS {
            let ended = &ended;
            scope.spawn(move || {
                let mut room = writer.inode_room();
                while !ended.load(Ordering::Relaxed) {
                    for ino in (part..FILES).step_by(2) {
                        room = writer.replace_inode_into(FIRST + ino, room);
                    }
                }
            });
        }
        let started = Instant::now();
        let mut seen = Vec::new();
        let error = loop {
            match mounted.open() {
                Err(error) => break Some(error),
                // The writers did not run meanwhile.
                Ok(image) => seen.push(made(&image).len() as u64),
            }
            if started.elapsed() > PATIENCE {
                break None;
            }
        };
        ended.store(true, Ordering::Relaxed);
        assert!(seen.iter().all(|made| *made == FILES), "{seen:?}");
        error.expect("every open found a time at which nobody wrote")
    });
    assert!(matches!(error, Error::Changing { attempts: 2.. }), "{error}");
    assert_eq!(made(&mounted.open().unwrap()).len() as u64, FILES, "nobody writes any more");
}
