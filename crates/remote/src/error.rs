//! Why an image cannot be had from afar.

use std::ops::Range;
use std::time::Duration;

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image cannot be had from afar. No text holds a credential: queries and user names of addresses are left out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text that is no address of an image.
    #[error("{text}: {why}")]
    Location {
        /// The text, without what may be secret.
        text: String,
        /// What is wrong, and what belongs there.
        why: String,
    },
    /// The server has nothing there.
    #[error("{place}: there is no such object")]
    NotFound {
        /// The address.
        place: String,
    },
    /// The server asks for other credentials, or for some.
    #[error("{place}: the server refuses access ({status}); {hint}")]
    Denied {
        /// The address.
        place: String,
        /// What the server said.
        status: String,
        /// Where credentials are looked for.
        hint: &'static str,
    },
    /// The server sends the whole object whatever is asked for.
    #[error(
        "{place}: the server answers a request for a range with the whole object; images are read by ranges"
    )]
    NoRanges {
        /// The address.
        place: String,
    },
    /// The object is another one than at the beginning.
    #[error("{place}: the object changed while it was read ({was}, now {now}); load it again")]
    Changed {
        /// The address.
        place: String,
        /// Its tag or length at the beginning.
        was: String,
        /// The tag or length now.
        now: String,
    },
    /// The answer is not the range that was asked for.
    #[error("{place}: asked for bytes {}..{}, the server sent {got}", asked.start, asked.end)]
    WrongRange {
        /// The address.
        place: String,
        /// What was asked for.
        asked: Range<u64>,
        /// What came.
        got: String,
    },
    /// Bytes that are others than the hashes of the image say.
    #[error("{place}: bytes {}..{} of {path} are not those that the image has a hash of", range.start, range.end)]
    WrongBytes {
        /// The address.
        place: String,
        /// The file.
        path: String,
        /// Which of its bytes.
        range: Range<u64>,
    },
    /// An object that is another one than its digest says.
    #[error("{place}: the object has the digest {got}, and its server calls it {expected}")]
    WrongDigest {
        /// The address.
        place: String,
        /// What the server, or the address, says.
        expected: String,
        /// Of what came.
        got: String,
    },
    /// Too little came for too long.
    #[error("{place}: {got} bytes came within {within:?}, less than {least}")]
    Stalled {
        /// The address.
        place: String,
        /// How much came.
        got: u64,
        /// In this time.
        within: Duration,
        /// What has to come.
        least: u64,
    },
    /// What the server, the network or the library that speaks to them said.
    #[error("{place}: {text}")]
    Server {
        /// The address.
        place: String,
        /// The words.
        text: String,
        /// Whether the same request can succeed later.
        again: bool,
    },
    /// The image does not fit.
    #[error("{place}: the image has {needed} bytes, and {available} bytes of memory are free")]
    NoMemory {
        /// The address.
        place: String,
        /// Bytes of the image.
        needed: u64,
        /// Bytes that could be had.
        available: u64,
    },
    /// What is fetched does not fit onto the disk.
    #[error("{place}: {needed} bytes are fetched into {}, and {available} bytes are free there; TMPDIR names another place", folder.display())]
    NoSpace {
        /// The address.
        place: String,
        /// Where it is written.
        folder: std::path::PathBuf,
        /// Bytes that the registry says it has.
        needed: u64,
        /// Bytes that could be had.
        available: u64,
    },
    /// The image has no hashes of its files, and one is expected.
    #[error("{place}: the image has no content hash; it was packed without hashes, or by another packer")]
    NoHashes {
        /// The address.
        place: String,
    },
    /// An image whose metadata is not at its front in one piece with bounds.
    #[error(
        "{place}: {what} has {got} bytes, at most {bound} are read for the metadata; load the image instead"
    )]
    TooMuch {
        /// The address.
        place: String,
        /// What is too large.
        what: &'static str,
        /// Bytes.
        got: u64,
        /// Bytes that are allowed.
        bound: u64,
    },
    /// What was read is no image, or not the one that is expected.
    #[error("{place}: {source}")]
    Image {
        /// The address.
        place: String,
        /// What is wrong.
        source: Box<daxfs::Error>,
    },
    /// Memory cannot be made, written or sealed.
    #[error(transparent)]
    Memory(#[from] dmabuf::Error),
    /// The system refuses something.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// Nobody wants it any more.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Whether the same request can succeed when it is made again.
    pub(crate) fn is_worth_again(&self) -> bool {
        match self {
            Self::Server { again, .. } => *again,
            Self::Stalled { .. } | Self::WrongRange { .. } | Self::WrongBytes { .. } => true,
            _ => false,
        }
    }

    pub(crate) fn system(what: &'static str, source: std::io::Error) -> Self {
        Self::System { what, source }
    }
}

/// An error of a library with its causes, those that its text does not name already; without the queries of addresses.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    redacted(&text)
}

/// A text of a library or a server without the queries of the addresses in it, which may be signatures, and with escapes
/// for what could change a terminal.
pub(crate) fn redacted(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in without_secrets(text).chars() {
        let reorders =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}');
        if c.is_control() || reorders { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

fn without_secrets(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let end = rest[at..]
            .find(|c: char| c.is_whitespace() || "\"')>".contains(c))
            .map_or(rest.len(), |n| at + n);
        let (address, behind) = rest.split_at(end);
        let address = address.split_once('?').map_or(address, |(before, _)| before);
        let (scheme, host) = address.split_at(at + 3);
        kept.push_str(scheme);
        // A user's name and password end at the last @ of the host.
        let path = host.find('/').unwrap_or(host.len());
        kept.push_str(host[..path].rfind('@').map_or(host, |user| &host[user + 1..]));
        rest = behind;
    }
    kept.push_str(rest);
    kept
}

#[cfg(test)]
mod tests {
    use super::redacted;

    #[test]
    fn queries_and_users_are_left_out() {
        for (text, said) in [
            ("GET https://h/a/b?X-Amz-Signature=secret failed", "GET https://h/a/b failed"),
            ("(https://user:secret@h:80/a?b) and \"s3://c/d?e\"", "(https://h:80/a) and \"s3://c/d\""),
            ("https://h/a@b", "https://h/a@b"),
            ("why? because", "why? because"),
            ("://?", "://"),
            ("a\u{1b}[31m\n\u{202e}b", "a\\u{1b}[31m\\n\\u{202e}b"),
        ] {
            assert_eq!(redacted(text), said);
        }
    }
}
