//! Copies that are longer than the pinned memory through which they go, so that threads wait for each other and for the
//! device.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use daxfs::Image;
use daxfs_device::UploadOptions;
use daxfs_device::{DeviceError, Error, ImageExt, MappedImage};
use mkimage::{HugePages, Memory, Packer};

use crate::support::{MIB, bytes, device, has_context, live, on_a_gpu, read, simulated};

/// Four times as long as the memory for a few threads.
const LEN: usize = (130 << 20) + 70_001;

/// An image of one file, at a path.
fn image(path: &Path) -> Image {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("long"), bytes(LEN, 7)).unwrap();
    Packer::new().input(source.path()).plan().unwrap().write_file(path).unwrap();
    Image::open(path).unwrap()
}

fn check(image: &Image, copy: &MappedImage) {
    let file = image.file("long").unwrap();
    let place = copy.file(&file).unwrap().one().unwrap();
    // Pieces, since a test that compares two long vectors and fails says nothing in a useful time.
    let (there, wanted) = (read(&place), file.to_vec().unwrap());
    assert!(there.len() == wanted.len());
    for (number, (there, wanted)) in there.chunks(4096).zip(wanted.chunks(4096)).enumerate() {
        assert!(there == wanted, "from {} on", number * 4096);
    }
}

fn options(threads: usize, piece: usize) -> UploadOptions {
    UploadOptions::new().threads(threads).piece(piece)
}

#[test]
fn memory_is_used_again_by_all_threads() {
    on_a_gpu("long_copies::memory_is_used_again_by_all_threads", || {
        let place = tempfile::tempdir().unwrap();
        let image = image(&place.path().join("image"));
        for (threads, piece) in [(1, 64 << 10), (5, 1 << 20), (12, 5 << 20), (7, 5000), (3, 16 << 20)] {
            check(&image, &image.to_with(&device(), &options(threads, piece)).unwrap());
        }
        assert_eq!(live(), 0);
    });
}

/// What is not pinned lies behind what is: two windows of 256 MiB.
#[test]
fn the_end_is_read_where_only_the_beginning_is_pinned() {
    const TEST: &str = "long_copies::the_end_is_read_where_only_the_beginning_is_pinned";
    const END: u64 = (300 << 20) + 5;
    // The pinned memory of the copy's own is registered after both windows were tried.
    let settings = [("DAXFS_FAKE_CUDA_FAIL", "cuMemHostRegister:2:999"), ("DAXFS_FAKE_CUDA_DELAY_US", "1")];
    simulated(TEST, &settings, || {
        let source = tempfile::tempdir().unwrap();
        let file = File::create(source.path().join("long")).unwrap();
        file.set_len(END).unwrap();
        for place in (0..END - 4096).step_by(1 << 20) {
            file.write_all_at(&place.to_le_bytes(), place + place % 4093).unwrap();
        }
        let plan = Packer::new().input(source.path()).plan().unwrap();
        let image =
            Image::from_fd(plan.write_memory(&Memory::SharedMemfd(HugePages::No)).unwrap().0).unwrap();
        let done = Arc::new(AtomicU64::new(0));
        let seen = done.clone();
        let options = options(1, 1 << 20).register(true).progress(move |now, _| {
            seen.fetch_max(now, Ordering::Relaxed);
            true
        });
        check(&image, &image.to_with(&device(), &options).unwrap());
        assert_eq!(done.load(Ordering::Relaxed), image.superblock().total_size);
        assert_eq!(live(), 0);
    });
}

#[test]
fn a_file_that_is_cut_ends_the_copy() {
    on_a_gpu("long_copies::a_file_that_is_cut_ends_the_copy", || {
        for (threads, piece) in [(1, 64 << 10), (9, 256 << 10)] {
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("image");
            let image = image(&path);
            let options = options(threads, piece).progress(move |done, _| {
                if done > 10 * MIB {
                    File::options().write(true).open(&path).unwrap().set_len(50 * MIB).unwrap();
                }
                true
            });
            let error = image.to_with(&device(), &options).unwrap_err();
            assert!(!matches!(error, Error::Device(_)), "{error}");
            assert!(live() == 0 && !has_context());
        }
    });
}

#[test]
fn a_copy_is_cancelled_while_threads_wait() {
    on_a_gpu("long_copies::a_copy_is_cancelled_while_threads_wait", || {
        let place = tempfile::tempdir().unwrap();
        let image = image(&place.path().join("image"));
        let cancelled = options(9, 256 << 10).progress(|done, _| done < 60 * MIB);
        let error = image.to_with(&device(), &cancelled).unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::Cancelled { .. })), "{error}");
        assert!(live() == 0 && !has_context());
        let panics = options(9, 256 << 10).progress(|done, _| {
            assert!(done < 60 * MIB, "the caller's");
            true
        });
        let panics = || image.to_with(&device(), &panics);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert!(live() == 0 && !has_context());
    });
}

#[test]
fn a_device_that_fails_on_the_way_ends_the_copy() {
    const TEST: &str = "long_copies::a_device_that_fails_on_the_way_ends_the_copy";
    for fail in [
        "cuMemcpyHtoDAsync:7:999",
        "cuEventRecord:7:999",
        "cuEventSynchronize:2:999",
        "cuStreamSynchronize:1:999",
        "cuEventCreate:3:999",
        "cuCtxPushCurrent:20:999",
    ] {
        // So slow that all threads wait for the device.
        let settings = [("DAXFS_FAKE_CUDA_FAIL", fail), ("DAXFS_FAKE_CUDA_DELAY_US", "3000")];
        let is_done = simulated(TEST, &settings, || {
            let place = tempfile::tempdir().unwrap();
            let image = image(&place.path().join("image"));
            let error = image.to_with(&device(), &options(9, 256 << 10)).unwrap_err();
            assert!(matches!(error, Error::Device(DeviceError::Driver { code: 999, .. })), "{error}");
            assert!(live() == 0 && !has_context());
        });
        if is_done {
            return;
        }
    }
}
