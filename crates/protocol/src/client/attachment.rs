//! What attaching to an image brings.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use dmabuf::{FdInfo, FdKind};

use super::connection::DEFAULT_TIMEOUT;
use super::{Connection, HolderError, Watch};
use crate::message::{DeviceCopy, ImageInfo, MemoryKind, Reply, Request, Role, SIGNATURE_MAX, Version};
use crate::{Address, ContentHash, DeviceUuid};

/// How often an attach is tried when the holder ends the connection instead of answering.
const ATTEMPTS: u32 = 3;

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
    /// How long an answer of the holder may take.
    timeout: Duration,
}

impl Attachment {
    /// Attaches to an image: one message each way. Returns the descriptor of the image's memory.
    ///
    /// A holder that is being replaced may end a connection before it answers. To attach twice does no harm, so that is
    /// tried up to three times. An answer may take [`DEFAULT_TIMEOUT`].
    ///
    /// # Errors
    /// [`HolderError`].
    pub fn new(address: Address, expect: Option<ContentHash>) -> Result<(Self, OwnedFd), HolderError> {
        Self::within(address, expect, DEFAULT_TIMEOUT)
    }

    /// As [`Attachment::new`], with a bound of its own for how long an answer may take, also to what is asked later
    /// ([`Attachment::is_current`]).
    ///
    /// # Errors
    /// [`HolderError`]; [`HolderError::Timeout`] when the holder does not answer in that time.
    pub fn within(
        address: Address,
        expect: Option<ContentHash>,
        timeout: Duration,
    ) -> Result<(Self, OwnedFd), HolderError> {
        let attach = || Connection::open_within(&address.socket, timeout)?.attach(&address.name, expect);
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
                Ok((Self { address, info, inode, signature, timeout }, file.into()))
            }
            None => Err(HolderError::Memory { name: info.name, kind: info.kind }),
        }
    }

    /// Compares what the holder said of the image with what its descriptor is. A kind of memory or a size that is not
    /// so would mislead those who decide by it.
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

    /// The signature that the holder has of the content, as text. It may be unchecked.
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
        device: DeviceUuid,
        placement: [u8; 32],
    ) -> Result<Option<(OwnedFd, u64)>, HolderError> {
        let mut connection = self.connect()?;
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
    /// [`HolderError`]: users who may not load images may not do this, and the name must still mean this image.
    pub fn keep(&self, fd: BorrowedFd<'_>, copy: DeviceCopy) -> Result<(), HolderError> {
        let mut connection = self.connect()?;
        match connection.request(&Request::Keep { of: self.version(), copy }, &[fd])?.0 {
            Reply::Ok => Ok(()),
            _ => Err(connection.field("reply", "not that it is done")),
        }
    }

    /// How long an answer of the holder may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Waits for the name to mean another image than this one, or none: instead of asking [`Attachment::is_current`]
    /// again and again.
    ///
    /// # Errors
    /// [`HolderError`]; a holder of an older release does not know the request, and refuses it.
    pub fn watch(&self) -> Result<Watch, HolderError> {
        Watch::new(self.connect()?, self.version())
    }

    fn connect(&self) -> Result<Connection, HolderError> {
        Connection::open_within(&self.address.socket, self.timeout)
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
        let current = self.connect()?.current(&self.address.name)?;
        Ok(current.is_some_and(|(generation, inode)| {
            generation == self.info.generation && self.inode.is_none_or(|own| own == inode)
        }))
    }
}
