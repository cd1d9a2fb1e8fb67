//! What is missing or does not do is an error that says so.

use std::env;
use std::os::fd::AsFd;
use std::process::Command;

use daxfs::{Image, Region};
use daxfs_device::vulkan::{self, Binding};
use daxfs_device::{Device, DeviceError, Error, ImageExt, MapOptions, Route};
use dmabuf::{HugePages, Seals};
use mkimage::Memory;

use crate::support::{device, memfd, open, pack, source};

/// Set in a second process, which has no driver.
const ROLE: &str = "DAXFS_VULKAN_TEST_WITHOUT";

#[test]
fn without_loader_or_driver_there_is_an_error_that_says_what_is_needed() {
    if env::var_os(ROLE).is_some() {
        for error in [Device::open("vulkan", 0).unwrap_err(), vulkan::devices().unwrap_err()] {
            let Error::Device(DeviceError::Unavailable { needs, .. }) = &error else { panic!("{error:?}") };
            assert!(needs.contains("libvulkan1") || needs.contains("mesa-vulkan-drivers"), "{error}");
            assert!(error.to_string().contains("is not available: it needs"), "{error}");
        }
        return println!("the second process ran its part");
    }
    // Once without the folder that holds our loader, once with a list of drivers that names none.
    for (variable, value) in [("LD_LIBRARY_PATH", ""), ("VK_DRIVER_FILES", "/dev/null")] {
        let mut second = Command::new(env::current_exe().unwrap());
        second.args(["errors::without_loader_or_driver_there_is_an_error_that_says_what_is_needed"]);
        second.args(["--exact", "--nocapture"]).env(ROLE, "1").env(variable, value);
        // Whatever the system has is not used either.
        second.env("VK_DRIVER_FILES", "/dev/null").env("VK_ICD_FILENAMES", "/dev/null");
        let output = second.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("the second process ran its part"), "{text}");
    }
}

#[test]
fn a_device_that_is_not_there_is_named_with_those_that_are() {
    let Some(device) = device() else { return };
    let error = Device::open("vulkan", 99).unwrap_err();
    assert!(matches!(error, Error::Device(DeviceError::NoSuchDevice { number: 99, .. })), "{error:?}");
    assert!(error.to_string().contains(device.name()), "{error}");
    assert_eq!(vulkan::devices().unwrap()[0], device.name());
}

#[test]
fn memory_that_cannot_be_imported_is_refused_with_every_reason() {
    let Some(device) = device() else { return };
    let (work, folder) = source();
    let file = work.path().join("plain");
    mkimage::Packer::new().input(&folder).plan().unwrap().write_file(&file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let why = |region: &Region, options: MapOptions| match device.map(region, region.len(), &options) {
        Err(Error::Device(DeviceError::NotImportable { refusals, advice, .. })) => {
            assert!(advice.contains("daxfs-pack"), "{advice}");
            refusals.into_iter().map(|refusal| refusal.why).collect::<Vec<_>>().join("; ")
        }
        other => panic!("{other:?}"),
    };
    let descriptor = MapOptions::new().route(Route::Descriptor);

    let sealed = Region::from_fd(pack(&folder, &Memory::Memfd(HugePages::No))).unwrap();
    assert!(why(&sealed, descriptor).contains("sealed against writing"));
    let future = memfd(&bytes);
    future.seal(Seals::FUTURE_WRITE).unwrap();
    assert!(why(&Region::from_fd(future.into()).unwrap(), descriptor).contains("sealed against writing"));
    assert!(why(&Region::open(&file).unwrap(), descriptor).contains("a file, not a dma-buf"));

    // A memfd that was opened again for reading.
    let whole = memfd(&bytes);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&whole.as_fd()));
    let reading = Region::from_fd(std::fs::File::open(path).unwrap().into()).unwrap();
    assert!(why(&reading, descriptor).contains("open for reading only"));

    let owned = Region::from_bytes(bytes.clone());
    let reasons = why(&owned, MapOptions::new());
    assert!(reasons.contains("no descriptor") && reasons.contains("sealed copy"), "{reasons}");
    let private = Region::from_fd_private(memfd(&bytes).into()).unwrap();
    assert!(why(&private, MapOptions::new().route(Route::Mapping)).contains("copy-on-write"));

    // A length that is no multiple of anything goes by its mapping, whose last page is whole.
    let odd = Region::from_fd(memfd(&bytes[..5001]).into()).unwrap();
    let mapped = device.map(&odd, 5001, &MapOptions::new()).unwrap();
    assert_eq!(mapped.range(5000, 1).unwrap()[0].len(), 1);
    for len in [0, 5002] {
        let error = device.map(&odd, len, &MapOptions::new()).unwrap_err();
        assert!(
            matches!(error, Error::Image(daxfs::Error::Memory(dmabuf::Error::OutOfBounds { .. }))),
            "{error}"
        );
    }
}

#[test]
fn files_of_other_images_and_ranges_outside_are_refused() {
    let Some(device) = device() else { return };
    let (_work, folder) = source();
    let fd = pack(&folder, &Memory::Memfd(HugePages::No));
    let (one, other) = (open(&fd), open(&fd));
    let mapped = one.map(&device).unwrap();
    let foreign = other.file("file-4096").unwrap();
    let error = mapped.file(&foreign).unwrap_err();
    assert!(matches!(error, Error::Device(DeviceError::OtherImage { .. })), "{error}");
    let file = one.file("file-4096").unwrap();
    for (offset, len) in [(0, 4097), (4097, 0), (u64::MAX, 2)] {
        let error = mapped.file_range(&file, offset, len).unwrap_err();
        assert!(matches!(error, Error::Image(daxfs::Error::OutsideFile { len: 4096, .. })), "{error}");
    }
    // A clone is the same image.
    let clone: Image = one.clone();
    assert!(mapped.file(&clone.file("file-4096").unwrap()).is_ok());
}

#[test]
fn what_is_too_long_to_bind_is_split() {
    let Some(device) = device() else { return };
    let bound = device.as_vulkan().unwrap().limits().max_storage_range;
    let len = bound.saturating_add(4096);
    if len > 3 << 30 {
        return eprintln!("not run: the device binds {bound} bytes");
    }
    let sparse = dmabuf::Memfd::create("sparse", len.next_multiple_of(4096), HugePages::No).unwrap();
    let region = Region::from_fd(sparse.into()).unwrap();
    let mapped = device.map(&region, len, &MapOptions::new()).unwrap();
    let place = &mapped.range(0, len).unwrap()[0];
    let error = Binding::of(place).unwrap_err();
    assert!(matches!(error, Error::Device(DeviceError::TooLongToBind { .. })), "{error}");
    let parts = place.split(bound / 4096 * 4096);
    assert_eq!(parts.iter().map(daxfs_device::Place::len).sum::<u64>(), len);
    assert!(parts.iter().all(|part| Binding::of(part).unwrap().is_some()));
}
