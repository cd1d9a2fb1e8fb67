//! The crate's one error type. Each message gives the operation, its subject and the cause on one line.

use std::io;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on shared memory failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused. The message holds the cause already, so `source()` is `None` and a printed
    /// error chain does not repeat it; the error itself is in the field.
    // `r#source` tells thiserror that the field is not the `Error::source`.
    #[error("{op} {subject}: {source}")]
    Os {
        /// System call or step, for instance `mmap`.
        op: &'static str,
        /// Path, memfd name or descriptor number that it was applied to.
        subject: String,
        /// What the kernel answered, errno included.
        r#source: io::Error,
    },
    /// The operating system refused, for a reason that is known.
    #[error("{op} {subject}: {source}: {advice}")]
    Refused {
        /// System call or step.
        op: &'static str,
        /// What it was applied to.
        subject: String,
        /// What the kernel answered.
        r#source: io::Error,
        /// What that means here, and what to do about it.
        advice: String,
    },
    /// A range lies outside of the memory or file it was asked of.
    #[error("{len} bytes at offset {offset} are outside of {bound} bytes")]
    OutOfBounds {
        /// First byte of the range.
        offset: u64,
        /// Length of the range in bytes.
        len: u64,
        /// Bytes that there are.
        bound: u64,
    },
    /// The descriptor is of a kind whose memory cannot be shared by mapping it.
    #[error("{what} cannot be used as shared memory: {why}")]
    NotShareable {
        /// Path or descriptor number.
        what: String,
        /// The reason, and what to use in its place where there is something.
        why: &'static str,
    },
    /// This machine lacks a device or a kernel feature.
    #[error("{what} is not available: it needs {needs}")]
    Unavailable {
        /// What is missing, for instance `/dev/udmabuf`.
        what: String,
        /// What would make it available.
        needs: String,
    },
    /// An argument or descriptor is unfit for the operation.
    #[error("{what}: {why}")]
    Invalid {
        /// What was given.
        what: String,
        /// Why it does not do, with the bound where there is one.
        why: String,
    },
}

/// `ENOTSUPP` of the kernel's own `linux/errno.h`, which should not get out and has no name in libc. Exporters of
/// dma-bufs answer it.
const ENOTSUPP: i32 = 524;

impl Error {
    /// The errno of an [`Error::Os`] or [`Error::Refused`], also values that have no name (524 of some drivers).
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Error::Os { source, .. } | Error::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The nearest [`io::ErrorKind`], for mapping to other error types (Python's built-in ones, exit codes).
    #[must_use]
    pub fn io_kind(&self) -> io::ErrorKind {
        match self {
            Error::Os { source, .. } | Error::Refused { source, .. } => source.kind(),
            Error::OutOfBounds { .. } => io::ErrorKind::UnexpectedEof,
            Error::NotShareable { .. } | Error::Unavailable { .. } => io::ErrorKind::Unsupported,
            Error::Invalid { .. } => io::ErrorKind::InvalidInput,
        }
    }

    /// An [`Error::Os`] of an `io::Error` or of an errno that nix decoded.
    pub(crate) fn os(op: &'static str, subject: impl Into<String>, source: impl Into<io::Error>) -> Error {
        let (subject, source) = (subject.into(), source.into());
        match source.raw_os_error() {
            Some(ENOTSUPP) => {
                let advice = "ENOTSUPP: the driver that the buffer comes from does not do this, as NVIDIA's does not map \
                              device memory for the CPU";
                Error::Refused { op, subject, source, advice: advice.into() }
            }
            _ => Error::Os { op, subject, source },
        }
    }

    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Invalid { what: what.into(), why: why.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn messages_name_operation_subject_and_cause_once() {
        let error = Error::os("mmap", "memfd:llama", io::Error::from_raw_os_error(libc::ENOMEM));
        assert_eq!(error.to_string(), "mmap memfd:llama: Cannot allocate memory (os error 12)");
        assert!(error.source().is_none(), "a printed chain would repeat the cause");
        let error = Error::OutOfBounds { offset: 5, len: 4, bound: 8 };
        assert_eq!(error.to_string(), "4 bytes at offset 5 are outside of 8 bytes");
        let error = Error::Unavailable { what: "/dev/udmabuf".into(), needs: "CONFIG_UDMABUF".into() };
        assert_eq!(error.to_string(), "/dev/udmabuf is not available: it needs CONFIG_UDMABUF");
    }

    #[test]
    fn errno_without_a_name_survives() {
        let error = Error::os("mmap", "fd 3", io::Error::from_raw_os_error(524));
        assert_eq!(error.raw_os_error(), Some(524));
        assert!(error.to_string().starts_with("mmap fd 3: "), "{error}");
        assert!(error.to_string().contains("ENOTSUPP: the driver that the buffer comes from"), "{error}");
        assert_eq!(Error::invalid("len", "0").raw_os_error(), None);
    }

    #[test]
    fn kinds_follow_errno() {
        let denied = Error::os("open", "/x", io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!(denied.io_kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(Error::invalid("name", "is empty").io_kind(), io::ErrorKind::InvalidInput);
    }
}
