//! Looks rows of an embedding table up on an OpenCL device, in the image's own memory:
//! `cargo run --bin 07-opencl-lookup -- IMAGE TENSOR INDEX...`.
//!
//! The table is a two-dimensional tensor of F32. The device reads the memory that holds the image: nothing is uploaded
//! but the indices. The kernel is `gather.cl`, which the driver compiles. PoCL, a driver for processors, is enough.

#![allow(unsafe_code, reason = "starts a kernel with buffers")]

use std::error::Error;
use std::io::{Write, stdout};

use daxfs::Dtype;
use daxfs_device::opencl::opencl3::kernel::{ExecuteKernel, Kernel};
use daxfs_device::opencl::opencl3::memory::{Buffer, CL_MEM_READ_ONLY, CL_MEM_WRITE_ONLY};
use daxfs_device::opencl::opencl3::program::Program;
use daxfs_device::opencl::opencl3::types::CL_BLOCKING;
use daxfs_device::{Device, ImageExt};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let usage = "usage: 07-opencl-lookup IMAGE TENSOR INDEX...";
    let source = args.next().ok_or(usage)?;
    let name = args.next().and_then(|name| name.into_string().ok()).ok_or(usage)?;
    let indices: Vec<u32> =
        args.map(|index| Ok(index.to_str().ok_or(usage)?.parse()?)).collect::<Result<_, Box<dyn Error>>>()?;
    if indices.is_empty() {
        return Err(usage.into());
    }

    let image = daxfs::Image::open(&source)?;
    let table = image.tensors()?.get(&name)?;
    let (&[height, width], Dtype::F32) = (table.shape(), table.dtype()) else {
        return Err(format!("{name} is no table of F32: {} {:?}", table.dtype(), table.shape()).into());
    };

    if width == 0 {
        return Err(format!("{name} has no columns").into());
    }

    // The first device of this machine; without a loader or a driver the error says what to install.
    let device = Device::parse("opencl:0")?;
    let opencl = device.as_opencl().ok_or("not an OpenCL device")?;
    let mapped = image.map(&device)?;
    let place = mapped.tensor(&table)?.one()?;
    let memory = place.buffer().as_opencl().ok_or("not an OpenCL buffer")?;
    if !place.offset().is_multiple_of(4) {
        return Err("the table does not begin at a 32-bit word: pack without --exact".into());
    }
    let mut out = stdout().lock();
    writeln!(out, "{}: {} bytes by {}, no copy", device.name(), place.len(), mapped.memory().route())?;

    let (height, width) = (u32::try_from(height)?, u32::try_from(width)?);
    let (queue, columns) = (opencl.queue(), usize::try_from(width)?);
    let program = Program::create_and_build_from_source(opencl.context(), include_str!("gather.cl"), "")?;
    let kernel = Kernel::create(&program, "gather")?;
    let mut rows = vec![0_f32; indices.len() * columns];
    let (context, null) = (opencl.context(), std::ptr::null_mut());
    // SAFETY: no host pointer is given.
    let mut index = unsafe { Buffer::<u32>::create(context, CL_MEM_READ_ONLY, indices.len(), null) }?;
    // SAFETY: as above.
    let gathered = unsafe { Buffer::<f32>::create(context, CL_MEM_WRITE_ONLY, rows.len(), null) }?;
    // SAFETY: buffer and slice are equally long, and the call blocks until the slice is read.
    unsafe { queue.enqueue_write_buffer(&mut index, CL_BLOCKING, 0, &indices, &[]) }?;
    // A driver that has the memory by its descriptor wants to be told of each use.
    let acquired = memory.acquire(queue)?;
    let mut run = ExecuteKernel::new(&kernel);
    #[allow(clippy::multiple_unsafe_ops_per_block, reason = "the arguments of one call")]
    // SAFETY: order and types are those of the kernel's parameters, which run for each row and column; the kernel checks
    // indices against the height, and the place holds height times width elements from its offset on. All buffers live
    // until it has run.
    let done = unsafe {
        run.set_arg(&memory.handle()).set_arg(&place.offset()).set_arg(&height).set_arg(&width);
        run.set_arg(&index).set_arg(&gathered);
        run.set_global_work_sizes(&[indices.len(), columns]).enqueue_nd_range(queue)
    };
    done?.wait()?;
    // SAFETY: buffer and slice are equally long, and the call blocks until the slice is filled.
    unsafe { queue.enqueue_read_buffer(&gathered, CL_BLOCKING, 0, &mut rows, &[]) }?;
    acquired.release()?;

    for (index, row) in indices.iter().zip(rows.chunks(columns)) {
        writeln!(out, "row {index}: {row:?}")?;
    }
    Ok(())
}
