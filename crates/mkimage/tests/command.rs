//! The command, run as a user runs it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{open_strict, safetensors, varied_tree, write};
use std::path::Path;
use std::process::{Command, Output};

fn run(directory: &Path, line: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_daxfs-pack")).current_dir(directory).args(line).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_shortest_call() {
    let dir = tempfile::tempdir().unwrap();
    varied_tree(&dir.path().join("weights"));
    let output = run(dir.path(), &["weights"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("weights.daxfs: "), "{}", text(&output.stdout));
    // No progress bar outside of a terminal.
    let errors = text(&output.stderr);
    assert_eq!(errors.lines().filter(|line| line.contains("leads nowhere")).count(), 2, "{errors}");
    assert_eq!(errors.lines().count(), 2, "{errors}");
    open_strict(&dir.path().join("weights.daxfs"));
    let output = run(dir.path(), &["weights", "-q", "--verify", "-o", "other"]);
    assert_eq!((output.status.code(), output.stdout.len(), output.stderr.len()), (Some(0), 0, 0));
}

#[test]
fn json() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "in/model.safetensors", &safetensors(&[("w", "F32", &[9])]));
    write(dir.path(), "in/broken.safetensors", b"");
    let output = run(dir.path(), &["in", "--json", "--verify", "-o", "image"]);
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["target"], "image");
    assert_eq!(summary["tensors"], 1);
    assert_eq!(summary["verified"], true);
    assert_eq!(summary["warnings"].as_array().unwrap().len(), 1);
    assert_eq!(summary["content_hash"].as_str().unwrap().len(), 64);
    let bytes = std::fs::metadata(dir.path().join("image")).unwrap().len();
    assert_eq!(summary["image_bytes"], bytes);
}

#[test]
fn a_signed_image_has_its_signature_beside_it() {
    let key = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daxfs/tests/minisign/minisign.key");
    let (key, public) = (key.to_str().unwrap().to_owned(), key.with_extension("pub"));
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "in/a", b"a");
    let output = run(dir.path(), &["in", "-o", "image", "--sign", &key, "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["signature"], "image.minisig");
    let signature = std::fs::read_to_string(dir.path().join("image.minisig")).unwrap();
    let keys = daxfs::signature::PublicKeys::read(&public).unwrap();
    let options = daxfs::OpenOptions::new().signed(keys, Some(signature));
    options.open(dir.path().join("image")).unwrap();
    // A key that is none leaves everything as it was.
    let output = run(dir.path(), &["in", "-o", "other", "--sign", "in/a"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("is not a secret key: those of minisign are"),
        "{}",
        text(&output.stderr)
    );
    let output = run(dir.path(), &["in", "-o", "other", "--sign", &key, "--password-file", "in/a"]);
    assert!(text(&output.stderr).contains("is not protected"), "{}", text(&output.stderr));
    assert!(!dir.path().join("other").exists() && !dir.path().join("other.minisig").exists());
    // What is in the signature's place is found before the image is replaced.
    let before = std::fs::read(dir.path().join("image")).unwrap();
    write(dir.path(), "in/b", b"b");
    std::fs::remove_file(dir.path().join("image.minisig")).unwrap();
    std::fs::create_dir(dir.path().join("image.minisig")).unwrap();
    let output = run(dir.path(), &["in", "-o", "image", "--sign", &key]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("image.minisig: is a directory"), "{}", text(&output.stderr));
    assert!(std::fs::read(dir.path().join("image")).unwrap() == before);
    // On P-256 the place is another.
    let pem = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daxfs/tests/cosign/key.pem");
    let output = run(dir.path(), &["in", "-o", "image", "--sign", pem.to_str().unwrap(), "--json"]);
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["signature"], "image.cosign");
    write(dir.path(), "image.cosign/notes", b"");
    let output = run(dir.path(), &["in", "-o", "image", "--sign", pem.to_str().unwrap()]);
    assert!(text(&output.stderr).contains("move it away"), "{}", text(&output.stderr));
}

#[test]
fn what_stays_is_hashed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "in/a", b"a");
    std::fs::File::create(dir.path().join("device")).unwrap().set_len(16 << 20).unwrap();
    let device = dir.path().join("device");
    let device = device.to_str().unwrap();
    for (line, is_hashed) in [
        (&["-o", "image"][..], true),
        (&["-o", "image", "--no-hash"], false),
        (&["--into", device], true),
        (&["--into", device, "--replace", "--no-hash"], false),
        (&["--into", "memfd", "--", "true"], false),
        (&["--into", "memfd", "--hash", "--", "true"], true),
    ] {
        let output = run(dir.path(), &[&["in", "--json"], line].concat());
        let stream = if line.contains(&"true") { &output.stderr } else { &output.stdout };
        let summary: serde_json::Value = serde_json::from_slice(stream).unwrap();
        assert_eq!(summary["content_hash"].is_string(), is_hashed, "{line:?}");
    }
}

#[test]
fn errors_are_one_line_and_status_2() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "in/a", b"a");
    for line in [
        &["missing"][..],
        &["in", "--into", "memfd"],
        &["in", "--align", "3"],
        &["in", "-o", "missing/image"],
        &["in", "in/a"],
        &["in", "--into", "memfd", "--", "/nonexistent/command"],
        &["in", "-o", "-"],
        &["in", "--into", "/nonexistent"],
    ] {
        let output = run(dir.path(), &[&["-q"], line].concat());
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line:?}: {message}");
        assert!(message.starts_with("daxfs-pack: ") && message.lines().count() == 1, "{line:?}: {message}");
    }
    for line in [&[][..], &["--nonsense"], &["in", "--format", "9"], &["in", "--align", "2X"]] {
        assert_eq!(run(dir.path(), line).status.code(), Some(2), "{line:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was written");
    assert_eq!(run(dir.path(), &["--help"]).status.code(), Some(0));
    assert!(text(&run(dir.path(), &["--version"]).stdout).starts_with("daxfs-pack "));
}

#[test]
fn a_command_inherits_the_image() {
    let dir = tempfile::tempdir().unwrap();
    varied_tree(&dir.path().join("in"));
    let script = r#"test "$DAXFS_IMAGE" = "fd:$DAXFS_FD" && cat "/proc/self/fd/$DAXFS_FD" > copy && echo "$1"; exit 7"#;
    let output = run(dir.path(), &["in", "--into", "memfd", "--", "sh", "-c", script, "name", "an argument"]);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "an argument\n", "standard output belongs to the command");
    assert!(text(&output.stderr).contains("\nmemfd: "));
    let image = open_strict(&dir.path().join("copy"));
    assert_eq!(common::list_image(&image), common::list_directory(&dir.path().join("in")));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "in/a", b"a");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_daxfs-pack"))
        .current_dir(dir.path())
        .args(["in", "-o", "image"])
        .stdout(writer)
        .status()
        .unwrap();
    assert!(status.success());
    open_strict(&dir.path().join("image"));
}

/// As in some sandboxes: the kernel is not asked for pages, and all else is as usual.
#[test]
fn memory_is_filled_without_proc() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "in/a", b"a");
    let line = [
        env!("CARGO_BIN_EXE_daxfs-pack"),
        "in",
        "--into",
        "memfd",
        "--",
        "sh",
        "-c",
        "test -n \"$DAXFS_FD\"",
    ];
    let hidden = r#"mount -t tmpfs none /proc || exit 99; exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", hidden, "sh"]).args(line);
    let output = command.current_dir(dir.path()).output().unwrap();
    let said = text(&output.stderr);
    if output.status.code() == Some(99) || said.starts_with("unshare: ") {
        let required = std::env::var_os("DAXFS_REQUIRE_ROOT").is_some();
        assert!(!required && std::env::var("CI").as_deref() != Ok("true"), "{said}");
        eprintln!("not run: {said}");
        return;
    }
    assert!(output.status.success(), "{said}");
}
