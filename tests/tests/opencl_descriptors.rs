//! Imports by descriptor on a simulated OpenCL device with memory of its own (`tests/opencl/libOpenCL.c`), which takes
//! what can be mapped. Each test is a process of its own, since the loader is opened once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "asks the simulated loader what it counts")]

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use daxfs::{FileType, Image, OpenOptions};
use daxfs_device::{Device, ImageExt, MapOptions, MappedImage, Route};
use mkimage::{HugePages, Memory, Packer};

const CHILD: &str = "DAXFS_TEST_OPENCL_CHILD";
const KHRONOS: (&str, &str) =
    ("DAXFS_FAKE_OPENCL_EXTENSIONS", "cl_khr_fp64 cl_khr_external_memory cl_khr_external_memory_dma_buf");
const ARM: (&str, &str) =
    ("DAXFS_FAKE_OPENCL_EXTENSIONS", "cl_arm_import_memory cl_arm_import_memory_dma_buf");

fn simulated(test: &str, settings: &[(&str, &str)], body: impl FnOnce()) {
    if env::var_os(CHILD).is_some() {
        return body();
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("opencl");
    daxfs_tests::cuda::build_opencl(&folder);
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(CHILD, "1").envs(settings.iter().copied());
    command.env("OPENCL_DYLIB_PATH", folder.join("libOpenCL.so.1"));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{test}: {}\n{text}", output.status);
}

/// A number that the simulated loader counts.
fn counted(name: &str) -> i32 {
    let path = env::var_os("OPENCL_DYLIB_PATH").unwrap();
    // SAFETY: the library is loaded already and has no initialisers.
    let library = unsafe { libloading::Library::new(path) }.unwrap();
    // SAFETY: both functions have this signature (tests/opencl/libOpenCL.c).
    let count = unsafe { library.get::<unsafe extern "C" fn() -> i32>(name.as_bytes()) }.unwrap();
    // SAFETY: it takes nothing and only counts.
    unsafe { count() }
}

fn live() -> i32 {
    counted("daxfs_fake_opencl_live")
}

/// How often memory was acquired, and released.
fn hand_overs() -> (i32, i32) {
    let both = counted("daxfs_fake_opencl_acquires");
    (both / 1000, both % 1000)
}

/// Descriptors of this process.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn image() -> Image {
    let folder = tempfile::tempdir().unwrap();
    for len in [0_usize, 1, 4096, 70_001, (3 << 20) + 7] {
        let bytes: Vec<u8> = (0..len).map(|at| (at.wrapping_mul(len) >> 5).to_le_bytes()[0]).collect();
        fs::write(folder.path().join(format!("file-{len}")), bytes).unwrap();
    }
    let plan = Packer::new().input(folder.path()).plan().unwrap();
    Image::from_fd(plan.write_memory(&Memory::Memfd(HugePages::No)).unwrap().0).unwrap()
}

fn by_descriptor(image: &Image, device: &Device) -> daxfs_device::Result<MappedImage> {
    image.map_with(device, &MapOptions::new().route(Route::Descriptor))
}

fn check(image: &Image, mapped: &MappedImage) {
    for entry in image.walk().filter(|entry| entry.file_type() == FileType::File) {
        let file = entry.file().unwrap();
        let place = mapped.file(&file).unwrap().one().unwrap();
        let mut bytes = vec![0; usize::try_from(place.len()).unwrap()];
        place.buffer().read(place.offset(), &mut bytes).unwrap();
        assert_eq!(bytes, file.to_vec().unwrap(), "{:?}", file.path());
    }
}

#[test]
fn memory_of_khronos_extension_is_handed_over_for_each_use() {
    simulated("memory_of_khronos_extension_is_handed_over_for_each_use", &[KHRONOS], || {
        let image = image();
        let device = Device::parse("opencl:0").unwrap();
        let (objects, open) = (live(), descriptors());
        // Without a choice the descriptor comes first.
        let mapped = image.map(&device).unwrap();
        assert_eq!((mapped.memory().route(), mapped.buffers().len()), (Route::Descriptor, 1));
        assert!(!mapped.buffers()[0].is_resident() && !mapped.buffers()[0].is_writable());
        assert_eq!(hand_overs(), (1, 1), "the samples");
        check(&image, &mapped);
        let (acquired, released) = hand_overs();
        assert!(acquired > 1 && acquired == released);

        // Two at once are one for the driver, and the last one gives it back.
        let buffer = mapped.buffers()[0].as_opencl().unwrap();
        let queue = buffer.device().queue();
        let first = buffer.acquire(queue).unwrap();
        let second = buffer.acquire(queue).unwrap();
        assert_eq!(hand_overs(), (acquired + 1, released));
        first.release().unwrap();
        assert_eq!(hand_overs(), (acquired + 1, released));
        drop(second);
        assert_eq!(hand_overs(), (acquired + 1, released + 1));

        drop(mapped);
        // The kernel of the samples and its program stay with the device.
        assert!(live() - objects <= 2, "{} things are left", live() - objects);
        assert_eq!(descriptors(), open, "the driver owns what it took");
    });
}

#[test]
fn arms_import_takes_the_descriptor_for_the_call_only() {
    simulated("arms_import_takes_the_descriptor_for_the_call_only", &[ARM], || {
        let image = image();
        let device = Device::parse("opencl:0").unwrap();
        let open = descriptors();
        let mapped = by_descriptor(&image, &device).unwrap();
        assert_eq!((mapped.memory().route(), descriptors()), (Route::Descriptor, open));
        check(&image, &mapped);
        assert_eq!(hand_overs(), (0, 0));
        let queue = mapped.buffers()[0].as_opencl().unwrap().device().queue();
        mapped.buffers()[0].as_opencl().unwrap().acquire(queue).unwrap().release().unwrap();
        assert_eq!(hand_overs(), (0, 0), "there is nobody to hand it over to");
    });
}

#[test]
fn an_older_driver_of_arms_does_without_the_second_property() {
    let settings = [ARM, ("DAXFS_FAKE_OPENCL_OLD", "1")];
    simulated("an_older_driver_of_arms_does_without_the_second_property", &settings, || {
        let image = image();
        check(&image, &by_descriptor(&image, &Device::parse("opencl:0").unwrap()).unwrap());
    });
}

/// What both kinds of drivers do: they say yes, and the device sees something else.
fn is_found_out() {
    let image = image();
    let device = Device::parse("opencl:0").unwrap();
    let _: Vec<_> = (0..3).map(|_| by_descriptor(&image, &device).unwrap_err()).collect();
    let objects = live();
    let error = image.map(&device).unwrap_err().to_string();
    assert!(error.contains("the device sees other bytes at 0x0"), "{error}");
    assert!(error.contains("copy the image to the device"), "{error}");
    assert_eq!(live(), objects, "what is refused is given back");
}

#[test]
fn a_driver_that_gives_other_memory_is_found_out() {
    let settings = [KHRONOS, ("DAXFS_FAKE_OPENCL_LIES", "1")];
    simulated("a_driver_that_gives_other_memory_is_found_out", &settings, is_found_out);
}

#[test]
fn a_driver_of_arms_that_gives_other_memory_is_found_out() {
    let settings = [ARM, ("DAXFS_FAKE_OPENCL_LIES", "1")];
    simulated("a_driver_of_arms_that_gives_other_memory_is_found_out", &settings, is_found_out);
}

#[test]
fn what_has_no_descriptor_to_import_says_why() {
    simulated("what_has_no_descriptor_to_import_says_why", &[KHRONOS], || {
        let device = Device::parse("opencl:0").unwrap();
        let image = image();
        let mut bytes = vec![0; usize::try_from(image.region().len()).unwrap()];
        image.region().read_at(0, &mut bytes).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.daxfs");
        fs::write(&path, &bytes).unwrap();
        let private = OpenOptions::new().private(true);
        for (image, why) in [
            (Image::from_bytes(bytes).unwrap(), "have no descriptor"),
            (Image::open(&path).unwrap(), "it is a file, not a dma-buf"),
            (private.open(&path).unwrap(), "it is a file, not a dma-buf"),
        ] {
            let error = by_descriptor(&image, &device).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let cut = MapOptions::new().route(Route::Descriptor).max_piece(2 << 20);
        let error = image.map_with(&device, &cut).unwrap_err().to_string();
        assert!(error.contains("from its first byte on, in one buffer"), "{error}");
        assert_eq!(hand_overs(), (0, 0));
    });
}

#[test]
fn a_driver_without_either_extension_is_not_asked() {
    let none = ("DAXFS_FAKE_OPENCL_EXTENSIONS", "cl_khr_fp64 not_cl_khr_external_memory_dma_buf");
    simulated("a_driver_without_either_extension_is_not_asked", &[none], || {
        let error = by_descriptor(&image(), &Device::parse("opencl:0").unwrap()).unwrap_err().to_string();
        assert!(error.contains("neither cl_khr_external_memory_dma_buf nor"), "{error}");
    });
}
