//! What the device reads is what the CPU reads.

use std::os::fd::AsFd;

use daxfs::{Image, OpenOptions, Part, Region};
use daxfs_device::{DeviceError, Error, ImageExt, MapOptions, MappedImage, Route};
use daxfs_tests::golden::Golden;
use daxfs_tests::vgem;
use dmabuf::{HugePages, Mapping, Memfd};

use crate::support::{Hasher, LARGE, MIB, dma_buf_devices, files, memfd, open, shared, source, sources};

/// Hashes every file and every tensor on the device.
fn check_all(hasher: &Hasher<'_>, what: &str, image: &Image, mapped: &MappedImage) {
    for file in files(image) {
        let name = format!("{what}: {}", String::from_utf8_lossy(&file.path()));
        let places = mapped.file(&file).unwrap();
        assert_eq!(places.len(), 1, "{name}");
        hasher.check(&name, places.as_slice(), &file.to_vec().unwrap());
    }
    let tensors = image.tensors().unwrap();
    assert_eq!(tensors.len(), 4);
    for tensor in tensors.iter() {
        let tensor = tensor.unwrap();
        let place = mapped.tensor(&tensor).unwrap().one().unwrap();
        hasher.check(&format!("{what}: {}", tensor.name()), &[place], &tensor.bytes().unwrap().to_vec());
    }
}

#[test]
fn every_file_and_tensor_hashes_the_same_in_every_kind_of_memory() {
    let Some((device, hasher)) = shared() else { return };
    let (_work, folder) = source();
    for source in sources(device, &folder) {
        let image = open(&source.fd);
        let mapped = image.map(device).unwrap();
        let expected = if source.by_descriptor { Route::Descriptor } else { Route::Mapping };
        assert_eq!(mapped.memory().route(), expected, "{}", source.what);
        check_all(&hasher, source.what, &image, &mapped);

        // The other way, where there is one.
        match image.map_with(device, &MapOptions::new().route(Route::Descriptor)) {
            Ok(_) => assert!(source.by_descriptor, "{}", source.what),
            Err(error) => {
                assert!(!source.by_descriptor, "{}: {error}", source.what);
                assert!(matches!(error, Error::Device(DeviceError::NotImportable { .. })), "{error}");
            }
        }
        let mapped = image.map_with(device, &MapOptions::new().route(Route::Mapping)).unwrap();
        let file = image.file("file-70001").unwrap();
        hasher.check(source.what, mapped.file(&file).unwrap().as_slice(), &file.to_vec().unwrap());
    }
}

#[test]
fn a_dma_buf_for_reading_only_goes_by_its_mapping() {
    let Some((device, hasher)) = shared() else { return };
    if !dma_buf_devices() {
        return;
    }
    for len in [4096, 3 * MIB] {
        let fd = vgem::buffer(len, false).unwrap();
        assert!(!dmabuf::describe(fd.as_fd()).unwrap().writable);
        let region = Region::from_fd(fd).unwrap();
        let mapped = device.map(&region, len, &MapOptions::new()).unwrap();
        assert_eq!(mapped.route(), Route::Mapping, "the driver maps descriptors for writing");
        hasher.check("vgem, for reading", &mapped.range(0, len).unwrap(), &region.view().to_vec());
    }
}

#[test]
fn an_image_behind_another_one_in_one_memory() {
    let Some((device, hasher)) = shared() else { return };
    let (_work, folder) = source();
    let path = folder.parent().unwrap().join("image");
    mkimage::Packer::new().input(&folder).plan().unwrap().write_file(&path).unwrap();
    let image = std::fs::read(&path).unwrap();
    // In front lies one of the same length, whose bytes are others.
    let second = (image.len() as u64).next_multiple_of(2 * MIB);
    let mut both: Vec<u8> = image.iter().map(|byte| !byte).collect();
    both.resize(usize::try_from(second).unwrap(), 0x5a);
    both.extend_from_slice(&image);
    let memory = memfd(&both);
    for offset in [second, second + 4096] {
        // 4096 bytes further on there is no image, but memory all the same.
        let part = Part { offset, len: Some(second + image.len() as u64 - offset) };
        let region = Region::from_fd_part(memory.as_fd().try_clone_to_owned().unwrap(), part).unwrap();
        for route in [Route::Descriptor, Route::Mapping] {
            if route == Route::Descriptor && !device.as_vulkan().unwrap().takes_memfds() {
                continue;
            }
            let what = format!("at {offset}, by {route}");
            let options = MapOptions::new().route(route).max_piece(2 * MIB);
            let mapped = device.map(&region, region.len(), &options).unwrap();
            let places = mapped.range(0, region.len()).unwrap();
            assert!(places.len() > 1, "{what}");
            hasher.check(&what, &places, &region.view().to_vec());
            if offset == second {
                let image = Image::from_region(region.clone()).unwrap();
                let mapped = image.map_with(device, &MapOptions::new().route(route)).unwrap();
                check_all(&hasher, &what, &image, &mapped);
            }
        }
    }
}

#[test]
fn a_file_over_several_pieces_has_several_places() {
    let Some((device, hasher)) = shared() else { return };
    let (_work, folder) = source();
    for source in sources(device, &folder) {
        let image = open(&source.fd);
        let mapped = image.map_with(device, &MapOptions::new().max_piece(3 * MIB)).unwrap();
        let lengths: Vec<_> = mapped.buffers().iter().map(daxfs_device::Buffer::len).collect();
        assert!(lengths.len() > 2, "{}: {lengths:?}", source.what);
        assert!(lengths[..lengths.len() - 1].iter().all(|&len| len == 2 * MIB), "{lengths:?}");

        let file = image.file(format!("file-{LARGE}")).unwrap();
        let places = mapped.file(&file).unwrap();
        assert!(places.len() >= 3, "{}: {places:?}", source.what);
        hasher.check(source.what, places.as_slice(), &file.to_vec().unwrap());
        let part = mapped.file_range(&file, 2 * MIB - 100, 200).unwrap();
        hasher.check("a part", part.as_slice(), &file.to_vec().unwrap()[(2 << 20) - 100..][..200]);

        let count = places.len();
        let error = places.one().unwrap_err();
        assert!(
            matches!(error, Error::Device(DeviceError::NotOnePlace { places, .. }) if places == count),
            "{error}"
        );
        // Small ones lie in one piece all the same.
        let small = image.file("file-70001").unwrap();
        hasher.check("small", &[mapped.file(&small).unwrap().one().unwrap()], &small.to_vec().unwrap());
    }
}

#[test]
fn more_than_4_gib_is_cut() {
    let Some((device, hasher)) = shared() else { return };
    // Sparse: only the pages that are touched exist.
    let len = (5 << 30) + 4096;
    let memfd = Memfd::create("sparse", len, HugePages::No).unwrap();
    let limit = device.as_vulkan().unwrap().limits().max_buffer;
    let edge = limit.min(4 << 30) / (2 * MIB) * (2 * MIB);
    let around: Vec<u8> = (0..=255).cycle().take(8192).collect();
    {
        let mut map = Mapping::read_write(memfd.as_fd(), edge - 4096, 8192).unwrap();
        map.view_mut().unwrap().copy_from(0, &around).unwrap();
        let mut map = Mapping::read_write(memfd.as_fd(), len - 8, 8).unwrap();
        map.view_mut().unwrap().copy_from(0, b"the end.").unwrap();
    }
    let region = Region::from_fd(memfd.into()).unwrap();
    for route in [Route::Descriptor, Route::Mapping] {
        if route == Route::Descriptor && !device.as_vulkan().unwrap().takes_memfds() {
            continue;
        }
        let mapped = device.map(&region, len, &MapOptions::new().route(route)).unwrap();
        let lengths: Vec<_> = mapped.buffers().iter().map(daxfs_device::Buffer::len).collect();
        assert!(lengths.len() > 1 && lengths.iter().all(|&len| len <= 4 << 30), "{lengths:?}");
        assert_eq!((lengths[0], lengths.iter().sum::<u64>()), (edge, len), "{route}");
        let places = mapped.range(edge - 4096, 8192).unwrap();
        assert_eq!(places.len(), 2, "{route}");
        hasher.check("over the edge", &places, &around);
        hasher.check("the end", &mapped.range(len - 8, 8).unwrap(), b"the end.");
        assert!(mapped.range(len - 8, 9).is_err());
    }
}

#[test]
fn golden_images_with_changes_and_backing_files() {
    let Some((device, hasher)) = shared() else { return };
    let Some(golden) = Golden::find("images on a Vulkan device") else { return };
    let (mut backed, mut pieces, mut refused) = (0, 0, 0);
    for name in golden.names() {
        let in_memory = |bytes: &[u8]| Region::from_fd(memfd(bytes).into()).unwrap();
        let mut options = OpenOptions::new();
        let backing = golden.backing(&name);
        if let Some(backing) = &backing {
            options = options.backing(in_memory(backing));
        }
        let Ok(image) = options.open_region(in_memory(&golden.image(&name))) else { continue };
        let mapped = image.map(device).unwrap();
        for file in files(&image) {
            // Files that lie in the image in one piece are the other tests' business.
            if backing.is_none() && file.extent().is_some() {
                continue;
            }
            let what = format!("{name}: {}", String::from_utf8_lossy(&file.path()));
            match mapped.file(&file) {
                Ok(places) => {
                    hasher.check(&what, places.as_slice(), &file.to_vec().unwrap());
                    if places.len() > 1 { pieces += 1 } else { backed += 1 }
                }
                Err(Error::Device(DeviceError::Hole { start, .. })) => {
                    let mut byte = [1];
                    file.read_at(start, &mut byte).unwrap();
                    assert_eq!(byte, [0], "{what}: a hole is zeros");
                    refused += 1;
                }
                Err(Error::Image(daxfs::Error::NoContents { .. })) => refused += 1,
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }
    assert!(
        backed > 0 && pieces > 0 && refused > 0,
        "{backed} backed, {pieces} in pieces, {refused} refused"
    );
}
