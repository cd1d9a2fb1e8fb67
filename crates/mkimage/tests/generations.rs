//! Replacing the image of a region that others read: old readers keep whole old bytes or notice, whatever the moment.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{list_directory, list_image, noise, open_strict, varied_tree, write};
use daxfs::{Error as ReadError, Image, Source};
use mkimage::{Error, HugePages, Memory, Packer, Plan, Progress, Summary};
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Between looks at what another thread does.
const PAUSE: Duration = Duration::from_millis(10);

fn plan(source: &Path) -> Plan {
    Packer::new().input(source).replace(true).verify(true).plan().unwrap()
}

fn pack(source: &Path, region: &Path) -> Summary {
    plan(source).write_memory(&Memory::Device(region.to_path_buf().into())).unwrap().1
}

/// A tree, and a region that holds its image `times` times.
fn region(dir: &Path, times: u64) -> (PathBuf, PathBuf) {
    let (source, region) = (dir.join("in"), dir.join("region"));
    varied_tree(&source);
    let file = fs::File::create(&region).unwrap();
    file.set_len(plan(&source).total_size().next_multiple_of(2 << 20) * times).unwrap();
    (source, region)
}

#[test]
fn two_images_take_turns_and_readers_keep_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let (source, region) = region(dir.path(), 2);
    assert_eq!(pack(&source, &region).generation, None);
    let first = open_strict(&region);
    let old_tree = list_directory(&source);
    assert!(first.is_current().unwrap() && first.refresh().unwrap().is_none());
    assert_eq!(first.generation(), 0);

    write(&source, "large/a.bin", &noise(77, (2 << 20) + 5));
    write(&source, "new", b"new");
    let summary = pack(&source, &region);
    assert_eq!((summary.generation, summary.keeps_previous), (Some(1), true));
    assert!(!first.is_current().unwrap());
    assert!(list_image(&first) == old_tree, "every old byte is there");
    let second = first.refresh().unwrap().unwrap();
    assert_eq!(second.generation(), 1);
    assert!(list_image(&second) == list_directory(&source));
    assert!(list_image(&open_strict(&region)) == list_directory(&source), "and by the kernel's rules");
    let extent = second.file("large/a.bin").unwrap().extent().unwrap();
    assert_eq!(extent.offset % (2 << 20), 0, "moving it keeps the alignment");

    // The third takes the place of the first, and the second stays.
    let tree = list_directory(&source);
    fs::remove_file(source.join("new")).unwrap();
    assert_eq!(pack(&source, &region).generation, Some(2));
    assert!(list_image(&second) == tree);
    assert!(!second.is_current().unwrap() && !first.is_current().unwrap());
    assert_eq!(second.refresh().unwrap().unwrap().generation(), 2);
}

#[test]
fn a_failure_beside_the_old_image_leaves_it_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (source, region) = region(dir.path(), 3);
    pack(&source, &region);
    let first = open_strict(&region);
    let tree = list_directory(&source);
    let failing = plan(&source);
    write(&source, "large/a.bin", &noise(9, 5 << 20));
    let memory = Memory::Device(region.clone().into());
    assert!(matches!(failing.write_memory(&memory), Err(Error::Changed { .. })));
    assert!(first.is_current().unwrap());
    assert!(list_image(&open_strict(&region)) == tree);
    let refused = Packer::new().input(&source).plan().unwrap().write_memory(&memory).unwrap_err();
    assert!(matches!(refused, Error::HoldsImage { .. }), "{refused}");
}

#[test]
fn where_only_one_fits_readers_notice() {
    let dir = tempfile::tempdir().unwrap();
    let (source, region) = region(dir.path(), 1);
    pack(&source, &region);
    let first = Image::open(&region).unwrap();
    let summary = pack(&source, &region);
    assert_eq!((summary.generation, summary.keeps_previous), (Some(1), false));
    // The same tree gives the same bytes, and is another image all the same: nobody compared them.
    assert!(!first.is_current().unwrap());
    assert_eq!(first.refresh().unwrap().unwrap().generation(), 1);

    // Broken off: no image, said so, and the next one does not pass for the last.
    let failing = plan(&source);
    write(&source, "large/a.bin", &noise(9, 5 << 20));
    let memory = Memory::Device(region.clone().into());
    failing.write_memory(&memory).unwrap_err();
    let error = Image::open(&region).unwrap_err();
    assert!(matches!(error, ReadError::BeingReplaced { generation: 2 }), "{error}");
    fs::remove_file(source.join("large/a.bin")).unwrap();
    let once_valid = Packer::new().input(&source).plan().unwrap().write_memory(&memory).unwrap_err();
    assert!(matches!(once_valid, Error::HoldsImage { .. }), "{once_valid}");
    assert_eq!(pack(&source, &region).generation, Some(3));
    assert_eq!(open_strict(&region).generation(), 3);
}

#[test]
fn an_image_at_an_offset_of_a_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    varied_tree(&dir.path().join("in"));
    let source = dir.path().join("in");
    let len = plan(&source).total_size().next_multiple_of(2 << 20);
    let memfd = dmabuf::Memfd::create("pool", 2 * len + (2 << 20), HugePages::No).unwrap();
    let name = |offset: u64| format!("fd:{}@{offset:#x}+{len:#x}", memfd.as_fd().as_raw_fd());
    let parse = |offset| Memory::Device(Source::parse(name(offset).as_ref()).unwrap());
    for offset in [2 << 20, len + (2 << 20)] {
        let (region, summary) = plan(&source).write_region(&parse(offset)).unwrap();
        assert!(summary.verified && summary.generation.is_none());
        assert_eq!((region.offset(), region.len()), (offset, len));
        assert!(list_image(&Image::open(name(offset)).unwrap()) == list_directory(&source));
    }
    assert!(matches!(Image::open(name(0)).unwrap_err(), ReadError::NotAnImage { .. }));
    let beyond = Image::open(name(len + (4 << 20))).unwrap_err();
    assert!(matches!(&beyond, ReadError::OutsideSource { name, .. } if name.contains("@0x")), "{beyond}");
    let small = format!("fd:{}@0+4096", memfd.as_fd().as_raw_fd());
    let small = Memory::Device(Source::parse(small.as_ref()).unwrap());
    let error = plan(&source).write_memory(&small).unwrap_err();
    assert!(matches!(error, Error::TooSmall { have: 4096, .. }), "{error}");
}

#[test]
fn the_gap_of_larger_blocks_is_no_part_of_the_old_image() {
    let dir = tempfile::tempdir().unwrap();
    let (source, region) = (dir.path().join("in"), dir.path().join("region"));
    varied_tree(&source);
    let packer = || Packer::new().input(&source).replace(true).block_size(65536).align(65536);
    let total = packer().plan().unwrap().total_size();
    fs::File::create(&region).unwrap().set_len(2 * total.next_multiple_of(65536) + 65536).unwrap();
    let memory = Memory::Device(region.clone().into());
    packer().plan().unwrap().write_memory(&memory).unwrap();
    let first = Image::open(&region).unwrap();
    let tree = list_directory(&source);
    for generation in 1..4 {
        let before = Image::open(&region).unwrap();
        let summary = packer().plan().unwrap().write_memory(&memory).unwrap().1;
        assert_eq!((summary.generation, summary.keeps_previous), (Some(generation), true));
        assert!(list_image(&before) == tree, "generation {generation} changed the one before");
    }
    assert!(!first.is_current().unwrap());
}

#[test]
fn a_sealed_copy_is_of_one_image_and_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let (source, region) = region(dir.path(), 1);
    pack(&source, &region);
    let copy = daxfs::OpenOptions::new().sealed_copy(true).open(&region).unwrap();
    let tree = list_directory(&source);
    fs::remove_file(source.join("large/a.bin")).unwrap();
    pack(&source, &region);
    assert!(list_image(&copy) == tree);
    assert!(copy.is_current().unwrap() && copy.refresh().unwrap().is_none(), "it belongs to nobody else");
    assert!(list_image(&Image::open(&region).unwrap()) == list_directory(&source));
}

/// Spoils the new image before it is verified.
#[derive(Debug)]
struct Spoil {
    region: PathBuf,
    contents: Vec<u8>,
}

impl Progress for Spoil {
    fn start(&self, _total: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {
        let bytes = fs::read(&self.region).unwrap();
        let at = bytes.windows(self.contents.len()).position(|found| found == self.contents).unwrap();
        let region = fs::OpenOptions::new().write(true).open(&self.region).unwrap();
        region.write_all_at(b"spoiled", at as u64).unwrap();
    }
}

#[test]
fn an_image_that_is_taken_back_leaves_the_old_one_under_a_new_number() {
    let dir = tempfile::tempdir().unwrap();
    let (source, region) = region(dir.path(), 2);
    pack(&source, &region);
    let old = Image::open(&region).unwrap();
    let tree = list_directory(&source);
    let contents = noise(5, 600);
    write(&source, "small", &contents);
    let packer = Packer::new().input(&source).replace(true).verify(true);
    let plan = packer.progress(Spoil { region: region.clone(), contents }).plan().unwrap();
    let error = plan.write_memory(&Memory::Device(region.clone().into())).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    // Who opened the spoiled image in between has number 1, and is told that it is gone.
    let again = old.refresh().unwrap().unwrap();
    assert_eq!(again.generation(), 2);
    assert!(list_image(&again) == tree && list_image(&old) == tree);
    assert_eq!(pack(&source, &region).generation, Some(3));
}

/// A reader checks after reading, as the docs say; whatever passes is whole. Replacing goes on meanwhile, by images
/// that differ in their names, so that metadata could be torn, too.
fn readers_see_no_mixture(slots: u64, through_memfd: bool) {
    const ROUNDS: u64 = 60;
    const LEN: usize = 100_000;
    let dir = tempfile::tempdir().unwrap();
    let sources: Vec<PathBuf> = (0..2_u8)
        .map(|number| {
            let source = dir.path().join(number.to_string());
            for name in ["a", "b", "c"] {
                write(&source, name, &vec![number; LEN]);
            }
            for extra in 0..u32::from(number) * 200 {
                write(&source, format!("{extra:03}"), b"");
            }
            source
        })
        .collect();
    let len = slots * plan(&sources[1]).total_size().next_multiple_of(2 << 20);
    let memfd = dmabuf::Memfd::create("region", len, HugePages::No).unwrap();
    let path = dir.path().join("region");
    fs::File::create(&path).unwrap().set_len(len).unwrap();
    let name = match through_memfd {
        true => format!("fd:{}", memfd.as_fd().as_raw_fd()),
        false => path.to_str().unwrap().to_owned(),
    };
    let memory = Memory::Device(Source::parse(name.as_ref()).unwrap());
    let write = |round: u64| {
        let packer =
            Packer::new().input(&sources[usize::from(round % 2 == 1)]).replace(true).threads(1).sync(false);
        packer.plan().unwrap().write_memory(&memory).unwrap()
    };
    write(0);
    let (done, checked, noticed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let last = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let seen = || checked.load(Ordering::SeqCst) > 0 && noticed.load(Ordering::SeqCst) > 0;
            let last = (1..).find(|&round| {
                write(round);
                if round % 4 == 0 {
                    // Until it is read whole, which otherwise hardly happens where there is room for one only. Not for
                    // ever: the reader may have failed.
                    let before = checked.load(Ordering::SeqCst);
                    let is_read = || checked.load(Ordering::SeqCst) > before;
                    (0..1000).take_while(|_| !is_read()).for_each(|_| std::thread::sleep(PAUSE));
                }
                round >= ROUNDS && seen() || round == 50 * ROUNDS
            });
            done.store(true, Ordering::SeqCst);
            last.unwrap()
        });
        while !done.load(Ordering::SeqCst) {
            let image = match Image::open(&name) {
                Ok(image) => image,
                Err(ReadError::BeingReplaced { .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            for _ in 0..3 {
                let files = image.walk().filter(|entry| entry.metadata().size > 0);
                let files =
                    files.filter_map(|entry| entry.file().ok()).filter(|file| file.len() == LEN as u64);
                let bytes: Vec<u8> = files.flat_map(|file| file.to_vec().unwrap()).collect();
                match image.is_current().unwrap() {
                    true => {
                        checked.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(bytes.len(), 3 * LEN);
                        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a mixture passed");
                        assert_eq!(
                            image.contains("199"),
                            bytes[0] == 1,
                            "names of one image, bytes of another"
                        );
                    }
                    false => drop(noticed.fetch_add(1, Ordering::SeqCst)),
                }
            }
        }
        writer.join().unwrap()
    });
    assert!(checked.into_inner() > 0 && noticed.into_inner() > 0);
    assert_eq!(Image::open(&name).unwrap().generation(), last);
}

#[test]
fn in_one_slot_no_mixture_passes() {
    readers_see_no_mixture(1, false);
    readers_see_no_mixture(1, true);
}

#[test]
fn in_two_slots_no_mixture_passes() {
    readers_see_no_mixture(2, false);
    readers_see_no_mixture(2, true);
}
