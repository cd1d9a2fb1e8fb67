//! Gathers rows of an embedding table on an NVIDIA GPU, out of a copy in its memory and out of the host's memory:
//! `cargo run --bin 05-cuda-gather -- IMAGE TENSOR INDEX...`.
//!
//! The table is a two-dimensional tensor whose rows are a multiple of 16 bytes. `daxfs` finds it on the device; the
//! kernel is loaded and started by `cudarc`, in the same primary context. The kernel is `gather.cu`, compiled by
//! `scripts/ptx.py`.

#![allow(unsafe_code, reason = "starts a kernel with addresses")]

use std::error::Error;
use std::io::{Write, stdout};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use daxfs::{Dtype, Tensor};
use daxfs_device::{Device, ImageExt, Place};

/// Bytes that one thread copies at a time.
const QUAD: u64 = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let usage = "usage: 05-cuda-gather IMAGE TENSOR INDEX...";
    let source = args.next().ok_or(usage)?;
    let name = args.next().and_then(|name| name.into_string().ok()).ok_or(usage)?;
    let rows: Vec<u32> =
        args.map(|row| Ok(row.to_str().ok_or(usage)?.parse()?)).collect::<Result<_, Box<dyn Error>>>()?;
    if rows.is_empty() {
        return Err(usage.into());
    }

    let image = daxfs::Image::open(&source)?;
    let table = image.tensors()?.get(&name)?;
    if table.shape().len() != 2 || table.dtype() != Dtype::F32 {
        return Err(format!("{name} is no table of F32: {} {:?}", table.dtype(), table.shape()).into());
    }

    // First: where there is no driver this is an error that says what is missing, and cudarc would panic.
    let device = Device::open("cuda", 0)?;
    let gather = Gather::new()?;
    let mut out = stdout().lock();

    let resident = image.to(&device)?;
    let place = resident.tensor(&table)?.one()?;
    writeln!(out, "{}: {} bytes in its memory", device.name(), place.len())?;
    let values = gather.rows(&table, &place, &rows)?;
    for (row, values) in rows.iter().zip(values.chunks(width(&table)?)) {
        writeln!(out, "row {row}: {values:?}")?;
    }

    // The same over the link, if the image's memory can be pinned.
    match image.map(&device) {
        Ok(mapped) => {
            let same = gather.rows(&table, &mapped.tensor(&table)?.one()?, &rows)? == values;
            writeln!(out, "in the host's memory: {}", if same { "the same rows" } else { "OTHER ROWS" })?;
        }
        Err(error) => writeln!(out, "in the host's memory: {error}")?,
    }
    Ok(())
}

/// Elements of a row.
fn width(table: &Tensor) -> Result<usize, Box<dyn Error>> {
    Ok(usize::try_from(table.shape()[1])?.max(1))
}

/// The kernel, ready to be started.
struct Gather {
    stream: Arc<CudaStream>,
    kernel: CudaFunction,
}

impl Gather {
    fn new() -> Result<Self, Box<dyn Error>> {
        let context = CudaContext::new(0)?;
        let module = context.load_module(Ptx::from_src(include_str!("gather.ptx")))?;
        Ok(Self { stream: context.new_stream()?, kernel: module.load_function("example_gather")? })
    }

    /// The rows of a table of F32 that lies at `place`, one after the other.
    fn rows(&self, table: &Tensor, place: &Place, rows: &[u32]) -> Result<Vec<f32>, Box<dyn Error>> {
        let &[height, columns] = table.shape() else { return Err("no table".into()) };
        let address = place.address().ok_or("this device has no addresses")?;
        let bytes = columns * size_of::<f32>() as u64;
        if !address.is_multiple_of(QUAD) || !bytes.is_multiple_of(QUAD) {
            return Err("the rows are no multiples of 16 bytes, or the image was packed with --exact".into());
        }
        let (height, quads, count) =
            (u32::try_from(height)?, u32::try_from(bytes / QUAD)?, u32::try_from(rows.len())?);
        let indices = self.stream.clone_htod(rows)?;
        let mut out = self.stream.alloc_zeros::<f32>(rows.len() * width(table)?)?;
        let mut launch = self.stream.launch_builder(&self.kernel);
        launch.arg(&address).arg(&height).arg(&quads).arg(&indices).arg(&count).arg(&mut out);
        let shape = LaunchConfig { grid_dim: (count, 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: these are the parameters of `example_gather`. It reads `count` indices and, within the table, `height`
        // rows of `quads` quads from `address`, which `place` keeps mapped, and writes as many quads for each index as
        // `out` has room for. The caller's borrow of `place` lasts until the rows are here.
        unsafe { launch.launch(shape) }?;
        Ok(self.stream.clone_dtoh(&out)?)
    }
}
