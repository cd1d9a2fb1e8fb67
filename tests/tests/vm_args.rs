//! The options that `daxfs vm-args` prints are those that QEMU takes, and its machine has the image at the place that it
//! says. `tests/kernel/erofs.py` boots guests with them.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs_tests::tree::{self, Item};
use mkimage::Packer;
use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const QEMU: &str = "qemu-system-x86_64";

fn daxfs() -> PathBuf {
    let path = env::current_exe().unwrap().ancestors().nth(2).unwrap().join("daxfs");
    assert!(path.exists(), "no {}: build the commands first (cargo build --bins)", path.display());
    path
}

/// An image whose memory has this many bytes.
fn image(place: &Path, len: u64) -> PathBuf {
    let (folder, path) = (place.join("tree"), place.join("an,image"));
    fs::create_dir_all(&folder).unwrap();
    if !folder.join("file").exists() {
        tree::write(&vec![(b"file".to_vec(), Item::File(0o644, vec![7; 5000]))], &folder);
    }
    Packer::new().input(folder).plan().unwrap().write_file(&path).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
    path
}

fn vm_args(args: &[&str], image: &Path) -> Output {
    Command::new(daxfs()).arg("vm-args").args(args).arg(image).output().unwrap()
}

/// What a machine that does not run says to questions about it.
fn ask(command: &mut Command, questions: &[&str]) -> String {
    let command =
        command.args(["-machine", "q35,accel=tcg", "-m", "128M,slots=2,maxmem=4G", "-display", "none"]);
    let command = command.args(["-S", "-monitor", "stdio"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut machine = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut input = machine.stdin.take().unwrap();
    for question in questions.iter().chain(&["quit"]) {
        writeln!(input, "{question}").unwrap();
    }
    let output = machine.wait_with_output().unwrap();
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn qemu_takes_the_options_and_has_the_image() {
    if !Command::new(QEMU).arg("--version").output().is_ok_and(|output| output.status.success()) {
        assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "there is no {QEMU}");
        eprintln!("not run: there is no {QEMU}");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let path = image(place.path(), 4 << 20);
    // The first bytes of an image, where the machine has its first memory device.
    let questions = ["info memory-devices", "xp /4xb 0x100000000"];
    let has_image = |said: &str| said.contains("size: 4194304") && said.contains("0x35 0x78 0x61 0x64");
    for device in ["virtio-pmem", "nvdimm"] {
        let output = vm_args(&["--device", device], &path);
        assert!(output.status.success(), "{output:?}");
        let words = String::from_utf8(output.stdout).unwrap();
        let said = ask(Command::new(QEMU).args(words.lines()), &questions);
        assert!(has_image(&said), "{said}");
    }
    // A command that inherits the memory, which has no path for it.
    let file = File::open(&path).unwrap();
    let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
    nix::fcntl::fcntl(&file, flags).unwrap();
    let source = format!("fd:{}", file.as_raw_fd());
    let mut command = Command::new(daxfs());
    let said = ask(command.args(["vm-args", &source, "--", QEMU]), &questions);
    assert!(has_image(&said), "{said}");
    let output = vm_args(&["--device", "ivshmem"], &path);
    let words = String::from_utf8(output.stdout).unwrap();
    let said = ask(Command::new(QEMU).args(words.lines()), &["info qtree"]);
    assert!(said.contains("dev: ivshmem-plain, id \"daxfs-ivshmem\""), "{said}");
}

#[test]
fn what_a_machine_cannot_have_is_said() {
    let place = tempfile::tempdir().unwrap();
    let cases: [(u64, &[&str], &str); 4] = [
        (5 << 20, &[], "truncate -s 6291456"),
        (6 << 20, &["--device", "ivshmem"], "truncate -s 8388608"),
        (4 << 20, &["--vmm", "cloud-hypervisor"], "comma"),
        (4 << 20, &["--vmm", "cloud-hypervisor", "--device", "nvdimm"], "virtio-pmem alone"),
    ];
    for (len, args, why) in cases {
        let output = vm_args(args, &image(place.path(), len));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(why) && output.stdout.is_empty(), "{said}");
    }
}
