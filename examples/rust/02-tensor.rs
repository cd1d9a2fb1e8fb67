//! Reads one tensor in place: `cargo run --bin 02-tensor -- IMAGE NAME`.
//!
//! The view is a bounded pointer, good for any memory. A slice needs memory that nobody can write, so this example
//! opens a private sealed copy when the image is in a file.

use std::error::Error;
use std::io::{Write, stdout};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let usage = "usage: 02-tensor IMAGE NAME";
    let source = args.next().ok_or(usage)?;
    let name = args.next().and_then(|name| name.into_string().ok()).ok_or(usage)?;
    let mut out = stdout().lock();

    let image = daxfs::Image::open(&source)?;
    let tensor = image.tensors()?.get(&name)?;
    writeln!(out, "{name}: {} {:?}, {} bytes", tensor.dtype(), tensor.shape(), tensor.nbytes())?;
    writeln!(out, "memory: {}, aligned to {} bytes", image.region().provenance(), tensor.alignment())?;

    // Always sound: the bytes are copied out, at most eight here.
    let view = tensor.bytes()?;
    let mut first = vec![0; view.len().min(8)];
    view.read_at(0, &mut first)?;
    writeln!(out, "first bytes: {first:02x?}")?;

    // For code that wants a slice.
    let sealed = daxfs::OpenOptions::new().sealed_copy(true).open(&source)?;
    let tensor = sealed.tensors()?.get(&name)?;
    let slice: &[u8] = tensor.as_slice()?;
    writeln!(
        out,
        "sealed copy: {} zero bytes of {}",
        slice.iter().filter(|&&byte| byte == 0).count(),
        slice.len()
    )?;
    Ok(())
}
