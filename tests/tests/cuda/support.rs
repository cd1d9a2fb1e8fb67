//! A process of its own for each test, in which `libcuda.so.1` is the simulated driver or the machine's; sources, and
//! what is left of the driver's things.

use std::env;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use daxfs::dlpack::DLDevice;
use daxfs::{File, FileType, Image};
use daxfs_device::{Device, MappedImage};
use mkimage::{HugePages, Memory, Packer};

pub const MIB: u64 = 1 << 20;
/// `device()`, as DLPack has it.
pub const GPU: DLDevice = DLDevice { device_type: 2, device_id: 0 };

/// Set in the processes of single tests.
const CHILD: &str = "DAXFS_TEST_CUDA_CHILD";
/// Set by `make test-gpu`: the machine's own driver is used.
const REAL: &str = "DAXFS_TEST_GPU";

/// True where the driver is a real one.
pub fn is_real() -> bool {
    env::var_os(REAL).is_some()
}

/// Runs `body` in a process of its own, with the machine's driver if `make test-gpu` asks for that, else with the
/// simulated one. `test` is the path of the test function.
pub fn on_a_gpu(test: &str, body: impl FnOnce()) {
    if env::var_os(CHILD).is_some() {
        return body();
    }
    run(test, (!is_real()).then(library), &[]);
}

/// Runs `body` with the simulated driver and `settings` for it (see `tests/cuda/libcuda.c`). True in the process that
/// ran it, which is not to run anything else.
pub fn simulated(test: &str, settings: &[(&str, &str)], body: impl FnOnce()) -> bool {
    with_library(test, library, settings, body);
    env::var_os(CHILD).is_some()
}

/// Runs `body` where only the libraries in a folder are found, besides the machine's.
pub fn with_library(
    test: &str,
    folder: impl FnOnce() -> &'static Path,
    settings: &[(&str, &str)],
    body: impl FnOnce(),
) {
    if env::var_os(CHILD).is_some() {
        return body();
    }
    if is_real() {
        return eprintln!("not run: needs the simulated driver");
    }
    run(test, Some(folder()), settings);
}

fn run(test: &str, folder: Option<&Path>, settings: &[(&str, &str)]) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(CHILD, "1").envs(settings.iter().copied());
    if let Some(folder) = folder {
        command.env("LD_LIBRARY_PATH", folder);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} {settings:?}: {}\n{text}", output.status);
    assert!(text.contains("1 passed"), "{text}");
}

/// The folder of the simulated driver.
fn library() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| build("whole", &[]))
}

/// The folder of one as old drivers are: it lacks functions.
pub fn old_library() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| build("old", &["-DWITHOUT_VMM"]))
}

/// A folder without any.
pub fn no_library() -> &'static Path {
    Path::new("/nonexistent")
}

fn build(name: &str, flags: &[&str]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda").join(name);
    daxfs_tests::cuda::build_driver(&folder, flags);
    folder
}

/// How many things of the driver there are: allocations, mappings, streams and so on. 0 with a real driver.
pub fn live() -> i32 {
    if is_real() {
        return 0;
    }
    // SAFETY: the simulated driver, which is loaded already, has no initialisers.
    let library = unsafe { libloading::Library::new("libcuda.so.1") }.unwrap();
    // SAFETY: the function has this signature (tests/cuda/libcuda.c).
    let count = unsafe { library.get::<unsafe extern "C" fn() -> i32>(b"daxfs_fake_cuda_live\0") }.unwrap();
    // SAFETY: it takes nothing and only counts.
    unsafe { count() }
}

/// Whether a context is current for this thread, which it was not before.
pub fn has_context() -> bool {
    // SAFETY: as above.
    let library = unsafe { libloading::Library::new("libcuda.so.1") }.unwrap();
    type Current = unsafe extern "C" fn(*mut usize) -> i32;
    // SAFETY: the function has this signature in cuda.h.
    let current = unsafe { library.get::<Current>(b"cuCtxGetCurrent\0") };
    let mut context = 0;
    let current = current.unwrap();
    // SAFETY: the word is alive, and as large as a pointer.
    let code = unsafe { current(&raw mut context) };
    code == 0 && context != 0
}

/// Bytes with a pattern that is nowhere the same.
pub fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i + seed).wrapping_mul(0x9E37_79B9) >> 13).to_le_bytes()[0]).collect()
}

/// A folder with files of several sizes and a model.
pub fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for len in [0, 1, 4096, 70_001, (5 << 20) + 7] {
        fs::write(folder.path().join(format!("file-{len}")), bytes(len, len)).unwrap();
    }
    let header = br#"{"w":{"dtype":"F32","shape":[256,4],"data_offsets":[0,4096]},"b":{"dtype":"BF16","shape":[6],"data_offsets":[4096,4108]},"q":{"dtype":"F4","shape":[4,6],"data_offsets":[4108,4120]}}"#;
    let mut model = (header.len() as u64).to_le_bytes().to_vec();
    model.extend_from_slice(header);
    model.extend(bytes(4120, 9));
    fs::write(folder.path().join("model.safetensors"), model).unwrap();
    folder
}

/// An image of such a folder, in sealed memory.
pub fn image() -> Image {
    Image::from_fd(pack(&Memory::Memfd(HugePages::No))).unwrap()
}

/// The folder's image in memory of a kind.
pub fn pack(memory: &Memory) -> OwnedFd {
    let folder = folder();
    let plan = Packer::new().input(folder.path()).plan().unwrap();
    plan.write_memory(memory).unwrap().0
}

/// The regular files of an image.
pub fn files(image: &Image) -> Vec<File> {
    image
        .walk()
        .filter(|entry| entry.file_type() == FileType::File)
        .map(|entry| entry.file().unwrap())
        .collect()
}

pub fn device() -> Device {
    Device::open("cuda", 0).unwrap()
}

/// Every file and tensor is on the device what it is in the image, each in one place.
pub fn check(image: &Image, on_device: &MappedImage) {
    for file in files(image) {
        let place = on_device.file(&file).unwrap().one().unwrap();
        assert!(read(&place) == file.to_vec().unwrap(), "{}", String::from_utf8_lossy(&file.path()));
    }
    let tensors = image.tensors().unwrap();
    assert_eq!(tensors.len(), 3);
    for tensor in tensors.iter() {
        let tensor = tensor.unwrap();
        let place = on_device.tensor(&tensor).unwrap().one().unwrap();
        assert!(read(&place) == tensor.bytes().unwrap().to_vec(), "{}", tensor.name());
    }
}

/// What the device has at a place.
pub fn read(place: &daxfs_device::Place) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(place.len()).unwrap()];
    place.buffer().as_cuda().unwrap().copy_to_host(place.offset(), &mut bytes).unwrap();
    bytes
}
