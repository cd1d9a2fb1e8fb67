//! What a user can name as the place of an image.

use std::ffi::OsStr;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use crate::Result;

/// A named source of an image.
///
/// | text | meaning |
/// |---|---|
/// | `fd:N` | the inherited descriptor N, duplicated; N stays open |
/// | `-` | standard input, which must be a file or shareable memory, not a pipe |
/// | anything else | a path: a regular file or a device such as `/dev/dax0.0` |
///
/// A file whose name looks like one of the first two is reached as `./fd:3` or `./-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// A path.
    Path(&'a Path),
    /// A descriptor number of this process.
    Descriptor(RawFd),
}

impl<'a> Source<'a> {
    /// Reads the text form. Every text is a source; only opening can fail.
    pub fn parse(text: &'a OsStr) -> Self {
        if text == "-" {
            return Self::Descriptor(0);
        }
        let number = text.to_str().and_then(|text| text.strip_prefix("fd:"));
        match number.and_then(|number| number.parse::<RawFd>().ok()) {
            Some(fd) if fd >= 0 => Self::Descriptor(fd),
            _ => Self::Path(Path::new(text)),
        }
    }

    /// Opens the source read-only, or duplicates the descriptor.
    ///
    /// # Errors
    /// What `open(2)` or `fcntl(F_DUPFD_CLOEXEC)` answers.
    pub fn open(self) -> Result<OwnedFd> {
        Ok(match self {
            Self::Path(path) => dmabuf::open_read_only(path)?,
            Self::Descriptor(fd) => dmabuf::duplicate(fd)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms() {
        let parse = |text: &'static str| Source::parse(OsStr::new(text));
        assert_eq!(parse("fd:7"), Source::Descriptor(7));
        assert_eq!(parse("-"), Source::Descriptor(0));
        for path in ["fd:", "fd:-1", "fd:x", "fd:99999999999", "./fd:7", "a", ""] {
            assert_eq!(parse(path), Source::Path(Path::new(path)));
        }
    }
}
