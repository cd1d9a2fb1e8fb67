//! Looks rows of an embedding table up on a device, in the image's own memory:
//! `cargo run --bin 04-vulkan-lookup -- IMAGE TENSOR INDEX...`.
//!
//! The table is a two-dimensional tensor of 32-bit elements. The device imports the memory that holds the image:
//! nothing is uploaded but the indices. The shader is `gather.comp`; `scripts/shaders.sh` builds it.

mod compute;

use std::error::Error;
use std::io::{Write, stdout};

use compute::{Shader, Words};
use daxfs::Dtype;
use daxfs_device::vulkan::Binding;
use daxfs_device::{Device, ImageExt};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let usage = "usage: 04-vulkan-lookup IMAGE TENSOR INDEX...";
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

    // The first device of this machine; without a loader or a driver the error says what to install.
    let device = Device::open("vulkan", 0)?;
    let vulkan = device.as_vulkan().ok_or("not a Vulkan device")?;
    let mapped = image.map(&device)?;
    let place = mapped.tensor(&table)?.one()?;
    let buffer = place.buffer().as_vulkan().ok_or("not a Vulkan buffer")?;
    // The place as a storage buffer: it begins at an offset that the device allows, a few bytes before the table.
    let binding = Binding::of(&place)?.ok_or("not a Vulkan buffer")?;
    if !binding.delta.is_multiple_of(4) {
        return Err("the table does not begin at a 32-bit word: pack without --exact".into());
    }
    let mut out = stdout().lock();
    writeln!(out, "{}: {} bytes by {}, no copy", device.name(), place.len(), mapped.memory().route())?;

    let constants = [binding.delta / 4, height, width, indices.len() as u64].map(u32::try_from);
    let constants = constants.into_iter().collect::<Result<Vec<u32>, _>>()?;
    let width = usize::try_from(width)?;
    let index = Words::new(vulkan, &indices)?;
    let mut rows = Words::new(vulkan, &vec![0; (indices.len() * width).max(1)])?;
    let shader = Shader::new(vulkan, include_bytes!("gather.spv"), 3, 4)?;
    shader.run(&[buffer], &[binding.info(), index.info(), rows.info()], &constants, 64)?;

    for (index, row) in indices.iter().zip(rows.read()?.chunks(width.max(1))) {
        let row: Vec<f32> = row.iter().copied().map(f32::from_bits).collect();
        writeln!(out, "row {index}: {row:?}")?;
    }
    Ok(())
}
