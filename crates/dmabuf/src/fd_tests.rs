use super::*;
use crate::describe::describe;
use crate::memfd::{HugePages, Memfd};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

#[test]
fn open_files_and_their_duplicates() {
    let memfd = Memfd::create("open files", 4096, HugePages::No).unwrap();
    let (fd, copy) = (memfd.as_fd(), memfd.as_fd().try_clone_to_owned().unwrap());
    let reopened = reopen(fd).unwrap();
    let other = Memfd::create("open files", 4096, HugePages::No).unwrap();
    assert!(same_open_file(fd, copy.as_fd()).unwrap());
    assert!(!same_open_file(fd, reopened.as_fd()).unwrap());
    assert!(!same_open_file(fd, other.as_fd()).unwrap());
    assert!(describe(reopened.as_fd()).unwrap().writable);
    let read_only = open_read_only(Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd()))).unwrap();
    assert!(!describe(reopen(read_only.as_fd()).unwrap().as_fd()).unwrap().writable);
    assert!(reopen(UnixStream::pair().unwrap().0.as_fd()).is_err());
}

#[test]
fn both_ways_to_compare_open_files_agree() {
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    let memfd = Memfd::create("open files", 4096, HugePages::No).unwrap();
    let (copy, reopened) = (memfd.as_fd().try_clone_to_owned().unwrap(), reopen(memfd.as_fd()).unwrap());
    for (other, same) in [(&copy, true), (&reopened, false)] {
        match are_duplicates(memfd.as_fd(), other.as_fd()) {
            None => assert!(version < (6, 10), "Linux {release} has F_DUPFD_QUERY"),
            answer => assert_eq!(answer, Some(same)),
        }
        match compare_files(memfd.as_fd(), other.as_fd()) {
            None => println!("not run: kcmp is left out or forbidden here"),
            answer => assert_eq!(answer, Some(same)),
        }
    }
}

#[test]
fn duplicates_are_close_on_exec_and_of_the_same_file() {
    let memfd = Memfd::create("duplicate", 1, HugePages::No).unwrap();
    let copy = duplicate(memfd.as_fd().as_raw_fd()).unwrap();
    assert_ne!(copy.as_raw_fd(), memfd.as_fd().as_raw_fd());
    assert_eq!(describe(copy.as_fd()).unwrap().ino, describe(memfd.as_fd()).unwrap().ino);
    assert_eq!(fcntl(&copy, FcntlArg::F_GETFD).unwrap() & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    for closed in [-1, i32::MAX] {
        let error = duplicate(closed).unwrap_err();
        assert_eq!(error.to_string(), format!("duplicate fd {closed}: Bad file descriptor (os error 9)"));
    }
}
