//! Sources that somebody cuts short while they are loaded: they are copied, never mapped, so the holder lives on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use daxfs::Image;
use daxfs_protocol::message::MemoryKind;
use dmabuf::{HugePages, Memfd, Seals};
use support::{Place, Start, be_process, identity, packed, tensor};

#[test]
fn process() {
    be_process();
}

/// The bytes of an image of weights.
fn image(place: &Place) -> Vec<u8> {
    let sealed = packed(&place.weights("w", 5, 3 << 20));
    Image::from_fd(sealed).unwrap().region().view().to_vec()
}

/// A memfd with these seals.
fn memfd(bytes: &[u8], seals: Seals) -> OwnedFd {
    let memfd = Memfd::create("source", bytes.len() as u64, HugePages::No).unwrap();
    std::os::unix::fs::FileExt::write_all_at(
        &File::from(memfd.as_fd().try_clone_to_owned().unwrap()),
        bytes,
        0,
    )
    .unwrap();
    memfd.seal(seals).unwrap();
    memfd.into()
}

#[test]
fn memory_that_somebody_can_write_is_copied_and_other_memory_is_kept() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    let bytes = image(&place);
    for (name, seals, kept, kind) in [
        ("none", Seals::empty(), false, MemoryKind::SealedMemfd),
        ("grow", Seals::GROW | Seals::WRITE, false, MemoryKind::SealedMemfd),
        ("shrink", Seals::SHRINK, false, MemoryKind::SealedMemfd),
        ("future", Seals::SHRINK | Seals::GROW | Seals::FUTURE_WRITE, false, MemoryKind::SealedMemfd),
        ("all", Seals::IMMUTABLE, true, MemoryKind::SealedMemfd),
    ] {
        let source = memfd(&bytes, seals);
        let info = place.load(name, false, &[], source.as_fd()).unwrap();
        assert_eq!(info.kind, kind, "{name}");
        let attached = place.open(name);
        let same = identity(attached.region().fd().unwrap()) == identity(source.as_fd());
        assert_eq!(same, kept, "{name}");
        // Whatever happens to the source now, the clients' pages stay.
        let _ = File::from(source).set_len(0);
        assert_eq!(tensor(&attached), vec![5; 3 << 20], "{name}");
    }
}

#[test]
fn a_source_that_shrinks_and_grows_again_ends_no_holder() {
    let place = Place::new();
    let mut holder = place.serve(&Start::default());
    let bytes = image(&place);
    let path = place.dir.path().join("image.daxfs");
    std::fs::write(&path, &bytes).unwrap();
    let file = OwnedFd::from(OpenOptions::new().read(true).write(true).open(path).unwrap());
    for source in [memfd(&bytes, Seals::empty()), file] {
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = File::from(source.try_clone().unwrap());
                while !end.load(Ordering::Relaxed) {
                    file.set_len(5000).unwrap();
                    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
                }
            });
            for _ in 0..40 {
                // Either it came whole, or it is refused.
                if place.load("racy", true, &[], source.as_fd()).is_ok() {
                    assert_eq!(tensor(&place.open("racy")), vec![5; 3 << 20]);
                }
            }
            end.store(true, Ordering::Relaxed);
        });
        assert!(holder.is_running());
    }
}
