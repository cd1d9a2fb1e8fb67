//! What a region knows of its writers, and what follows: slices where nobody can write, private copies, and images that
//! are replaced while they are opened.

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use daxfs::{Error, Image, OpenOptions, Provenance, Region};
use dmabuf::{HugePages, Mapping, Memfd, Seals};

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
