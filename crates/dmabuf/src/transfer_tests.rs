//! Tests of [`super`]: every way, and the falls from one to the next.

use super::*;
use crate::memfd::{HugePages, Memfd};
use crate::{Mapping, SharedBytes};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};

const LEN: usize = 3 << 20;

fn memory() -> (Memfd, Mapping, Vec<u8>) {
    let bytes: Vec<u8> = (0..LEN).map(|i| ((i * 31) >> 5).to_le_bytes()[0]).collect();
    let memfd = Memfd::create("transfer", LEN as u64, HugePages::No).unwrap();
    let mut map = Mapping::read_write(memfd.as_fd(), 0, LEN).unwrap();
    map.view_mut().unwrap().copy_from(0, &bytes).unwrap();
    (memfd, map, bytes)
}

fn read_back(mut file: File) -> Vec<u8> {
    let mut all = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut all).unwrap();
    all
}

#[test]
fn files_get_the_bytes_from_a_place_in_the_middle() {
    let (memfd, map, bytes) = memory();
    let view = map.view().get(5000, 2 << 20).unwrap();
    let file = tempfile::tempfile().unwrap();
    let mut transfer = Transfer::new(view, Some((memfd.as_fd(), 5000)));
    transfer.finish(file.as_fd(), None).unwrap();
    assert!(matches!(transfer.way(), Some(Way::CopyFileRange | Way::SendFile)), "{:?}", transfer.way());
    assert_eq!((transfer.done(), transfer.step(file.as_fd()).unwrap()), (2 << 20, 0));
    assert!(read_back(file) == bytes[5000..5000 + (2 << 20)]);
    // Appending files take neither of the kernel's own ways.
    let path = tempfile::NamedTempFile::new().unwrap();
    let append = std::fs::OpenOptions::new().append(true).open(path.path()).unwrap();
    let mut transfer = Transfer::new(view, Some((memfd.as_fd(), 5000)));
    transfer.finish(append.as_fd(), None).unwrap();
    assert_eq!(transfer.way(), Some(Way::Write));
    assert!(std::fs::read(path.path()).unwrap() == bytes[5000..5000 + (2 << 20)]);
}

#[test]
fn sockets_that_are_full_are_waited_for() {
    let (memfd, map, bytes) = memory();
    for file in [Some((memfd.as_fd(), 0)), None] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut transfer = Transfer::new(map.view(), file);
        // Nobody reads: after some bytes the socket is full.
        let error = transfer.finish(ours.as_fd(), Some(Duration::from_millis(1))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(transfer.done() > 0 && !transfer.is_done());
        let received = std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut all = Vec::new();
                theirs.read_to_end(&mut all).unwrap();
                all
            });
            transfer.finish(ours.as_fd(), None).unwrap();
            drop(ours);
            reader.join().unwrap()
        });
        assert!(received == bytes);
        let expected = if file.is_some() { Way::SendFile } else { Way::Write };
        assert_eq!(transfer.way(), Some(expected));
    }
}

#[test]
fn signals_do_not_end_the_waiting() {
    static HANDLED: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn count(_: libc::c_int) {
        HANDLED.fetch_add(1, Ordering::SeqCst);
    }
    // SAFETY: all zeros is a valid `struct sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: a live description of a handler that only adds to an atomic number; no other test uses this signal.
    assert_eq!(unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()) }, 0);

    let (_memfd, map, bytes) = memory();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let writer = scope.spawn(move || {
            // SAFETY: it has no requirements.
            tell.send(unsafe { libc::pthread_self() }).unwrap();
            Transfer::new(map.view(), None).finish(ours.as_fd(), None)
        });
        let thread = told.recv().unwrap();
        // Nobody reads: soon the thread does nothing but wait for the socket, and most signals meet it there.
        while HANDLED.load(Ordering::SeqCst) < 100 && !writer.is_finished() {
            // SAFETY: the thread is not joined, so its number is valid; the signal has a handler.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        writer.join().unwrap().unwrap();
        assert!(all == bytes);
    });

    // Nor do they prolong it.
    let (ours, _theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let (_memfd, map, _) = memory();
    std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let writer = scope.spawn(move || {
            // SAFETY: it has no requirements.
            tell.send(unsafe { libc::pthread_self() }).unwrap();
            Transfer::new(map.view(), None).finish(ours.as_fd(), Some(Duration::from_millis(100)))
        });
        let thread = told.recv().unwrap();
        // Far more often than the patience is long: if each signal began it anew, it would never end.
        let ended = (0..20_000).any(|_| {
            // SAFETY: the thread is not joined, so its number is valid; the signal has a handler.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
            std::thread::sleep(Duration::from_millis(1));
            writer.is_finished()
        });
        assert!(ended);
        assert_eq!(writer.join().unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    });
}

/// An address that write(2) cannot read stands for what O_DIRECT says of a dma-buf: EFAULT before any byte.
#[test]
fn what_the_kernel_cannot_reach_goes_through_a_buffer() {
    let (memfd, map, bytes) = memory();
    let mut transfer = Transfer::new(map.view(), None);
    let fault = io::Error::from_raw_os_error(libc::EFAULT);
    assert_eq!(transfer.next(Way::Write, &fault), Some(Way::Bounce));
    let of_file = Transfer::new(map.view(), Some((memfd.as_fd(), 0)));
    assert_eq!(of_file.next(Way::Write, &fault), None, "pages of a file may be gone");
    for number in [libc::ENOSPC, libc::EPIPE, libc::EIO] {
        for way in [Way::CopyFileRange, Way::SendFile, Way::Write, Way::Bounce] {
            assert_eq!(of_file.next(way, &io::Error::from_raw_os_error(number)), None);
        }
    }
    transfer.way = Some(Way::Bounce);
    let path = tempfile::NamedTempFile::new().unwrap();
    let mut options = std::fs::OpenOptions::new();
    match options.write(true).custom_flags(libc::O_DIRECT).open(path.path()) {
        Ok(direct) => transfer.finish(direct.as_fd(), None).unwrap(),
        Err(_) => transfer.finish(path.as_file().as_fd(), None).unwrap(),
    }
    assert!(std::fs::read(path.path()).unwrap() == bytes);
}

#[test]
fn a_file_that_was_cut_short_is_an_error() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let map = Mapping::read_only(file.as_fd(), 0, 8192).unwrap();
    file.set_len(4096).unwrap();
    let to = tempfile::tempfile().unwrap();
    let mut transfer = Transfer::new(map.view(), Some((file.as_fd(), 0)));
    let error = transfer.finish(to.as_fd(), None).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "and no SIGBUS: {error}");
    assert_eq!(transfer.done(), 4096);
    let mut nothing = Transfer::new(SharedBytes::empty(), None);
    assert_eq!((nothing.step(to.as_fd()).unwrap(), nothing.is_done()), (0, true));
    let mut refused = Transfer::new(SharedBytes::from_slice(b"x"), None);
    let read_only = File::open("/dev/null").unwrap();
    assert_eq!(refused.finish(read_only.as_fd(), None).unwrap_err().raw_os_error(), Some(libc::EBADF));
}
