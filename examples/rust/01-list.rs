//! Lists an image: `cargo run --bin 01-list -- IMAGE`.

use std::error::Error;
use std::io::{Write, stdout};

fn main() -> Result<(), Box<dyn Error>> {
    let source = std::env::args_os().nth(1).ok_or("usage: 01-list IMAGE")?;
    let image = daxfs::Image::open(source)?;
    let mut out = stdout().lock();
    for entry in image.walk() {
        let metadata = entry.metadata();
        // Names are bytes; this example shows them as text.
        let path = entry.path();
        writeln!(out, "{:>12}  {}  {}", metadata.size, entry.file_type(), String::from_utf8_lossy(&path))?;
    }
    Ok(())
}
