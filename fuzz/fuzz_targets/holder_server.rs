//! Sends any messages, with any descriptors, to a real holder in this process; it must answer others afterwards.

#![no_main]

mod records;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use daxfs::holder::Connection;
use daxfs::holder::message::{Reply, Request};
use daxfs::holder::wire::{DESCRIPTORS_MAX, MESSAGE_MAX};
use daxfs_holder::{Config, Server};
use libfuzzer_sys::fuzz_target;

fn socket() -> &'static PathBuf {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    SOCKET.get_or_init(|| {
        let socket = records::folder().join("s");
        let config = Config { max_bytes: Some(16 << 20), ..Config::new(&socket) };
        let server = Server::start(config, false).expect("a holder");
        std::thread::spawn(|| server.run().expect("it serves"));
        socket
    })
}

fuzz_target!(|data: &[u8]| {
    let socket = socket();
    let records = records::records(data);
    let client = dmabuf::connect_seqpacket(socket, Duration::from_secs(5)).expect("it accepts");
    let mut buffer = vec![0; MESSAGE_MAX];
    for (message, fds) in records.iter().take(16) {
        // What ends a holder ends this one.
        if matches!(Request::decode(message, fds.len()), Ok(Request::Stop | Request::TakeoverDone)) {
            continue;
        }
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if dmabuf::send_fds(client.as_fd(), message, &fds).is_err() {
            break;
        }
        // Some read what they are sent, some do not.
        if message.len() % 2 == 0
            && let Ok((len @ 1.., fds)) = dmabuf::recv_fds(client.as_fd(), &mut buffer, DESCRIPTORS_MAX)
        {
            Reply::decode(&buffer[..len], fds.len()).expect("what a holder says is understood");
        }
    }
    drop(client);
    let mut other = Connection::open(socket).expect("it listens");
    let health = other.request(&Request::Health, &[]).expect("it answers").0;
    let Reply::Health { images, .. } = health else { panic!("{health:?}") };
    // Room for the next ones.
    if images > 100 {
        for info in other.list().expect("a listing") {
            let _ = other.request(&Request::Drop { name: info.name }, &[]);
        }
    }
});
