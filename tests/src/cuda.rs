//! Simulated drivers: of NVIDIA's GPUs, `tests/cuda/libcuda.c`, and of OpenCL, `tests/opencl/libOpenCL.c`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::golden::project_root;

/// Compiles it into a folder, which is for `LD_LIBRARY_PATH`, with the C compiler that Rust links with.
///
/// # Panics
/// When that fails.
pub fn build_driver(folder: &Path, flags: &[&str]) {
    build(folder, "cuda/libcuda.c", flags);
}

/// Compiles the simulated loader of OpenCL into a folder, as `libOpenCL.so.1`.
///
/// # Panics
/// When that fails.
pub fn build_opencl(folder: &Path) {
    build(folder, "opencl/libOpenCL.c", &[]);
}

fn build(folder: &Path, source: &str, flags: &[&str]) {
    fs::create_dir_all(folder).unwrap();
    // Tests that run at the same time may build it at the same time.
    let new = tempfile::NamedTempFile::new_in(folder).unwrap().into_temp_path();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(compiler)
        .args(["-std=gnu11", "-O1", "-shared", "-fPIC", "-pthread", "-I"])
        .arg(project_root().join("crates/device/include"))
        .args(flags)
        .arg("-o")
        .arg(&new)
        .arg(project_root().join("tests").join(source))
        .status()
        .unwrap();
    assert!(status.success(), "{source} does not compile: {status}");
    let name = Path::new(source).file_stem().unwrap().to_str().unwrap();
    new.persist(folder.join(format!("{name}.so.1"))).unwrap();
}
