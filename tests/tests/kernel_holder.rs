//! A holder that keeps images in udmabuf and dma-heap memory; see `kernel.rs` for where this runs.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Image, Provenance};
use daxfs_tests::devices;
use dmabuf::FdKind;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// More than any step takes under emulation.
const PATIENCE: Duration = Duration::from_secs(120);

/// The command `daxfs`, which lies one folder above the test programs.
fn daxfs() -> PathBuf {
    let path = env::current_exe().unwrap().ancestors().nth(2).unwrap().join("daxfs");
    assert!(path.exists(), "no {}: build the commands first (cargo build --bins)", path.display());
    path
}

/// A running holder; killed when it is dropped.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(daxfs());
        command.args(args).env("DAXFS_SOCKET", self.path("s"));
        command
    }

    fn run(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn serve(&self, args: &[&str]) -> Holder {
        self.serve_under(None, args)
    }

    /// Starts a holder, with a supervisor that listens at this socket, if any.
    fn serve_under(&self, notify: Option<&Path>, args: &[&str]) -> Holder {
        let mut command = self.command(&["serve"]);
        command.args(args).envs(notify.map(|notify| ("NOTIFY_SOCKET", notify)));
        let holder = Holder(command.spawn().unwrap());
        let start = Instant::now();
        let own = holder.0.id();
        let answers = || {
            let health = self.command(&["health", "--json"]).output().unwrap();
            serde_json::from_slice::<serde_json::Value>(&health.stdout)
                .is_ok_and(|health| health["pid"] == own)
        };
        while !answers() {
            assert!(start.elapsed() < PATIENCE, "no answer of the holder");
            thread::sleep(Duration::from_millis(20));
        }
        holder
    }

    fn open(&self, name: &str) -> Image {
        Image::open(format!("daxfs+unix://{}/{name}", self.path("s").display())).unwrap()
    }
}

#[test]
fn images_in_device_memory_are_held_handed_over_and_outlive_the_holder() {
    if !devices::are_here(&[]) {
        return;
    }
    for (into, driver) in [("udmabuf", "udmabuf"), ("heap:system", "system")] {
        let place = Place(tempfile::tempdir().unwrap());
        let tree = place.path("tree");
        fs::create_dir(&tree).unwrap();
        let bytes: Vec<u8> = (0..300_000u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        fs::write(tree.join("table"), &bytes).unwrap();
        let image = place.path("image.daxfs");
        mkimage::Packer::new().input(&tree).plan().unwrap().write_file(&image).unwrap();

        let old = place.serve(&["--into", into, &format!("packed={}", tree.display())]);
        place.run(&["load", "copied", image.to_str().unwrap()]);
        place.run(&["load", "host", image.to_str().unwrap(), "--into", "memfd:4K"]);
        let check = |name: &str| {
            let image = place.open(name);
            match &image.region().info().unwrap().kind {
                FdKind::DmaBuf { exporter, .. } => assert_eq!(exporter, driver, "{name}"),
                kind => panic!("{name}: {kind:?}"),
            }
            assert_eq!(image.region().provenance(), Provenance::Shared, "{name}");
            assert!(image.file("table").unwrap().to_vec().unwrap() == bytes, "{name}");
            image
        };
        let before = [check("packed"), check("copied")];
        assert_eq!(place.open("host").region().provenance(), Provenance::Sealed);
        let listing: serde_json::Value = serde_json::from_str(&place.run(&["ps", "--json"])).unwrap();
        let images = listing["images"].as_array().unwrap();
        let column = |key: &str| images.iter().map(|image| image[key].clone()).collect::<Vec<_>>();
        assert_eq!(column("memory"), ["dma-buf", "sealed memfd", "dma-buf"]);
        assert!(
            column("content_hash").iter().all(|hash| hash.is_string() && *hash == images[0]["content_hash"])
        );

        let new = place.serve(&["--takeover"]);
        drop(old);
        assert!(before.iter().all(|image| image.is_current().unwrap()));
        let after = check("copied");
        drop(new);
        assert!(after.file("table").unwrap().to_vec().unwrap() == bytes, "without a holder");
    }
}

/// A helper packs with the rights of who asks, and only the holder may make such memory.
#[test]
fn loads_of_others_take_their_size_once() {
    if !devices::are_here(&[]) {
        return;
    }
    for (into, driver) in [("udmabuf", "udmabuf"), ("heap:system", "system")] {
        let place = Place(tempfile::tempdir().unwrap());
        fs::set_permissions(place.path("."), fs::Permissions::from_mode(0o755)).unwrap();
        let tree = place.path("tree");
        fs::create_dir(&tree).unwrap();
        let bytes: Vec<u8> = (0..9_000_000u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        fs::write(tree.join("table"), &bytes).unwrap();
        let _holder =
            place.serve(&["--into", into, "--mode", "666", "--allow-control", "65534", "--max-bytes", "12M"]);
        let mut client = place.command(&["load", "a", tree.to_str().unwrap(), "-q"]);
        assert!(client.uid(65534).gid(65534).status().unwrap().success(), "{into}");
        let image = place.open("a");
        match &image.region().info().unwrap().kind {
            FdKind::DmaBuf { exporter, .. } => assert_eq!(exporter, driver),
            kind => panic!("{into}: {kind:?}"),
        }
        assert!(image.file("table").unwrap().to_vec().unwrap() == bytes);
    }
}

#[test]
fn a_supervisor_has_a_dma_buf_under_one_name_only() {
    if !devices::are_here(&[]) {
        return;
    }
    let place = Place(tempfile::tempdir().unwrap());
    let tree = place.path("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("table"), [7; 5000]).unwrap();
    let notify = place.path("notify");
    let supervisor = UnixDatagram::bind(&notify).unwrap();
    // What nobody reads would hold the holder up in the end.
    thread::spawn(move || while supervisor.recv(&mut [0; 4096]).is_ok() {});
    let arguments = ["--into", "udmabuf", &format!("a={}", tree.display())];
    let holder = place.serve_under(Some(&notify), &arguments);
    for (verb, name) in [("load", "b"), ("swap", "b"), ("swap", "a")] {
        let error = place.refused(&[verb, name, "daxfs://a"]);
        assert!(error.contains("has this memory as the image \"a\" already"), "{verb} {name}: {error}");
    }
    let attached = place.open("a");
    let ino = attached.region().info().unwrap().ino;
    place.run(&["drop", "a"]);
    let fd = attached.region().fd().unwrap().try_clone_to_owned().unwrap();
    let load = place.command(&["load", "b", "-", "-q"]).stdin(Stdio::from(fd)).status().unwrap();
    assert!(load.success());
    assert_eq!(place.open("b").region().info().unwrap().ino, ino, "the same memory, under its new name");
    drop(holder);

    let _holder = place.serve(&arguments);
    place.run(&["load", "b", "daxfs://a"]);
    let [a, b] = ["a", "b"].map(|name| place.open(name).region().info().unwrap().ino);
    assert_eq!(a, b, "without a supervisor there is nothing to refuse");
}
