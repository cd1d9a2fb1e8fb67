//! Runs each example as a user would.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn run(program: &str, arguments: &[&Path]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the example starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[test]
fn examples_run() {
    let dir = tempfile::tempdir().unwrap();
    let weights = dir.path().join("weights");
    std::fs::create_dir(&weights).unwrap();
    let header = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  "#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend([0, 0, 128, 63, 0, 0, 0, 64]);
    std::fs::write(weights.join("model.safetensors"), file).unwrap();
    let image = dir.path().join("model.daxfs");
    mkimage::Packer::new().input(&weights).plan().unwrap().write_file(&image).unwrap();

    let listing = run(env!("CARGO_BIN_EXE_01-list"), &[&image]);
    assert!(listing.contains("regular file  /model.safetensors"), "{listing}");

    let tensor = run(env!("CARGO_BIN_EXE_02-tensor"), &[&image, Path::new("w")]);
    assert!(tensor.contains("w: F32 [2], 8 bytes"), "{tensor}");
    assert!(tensor.contains("first bytes: [00, 00, 80, 3f, 00, 00, 00, 40]"), "{tensor}");
    assert!(tensor.contains("sealed copy: 5 zero bytes of 8"), "{tensor}");

    let shared = run(env!("CARGO_BIN_EXE_03-share"), &[&weights]);
    assert!(shared.contains("parent: packed"), "{shared}");
    assert!(shared.contains("child: 5 entries"), "{shared}");
    assert!(shared.contains("sealed"), "{shared}");
}

/// Mesa's software driver is enough; `make test` fetches it. Where there is none the example says what it needs.
#[test]
fn the_vulkan_example_looks_rows_up() {
    let dir = tempfile::tempdir().unwrap();
    let weights = dir.path().join("weights");
    std::fs::create_dir(&weights).unwrap();
    // Ten rows of four; row n begins with n.
    let table = (0..40u8).map(|n| f32::from(n / 4) + f32::from(n % 4) / 4.0);
    let mut header = br#"{"odd":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"embed":{"dtype":"F32","shape":[10,4],"data_offsets":[4,164]}}"#.to_vec();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend([1, 2, 3, 4]);
    file.extend(table.flat_map(f32::to_le_bytes));
    std::fs::write(weights.join("model.safetensors"), file).unwrap();
    let image = dir.path().join("model.daxfs");
    mkimage::Packer::new().input(&weights).plan().unwrap().write_file(&image).unwrap();

    let mut command = Command::new(env!("CARGO_BIN_EXE_04-vulkan-lookup"));
    let output = command.arg(&image).args(["embed", "7", "0", "10", "7"]).output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() && std::env::var_os("DAXFS_REQUIRE_VULKAN").is_none() {
        assert!(errors.contains("Unavailable") || errors.contains("NotImportable"), "{errors}");
        return eprintln!("not run: {errors}");
    }
    assert!(output.status.success(), "{text}{errors}");
    let rows: Vec<_> = text.lines().skip(1).collect();
    assert!(text.contains("160 bytes by mapping, no copy"), "{text}");
    assert_eq!(
        rows,
        [
            "row 7: [7.0, 7.25, 7.5, 7.75]",
            "row 0: [0.0, 0.25, 0.5, 0.75]",
            "row 10: [0.0, 0.0, 0.0, 0.0]",
            "row 7: [7.0, 7.25, 7.5, 7.75]",
        ]
    );
}

/// PoCL is enough; `make test` installs it as root. Where there is no driver the example says what it needs.
#[test]
fn the_opencl_example_looks_rows_up() {
    let dir = tempfile::tempdir().unwrap();
    let image = tables(dir.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_07-opencl-lookup"));
    let output = command.arg(&image).args(["embed", "7", "0", "10"]).output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() && std::env::var_os("DAXFS_REQUIRE_OPENCL").is_none() {
        assert!(errors.contains("Unavailable") || errors.contains("NoSuchDevice"), "{errors}");
        return eprintln!("not run: {errors}");
    }
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("160 bytes by mapping, no copy"), "{text}");
    let rows: Vec<_> = text.lines().skip(1).collect();
    let wanted =
        ["row 7: [7.0, 7.25, 7.5, 7.75]", "row 0: [0.0, 0.25, 0.5, 0.75]", "row 10: [0.0, 0.0, 0.0, 0.0]"];
    assert_eq!(rows, wanted);
}

/// An image with a table of ten rows of four, of which row n begins with n, and a directory of files of words.
fn tables(folder: &Path) -> PathBuf {
    let source = folder.join("in");
    std::fs::create_dir_all(source.join("tables")).unwrap();
    let table = (0..40u8).map(|n| f32::from(n / 4) + f32::from(n % 4) / 4.0);
    let mut header = br#"{"embed":{"dtype":"F32","shape":[10,4],"data_offsets":[0,160]}}"#.to_vec();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(table.flat_map(f32::to_le_bytes));
    std::fs::write(source.join("model.safetensors"), file).unwrap();
    for n in 1..=100u32 {
        let words = (0..n).flat_map(|word| (word * n).to_le_bytes());
        std::fs::write(source.join(format!("tables/{n:03}.bin")), words.collect::<Vec<u8>>()).unwrap();
    }
    let image = folder.join("tables.daxfs");
    mkimage::Packer::new().input(&source).plan().unwrap().write_file(&image).unwrap();
    image
}

/// A program beside this one, wherever they were built: `scripts/gpu.sh` takes them to another machine.
fn beside(name: &str) -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join(name)
}

/// With the simulated driver, or with `make test-gpu` the machine's.
fn on_a_gpu(program: &str, arguments: &[&OsStr], input: Stdio) -> Output {
    let mut command = Command::new(beside(program));
    command.args(arguments).stdin(input);
    if std::env::var_os("DAXFS_TEST_GPU").is_none() {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda");
        daxfs_tests::cuda::build_driver(&folder, &[]);
        command.env("LD_LIBRARY_PATH", folder);
    }
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn cuda_gathers_rows() {
    let dir = tempfile::tempdir().unwrap();
    let image = tables(dir.path());
    let arguments = [image.as_os_str(), "embed".as_ref(), "7".as_ref(), "10".as_ref(), "0".as_ref()];
    let text = text(&on_a_gpu("05-cuda-gather", &arguments, Stdio::null()));
    let lines: Vec<_> = text.lines().skip(1).collect();
    let rows =
        ["row 7: [7.0, 7.25, 7.5, 7.75]", "row 10: [0.0, 0.0, 0.0, 0.0]", "row 0: [0.0, 0.25, 0.5, 0.75]"];
    assert_eq!(lines[..3], rows);
    // Over the link, where the device pins files.
    let is_real = std::env::var_os("DAXFS_TEST_GPU").is_some();
    let is_refused = lines[3].contains("only what could be written: a memfd, but no file");
    assert!(lines[3].ends_with(": the same rows") || is_real && is_refused, "{text}");

    // A memfd that could be written is pinned by all.
    let memory = mkimage::Memory::SharedMemfd(mkimage::HugePages::No);
    let source = dir.path().join("in");
    let plan = mkimage::Packer::new().input(source).plan().unwrap();
    let (fd, _) = plan.write_memory(&memory).unwrap();
    let text = self::text(&on_a_gpu(
        "05-cuda-gather",
        &["fd:0".as_ref(), "embed".as_ref(), "3".as_ref()],
        fd.into(),
    ));
    assert!(text.ends_with("row 3: [3.0, 3.25, 3.5, 3.75]\nin the host's memory: the same rows\n"), "{text}");
}

#[test]
fn cuda_walks_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let image = tables(dir.path());
    let text = text(&on_a_gpu("06-cuda-walk", &[image.as_os_str(), "/./tables/".as_ref()], Stdio::null()));
    assert_eq!(text.lines().count(), 100);
    for (line, n) in text.lines().zip(1..=100u64) {
        let sum = n * (n - 1) / 2 * n;
        assert!(line.starts_with(&format!("{n:03}.bin: inode ")), "{line}");
        assert!(line.ends_with(&format!(", {} bytes, words sum up to {sum}", 4 * n)), "{line}");
    }
}

#[test]
fn without_a_driver_they_say_what_is_missing() {
    if std::env::var_os("DAXFS_TEST_GPU").is_some() {
        return eprintln!("not run: there is a driver");
    }
    let dir = tempfile::tempdir().unwrap();
    let image = tables(dir.path());
    for (program, arguments) in [("05-cuda-gather", ["embed", "1"].as_slice()), ("06-cuda-walk", &["tables"])]
    {
        let output = Command::new(beside(program))
            .arg(&image)
            .args(arguments)
            .env_remove("LD_LIBRARY_PATH")
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains("libcuda.so.1"), "{errors}");
        assert!(!errors.contains("panicked"), "{errors}");
    }
}
