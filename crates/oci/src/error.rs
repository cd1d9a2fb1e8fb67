//! The error of this crate: one enum, each message with the place, what was found and what was expected.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a container image or an archive is not taken. Nothing of it is used then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Whoever asked for it changed his mind.
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
    /// The name of an input means nothing.
    #[error("{text}: {why}")]
    Name {
        /// The name.
        text: String,
        /// What is wrong with it, and how such names look.
        why: String,
    },
    /// What was named is no image layout, or no archive of images.
    #[error("{}: {why}", path.display())]
    Layout {
        /// The directory or file.
        path: PathBuf,
        /// What is missing or wrong.
        why: String,
    },
    /// A document of an image is no JSON, or not of the form that it must have.
    #[error("{place}: {source}")]
    Json {
        /// The document.
        place: String,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// No image has the wanted tag or digest.
    #[error("{place}: no image {wanted}; there are {there}")]
    NoImage {
        /// Where it was looked for.
        place: String,
        /// What was wanted.
        wanted: String,
        /// What is there.
        there: String,
    },
    /// Several images fit, or none is for the wanted platform.
    #[error("{place}: {why}; there are {there}")]
    Choice {
        /// Where they are.
        place: String,
        /// Why none was chosen, and how one is.
        why: String,
        /// What is there.
        there: String,
    },
    /// The bytes of a blob are not those that its digest stands for.
    #[error("{place}: its digest is {found}, must be {expected}")]
    Digest {
        /// The blob.
        place: String,
        /// Digest of what was read.
        found: String,
        /// Digest that it is named by.
        expected: String,
    },
    /// A blob has another length than its descriptor says.
    #[error("{place}: {found} bytes, its descriptor says {expected}")]
    Size {
        /// The blob.
        place: String,
        /// Bytes that were found.
        found: u64,
        /// Bytes that there should be.
        expected: u64,
    },
    /// Something that this program does not know.
    #[error("{place}: {what}")]
    Unsupported {
        /// Where it stands.
        place: String,
        /// What it is, and what to do.
        what: String,
    },
    /// Compressed bytes that are damaged.
    #[error("{place}: cannot be decompressed: {why}")]
    Compression {
        /// The blob or file.
        place: String,
        /// What the decoder found.
        why: String,
    },
    /// An archive that ends before it is complete.
    #[error("{place}: ends at byte {offset}, inside {inside}")]
    Truncated {
        /// The archive.
        place: String,
        /// Its last byte.
        offset: u64,
        /// What was being read.
        inside: &'static str,
    },
    /// A header of an archive, or a record of one, breaks a rule.
    #[error("{place}: header at byte {offset}: {rule} (found {found})")]
    Header {
        /// The archive.
        place: String,
        /// Where the header begins.
        offset: u64,
        /// What must hold.
        rule: &'static str,
        /// What was found.
        found: String,
    },
    /// A member of an archive cannot be put into the tree.
    #[error("{place}: {path}: {rule} (found {found})")]
    Member {
        /// The archive.
        place: String,
        /// The member's name.
        path: String,
        /// What must hold.
        rule: &'static str,
        /// What was found.
        found: String,
    },
    /// More of something than the limits allow.
    #[error("{place}: {got} {what}, at most {bound} are taken{advice}")]
    Limit {
        /// Where it was found.
        place: String,
        /// What was counted.
        what: &'static str,
        /// How many there are, at least.
        got: u64,
        /// How many may be.
        bound: u64,
        /// How to allow more, where that can be.
        advice: &'static str,
    },
}

impl Error {
    /// Wraps the failure of `op` on `path`.
    pub(crate) fn io(op: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
        Error::Io { op, path: path.to_path_buf(), source: source.into() }
    }
}

/// Longest name in a message.
const SHOWN: usize = 200;

/// A name from an archive, for messages: without control characters, and of bounded length.
pub(crate) fn shown(name: &[u8]) -> String {
    let text: String = name.utf8_chunks().fold(String::new(), |mut text, chunk| {
        text.extend(chunk.valid().chars().flat_map(|c| {
            let escape = c.is_control() || c == '\\';
            let (plain, escaped) = if escape { (None, Some(c.escape_default())) } else { (Some(c), None) };
            plain.into_iter().chain(escaped.into_iter().flatten())
        }));
        text.extend(
            chunk.invalid().iter().flat_map(|byte| format!("\\x{byte:02x}").into_bytes()).map(char::from),
        );
        text
    });
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_messages_are_harmless() {
        assert_eq!(shown(b"usr/bin/caf\xc3\xa9"), "usr/bin/caf\u{e9}");
        assert_eq!(shown(b"a\n\x1b[31m\\b\xff"), "a\\n\\u{1b}[31m\\\\b\\xff");
        assert_eq!(shown(&[b'a'; 300]).len(), SHOWN + 3);
    }
}
