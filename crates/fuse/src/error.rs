//! Why an image is not mounted.

use std::io;
use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image is not mounted, or a mount ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory cannot be mounted at.
    #[error("{}: {source}", at.display())]
    Directory {
        /// The directory.
        at: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Something that is no directory.
    #[error("{} is no directory to mount at", at.display())]
    NotADirectory {
        /// What was given.
        at: PathBuf,
    },
    /// A mount of another file system is there whose server has ended.
    #[error(
        "{}: a {kind} mount is there whose server has ended; take it away with `umount {}`, or `fusermount3 -u`",
        at.display(), at.display()
    )]
    Abandoned {
        /// The directory.
        at: PathBuf,
        /// Type of the file system.
        kind: String,
    },
    /// The kernel or fusermount3 did not mount it.
    #[error("mount at {}: {source}{advice}", at.display())]
    Refused {
        /// The directory.
        at: PathBuf,
        /// What they said.
        #[source]
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// The mount is there, and does not answer.
    #[error("mounted at {}, but it does not answer: {source}", at.display())]
    Silent {
        /// The directory.
        at: PathBuf,
        /// What the system says of it.
        #[source]
        source: io::Error,
    },
    /// An option that is none.
    #[error("option {option:?}: {why}")]
    Option {
        /// As given.
        option: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The image cannot be shown.
    #[error(transparent)]
    Image(#[from] daxfs::Error),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// Which.
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// A system call that failed.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(nix::errno::Errno) -> Self {
        move |errno| Self::System { what, source: errno.into() }
    }
}
