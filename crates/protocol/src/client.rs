//! A connection to a holder, and what attaching brings.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dmabuf::{FdInfo, FdKind};

use crate::Address;
use crate::message::{
    DeviceCopy, ImageInfo, MemoryKind, Refusal, Reply, Request, Role, SIGNATURE_MAX, Version,
};
use crate::wire::{DESCRIPTORS_MAX, MESSAGE_MAX, WireError};

/// How long an answer may take. The holder answers attaches at once; a load reports its progress in between.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Room for every reply to an attach: what is known of an image, or an error and its text. Attaching is measured in
/// microseconds, and a buffer for the longest message would be a good part of them.
const ATTACH_MAX: usize = 8 << 10;

/// Images in a listing; a holder has a descriptor for each.
const IMAGES_MAX: usize = 1 << 16;

/// How often an attach is tried when the holder ends the connection instead of answering.
const ATTEMPTS: u32 = 3;

/// Why a holder could not be reached or did not give what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HolderError {
    /// The text is no address.
    #[error("{text:?}: {why}")]
    Address {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Nobody listens at the socket, or nobody made it.
    #[error("no holder answers at {}: {source}; start one with `daxfs serve`", socket.display())]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        source: dmabuf::Error,
    },
    /// The system refuses to connect, to send or to receive, whoever listens: this process may not (EACCES), or has too
    /// many descriptors (EMFILE).
    #[error("the holder at {} cannot be asked: {source}", socket.display())]
    System {
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        source: dmabuf::Error,
    },
    /// The holder listens and does not answer: it is stopped, or has too much to do.
    #[error("the holder at {} does not answer within {} s", socket.display(), timeout.as_secs_f64())]
    Timeout {
        /// Its socket.
        socket: PathBuf,
        /// How long was waited.
        timeout: Duration,
    },
    /// The holder says of an image what its descriptor is not.
    #[error("the holder at {} is wrong about {name:?}: {what}", socket.display())]
    NotAsSaid {
        /// Its socket.
        socket: PathBuf,
        /// Which image.
        name: String,
        /// What the holder said of it, and what there is.
        what: String,
    },
    /// The holder refuses.
    #[error("the holder at {} refuses: {text}", socket.display())]
    Refused {
        /// Its socket.
        socket: PathBuf,
        /// Why, for programs.
        refusal: Refusal,
        /// Why, for people.
        text: String,
    },
    /// The holder ended the connection.
    #[error("the holder at {} closed the connection", socket.display())]
    Closed {
        /// Its socket.
        socket: PathBuf,
    },
    /// The holder speaks another protocol.
    #[error("the holder at {}: {source}", socket.display())]
    Protocol {
        /// Its socket.
        socket: PathBuf,
        /// What is wrong.
        source: WireError,
    },
    /// The image is in memory that the CPU cannot map.
    #[error("{name}: it lies in {} memory, which cannot be opened here", kind.name())]
    Memory {
        /// Which image.
        name: String,
        /// Where it lies.
        kind: MemoryKind,
    },
}

impl HolderError {
    /// True when the holder has no image of that name.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { refusal: Refusal::NoSuchName, .. })
    }

    /// True when the holder has other content under that name than was expected.
    pub fn is_other_content(&self) -> bool {
        matches!(self, Self::Refused { refusal: Refusal::OtherContent, .. })
    }

    /// True when the holder was replaced or died: the connection ended before the answer, or the socket is there and
    /// nobody listens at it any more, as after a kill.
    pub fn is_disconnect(&self) -> bool {
        match self {
            Self::Closed { .. } => true,
            Self::Unreachable { source, .. } => source.io_kind() == ErrorKind::ConnectionRefused,
            Self::System { source, .. } => {
                matches!(source.io_kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
            }
            _ => false,
        }
    }

    /// True when no holder answered: none is there, it is stopped or busy, or it ended meanwhile.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. }) || self.is_disconnect()
    }

    /// The errno, where the system refused.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Unreachable { source, .. } | Self::System { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

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
    /// Connects.
    ///
    /// # Errors
    /// [`HolderError::Unreachable`], [`HolderError::System`], [`HolderError::Timeout`].
    pub fn open(socket: &Path) -> Result<Self, HolderError> {
        let mut connection =
            Self { fd: None, socket: socket.to_owned(), buffer: Vec::new(), timeout: TIMEOUT };
        let fd = dmabuf::connect_seqpacket(socket, TIMEOUT).map_err(|source| connection.failed(source))?;
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
        if let Err(source) = dmabuf::send_fds(self.fd()?, &request.encode(), descriptors) {
            self.fd = None;
            return Err(self.failed(source));
        }
        match request {
            Request::Attach { .. } | Request::Current { .. } => self.receive_within(ATTACH_MAX),
            _ => self.receive(),
        }
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

    /// Bounds how long each further send and receive waits; 10 seconds otherwise.
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

    fn attach(
        &mut self,
        name: &str,
        expect: Option<[u8; 32]>,
    ) -> Result<(ImageInfo, Vec<OwnedFd>), HolderError> {
        match self.request(&Request::Attach { name: name.to_owned(), expect }, &[])? {
            (Reply::Attached(info), descriptors) if info.name == name => Ok((info, descriptors)),
            _ => Err(self.field("reply", "not the image that was asked for")),
        }
    }

    /// Generation and inode number of what the name means now; `None` when it means nothing.
    fn current(&mut self, name: &str) -> Result<Option<(u64, u64)>, HolderError> {
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

    fn field(&self, field: &'static str, what: &'static str) -> HolderError {
        self.protocol(WireError::Field { field, what })
    }
}

/// The text of a signature in memory that nobody can change, or `None` for anything else: it is as if there were none.
fn read_signature(fd: OwnedFd) -> Option<String> {
    let info = dmabuf::describe(fd.as_fd()).ok()?;
    if !info.kind.is_immutable() || info.len > SIGNATURE_MAX as u64 {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(info.len).ok()?];
    File::from(fd).read_exact_at(&mut bytes, 0).ok()?;
    String::from_utf8(bytes).ok()
}

/// What is known of an image that came from a holder.
#[derive(Debug, Clone)]
pub struct Attachment {
    address: Address,
    info: ImageInfo,
    /// Inode number of the image's memory; `None` when the system does not say.
    inode: Option<u64>,
    /// The signature that came with it, if one did.
    signature: Option<String>,
}

impl Attachment {
    /// Attaches to an image: one message each way. Returns the descriptor of the image's memory.
    ///
    /// A holder that is being replaced may end a connection before it answers. To attach twice does no harm, so that is
    /// tried up to three times.
    ///
    /// # Errors
    /// [`HolderError`].
    pub fn new(address: Address, expect: Option<[u8; 32]>) -> Result<(Self, OwnedFd), HolderError> {
        let attach = || Connection::open(&address.socket)?.attach(&address.name, expect);
        let mut attempts = 1;
        let (info, descriptors) = loop {
            match attach() {
                Err(error) if error.is_disconnect() && attempts < ATTEMPTS => attempts += 1,
                result => break result?,
            }
        };
        let (mut image, mut signature) = (None, None);
        for (role, fd) in info.roles.iter().zip(descriptors) {
            match role {
                Role::Image if image.is_none() => image = Some(fd),
                Role::Signature => signature = read_signature(fd),
                _ => {}
            }
        }
        match image {
            Some(fd) => {
                let file = File::from(fd);
                let inode = file.metadata().ok().map(|about| about.ino());
                Ok((Self { address, info, inode, signature }, file.into()))
            }
            None => Err(HolderError::Memory { name: info.name, kind: info.kind }),
        }
    }

    /// Compares what the holder said of the image with what its descriptor is. A kind of memory or a size that is not
    /// so would mislead whoever decides by it.
    ///
    /// # Errors
    /// [`HolderError::NotAsSaid`].
    pub fn check(&self, found: &FdInfo) -> Result<(), HolderError> {
        let differs = |what: String| {
            let (socket, name) = (self.address.socket.clone(), self.address.name.clone());
            Err(HolderError::NotAsSaid { socket, name, what })
        };
        if self.info.size != found.len {
            return differs(format!("it says {} bytes, but sent memory of {}", self.info.size, found.len));
        }
        let is_kind = match self.info.kind {
            MemoryKind::SealedMemfd => found.kind.is_immutable(),
            MemoryKind::SharedMemfd => matches!(found.kind, FdKind::Memfd { .. }),
            MemoryKind::DmaBuf => matches!(found.kind, FdKind::DmaBuf { .. }),
            MemoryKind::File => !matches!(found.kind, FdKind::Memfd { .. } | FdKind::DmaBuf { .. }),
            MemoryKind::CudaVmm | MemoryKind::DeviceDmaBuf => false,
        };
        if !is_kind {
            return differs(format!("it says {}, but sent {:?}", self.info.kind.name(), found.kind));
        }
        Ok(())
    }

    /// The signature that the holder has of the content, as text. Nobody may have checked it.
    pub fn signature(&self) -> Option<&str> {
        self.signature.as_deref()
    }

    /// Where it came from.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What the holder said of it at that time.
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// The copy of this image, or of what `placement` means ([`DeviceCopy::placement`]), that the holder has in the
    /// memory of the device with this UUID: its descriptor and its bytes. `None` when it has none, or the name means
    /// another image now.
    ///
    /// # Errors
    /// [`HolderError`].
    pub fn copy_on(
        &self,
        device: [u8; 16],
        placement: [u8; 32],
    ) -> Result<Option<(OwnedFd, u64)>, HolderError> {
        let mut connection = Connection::open(&self.address.socket)?;
        match connection.request(&Request::Copy { of: self.version(), device, placement }, &[]) {
            Ok((Reply::Copy { size }, mut descriptors)) => Ok(descriptors.pop().map(|fd| (fd, size))),
            Ok((Reply::Ok, _)) => Ok(None),
            Ok(_) => Err(connection.field("reply", "not a copy of an image")),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives the holder a copy of this image to keep, with the descriptor of its memory. It takes the place of one that
    /// the holder has on the same device with the same placement, and goes with the image.
    ///
    /// # Errors
    /// [`HolderError`]: whoever may not load images may not do this, and the name must still mean this image.
    pub fn keep(&self, fd: BorrowedFd<'_>, copy: DeviceCopy) -> Result<(), HolderError> {
        let mut connection = Connection::open(&self.address.socket)?;
        match connection.request(&Request::Keep { of: self.version(), copy }, &[fd])?.0 {
            Reply::Ok => Ok(()),
            _ => Err(connection.field("reply", "not that it is done")),
        }
    }

    fn version(&self) -> Version {
        let Address { name, .. } = &self.address;
        Version { name: name.clone(), generation: self.info.generation, inode: self.inode.unwrap_or(0) }
    }

    /// Asks the holder whether the name still means this generation, and this memory: the generations of a holder
    /// that was started anew say nothing about those of the one before.
    ///
    /// # Errors
    /// [`HolderError`], for example when the holder is gone: then nobody knows.
    pub fn is_current(&self) -> Result<bool, HolderError> {
        let current = Connection::open(&self.address.socket)?.current(&self.address.name)?;
        Ok(current.is_some_and(|(generation, inode)| {
            generation == self.info.generation && self.inode.is_none_or(|own| own == inode)
        }))
    }
}
