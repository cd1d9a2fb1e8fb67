//! A PCI device that is removed while an image in its memory is open.
//!
//! `tests/kernel/run.py` names a device of its guest in `DAXFS_TEST_PCI`, and sets `DAXFS_REQUIRE_GUEST=1`: a device
//! that is missing is then a failure. Elsewhere the test says that it did not run; it removes no device of a machine
//! that is in use.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Error, Image, Region};
use dmabuf::{HugePages, MemoryClass};
use mkimage::{Memory, Packer};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

fn device() -> Option<PathBuf> {
    let is_guest = env::var_os("DAXFS_REQUIRE_GUEST").is_some();
    let name = env::var_os("DAXFS_TEST_PCI").filter(|_| is_guest);
    if name.is_none() {
        assert!(!is_guest, "DAXFS_TEST_PCI names no PCI device");
        eprintln!("not run: DAXFS_TEST_PCI names no PCI device of a guest of these tests");
    }
    Some(Path::new("/sys/bus/pci/devices").join(name?))
}

/// Checks that an answer is the error of a device that was removed, which names the device's file.
fn assert_removed<T>(door: &str, answer: daxfs::Result<T>) {
    match answer.map(drop) {
        Err(Error::Memory(dmabuf::Error::Unavailable { what, needs })) => {
            assert!(what.contains("/resource2") && needs.contains("removed"), "{door}: {what}: {needs}");
        }
        other => panic!("{door}: {other:?}"),
    }
}

#[test]
fn a_removed_device_is_an_error_of_every_read() {
    let Some(device) = device() else { return };
    let work = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..(1 << 20) + 5_u32).map(|i| (i % 251).to_le_bytes()[0]).collect();
    fs::write(work.path().join("weights"), &bytes).unwrap();
    let memory = Memory::parse(device.as_os_str(), HugePages::No).unwrap();
    Packer::new().input(work.path()).plan().unwrap().write_region(&memory).unwrap();

    let image = Image::open(&device).unwrap();
    assert_eq!(image.region().class(), MemoryClass::WriteCombining);
    let file = image.file("weights").unwrap();
    assert!(file.to_vec().unwrap() == bytes && image.is_current().unwrap());

    fs::write(device.join("remove"), "1").unwrap();
    assert!(!device.exists());
    let sink = tempfile::tempfile().unwrap();
    assert_removed("read_at", file.read_at(0, &mut [0; 16]));
    assert_removed("to_vec", file.to_vec());
    assert_removed("copy_to", file.copy_to(&mut std::io::sink()));
    assert_removed("write_to", file.write_to(&sink));
    assert_removed("hash", file.hash());
    assert_removed("cpu_access", image.region().cpu_access());
    assert_removed("sealed_copy", image.region().sealed_copy());
    let fd = image.region().fd().unwrap().try_clone_to_owned().unwrap();
    assert_removed("from_fd", Region::from_fd(fd));
    assert_eq!(sink.metadata().unwrap().len(), 0, "nothing was sent");
    assert!(!image.is_current().unwrap());
    let gone = image.refresh().unwrap_err();
    assert!(matches!(&gone, Error::Memory(error) if error.raw_os_error() == Some(libc::ENOENT)), "{gone:?}");
    assert!(gone.to_string().contains(device.to_str().unwrap()), "{gone}");
    let error = Image::open(&device).unwrap_err();
    assert!(
        matches!(&error, Error::Memory(error) if error.raw_os_error() == Some(libc::ENOENT)),
        "{error:?}"
    );
    // The mapping itself stays: a raw view ends nobody's process, whatever it reads.
    assert_eq!(file.bytes().unwrap().to_vec().len(), bytes.len());

    // The same device, found again, is another one to those who have the old one open.
    fs::write("/sys/bus/pci/rescan", "1").unwrap();
    assert!(device.join("resource2").exists());
    assert!(!image.is_current().unwrap());
    assert_removed("read_at after a rescan", file.read_at(0, &mut [0; 16]));
    let again = image.refresh().unwrap().unwrap();
    assert!(again.file("weights").unwrap().to_vec().unwrap() == bytes && again.is_current().unwrap());
}
