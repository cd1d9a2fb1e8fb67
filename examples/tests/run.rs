//! Runs each example as a user would.

use std::path::Path;
use std::process::Command;

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
    assert!(shared.contains("child: 4 entries"), "{shared}");
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
