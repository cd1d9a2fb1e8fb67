//! What a user can name as the place of an image.

use std::ffi::OsStr;
use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::Result;
use crate::holder::Address;

/// A named source of an image.
///
/// | text | meaning |
/// |---|---|
/// | `fd:N` | the inherited descriptor N, duplicated; N stays open |
/// | `-` | standard input, which must be a file or shareable memory, not a pipe |
/// | `daxfs://NAME` | an image that a holder keeps, see [`crate::holder`] |
/// | `daxfs+unix:///path/to.sock/NAME` | the same, at that socket |
/// | anything else | a path: a regular file or a device such as `/dev/dax0.0` |
///
/// A file whose name looks like one of the others is reached as `./fd:3` or `./-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A path.
    Path(PathBuf),
    /// A descriptor number of this process.
    Descriptor(RawFd),
    /// An image of a holder.
    Holder(Address),
}

impl Source {
    /// Reads the text form.
    ///
    /// # Errors
    /// [`crate::Error::Holder`] for a text that begins like a holder's address and is a wrong one.
    pub fn parse(text: &OsStr) -> Result<Self> {
        if text == "-" {
            return Ok(Self::Descriptor(0));
        }
        if let Some(address) = Address::parse(text) {
            return Ok(Self::Holder(address?));
        }
        let number = text.to_str().and_then(|text| text.strip_prefix("fd:"));
        Ok(match number.and_then(|number| number.parse::<RawFd>().ok()) {
            Some(fd) if fd >= 0 => Self::Descriptor(fd),
            _ => Self::Path(PathBuf::from(text)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms() {
        let parse = |text: &'static str| Source::parse(OsStr::new(text)).unwrap();
        assert_eq!(parse("fd:7"), Source::Descriptor(7));
        assert_eq!(parse("-"), Source::Descriptor(0));
        assert!(matches!(parse("daxfs+unix:///s/n"), Source::Holder(_)));
        for path in ["fd:", "fd:-1", "fd:x", "fd:99999999999", "./fd:7", "a", ""] {
            assert_eq!(parse(path), Source::Path(PathBuf::from(path)));
        }
    }
}
