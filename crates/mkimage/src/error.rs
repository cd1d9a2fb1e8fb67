//! The error of this crate: one enum, each message with the place, what was found and what was expected.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image could not be planned, written or verified. No image is left behind by any of them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// [`Progress::cancelled`](crate::Progress::cancelled) said so.
    #[error("cancelled")]
    Cancelled,
    /// A system call failed.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// What was being done.
        op: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Nothing to pack.
    #[error("no input was named")]
    NoInput,
    /// A FIFO, socket or device node in the source. The format has no room for them.
    #[error("{}: a {kind} cannot be packed (--skip-special leaves such files out)", path.display())]
    Special {
        /// Where it lies.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Two inputs would get the same name in the root of the image.
    #[error("{} and {} would both be named {:?} in the image", first.display(), second.display(), name)]
    DuplicateName {
        /// The name.
        name: PathBuf,
        /// The input that has it.
        first: PathBuf,
        /// The other one.
        second: PathBuf,
    },
    /// A name or symbolic link that the format cannot hold.
    #[error("{}: {why}", path.display())]
    Name {
        /// The name.
        path: PathBuf,
        /// Which rule it breaks.
        why: String,
    },
    /// A symbolic link that cannot be treated as the settings say.
    #[error("{}: {why}", path.display())]
    Link {
        /// Where it lies.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A symbolic link would have to be followed out of the tree, and [`Packer::confined`](crate::Packer::confined) forbids
    /// that.
    #[error("{}: {why}", path.display())]
    Confined {
        /// Where it lies.
        path: PathBuf,
        /// Where it leads.
        why: String,
    },
    /// The source was changed while it was packed.
    #[error("{}: changed while it was packed: {what}", path.display())]
    Changed {
        /// The file or directory.
        path: PathBuf,
        /// What is different.
        what: String,
    },
    /// More of something than the format's 32-bit counters hold.
    #[error("{got} {what}: an image holds at most {bound}")]
    TooMany {
        /// What was counted.
        what: &'static str,
        /// How many there are.
        got: u64,
        /// How many fit.
        bound: u64,
    },
    /// A position in the image passed 2^63 - 1.
    #[error("{what}: the image would be larger than 2^63 - 1 bytes")]
    Overflow {
        /// What was being placed.
        what: &'static str,
    },
    /// A setting out of its range, or two settings that exclude each other.
    #[error("{option}: {why}")]
    Setting {
        /// The setting, by the name of its command-line option.
        option: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The output cannot be written where the caller wants it.
    #[error("{}: {why}", path.display())]
    Output {
        /// The output.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The device or region already holds an image, or one whose replacement was broken off.
    #[error("{}: holds a DAXFS image already, or held one (--replace puts this one in its place)", path.display())]
    HoldsImage {
        /// The device.
        path: PathBuf,
    },
    /// The device or region is smaller than the image.
    #[error("{}: {have} bytes, the image needs {need}", path.display())]
    TooSmall {
        /// The device.
        path: PathBuf,
        /// Its length.
        have: u64,
        /// The image's.
        need: u64,
    },
    /// A file is no secret key, or its password is another one.
    #[error("{} {why}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The image could not be signed.
    #[error("sign {}: {why}", path.display())]
    Sign {
        /// The image.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A container image or an archive is damaged, or not taken.
    #[error(transparent)]
    Archive(daxfs_oci::Error),
    /// A container image, or a tree of files, cannot be fetched.
    #[error(transparent)]
    Fetch(daxfs::Error),
    /// Shared memory could not be made, mapped or described.
    #[error(transparent)]
    Memory(#[from] dmabuf::Error),
    /// What was named to hold the image is no memory, or cannot be opened.
    #[error(transparent)]
    Target(daxfs::Error),
    /// The reader refuses the finished image.
    #[error("verify: {0}")]
    Reader(#[from] daxfs::Error),
    /// The finished image differs from its source.
    #[error("verify: {}: {what}", path.display())]
    Mismatch {
        /// Path in the image.
        path: PathBuf,
        /// What differs.
        what: String,
    },
}

impl From<daxfs_oci::Error> for Error {
    fn from(error: daxfs_oci::Error) -> Error {
        match error {
            daxfs_oci::Error::Cancelled => Error::Cancelled,
            error => Error::Archive(error),
        }
    }
}

impl Error {
    /// Wraps the failure of `op` on `path`.
    pub(crate) fn io(op: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
        Error::Io { op, path: path.to_path_buf(), source: source.into() }
    }

    /// The source at `path` is not what the scan saw.
    pub(crate) fn changed(path: &Path, what: impl Into<String>) -> Error {
        Error::Changed { path: path.to_path_buf(), what: what.into() }
    }
}
