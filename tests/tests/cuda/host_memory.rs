//! Copies in host memory that the driver allocates: the GPU reads them over the link, the CPU at the same addresses,
//! and so does whoever has the descriptor.

use std::env;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use daxfs::DeviceUuid;
use daxfs::dlpack::DLDevice;
use daxfs::{Image, Part, Region};
use daxfs_device::cuda::Buffer;
use daxfs_device::{Device, DeviceError, MappedImage, Place, Route};
use daxfs_device::{Error, ImageExt, Shared, UploadOptions};

use crate::sharing::outlives;
use crate::support::{bytes, check, device, files, image, live, on_a_gpu, simulated};

pub fn in_host() -> UploadOptions {
    UploadOptions::new().in_host(true)
}

pub fn buffer(copy: &MappedImage) -> &Buffer {
    copy.buffers()[0].as_cuda().unwrap()
}

/// What the CPU has at a place.
pub fn by_cpu(place: &Place) -> &[u8] {
    let start = place.buffer().as_cuda().unwrap().host_address().unwrap();
    let address = start + usize::try_from(place.offset()).unwrap();
    let first = std::ptr::with_exposed_provenance(address);
    // SAFETY: the bytes are mapped for the CPU to read as long as the place lives, and nobody writes to them.
    unsafe { std::slice::from_raw_parts(first, usize::try_from(place.len()).unwrap()) }
}

/// Every file is the image's for the GPU's copies, for the CPU and for the GPU's kernels.
pub fn check_all(image: &Image, copy: &MappedImage) {
    assert!(!buffer(copy).is_resident());
    check(image, copy);
    for file in files(image) {
        let place = copy.file(&file).unwrap().one().unwrap();
        assert!(by_cpu(&place) == file.to_vec().unwrap(), "{}", String::from_utf8_lossy(&file.path()));
    }
    assert!(copy.verify().unwrap().on_device);
}

#[test]
fn gpu_and_cpu_read_it_at_the_same_address() {
    on_a_gpu("host_memory::gpu_and_cpu_read_it_at_the_same_address", || {
        let image = image();
        let copy = image.to_with(&device(), &in_host().verify(true)).unwrap();
        assert_eq!((copy.memory().route(), copy.buffers().len()), (Route::Copy, 1));
        check_all(&image, &copy);
        let memory = buffer(&copy);
        assert_eq!(memory.host_address(), usize::try_from(memory.address()).ok());
        assert!(!memory.is_writable());
        assert_eq!(copy.buffers()[0].dl_device(), Some(DLDevice::CUDA_HOST));
        let error = memory.export_dma_buf().unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::NotExportable { .. })), "{error}");
        assert!(error.to_string().contains("makes no dma-buf of its host memory"), "{error}");
        // A place of it keeps what it needs.
        let file = image.file("file-70001").unwrap();
        let place = copy.file(&file).unwrap().one().unwrap();
        drop((copy, image, file));
        assert!(by_cpu(&place) == bytes(70_001, 70_001));
        drop(place);
        assert_eq!(live(), 0);
    });
}

#[test]
fn it_is_filled_from_memory_and_from_files() {
    on_a_gpu("host_memory::it_is_filled_from_memory_and_from_files", || {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("image");
        let in_memory = image();
        fs::write(&path, [vec![7; 4096], in_memory.region().view().to_vec()].concat()).unwrap();
        let part = |len| {
            // Out of the page cache, so that it is read around that where the file system can.
            let file = fs::File::open(&path).unwrap();
            file.sync_all().unwrap();
            nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .unwrap();
            let part = Part { offset: 4096, len };
            Image::from_region(Region::from_fd_part(file.into(), part).unwrap()).unwrap()
        };
        let size = in_memory.superblock().total_size;
        for (threads, piece, direct) in
            [(1, 4096, true), (4, 5000, true), (3, 1 << 20, true), (2, 64 << 20, true), (4, 1 << 20, false)]
        {
            for image in [in_memory.clone(), part(None), part(Some(size))] {
                let done = Arc::new(AtomicU64::new(0));
                let seen = Arc::clone(&done);
                let options = in_host().threads(threads).piece(piece).direct(direct);
                let options = options.register(true).progress(move |now, all| {
                    assert!(now <= all);
                    seen.fetch_max(now, Ordering::Relaxed);
                    true
                });
                check_all(&image, &image.to_with(&device(), &options).unwrap());
                assert_eq!(done.load(Ordering::Relaxed), size);
            }
        }
    });
}

/// The threads fill it by themselves: nothing is copied by the device, pinned or staged.
#[test]
fn the_device_does_nothing() {
    let settings =
        [("DAXFS_FAKE_CUDA_FAIL", "cuMemHostAlloc:0:2,cuMemHostRegister:0:2,cuMemcpyHtoDAsync:0:2")];
    simulated("host_memory::the_device_does_nothing", &settings, || {
        let image = image();
        check(&image, &image.to_with(&device(), &in_host()).unwrap());
    });
}

#[test]
fn a_copy_that_is_ended_leaves_nothing() {
    on_a_gpu("host_memory::a_copy_that_is_ended_leaves_nothing", || {
        let is_first = AtomicBool::new(true);
        let options = in_host().piece(4096).progress(move |_, _| is_first.swap(false, Ordering::Relaxed));
        let error = image().to_with(&device(), &options).unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::Cancelled { .. })), "{error}");
        assert_eq!(live(), 0);
    });
}

#[test]
fn what_is_writable_is_so_for_both() {
    on_a_gpu("host_memory::what_is_writable_is_so_for_both", || {
        let image = image();
        let copy = image.to_with(&device(), &in_host().writable(true)).unwrap();
        check_all(&image, &copy);
        assert!(buffer(&copy).is_writable());
        let place = copy.file(&image.file("file-70001").unwrap()).unwrap().one().unwrap();
        let first = std::ptr::with_exposed_provenance_mut::<u8>(by_cpu(&place).as_ptr().expose_provenance());
        // SAFETY: the byte is mapped writable for the CPU, and no reference to it is left.
        unsafe { *first ^= 1 };
        match copy.verify().unwrap_err() {
            Error::Device(DeviceError::Mismatch { path, .. }) => assert_eq!(path, b"/file-70001"),
            error => panic!("{error}"),
        }
    });
}

/// The first line of this process's mappings that begins where the copy does.
fn rights(copy: &MappedImage) -> String {
    let address = format!("{:x}-", buffer(copy).address());
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.starts_with(&address)).unwrap();
    line.split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn readers_map_it_for_reading() {
    const TEST: &str = "host_memory::readers_map_it_for_reading";
    // The second time, the driver does not take rights away from a mapping, and gives them to a new one.
    for fail in ["", "cuMemSetAccess:2:801"] {
        let is_done = simulated(TEST, &[("DAXFS_FAKE_CUDA_FAIL", fail)], || {
            let (image, gpu) = (image(), device());
            let copy = image.to_with(&gpu, &in_host()).unwrap();
            check_all(&image, &copy);
            assert_eq!(rights(&copy), "r--s");
            let attached = gpu.attach(&image, &buffer(&copy).share().unwrap()).unwrap();
            assert_eq!(rights(&attached), "r--s");
            assert_eq!(rights(&image.to_with(&gpu, &in_host().writable(true)).unwrap()), "rw-s");
        });
        if is_done {
            return;
        }
    }
}

/// In each process, by whichever GPU, and given on by one that only attached.
#[test]
fn it_outlives_the_process_that_filled_it() {
    const TEST: &str = "host_memory::it_outlives_the_process_that_filled_it";
    outlives(TEST, &in_host(), |shared, image| {
        assert_eq!(shared.uuid, DeviceUuid::HOST);
        let attach = |shared: &Shared| device().attach(image, shared).unwrap();
        let attached = attach(&shared);
        assert_eq!(attached.memory().route(), Route::Descriptor);
        drop(shared);
        check_all(image, &attached);
        let again = attach(&buffer(&attached).share().unwrap());
        drop(attached);
        check_all(image, &again);
    });
}

#[test]
fn every_gpu_reads_it() {
    let settings = [("DAXFS_FAKE_CUDA_DEVICES", "2")];
    simulated("host_memory::every_gpu_reads_it", &settings, || {
        let image = image();
        let copy = image.to_with(&device(), &in_host()).unwrap();
        let share = || buffer(&copy).share().unwrap();
        let other = Device::open("cuda", 1).unwrap();
        // Whatever the UUID says: the descriptor is of host memory.
        for uuid in [DeviceUuid::HOST, device().as_cuda().unwrap().uuid(), [9; 16].into()] {
            let attached = other.attach(&image, &Shared { uuid, ..share() }).unwrap();
            check_all(&image, &attached);
        }
        let attach = |shared: Shared| device().attach(&image, &shared).unwrap_err();
        let error = attach(Shared { size: 4096, ..share() });
        assert!(
            matches!(
                error,
                Error::Image(daxfs::Error::Memory(dmabuf::Error::OutOfBounds { bound: 4096, .. }))
            ),
            "{error}"
        );
        let error = attach(Shared { size: share().size * 2, ..share() });
        assert!(matches!(error, Error::Device(DeviceError::Driver { .. })), "{error}");
        let error = attach(Shared { fd: fs::File::open("/dev/zero").unwrap().into(), ..share() });
        assert!(matches!(error, Error::Device(DeviceError::Driver { .. })), "{error}");
        // Memory of a GPU does not pass for the host's.
        let resident = image.to(&device()).unwrap();
        let error = attach(Shared { uuid: DeviceUuid::HOST, ..buffer(&resident).share().unwrap() });
        assert!(matches!(error, Error::Device(DeviceError::OtherDevice { .. })), "{error}");
        drop((copy, resident, other));
        assert_eq!(live(), 0);
    });
}

#[test]
fn drivers_and_machines_that_have_none() {
    const TEST: &str = "host_memory::drivers_and_machines_that_have_none";
    let cases = [
        ("DAXFS_FAKE_CUDA_ATTRIBUTES", "141=0", "it needs a driver that allocates memory of NUMA nodes"),
        (
            "DAXFS_FAKE_CUDA_FAIL",
            "cuDeviceGetAttribute:1:1",
            "it needs a driver that allocates memory of NUMA nodes",
        ),
        ("DAXFS_FAKE_CUDA_ATTRIBUTES", "134=-1", "it needs a kernel with NUMA nodes"),
        ("DAXFS_FAKE_CUDA_FAIL", "cuMemCreate:1:2", "bytes of host memory are needed"),
    ];
    for (name, value, words) in cases {
        // The process has the variable of its own round.
        let is_done = simulated(TEST, &[(name, value), ("WORDS", words)], || {
            let (image, device, words) = (image(), device(), env::var("WORDS").unwrap());
            let error = image.to_with(&device, &in_host()).unwrap_err();
            match &error {
                Error::Device(DeviceError::OutOfHostMemory { need, node: 0, .. }) => {
                    assert!(*need >= 6 << 20)
                }
                Error::Device(DeviceError::Unavailable { .. }) => {}
                other => panic!("{other:?}"),
            }
            assert!(error.to_string().contains(&words), "{error}");
            check(&image, &image.to(&device).unwrap());
            drop(device);
            assert_eq!(live(), 0);
        });
        if is_done {
            return;
        }
    }
}

#[test]
fn every_call_that_fails_is_an_error_and_leaves_nothing() {
    const TEST: &str = "host_memory::every_call_that_fails_is_an_error_and_leaves_nothing";
    for call in [
        "cuDeviceGetAttribute:1",
        "cuDeviceGetAttribute:2",
        "cuMemGetAllocationGranularity:1",
        "cuMemCreate:1",
        "cuMemAddressReserve:1",
        "cuMemMap:1",
        "cuMemSetAccess:1",
        "cuMemExportToShareableHandle:1",
        "cuMemImportFromShareableHandle:1",
        "cuMemGetAllocationPropertiesFromHandle:1",
        "cuMemGetAllocationGranularity:2",
        "cuMemMap:2",
        "cuMemSetAccess:3",
    ] {
        let fail = format!("{call}:999");
        let is_done = simulated(TEST, &[("DAXFS_FAKE_CUDA_FAIL", fail.as_str())], || {
            let everything = || {
                let (image, device) = (image(), device());
                let copy = image.to_with(&device, &in_host())?;
                device.attach(&image, &buffer(&copy).share()?)
            };
            let error = everything().unwrap_err();
            assert!(matches!(error, Error::Device(DeviceError::Driver { code: 999, .. })), "{error:?}");
            assert_eq!(live(), 0, "{error}");
        });
        if is_done {
            return;
        }
    }
}
