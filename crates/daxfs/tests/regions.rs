//! What a region knows of its writers, and what follows: slices where nobody can write, private copies, and images that
//! are replaced while they are opened.

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use daxfs::{Error, Image, OpenOptions, Part, Provenance, Region};
use dmabuf::{HugePages, Mapping, Memfd, MemoryClass, Seals};

/// An image of a file with these bytes.
fn image(bytes: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), bytes).unwrap();
    let path = dir.path().join("image");
    let packer = mkimage::Packer::new().input(dir.path().join("f")).plain(true);
    packer.plan().unwrap().write_file(&path).unwrap();
    std::fs::read(path).unwrap()
}

fn memfd(image: &[u8]) -> Memfd {
    let memfd = Memfd::create("test", image.len() as u64, HugePages::No).unwrap();
    let mut mapping = Mapping::read_write(memfd.as_fd(), 0, image.len()).unwrap();
    mapping.view_mut().unwrap().copy_from(0, image).unwrap();
    memfd
}

fn copy(memfd: &Memfd) -> OwnedFd {
    memfd.as_fd().try_clone_to_owned().unwrap()
}

#[test]
fn only_all_three_seals_make_slices() {
    let image = image(b"bytes");
    for (seals, provenance) in [
        (Seals::empty(), Provenance::Shared),
        (Seals::WRITE, Provenance::Shared),
        (Seals::SHRINK, Provenance::Shared),
        (Seals::SHRINK | Seals::GROW, Provenance::Shared),
        (Seals::WRITE | Seals::SHRINK, Provenance::Shared),
        (Seals::WRITE | Seals::GROW, Provenance::Shared),
        (Seals::IMMUTABLE, Provenance::Sealed),
        (Seals::IMMUTABLE | Seals::SEAL, Provenance::Sealed),
    ] {
        let memfd = memfd(&image);
        memfd.seal(seals).unwrap();
        let region = Region::from_fd(copy(&memfd)).unwrap();
        assert_eq!(region.provenance(), provenance, "{seals:?}");
        let opened = Image::from_region(region.clone()).unwrap();
        assert_eq!(opened.file("f").unwrap().to_vec().unwrap(), b"bytes");
        match (region.as_slice(), opened.file("f").unwrap().as_slice()) {
            (Ok(whole), Ok(file)) if provenance == Provenance::Sealed => {
                assert!(whole == image && file == b"bytes");
            }
            (Err(Error::NotImmutable(found)), Err(Error::NotImmutable(_))) => assert_eq!(found, provenance),
            other => panic!("{seals:?}: {other:?}"),
        }
    }
}

#[test]
fn a_sealed_copy_cannot_be_changed_by_any_means() {
    let image = image(b"bytes");
    let memfd = memfd(&image);
    let copied = Region::from_fd(copy(&memfd)).unwrap().sealed_copy().unwrap();
    assert_eq!(copied.provenance(), Provenance::Sealed);
    assert_eq!(copied.as_slice().unwrap(), image);
    let seals = dmabuf::seals(copied.fd().unwrap()).unwrap().unwrap();
    assert!(seals.contains(Seals::IMMUTABLE | Seals::SEAL), "{seals:?}");
    #[allow(unsafe_code, reason = "the promise that is tested")]
    // SAFETY: nobody but this test has the memory, and it does not write any more.
    let trusted = unsafe { Region::from_fd(copy(&memfd)).unwrap().assume_immutable() };
    assert_eq!(trusted.provenance(), Provenance::Trusted);
    assert_eq!(trusted.as_slice().unwrap(), image);
    #[allow(unsafe_code, reason = "the promise that is tested")]
    // SAFETY: the memory is sealed: nobody can write it any more, whoever has it.
    let sealed = unsafe { copied.assume_immutable() };
    assert_eq!(sealed.provenance(), Provenance::Sealed, "what is proven is not lessened to a promise");
}

/// What is opened as a copy is a copy, whatever was in its place when it was first looked at.
#[test]
fn an_image_that_comes_and_goes_is_copied_or_not_opened() {
    let image = image(b"bytes");
    let memfd = memfd(&image);
    let region = Region::from_fd(copy(&memfd)).unwrap();
    let done = AtomicBool::new(false);
    let (mut opened, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut mapping = Mapping::read_write(memfd.as_fd(), 0, image.len()).unwrap();
            while !done.load(Ordering::Relaxed) {
                for head in [&[0; 8], &image[..8]] {
                    mapping.view_mut().unwrap().copy_from(0, head).unwrap();
                    for _ in 0..50 {
                        std::hint::spin_loop();
                    }
                }
            }
        });
        let mut wrong = Vec::new();
        // On a busy machine the other thread does not always run.
        for _ in 0..200_000 {
            match OpenOptions::new().sealed_copy(true).open_region(region.clone()) {
                Ok(image) => {
                    opened += 1;
                    wrong.extend(
                        Some(image.region().provenance()).filter(|found| *found != Provenance::Sealed),
                    );
                }
                Err(_) => refused += 1,
            }
            if opened > 1000 && refused > 1000 {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(wrong.is_empty(), "{} of {opened} were no copies", wrong.len());
    });
    assert!(opened > 0 && refused > 0, "{opened} opened, {refused} refused: the writer did not write");
}

/// A file or memory of which a part is an image, with something else before and behind it.
#[test]
fn a_part_is_counted_from_where_it_begins() {
    let image = image(&[7; 100_000]);
    let around = [vec![0xaa; 4096], image.clone(), vec![0xbb; 8192]].concat();
    let part = Part { offset: 4096, len: Some(image.len() as u64) };
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&around).unwrap();
    let memory = memfd(&around);
    for fd in [OwnedFd::from(file.try_clone().unwrap()), copy(&memory)] {
        let region = Region::from_fd_part(fd, part).unwrap();
        assert_eq!((region.len(), region.offset(), region.is_empty()), (image.len() as u64, 4096, false));
        assert_eq!(region.class(), MemoryClass::Pages);
        assert!(region.view().to_vec() == image && !region.is_writable());
        let opened = Image::from_region(region.clone()).unwrap();
        assert_eq!(opened.file("f").unwrap().to_vec().unwrap(), [7; 100_000]);
        assert_eq!(opened.file("f").unwrap().hash().unwrap(), *blake3::hash(&[7; 100_000]).as_bytes());
        assert!(region.sealed_copy().unwrap().as_slice().unwrap() == image);
        // It is looked at anew where it lies.
        let f = opened.file("f").unwrap().extent().unwrap().offset + 4096;
        assert!(opened.is_current().unwrap());
        File::from(region.fd().unwrap().try_clone_to_owned().unwrap()).write_all_at(&[9], f).unwrap();
        assert!(opened.is_current().unwrap(), "bytes of files are no stamp");
        File::from(region.fd().unwrap().try_clone_to_owned().unwrap()).write_all_at(&[1], 4096 + 24).unwrap();
        assert!(!opened.is_current().unwrap());
        File::from(region.fd().unwrap().try_clone_to_owned().unwrap()).write_all_at(&image, 4096).unwrap();
        assert!(opened.is_current().unwrap() && opened.refresh().unwrap().is_none());
    }
    // Long enough for the end of the image, not for that of the file.
    file.set_len(4096 + image.len() as u64).unwrap();
    let region = Region::from_fd_part(file.try_clone().unwrap().into(), part).unwrap();
    let opened = Image::from_region(region.clone()).unwrap();
    assert!(opened.is_current().unwrap());
    file.set_len(4096 + image.len() as u64 - 1).unwrap();
    assert!(!opened.is_current().unwrap(), "one byte is gone");
    let cut = region.sealed_copy().map(drop).unwrap_err().to_string();
    assert!(cut.contains(&format!("cut short to {} bytes", 4096 + image.len() - 1)), "{cut}");
}

/// What a file's name means by now.
#[test]
fn another_file_under_the_name_is_another_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, image(b"one")).unwrap();
    let opened = Image::open(&path).unwrap();
    assert!(opened.is_current().unwrap());
    assert!(
        matches!(opened.region().source(), Some(daxfs::Source::Path { path: named, .. }) if *named == path)
    );
    std::fs::write(dir.path().join("next"), image(b"two")).unwrap();
    std::fs::rename(dir.path().join("next"), &path).unwrap();
    assert!(!opened.is_current().unwrap());
    let fresh = opened.refresh().unwrap().unwrap();
    assert_eq!(fresh.file("f").unwrap().to_vec().unwrap(), b"two");
    assert_eq!(opened.file("f").unwrap().to_vec().unwrap(), b"one");
    std::fs::remove_file(&path).unwrap();
    assert!(!fresh.is_current().unwrap());
}

#[test]
fn private_pages_are_of_this_process_alone() {
    let image = image(&[7; 5000]);
    let memory = memfd(&image);
    memory.seal(Seals::IMMUTABLE).unwrap();
    let region = Region::from_fd_private(copy(&memory)).unwrap();
    assert!(region.is_writable());
    assert_eq!((region.provenance(), region.offset()), (Provenance::Shared, 0), "this process may write");
    assert!(region.as_slice().is_err());
    // Named as a source, too.
    let named = format!("/proc/self/fd/{}", memory.as_fd().as_raw_fd());
    let opened = OpenOptions::new().private(true).open(&named).unwrap();
    assert!(opened.region().is_writable() && opened.region().provenance() == Provenance::Shared);
    assert_eq!(Region::open(&named).unwrap().provenance(), Provenance::Sealed);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("image"), &image).unwrap();
    let opened = OpenOptions::new().private(true).open(dir.path().join("image")).unwrap();
    assert!(opened.region().is_writable() && opened.region().provenance() == Provenance::Shared);
    assert_eq!(opened.file("f").unwrap().to_vec().unwrap(), [7; 5000]);
    std::fs::write(dir.path().join("next"), self::image(b"two")).unwrap();
    std::fs::rename(dir.path().join("next"), dir.path().join("image")).unwrap();
    let fresh = opened.refresh().unwrap().unwrap();
    assert!(fresh.region().is_writable() && fresh.region().provenance() == Provenance::Shared);
    assert_eq!(fresh.file("f").unwrap().to_vec().unwrap(), b"two");
}

/// Bytes of this process.
#[test]
fn bytes_are_a_region_too() {
    let image = image(b"bytes");
    let region = Region::from_bytes(image.clone());
    assert_eq!((region.len(), region.offset(), region.class()), (image.len() as u64, 0, MemoryClass::Pages));
    assert!(region.fd().is_none() && region.info().is_none() && region.verity().is_none());
    assert!(region.source().is_none() && region.attachment().is_none() && !region.is_writable());
    assert!(region.as_slice().unwrap() == image && region.slice(4, 8).unwrap() == &image[4..12]);
    assert!(!region.populate().unwrap() && !region.collapse().unwrap() && region.pages().unwrap().is_none());
    assert!(region.cpu_access().unwrap().is_none() && region.is_current().unwrap());
    let opened = Image::from_region(region.clone()).unwrap();
    assert!(opened.is_current().unwrap() && opened.refresh().unwrap().is_none());
    let shown = format!("{region:?}");
    assert!(shown.contains("kind: None") && shown.contains(&format!("len: {}", image.len())), "{shown}");
    assert!(shown.contains("provenance: Sealed"), "{shown}");
    assert!(Region::from_bytes(Vec::new()).is_empty());
    for (provenance, text) in
        [(Provenance::Sealed, "sealed"), (Provenance::Trusted, "trusted"), (Provenance::Shared, "shared")]
    {
        assert_eq!(provenance.to_string(), text);
    }
}

/// Pages of a mapping are there once they were asked for.
#[test]
fn pages_come_into_being_and_are_counted() {
    let image = image(&[7; 3 << 20]);
    let region = Region::from_fd(copy(&memfd(&image))).unwrap();
    assert!(region.populate().unwrap());
    let pages = region.pages().unwrap().unwrap();
    assert_eq!(pages.mapped, region.len().next_multiple_of(dmabuf::page_size()));
    assert!(region.cpu_access().unwrap().is_none() && region.verity().is_none());
}

/// After a release the content is new, and so is the hash that is expected of it.
#[test]
fn an_image_is_refreshed_to_the_content_that_is_expected_now() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let release = |bytes: &[u8]| {
        std::fs::write(dir.path().join("f"), bytes).unwrap();
        let plan = mkimage::Packer::new().input(dir.path().join("f")).plan().unwrap();
        plan.write_file(&path).unwrap();
        Image::open(&path).unwrap().content_hash().unwrap()
    };
    let first = release(b"first");
    let image = OpenOptions::new().expect(first).open(&path).unwrap();
    assert!(image.refresh_with(&OpenOptions::new().expect([1; 32])).unwrap().is_none(), "it is current");

    let second = release(b"second");
    let error = image.refresh().unwrap_err();
    assert!(error.is_other_content() && !error.is_not_found(), "{error}");
    let unexpected = image.refresh_with(&image.options().clone().expect([1; 32])).unwrap_err();
    assert!(matches!(&unexpected, Error::OtherContent { found: Some(found), .. } if *found == second));
    let image = image.refresh_with(&image.options().clone().expect(second)).unwrap().unwrap();
    assert_eq!(image.file("f").unwrap().to_vec().unwrap(), b"second");
    assert_eq!(image.options().expected(), Some(second));
    assert!(image.refresh().unwrap().is_none());

    // Options decide on how the new image is mapped.
    let third = release(b"third");
    let private = image.refresh_with(&OpenOptions::new().expect(third).private(true)).unwrap().unwrap();
    assert!(private.region().is_writable() && !image.region().is_writable());
    release(b"first");
    let shared = private.refresh_with(&OpenOptions::new().expect(first)).unwrap().unwrap();
    assert!(!shared.region().is_writable());
    assert_eq!((shared.version(), shared.generation()), (0, 0));
}

/// Who promised that nobody writes to an image did not promise it of the next one.
#[test]
fn a_promise_ends_with_the_image_that_it_was_made_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, image(b"first")).unwrap();
    #[allow(unsafe_code, reason = "the promise that is tested")]
    // SAFETY: nobody but this test has the file, and it is replaced by another file, not written.
    let trusted = unsafe { Region::open(&path).unwrap().assume_immutable() };
    let trusted = Image::from_region(trusted).unwrap();
    assert_eq!(trusted.file("f").unwrap().as_slice().unwrap(), b"first");
    std::fs::write(dir.path().join("next"), image(b"second")).unwrap();
    std::fs::rename(dir.path().join("next"), &path).unwrap();
    let next = trusted.refresh().unwrap().unwrap();
    assert_eq!(next.region().provenance(), Provenance::Shared);
    assert!(matches!(next.file("f").unwrap().as_slice(), Err(Error::NotImmutable(_))));
    assert_eq!(trusted.file("f").unwrap().as_slice().unwrap(), b"first");
}
