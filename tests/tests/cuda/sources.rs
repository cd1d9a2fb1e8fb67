//! Where an upload takes the bytes from: pinned pages, the page cache, the disk. The copy is the same.

use std::fs;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use daxfs::{Image, OpenOptions, Region};
use daxfs_device::UploadOptions;
use daxfs_device::{DeviceError, Error, ImageExt, MapOptions, MappedImage};
use mkimage::{HugePages, Memory, Packer};

use crate::support::{MIB, bytes, check, device, image, is_real, live, on_a_gpu, pack, simulated};

/// Memory that the driver pins.
fn shared() -> Image {
    Image::from_fd(pack(&Memory::SharedMemfd(HugePages::No))).unwrap()
}

fn copy(image: &Image, options: &UploadOptions) -> daxfs_device::Result<MappedImage> {
    let resident = image.to_with(&device(), options)?;
    check(image, &resident);
    Ok(resident)
}

#[test]
fn pages_are_pinned_for_the_copy() {
    on_a_gpu("sources::pages_are_pinned_for_the_copy", || {
        let options = UploadOptions::new().register(true).verify(true);
        copy(&shared(), &options).unwrap();
        // Memory that cannot be pinned is read as ever.
        copy(&image(), &options).unwrap();
        assert_eq!(live(), 0);
    });
}

/// How many times the copy of an image made progress: once when the device fetched it from pinned pages, many times
/// when it went through buffers of a page.
fn steps(image: &Image, options: UploadOptions) -> u64 {
    let steps = Arc::new(AtomicU64::new(0));
    let seen = steps.clone();
    let options = options.threads(1).piece(4096).progress(move |_, _| {
        seen.fetch_add(1, Ordering::Relaxed);
        true
    });
    copy(image, &options).unwrap();
    steps.load(Ordering::Relaxed)
}

#[test]
fn pinned_pages_need_no_buffers() {
    on_a_gpu("sources::pinned_pages_need_no_buffers", || {
        let image = shared();
        let plain = UploadOptions::new;
        assert!(steps(&image, plain()) > 1000);
        assert_eq!(steps(&image, plain().register(true)), 1);
        for piece in [2 * MIB, 64 * MIB] {
            // What is mapped for the device is pinned already, in pieces or in one, also for another value of the
            // image.
            let mapped = image.map_with(&device(), &MapOptions::new().max_piece(piece)).unwrap();
            let again = Image::from_fd(image.region().fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
            assert_eq!((steps(&image, plain()), steps(&again, plain())), (1, 1));
            drop(mapped);
            assert!(steps(&image, plain()) > 1000, "it is not pinned any more");
        }
        assert_eq!(live(), 0);
    });
}

/// Memory that nobody can write, and files, are pinned for reading where the device does that.
#[test]
fn what_cannot_be_written_is_pinned_for_reading() {
    const TEST: &str = "sources::what_cannot_be_written_is_pinned_for_reading";
    on_a_gpu(TEST, || {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("image");
        Packer::new().input(crate::support::folder().path()).plan().unwrap().write_file(&path).unwrap();
        let read_only = read_only(&shared());
        for image in [image(), Image::open(&path).unwrap(), Image::from_fd(read_only).unwrap()] {
            let mapped = match image.map(&device()) {
                Ok(mapped) => mapped,
                // A card whose driver does not is a good one, too.
                Err(error) if is_real() => {
                    assert!(error.to_string().contains("only what could be written"), "{error}");
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            check(&image, &mapped);
            // Pages of a file may not be the file's any more.
            let is_file = matches!(image.region().info().unwrap().kind, dmabuf::FdKind::File);
            assert_eq!(steps(&image, UploadOptions::new()) > 1, is_file);
        }
        assert_eq!(live(), 0);
    });
}

#[test]
fn devices_that_pin_only_what_could_be_written() {
    let settings = [("DAXFS_FAKE_CUDA_ATTRIBUTES", "113=0")];
    simulated("sources::devices_that_pin_only_what_could_be_written", &settings, || {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("image");
        Packer::new().input(crate::support::folder().path()).plan().unwrap().write_file(&path).unwrap();
        let read_only = read_only(&shared());
        for (image, why) in [
            (image(), "sealed against writing"),
            (Image::open(&path).unwrap(), "no file"),
            (Image::from_fd(read_only).unwrap(), "read-only"),
        ] {
            let error = image.map(&device()).unwrap_err();
            assert!(matches!(error, Error::Device(DeviceError::NotImportable { .. })), "{error}");
            assert!(error.to_string().contains(why), "{error}");
            // Then it is read.
            assert!(steps(&image, UploadOptions::new().register(true)) > 1000);
        }
        let image = shared();
        check(&image, &image.map(&device()).unwrap());
        assert_eq!(live(), 0);
    });
}

#[test]
fn pages_that_the_driver_does_not_pin_are_read() {
    const TEST: &str = "sources::pages_that_the_driver_does_not_pin_are_read";
    for fail in ["cuMemHostRegister:0:999", "cuMemHostGetDevicePointer:0:999"] {
        let is_done = simulated(TEST, &[("DAXFS_FAKE_CUDA_FAIL", fail)], || {
            copy(&shared(), &UploadOptions::new().register(true)).unwrap();
            assert_eq!(live(), 0);
        });
        if is_done {
            return;
        }
    }
}

#[test]
fn a_copy_from_pinned_pages_that_fails_leaves_nothing() {
    const TEST: &str = "sources::a_copy_from_pinned_pages_that_fails_leaves_nothing";
    for fail in ["cuMemcpyHtoDAsync:1:999", "cuStreamCreate:1:999", "cuStreamSynchronize:1:999"] {
        let is_done = simulated(TEST, &[("DAXFS_FAKE_CUDA_FAIL", fail)], || {
            assert!(copy(&shared(), &UploadOptions::new().register(true)).is_err());
            assert_eq!(live(), 0);
        });
        if is_done {
            return;
        }
    }
}

/// What was written to a private mapping is not in the memory that could be pinned.
#[test]
fn private_changes_are_copied() {
    on_a_gpu("sources::private_changes_are_copied", || {
        let image = OpenOptions::new().private(true).open(memory_path(&shared())).unwrap();
        let file = image.file("file-70001").unwrap();
        let first = file.bytes().unwrap().as_ptr().cast_mut();
        // SAFETY: the mapping is private and writable, and nobody else uses its bytes now.
        unsafe { *first ^= 1 };
        let changed = file.to_vec().unwrap();
        assert!(changed != bytes(70_001, 70_001));
        copy(&image, &UploadOptions::new().register(true)).unwrap();
        assert!(image.map(&device()).is_err());
    });
}

/// The image's memory, by a descriptor that is for reading only.
fn read_only(image: &Image) -> OwnedFd {
    dmabuf::open_read_only(Path::new(&memory_path(image).replace("fd:", "/proc/self/fd/"))).unwrap()
}

fn memory_path(image: &Image) -> String {
    let fd = image.region().fd().unwrap().try_clone_to_owned().unwrap();
    // Left open for as long as the process lives.
    format!("fd:{}", fd.into_raw_fd())
}

/// An image on a disk, with a file of 8 MiB in the middle that nobody has read since.
fn cold(path: &Path) -> Image {
    let folder = crate::support::folder();
    fs::write(folder.path().join("middle"), bytes(8 << 20, 3)).unwrap();
    Packer::new().input(folder.path()).plan().unwrap().write_file(path).unwrap();
    let image = Image::open(path).unwrap();
    // What was read ahead for the metadata, too.
    cool(&fs::File::open(path).unwrap());
    image
}

#[test]
fn files_are_read_around_the_page_cache() {
    on_a_gpu("sources::files_are_read_around_the_page_cache", || {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("image");
        // Pieces are made whole blocks of a disk; what is in the cache is read from there.
        for (direct, piece) in [(true, 1 << 20), (true, 5000), (false, 1 << 20)] {
            let image = cold(&path);
            let before = cached(&image, "middle");
            let options = UploadOptions::new().direct(direct).piece(piece);
            let resident = image.to_with(&device(), &options).unwrap();
            let (all, pages) = (8 << 8, cached(&image, "middle"));
            match (before, direct) {
                (0, true) => assert!(pages < all / 2, "{pages}"),
                (0, false) => assert_eq!(pages, all),
                _ => eprintln!("not run: {before} pages of {} stay in the cache", path.display()),
            }
            check(&image, &resident);
            // Now all of it is in the cache.
            check(&image, &image.to_with(&device(), &options).unwrap());
            fs::remove_file(&path).unwrap();
        }
    });
}

#[test]
fn a_part_of_a_file_is_read_from_where_it_is() {
    on_a_gpu("sources::a_part_of_a_file_is_read_from_where_it_is", || {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        fs::write(&path, [vec![7; 4096], image().region().view().to_vec()].concat()).unwrap();
        let fd = dmabuf::open_read_only(&path).unwrap();
        let region = Region::from_fd_part(fd, daxfs::Part { offset: 4096, len: None }).unwrap();
        cool(&fs::File::open(&path).unwrap());
        copy(&Image::from_region(region).unwrap(), &UploadOptions::new().verify(true)).unwrap();
    });
}

/// How many pages of a file are in the page cache.
fn cached(image: &Image, path: &str) -> usize {
    let file = image.file(path).unwrap();
    let bytes = file.bytes().unwrap();
    let mut pages = vec![0_u8; bytes.len().div_ceil(4096)];
    let address = bytes.as_ptr().cast_mut().cast();
    // SAFETY: files of 2 MiB and more begin with a page; the range is mapped, and there is a byte for each page of it.
    assert_eq!(unsafe { libc::mincore(address, bytes.len(), pages.as_mut_ptr()) }, 0);
    pages.iter().filter(|&page| page & 1 == 1).count()
}

/// Takes a file out of the page cache, but for what is mapped.
fn cool(file: &fs::File) {
    file.sync_all().unwrap();
    // SAFETY: the descriptor is open; the call takes numbers only.
    let code = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(code, 0);
}
