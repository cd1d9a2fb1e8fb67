//! Detached signatures of a content hash, by keys of [minisign](https://jedisct1.github.io/minisign/) (Ed25519), and by
//! keys on P-256 as [cosign](https://docs.sigstore.dev/cosign/) makes them (with the feature `p256`).
//!
//! minisign signs one line of text, the [`statement`], so that whoever has the hash can check a signature with the
//! stock tool, and no signature of something else is taken for one of an image:
//!
//! ```text
//! printf 'daxfs content blake3:HASH\n' > statement
//! minisign -Vm statement -x model.daxfs.minisig -p minisign.pub
//! ```
//!
//! What cosign signs, and the OCI image layout that it lies in, is in the module `cosign`.
//!
//! A signature is of a content, not of a file: it holds wherever the image lies, and says nothing of names that an
//! image has, of its owner, or of what was signed later. Keys and signatures come from anybody: they are bounded before
//! they are parsed. One text may hold a signature of minisign and several of cosign.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod found;
mod text;

#[cfg(not(feature = "p256"))]
#[path = "absent.rs"]
mod cosign;
#[cfg(feature = "p256")]
pub mod cosign;

use std::fmt;
use std::path::{Path, PathBuf};

use minisign_verify::{Error, PublicKey};

use crate::ContentHash;
use crate::text::Escaped;
pub use found::{Found, read_beside};
use text::Part;
pub use text::{canonical, read};

pub use daxfs_protocol::message::SIGNATURE_MAX;

/// Longest file of public keys, in bytes.
pub const KEYS_MAX: usize = 64 << 10;

/// What is behind the path of an image in the path of its signature by minisign.
pub const SUFFIX: &str = ".minisig";

/// What is behind the path of an image in the path of the OCI image layout with its signatures by cosign.
pub const LAYOUT_SUFFIX: &str = ".cosign";

/// A way to sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// minisign: Ed25519 over the [`statement`].
    Minisign,
    /// cosign: ECDSA on P-256 with SHA-256 over a payload of JSON.
    Cosign,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minisign => "minisign",
            Self::Cosign => "cosign (ECDSA P-256)",
        })
    }
}

/// A signature that is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Valid {
    /// Who made it.
    pub scheme: Scheme,
    /// What the key signed with the content: the trusted comment of minisign, the reference and the claims of cosign.
    /// One line.
    pub comment: String,
}

/// Why there is no valid signature.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// A file of keys or a signature cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// This is no regular file, and none is waited for.
    #[error(
        "{}: no regular file; a key or a signature is one, or an OCI image layout with signatures of cosign",
        path.display()
    )]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// A file of keys, or a signature, is longer than any that is right.
    #[error("{what}: more than {max} bytes")]
    TooLong {
        /// Which one.
        what: String,
        /// The most that it may have.
        max: usize,
    },
    /// This is no public key.
    #[error(
        "{what}: line {line} is no public key; those of minisign are a line of 56 letters that begins with RW, those \
         on P-256 a PEM block, -----BEGIN PUBLIC KEY-----"
    )]
    NotAKey {
        /// Where it came from.
        what: String,
        /// Which line, counted from 1.
        line: usize,
    },
    /// This is a secret key or a certificate, or another kind of PEM block than a public key.
    #[error(
        "{what}: line {line} begins {label:?}, which is no public key; `openssl pkey -in KEY -pubout` writes that of a \
         secret one"
    )]
    OtherPem {
        /// Where it came from.
        what: String,
        /// Which line, counted from 1.
        line: usize,
        /// The label of the block.
        label: String,
    },
    /// The library was built without the feature `p256`.
    #[error("{what}: keys on P-256 and signatures of cosign are not in this build of daxfs (feature `p256`)")]
    NoP256 {
        /// What was given.
        what: String,
    },
    /// This directory is no OCI image layout with a signature.
    #[error("{}: no signature in an OCI image layout: {why}", path.display())]
    NotALayout {
        /// The directory, or what in it is wrong.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is no key at all.
    #[error("{what}: no public key in it")]
    NoKey {
        /// Where they were to come from.
        what: String,
    },
    /// This is no signature.
    #[error("the signature is none of minisign's or cosign's: {why}")]
    NotASignature {
        /// What is wrong with it.
        why: &'static str,
    },
    /// The image has no signature.
    #[error("the image has no signature; {advice}")]
    Missing {
        /// What to do about it.
        advice: &'static str,
    },
    /// The signature was made by another key.
    #[error("the signature was made by no key that is accepted, or was changed (keys: {keys})")]
    OtherKey {
        /// How many are.
        keys: usize,
    },
    /// The keys are of another kind than the signature.
    #[error("the signature is one of {signature}, and the keys are of {keys}")]
    OtherScheme {
        /// Whose the signature is.
        signature: Scheme,
        /// Whose the keys are.
        keys: Scheme,
    },
    /// The key is right and the signature is not one of this content.
    #[error(
        "the signature is not valid for the content {}: it is of another content, or was changed (it says {said:?} of \
         itself)",
        content
    )]
    Invalid {
        /// The content.
        content: ContentHash,
        /// What the signature says of itself, which is not to be trusted here.
        said: String,
    },
    /// There are several, and none is valid, each for its own reason.
    #[error("{}", .errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several {
        /// Why, in the order in which they lie there.
        errors: Vec<SignatureError>,
    },
}

/// What is signed: `daxfs content blake3:`, the hash in hexadecimal digits, and a newline.
pub fn statement(content: &ContentHash) -> String {
    format!("daxfs content {content}\n")
}

/// Where the signature of an image in a file by minisign lies: beside it, under its name with [`SUFFIX`].
pub fn beside(image: &Path) -> PathBuf {
    with_suffix(image, SUFFIX)
}

/// Where the signatures of an image in a file by cosign lie: beside it, under its name with [`LAYOUT_SUFFIX`].
pub fn layout_beside(image: &Path) -> PathBuf {
    with_suffix(image, LAYOUT_SUFFIX)
}

fn with_suffix(image: &Path, suffix: &str) -> PathBuf {
    // A directory may be named with a slash at the end.
    let mut path = image.components().as_path().as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Public keys, one of which must have signed.
#[derive(Clone)]
pub struct PublicKeys(Vec<Key>);

#[derive(Clone)]
enum Key {
    Minisign(PublicKey),
    P256(cosign::Key),
}

impl Key {
    fn scheme(&self) -> Scheme {
        match self {
            Self::Minisign(_) => Scheme::Minisign,
            Self::P256(_) => Scheme::Cosign,
        }
    }
}

impl PublicKeys {
    /// Reads a file as `minisign -G` writes it, a public key on P-256 in PEM (`cosign.pub`, `openssl pkey -pubout`), or
    /// several of both in one: lines that begin with `untrusted comment:` or `#` and empty ones are left out, each
    /// other one outside of a PEM block is a key of minisign.
    ///
    /// # Errors
    /// [`SignatureError`] with the path, and the line that is no key.
    pub fn read(path: &Path) -> Result<Self, SignatureError> {
        let what = || path.display().to_string();
        match text::read_file(path, KEYS_MAX, dmabuf::open_read_only) {
            Ok(text) => Self::parse(&text, &what()),
            Err(SignatureError::NotASignature { .. }) => {
                Err(SignatureError::NotAKey { what: what(), line: 1 })
            }
            Err(error) => Err(error),
        }
    }

    /// The keys in a text; `what` names it in errors.
    ///
    /// # Errors
    /// As for [`PublicKeys::read`].
    pub fn parse(text: &str, what: &str) -> Result<Self, SignatureError> {
        if text.len() > KEYS_MAX {
            return Err(SignatureError::TooLong { what: what.to_owned(), max: KEYS_MAX });
        }
        let mut keys = Vec::new();
        let mut lines = (1_usize..).zip(text.lines().map(str::trim));
        while let Some((line, content)) = lines.next() {
            if content.is_empty() || content.starts_with('#') || content.starts_with("untrusted comment:") {
                continue;
            }
            let not_a_key = || SignatureError::NotAKey { what: what.to_owned(), line };
            if let Some(label) = content.strip_prefix("-----BEGIN ") {
                let label = label.trim_end_matches('-');
                if label != "PUBLIC KEY" {
                    let label = Escaped(label.as_bytes()).to_string();
                    return Err(SignatureError::OtherPem { what: what.to_owned(), line, label });
                }
                let mut pem = content.to_owned() + "\n";
                loop {
                    let (_, content) = lines.next().ok_or_else(not_a_key)?;
                    pem.push_str(content);
                    pem.push('\n');
                    if content.starts_with("-----END") {
                        break;
                    }
                }
                keys.push(Key::P256(cosign::Key::from_pem(&pem, what)?.ok_or_else(not_a_key)?));
                continue;
            }
            keys.push(Key::Minisign(PublicKey::from_base64(content).map_err(|_| not_a_key())?));
        }
        if keys.is_empty() {
            return Err(SignatureError::NoKey { what: what.to_owned() });
        }
        Ok(Self(keys))
    }

    /// Checks that one of the keys has signed a content, by one of the signatures in a text. Returns what that key
    /// signed with it.
    ///
    /// # Errors
    /// [`SignatureError`]: no signature, by another key, or of another content.
    pub fn verify(&self, content: &ContentHash, signature: &str) -> Result<Valid, SignatureError> {
        let statement = statement(content);
        let mut refused = None;
        let (parts, others) = text::decode(signature)?;
        for part in parts {
            for key in &self.0 {
                let outcome = match (&part, key) {
                    (Part::Minisign(signature), Key::Minisign(key)) => {
                        match key.verify(statement.as_bytes(), signature, false) {
                            Ok(()) => Ok(signature.trusted_comment()),
                            Err(Error::UnexpectedKeyId) => {
                                Err(SignatureError::OtherKey { keys: self.count() })
                            }
                            Err(Error::UnexpectedAlgorithm) => Err(SignatureError::NotASignature {
                                why: "it is of the old kind, whose messages are not hashed first; sign with minisign \
                                      0.11 or later",
                            }),
                            Err(_) => Err(invalid(content, signature.trusted_comment())),
                        }
                    }
                    (Part::Cosign(signed), Key::P256(key)) if signed.is_by(key) => {
                        if signed.is_of(content) {
                            Ok(signed.comment())
                        } else {
                            Err(invalid(content, signed.comment()))
                        }
                    }
                    // Nothing tells a signature by another key from one that was changed.
                    (Part::Cosign(_), Key::P256(_)) => Err(SignatureError::OtherKey { keys: self.count() }),
                    (part, key) => {
                        Err(SignatureError::OtherScheme { signature: part.scheme(), keys: key.scheme() })
                    }
                };
                match outcome {
                    Ok(comment) => {
                        return Ok(Valid { scheme: part.scheme(), comment: comment.to_owned() });
                    }
                    Err(error) => refused = Some(nearest(refused, error)),
                }
            }
        }
        let refused = refused.unwrap_or(SignatureError::OtherKey { keys: self.count() });
        Err(several([refused].into_iter().chain(others).collect()))
    }

    /// Whether one of the keys on P-256 has made `signature`, in DER, of the message whose SHA-256 is `digest`.
    pub fn has_signed(&self, digest: &[u8; 32], signature: &[u8]) -> bool {
        self.0.iter().any(|key| match key {
            Key::Minisign(_) => false,
            Key::P256(key) => key.has_signed(digest, signature),
        })
    }

    /// Whether one of the keys is of this kind.
    pub fn has(&self, scheme: Scheme) -> bool {
        self.0.iter().any(|key| key.scheme() == scheme)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

fn invalid(content: &ContentHash, said: &str) -> SignatureError {
    SignatureError::Invalid { content: *content, said: Escaped(said.as_bytes()).to_string() }
}

/// All of some refusals, as one.
fn several(mut errors: Vec<SignatureError>) -> SignatureError {
    match (errors.len(), errors.pop()) {
        (1, Some(error)) => error,
        (_, last) => {
            errors.extend(last);
            SignatureError::Several { errors }
        }
    }
}

/// The one of two refusals that comes nearer to a valid signature, which is worth more to whoever reads it.
fn nearest(before: Option<SignatureError>, now: SignatureError) -> SignatureError {
    let rank = |error: &SignatureError| match error {
        SignatureError::Invalid { .. } => 3,
        SignatureError::NotASignature { .. } => 2,
        SignatureError::OtherKey { .. } => 1,
        _ => 0,
    };
    match before {
        Some(before) if rank(&before) > rank(&now) => before,
        _ => now,
    }
}

impl fmt::Debug for PublicKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PublicKeys").field(&self.0.len()).finish()
    }
}

#[cfg(test)]
mod tests;
