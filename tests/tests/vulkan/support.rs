//! The device, the source tree, the kinds of memory, and sums on the device.

use std::env;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use daxfs::{File, Image, Region};
use daxfs_device::vulkan::{self, Binding};
use daxfs_device::{Device, DeviceError, Error, Place};
use daxfs_tests::{devices, vgem, words};
use dmabuf::{Access, CpuAccess, HugePages, Mapping, Memfd};
use mkimage::{Memory, Packer};

use crate::compute::{Shader, Words};

pub const MIB: u64 = 1 << 20;
/// Bytes of the largest file of the source tree: more than two pieces of 2 MiB.
pub const LARGE: usize = (4 << 20) + 7;

/// The first Vulkan device, if it imports descriptors and mappings.
pub fn device() -> Option<Device> {
    first(|has| has.dma_buf && has.host_pointer && has.buffer_device_address)
}

/// The first Vulkan device that has what is wanted. Where it has to be, a missing one is a failure; elsewhere the test
/// says that it did not run.
fn first(is_enough: fn(&vulkan::Enabled) -> bool) -> Option<Device> {
    let required = env::var_os("DAXFS_REQUIRE_VULKAN").is_some();
    let why = match Device::open("vulkan", 0) {
        Ok(device) => match device.as_vulkan().unwrap().enabled() {
            enabled if is_enough(&enabled) => return Some(device),
            lacking => format!("{} lacks something: {lacking:?}", device.name()),
        },
        Err(Error::Device(error @ (DeviceError::Unavailable { .. } | DeviceError::NoSuchDevice { .. }))) => {
            error.to_string()
        }
        Err(error) => panic!("{error}"),
    };
    assert!(!required, "{why}");
    eprintln!("not run: {why}");
    None
}

/// The device and its shaders for all tests of this process that need no device of their own: building the shaders
/// takes seconds on an emulated processor. Of the ways into it there may be only the mapping, as with NVIDIA's driver
/// on a machine without a display.
pub fn shared() -> Option<(&'static Device, MutexGuard<'static, Hasher<'static>>)> {
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    static HASHER: OnceLock<Mutex<Hasher<'static>>> = OnceLock::new();
    let device =
        DEVICE.get_or_init(|| first(|has| has.host_pointer && has.buffer_device_address)).as_ref()?;
    let hasher = HASHER.get_or_init(|| Mutex::new(Hasher::new(device)));
    Some((device, hasher.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// Whether the device nodes of dma-bufs are here, as in the kernel tests.
pub fn dma_buf_devices() -> bool {
    devices::are_here(&[("a vgem card", vgem::card().is_some())])
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i + seed).wrapping_mul(0x9E37_79B9) >> 13).to_le_bytes()[0]).collect()
}

/// A checkpoint whose tensors begin at odd offsets, and files of every awkward length.
pub fn source() -> (tempfile::TempDir, PathBuf) {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("tree");
    fs::create_dir(&folder).unwrap();
    let tensors = [
        ("mask", "U8", 3usize, 3),
        ("scale", "F32", 1, 4),
        ("embed", "BF16", 5000, 10000),
        ("odd", "I8", 1001, 1001),
    ];
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (seed, (name, dtype, elements, len)) in tensors.into_iter().enumerate() {
        let start = data.len();
        data.extend(bytes(len, seed * 77));
        let offsets = [start, data.len()];
        header.insert(
            name.into(),
            serde_json::json!({"dtype": dtype, "shape": [elements], "data_offsets": offsets}),
        );
    }
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    fs::write(folder.join("model.safetensors"), file).unwrap();
    for (seed, len) in [0, 1, 3, 4, 4095, 4096, 70_001, LARGE].into_iter().enumerate() {
        fs::write(folder.join(format!("file-{len}")), bytes(len, seed * 1001)).unwrap();
    }
    (work, folder)
}

pub fn pack(folder: &Path, memory: &Memory) -> OwnedFd {
    Packer::new().input(folder).plan().unwrap().write_memory(memory).unwrap().0
}

/// A descriptor, and what it is.
pub struct Source {
    pub what: &'static str,
    pub fd: OwnedFd,
    /// Whether the driver can import the descriptor itself; the mapping it can always.
    pub by_descriptor: bool,
}

/// The image in every kind of memory that this machine has.
pub fn sources(device: &Device, folder: &Path) -> Vec<Source> {
    let device = device.as_vulkan().unwrap();
    let of = |what, fd, by_descriptor| Source { what, fd, by_descriptor };
    let file = folder.parent().unwrap().join("image");
    Packer::new().input(folder).plan().unwrap().write_file(&file).unwrap();
    let image = fs::read(&file).unwrap();
    let mut all = vec![
        of("sealed memfd", pack(folder, &Memory::Memfd(HugePages::No)), false),
        of("memfd", pack(folder, &Memory::SharedMemfd(HugePages::No)), device.takes_memfds()),
        of("file", fs::File::open(&file).unwrap().into(), false),
    ];
    if dma_buf_devices() {
        let imports = device.enabled().dma_buf;
        all.push(of("udmabuf", pack(folder, &Memory::Udmabuf), imports));
        all.push(of("dma-heap", pack(folder, &Memory::Heap("system".into())), imports));
        let writable = vgem::buffer(image.len() as u64, true).unwrap();
        fill(&writable, &image);
        all.push(of("vgem", writable, imports));
    }
    all
}

/// A memfd that its holders can write.
pub fn memfd(contents: &[u8]) -> Memfd {
    let memfd = Memfd::create("vulkan", contents.len() as u64, HugePages::No).unwrap();
    let mut map = Mapping::read_write(memfd.as_fd(), 0, contents.len()).unwrap();
    map.view_mut().unwrap().copy_from(0, contents).unwrap();
    memfd
}

/// Writes to the start of a dma-buf.
fn fill(fd: &OwnedFd, contents: &[u8]) {
    let mut map = Mapping::read_write(fd.as_fd(), 0, contents.len()).unwrap();
    let access = CpuAccess::begin(fd.as_fd(), Access::Write).unwrap();
    map.view_mut().unwrap().copy_from(0, contents).unwrap();
    access.finish().unwrap();
}

pub fn open(fd: &OwnedFd) -> Image {
    Image::from_region(Region::from_fd(fd.try_clone().unwrap()).unwrap()).unwrap()
}

/// Every regular file of an image.
pub fn files(image: &Image) -> Vec<File> {
    image.walk().filter_map(|entry| entry.file().ok()).collect()
}

/// The two ways in which a shader reads a place.
pub struct Hasher<'a> {
    device: &'a vulkan::Device,
    by_binding: Shader<'a>,
    by_address: Shader<'a>,
}

impl<'a> Hasher<'a> {
    pub fn new(device: &'a Device) -> Self {
        let device = device.as_vulkan().unwrap();
        let binding = include_bytes!("../../shaders/hash-binding.spv");
        let address = include_bytes!("../../shaders/hash-address.spv");
        Self {
            device,
            by_binding: Shader::new(device, binding, 2, 5).unwrap(),
            by_address: Shader::new(device, address, 1, 5).unwrap(),
        }
    }

    /// Sums over places that follow each other, computed on the device in both ways, which must agree.
    pub fn sums(&self, places: &[Place]) -> [u32; 2] {
        let (mut bound, mut addressed) =
            (Words::new(self.device, &[0, 0]).unwrap(), Words::new(self.device, &[0, 0]).unwrap());
        for place in places.iter().filter(|place| !place.is_empty()) {
            let buffer = place.buffer().as_vulkan().unwrap();
            assert_eq!(place.start() % 4, 0, "a cut inside of a word");
            let number = |value: u64| u32::try_from(value).unwrap();
            let (len, first) = (number(place.len()), number(place.start() / 4));

            let binding = Binding::of(place).unwrap().unwrap();
            let alignment = self.device.limits().storage_alignment;
            assert_eq!((binding.offset % alignment, binding.offset + binding.delta), (0, place.offset()));
            let constants = [number(binding.delta), len, first, 0, 0];
            self.by_binding.run(&[buffer], &[binding.info(), bound.info()], &constants, 3).unwrap();

            let address = place.address().unwrap();
            let (delta, aligned) = (number(address % 4), address - address % 4);
            let constants = [delta, len, first, number(aligned & 0xffff_ffff), number(aligned >> 32)];
            self.by_address.run(&[buffer], &[addressed.info()], &constants, 3).unwrap();
        }
        let sums = bound.read().unwrap();
        assert_eq!(sums, addressed.read().unwrap(), "a binding and an address show the same bytes");
        sums.try_into().unwrap()
    }

    /// Compares the device's sums with the CPU's.
    pub fn check(&self, what: &str, places: &[Place], bytes: &[u8]) {
        assert_eq!(places.iter().map(Place::len).sum::<u64>(), bytes.len() as u64, "{what}");
        assert_eq!(self.sums(places), words::sums(bytes, 0), "{what}: {} bytes", bytes.len());
    }
}
