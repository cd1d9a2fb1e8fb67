//! Answers a real client with any messages, with any descriptors: it ends in typed errors, or has an image.

#![no_main]

mod records;

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use daxfs::Image;
use daxfs::holder::wire::MESSAGE_MAX;
use daxfs::holder::{Address, Connection};
use libfuzzer_sys::fuzz_target;

type Answers = VecDeque<(Vec<u8>, Vec<OwnedFd>)>;

/// What is answered next.
static ANSWERS: Mutex<Answers> = Mutex::new(VecDeque::new());

fn socket() -> &'static PathBuf {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    SOCKET.get_or_init(|| {
        let socket = records::folder().join("s");
        let listener = dmabuf::listen_seqpacket(&socket, 0o600, None).expect("a socket");
        std::thread::spawn(move || {
            let mut buffer = vec![0; MESSAGE_MAX];
            let mut open: Vec<OwnedFd> = Vec::new();
            loop {
                open.extend(dmabuf::accept_seqpacket(listener.as_fd()).expect("it accepts"));
                open.retain(|socket| match dmabuf::recv_fds(socket.as_fd(), &mut buffer, 4) {
                    Ok((0, _)) => false,
                    Ok(_) => match ANSWERS.lock().expect("a lock").pop_front() {
                        Some((message, fds)) => {
                            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                            dmabuf::send_fds(socket.as_fd(), &message, &fds).is_ok()
                        }
                        // Nothing more is said.
                        None => false,
                    },
                    Err(error) => error.io_kind() == std::io::ErrorKind::WouldBlock,
                });
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        socket
    })
}

fuzz_target!(|data: &[u8]| {
    let socket = socket();
    *ANSWERS.lock().expect("a lock") = records::records(data).into();
    let address = Address { socket: socket.clone(), name: "llama".to_owned() };
    if let Ok(image) = Image::open(address.to_string()) {
        let _ = image.is_current();
        let _ = image.region().attachment().map(|attachment| attachment.copy_on([1; 16].into(), [0; 32]));
        assert!(image.superblock().total_size <= image.region().len());
    }
    let _ = Connection::open(socket).and_then(|mut connection| connection.list());
});
