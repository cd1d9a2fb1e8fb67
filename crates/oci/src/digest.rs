//! Digests: how blobs are named, and readers that compute them of what passes by.

use crate::error::{Error, Result};
use sha2::{Digest as _, Sha256, Sha512};
use std::fmt;
use std::io::{self, Read};

/// Functions that name blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Algorithm {
    Sha256,
    Sha512,
}

/// The name of a blob: a function and what it makes of the blob's bytes, in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// Reads `sha256:` and 64 digits, or `sha512:` and 128. `None` for anything else, so that what is one is also a
    /// harmless name of a file.
    pub fn parse(text: &str) -> Option<Digest> {
        let (algorithm, hex) = text.split_once(':')?;
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return None,
        };
        let len = match algorithm {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        };
        let is_hex = hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        (is_hex && hex.len() == len).then(|| Digest { algorithm, hex: hex.to_owned() })
    }

    /// As [`Digest::parse`], for a document of an image.
    pub(crate) fn of_document(text: &str, place: &str) -> Result<Digest> {
        Digest::parse(text).ok_or_else(|| Error::Unsupported {
            place: place.to_owned(),
            what: format!(
                "digest {:?} is neither sha256 nor sha512 in hexadecimal",
                crate::error::shown(text.as_bytes())
            ),
        })
    }

    /// Name of the function.
    pub fn algorithm(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// The digits.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first digits, for messages.
    pub(crate) fn short(&self) -> &str {
        self.hex.get(..12).unwrap_or_default()
    }

    pub(crate) fn hasher(&self) -> Hasher {
        match self.algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }

    /// The blob must have this digest.
    pub(crate) fn check(&self, hasher: Hasher, place: &str) -> Result<()> {
        let found = hasher.finish();
        if found == *self {
            return Ok(());
        }
        Err(Error::Digest { place: place.to_owned(), found: found.to_string(), expected: self.to_string() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex)
    }
}

/// Computes a digest.
#[derive(Debug, Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn sha256() -> Hasher {
        Hasher::Sha256(Sha256::new())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        let (algorithm, bytes) = match self {
            Hasher::Sha256(hasher) => (Algorithm::Sha256, hasher.finalize().to_vec()),
            Hasher::Sha512(hasher) => (Algorithm::Sha512, hasher.finalize().to_vec()),
        };
        let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Digest { algorithm, hex }
    }
}

/// Passes on what it reads, and hashes it where there is a digest to compare with.
#[derive(Debug)]
pub(crate) struct Hashed<R> {
    inner: R,
    hasher: Option<Hasher>,
}

impl<R: Read> Hashed<R> {
    pub(crate) fn new(inner: R, hasher: Option<Hasher>) -> Hashed<R> {
        Hashed { inner, hasher }
    }

    pub(crate) fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The reader below; what is read of it directly is not hashed.
    pub(crate) fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Whether nothing is hashed.
    pub(crate) fn is_plain(&self) -> bool {
        self.hasher.is_none()
    }

    pub(crate) fn into_parts(self) -> (R, Option<Hasher>) {
        (self.inner, self.hasher)
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        if let (Some(hasher), Some(bytes)) = (&mut self.hasher, buf.get(..count)) {
            hasher.update(bytes);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_blobs() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest = Digest::parse(empty).unwrap();
        assert_eq!((digest.to_string().as_str(), digest.algorithm()), (empty, "sha256"));
        digest.check(digest.hasher(), "blob").unwrap();
        let mut other = digest.hasher();
        other.update(b"x");
        let error = digest.check(other, "blob").unwrap_err();
        assert!(error.to_string().starts_with("blob: its digest is sha256:2d711642b726b044"), "{error}");
        let long = Digest::parse(&format!("sha512:{}", "0f".repeat(64))).unwrap();
        assert_eq!((long.hasher().finish().hex().len(), long.short()), (128, "0f0f0f0f0f0f"));
        let upper = empty.to_uppercase();
        let wrong = ["", "sha256:", &empty[..70], "sha256:../../etc/passwd", "md5:00", "blake3:00", &upper];
        assert!(wrong.iter().all(|text| Digest::parse(text).is_none()));
    }
}
