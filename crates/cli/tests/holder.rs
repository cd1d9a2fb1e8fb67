//! The holder, run as people run it: real processes, real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{DAXFS, Fixture, Run};
use daxfs::holder::{Connection, HolderError};
use daxfs::{Image, OpenOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// A tree with its image, and a place for the socket.
struct Place(Fixture);

/// A running holder; killed when it is dropped.
struct Holder {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Place {
    fn new() -> Self {
        Self(Fixture::new())
    }

    fn socket(&self) -> PathBuf {
        self.0.path("s.sock")
    }

    fn address(&self, name: &str) -> String {
        format!("daxfs+unix://{}/{name}", self.socket().display())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(DAXFS);
        command.args(args.iter().map(|arg| self.expand(arg)));
        command.env("DAXFS_SOCKET", self.socket()).env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
        command
    }

    /// As [`Fixture::expand`], for the source in `NAME=SOURCE`, too.
    fn expand(&self, arg: &str) -> OsString {
        match arg.split_once('=') {
            Some((name, source)) => {
                let mut arg = OsString::from(format!("{name}="));
                arg.push(self.0.expand(source.as_ref()));
                arg
            }
            None => self.0.expand(arg.as_ref()),
        }
    }

    fn run(&self, args: &[&str]) -> Run {
        Run::of(&mut self.command(args))
    }

    fn serve(&self, args: &[&str]) -> Holder {
        let mut command = self.command(&["serve", "--log", "json"]);
        command.args(self.command(args).get_args());
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut holder = Holder { child, log };
        holder.wait_for("serving");
        holder
    }

    fn generation(&self, name: &str) -> Option<u64> {
        let listing = self.run(&["ps", "--json"]).json();
        let images = listing["images"].as_array().unwrap();
        images.iter().find(|image| image["name"] == name).and_then(|image| image["generation"].as_u64())
    }

    /// An image of other contents than the tree.
    fn other_image(&self) -> String {
        let (dir, image) = (self.0.path("other"), self.0.path("other.daxfs"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("config.json"), "{}\n").unwrap();
        mkimage::Packer::new().input(&dir).plan().unwrap().write_file(&image).unwrap();
        image.to_str().unwrap().to_owned()
    }
}

impl Holder {
    /// Reads log lines up to the one with this message.
    fn wait_for(&mut self, message: &str) -> serde_json::Value {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert!(self.log.read_line(&mut line).unwrap() > 0, "ended before {message:?}: {seen}");
            let value: serde_json::Value =
                serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
            if value["message"] == message {
                return value;
            }
            seen.push_str(&line);
        }
    }

    /// The rest of the log and the exit status, once it ended.
    fn end(mut self) -> (String, i32) {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (rest, self.child.wait().unwrap().code().unwrap_or(-1))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn load_list_swap_drop_stop() {
    let place = Place::new();
    let other = place.other_image();
    let holder = place.serve(&["m=TREE"]);
    assert_eq!(fs::metadata(place.socket()).unwrap().mode() & 0o777, 0o600);

    let text = place.run(&["ps"]).ok();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "GEN", "SIZE", "MEMORY", "PAGES", "CONTENT", "AGE", "ATTACHES"]);
    assert_eq!((rows[1][0], rows[1][1], rows.len()), ("m", "1", 2));
    assert!(text.contains("sealed memfd") && text.contains("blake3:"), "{text}");

    let stored = Image::open(place.0.image()).unwrap().content_hash().unwrap();
    let hex: String = stored.iter().map(|byte| format!("{byte:02x}")).collect();
    let listing = place.run(&["ps", "--json"]).json();
    assert_eq!(listing["images"][0]["content_hash"], format!("blake3:{hex}"));
    assert_eq!(listing["images"][0]["memory"], "sealed memfd");
    assert!(listing["images"][0].get("holders").is_none());

    let expected = place.run(&["ls", "-R", "--json", "IMAGE"]).ok();
    assert_eq!(place.run(&["ls", "-R", "--json", &place.address("m")]).ok(), expected);
    assert_eq!(place.run(&["ls", "-R", "--json", "daxfs://m"]).ok(), expected);
    place.run(&["verify", "-q", "daxfs://m", "TREE"]).ok();

    // This process has the image, too.
    let old = Image::open(place.address("m")).unwrap();
    assert!(old.is_current().unwrap());
    let users = place.run(&["ps", "--holders", "--json"]).json();
    let pids: Vec<u64> = users["images"][0]["holders"]
        .as_array()
        .unwrap()
        .iter()
        .map(|user| user["pid"].as_u64().unwrap())
        .collect();
    assert!(
        pids.contains(&std::process::id().into()) && pids.contains(&holder.child.id().into()),
        "{pids:?}"
    );
    assert!(place.run(&["ps", "--holders"]).ok().contains(&format!("\n  {} ", std::process::id())));

    let loaded = place.run(&["load", "f", "IMAGE"]).ok();
    assert!(loaded.starts_with("f: generation 2, "), "{loaded}");
    let error = place.run(&["load", "m", "IMAGE"]).error();
    assert!(error.contains("already"), "{error}");

    let swapped = place.run(&["swap", "m", &other, "--json"]).json();
    assert_eq!((swapped["name"].as_str(), swapped["generation"].as_u64()), (Some("m"), Some(3)));
    assert!(!old.is_current().unwrap());
    assert_eq!(
        old.file("/dir/sub/deep.txt").unwrap().to_vec().unwrap(),
        b"deep\n",
        "old clients keep the old bytes"
    );
    let new = Image::open(place.address("m")).unwrap();
    assert_eq!(new.file("/config.json").unwrap().to_vec().unwrap(), b"{}\n");

    place.run(&["drop", "f"]).ok();
    assert_eq!(place.generation("f"), None);
    let error = place.run(&["drop", "f"]).error();
    assert!(error.contains("no image \"f\""), "{error}");
    let error = place.run(&["ls", "daxfs://f"]).error();
    assert!(error.contains("no image \"f\""), "{error}");

    let health = place.run(&["health", "--json"]).json();
    assert_eq!(
        (health["pid"].as_u64(), health["images"].as_u64()),
        (Some(holder.child.id().into()), Some(1))
    );
    place.run(&["stop"]).ok();
    assert!(!place.socket().exists());
    assert_eq!(holder.end().1, 0);
    assert!(place.run(&["health"]).error().contains("no holder answers"));
    assert_eq!(new.file("/config.json").unwrap().to_vec().unwrap(), b"{}\n", "clients outlive the holder");
    assert!(new.is_current().is_err());
}

#[test]
fn what_is_wrong_is_refused() {
    let place = Place::new();
    let _holder = place.serve(&["m=IMAGE", "--max-bytes", "3M"]);
    let size = fs::metadata(place.0.image()).unwrap().len();
    assert!(size < 3 << 20, "the limit below must be reached by one more file");

    let big = place.0.path("big");
    fs::create_dir(&big).unwrap();
    fs::write(big.join("zeros"), vec![0; 3 << 20]).unwrap();
    let error = place.run(&["load", "big", "DIR/big"]).error();
    assert!(error.contains("--max-bytes is 3145728"), "{error}");

    let wrong = OpenOptions::new().expect([7; 32]).open(place.address("m")).unwrap_err().to_string();
    assert!(wrong.contains("other content"), "{wrong}");
    let hash = Image::open(place.0.image()).unwrap().content_hash().unwrap();
    OpenOptions::new().expect(hash).open(place.address("m")).unwrap();

    // One byte of a file differs from what the index says.
    place.0.poke(place.0.offset_of("/config.json"), b"[");
    let error = place.run(&["load", "bad", "IMAGE"]).error();
    assert!(error.contains("/config.json: its contents have the hash"), "{error}");
    fs::write(place.0.path("text"), "no image").unwrap();
    place.run(&["load", "bad", "DIR/text"]).error();
    place.run(&["load", "bad", "DIR/absent"]).error();

    let without_effect: [&[&str]; 3] = [
        &["load", "x", "IMAGE", "--dedupe"],
        &["load", "x", "TREE", "--shared", "--into", "udmabuf"],
        &["ps", "--strict"],
    ];
    for args in without_effect {
        assert_eq!(place.run(args).status, 2, "{args:?}");
    }
    for args in [&["load", "a/b", "TREE"][..], &["load", "x", "TREE", "--into", "floppy"], &["serve", "x"]] {
        assert_eq!(place.run(args).status, 2, "{args:?}");
    }
    assert_eq!(place.run(&["ps", "--json"]).json()["images"].as_array().unwrap().len(), 1);
}

#[test]
fn options_of_a_load() {
    let place = Place::new();
    let _holder = place.serve(&["--mode", "0666"]);
    assert_eq!(fs::metadata(place.socket()).unwrap().permissions().mode() & 0o777, 0o666);
    let shared = place.run(&["load", "s", "TREE", "--shared", "--align-tensors=512", "--json"]).json();
    assert_eq!(shared["memory"], "shared memfd");
    let image = Image::open(place.address("s")).unwrap();
    let aligned = image.tensors_at("/model.safetensors").unwrap().get("head.weight").unwrap().alignment();
    assert!(aligned >= 512, "{aligned}");
    let small = place.run(&["load", "p", "TREE", "--into", "memfd:4K", "--json"]).json();
    assert_eq!((small["memory"].as_str(), small["page_size"].as_u64()), (Some("sealed memfd"), Some(4096)));

    // A memfd is kept as it is, not copied.
    let (fd, _) = mkimage::Packer::new()
        .input(place.0.tree())
        .plan()
        .unwrap()
        .write_memory(&mkimage::Memory::Memfd(mkimage::HugePages::No))
        .unwrap();
    let ino = fs::File::from(fd.try_clone().unwrap()).metadata().unwrap().ino();
    let mut load = place.command(&["load", "k", "-", "-q"]);
    let status = load.stdin(Stdio::from(fd)).status().unwrap();
    assert!(status.success());
    assert_eq!(Image::open(place.address("k")).unwrap().region().info().unwrap().ino, ino);
    // Nor is one that a holder has already.
    place.run(&["load", "again", "daxfs://k", "-q"]).ok();
    assert_eq!(Image::open(place.address("again")).unwrap().region().info().unwrap().ino, ino);
}

#[test]
fn starting_and_ending() {
    let place = Place::new();
    let first = place.serve(&["m=IMAGE"]);
    let error = place.run(&["serve"]);
    assert_eq!(error.status, 2);
    assert!(error.stderr.contains(&first.child.id().to_string()), "names the other: {error:?}");
    assert!(error.stderr.contains("--takeover"), "{error:?}");

    first.signal(Signal::SIGKILL);
    first.end();
    assert!(place.socket().exists(), "a killed holder leaves its socket");
    assert!(place.run(&["ps"]).error().contains("no holder answers"));
    let second = place.serve(&[]);
    assert!(place.run(&["health"]).ok().contains("0 images"));
    second.signal(Signal::SIGTERM);
    let (log, status) = second.end();
    assert_eq!(status, 0, "{log}");
    assert!(!place.socket().exists());

    // A source that is none ends the start, and leaves no socket.
    fs::write(place.0.path("text"), "no image").unwrap();
    let failed = place.run(&["serve", "t=DIR/text"]);
    assert_eq!(failed.status, 2, "{failed:?}");
    assert!(failed.stderr.lines().last().unwrap().starts_with("daxfs: t: "), "{failed:?}");
    assert!(!place.socket().exists());
    assert!(place.run(&["serve", "--takeover"]).stderr.contains("no holder answers"));
}

#[test]
fn takeovers_while_clients_attach() {
    let place = Place::new();
    let mut holder = place.serve(&["m=IMAGE"]);
    let address = place.address("m");
    let before = Image::open(&address).unwrap();
    let (ending, attaches) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let attach = || {
            while !ending.load(Ordering::Relaxed) {
                let image = Image::open(&address).expect("no attach fails");
                assert_eq!(image.file("/dir/sub/deep.txt").unwrap().to_vec().unwrap(), b"deep\n");
                attaches.fetch_add(1, Ordering::Relaxed);
            }
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(attach)).collect();
        for _ in 0..3 {
            let seen = attaches.load(Ordering::Relaxed);
            let new = place.serve(&["--takeover", "m=IMAGE"]);
            let old = std::mem::replace(&mut holder, new);
            let (log, status) = old.end();
            assert_eq!(status, 0, "{log}");
            while attaches.load(Ordering::Relaxed) < seen + 20 && !threads.iter().any(|t| t.is_finished()) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        ending.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap();
        }
    });
    assert!(before.is_current().unwrap(), "a takeover changes no generation, and loads nothing again");
    assert_eq!(place.generation("m"), Some(1));
    let health = place.run(&["health", "--json"]).json();
    assert_eq!(health["pid"].as_u64(), Some(holder.child.id().into()));
    place.run(&["stop"]).ok();
    assert!(!place.socket().exists(), "the last one removes the socket");
}

#[test]
fn metrics_are_served() {
    let place = Place::new();
    let mut command = place.command(&["serve", "m=IMAGE", "--log", "json", "--metrics", "127.0.0.1:0"]);
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let mut holder = Holder { child, log };
    let address = holder.wait_for("serving metrics")["address"].as_str().unwrap().to_owned();
    holder.wait_for("serving");
    drop(Image::open(place.address("m")).unwrap());
    let get = |path: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let metrics = get("/metrics");
    assert!(metrics.starts_with("HTTP/1.0 200"), "{metrics}");
    for line in [
        "daxfs_images 1",
        "daxfs_attaches_total 1",
        "daxfs_image_generation{name=\"m\",kind=\"sealed memfd\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
    assert!(get("/healthz").ends_with("ok\n"));
    let attached = holder.wait_for("attached");
    assert_eq!(attached["name"], "m");
    assert_eq!(attached["peer.pid"].as_u64(), Some(std::process::id().into()));
}

#[test]
fn a_silent_client_does_not_keep_the_holder_alive_or_others_waiting() {
    let place = Place::new();
    let holder = place.serve(&["m=IMAGE"]);
    let mut silent = Connection::open(&place.socket()).unwrap();
    place.run(&["ls", "daxfs://m"]).ok();
    holder.signal(Signal::SIGINT);
    assert_eq!(holder.end().1, 0);
    assert!(matches!(silent.receive().unwrap_err(), HolderError::Closed { .. }));
}

#[test]
fn pages_and_completions() {
    let place = Place::new();
    place.run(&["man", "DIR/man/man1"]).ok();
    for page in ["daxfs.1", "daxfs-ls.1", "daxfs-serve.1", "daxfs-swap.1", "daxfs-pack.1"] {
        let text = fs::read_to_string(place.0.path("man/man1").join(page)).unwrap();
        assert!(text.contains(".TH ") && text.contains(".SH NAME"), "{page}");
    }
    assert!(!place.0.path("man/man1/daxfs-help.1").exists());
    let serve = fs::read_to_string(place.0.path("man/man1/daxfs-serve.1")).unwrap();
    assert!(serve.contains("takeover") && !serve.contains("sealed\\-copy"), "{serve}");
    assert!(place.run(&["completions", "bash"]).ok().contains("takeover"));
    assert!(place.run(&["completions", "fish", "--program", "daxfs-pack"]).ok().contains("align-tensors"));
}
