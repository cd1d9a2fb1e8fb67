//! Detached signatures of a content hash, by keys of [minisign](https://jedisct1.github.io/minisign/) (Ed25519).
//!
//! What is signed is one line of text, the [`statement`], so that whoever has the hash can check a signature with the
//! stock tool, and no signature of something else is taken for one of an image:
//!
//! ```text
//! printf 'daxfs content blake3:HASH\n' > statement
//! minisign -Vm statement -x model.daxfs.minisig -p minisign.pub
//! ```
//!
//! A signature is of a content, not of a file: it holds wherever the image lies, and says nothing of names that an image
//! has, of its owner, or of what was signed later. Keys and signatures come from anybody: they are bounded before they are
//! parsed.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use minisign_verify::{Error, PublicKey, Signature};

use crate::error::{Escaped, hex};

/// Longest signature, in bytes: minisign's own have about 400.
pub const SIGNATURE_MAX: usize = 2048;

/// Longest file of public keys, in bytes.
pub const KEYS_MAX: usize = 64 << 10;

/// What is behind the path of an image in the path of its signature.
pub const SUFFIX: &str = ".minisig";

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
    #[error("{}: no regular file; a key or a signature is one", path.display())]
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
        "{what}: line {line} is no minisign public key; each is a line of 56 letters that begins with RW"
    )]
    NotAKey {
        /// Where it came from.
        what: String,
        /// Which line, counted from 1.
        line: usize,
    },
    /// There is no key at all.
    #[error("{what}: no public key in it")]
    NoKey {
        /// Where they were to come from.
        what: String,
    },
    /// This is no signature.
    #[error("the signature is none of minisign's: {why}")]
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
    #[error("the signature was made by no key that is accepted (keys: {keys})")]
    OtherKey {
        /// How many are.
        keys: usize,
    },
    /// The key is right and the signature is not one of this content.
    #[error(
        "the signature is not valid for the content {}: it is of another content, or was changed (it says {said:?} of \
         itself)",
        hex(content)
    )]
    Invalid {
        /// The content.
        content: [u8; 32],
        /// The trusted comment of the signature, which is not to be trusted here.
        said: String,
    },
}

/// What is signed: `daxfs content blake3:`, the hash in hexadecimal digits, and a newline.
pub fn statement(content: &[u8; 32]) -> String {
    format!("daxfs content {}\n", hex(content))
}

/// Where the signature of an image in a file lies: beside it, under its name with [`SUFFIX`].
pub fn beside(image: &Path) -> PathBuf {
    // A directory may be named with a slash at the end.
    let mut path = image.components().as_path().as_os_str().to_owned();
    path.push(SUFFIX);
    path.into()
}

/// Reads a signature, bounded.
///
/// # Errors
/// [`SignatureError::Read`], [`SignatureError::TooLong`], [`SignatureError::NotASignature`] when it is no text.
pub fn read(path: &Path) -> Result<String, SignatureError> {
    read_text(path, SIGNATURE_MAX, dmabuf::open_read_only)
}

/// Reads the signature [`beside`] an image, bounded; `None` where none is there. Nobody has named it, so a link is not
/// followed: whoever may write there would choose which file is read.
///
/// # Errors
/// As for [`read`].
pub fn read_beside(image: &Path) -> Result<Option<String>, SignatureError> {
    match read_text(&beside(image), SIGNATURE_MAX, dmabuf::open_no_follow) {
        Err(SignatureError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// A signature without what nobody signed: its untrusted comment, and lines behind its four. This is what may be passed
/// on to others, as no other text comes with it.
///
/// # Errors
/// [`SignatureError::TooLong`], [`SignatureError::NotASignature`].
pub fn canonical(text: &str) -> Result<String, SignatureError> {
    decode(text)?;
    let lines = text.lines().skip(1).take(3);
    Ok(lines.fold("untrusted comment: signature of a daxfs content\n".to_owned(), |text, line| {
        text + line + "\n"
    }))
}

fn decode(text: &str) -> Result<Signature, SignatureError> {
    if text.len() > SIGNATURE_MAX {
        return Err(SignatureError::TooLong { what: "the signature".into(), max: SIGNATURE_MAX });
    }
    Signature::decode(text).map_err(|error| {
        let why = match error {
            Error::UnsupportedAlgorithm => "its algorithm is not Ed25519",
            _ => {
                "it is not four lines: a comment, the signature, a trusted comment, and the signature of both"
            }
        };
        SignatureError::NotASignature { why }
    })
}

fn read_text(
    path: &Path,
    max: usize,
    open: impl Fn(&Path) -> dmabuf::Result<OwnedFd>,
) -> Result<String, SignatureError> {
    let failed = |source| SignatureError::Read { path: path.to_owned(), source };
    // Without waiting for a writer of a FIFO.
    let file = File::from(open(path).map_err(|error| failed(into_io(error)))?);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(SignatureError::NotAFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    // One more tells that there are too many.
    let most = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > max {
        return Err(SignatureError::TooLong { what: path.display().to_string(), max });
    }
    String::from_utf8(bytes).map_err(|_| SignatureError::NotASignature { why: "it is no text" })
}

/// What the kernel answered.
fn into_io(error: dmabuf::Error) -> std::io::Error {
    match error {
        dmabuf::Error::Os { source, .. } => source,
        other => std::io::Error::other(other),
    }
}

/// Public keys, one of which must have signed.
#[derive(Clone)]
pub struct PublicKeys(Vec<PublicKey>);

impl PublicKeys {
    /// Reads a file as `minisign -G` writes it, or several of them in one: lines that begin with `untrusted comment:` or
    /// `#` and empty ones are left out, each other one is a key.
    ///
    /// # Errors
    /// [`SignatureError`] with the path, and the line that is no key.
    pub fn read(path: &Path) -> Result<Self, SignatureError> {
        let what = || path.display().to_string();
        match read_text(path, KEYS_MAX, dmabuf::open_read_only) {
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
        for (number, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') || line.starts_with("untrusted comment:") {
                continue;
            }
            let line = PublicKey::from_base64(line).map_err(|_| SignatureError::NotAKey {
                what: what.to_owned(),
                line: number.saturating_add(1),
            })?;
            keys.push(line);
        }
        if keys.is_empty() {
            return Err(SignatureError::NoKey { what: what.to_owned() });
        }
        Ok(Self(keys))
    }

    /// Checks that one of the keys has signed a content. Returns the signature's trusted comment, which that key signed
    /// with it.
    ///
    /// # Errors
    /// [`SignatureError`]: no signature, by another key, or of another content.
    pub fn verify(&self, content: &[u8; 32], signature: &str) -> Result<String, SignatureError> {
        let decoded = decode(signature)?;
        let statement = statement(content);
        let mut refused = SignatureError::OtherKey { keys: self.0.len() };
        for key in &self.0 {
            match key.verify(statement.as_bytes(), &decoded, false) {
                Ok(()) => return Ok(decoded.trusted_comment().to_owned()),
                Err(Error::UnexpectedKeyId) => {}
                Err(Error::UnexpectedAlgorithm) => {
                    let why = "it is of the old kind, whose messages are not hashed first; sign with minisign 0.11 or later";
                    return Err(SignatureError::NotASignature { why });
                }
                Err(_) => {
                    let said = Escaped(decoded.trusted_comment().as_bytes()).to_string();
                    refused = SignatureError::Invalid { content: *content, said };
                }
            }
        }
        Err(refused)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Debug for PublicKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PublicKeys").field(&self.0.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by minisign 0.11: `minisign -GW`, and `minisign -S` of the statement of a hash of zeros.
    const KEY: &str = include_str!("../tests/minisign/minisign.pub");
    const SIGNATURE: &str = include_str!("../tests/minisign/statement.minisig");
    const OTHER_KEY: &str = "untrusted comment: minisign public key E7620F1842B4E81F\n\
        RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";

    #[test]
    fn what_the_stock_tool_signs_is_valid_for_its_content_alone() {
        let keys = PublicKeys::parse(KEY, "key").unwrap();
        let comment = keys.verify(&[0; 32], SIGNATURE).unwrap();
        assert!(comment.contains("file:statement"), "{comment}");
        let replayed = keys.verify(&[1; 32], SIGNATURE).unwrap_err();
        assert!(
            matches!(&replayed, SignatureError::Invalid { content, .. } if *content == [1; 32]),
            "{replayed}"
        );
        let other = PublicKeys::parse(OTHER_KEY, "key").unwrap().verify(&[0; 32], SIGNATURE).unwrap_err();
        assert!(matches!(other, SignatureError::OtherKey { keys: 1 }), "{other}");
        let both = PublicKeys::parse(&[OTHER_KEY, KEY].concat(), "keys").unwrap();
        assert_eq!(both.count(), 2);
        both.verify(&[0; 32], SIGNATURE).unwrap();
    }

    #[test]
    fn no_other_text_is_a_signature() {
        let keys = PublicKeys::parse(KEY, "key").unwrap();
        let text = SIGNATURE.trim_end();
        for end in 0..text.len() {
            if text.is_char_boundary(end) {
                keys.verify(&[0; 32], &text[..end]).unwrap_err();
            }
        }
        let lines: Vec<&str> = text.lines().collect();
        for at in [1, 2, 3] {
            for letter in 17..lines[at].len() {
                let mut bytes = lines[at].as_bytes().to_vec();
                bytes[letter] = if bytes[letter] == b'A' { b'B' } else { b'A' };
                let changed = String::from_utf8(bytes).unwrap();
                let mut other = lines.clone();
                other[at] = &changed;
                let outcome = keys.verify(&[0; 32], &other.join("\n"));
                assert!(outcome.is_err(), "line {at}, letter {letter}");
            }
        }
        let long = "x".repeat(SIGNATURE_MAX + 1);
        assert!(matches!(keys.verify(&[0; 32], &long), Err(SignatureError::TooLong { .. })));
        for text in
            ["", "\n\n\n\n", "a\nb\nc\nd\n", "untrusted comment: \u{1b}\nRUQ=\ntrusted comment: \nRUQ=\n"]
        {
            assert!(
                matches!(keys.verify(&[0; 32], text), Err(SignatureError::NotASignature { .. })),
                "{text:?}"
            );
        }
        let old = "untrusted comment: signature from minisign secret key\n\
            RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=\n\
            trusted comment: timestamp:1555779966\tfile:test\n\
            QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==\n";
        let refused = PublicKeys::parse(OTHER_KEY, "key").unwrap().verify(&[0; 32], old).unwrap_err();
        assert!(refused.to_string().contains("of the old kind"), "{refused}");
    }

    #[test]
    fn keys_are_bounded_and_named_by_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, format!("# two\n\n{OTHER_KEY}{KEY}")).unwrap();
        assert_eq!(PublicKeys::read(&path).unwrap().count(), 2);
        std::fs::write(&path, format!("{KEY}RWQnonsense\n")).unwrap();
        assert!(matches!(PublicKeys::read(&path), Err(SignatureError::NotAKey { line: 3, .. })));
        std::fs::write(&path, "untrusted comment: none\n").unwrap();
        assert!(matches!(PublicKeys::read(&path), Err(SignatureError::NoKey { .. })));
        std::fs::write(&path, [0xff; 9]).unwrap();
        assert!(matches!(PublicKeys::read(&path), Err(SignatureError::NotAKey { line: 1, .. })));
        std::fs::write(&path, vec![b'#'; KEYS_MAX + 1]).unwrap();
        assert!(matches!(PublicKeys::read(&path), Err(SignatureError::TooLong { .. })));
        // Nothing is waited for that may never come.
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for path in [dir.path(), Path::new("/dev/zero"), &fifo] {
            assert!(matches!(PublicKeys::read(path), Err(SignatureError::NotAFile { .. })));
            assert!(matches!(read(path), Err(SignatureError::NotAFile { .. })));
        }
    }

    #[test]
    fn what_is_passed_on_is_signed_and_what_is_found_is_no_link() {
        let text =
            SIGNATURE.replacen("untrusted comment: ", "untrusted comment: one secret and ", 1) + "another\n";
        let passed = canonical(&text).unwrap();
        assert!(!passed.contains("secret") && !passed.contains("another"), "{passed}");
        PublicKeys::parse(KEY, "key").unwrap().verify(&[0; 32], &passed).unwrap();
        assert_eq!(canonical(&passed).unwrap(), passed);
        assert!(matches!(canonical("a\nsecret\n"), Err(SignatureError::NotASignature { .. })));
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        assert!(read_beside(&image).unwrap().is_none());
        std::fs::write(dir.path().join("elsewhere"), SIGNATURE).unwrap();
        std::os::unix::fs::symlink("elsewhere", beside(&image)).unwrap();
        assert!(matches!(read_beside(&image), Err(SignatureError::Read { .. })));
        assert_eq!(read(&beside(&image)).unwrap(), SIGNATURE);
        std::fs::rename(dir.path().join("elsewhere"), beside(&image)).unwrap();
        assert_eq!(read_beside(&image).unwrap().as_deref(), Some(SIGNATURE));
    }

    #[test]
    fn places() {
        for (image, signature) in [("a/m.daxfs", "a/m.daxfs.minisig"), ("weights/", "weights.minisig")] {
            assert_eq!(beside(Path::new(image)), Path::new(signature));
        }
        assert_eq!(statement(&[0x0f; 32]), format!("daxfs content blake3:{}\n", "0f".repeat(32)));
    }
}
