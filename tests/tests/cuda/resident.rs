//! What is in the device's memory is what is in the image; what was given away keeps it, and nothing else does.

use std::fs;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use daxfs::Image;
use daxfs::dlpack::{self, DLDevice};
use daxfs_device::{Device, DeviceError, MapOptions, Route, TensorSlice};
use daxfs_device::{Error, ImageExt, UploadOptions, cuda::devices};
use mkimage::{HugePages, Memory, Packer};

use crate::support::{
    GPU, MIB, bytes, check, device, files, folder, has_context, image, is_real, live, on_a_gpu, pack, read,
    simulated,
};

#[test]
fn files_and_tensors_are_the_same_on_the_device() {
    on_a_gpu("resident::files_and_tensors_are_the_same_on_the_device", || {
        assert!(devices().unwrap().contains(&device().name().to_owned()));
        let image = image();
        let resident = image.to(&device()).unwrap();
        assert_eq!((resident.memory().route(), resident.buffers().len()), (Route::Copy, 1));
        assert!(resident.buffers()[0].as_cuda().unwrap().is_resident());
        check(&image, &resident);
        for tensor in image.tensors().unwrap().iter() {
            let address = resident.tensor(&tensor.unwrap()).unwrap().one().unwrap().address().unwrap();
            assert_eq!(address % 256, 0, "aligned as it was packed");
        }
        // A place of an image keeps what it needs.
        let file = image.file("file-70001").unwrap();
        let place = resident.file(&file).unwrap().one().unwrap();
        drop((resident, image));
        assert!(read(&place) == bytes(70_001, 70_001));
        drop((place, file));
        assert_eq!(live(), 0);
    });
}

#[test]
fn pieces_and_threads_make_no_difference() {
    on_a_gpu("resident::pieces_and_threads_make_no_difference", || {
        let (image, device) = (image(), device());
        for (threads, piece) in [(1, 4096), (4, 5000), (3, 1 << 20), (2, 64 << 20)] {
            let done = Arc::new(AtomicU64::new(0));
            let seen = done.clone();
            let options =
                UploadOptions::new().threads(threads).piece(piece).verify(true).progress(move |now, all| {
                    assert!(now <= all);
                    seen.fetch_max(now, Ordering::Relaxed);
                    true
                });
            let resident = image.to_with(&device, &options).unwrap();
            check(&image, &resident);
            assert_eq!(done.load(Ordering::Relaxed), image.superblock().total_size);
        }
    });
}

#[test]
fn memory_comes_back() {
    on_a_gpu("resident::memory_comes_back", || {
        let (image, device) = (image(), device());
        let free = || device.as_cuda().unwrap().memory().unwrap().0;
        // What the driver makes at first use stays.
        drop(image.to(&device).unwrap());
        let before = free();
        let resident = image.to(&device).unwrap();
        let used = before - free();
        assert!(used >= 6 * MIB, "{used}");
        drop(resident);
        // Others may use a real card.
        assert!(is_real() || free() == before, "{} of {before}", free());
    });
}

#[test]
fn readers_map_it_for_reading() {
    simulated("resident::readers_map_it_for_reading", &[], || {
        let (image, device) = (image(), device());
        // The simulated device's addresses are the process's.
        let rights = |options: &UploadOptions| {
            let resident = image.to_with(&device, options).unwrap();
            let address = format!("{:x}-", resident.buffers()[0].address().unwrap());
            let maps = fs::read_to_string("/proc/self/maps").unwrap();
            let line = maps.lines().find(|line| line.starts_with(&address)).unwrap();
            line.split(' ').nth(1).unwrap().to_owned()
        };
        assert_eq!(rights(&UploadOptions::new()), "r--s");
        assert_eq!(rights(&UploadOptions::new().writable(true)), "rw-s");
    });
}

#[test]
fn rights_that_a_driver_does_not_take_away_are_given_anew() {
    let settings = [("DAXFS_FAKE_CUDA_FAIL", "cuMemSetAccess:2:801")];
    simulated("resident::rights_that_a_driver_does_not_take_away_are_given_anew", &settings, || {
        let image = image();
        let resident = image.to(&device()).unwrap();
        check(&image, &resident);
        let address = format!("{:x}-", resident.buffers()[0].address().unwrap());
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.lines().any(|line| line.starts_with(&address) && line.contains(" r--s ")));
    });
}

#[test]
fn a_lookup_block_lies_beside_the_image() {
    on_a_gpu("resident::a_lookup_block_lies_beside_the_image", || {
        let (image, device) = (image(), device());
        let lookup = daxfs_device::Lookup::of(&image).unwrap();
        let block = device.as_cuda().unwrap().copy(lookup.as_bytes()).unwrap();
        let mut bytes = vec![0; lookup.as_bytes().len()];
        block.copy_to_host(0, &mut bytes).unwrap();
        assert!(bytes == lookup.as_bytes() && block.address().is_multiple_of(8));
    });
}

#[test]
fn an_image_that_is_replaced_while_it_is_copied_is_none() {
    on_a_gpu("resident::an_image_that_is_replaced_while_it_is_copied_is_none", || {
        let work = tempfile::tempdir().unwrap();
        let region = work.path().join("region");
        fs::File::create(&region).unwrap().set_len(32 * MIB).unwrap();
        let memory = Memory::Device(region.clone().into());
        let source = folder();
        let plan = move || Packer::new().input(source.path()).replace(true).plan().unwrap();
        plan().write_memory(&memory).unwrap();
        let image = Image::open(&region).unwrap();
        let options = UploadOptions::new().piece(1 << 20).progress(move |done, all| {
            if done == all {
                plan().write_memory(&memory).unwrap();
            }
            true
        });
        let error = image.to_with(&device(), &options).unwrap_err();
        assert!(matches!(error, Error::Image(daxfs::Error::BeingReplaced { .. })), "{error}");
        drop(options);
        let image = image.refresh().unwrap().unwrap();
        check_files(&image);
        assert_eq!(live(), 0);
    });
}

fn check_files(image: &Image) {
    let resident = image.to(&device()).unwrap();
    for file in files(image) {
        let place = resident.file(&file).unwrap().one().unwrap();
        assert!(read(&place) == file.to_vec().unwrap());
    }
}

#[test]
fn a_copy_can_be_cancelled() {
    on_a_gpu("resident::a_copy_can_be_cancelled", || {
        let options = UploadOptions::new().piece(4096).progress(|done, _| done < MIB);
        let error = image().to_with(&device(), &options).unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::Cancelled { .. })), "{error}");
        assert_eq!(live(), 0);
        let options = UploadOptions::new().progress(|_, _| panic!("the caller's"));
        let panics = || image().to_with(&device(), &options);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert!(live() == 0 && !has_context());
    });
}

#[test]
fn host_memory_is_read_in_place() {
    on_a_gpu("resident::host_memory_is_read_in_place", || {
        let device = device();
        let image = Image::from_fd(pack(&Memory::SharedMemfd(HugePages::No))).unwrap();
        let mapped = image.map(&device).unwrap();
        assert_eq!(mapped.memory().route(), Route::Mapping);
        assert!(!mapped.buffers()[0].as_cuda().unwrap().is_resident());
        check(&image, &mapped);
        let in_pieces = image.map_with(&device, &MapOptions::new().max_piece(2 * MIB)).unwrap();
        let file = image.file("file-5242887").unwrap();
        let places = in_pieces.file(&file).unwrap();
        assert!(places.len() > 1);
        let all: Vec<u8> = places.as_slice().iter().flat_map(read).collect();
        assert!(all == file.to_vec().unwrap());
        drop((mapped, in_pieces, places));

        drop(device);
        assert_eq!(live(), 0);
    });
}

#[test]
fn what_dlpack_lends_keeps_the_memory() {
    on_a_gpu("resident::what_dlpack_lends_keeps_the_memory", || {
        let device = Device::open("cuda", 0).unwrap();
        let image = image();
        let resident = image.to(&device).unwrap();
        let tensor = image.tensors().unwrap().get("w").unwrap();
        let place = resident.tensor(&tensor).unwrap().one().unwrap();
        let loan = daxfs_device::dlpack::export_versioned(&tensor, &place, true, GPU).unwrap();
        let address = place.address().unwrap();
        let short = place.split(100).remove(0);
        let error = daxfs_device::dlpack::export_versioned(&tensor, &short, true, GPU).unwrap_err();
        assert!(error.to_string().contains("whole tensor"), "{error}");
        for (what, writable) in [(image.to(&device).unwrap(), false), (writable(&image, &device), true)] {
            let place = what.tensor(&tensor).unwrap().one().unwrap();
            let loan = daxfs_device::dlpack::export_versioned(&tensor, &place, false, GPU);
            assert_eq!(loan.is_ok(), writable);
            if let Ok(loan) = loan {
                end(loan);
            }
        }
        drop((short, place, resident, tensor, image, device));
        assert!(is_real() || live() > 0);
        // SAFETY: the loan is live until its deleter is called, below.
        let managed = unsafe { loan.as_ref() };
        assert_eq!(managed.dl_tensor.data.addr() as u64, address);
        assert_eq!((managed.dl_tensor.device.device_type, managed.dl_tensor.device.device_id), (2, 0));
        assert_eq!((managed.flags, managed.dl_tensor.ndim), (dlpack::FLAG_READ_ONLY, 2));
        end(loan);
        assert_eq!(live(), 0);
    });
}

#[test]
fn parts_of_tensors_are_views() {
    on_a_gpu("resident::parts_of_tensors_are_views", || {
        let image = image();
        let resident = image.to(&device()).unwrap();
        let tensors = image.tensors().unwrap();
        let tensor = tensors.get("w").unwrap();
        let whole = tensor.bytes().unwrap().to_vec();
        // Elements of a part, found by its shape and strides.
        let elements = |part: &TensorSlice| -> Vec<u8> {
            let (bytes, shape, strides) = (read(part.place()), part.shape(), part.strides());
            let indices = (0..shape[0]).flat_map(|row| (0..shape[1]).map(move |column| (row, column)));
            let at = |(row, column)| usize::try_from(4 * (row * strides[0] + column * strides[1])).unwrap();
            indices.flat_map(|index| bytes[at(index)..at(index) + 4].to_vec()).collect()
        };
        let rows: Vec<u8> = (0..4)
            .flat_map(|rank| {
                let part = resident.slice(&tensor, 0, rank * 64..(rank + 1) * 64).unwrap();
                assert!(part.is_contiguous() && part.place().len() == 1024);
                elements(&part)
            })
            .collect();
        assert!(rows == whole);
        let part = resident.slice(&tensor, 1, 1..3).unwrap();
        assert_eq!((part.shape(), part.strides(), part.is_contiguous()), (&[256, 2][..], &[4, 1][..], false));
        let wanted: Vec<u8> = whole.chunks(16).flat_map(|row| row[4..12].to_vec()).collect();
        assert!(elements(&part) == wanted);
        let loan = daxfs_device::dlpack::export_slice_versioned(&tensor, &part, true, GPU).unwrap();
        // SAFETY: the loan is live until its deleter is called, below.
        let lent = unsafe { &loan.as_ref().dl_tensor };
        assert_eq!(lent.data.addr() as u64, part.place().address().unwrap());
        // SAFETY: shape and strides have as many elements as there are dimensions.
        let [shape, strides] = [lent.shape, lent.strides].map(|list| unsafe { *list.cast::<[i64; 2]>() });
        assert_eq!((lent.ndim, shape, strides), (2, [256, 2], [4, 1]));
        end(loan);
        assert!(resident.slice(&tensor, 0, 7..7).unwrap().place().is_empty());

        let packed = tensors.get("q").unwrap();
        assert_eq!(resident.slice(&packed, 0, 1..3).unwrap().place().len(), 6);
        assert_eq!(resident.slice(&packed, 1, 2..4).unwrap().place().len(), 10);
        let errors = [
            resident.slice(&packed, 1, 1..3),
            resident.slice(&tensor, 2, 0..1),
            resident.slice(&tensor, 1, 3..5),
            resident.slice(&tensor, 1, Range { start: 3, end: 2 }),
        ];
        for (error, why) in
            errors.into_iter().zip(["inside a byte", "no such dimension", "not within", "not within"])
        {
            let error = error.unwrap_err();
            assert!(matches!(error, Error::Device(DeviceError::NoSuchSlice { .. })), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
        let part = resident.slice(&packed, 0, 1..3).unwrap();
        assert!(daxfs_device::dlpack::export_slice_versioned(&packed, &part, true, GPU).is_err());
    });
}

#[test]
fn host_memory_is_lent_for_reading_by_its_own_address() {
    on_a_gpu("resident::host_memory_is_lent_for_reading_by_its_own_address", || {
        let image = Image::from_fd(pack(&Memory::SharedMemfd(HugePages::No))).unwrap();
        let mapped = image.map(&device()).unwrap();
        let tensor = image.tensors().unwrap().get("w").unwrap();
        let place = mapped.tensor(&tensor).unwrap().one().unwrap();
        for device in [DLDevice::CUDA_HOST, GPU] {
            assert!(daxfs_device::dlpack::export_versioned(&tensor, &place, false, device).is_err());
        }
        for device in [DLDevice::CPU, DLDevice { device_id: 1, ..GPU }] {
            let error = daxfs_device::dlpack::export_versioned(&tensor, &place, true, device).unwrap_err();
            assert!(error.to_string().contains("device asked for"), "{error}");
        }
        assert!(daxfs_device::dlpack::export_legacy(&tensor, &place).is_err());
        // By the address of who is to read it.
        let host = place.buffer().as_cuda().unwrap().host_address().unwrap() as u64 + place.offset();
        for (device, address) in [(DLDevice::CUDA_HOST, host), (GPU, place.address().unwrap())] {
            let loan = daxfs_device::dlpack::export_versioned(&tensor, &place, true, device).unwrap();
            // SAFETY: the loan is live until its deleter is called, below.
            let lent = unsafe { &loan.as_ref().dl_tensor };
            assert_eq!((lent.data.addr() as u64, lent.device), (address, device));
            end(loan);
        }
    });
}

fn writable(image: &Image, device: &Device) -> daxfs_device::MappedImage {
    image.to_with(device, &UploadOptions::new().writable(true)).unwrap()
}

fn end(loan: NonNull<dlpack::DLManagedTensorVersioned>) {
    // SAFETY: the loan is live until its deleter is called.
    let deleter = unsafe { loan.as_ref() }.deleter.unwrap();
    // SAFETY: the deleter of this loan, called once.
    unsafe { deleter(loan.as_ptr()) };
}
