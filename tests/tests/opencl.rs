//! Images on an OpenCL device: PoCL, which `make test` installs as root, is enough. `DAXFS_REQUIRE_OPENCL` makes a
//! missing device a failure.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use daxfs::{FileType, Image, OpenOptions};
use daxfs_device::{Device, DeviceError, Error, ImageExt, MapOptions, MappedImage, Route, UploadOptions};
use mkimage::{Memory, Packer};

const MIB: u64 = 1 << 20;

fn device() -> Option<Device> {
    match Device::parse("opencl:0") {
        Ok(device) => Some(device),
        Err(Error::Device(error @ (DeviceError::Unavailable { .. } | DeviceError::NoSuchDevice { .. }))) => {
            assert!(std::env::var_os("DAXFS_REQUIRE_OPENCL").is_none(), "{error}");
            eprintln!("not run: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Files of several lengths, one longer than two pieces of 2 MiB, one without bytes.
fn tree(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for (number, len) in [0, 1, 4095, 4096, 70_001, (4 << 20) + 7].into_iter().enumerate() {
        let bytes: Vec<u8> =
            (0..len).map(|at: usize| (at.wrapping_mul(number + 3) >> 3).to_le_bytes()[0]).collect();
        fs::write(folder.join(format!("file-{number}")), bytes).unwrap();
    }
}

/// In sealed memory, and in a file.
fn images() -> (tempfile::TempDir, [Image; 2]) {
    let dir = tempfile::tempdir().unwrap();
    tree(&dir.path().join("in"));
    let packer = || Packer::new().input(dir.path().join("in")).plan().unwrap();
    let path = dir.path().join("image.daxfs");
    packer().write_file(&path).unwrap();
    let sealed = packer().write_memory(&Memory::Memfd(dmabuf::HugePages::No)).unwrap().0;
    let images = [Image::from_fd(sealed).unwrap(), Image::open(&path).unwrap()];
    (dir, images)
}

/// Each file, read through the device, is the host's.
fn check(image: &Image, mapped: &MappedImage) {
    for entry in image.walk().filter(|entry| entry.file_type() == FileType::File) {
        let file = entry.file().unwrap();
        let mut bytes = Vec::new();
        for place in &mapped.file(&file).unwrap() {
            let mut part = vec![0; usize::try_from(place.len()).unwrap()];
            if !part.is_empty() {
                place.buffer().read(place.offset(), &mut part).unwrap();
            }
            assert_eq!(place.address(), None);
            bytes.extend(part);
        }
        assert_eq!(bytes, file.to_vec().unwrap(), "{:?}", file.path());
    }
}

#[test]
fn images_are_read_in_place() {
    let Some(device) = device() else { return };
    let (_dir, images) = images();
    for image in images {
        let mapped = image.map(&device).unwrap();
        assert_eq!((mapped.memory().route(), mapped.buffers().len()), (Route::Mapping, 1));
        assert!(!mapped.buffers()[0].is_resident() && !mapped.buffers()[0].is_writable());
        check(&image, &mapped);
        // A long region is cut, and a file over an edge has several places.
        let cut = image.map_with(&device, &MapOptions::new().max_piece(2 * MIB)).unwrap();
        assert!(cut.buffers().len() > 2);
        assert!(cut.file(&image.file("file-5").unwrap()).unwrap().len() > 1);
        check(&image, &cut);
    }
}

#[test]
fn a_place_keeps_the_memory_when_everything_else_has_gone() {
    let Some(device) = device() else { return };
    let (dir, [sealed, _]) = images();
    let file = sealed.file("file-4").unwrap();
    let wanted = file.to_vec().unwrap();
    let place = sealed.map(&device).unwrap().file(&file).unwrap().one().unwrap();
    drop((device, sealed, file, dir));
    let mut bytes = vec![0; wanted.len()];
    place.buffer().read(place.offset(), &mut bytes).unwrap();
    assert_eq!(bytes, wanted);
}

#[test]
fn copies_are_the_devices_own_and_are_compared() {
    let Some(device) = device() else { return };
    let (dir, [sealed, _]) = images();
    let copy = sealed.to_with(&device, &UploadOptions::new().verify(true)).unwrap();
    assert_eq!((copy.memory().route(), copy.buffers().len()), (Route::Copy, 1));
    assert!(copy.buffers()[0].is_resident());
    check(&sealed, &copy);
    let verified = copy.verify().unwrap();
    // The index and the EROFS view, too.
    assert_eq!((verified.files, verified.on_device), (8, false));
    // Another image's bytes at the same places are found.
    let path = dir.path().join("changed.daxfs");
    let mut bytes = vec![0; usize::try_from(sealed.region().len()).unwrap()];
    sealed.region().read_at(0, &mut bytes).unwrap();
    let at = usize::try_from(sealed.file("file-4").unwrap().extent().unwrap().offset).unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = Image::open(&path).unwrap().to_with(&device, &UploadOptions::new().verify(true)).unwrap_err();
    assert!(
        matches!(&error, Error::Device(DeviceError::Mismatch { path, .. }) if path == b"/file-4"),
        "{error}"
    );
    let stopped = sealed.to_with(&device, &UploadOptions::new().progress(|_, _| false)).unwrap_err();
    assert!(matches!(stopped, Error::Device(DeviceError::Cancelled { .. })), "{stopped}");
    let in_host = sealed.to_with(&device, &UploadOptions::new().in_host(true)).unwrap_err();
    assert!(matches!(in_host, Error::Device(DeviceError::Unavailable { .. })), "{in_host}");
    assert!(matches!(copy.keep().unwrap_err(), Error::Device(DeviceError::NotKept { .. })));
}

#[test]
fn what_cannot_be_mapped_says_why() {
    let Some(device) = device() else { return };
    let error = Device::parse("opencl:99").unwrap_err();
    assert!(matches!(error, Error::Device(DeviceError::NoSuchDevice { number: 99, .. })), "{error}");
    let (dir, [sealed, _]) = images();
    let error =
        sealed.map_with(&device, &MapOptions::new().route(Route::Descriptor)).unwrap_err().to_string();
    assert!(error.contains("the driver imports no descriptors"), "{error}");
    let private = OpenOptions::new().private(true).open(dir.path().join("image.daxfs")).unwrap();
    let error = private.map(&device).unwrap_err().to_string();
    assert!(error.contains("private copy-on-write"), "{error}");
    let mapped = sealed.map(&device).unwrap();
    let mut byte = [0];
    let error = mapped.buffers()[0].read(mapped.memory().len(), &mut byte).unwrap_err();
    assert!(
        matches!(error, Error::Image(daxfs::Error::Memory(dmabuf::Error::OutOfBounds { .. }))),
        "{error}"
    );
    let error = mapped.verify().unwrap_err();
    assert!(matches!(error, Error::Device(DeviceError::NotResident { .. })), "{error}");
}
