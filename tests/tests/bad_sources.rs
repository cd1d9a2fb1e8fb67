//! Sources that cannot hold an image, or hold less than the image says: each a typed error that names it, and nothing
//! is touched that is not there.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Error, Image, OpenOptions, Part, Region};
use daxfs_tests::forge::{Version, mini, superblock};
use dmabuf::{HugePages, Memfd};
use nix::unistd::{Uid, setfsuid};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

/// Numbers of Linux on the machines that this project runs on.
const O_PATH: i32 = 0o10_000_000;
const EBADF: i32 = 9;
const EACCES: i32 = 13;

fn image() -> Vec<u8> {
    mini(Version::V8).finish()
}

fn name(fd: &impl AsFd) -> String {
    format!("fd:{}", fd.as_fd().as_raw_fd())
}

/// A file that holds `bytes`, read-only.
fn holding(dir: &Path, bytes: &[u8]) -> File {
    let path = dir.join("image");
    fs::write(&path, bytes).unwrap();
    File::open(path).unwrap()
}

#[test]
fn descriptors_of_the_wrong_kind() {
    let dir = tempfile::tempdir().unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let path_only = fs::OpenOptions::new().read(true).custom_flags(O_PATH).open(dir.path()).unwrap();
    let file = dir.path().join("written");
    let write_only = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&file).unwrap();
    let directory = dir.path().to_str().unwrap();
    // What it is, its name, and why it does not do.
    let shareable: [(OwnedFd, &str, &str); 4] = [
        (pipe.into(), "pipe:[", "it is a pipe"),
        (socket.into(), "socket:[", "it is a socket"),
        (File::open(dir.path()).unwrap().into(), directory, "it is a directory"),
        (File::open("/dev/null").unwrap().into(), "/dev/null", "it is a character device"),
    ];
    for (fd, name, words) in shareable {
        for error in both_ways(&fd) {
            match &error {
                Error::Memory(dmabuf::Error::NotShareable { what, why }) => {
                    assert!(what.starts_with(name) && why.starts_with(words), "{error}");
                }
                other => panic!("{words}: {other:?}"),
            }
        }
    }
    let readable: [(OwnedFd, &str, &str); 2] = [
        (path_only.into(), directory, "opened with O_PATH"),
        (write_only.into(), file.to_str().unwrap(), "open for writing only"),
    ];
    for (fd, name, words) in readable {
        for error in both_ways(&fd) {
            match &error {
                Error::Memory(dmabuf::Error::Invalid { what, why }) => {
                    assert!(what == name && why.starts_with(words), "{error}");
                }
                other => panic!("{words}: {other:?}"),
            }
        }
    }
    // It has bytes and no length.
    for error in both_ways(&File::open("/proc/self/status").unwrap().into()) {
        assert!(matches!(error, Error::TooSmall { len: 0, need: 4096 }), "{error:?}");
    }
    let error = Image::open("fd:987654").unwrap_err();
    match &error {
        Error::Memory(dmabuf::Error::Os { subject, source, .. }) => {
            assert!(subject == "fd 987654" && source.raw_os_error() == Some(EBADF), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

/// What opening says, by the descriptor's number and by itself.
fn both_ways(fd: &OwnedFd) -> [Error; 2] {
    [Image::open(name(fd)).unwrap_err(), Image::from_fd(fd.try_clone().unwrap()).unwrap_err()]
}

#[test]
fn a_device_smaller_than_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = image();
    let mut padded = vec![0; 4096];
    padded.extend_from_slice(&bytes);
    let file = holding(dir.path(), &padded);
    let part = |len: usize| format!("{}@4K+{len}", name(&file));
    assert_eq!(Image::open(part(bytes.len())).unwrap().region().offset(), 4096);
    let error = Image::open(part(bytes.len() - 4096)).unwrap_err();
    assert!(matches!(error, Error::OutOfBounds { .. }), "{error}");
    let error = Image::open(part(bytes.len() + 1)).unwrap_err();
    assert!(matches!(&error, Error::OutsideSource { bound, .. } if *bound == padded.len() as u64), "{error}");
    assert!(error.to_string().starts_with(&name(&file)), "{error}");
    let error = Image::open(format!("{}@1M", name(&file))).unwrap_err();
    assert!(matches!(error, Error::OutsideSource { .. }), "{error}");
    let error = Image::open(format!("{}@{}", name(&file), padded.len())).unwrap_err();
    assert!(matches!(error, Error::TooSmall { len: 0, .. }), "{error}");
    let error = Region::from_fd_part(file.into(), Part { offset: u64::MAX, len: Some(2) }).unwrap_err();
    assert!(matches!(error, Error::Memory(dmabuf::Error::OutOfBounds { .. })), "{error}");
}

#[test]
fn offsets_that_are_not_aligned() {
    let dir = tempfile::tempdir().unwrap();
    let file = holding(dir.path(), &image());
    for offset in ["1", "512", "0x801", "4095"] {
        for source in [format!("{}@{offset}", name(&file)), format!("/dev/dax0.0@{offset}")] {
            let error = Image::open(&source).unwrap_err();
            assert!(matches!(&error, Error::Source { text, .. } if *text == source), "{error}");
        }
    }
}

#[test]
fn a_size_that_lies() {
    let dir = tempfile::tempdir().unwrap();
    for lie in [0, 1, 4096, 1 << 40, u64::MAX] {
        let mut bytes = image();
        superblock(&mut bytes).total_size = lie.into();
        let file = holding(dir.path(), &bytes);
        match Image::open(name(&file)) {
            // The kernel does not look at it: too small a number only says too little.
            Ok(image) => {
                assert!(lie <= bytes.len() as u64);
                assert!(image.file("/f").unwrap().to_vec().unwrap().starts_with(b"0123456789"));
            }
            Err(error) => {
                assert!(matches!(error, Error::OutOfBounds { .. }) && lie > bytes.len() as u64, "{error}")
            }
        }
    }
}

#[test]
fn holes_of_a_sparse_file_are_no_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = image();
    let path = dir.path().join("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    let error = Image::open(&path).unwrap_err();
    assert!(matches!(error, Error::NotAnImage { found: 0 }), "{error}");
    // The superblock is there, and nothing behind it.
    (&file).write_all(&bytes[..4096]).unwrap();
    let error = Image::open(&path).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
}

#[test]
fn a_region_that_disappears_is_noticed_before_it_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = image();
    let read_only = holding(dir.path(), &bytes);
    let path = dir.path().join("image");
    let opened = Image::open(&path).unwrap();
    let copy = OpenOptions::new().sealed_copy(true).open(&path).unwrap();
    assert!(opened.is_current().unwrap());
    let writer = fs::OpenOptions::new().write(true).open(&path).unwrap();
    writer.set_len(0).unwrap();
    assert!(!opened.is_current().unwrap(), "and no page of it was touched");
    let error = opened.refresh().unwrap_err();
    assert!(matches!(error, Error::TooSmall { len: 0, .. }), "{error}");
    let target = tempfile::tempfile().unwrap();
    let error = opened.file("/f").unwrap().write_to(&target).unwrap_err();
    assert!(
        matches!(&error, Error::Write(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof),
        "{error}"
    );
    assert!(copy.file("/f").unwrap().to_vec().unwrap().starts_with(b"0123456789"), "the safe alternative");
    assert!(copy.is_current().unwrap());
    assert_eq!(Region::from_fd(read_only.into()).unwrap().len(), 0);

    // Nor is it touched by copying.
    fs::write(&path, &bytes).unwrap();
    let region = Region::open(&path).unwrap();
    writer.set_len(bytes.len() as u64 - 1).unwrap();
    let error = region.sealed_copy().unwrap_err().to_string();
    assert!(error.contains(&format!("cut short to {} bytes", bytes.len() - 1)), "{error}");

    // The same for a memfd that is not sealed against it.
    let memfd = Memfd::create("shrinks", bytes.len() as u64, HugePages::No).unwrap();
    let file = File::from(memfd.as_fd().try_clone_to_owned().unwrap());
    (&file).write_all(&bytes).unwrap();
    let opened = Image::open(name(&file)).unwrap();
    let region = Region::from_fd(memfd.into()).unwrap();
    assert!(opened.is_current().unwrap());
    file.set_len(4096).unwrap();
    assert!(!opened.is_current().unwrap());
    let error = region.sealed_copy().unwrap_err().to_string();
    assert!(error.contains("cut short to 4096 bytes"), "{error}");

    // By another name the memory is another one, and the old one lives on.
    fs::write(&path, &bytes).unwrap();
    let opened = Image::open(&path).unwrap();
    fs::rename(&path, dir.path().join("moved")).unwrap();
    assert!(!opened.is_current().unwrap());
    assert!(opened.refresh().unwrap_err().is_not_found());
    assert!(opened.file("/f").unwrap().to_vec().unwrap().starts_with(b"0123456789"));
}

#[test]
fn a_target_for_reading_only_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let memfd = dmabuf::Memfd::create("read-only", 1 << 20, dmabuf::HugePages::No).unwrap();
    let path = format!("/proc/self/fd/{}", memfd.as_fd().as_raw_fd());
    let read_only = File::open(path).unwrap();
    // A target has to be written to, and this descriptor is for reading.
    fs::write(dir.path().join("a"), b"a").unwrap();
    let memory = mkimage::Memory::parse(name(&read_only).as_ref(), dmabuf::HugePages::No).unwrap();
    let plan = mkimage::Packer::new().input(dir.path().join("a")).plan().unwrap();
    let error = plan.write_memory(&memory).unwrap_err();
    match &error {
        mkimage::Error::Memory(dmabuf::Error::Os { op: "mmap", subject, source }) => {
            assert!(subject == "memfd:read-only" && source.raw_os_error() == Some(EACCES), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_permission_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let secret = dir.path().join("secret");
    fs::OpenOptions::new().write(true).create_new(true).mode(0o200).open(&secret).unwrap();
    let open = || {
        // Root may read everything, so its thread becomes nobody before: to files, and for itself only.
        let nobody = Uid::from_raw(65534);
        if Uid::effective().is_root() {
            setfsuid(nobody);
            // It never says that it failed, but who it was before.
            if setfsuid(nobody) != nobody {
                return None;
            }
        }
        Some(Image::open(&secret).unwrap_err())
    };
    let Some(error) = thread::scope(|scope| scope.spawn(open).join().unwrap()) else {
        return eprintln!("not run: this user namespace has no other user");
    };
    match &error {
        Error::Memory(dmabuf::Error::Os { op: "open", subject, source }) => {
            assert!(*subject == secret.to_str().unwrap() && source.raw_os_error() == Some(EACCES), "{error}");
        }
        other => panic!("{other:?}"),
    }
}
