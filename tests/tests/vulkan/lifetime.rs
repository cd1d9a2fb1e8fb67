//! Memory lives as long as anything uses it, and no longer.

use daxfs_device::ImageExt;
use std::os::fd::AsFd;
use std::thread;

use dmabuf::{HugePages, Seals};
use mkimage::Memory;

use crate::compute::Words;
use crate::support::{Hasher, device, memfd, open, pack, source};

#[test]
fn a_place_keeps_device_buffer_and_memory() {
    let Some(device) = device() else { return };
    let (_work, folder) = source();
    let fd = pack(&folder, &Memory::Memfd(HugePages::No));
    let image = open(&fd);
    let file = image.file("file-70001").unwrap();
    let bytes = file.to_vec().unwrap();
    let place = image.map(&device).unwrap().file(&file).unwrap().one().unwrap();
    drop((image, file, fd));
    let again = device.clone();
    drop(device);
    let hasher = Hasher::new(&again);
    hasher.check("after everything else is gone", &[place], &bytes);
}

#[test]
fn memory_is_given_back_with_the_last_place() {
    let Some(device) = device() else { return };
    if !device.as_vulkan().unwrap().takes_memfds() {
        return eprintln!("not run: {} takes no memfds", device.name());
    }
    let (_work, folder) = source();
    let file = folder.parent().unwrap().join("image");
    mkimage::Packer::new().input(&folder).plan().unwrap().write_file(&file).unwrap();
    let memfd = memfd(&std::fs::read(&file).unwrap());
    // The driver's mapping is writable, and the kernel refuses the seal as long as there is one.
    let seal = || memfd.seal(Seals::WRITE).map_err(|error| error.raw_os_error());
    let place = {
        let image = open(&memfd.as_fd().try_clone_to_owned().unwrap());
        let mapped = image.map(&device).unwrap();
        mapped.file(&image.file("file-4").unwrap()).unwrap().one().unwrap()
    };
    assert_eq!(seal(), Err(Some(libc::EBUSY)), "the place holds the memory");
    {
        // While somebody has the queue the buffer stays; it goes when the queue is given back.
        let queue = device.as_vulkan().unwrap().queue().unwrap();
        drop(place);
        assert_eq!(seal(), Err(Some(libc::EBUSY)), "the device may be using it");
        drop(queue);
    }
    assert_eq!(seal(), Ok(()), "nobody uses it any more");
}

#[test]
fn threads_map_hash_and_drop_beside_each_other() {
    let Some(device) = device() else { return };
    let (_work, folder) = source();
    let fd = pack(&folder, &Memory::Memfd(HugePages::No));
    thread::scope(|scope| {
        for _ in 0..4 {
            let (device, fd) = (device.clone(), &fd);
            scope.spawn(move || {
                let hasher = Hasher::new(&device);
                for _ in 0..5 {
                    let image = open(fd);
                    let mapped = image.map(&device).unwrap();
                    let file = image.file("file-70001").unwrap();
                    let places = mapped.file(&file).unwrap();
                    drop(mapped);
                    hasher.check("beside others", places.as_slice(), &file.to_vec().unwrap());
                }
            });
        }
    });
    drop(Words::new(device.as_vulkan().unwrap(), &[1]).unwrap());
}
