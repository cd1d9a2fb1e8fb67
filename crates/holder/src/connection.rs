//! One client's connection: a request in, its replies out, nothing more kept for it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use daxfs::holder::message::Reply;
use daxfs::holder::wire::DESCRIPTORS_MAX;
use dmabuf::Peer;
use nix::sys::epoll::EpollFlags;

/// A reply that waits for room in the socket, with the descriptors that go with it.
#[derive(Debug)]
struct Outgoing {
    message: Vec<u8>,
    fds: Arc<[OwnedFd]>,
}

/// What came from a client.
#[derive(Debug)]
pub enum Received {
    /// Nothing now.
    Nothing,
    /// It closed, or broke the rules of the socket.
    Closed,
    /// A message of this many bytes of the buffer, and its descriptors.
    Message(usize, Vec<OwnedFd>),
}

/// A connection. A new request is read only when all replies to the last one are gone, so a client that does not
/// read cannot make the holder keep anything for it but those.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// Who it is, as of its connect.
    pub peer: Peer,
    outgoing: VecDeque<Outgoing>,
    /// When it last did something.
    pub active: Instant,
    /// Set to end the load that it waits for.
    pub load: Option<Arc<AtomicBool>>,
    /// Attaches that were answered.
    pub attaches: u32,
    /// No more is read; it ends when everything was sent.
    pub ending: bool,
    /// What the loop watches it for.
    pub interest: EpollFlags,
}

impl Connection {
    /// Over an accepted socket that is watched for `interest`.
    pub fn new(socket: OwnedFd, peer: Peer, interest: EpollFlags) -> Self {
        Self {
            socket,
            peer,
            outgoing: VecDeque::new(),
            active: Instant::now(),
            load: None,
            attaches: 0,
            ending: false,
            interest,
        }
    }

    /// The socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// True when replies wait for room.
    pub fn is_blocked(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// True when it may be closed to make room for another: it waits for nothing.
    pub fn is_idle(&self) -> bool {
        self.load.is_none()
    }

    /// Receives one message if there is one.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Received {
        match dmabuf::recv_fds(self.socket.as_fd(), buffer, DESCRIPTORS_MAX) {
            Ok((0, _)) => Received::Closed,
            Ok((len, fds)) => {
                self.active = Instant::now();
                Received::Message(len, fds)
            }
            Err(error) if would_block(&error) => Received::Nothing,
            Err(error) => {
                tracing::info!(peer.pid = self.peer.pid, peer.uid = self.peer.uid, %error, "message refused");
                Received::Closed
            }
        }
    }

    /// Sends a reply, or queues it until there is room.
    pub fn reply(&mut self, reply: &Reply, fds: Arc<[OwnedFd]>) {
        self.outgoing.push_back(Outgoing { message: reply.encode(), fds });
    }

    /// Sends progress if there is room; a client that does not read misses it.
    pub fn progress(&mut self, done: u64, total: u64) {
        if self.outgoing.is_empty() {
            self.reply(&Reply::Progress { done, total }, Arc::new([]));
        }
    }

    /// Sends what waits. Returns false when the connection is broken.
    pub fn flush(&mut self) -> bool {
        while let Some(next) = self.outgoing.front() {
            let fds: Vec<_> = next.fds.iter().map(AsFd::as_fd).collect();
            match dmabuf::send_fds(self.socket.as_fd(), &next.message, &fds) {
                Ok(()) => {
                    self.active = Instant::now();
                    self.outgoing.pop_front();
                }
                Err(error) if would_block(&error) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(cancel) = self.load.take() {
            cancel.store(true, Ordering::Relaxed);
        }
    }
}

fn would_block(error: &dmabuf::Error) -> bool {
    error.io_kind() == std::io::ErrorKind::WouldBlock
}
