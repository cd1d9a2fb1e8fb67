//! Memory that a client brought: what it can still write is copied, or is everybody's to write by the load's own word.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use daxfs::{Image, OpenOptions};
use daxfs_protocol::HolderError;
use daxfs_protocol::message::MemoryKind;
use dmabuf::{HugePages, Mapping, Memfd, Seals};
use support::{Place, Start, be_process, identity, packed, tensor};

#[test]
fn process() {
    be_process();
}

/// An image of weights that hold 5, and a memfd of it with these seals.
fn memfd(place: &Place, seals: Seals) -> OwnedFd {
    let directory = place.dir.path().join("w");
    if !directory.exists() {
        place.weights("w", 5, 100_000);
    }
    let bytes = Image::from_fd(packed(&directory)).unwrap().region().view().to_vec();
    let memfd = Memfd::create("source", bytes.len() as u64, HugePages::No).unwrap();
    File::from(memfd.as_fd().try_clone_to_owned().unwrap()).write_all_at(&bytes, 0).unwrap();
    memfd.seal(seals).unwrap();
    memfd.into()
}

#[test]
fn what_a_client_writes_afterwards_reaches_nobody() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    let source = memfd(&place, Seals::SHRINK | Seals::GROW);
    // A mapping that is there before the load is the way around a seal that comes after it.
    let mut mapping = Mapping::read_write(source.as_fd(), 0, 8192).unwrap();
    let info = place.load("llama", false, &[], source.as_fd()).unwrap();
    assert_eq!(info.kind, MemoryKind::SealedMemfd);
    let writable = File::from(source.try_clone().unwrap());
    let len = writable.metadata().unwrap().len();
    writable.write_all_at(&vec![0xff; usize::try_from(len).unwrap()], 0).unwrap();
    mapping.view_mut().unwrap().copy_from(0, &[0xee; 8192]).unwrap();
    let expect = info.content_hash.unwrap();
    let image = OpenOptions::new().expect(expect).open(place.address("llama")).unwrap();
    assert_eq!(tensor(&image), vec![5; 100_000]);
    assert_eq!(image.region().provenance(), daxfs::Provenance::Sealed);
}

#[test]
fn what_would_have_to_be_copied_can_be_refused() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    for seals in [Seals::empty(), Seals::SHRINK, Seals::SHRINK | Seals::GROW, Seals::WRITE] {
        let source = memfd(&place, seals);
        let error = place.load("llama", false, &["no-copy=1"], source.as_fd()).unwrap_err();
        assert!(matches!(error, HolderError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("would have to be copied"), "{error}");
    }
    let source = memfd(&place, Seals::IMMUTABLE);
    place.load("llama", false, &["no-copy=1"], source.as_fd()).unwrap();
    let image = place.open("llama");
    assert_eq!(identity(image.region().fd().unwrap()), identity(source.as_fd()));
    assert!(!image.region().info().unwrap().writable, "the holder passes it on for reading only");
}

#[test]
fn shared_memory_is_kept_and_cannot_grow() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    let source = memfd(&place, Seals::SHRINK);
    let info = place.load("llama", false, &["shared=1"], source.as_fd()).unwrap();
    assert_eq!(info.kind, MemoryKind::SharedMemfd);
    let image = place.open("llama");
    assert_eq!(identity(image.region().fd().unwrap()), identity(source.as_fd()));
    let client = File::from(image.region().fd().unwrap().try_clone_to_owned().unwrap());
    for file in [&File::from(source.try_clone().unwrap()), &client] {
        assert!(file.set_len(1 << 40).is_err(), "it could exceed any budget");
        assert!(file.set_len(0).is_err());
    }
    client.write_all_at(&[1], 0).unwrap();

    // One that takes no more seals, and could grow, is copied.
    let source = memfd(&place, Seals::SHRINK | Seals::SEAL);
    place.load("other", false, &["shared=1"], source.as_fd()).unwrap();
    let other = place.open("other");
    assert_ne!(identity(other.region().fd().unwrap()), identity(source.as_fd()));
    File::from(source).set_len(1 << 30).unwrap();
    assert!(File::from(other.region().fd().unwrap().try_clone_to_owned().unwrap()).set_len(1 << 30).is_err());
}

/// What a client has packed for a swap goes into memory like that of the image which it replaces.
#[test]
fn what_a_client_packed_lies_where_the_load_says() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    let source = || memfd(&place, Seals::IMMUTABLE);
    let load =
        |replace, options: &[&str]| place.load("llama", replace, options, source().as_fd()).unwrap().kind;
    assert_eq!(load(false, &["shared=1", "packed=1"]), MemoryKind::SharedMemfd);
    assert_eq!(load(true, &["packed=1"]), MemoryKind::SharedMemfd);
    // What is brought by choice is kept as it is.
    assert_eq!(load(true, &["packed=0"]), MemoryKind::SealedMemfd);
    let own = source();
    place.load("llama", true, &["packed=1", "no-copy=1"], own.as_fd()).unwrap();
    assert_eq!(identity(place.open("llama").region().fd().unwrap()), identity(own.as_fd()), "without a copy");
    let error = place.load("llama", true, &["shared=1", "packed=1", "no-copy=1"], own.as_fd()).unwrap_err();
    assert!(error.to_string().contains("would have to be copied"), "{error}");
}
