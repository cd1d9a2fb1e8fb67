//! Lets an NVIDIA GPU walk a directory of an image without the host, and prints what it found there:
//! `cargo run --bin 06-cuda-walk -- IMAGE DIRECTORY`.
//!
//! The image and a block of tables (`daxfs_device::Lookup`) lie in the GPU's memory. The kernel finds the directory,
//! its entries and their bytes by the functions of `daxfs_device.h`; it is `walk.cu`, compiled by `scripts/ptx.py`.

#![allow(unsafe_code, reason = "starts a kernel with addresses")]

use std::error::Error;
use std::io::{Write, stdout};

use cudarc::driver::{CudaContext, DeviceRepr, LaunchConfig, PushKernelArg, ValidAsZeroBits};
use cudarc::nvrtc::Ptx;
use daxfs_device::{Device, ImageExt, Lookup};

/// What the kernel says of an entry.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Table {
    ino: u64,
    len: u64,
    /// Of its 32-bit words.
    sum: u64,
}

// SAFETY: three words that a kernel may fill, laid out as `struct table` in walk.cu.
unsafe impl DeviceRepr for Table {}
// SAFETY: zeros are a table.
unsafe impl ValidAsZeroBits for Table {}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let usage = "usage: 06-cuda-walk IMAGE DIRECTORY";
    let source = args.next().ok_or(usage)?;
    let path = args.next().and_then(|path| path.into_string().ok()).ok_or(usage)?;
    let image = daxfs::Image::open(&source)?;
    // The host's lookup takes paths in any form; the block has the one that the directory has in the image.
    let folder = image.entry(&path)?;
    let entries: Vec<_> = folder.children().collect();

    // First: where there is no driver this is an error that says what is missing, and cudarc would panic.
    let device = Device::open("cuda", 0)?;
    let gpu = device.as_cuda().ok_or("not a CUDA device")?;
    let resident = image.to(&device)?;
    let [buffer] = resident.buffers() else { return Err("the image is not in one piece".into()) };
    let buffer = buffer.as_cuda().ok_or("not a CUDA buffer")?;
    let lookup = Lookup::of(&image)?;
    let block = gpu.copy(lookup.as_bytes())?;

    let context = CudaContext::new(0)?;
    let module = context.load_module(Ptx::from_src(include_str!("walk.ptx")))?;
    let walk = module.load_function("example_walk")?;
    let stream = context.new_stream()?;
    let count = u32::try_from(entries.len())?;
    let mut tables = stream.alloc_zeros::<Table>(entries.len().max(1))?;
    let (image_at, lookup_at, directory) = (buffer.address(), block.address(), lookup.hash(folder.path()));
    let mut launch = stream.launch_builder(&walk);
    launch.arg(&image_at).arg(&lookup_at).arg(&directory).arg(&mut tables).arg(&count);
    let shape = LaunchConfig {
        grid_dim: (count.div_ceil(64).max(1), 1, 1),
        block_dim: (64, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: these are the parameters of `example_walk`: an image and its block, which both stay where they are until
    // the tables are here, and room for `count` tables.
    unsafe { launch.launch(shape) }?;
    let tables = stream.clone_dtoh(&tables)?;

    let mut out = stdout().lock();
    for (entry, table) in entries.iter().zip(tables) {
        let name = String::from_utf8_lossy(entry.name()).into_owned();
        writeln!(out, "{name}: inode {}, {} bytes, words sum up to {}", table.ino, table.len, table.sum)?;
    }
    Ok(())
}
