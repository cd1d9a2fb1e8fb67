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
