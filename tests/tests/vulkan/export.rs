//! Device memory as a dma-buf that others open.

use std::os::fd::AsFd;
use std::path::Path;

use daxfs::Image;
use daxfs_device::{Device, DeviceError, Error, ImageExt, Route};
use dmabuf::{FdKind, HugePages};
use mkimage::Memory;

use crate::compute;
use crate::support::{Hasher, device, files, open, pack, source};

#[test]
fn an_image_that_the_device_copied_opens_from_the_exported_dma_buf() {
    let Some(device) = device() else { return };
    let vulkan = device.as_vulkan().unwrap();
    let (_work, folder) = source();
    let image = open(&pack(&folder, &Memory::Memfd(HugePages::No)));
    let mapped = image.map(&device).unwrap();
    let memory = mapped.buffers()[0].as_vulkan().unwrap();
    let error = memory.export_dma_buf().unwrap_err();
    assert!(matches!(&error, Error::Device(DeviceError::NotExportable { .. })), "{error}");
    assert!(error.to_string().contains("it was imported"), "{error}");

    let exported = match vulkan.allocate(memory.len()) {
        Ok(exported) => exported,
        Err(error) if vulkan.takes_memfds() && !Path::new("/dev/udmabuf").exists() => {
            assert!(matches!(error, Error::Device(DeviceError::NotExportable { .. })), "{error:?}");
            assert!(error.to_string().contains("/dev/udmabuf"), "{error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    compute::copy(vulkan, memory, &exported, memory.len()).unwrap();
    let fd = exported.export_dma_buf().unwrap();
    let info = dmabuf::describe(fd.as_fd()).unwrap();
    assert!(matches!(info.kind, FdKind::DmaBuf { .. }) && info.len >= memory.len(), "{info:?}");
    // The descriptor keeps the memory.
    drop(exported);
    let copy = Image::from_fd(fd.try_clone().unwrap()).unwrap();
    assert_eq!(files(&copy).len(), files(&image).len());
    for (theirs, ours) in files(&copy).iter().zip(files(&image)) {
        assert_eq!(theirs.hash().unwrap(), ours.hash().unwrap());
    }

    // Another device imports it.
    let other = Device::open("vulkan", 0).unwrap();
    let mapped = copy.map(&other).unwrap();
    assert_eq!(mapped.memory().route(), Route::Descriptor);
    let hasher = Hasher::new(&other);
    let file = copy.file("file-70001").unwrap();
    hasher.check("exported and imported", mapped.file(&file).unwrap().as_slice(), &file.to_vec().unwrap());
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    let Some(device) = device() else { return };
    let vulkan = device.as_vulkan().unwrap();
    for len in [0, vulkan.limits().max_buffer + 1, u64::MAX] {
        let error = vulkan.allocate(len).unwrap_err();
        assert!(
            matches!(error, Error::Image(daxfs::Error::Memory(dmabuf::Error::OutOfBounds { .. }))),
            "{error}"
        );
    }
}
