//! Repositories of a hub and folders of stores, packed: a hub of the tests, which speaks the protocol of Hugging Face's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use common::Killed;
use daxfs::Image;
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";

/// Variables that make this test's own program the command `daxfs`, or `daxfs-pack`.
const ARGS: &str = "DAXFS_TEST_ARGS";

/// Not a test: the command, started by those below.
#[test]
fn command() {
    let Ok(args) = std::env::var(ARGS) else { return };
    let args: Vec<String> = serde_json::from_str(&args).unwrap();
    let args: Vec<_> = args.into_iter().map(Into::into).collect();
    let code = if args[0] == "daxfs" { daxfs_cli::main(args) } else { mkimage::command::main(args) };
    std::process::exit(code.into());
}

/// A request: its line, and the headers by their names in small letters.
#[derive(Debug, Clone)]
struct Asked {
    method: String,
    path: String,
    headers: HashMap<String, String>,
}

/// An answer: status, further headers, body.
type Answer = (u16, String, Vec<u8>);

/// A web server that answers as a function says.
struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn new(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let (noted, answer) = (Arc::clone(&asked), Arc::new(answer));
        // It ends with the process of the test.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (noted, answer) = (Arc::clone(&noted), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    while let Some(request) = read(&stream) {
                        noted.lock().unwrap().push(request.clone());
                        let (status, headers, body) = answer(&request);
                        let head =
                            format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
                        let body = if request.method == "HEAD" { Vec::new() } else { body };
                        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self { port, asked }
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn paths(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|asked| asked.path.clone()).collect()
    }
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers = lines
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    Some(Asked { method, path, headers })
}

/// A part of what lies where ranges are known.
fn ranged(asked: &Asked, bytes: &[u8]) -> Answer {
    let range = asked.headers["range"].strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (start, last): (usize, usize) = (range.0.parse().unwrap(), range.1.parse().unwrap());
    let last = last.min(bytes.len() - 1);
    let headers = format!("Content-Range: bytes {start}-{last}/{}\r\nETag: \"tag\"\r\n", bytes.len());
    (206, headers, bytes[start..=last].to_vec())
}

fn weights() -> Vec<u8> {
    let data: Vec<u8> =
        (0..5_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let tensor = TensorView::new(Dtype::F32, vec![5, 1_000_000], &data).unwrap();
    safetensors::serialize([("w", tensor)], None).unwrap()
}

/// What a hub that does what it should not does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// A listing with a path that leads out of the tree.
    Path,
    /// A listing that goes on at another server.
    Elsewhere,
    /// Large files that are others than their SHA-256 says.
    Content,
    /// Small files of another length.
    Length,
    /// A size that no disk has room for.
    Size,
}

/// A hub with the repository `org/model`, and the server that its large files lie on.
fn hub(fault: Fault) -> (Server, Server) {
    let weights = weights();
    let digest = Sha256::digest(&weights).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let len = if fault == Fault::Size { 1 << 60 } else { weights.len() };
    let store = Server::new(move |asked| {
        let mut bytes = weights.clone();
        if fault == Fault::Content {
            let at = bytes.len() - 1;
            bytes[at] ^= 1;
        }
        // Who is sent there has a signature, and no token.
        match asked.path == "/blob?signature=secret" && !asked.headers.contains_key("authorization") {
            true => ranged(asked, &bytes),
            false => (403, String::new(), Vec::new()),
        }
    });
    let blobs = store.endpoint();
    let hub = Server::new(move |asked| {
        if asked.headers.get("authorization") != Some(&format!("Bearer {TOKEN}")) {
            return (401, String::new(), b"{}".to_vec());
        }
        let json = |text: String| (200, String::new(), text.into_bytes());
        let tree = format!("/api/models/org/model/tree/{COMMIT}?recursive=true");
        let resolve = format!("/org/model/resolve/{COMMIT}");
        let path = &asked.path;
        if path == "/api/models/org/model/revision/main"
            || path == "/api/models/org/model/revision/refs%2Fpr%2F1"
        {
            json(format!(r#"{{"sha": "{COMMIT}", "siblings": []}}"#))
        } else if *path == tree {
            let name = if fault == Fault::Path { "a/../../../escaped" } else { "config.json" };
            let body = format!(
                r#"[{{"type": "directory", "path": "sub", "size": 0}},
                    {{"type": "file", "path": "{name}", "size": 2, "oid": "aa"}}]"#
            );
            let next = match fault {
                Fault::Elsewhere => "http://127.0.0.2:1/next".to_owned(),
                _ => format!("http://{}{tree}&cursor=2", asked.headers["host"]),
            };
            (200, format!("Link: <{next}>; rel=\"next\"\r\n"), body.into_bytes())
        } else if *path == format!("{tree}&cursor=2") {
            json(format!(
                r#"[{{"type": "file", "path": "model.safetensors", "size": 130,
                      "lfs": {{"oid": "{digest}", "size": {len}, "pointerSize": 130}}}},
                    {{"type": "file", "path": "pytorch_model.bin", "size": 9}},
                    {{"type": "file", "path": "sub/a b.txt", "size": 5}},
                    {{"type": "file", "path": "sub/empty", "size": 0}}]"#
            ))
        } else if *path == format!("{resolve}/config.json") {
            json(if fault == Fault::Length { "{} ".into() } else { "{}".into() })
        } else if *path == format!("{resolve}/sub/a%20b.txt") {
            json("hello".into())
        } else if *path == format!("{resolve}/pytorch_model.bin") {
            json("123456789".into())
        } else if *path == format!("{resolve}/model.safetensors") {
            (302, format!("Location: {blobs}/blob?signature=secret\r\n"), Vec::new())
        } else {
            (404, String::new(), Vec::new())
        }
    });
    (hub, store)
}

fn run(args: &[&str], folder: &Path, hub: &Server, token: Option<&str>) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "command", "--nocapture", "--quiet"]).stdin(Stdio::null());
    command.env(ARGS, serde_json::to_string(args).unwrap()).env("TMPDIR", folder).env("HF_HOME", folder);
    command.env("DAXFS_REMOTE", env!("CARGO_BIN_EXE_daxfs-remote")).env("HF_ENDPOINT", hub.endpoint());
    command.env_remove("HF_TOKEN").env_remove("HF_TOKEN_PATH");
    command.envs(token.map(|token| ("HF_TOKEN", token)));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("secret"), "{said}");
    output
}

fn packed(address: &str, more: &[&str], hub: &Server) -> Result<(Image, String), String> {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("a.daxfs");
    let mut args = vec!["daxfs-pack", address, "-o", output.to_str().unwrap()];
    args.extend(more);
    let done = run(&args, folder.path(), hub, Some(TOKEN));
    let left = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| name == "a.daxfs"), "what was fetched is gone");
    match done.status.code() {
        // Who may not ask the hub may not read the image either.
        Some(0) if std::fs::metadata(&output).unwrap().mode() & 0o777 != 0o600 => panic!("{done:?}"),
        Some(0) => Ok((Image::open(&output).unwrap(), String::from_utf8(done.stdout).unwrap())),
        code => {
            assert_eq!((code, output.exists()), (Some(2), false));
            Err(String::from_utf8(done.stderr).unwrap())
        }
    }
}

#[test]
fn repositories_are_packed() {
    let (hub, store) = hub(Fault::None);
    let (image, said) = packed("hf://org/model", &[], &hub).unwrap();
    let tensors = image.tensors().unwrap();
    assert_eq!(tensors.get("w").unwrap().shape(), [5, 1_000_000]);
    let original = image.file("/model.safetensors").unwrap().original().unwrap();
    let mut bytes = Vec::new();
    original.copy_to(&mut bytes).unwrap();
    assert!(bytes == weights());
    assert_eq!(image.file("/sub/a b.txt").unwrap().to_vec().unwrap(), b"hello");
    assert_eq!(image.file("/sub/empty").unwrap().len(), 0);
    assert_eq!(image.entry("/config.json").unwrap().metadata().permissions(), 0o644);
    assert!(said.contains(&format!("fetched from hf://org/model@{COMMIT}")), "{said}");
    // Several requests, each of a part.
    assert!(store.paths().len() >= 3, "{:?}", store.paths());
    // The same repository has the same content, whenever it is packed.
    let (again, _) = packed("hf://org/model@refs/pr/1", &[], &hub).unwrap();
    assert_eq!(again.content_hash(), image.content_hash());
}

#[test]
fn what_is_left_out_is_not_fetched() {
    let (hub, store) = hub(Fault::None);
    let (image, said) = packed("hf://org/model", &["--weights-only"], &hub).unwrap();
    assert!(
        image.file("/pytorch_model.bin").is_err() && said.contains("left out: pytorch_model.bin"),
        "{said}"
    );
    assert!(!hub.paths().iter().any(|path| path.ends_with("pytorch_model.bin")));
    let (image, _) = packed("hf://org/model", &["--include", "*.json"], &hub).unwrap();
    assert!(image.file("/config.json").is_ok() && image.file("/model.safetensors").is_err());
    let asked = store.paths().len();
    packed("hf://org/model", &["--exclude", "*.safetensors"], &hub).unwrap();
    assert_eq!(store.paths().len(), asked);
}

#[test]
fn what_a_hub_says_is_checked() {
    for (fault, words) in [
        (Fault::Path, "lists a path that is none"),
        (Fault::Elsewhere, "goes on at another server"),
        (Fault::Content, "the object has the digest"),
        (Fault::Length, "more than 2 bytes"),
        (Fault::Size, "bytes are free there"),
    ] {
        let (hub, store) = hub(fault);
        let error = packed("hf://org/model", &[], &hub).unwrap_err();
        assert!(error.contains(words) && error.contains("hf://org/model"), "{fault:?}: {error}");
        assert!(fault != Fault::Size || store.paths().is_empty(), "{:?}", store.paths());
    }
    let (hub, store) = hub(Fault::None);
    let error = packed("hf://org/other", &[], &hub).unwrap_err();
    assert!(error.contains("hf://org/other: there is no such object"), "{error}");
    // What is no image says how it becomes one; what is one file is read as one.
    let folder = tempfile::tempdir().unwrap();
    let output = run(&["daxfs", "ls", "hf://org/model"], folder.path(), &hub, Some(TOKEN));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("daxfs-pack hf://org/model -o IMAGE"), "{said}");
    let args = ["daxfs", "ls", &format!("hf://org/model@{COMMIT}/model.safetensors")];
    let output = run(&args, folder.path(), &hub, Some(TOKEN));
    let said = String::from_utf8_lossy(&output.stderr);
    // It was found, read by ranges, and is no image.
    assert!(
        output.status.code() == Some(2) && said.contains("safetensors") && !said.contains("no such"),
        "{said}"
    );
    assert!(!store.paths().is_empty());
}

#[test]
fn tokens_come_from_where_the_tools_of_hubs_have_them() {
    let (hub, _store) = hub(Fault::None);
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("a.daxfs");
    let args = ["daxfs-pack", "hf://org/model", "--include", "*.json", "-o", image.to_str().unwrap()];
    let output = run(&args, folder.path(), &hub, None);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("401") && said.contains("HF_TOKEN"), "{said}");
    std::fs::write(folder.path().join("token"), format!("{TOKEN}\n")).unwrap();
    let output = run(&args, folder.path(), &hub, None);
    assert!(output.status.success() && image.exists(), "{output:?}");
}

/// The listing of S3, by its own library, with a server that knows no signatures.
#[test]
fn folders_of_stores_are_packed() {
    let bytes = weights();
    let objects = [
        ("llama/config.json", b"{}".to_vec()),
        ("llama/v1/", Vec::new()),
        ("llama/v1/model.safetensors", bytes),
    ];
    let contents: String = objects
        .iter()
        .map(|(key, bytes)| {
            format!(
                "<Contents><Key>{key}</Key><LastModified>2026-12-02T00:00:00.000Z</LastModified>\
                 <ETag>\"tag\"</ETag><Size>{}</Size></Contents>",
                bytes.len()
            )
        })
        .collect();
    let listing = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult><Name>models</Name>\
         <IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
    );
    let store = Server::new(move |asked| {
        if asked.path.contains("list-type=2") {
            assert!(asked.path.starts_with("/models") && asked.path.contains("prefix=llama%2F"), "{asked:?}");
            return (200, "Content-Type: application/xml\r\n".into(), listing.clone().into_bytes());
        }
        let found = objects.iter().find(|(key, _)| asked.path == format!("/models/{key}"));
        let Some((_, bytes)) = found else { return (404, String::new(), Vec::new()) };
        let date = "Last-Modified: Wed, 02 Dec 2026 00:00:00 GMT\r\nETag: \"tag\"\r\n";
        match asked.headers.contains_key("range") {
            true => {
                let (status, headers, body) = ranged(asked, bytes);
                (status, format!("{headers}Last-Modified: Wed, 02 Dec 2026 00:00:00 GMT\r\n"), body)
            }
            false => (200, date.to_owned(), bytes.clone()),
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("a.daxfs");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "command", "--nocapture", "--quiet"]).stdin(Stdio::null());
    let args = ["daxfs-pack", "s3://models/llama/", "-o", image.to_str().unwrap()];
    command.env(ARGS, serde_json::to_string(&args).unwrap()).env("TMPDIR", folder.path());
    command.env("DAXFS_REMOTE", env!("CARGO_BIN_EXE_daxfs-remote")).env("AWS_ENDPOINT_URL", store.endpoint());
    let output = command.env("AWS_SKIP_SIGNATURE", "true").env("AWS_REGION", "us-east-1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let image = Image::open(&image).unwrap();
    assert_eq!(image.tensors().unwrap().len(), 1);
    assert_eq!(image.file("/config.json").unwrap().to_vec().unwrap(), b"{}");
}

#[test]
fn a_holder_holds_what_was_fetched_and_packed() {
    let (hub, _store) = hub(Fault::None);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let path = socket.to_str().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "command", "--nocapture", "--quiet"]).stdin(Stdio::null()).stdout(Stdio::null());
    command.env(ARGS, serde_json::to_string(&["daxfs", "serve", "--socket", path]).unwrap());
    let _holder = Killed(command.spawn().unwrap());
    let begun = std::time::Instant::now();
    while !run(&["daxfs", "health", "--socket", path], folder.path(), &hub, None).status.success() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "the holder did not answer");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let args = ["daxfs", "load", "--weights-only", "--socket", path, "model", "hf://org/model"];
    let output = run(&args, folder.path(), &hub, Some(TOKEN));
    assert!(output.status.success(), "{output:?}");
    let image = Image::open(format!("daxfs+unix://{path}/model")).unwrap();
    assert_eq!(image.tensors().unwrap().len(), 1);
    assert!(image.file("/pytorch_model.bin").is_err());
    let args =
        ["daxfs", "load", "--shared", "--into", "udmabuf", "--socket", path, "other", "hf://org/model"];
    let output = run(&args, folder.path(), &hub, Some(TOKEN));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("--shared is for memfds"), "{said}");
    let args = ["daxfs", "load", "--no-copy", "--socket", path, "other", "hf://org/model"];
    let output = run(&args, folder.path(), &hub, Some(TOKEN));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("no-copy"), "{said}");
}
