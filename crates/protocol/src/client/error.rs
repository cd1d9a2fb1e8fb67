//! Why a holder could not be reached or did not give what was asked for.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use crate::message::{MemoryKind, Refusal};
use crate::wire::WireError;

/// Why a holder could not be reached or did not give what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HolderError {
    /// The text is not an address, or not a name.
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
    /// The system refuses to connect, to send or to receive, whatever listens: this process may not (EACCES), or has too
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
    /// The caller does not wait for the reply any more, and has ended the connection.
    #[error("nobody waits for the holder at {} any more: the request was given up", socket.display())]
    GivenUp {
        /// Its socket.
        socket: PathBuf,
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

    /// True when a holder is there and did not answer in the time that it had; see [`Connection::open_within`].
    ///
    /// [`Connection::open_within`]: crate::Connection::open_within
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
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
