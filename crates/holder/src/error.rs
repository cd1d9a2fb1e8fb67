//! Why the holder cannot start or go on.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the holder cannot start, load an image, or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// Which call, on what.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Memory or a socket failed.
    #[error(transparent)]
    Memory(#[from] dmabuf::Error),
    /// What was given to load is not a valid image.
    #[error(transparent)]
    Image(#[from] daxfs::Error),
    /// Another holder answers at the socket.
    #[error("a holder (process {pid}) answers at {} already; replace it with --takeover", socket.display())]
    Running {
        /// The socket.
        socket: PathBuf,
        /// The other holder.
        pid: i32,
    },
    /// Something lies at the path of the socket, or of its lock, that is not this program's to remove.
    #[error("{}: {what} lies there, which a holder does not remove; name another path with --socket", socket.display())]
    Occupied {
        /// The path.
        socket: PathBuf,
        /// What lies there.
        what: String,
    },
    /// Another process keeps the lock that keeps two starting holders apart.
    #[error("{} is locked by process {pid}; end it, or name another path with --socket", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
        /// The process; 0 when the system does not say.
        pid: i32,
    },
    /// No holder answers, but one was to be taken over.
    #[error("takeover: {0}")]
    Takeover(#[source] daxfs_protocol::HolderError),
    /// A signal came while it waited for another holder to hand over.
    #[error("ended by a signal before the other holder had handed over; that one goes on")]
    Interrupted,
    /// A holder whose socket a supervisor made, or whose images it keeps, was to be taken over.
    #[error(
        "takeover: systemd listens at {} or keeps the images of its holder; replace that one with systemctl restart, \
         which loses nothing that systemd keeps (FileDescriptorStoreMax=)",
        socket.display()
    )]
    Supervised {
        /// The socket.
        socket: PathBuf,
    },
    /// A process that a supervisor passed a socket or images to was to take another holder over.
    #[error(
        "takeover: systemd passed its own socket or images to this process; start it without --takeover, and replace \
         it with systemctl restart"
    )]
    TakeoverOfPassed,
    /// The socket that was passed is of another kind.
    #[error("the socket of LISTEN_FDS does not listen for messages; its unit needs ListenSequentialPacket=")]
    Socket,
    /// A source could not be packed. Paths in the text begin with `.`, which stands for the source.
    #[error("{0}")]
    Packing(String),
    /// The helper could not pack a source with the rights of who asked.
    #[error("{text}")]
    Helper {
        /// What the system said to it; 0 when it was something else.
        errno: i32,
        /// Why, as for [`Error::Packing`].
        text: String,
    },
    /// A directory that this holder does not read for its client.
    #[error(
        "this holder reads no directories with rights that are not its own; pack it (daxfs-pack --into memfd) and load \
         the sealed memory, as daxfs load does"
    )]
    ClientPacks,
    /// A descriptor that gives no right to read.
    #[error("the descriptor was opened with O_PATH, which gives no right to read what it stands for")]
    PathOnly,
    /// Memory that is not kept as it is, but was not to be copied.
    #[error(
        "it would have to be copied: only memory that nobody can write is kept as it is (a memfd sealed against \
         writing, shrinking and growing), or with --shared memory that cannot shrink"
    )]
    WouldCopy,
    /// Memory that is neither kept nor can be copied.
    #[error(
        "memory that others can take away or that is not memory alone is not held; copy the image to a file first"
    )]
    NotCopied,
    /// A swap that would change who may attach.
    #[error("a swap keeps who may attach ({now}); change that with `daxfs access`")]
    OtherAccess {
        /// Who may.
        now: String,
    },
    /// Only what is signed is held here, and this has no valid signature.
    #[error(transparent)]
    NotSigned(daxfs::signature::SignatureError),
    /// Only what is signed is held here, and clients could change this afterwards.
    #[error(
        "a holder with --require-signed keeps images in sealed memory alone: what was signed would not be what clients get \
         of a dma-buf or with --shared"
    )]
    SignedNotSealed,
    /// A takeover would bring an image that is not signed.
    #[error(
        "takeover: the image {name:?} of the other holder: {source}; drop it there first. That holder goes on"
    )]
    TakesUnsigned {
        /// The image.
        name: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A load option that is not known or not possible.
    #[error("option {option:?}: {why}")]
    Option {
        /// As it came.
        option: String,
        /// What is wrong with it.
        why: String,
    },
    /// A limit would be exceeded.
    #[error("the image takes {need} bytes, but {have} are left: {what}")]
    Limit {
        /// Bytes needed.
        need: u64,
        /// Bytes left.
        have: u64,
        /// Which limit, with its numbers.
        what: String,
    },
    /// The supervisor would not keep the image.
    #[error(
        "the supervisor keeps at most {max} descriptors, and this needs {need}; raise FileDescriptorStoreMax="
    )]
    Store {
        /// Descriptors of all images, for a swap those of both.
        need: usize,
        /// Most that it keeps.
        max: usize,
    },
    /// The supervisor would drop the image: it keeps each open file only once.
    #[error(
        "the supervisor has this memory as the image {name:?} already, and keeps an open file only once: this one is \
         the same, or nothing tells that it is another; drop that image first"
    )]
    StoredOnce {
        /// The image that has it.
        name: String,
    },
    /// The load ended by a bug; standard error says where.
    #[error("the load failed by a bug of this program; its standard error says where")]
    Panicked,
    /// The client that asked for a load went away, or the holder was told to end.
    #[error("the load was given up: nobody waits for it any more")]
    Cancelled,
}

impl Error {
    pub(crate) fn system(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::System { what: what.into(), source: source.into() }
    }
}
