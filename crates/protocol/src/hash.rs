//! The content hash of an image, as a value of its own and as people write it.

use std::fmt;
use std::str::FromStr;

use dmabuf::Hex;

/// What an image holds: one BLAKE3 over all names, contents and the records of its index. Two images with the same
/// content hash give the same files and tensors; `daxfs::format::index` says what it covers.
///
/// It is written `blake3:` and 64 hexadecimal digits, and read with or without the prefix.
///
/// ```
/// use daxfs_protocol::ContentHash;
///
/// let digits = "0f".repeat(32);
/// let hash: ContentHash = digits.parse()?;
/// assert_eq!(hash, ContentHash::from([0x0f; 32]));
/// assert_eq!(hash.to_string(), format!("blake3:{digits}"));
/// assert_eq!(hash.digits().to_string(), digits);
/// assert!("blake3:0f".parse::<ContentHash>().is_err());
/// # Ok::<(), daxfs_protocol::ContentHashError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 32]);

/// A text that is no content hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a content hash is 64 hexadecimal digits, with or without blake3: before them")]
pub struct ContentHashError;

impl ContentHash {
    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Shows the 64 digits alone, without `blake3:`.
    pub fn digits(&self) -> impl fmt::Display + use<> {
        Digits(self.0)
    }
}

impl From<[u8; 32]> for ContentHash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl From<ContentHash> for [u8; 32] {
    fn from(hash: ContentHash) -> Self {
        hash.0
    }
}

impl FromStr for ContentHash {
    type Err = ContentHashError;

    fn from_str(text: &str) -> Result<Self, ContentHashError> {
        let digits = text.strip_prefix("blake3:").unwrap_or(text);
        Hex::array(digits).map(Self).ok_or(ContentHashError)
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", Hex(&self.0))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({})", Hex(&self.0))
    }
}

struct Digits([u8; 32]);

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_are_none_are_refused() {
        let digits = "0f".repeat(32);
        let upper: ContentHash = digits.to_uppercase().parse().unwrap();
        assert_eq!(
            (upper, format!("{upper:?}")),
            (digits.parse().unwrap(), format!("ContentHash({digits})"))
        );
        for wrong in
            ["", "blake3:", &digits[1..], &format!("{digits}0"), &digits.replace('f', "g"), "blake3:é"]
        {
            assert_eq!(wrong.parse::<ContentHash>(), Err(ContentHashError), "{wrong}");
        }
        for wrong in [format!("sha256:{digits}"), format!("blake3:blake3:{digits}"), format!(" {digits}")] {
            assert!(wrong.parse::<ContentHash>().is_err(), "{wrong}");
        }
    }
}
