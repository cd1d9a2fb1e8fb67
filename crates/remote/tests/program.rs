//! The program as others start it: the commands, the library's sources, a holder.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Fault, Killed, Server, pack};
use daxfs::{Error, Image, OpenOptions};
use safetensors::tensor::{Dtype, TensorView};

/// Variables that make this test's own program the command `daxfs`.
const ARGS: &str = "DAXFS_TEST_ARGS";

/// Not a test: the command, started by those below.
#[test]
fn command() {
    let Ok(args) = std::env::var(ARGS) else { return };
    let args: Vec<String> = serde_json::from_str(&args).unwrap();
    std::process::exit(daxfs_cli::main(args.into_iter().map(Into::into)).into());
}

fn daxfs(args: &[&str]) -> Command {
    let args: Vec<_> = ["daxfs"].iter().chain(args).collect();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "command", "--nocapture", "--quiet"]);
    command.env(ARGS, serde_json::to_string(&args).unwrap());
    command.env("DAXFS_REMOTE", env!("CARGO_BIN_EXE_daxfs-remote")).stdin(Stdio::null());
    command
}

/// What the command wrote, behind what the test's own program says.
fn text(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.strip_prefix("\nrunning 1 test\n").unwrap_or(&text).to_owned()
}

fn ok(args: &[&str]) -> String {
    let output = daxfs(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    text(&output)
}

fn fails(args: &[&str], with: &[&str]) {
    let output = daxfs(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
    for with in with {
        assert!(said.contains(with), "{args:?}: no {with:?} in {said}");
    }
    assert!(!said.contains("secret"), "{said}");
}

/// The address of an image that somebody gives up.
const GIVEN_UP: &str = "DAXFS_TEST_GIVEN_UP";

/// Not a test: who gives up, started by the one below.
#[test]
fn given_up() {
    let Ok(address) = std::env::var(GIVEN_UP) else { return };
    let asked = AtomicUsize::new(0);
    let options = OpenOptions::new().progress(move |_, _| asked.fetch_add(1, Ordering::Relaxed) < 3);
    assert!(matches!(options.open(address), Err(Error::Cancelled)));
}

#[test]
fn who_gives_up_is_heard_while_a_server_is_silent() {
    let server = Server::new(model()).fault(0, usize::MAX, Fault::Stall);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "given_up"]).env(GIVEN_UP, server.address()).stdin(Stdio::null());
    let output = command.env("DAXFS_REMOTE", env!("CARGO_BIN_EXE_daxfs-remote")).output().unwrap();
    assert!(output.status.success() && text(&output).contains("1 passed"), "{output:?}");
    assert!(server.requests() > 0, "the server was asked");
}

/// A model of two tensors, and a file that is too long for the first request.
fn model() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let data: Vec<u8> = (0..4_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    let view = |range: std::ops::Range<usize>, shape: &[usize]| {
        TensorView::new(Dtype::F32, shape.to_vec(), &data[range]).unwrap()
    };
    let tensors = HashMap::from([("a", view(0..16, &[2, 2])), ("b", view(0..16_000_000, &[4000, 1000]))]);
    fs::write(tree.join("model.safetensors"), safetensors::serialize(&tensors, None).unwrap()).unwrap();
    fs::write(tree.join("config.json"), "{}").unwrap();
    pack(&tree, &folder.path().join("a.daxfs"))
}

#[test]
fn commands_take_addresses() {
    let bytes = model();
    let server = Server::new(bytes.clone());
    let address = &server.address();
    // Listings fetch no file.
    assert_eq!(ok(&["ls", address]), ".daxfs\nconfig.json\nmodel.safetensors\n");
    let json: serde_json::Value = serde_json::from_str(&ok(&["inspect", "--json", address])).unwrap();
    assert!(json.to_string().contains("\"b\""), "{json}");
    ok(&["stat", address, "/model.safetensors"]);
    ok(&["tree", address]);
    let fetched: u64 =
        server.asked.lock().unwrap().iter().map(|asked| asked.range.end - asked.range.start).sum();
    assert!(fetched < bytes.len() as u64 / 2, "{fetched}");
    assert!(server.requests() <= 20, "{}", server.requests());
    // What needs files has them.
    assert_eq!(ok(&["cat", address, "/config.json"]), "{}");
    assert!(ok(&["verify", address]).contains(": ok; "));
    let hash = blake3_of(&bytes);
    ok(&["--expect", &hash, "cat", address, "/config.json"]);
    // The address in errors holds no secret.
    fails(&["--expect", &"7".repeat(64), "cat", address, "/config.json"], &["127.0.0.1", "content"]);
    fails(&["ls", "http://user:secret@127.0.0.1:1/a.daxfs?secret"], &["127.0.0.1:1/a.daxfs"]);
    fails(&["ls", "s3://user:secret@bucket/a?secret"], &["takes neither a user nor a query"]);
    let missing = Server::new(bytes).fault(0, usize::MAX, Fault::Status(404));
    fails(&["ls", &missing.address()], &["there is no such object"]);
}

/// The protocol of S3, spoken by its own library, with a server that knows no signatures.
#[test]
fn stores_are_read_by_their_own_protocol() {
    let bytes = model();
    let run = |server: &Server, verb: &str| {
        let mut command = daxfs(&[verb, "s3://models/a.daxfs"]);
        command.env("AWS_ENDPOINT_URL", server.endpoint()).env("AWS_SKIP_SIGNATURE", "true");
        command.env("AWS_REGION", "us-east-1").output().unwrap()
    };
    let server = Server::new(bytes.clone());
    let output = run(&server, "verify");
    assert!(output.status.success() && text(&output).contains("a.daxfs: ok; "), "{output:?}");
    for (fault, from, words) in [
        (Fault::Status(404), 0, "there is no such object"),
        (Fault::Status(403), 0, "AWS_SECRET_ACCESS_KEY"),
        (Fault::NoRanges, 0, "answers a request for a range with the whole object"),
        (Fault::OtherTag, 1, "changed while it was read"),
        (Fault::Grown, 1, "changed while it was read"),
    ] {
        let server = Server::new(bytes.clone()).fault(from, usize::MAX, fault.clone());
        let output = run(&server, "verify");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(words), "{fault:?}: {said}");
        assert!(server.requests() <= 8, "{fault:?} was asked {} times", server.requests());
    }
}

fn blake3_of(bytes: &[u8]) -> String {
    let hash = Image::from_bytes(bytes.to_vec()).unwrap().content_hash().unwrap();
    hash.to_string()
}

#[test]
fn without_the_program_the_error_says_what_is_needed() {
    let mut command = daxfs(&["ls", "https://localhost/a.daxfs"]);
    let output = command.env("DAXFS_REMOTE", "/nowhere/daxfs-remote").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("install it") && said.contains("https://localhost/a.daxfs"), "{said}");
    // A program that is another one.
    for other in ["/bin/true", "/bin/cat"] {
        let output = daxfs(&["ls", "https://localhost/a.daxfs"]).env("DAXFS_REMOTE", other).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains("daxfs-remote ended"), "{other}: {said}");
    }
}

fn serve(socket: &Path, more: &[&str]) -> Killed {
    let path = socket.to_str().unwrap();
    let mut args = vec!["serve", "--socket", path];
    args.extend(more);
    let holder = Killed(daxfs(&args).stdout(Stdio::null()).spawn().unwrap());
    let begun = Instant::now();
    while !daxfs(&["health", "--socket", path]).output().unwrap().status.success() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the holder did not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    holder
}

#[test]
fn a_holder_holds_what_was_fetched() {
    let bytes = model();
    let server = Server::new(bytes.clone());
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let path = socket.to_str().unwrap();
    let _holder = serve(&socket, &[&format!("first={}", server.address())]);
    let hash = blake3_of(&bytes);
    ok(&["--expect", &hash, "load", "--socket", path, "second", &server.address()]);
    for name in ["first", "second"] {
        let image = Image::open(format!("daxfs+unix://{path}/{name}")).unwrap();
        assert!(image.region().as_slice().unwrap() == bytes, "{name}");
    }
    let damaged = Server::new(bytes).fault(3, usize::MAX, Fault::Status(403));
    fails(&["load", "--socket", path, "third", &damaged.address()], &["refuses access"]);
    assert!(!ok(&["ps", "--socket", path]).contains("third"));
}
