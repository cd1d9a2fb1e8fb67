//! The commands `daxfs` and `daxfs-pack`, as the scripts of the Python package run them.

use std::ffi::OsString;
use std::io::Write;

use pyo3::prelude::*;

/// Runs the command daxfs with these arguments, the name of the program first, and returns its exit status.
#[pyfunction]
pub fn daxfs_main(py: Python<'_>, args: Vec<OsString>) -> u8 {
    py.detach(|| finish(daxfs_cli::main(args)))
}

/// Runs the command daxfs-pack with these arguments, the name of the program first, and returns its exit status.
#[pyfunction]
pub fn pack_main(py: Python<'_>, args: Vec<OsString>) -> u8 {
    py.detach(|| finish(mkimage::command::main(args)))
}

/// Writes out what is left in the buffer of standard output. A Rust program does so when `main` returns; a library
/// inside another program has to do it itself.
fn finish(status: u8) -> u8 {
    match std::io::stdout().flush() {
        // The command reports its own errors; this can only be a last line to a reader that left.
        Ok(()) | Err(_) => status,
    }
}
