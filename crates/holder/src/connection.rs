//! One client's connection: a request in, its replies out, nothing more kept for it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use daxfs_protocol::message::{Reply, Version};
use daxfs_protocol::wire::DESCRIPTORS_MAX;
use dmabuf::Peer;
use nix::sys::epoll::EpollFlags;

use crate::inflight::InFlight;

/// A reply that waits for room in the socket, with the descriptors that go with it.
#[derive(Debug)]
struct Outgoing {
    message: Vec<u8>,
    fds: Arc<[OwnedFd]>,
    attach: Option<Attached>,
}

/// What an attach brings; it counts when it was sent.
#[derive(Debug)]
pub struct Attached {
    /// Name of the image.
    pub name: String,
    /// Its generation.
    pub generation: u64,
    /// Whether it is a copy on a device.
    pub on_device: bool,
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
    /// A message with descriptors, from a client of which none are taken.
    Dropped,
}

/// A connection. A new request is read only when all replies to the last one are gone, so a client that does not
/// read cannot make the holder keep anything for it but those.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// Who it is, as of its connect.
    pub peer: Peer,
    /// Whether it may send descriptors. Of others the kernel drops them: closing a descriptor, of a file system of their
    /// own, could hold up this process.
    takes_fds: bool,
    outgoing: VecDeque<Outgoing>,
    /// When it last did something.
    pub active: Instant,
    /// Set to end the load that it waits for.
    pub load: Option<Arc<AtomicBool>>,
    /// The image of which it waits to hear that its name means another one.
    pub watch: Option<Version>,
    /// Attaches that were answered, or are about to be.
    pub attaches: u32,
    /// Attaches that were sent since somebody looked.
    pub sent: Vec<Attached>,
    /// Descriptors that were sent and maybe not read, and since when there are any.
    unread: (usize, Instant),
    /// Replies wait until descriptors that are in flight were read, here or elsewhere.
    pub parked: bool,
    /// No more is read; it ends when everything was sent.
    pub ending: bool,
    /// What the loop watches it for.
    pub interest: EpollFlags,
}

impl Connection {
    /// Over an accepted socket that is watched for `interest`; `takes_fds` says whether the client may send descriptors.
    pub fn new(socket: OwnedFd, peer: Peer, takes_fds: bool, interest: EpollFlags) -> Self {
        Self {
            socket,
            peer,
            takes_fds,
            outgoing: VecDeque::new(),
            active: Instant::now(),
            load: None,
            watch: None,
            attaches: 0,
            sent: Vec::new(),
            unread: (0, Instant::now()),
            parked: false,
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

    /// True when it waits for nothing: it may be closed after a while.
    pub fn is_idle(&self) -> bool {
        !self.is_loading() && self.watch.is_none()
    }

    /// True while it waits for a load. Others may be closed to make room: a watch is as easily begun anew as an attach.
    pub fn is_loading(&self) -> bool {
        self.load.is_some()
    }

    /// Receives one message if there is one.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Received {
        let received = if self.takes_fds {
            dmabuf::recv_fds(self.socket.as_fd(), buffer, DESCRIPTORS_MAX)
        } else {
            match dmabuf::recv_bytes(self.socket.as_fd(), buffer) {
                Ok((_, true)) => return Received::Dropped,
                received => received.map(|(len, _)| (len, Vec::new())),
            }
        };
        match received {
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

    /// Queues a reply.
    pub fn reply(&mut self, reply: &Reply, fds: Arc<[OwnedFd]>) {
        self.outgoing.push_back(Outgoing { message: reply.encode(), fds, attach: None });
    }

    /// Queues the reply to an attach.
    pub fn reply_attach(&mut self, reply: &Reply, fds: Arc<[OwnedFd]>, attach: Attached) {
        self.outgoing.push_back(Outgoing { message: reply.encode(), fds, attach: Some(attach) });
    }

    /// Sends progress if there is room; a client that does not read misses it.
    pub fn progress(&mut self, done: u64, total: u64) {
        if self.outgoing.is_empty() {
            self.reply(&Reply::Progress { done, total }, Arc::new([]));
        }
    }

    /// Sends what waits, as far as there is room. Returns false when the connection is broken.
    pub fn flush(&mut self, in_flight: &mut InFlight) -> bool {
        let uid = self.peer.uid;
        self.parked = false;
        while let Some(next) = self.outgoing.front() {
            let count = next.fds.len();
            if count > 0 && !in_flight.has_room(uid, count) {
                self.look_for_read(in_flight);
                if !in_flight.has_room(uid, count) {
                    self.parked = true;
                    return true;
                }
            }
            let Some(next) = self.outgoing.front() else { return true };
            let fds: Vec<_> = next.fds.iter().map(AsFd::as_fd).collect();
            match dmabuf::send_fds(self.socket.as_fd(), &next.message, &fds) {
                Ok(()) => {
                    self.active = Instant::now();
                    if count > 0 {
                        let since = if self.unread.0 == 0 { self.active } else { self.unread.1 };
                        self.unread = (self.unread.0 + count, since);
                        in_flight.add(uid, count);
                    }
                    self.sent.extend(self.outgoing.pop_front().and_then(|sent| sent.attach));
                }
                Err(error) if would_block(&error) => return true,
                // So many are in flight, of whichever process of this user, that the kernel passes none for now.
                Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                    self.parked = true;
                    return true;
                }
                Err(_) => return false,
            }
        }
        true
    }

    /// Takes off what the client has read meanwhile.
    pub fn look_for_read(&mut self, in_flight: &mut InFlight) {
        if self.unread.0 > 0 && dmabuf::is_all_read(self.socket.as_fd()).unwrap_or(false) {
            self.give_up_unread(in_flight);
        }
    }

    /// Takes off all that is in flight: it was read, or goes with the connection.
    pub fn give_up_unread(&mut self, in_flight: &mut InFlight) {
        in_flight.release(self.peer.uid, std::mem::take(&mut self.unread.0));
    }

    /// How long descriptors have been waiting to be read, if there are any.
    pub fn unread_for(&self) -> Option<Duration> {
        (self.unread.0 > 0).then(|| self.unread.1.elapsed())
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
