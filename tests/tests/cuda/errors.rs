//! What is missing or fails is an error value that says so, and leaves nothing behind.

use daxfs::Image;
use daxfs_device::{Device, DeviceError, Error, ImageExt, MapOptions, Route};
use mkimage::{HugePages, Memory};

use crate::support::{
    device, has_context, image, live, no_library, old_library, pack, simulated, with_library,
};

fn unavailable() -> String {
    let error = Device::open("cuda", 0).unwrap_err();
    assert!(matches!(error, Error::Device(DeviceError::Unavailable { .. })), "{error}");
    error.to_string()
}

#[test]
fn without_a_driver() {
    with_library("errors::without_a_driver", no_library, &[], || {
        // Where the machine has a driver it is found; then there is nothing to see.
        if let Err(error) = Device::open("cuda", 0) {
            let text = error.to_string();
            assert!(text.contains("libcuda.so.1") && text.contains("it needs an NVIDIA driver"), "{text}");
        }
    });
}

#[test]
fn with_a_driver_that_lacks_functions() {
    with_library("errors::with_a_driver_that_lacks_functions", old_library, &[], || {
        assert!(unavailable().contains("cuMemCreate"), "{}", unavailable());
    });
}

#[test]
fn with_a_driver_that_does_not_start() {
    let settings = [("DAXFS_FAKE_CUDA_INIT", "100")];
    simulated("errors::with_a_driver_that_does_not_start", &settings, || {
        assert!(unavailable().contains("(100)"), "{}", unavailable());
    });
}

#[test]
fn devices_that_are_not_there_or_cannot() {
    let settings = [("DAXFS_FAKE_CUDA_ATTRIBUTES", "103=0,99=0,124=0")];
    simulated("errors::devices_that_are_not_there_or_cannot", &settings, || {
        let error = Device::open("cuda", 7).unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::NoSuchDevice { number: 7, .. })), "{error}");
        let error = image().to(&device()).unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::Unavailable { .. })), "{error}");
        let error = image().map(&device()).unwrap_err();
        assert!(error.to_string().contains("does not read host memory"), "{error}");
        assert_eq!(live(), 0);
    });
}

#[test]
fn too_little_memory() {
    let settings = [("DAXFS_FAKE_CUDA_MEMORY", "6291456")];
    simulated("errors::too_little_memory", &settings, || {
        let device = device();
        let error = image().to(&device).unwrap_err();
        match &error {
            Error::Device(DeviceError::OutOfMemory { need, free, .. }) => {
                assert!(*need > *free && *free == 6_291_456, "{error}");
            }
            other => panic!("{other}"),
        }
        assert_eq!(device.as_cuda().unwrap().memory().unwrap(), (6_291_456, 6_291_456));
        drop(device);
        assert_eq!(live(), 0);
    });
}

/// Each call of the driver fails in turn, at its first and at its second time, unless that is one whose answer changes
/// nothing: a stream that is dropped is waited for once more, and rights that cannot be taken away are given anew.
#[test]
fn every_call_that_fails_is_an_error_and_leaves_nothing() {
    const TEST: &str = "errors::every_call_that_fails_is_an_error_and_leaves_nothing";
    for call in [
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceGetUuid_v2",
        "cuDeviceGetAttribute",
        "cuDevicePrimaryCtxRetain",
        "cuCtxPushCurrent_v2",
        "cuMemGetAllocationGranularity",
        "cuMemCreate",
        "cuMemAddressReserve",
        "cuMemMap",
        "cuMemSetAccess",
        "cuEventCreate",
        "cuStreamCreate",
        "cuMemcpyHtoDAsync_v2",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuStreamSynchronize",
        "cuMemcpyDtoHAsync_v2",
        "cuLaunchKernel",
        "cuMemExportToShareableHandle",
        "cuMemImportFromShareableHandle",
        "cuMemGetHandleForAddressRange",
        "cuMemHostRegister_v2",
        "cuMemHostGetDevicePointer_v2",
    ] {
        let times: &[u32] = match call {
            "cuStreamSynchronize" | "cuMemSetAccess" => &[1],
            // Those before are of buffers, which can be had otherwise.
            "cuMemHostRegister_v2" => &[3, 6],
            _ => &[1, 2],
        };
        for time in times {
            let fail = format!("{call}:{time}:999");
            let settings = [("DAXFS_FAKE_CUDA_FAIL", fail.as_str()), ("DAXFS_FAKE_CUDA_DELAY_US", "1")];
            let is_done = simulated(TEST, &settings, || {
                let error = everything().unwrap_err();
                match &error {
                    Error::Device(DeviceError::Driver { code: 999, .. }) => {}
                    Error::Device(DeviceError::NotExportable { why, .. }) if why.contains("(999)") => {}
                    Error::Device(DeviceError::NotImportable { .. }) => {
                        assert!(error.to_string().contains("(999)"), "{error}");
                    }
                    other => panic!("{other:?}"),
                }
                assert_eq!(live(), 0, "{error}");
                assert!(!has_context(), "{error}");
            });
            if is_done {
                return;
            }
        }
    }
}

/// Uses every call of the list twice at least.
fn everything() -> daxfs_device::Result<()> {
    use daxfs_device::UploadOptions;
    let image = image();
    let shared = Image::from_fd(pack(&Memory::SharedMemfd(HugePages::No))).unwrap();
    let options = UploadOptions::new().threads(2).piece(1 << 20).verify(true);
    for _ in 0..2 {
        let device = Device::open("cuda", 0)?;
        let resident = image.to_with(&device, &options)?;
        let buffer = resident.buffers()[0].as_cuda().unwrap();
        buffer.export_dma_buf()?;
        device.attach(&image, &buffer.share()?)?;
        shared.map(&device)?;
    }
    Ok(())
}

/// Where nothing can be registered, the driver allocates the buffers.
#[test]
fn buffers_of_a_device_that_registers_no_memory() {
    const TEST: &str = "errors::buffers_of_a_device_that_registers_no_memory";
    for fail in ["", "cuMemHostAlloc:1:2"] {
        let settings = [
            ("DAXFS_FAKE_CUDA_ATTRIBUTES", "99=0"),
            ("DAXFS_FAKE_CUDA_FAIL", fail),
            ("DAXFS_FAKE_CUDA_DELAY_US", "1"),
        ];
        let is_done = simulated(TEST, &settings, || {
            let image = image();
            let options = daxfs_device::UploadOptions::new().threads(1).piece(1 << 20);
            let copy = image.to_with(&device(), &options);
            match &copy {
                Ok(resident) => crate::support::check(&image, resident),
                Err(error) => assert!(error.to_string().contains("cuMemHostAlloc"), "{error}"),
            }
            assert_eq!(copy.is_ok(), std::env::var("DAXFS_FAKE_CUDA_FAIL").unwrap().is_empty());
            drop(copy);
            assert_eq!(live(), 0);
        });
        if is_done {
            return;
        }
    }
}

/// What cannot be given back stays: memory must not go while something may use it.
#[test]
fn what_cannot_be_waited_for_is_kept() {
    const TEST: &str = "errors::what_cannot_be_waited_for_is_kept";
    // 900: some stream of the context is being recorded into a graph.
    for fail in ["cuCtxSynchronize:0:900", "cuCtxSynchronize:0:700"] {
        let is_done = simulated(TEST, &[("DAXFS_FAKE_CUDA_FAIL", fail)], || {
            // That of this process, whichever round it is for.
            let is_kept = std::env::var("DAXFS_FAKE_CUDA_FAIL").unwrap().ends_with("900");
            let device = device();
            let shared = Image::from_fd(pack(&Memory::SharedMemfd(HugePages::No))).unwrap();
            for in_memory in [image().to(&device).unwrap(), shared.map(&device).unwrap()] {
                let address = in_memory.buffers()[0].address().unwrap();
                let is_mapped = || {
                    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
                    maps.lines().any(|line| line.starts_with(&format!("{address:x}-")) && line.contains(" r"))
                };
                assert!(is_mapped());
                drop(in_memory);
                assert_eq!(is_mapped(), is_kept);
            }
        });
        if is_done {
            return;
        }
    }
}

/// Pinned buffers, too: the device may still read what was sent when a copy has failed.
#[test]
fn buffers_that_cannot_be_waited_for_are_kept() {
    const TEST: &str = "errors::buffers_that_cannot_be_waited_for_are_kept";
    for attributes in ["", "99=0"] {
        let settings = [
            ("DAXFS_FAKE_CUDA_FAIL", "cuEventRecord:1:999,cuCtxSynchronize:0:900"),
            ("DAXFS_FAKE_CUDA_ATTRIBUTES", attributes),
        ];
        let is_done = simulated(TEST, &settings, || {
            let options = daxfs_device::UploadOptions::new().threads(1);
            let error = image().to_with(&device(), &options).unwrap_err();
            assert!(error.to_string().contains("cuEventRecord"), "{error}");
            // Handle, range and mapping of the device's memory, and the context; the buffers, and the event of one.
            assert_eq!(live(), 6);
        });
        if is_done {
            return;
        }
    }
}

#[test]
fn mapping_does_not_copy() {
    simulated("errors::mapping_does_not_copy", &[], || {
        for route in [Route::Copy, Route::Descriptor] {
            let error = image().map_with(&device(), &MapOptions::new().route(route)).unwrap_err();
            assert!(matches!(error, Error::Device(DeviceError::NotImportable { .. })), "{error}");
        }
    });
}
