//! A copy is compared with the image by its files' hashes, which the device computes; what differs is named.

use std::fs;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use daxfs::holder::message::DeviceCopy;
use daxfs::{Image, OpenOptions, Region};
use daxfs_device::UploadOptions;
use daxfs_device::{DeviceError, Error, ImageExt, MappedImage, Plan, Route};
use daxfs_tests::golden::Golden;
use daxfs_tests::overlay::Overlay;
use mkimage::{HugePages, Memory, Packer};

use crate::holder::Holder;
use crate::support::{bytes, device, files, folder, image, live, on_a_gpu, pack, simulated};

/// Sizes around everything that BLAKE3 counts in, and many small files.
fn tree() -> tempfile::TempDir {
    let folder = folder();
    for len in [63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 3071, 3072, 3073, 65_536, 65_537, 1 << 20] {
        fs::write(folder.path().join(format!("edge-{len}")), bytes(len, len)).unwrap();
    }
    for number in 0..300 {
        fs::write(folder.path().join(format!("small-{number}")), bytes(number * 17, number)).unwrap();
    }
    fs::hard_link(folder.path().join("edge-65"), folder.path().join("again")).unwrap();
    folder
}

fn packed(folder: &tempfile::TempDir, hash: bool) -> Image {
    let plan = Packer::new().input(folder.path()).hash(hash).plan().unwrap();
    Image::from_fd(plan.write_memory(&Memory::Memfd(HugePages::No)).unwrap().0).unwrap()
}

/// The copy is right, and all of it was looked at.
fn is_right(image: &Image, on_device: bool) {
    let resident = image.to(&device()).unwrap();
    let verified = resident.verify().unwrap();
    let mut all = files(image);
    all.sort_by_key(daxfs::File::ino);
    all.dedup_by_key(|file| file.ino());
    assert_eq!(verified.files, all.len() as u64);
    assert_eq!(verified.bytes, all.iter().map(daxfs::File::len).sum::<u64>());
    assert_eq!(verified.on_device, on_device);
}

#[test]
fn every_file_is_hashed_on_the_device() {
    on_a_gpu("verify::every_file_is_hashed_on_the_device", || {
        let folder = tree();
        is_right(&packed(&folder, true), true);
        is_right(&packed(&folder, false), true);
        assert_eq!(live(), 0);
    });
}

#[test]
fn a_driver_that_does_not_load_kernels_has_the_bytes_copied_back() {
    const TEST: &str = "verify::a_driver_that_does_not_load_kernels_has_the_bytes_copied_back";
    for fail in ["cuModuleLoadData:0:218", "cuModuleGetFunction:2:500"] {
        let settings = [("DAXFS_FAKE_CUDA_FAIL", fail), ("DAXFS_FAKE_CUDA_DELAY_US", "1")];
        let is_done = simulated(TEST, &settings, || {
            let folder = tree();
            is_right(&packed(&folder, true), false);
            assert_eq!(live(), 0);
        });
        if is_done {
            return;
        }
    }
}

/// With less memory the batches are smaller: files are longer than one, and more than fit one.
#[test]
fn little_memory_is_enough() {
    // 80 MiB: beside the copy there are no 36 more.
    let settings = [("DAXFS_FAKE_CUDA_MEMORY", "83886080"), ("DAXFS_FAKE_CUDA_DELAY_US", "1")];
    simulated("verify::little_memory_is_enough", &settings, || {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..9000 {
            fs::write(folder.path().join(format!("small-{number}")), bytes(number % 70, number)).unwrap();
        }
        fs::write(folder.path().join("long"), bytes((33 << 20) + 77, 1)).unwrap();
        let plan = Packer::new().input(folder.path()).plan().unwrap();
        let fd = plan.write_memory(&Memory::Memfd(HugePages::No)).unwrap().0;
        let image = Image::from_fd(fd).unwrap();
        let size = image.superblock().total_size;
        assert!((46 << 20..78 << 20).contains(&size), "{size}");
        is_right(&image, true);
        assert_eq!(live(), 0);
    });
}

/// A copy of the simulated device, whose addresses are the process's, and which this process may write to.
fn writable(image: &Image) -> MappedImage {
    image.to_with(&device(), &UploadOptions::new().writable(true)).unwrap()
}

/// Changes a byte in the simulated device's memory.
fn spoil(resident: &MappedImage, path: &str, at: u64) {
    let file = resident.image().file(path).unwrap();
    let place = resident.file(&file).unwrap().one().unwrap();
    assert!(at < place.len());
    let address = usize::try_from(place.address().unwrap() + at).unwrap();
    let byte = std::ptr::with_exposed_provenance_mut::<u8>(address);
    // SAFETY: the byte is in the copy, which the simulated driver has mapped writable into this process.
    unsafe { *byte ^= 1 };
}

fn mismatch(error: &Error) -> String {
    let Error::Device(DeviceError::Mismatch { path, found, .. }) = error else { panic!("{error}") };
    let (path, text) = (String::from_utf8_lossy(path).into_owned(), error.to_string());
    let wanted = format!("{path}: the copy's hash is blake3:{}, not", blake3::Hash::from(**found));
    assert!(text.contains(&wanted), "{text}");
    path
}

#[test]
fn a_file_that_differs_is_named() {
    const TEST: &str = "verify::a_file_that_differs_is_named";
    for fail in ["", "cuModuleLoadData:0:218"] {
        let settings = [("DAXFS_FAKE_CUDA_FAIL", fail), ("DAXFS_FAKE_CUDA_DELAY_US", "1")];
        let is_done = simulated(TEST, &settings, || {
            let folder = tree();
            for hash in [true, false] {
                let image = packed(&folder, hash);
                let resident = writable(&image);
                for (path, at) in
                    [("edge-1025", 1024), ("file-1", 0), ("file-5242887", 5_242_886), ("edge-64", 63)]
                {
                    spoil(&resident, path, at);
                    assert_eq!(mismatch(&resident.verify().unwrap_err()), format!("/{path}"));
                    spoil(&resident, path, at);
                }
                resident.verify().unwrap();
            }
            // The index itself has no record, and is compared all the same.
            let resident = writable(&packed(&folder, true));
            spoil(&resident, ".daxfs/index", 200);
            assert_eq!(mismatch(&resident.verify().unwrap_err()), "/.daxfs/index");
        });
        if is_done {
            return;
        }
    }
}

#[test]
fn an_upload_compares_if_asked_to() {
    on_a_gpu("verify::an_upload_compares_if_asked_to", || {
        // A file that is not what its packer hashed.
        let mut bytes = image_bytes();
        let image = Image::from_bytes(bytes.clone()).unwrap();
        let at = image.file("file-70001").unwrap().extent().unwrap().offset;
        bytes[usize::try_from(at).unwrap() + 70_000] ^= 1;
        let image = Image::from_bytes(bytes).unwrap();
        image.to(&device()).unwrap();
        let error = image.to_with(&device(), &UploadOptions::new().verify(true)).unwrap_err();
        assert_eq!(mismatch(&error), "/file-70001");
        assert_eq!(live(), 0);
    });
}

/// An image whose index has the hash of what is in a changed file, but the content hash of the original.
#[test]
fn hashes_that_do_not_add_up_are_noticed() {
    on_a_gpu("verify::hashes_that_do_not_add_up_are_noticed", || {
        let mut bytes = image_bytes();
        let image = Image::from_bytes(bytes.clone()).unwrap();
        let file = image.file("file-4096").unwrap();
        let (old, at) = (file.hash().unwrap(), usize::try_from(file.extent().unwrap().offset).unwrap());
        bytes[at] ^= 1;
        let new = blake3::hash(&bytes[at..at + 4096]);
        let record = bytes.windows(32).position(|window| window == old).unwrap();
        bytes[record..record + 32].copy_from_slice(new.as_bytes());
        let error = Image::from_bytes(bytes).unwrap().to(&device()).unwrap().verify().unwrap_err();
        let Error::Image(daxfs::Error::OtherContent { expected, found }) = error else { panic!("{error}") };
        assert_eq!(Some(expected), image.content_hash());
        assert_ne!(Some(expected), found);
    });
}

fn image_bytes() -> Vec<u8> {
    image().region().view().to_vec()
}

#[test]
fn what_was_written_after_packing_is_compared_by_its_pieces() {
    on_a_gpu("verify::what_was_written_after_packing_is_compared_by_its_pieces", || {
        let folder = folder();
        let plan = Packer::new().input(folder.path()).plan().unwrap();
        let fd = plan.write_memory(&Memory::Memfd(HugePages::No)).unwrap().0;
        let image = Image::from_fd(fd).unwrap();
        let file = image.file("file-70001").unwrap();
        let inodes = image.walk().map(|entry| entry.metadata().ino).max().unwrap();
        let mut overlay = Overlay::new(64, u32::try_from(inodes).unwrap());
        overlay.page(file.ino(), 3, &bytes(4096, 1));
        overlay.page(file.ino(), 9, &bytes(4096, 2));
        let mut changed = image.region().view().to_vec();
        overlay.attach(&mut changed);
        let image = Image::from_bytes(changed).unwrap();
        assert_eq!(image.file("file-70001").unwrap().piece_count(), 5);
        is_right(&image, true);
    });
}

#[test]
fn images_of_kernels_are_compared() {
    on_a_gpu("verify::images_of_kernels_are_compared", || {
        let Some(golden) = Golden::find("copies of golden images") else { return };
        for name in golden.names() {
            let backing = golden.backing(&name).map(Region::from_bytes);
            let options = backing.map_or_else(OpenOptions::new, |region| OpenOptions::new().backing(region));
            let Ok(image) = options.open_region(Region::from_bytes(golden.image(&name))) else { continue };
            let verified =
                image.to(&device()).unwrap().verify().unwrap_or_else(|error| panic!("{name}: {error}"));
            // One of them is empty.
            let has_files = !files(&image).is_empty();
            assert!(verified.on_device && (verified.files > 0) == has_files, "{name}: {verified:?}");
        }
    });
}

#[test]
fn mapped_memory_is_the_hosts() {
    on_a_gpu("verify::mapped_memory_is_the_hosts", || {
        let image = Image::from_fd(pack(&Memory::SharedMemfd(HugePages::No))).unwrap();
        let error = image.map(&device()).unwrap().verify().unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::NotResident { .. })), "{error}");
        assert!(error.to_string().contains("verify the image there"), "{error}");
    });
}

#[test]
fn a_comparison_can_be_ended() {
    on_a_gpu("verify::a_comparison_can_be_ended", || {
        let resident = image().to(&device()).unwrap();
        let error = resident.verify_with(|done, all| done < all).unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::Cancelled { .. })), "{error}");
        drop(resident);
        // What the index has no hash of is hashed on the host when the device is through, and that can be ended, too.
        let resident = packed(&tree(), false).to(&device()).unwrap();
        let is_first = AtomicBool::new(true);
        let error = resident
            .verify_with(|done, all| done < all || is_first.swap(false, Ordering::Relaxed))
            .unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::Cancelled { .. })), "{error}");
        drop(resident);
        assert_eq!(live(), 0);
    });
}

/// What others left is taken when it is the image's, and passed over when it is not.
#[test]
fn a_kept_copy_is_compared_before_it_is_taken_for_a_content() {
    on_a_gpu("verify::a_kept_copy_is_compared_before_it_is_taken_for_a_content", || {
        let holder = Holder::start(&[]);
        let image = holder.image();
        image.to(&device()).unwrap().keep().unwrap();
        let expect = || OpenOptions::new().expect(image.content_hash().unwrap()).open(holder.name()).unwrap();
        let route = |image: &Image, options: &UploadOptions| {
            let resident = image.to_with(&device(), options).unwrap();
            resident.verify().unwrap();
            resident.memory().route()
        };
        assert_eq!(route(&expect(), &UploadOptions::new()), Route::Descriptor);
        assert_eq!(route(&image, &UploadOptions::new().verify(true)), Route::Descriptor);
        // A copy of another image, as long.
        let folder = tree();
        let other = packed(&folder, true).to(&device()).unwrap();
        let copy = other.buffers()[0].as_cuda().unwrap().share().unwrap();
        let attachment = image.region().attachment().unwrap();
        let kept = DeviceCopy { device: copy.uuid, size: copy.size, placement: DeviceCopy::WHOLE };
        attachment.keep(copy.fd.as_fd(), kept).unwrap();
        assert_eq!(image.to(&device()).unwrap().memory().route(), Route::Descriptor, "nobody looks");
        assert_eq!(route(&expect(), &UploadOptions::new()), Route::Copy);
        assert_eq!(route(&image, &UploadOptions::new().verify(true)), Route::Copy);
    });
}

/// What a rank of a plan holds is parts of files: they are compared with the image's bytes.
#[test]
fn what_a_rank_holds_is_compared() {
    simulated("verify::what_a_rank_holds_is_compared", &[], || {
        let image = image();
        let plan = r#"{"ranks": 2, "rules": [{"tensors": "w", "split": 1, "gather": true}, {"files": "file-7*", "on": 1}]}"#;
        let placement = Plan::parse(plan).unwrap().place(&image, 1).unwrap();
        let copy = placement.to_with(&device(), &UploadOptions::new().writable(true).verify(true)).unwrap();
        let verified = copy.verify().unwrap();
        // Half of "w", all of "b" and "q", and the file.
        assert_eq!((verified.files, verified.bytes, verified.on_device), (0, 2048 + 12 + 12 + 70_001, true));
        spoil(&copy, "file-70001", 70_000);
        assert_eq!(mismatch(&copy.verify().unwrap_err()), "/file-70001");
        spoil(&copy, "file-70001", 70_000);
        let part = copy.part(&image.tensors().unwrap().get("w").unwrap()).unwrap();
        let byte = std::ptr::with_exposed_provenance_mut::<u8>(
            usize::try_from(part.place().address().unwrap()).unwrap(),
        );
        // SAFETY: as in `spoil`.
        unsafe { *byte ^= 1 };
        assert_eq!(mismatch(&copy.verify().unwrap_err()), "/model.safetensors");
        drop((part, copy));
        assert_eq!(live(), 0);
    });
}
