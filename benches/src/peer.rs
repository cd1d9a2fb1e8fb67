//! The peer for opening: the safetensors crate over a memmap2 mapping, as its own documentation shows it.

#![allow(unsafe_code, reason = "memmap2 makes a slice of a file that others could write")]

use anyhow::{Context, Result};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// Opens and maps a safetensors file.
pub(crate) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    // SAFETY: the mapping must not be changed or truncated while it is borrowed. The file lies in the directory that
    // the benchmark made for this run; nothing writes to a file there once it is complete.
    let map = unsafe { Mmap::map(&file) }?;
    Ok(map)
}
