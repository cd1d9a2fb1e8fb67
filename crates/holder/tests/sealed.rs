//! A client that may only attach cannot change, shorten or lengthen a sealed image by any way that the kernel offers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "mprotect")]

mod support;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use dmabuf::Mapping;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl};
use support::{Place, Start, be_process, is_root_for, tensor, write_whole};

/// User "nobody".
const NOBODY: u32 = 65534;

#[test]
fn process() {
    be_process();
}

/// Every attempt and how it ended, one a line.
fn attempts(fd: &OwnedFd) -> String {
    let file = File::from(fd.try_clone().unwrap());
    let len = file.metadata().unwrap().len();
    let size = i64::try_from(len).unwrap();
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
    let own = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let access = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap()) & OFlag::O_ACCMODE;
    assert_eq!(access, OFlag::O_RDONLY, "no client needs to write");
    let mut results = Vec::new();
    let mut attempt = |name: &str, result: Result<(), Errno>| results.push(format!("{name} {result:?}"));

    attempt("pwrite", file.write_at(b"x", 0).map(drop).map_err(errno));
    attempt("append", file.write_at(b"x", len).map(drop).map_err(errno));
    attempt("truncate", file.set_len(0).map_err(errno));
    attempt("grow", file.set_len(len + 4096).map_err(errno));
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    attempt("punch", fallocate(fd, punch, 0, 4096));
    attempt("zero", fallocate(fd, FallocateFlags::FALLOC_FL_ZERO_RANGE, 0, 4096));
    attempt("extend", fallocate(fd, FallocateFlags::empty(), size, 4096));
    let raw = |error: dmabuf::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
    attempt("mmap", Mapping::read_write(fd.as_fd(), 0, 4096).map(drop).map_err(raw));
    // A mapping for reading that is made writable afterwards.
    attempt("mprotect", write_through_mprotect(fd));
    // What other processes have open leads to the same memory, by their numbers and by ours.
    let pid = std::process::id();
    let by_pid = OpenOptions::new().write(true).open(format!("/proc/{pid}/fd/{}", fd.as_raw_fd()));
    attempt("by-pid", by_pid.and_then(|file| file.write_at(b"x", 0).map(drop)).map_err(errno));
    let seal = FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW);
    attempt("seal", fcntl(fd, seal).map(drop));
    for (name, truncate) in [("reopen", false), ("reopen-truncate", true)] {
        let reopened = OpenOptions::new().read(true).write(true).truncate(truncate).open(&own);
        // Whoever gets it open is held by the seals all the same.
        let result = reopened.and_then(|file| {
            let write = file.write_at(b"x", 0).map(drop);
            assert!(file.set_len(1).is_err() && file.set_len(len + 4096).is_err());
            assert!(Mapping::read_write(file.as_fd(), 0, 4096).is_err());
            assert!(fallocate(&file, punch, 0, 4096).is_err());
            write
        });
        attempt(name, result.map_err(errno));
    }
    results.join("\n")
}

/// Maps for reading and asks for more; the errno, by the kernel's own program for it.
fn write_through_mprotect(fd: &OwnedFd) -> Result<(), Errno> {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, mprotect, munmap};
    let len = std::num::NonZero::new(4096).unwrap();
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    let address = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, fd, 0) }?;
    // SAFETY: the mapping was just made, and nothing refers to it.
    let result = unsafe { mprotect(address, 4096, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE) };
    // SAFETY: as above; it is not used any more.
    unsafe { munmap(address, 4096) }?;
    result
}

/// The client's part: run as another user by the test below.
#[test]
fn hostile_client() {
    let (Ok(address), Ok(report)) = (std::env::var("DAXFS_TEST_HOSTILE"), std::env::var("DAXFS_TEST_REPORT"))
    else {
        return;
    };
    let image = daxfs::Image::open(address).unwrap();
    let fd = image.region().fd().unwrap().try_clone_to_owned().unwrap();
    write_whole(Path::new(&report), &attempts(&fd));
}

fn check(report: &str) {
    let mut lines = 0;
    for line in report.lines() {
        lines += 1;
        let (name, result) = line.split_once(' ').unwrap();
        // Opening for writing may be refused at once (the file's mode); with O_TRUNC the seal or the mode refuses.
        let allowed: &[&str] = match name {
            "mmap" | "seal" | "mprotect" => &["Err(EPERM)", "Err(EACCES)"],
            "reopen" | "reopen-truncate" | "by-pid" => &["Err(EPERM)", "Err(EACCES)"],
            // Memory files know no such operation.
            "zero" => &["Err(EPERM)", "Err(EOPNOTSUPP)", "Err(EBADF)"],
            // The descriptor is open for reading only.
            "pwrite" | "append" | "punch" | "extend" => &["Err(EBADF)"],
            "truncate" | "grow" => &["Err(EINVAL)"],
            _ => &["Err(EPERM)"],
        };
        assert!(allowed.contains(&result), "{line}");
    }
    assert_eq!(lines, 13);
}

#[test]
fn nobody_can_change_a_sealed_image() {
    let place = Place::new();
    let _holder = place.serve(&Start { open_to_all: true, ..Start::default() });
    place.load_path("llama", false, &place.weights("w", 5, 100_000)).unwrap();
    let image = place.open("llama");
    assert_eq!(image.region().provenance(), daxfs::Provenance::Sealed);
    // As the holder's own user, even as root.
    check(&attempts(&image.region().fd().unwrap().try_clone_to_owned().unwrap()));
    if is_root_for("another user's attempts") {
        let mut client = place.program_as(NOBODY, "hostile_client");
        client.env("DAXFS_TEST_HOSTILE", place.address("llama"));
        client.env("DAXFS_TEST_REPORT", place.report_path("hostile"));
        assert!(client.status().unwrap().success());
        check(&place.report("hostile"));
    }
    assert_eq!(tensor(&image), vec![5; 100_000]);
}
