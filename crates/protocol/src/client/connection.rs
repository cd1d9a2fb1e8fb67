//! A connection to a holder: requests, replies and their descriptors.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HolderError;
use crate::ContentHash;
use crate::message::{ImageInfo, Reply, Request};
use crate::wire::{DESCRIPTORS_MAX, MESSAGE_MAX, WireError};

/// How long each send and receive waits unless it is told otherwise. The holder answers attaches at once; a load reports
/// its progress in between.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Room for every reply to an attach: what is known of an image, or an error and its text. Attaching is measured in
/// microseconds, and a buffer for the longest message would be a good part of them.
const ATTACH_MAX: usize = 8 << 10;

/// Images in a listing; a holder has a descriptor for each.
const IMAGES_MAX: usize = 1 << 16;

/// A connection to a holder's socket.
#[derive(Debug)]
pub struct Connection {
    /// `None` once a reply was missed or was none: what comes next would be taken for the reply to something else.
    fd: Option<OwnedFd>,
    socket: PathBuf,
    buffer: Vec<u8>,
    timeout: Duration,
}

impl Connection {
    /// Connects. Each send and receive waits for [`DEFAULT_TIMEOUT`] at most.
    ///
    /// # Errors
    /// As for [`Connection::open_within`].
    pub fn open(socket: &Path) -> Result<Self, HolderError> {
        Self::open_within(socket, DEFAULT_TIMEOUT)
    }

    /// Connects. Connecting, and each send and receive, waits for `timeout` at most: a holder that is stopped, or has
    /// too much to do, keeps nobody longer.
    ///
    /// # Errors
    /// [`HolderError::Unreachable`], [`HolderError::System`], [`HolderError::Timeout`].
    pub fn open_within(socket: &Path, timeout: Duration) -> Result<Self, HolderError> {
        let mut connection = Self { fd: None, socket: socket.to_owned(), buffer: Vec::new(), timeout };
        let fd = dmabuf::connect_seqpacket(socket, timeout).map_err(|source| connection.failed(source))?;
        connection.fd = Some(fd);
        Ok(connection)
    }

    /// What a failed system call means.
    fn failed(&self, source: dmabuf::Error) -> HolderError {
        let socket = self.socket.clone();
        match source.io_kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => HolderError::Unreachable { socket, source },
            ErrorKind::WouldBlock => HolderError::Timeout { socket, timeout: self.timeout },
            _ => HolderError::System { socket, source },
        }
    }

    fn fd(&self) -> Result<BorrowedFd<'_>, HolderError> {
        self.fd.as_ref().map(AsFd::as_fd).ok_or_else(|| HolderError::Closed { socket: self.socket.clone() })
    }

    /// Sends a request and waits for its first reply.
    ///
    /// # Errors
    /// [`HolderError`]; a refusal is one.
    pub fn request(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), HolderError> {
        self.send(request, descriptors)?;
        match request {
            Request::Attach { .. } | Request::Current { .. } => self.receive_within(ATTACH_MAX),
            _ => self.receive(),
        }
    }

    /// Sends a request, whose replies [`Connection::receive`] brings.
    pub(super) fn send(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), HolderError> {
        if let Err(source) = dmabuf::send_fds(self.fd()?, &request.encode(), descriptors) {
            self.fd = None;
            return Err(self.failed(source));
        }
        Ok(())
    }

    /// Whether a reply, or the end of the connection, is there within so much time.
    pub(super) fn is_readable(&self, patience: Option<Duration>) -> Result<bool, HolderError> {
        match dmabuf::wait_readable(self.fd()?, patience) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::TimedOut => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(false),
            Err(source) => {
                let subject = self.socket.display().to_string();
                Err(self.failed(dmabuf::Error::Os { op: "poll", subject, source }))
            }
        }
    }

    /// Ends the connection: nobody waits for the reply.
    pub(super) fn give_up(&mut self) -> HolderError {
        self.fd = None;
        HolderError::GivenUp { socket: self.socket.clone() }
    }

    /// Ends the connection, whose reply did not come in time.
    pub(super) fn timed_out(&mut self) -> HolderError {
        self.fd = None;
        HolderError::Timeout { socket: self.socket.clone(), timeout: self.timeout }
    }

    /// Waits for the next reply: loads and takeovers have several.
    ///
    /// # Errors
    /// As for [`Connection::request`].
    pub fn receive(&mut self) -> Result<(Reply, Vec<OwnedFd>), HolderError> {
        self.receive_within(MESSAGE_MAX)
    }

    fn receive_within(&mut self, bytes: usize) -> Result<(Reply, Vec<OwnedFd>), HolderError> {
        let Some(fd) = self.fd.take() else {
            return Err(HolderError::Closed { socket: self.socket.clone() });
        };
        self.buffer.resize(bytes, 0);
        let received = dmabuf::recv_fds(fd.as_fd(), &mut self.buffer, DESCRIPTORS_MAX);
        let (len, descriptors) = received.map_err(|source| self.failed(source))?;
        let message = self.buffer.get(..len).unwrap_or_default();
        if message.is_empty() {
            return Err(HolderError::Closed { socket: self.socket.clone() });
        }
        let reply = Reply::decode(message, descriptors.len()).map_err(|source| self.protocol(source))?;
        // Only who keeps to the protocol is asked again.
        self.fd = Some(fd);
        match reply {
            Reply::Error { refusal, text } => {
                Err(HolderError::Refused { socket: self.socket.clone(), refusal, text })
            }
            reply => Ok((reply, descriptors)),
        }
    }

    /// Bounds how long each further send and receive waits.
    ///
    /// # Errors
    /// [`HolderError::System`].
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), HolderError> {
        self.timeout = timeout;
        match &self.fd {
            Some(fd) => dmabuf::set_timeout(fd, timeout).map_err(|source| self.failed(source)),
            None => Ok(()),
        }
    }

    /// The descriptor, until the connection has ended.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// How long each send and receive waits.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// All images, in order of their names.
    ///
    /// # Errors
    /// As for [`Connection::request`].
    pub fn list(&mut self) -> Result<Vec<ImageInfo>, HolderError> {
        let mut all: Vec<ImageInfo> = Vec::new();
        loop {
            let after = all.last().map_or_else(String::new, |info| info.name.clone());
            match self.request(&Request::List { after: after.clone() }, &[])?.0 {
                Reply::Page { images, more } => {
                    // Names must advance, or a confused holder could keep this loop busy.
                    let advances = images.first().is_none_or(|info| info.name > after)
                        && images.windows(2).all(|pair| matches!(pair, [a, b] if a.name < b.name));
                    let more = more && !images.is_empty();
                    all.extend(images);
                    if !advances {
                        return Err(self.field("images", "not in order of their names"));
                    }
                    if all.len() > IMAGES_MAX {
                        return Err(self.field("images", "more than any holder has descriptors for"));
                    }
                    if !more {
                        return Ok(all);
                    }
                }
                _ => return Err(self.field("reply", "not a page of images")),
            }
        }
    }

    pub(super) fn attach(
        &mut self,
        name: &str,
        expect: Option<ContentHash>,
    ) -> Result<(ImageInfo, Vec<OwnedFd>), HolderError> {
        match self.request(&Request::Attach { name: name.to_owned(), expect }, &[])? {
            (Reply::Attached(info), descriptors) if info.name == name => Ok((info, descriptors)),
            _ => Err(self.field("reply", "not the image that was asked for")),
        }
    }

    /// Generation and inode number of what the name means now; `None` when it means nothing.
    pub(super) fn current(&mut self, name: &str) -> Result<Option<(u64, u64)>, HolderError> {
        match self.request(&Request::Current { name: name.to_owned() }, &[]) {
            Ok((Reply::Current { generation, inode }, _)) => Ok(Some((generation, inode))),
            Ok(_) => Err(self.field("reply", "not a generation")),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The error for a reply that is of another kind than the request asks for.
    pub fn unexpected(&self, what: &'static str) -> HolderError {
        self.field("reply", what)
    }

    fn protocol(&self, source: WireError) -> HolderError {
        HolderError::Protocol { socket: self.socket.clone(), source }
    }

    pub(super) fn field(&self, field: &'static str, what: &'static str) -> HolderError {
        self.protocol(WireError::Field { field, what })
    }
}
