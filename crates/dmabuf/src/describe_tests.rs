#![allow(unsafe_code, reason = "a descriptor of a kind that the standard library does not open")]

use super::*;
use crate::fd::{fd_link, open_read_only};
use crate::memfd::{HugePages, Memfd};
use crate::seals::Seals;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

fn refusal(fd: impl AsFd) -> &'static str {
    match describe(fd.as_fd()) {
        Err(Error::NotShareable { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn memfds_with_their_seals() {
    let memfd = Memfd::create("describe me", 5000, HugePages::No).unwrap();
    memfd.seal(Seals::SHRINK).unwrap();
    let info = describe(memfd.as_fd()).unwrap();
    let FdKind::Memfd { seals, hugetlb: None } = info.kind else { panic!("{info:?}") };
    assert!(seals.contains(Seals::SHRINK) && !seals.contains(Seals::WRITE));
    assert_eq!((info.len, info.writable), (5000, true));
    assert_eq!(fd_link(memfd.as_fd()).unwrap(), Path::new("/memfd:describe me (deleted)"));
    assert_eq!(fd_name(memfd.as_fd()), "memfd:describe me");

    let reopened =
        open_read_only(Path::new(&format!("/proc/self/fd/{}", memfd.as_fd().as_raw_fd()))).unwrap();
    let again = describe(reopened.as_fd()).unwrap();
    assert!(!again.writable && matches!(again.kind, FdKind::Memfd { .. }));
    assert_eq!((again.dev, again.ino), (info.dev, info.ino));
}

#[test]
fn memfds_that_take_no_seals_are_told_from_files_of_tmpfs() {
    let memfd = nix::sys::memfd::memfd_create("plain", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    let sealed = FdKind::Memfd { seals: Seals::SEAL, hugetlb: None };
    assert_eq!(describe(memfd.as_fd()).unwrap().kind, sealed);
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    assert_eq!(crate::seals::seals(file.as_fd()).unwrap(), Some(Seals::SEAL));
    assert_eq!(describe(file.as_fd()).unwrap().kind, FdKind::File);
}

#[test]
fn files_on_disk_and_on_tmpfs() {
    for directory in [std::env::temp_dir(), "/dev/shm".into()] {
        let Ok(file) = tempfile::NamedTempFile::new_in(&directory) else {
            println!("not run in {}: cannot write there", directory.display());
            continue;
        };
        file.as_file().set_len(12_345).unwrap();
        let info = describe(file.as_file().as_fd()).unwrap();
        assert_eq!((&info.kind, info.len, info.writable), (&FdKind::File, 12_345, true));
        assert_eq!(fd_link(file.as_file().as_fd()).as_deref(), Some(file.path()));
        let read_only = open_read_only(file.path()).unwrap();
        assert!(!describe(read_only.as_fd()).unwrap().writable);
        // An unlinked file is a file still.
        std::fs::remove_file(file.path()).unwrap();
        assert_eq!(describe(read_only.as_fd()).unwrap().kind, FdKind::File);
    }
}

#[test]
fn what_is_not_memory_is_refused_with_the_reason() {
    let (reading, writing) = nix::unistd::pipe().unwrap();
    assert!(refusal(reading).contains("pipe"));
    assert!(refusal(writing).contains("pipe"));
    assert!(refusal(UnixStream::pair().unwrap().0).contains("socket"));
    assert!(refusal(File::open("/").unwrap()).contains("directory"));
    assert!(refusal(File::open("/dev/null").unwrap()).contains("character device"));
    // SAFETY: takes an integer only; the result is checked by the next line.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    assert!(epoll >= 0);
    // SAFETY: opened by the line above, owned by nobody else.
    assert!(refusal(unsafe { OwnedFd::from_raw_fd(epoll) }).contains("neither a file"));
    match File::open("/dev/ptmx") {
        Ok(terminal) => assert!(refusal(terminal).contains("terminal")),
        Err(e) => println!("terminal not run: /dev/ptmx: {e}"),
    }
}

#[test]
fn a_block_device_is_not_its_page_cache() {
    let devices = std::fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let opened = devices.map(|d| Path::new("/dev").join(d.file_name())).find_map(|p| File::open(p).ok());
    match opened {
        Some(device) => assert!(refusal(device).contains("goes stale; use devdax or a file")),
        None => println!("not run: no block device that may be opened"),
    }
}

#[test]
fn descriptors_that_give_no_reading_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let writing = std::fs::OpenOptions::new().write(true).open(file.path()).unwrap();
    let error = describe(writing.as_fd()).unwrap_err();
    assert!(matches!(&error, Error::Invalid { why, .. } if why.contains("writing only")), "{error}");
    let path_only =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(file.path()).unwrap();
    let error = describe(path_only.as_fd()).unwrap_err();
    assert!(matches!(&error, Error::Invalid { why, .. } if why.contains("O_PATH")), "{error}");
    let append = std::fs::OpenOptions::new().read(true).append(true).open(file.path()).unwrap();
    assert!(describe(append.as_fd()).unwrap().writable);
}

#[test]
fn opening_never_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    // Without O_NONBLOCK this would wait for a writer.
    assert!(refusal(open_read_only(&fifo).unwrap()).contains("pipe"));
    let error = open_read_only(&directory.path().join("absent")).unwrap_err();
    assert_eq!(error.io_kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().starts_with("open ") && error.to_string().contains("absent"), "{error}");
}
