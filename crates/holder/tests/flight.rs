//! Clients that do not read what they are sent, or say nothing: others are served beside them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use daxfs::Image;
use daxfs_protocol::message::{Reply, Request};
use daxfs_protocol::wire::{DESCRIPTORS_MAX, MESSAGE_MAX};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::{
    PATIENCE, Place, Process, Start, be_process, descriptors, hash_of, is_root_for, not_run, tensor,
    wait_for, write_whole,
};

const NOBODY: u32 = 65534;
/// Attaches on one connection.
const ATTACHES: usize = 32;

#[test]
fn process() {
    be_process();
}

/// A connection that has asked for as many attaches as it may, and reads none of them.
fn unread(place: &Place) -> OwnedFd {
    let socket = dmabuf::connect_seqpacket(&place.socket, PATIENCE).unwrap();
    let message = Request::Attach { name: "llama".into(), expect: None }.encode();
    for _ in 0..ATTACHES {
        dmabuf::send_fds(socket.as_fd(), &message, &[]).unwrap();
    }
    socket
}

/// A holder of a user whom the kernel bounds, with few descriptors: a client's user may have 32 in flight.
fn serve(place: &Place) -> Process {
    let user = nix::unistd::geteuid().is_root().then_some(NOBODY);
    let holder = place.serve(&Start { user, limit: Some(256), open_to_all: true, ..Start::default() });
    let memory = support::packed(&place.weights("w", 8, 1000));
    place.load("llama", false, &[], memory.as_fd()).unwrap();
    holder
}

fn attaches(place: &Place) -> u64 {
    place.list()[0].attaches
}

#[test]
fn replies_that_nobody_reads_wait_and_count_for_nothing() {
    if !is_root_for("other users") {
        return;
    }
    let place = Place::new();
    let _holder = serve(&place);
    let whole = Image::from_fd(support::packed(&place.dir.path().join("w"))).unwrap();
    place.program();
    let greedy: Vec<OwnedFd> = (0..8).map(|_| unread(&place)).collect();
    wait_for("what is in flight", || attaches(&place) >= 32);
    // Another user is served at once.
    let _client = place.client("llama", "other", false, Some(4321));
    assert_eq!(place.report("other"), hash_of(&whole));
    assert_eq!(attaches(&place), 32 + 1, "only what was sent is counted");
    // Whoever reads after all gets all that it asked for.
    std::thread::scope(|scope| {
        for socket in &greedy {
            scope.spawn(|| {
                let mut buffer = vec![0; MESSAGE_MAX];
                for _ in 0..ATTACHES {
                    let (len, fds) = dmabuf::recv_fds(socket.as_fd(), &mut buffer, DESCRIPTORS_MAX).unwrap();
                    let reply = Reply::decode(&buffer[..len], fds.len()).unwrap();
                    assert!(matches!(reply, Reply::Attached(_)), "{reply:?}");
                }
            });
        }
    });
    assert_eq!(attaches(&place), 8 * 32 + 1);
    assert_eq!(tensor(&place.open("llama")), vec![8; 1000]);
}

#[test]
fn who_never_reads_is_cut_off_when_others_of_its_user_wait() {
    let place = Place::new();
    let mut holder = serve(&place);
    let greedy: Vec<OwnedFd> = (0..8).map(|_| unread(&place)).collect();
    wait_for("what is in flight", || attaches(&place) >= 32);
    // It waits, within the time that a client takes, and for nothing of its own.
    assert_eq!(tensor(&place.open("llama")), vec![8; 1000]);
    assert!(holder.is_running());
    drop(greedy);
    wait_for("their descriptors to be closed", || descriptors(holder.0.id()) < 30);
    assert_eq!(tensor(&place.open("llama")), vec![8; 1000]);
}

/// Keeps more descriptors in flight than the kernel lets the holder add to, until it is told to end: run as the holder's
/// user by the test below.
#[test]
fn hoarder() {
    let Ok(report) = std::env::var("DAXFS_TEST_HOARDER") else { return };
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    for _ in 0..4 {
        dmabuf::send_fds(one.as_fd(), b"x", &[file.as_fd(); 200]).unwrap();
    }
    let report = std::path::PathBuf::from(report);
    write_whole(&report, "full");
    let go = report.with_extension("go");
    wait_for("the go of the hoarder", || go.exists());
}

#[test]
fn when_the_kernel_passes_no_more_descriptors_the_reply_waits() {
    if !is_root_for("other users") {
        return;
    }
    let place = Place::new();
    let _holder = serve(&place);
    let mut hoarder = place.program_as(NOBODY, "hoarder");
    let hoarder = hoarder.env("DAXFS_TEST_HOARDER", place.report_path("hoarder"));
    let _hoarder = Process(hoarder.spawn().unwrap());
    assert_eq!(place.report("hoarder"), "full");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| tensor(&place.open("llama")));
        let mut seen = 0;
        wait_for("a few looks", || {
            seen += 1;
            assert_eq!(attaches(&place), 0, "what was not sent is no attach");
            seen > 100
        });
        assert!(!waiting.is_finished());
        write_whole(&place.report_path("hoarder").with_extension("go"), "");
        assert_eq!(waiting.join().unwrap(), vec![8; 1000]);
    });
    assert_eq!(attaches(&place), 1);
}

#[test]
fn idle_connections_make_room() {
    const IDLE: usize = 1200;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < 2 * IDLE as u64 {
        not_run("too few descriptors");
        return;
    }
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(2 * IDLE as u64), hard).unwrap();
    let place = Place::new();
    let holder = place.serve(&Start { limit: Some(1024), ..Start::default() });
    place.load_path("llama", false, &place.weights("w", 8, 1000)).unwrap();
    let idle: Vec<OwnedFd> =
        (0..IDLE).map(|_| dmabuf::connect_seqpacket(&place.socket, PATIENCE).unwrap()).collect();
    // Within the time that each of them takes for an answer.
    for _ in 0..20 {
        assert_eq!(tensor(&place.open("llama")), vec![8; 1000]);
    }
    assert!(descriptors(holder.0.id()) < 1000, "some are left for loads");
    // The oldest went, the newest are there.
    let mut byte = [0; 8];
    dmabuf::set_timeout(&idle[0], Duration::from_millis(100)).unwrap();
    assert_eq!(dmabuf::recv_fds(idle[0].as_fd(), &mut byte, 0).unwrap().0, 0, "closed");
    dmabuf::set_timeout(&idle[IDLE - 1], Duration::from_millis(100)).unwrap();
    assert!(dmabuf::recv_fds(idle[IDLE - 1].as_fd(), &mut byte, 0).is_err(), "nothing to read, and open");
}
