//! Clients that break every rule, beside good ones that must not notice.
//!
//! `DAXFS_ABUSE_SECONDS` (5) says for how long.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use daxfs::Image;
use daxfs_protocol::message::Request;
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};
use support::{Place, Start, be_process, descriptors, tensor, wait_for};

#[test]
fn process() {
    be_process();
}

/// xorshift64*: the same abuse in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

fn attach() -> Request {
    Request::Attach { name: "llama".into(), expect: None }
}

/// One connection's worth of abuse. Whatever happens to the connection is right; only the holder must live on.
fn abuse(place: &Place, random: &mut Random, kept: &mut Vec<OwnedFd>) {
    let Ok(socket) = dmabuf::connect_seqpacket(&place.socket, Duration::from_secs(1)) else { return };
    let _ = dmabuf::set_timeout(&socket, Duration::from_millis(1));
    let fd = socket.as_fd();
    let file = std::fs::File::open("/dev/null").unwrap();
    let send_with = |message: &[u8], count: usize| {
        let fds = vec![file.as_fd(); count];
        let _ = dmabuf::send_fds(fd, message, &fds);
    };
    let load = Request::Load { name: "x".into(), replace: true, options: vec![] }.encode();
    match random.below(12) {
        0 => {
            let len = 1 + random.below(2000);
            send_with(&random.bytes(len), 0);
        }
        1 => {
            let message = attach().encode();
            send_with(&message[..1 + random.below(message.len() - 1)], 0);
        }
        2 => {
            let mut message = load;
            let at = random.below(message.len());
            message[at] ^= 1 << random.below(8);
            send_with(&message, random.below(3));
        }
        3 => send_with(&load, 0),
        4 => send_with(&load, 2 + random.below(250)),
        5 => send_with(&attach().encode(), 1 + random.below(200)),
        6 => {
            // SOCK_SEQPACKET has messages without bytes.
            let _ = send(std::os::fd::AsRawFd::as_raw_fd(&socket), &[], MsgFlags::MSG_NOSIGNAL);
        }
        7 => kept.push(socket),
        8 | 9 => {
            // Asks thousands of times and never reads.
            let request =
                if random.below(2) == 0 { attach() } else { Request::List { after: String::new() } };
            let message = request.encode();
            for _ in 0..5000 {
                if dmabuf::send_fds(fd, &message, &[]).is_err() {
                    break;
                }
            }
            if random.below(2) == 0 {
                let _ = shutdown(std::os::fd::AsRawFd::as_raw_fd(&socket), Shutdown::Write);
            }
            kept.push(socket);
        }
        10 => {
            send_with(&attach().encode(), 0);
            let _ = shutdown(std::os::fd::AsRawFd::as_raw_fd(&socket), Shutdown::Write);
            kept.push(socket);
        }
        _ => {
            // A load that its client leaves alone.
            send_with(&load, 1);
        }
    }
    if kept.len() > 100 {
        kept.clear();
    }
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10
}

/// How often the threads of a process went to sleep of their own will. Of an idle holder only the loop ever wakes up.
fn sleeps(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let counts = tasks.filter_map(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    });
    counts.sum()
}

#[test]
fn good_clients_attach_beside_bad_ones() {
    let seconds = std::env::var("DAXFS_ABUSE_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(5));
    let place = Place::new();
    let mut holder = place.serve(&Start::default());
    place.load_path("llama", false, &place.weights("w", 8, 1000)).unwrap();
    let pid = holder.0.id();
    for _ in 0..50 {
        drop(place.open("llama"));
    }
    wait_for("connections to be closed", || descriptors(pid) < 30);
    let (open, anonymous) = (descriptors(pid), resident(pid));
    let attached = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for seed in 1..=3 {
            let place = &place;
            scope.spawn(move || {
                let (mut random, mut kept) = (Random(seed), Vec::new());
                while Instant::now() < end {
                    abuse(place, &mut random, &mut kept);
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                while Instant::now() < end {
                    let image = Image::open(place.address("llama")).unwrap();
                    assert_eq!(tensor(&image), vec![8; 1000]);
                    attached.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{} good attaches beside the abuse", attached.load(Ordering::Relaxed));
    assert!(attached.load(Ordering::Relaxed) > 10);
    assert!(holder.is_running());
    wait_for("its descriptors to be closed", || descriptors(pid) <= open);
    let grown = resident(pid).saturating_sub(anonymous);
    assert!(grown < 16 << 20, "{grown} bytes more than before");
    assert_eq!(place.list().len(), 1);
}

#[test]
fn a_client_that_hangs_up_half_and_does_not_read_lets_the_loop_sleep() {
    let place = Place::new();
    let holder = place.serve(&Start::default());
    place.load_path("llama", false, &place.weights("w", 8, 1000)).unwrap();
    let socket = dmabuf::connect_seqpacket(&place.socket, Duration::from_millis(100)).unwrap();
    let message = Request::List { after: String::new() }.encode();
    while dmabuf::send_fds(socket.as_fd(), &message, &[]).is_ok() {}
    shutdown(std::os::fd::AsRawFd::as_raw_fd(&socket), Shutdown::Write).unwrap();
    drop(place.open("llama"));
    let before = sleeps(holder.0.id());
    wait_for("the loop to go to sleep", || sleeps(holder.0.id()) >= before + 10);
    drop(socket);
}

#[test]
fn attaches_on_one_connection_are_bounded() {
    let place = Place::new();
    let _holder = place.serve(&Start::default());
    place.load_path("llama", false, &place.weights("w", 8, 1000)).unwrap();
    let mut connection = place.connect();
    let count = (0..100).take_while(|_| connection.request(&attach(), &[]).is_ok()).count();
    assert_eq!(count, 32);
    assert!(place.connect().request(&attach(), &[]).is_ok());
}
