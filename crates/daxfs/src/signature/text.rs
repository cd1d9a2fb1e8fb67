//! The text of signatures: read from files, parsed, and made into what may be passed on.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use minisign_verify::{Error, Signature};

use super::cosign::{self, Signed};
use super::{SIGNATURE_MAX, Scheme, SignatureError, several};

/// One signature of a text.
pub(super) enum Part {
    Minisign(Signature),
    Cosign(Signed),
}

impl Part {
    pub(super) fn scheme(&self) -> Scheme {
        match self {
            Self::Minisign(_) => Scheme::Minisign,
            Self::Cosign(_) => Scheme::Cosign,
        }
    }
}

/// Reads a signature of minisign in a file, or those of cosign in an OCI image layout, bounded.
///
/// # Errors
/// [`SignatureError::Read`], [`SignatureError::TooLong`], [`SignatureError::NotASignature`] when it is no text,
/// [`SignatureError::NotALayout`].
pub fn read(path: &Path) -> Result<String, SignatureError> {
    let open = |name: &Path| dmabuf::open_read_only(&path.join(name));
    if path.is_dir()
        && let Some(read) = cosign::read_layout(path, &open)
    {
        return read;
    }
    read_file(path, SIGNATURE_MAX, dmabuf::open_read_only)
}

/// A signature without what nobody signed: the untrusted comment of minisign, lines behind its four, and whatever else
/// those of cosign may come with, and lines that are no signature. This is what may be passed on to others, as no other
/// text comes with it.
///
/// # Errors
/// [`SignatureError::TooLong`], [`SignatureError::NotASignature`].
pub fn canonical(text: &str) -> Result<String, SignatureError> {
    let mut passed = String::new();
    for part in decode(text)?.0 {
        match part {
            Part::Minisign(_) => {
                let lines = text.lines().filter(|line| !is_cosign(line)).skip(1).take(3);
                passed.push_str("untrusted comment: signature of a daxfs content\n");
                for line in lines {
                    passed.push_str(line);
                    passed.push('\n');
                }
            }
            Part::Cosign(signed) => passed.push_str(&signed.text()),
        }
    }
    bounded(&passed)?;
    Ok(passed)
}

/// Every signature in a text, and why what else is in it is none: lines of JSON are those of cosign, the others
/// together are one of minisign.
///
/// # Errors
/// Why, when there is no signature at all.
pub(super) fn decode(text: &str) -> Result<(Vec<Part>, Vec<SignatureError>), SignatureError> {
    bounded(text)?;
    let (mut parts, mut refused) = (Vec::new(), Vec::new());
    let (cosigns, others): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| is_cosign(line));
    let minisign = others.iter().any(|line| !line.trim().is_empty()) || cosigns.is_empty();
    let minisign = minisign.then(|| decode_minisign(&others.join("\n")).map(Part::Minisign));
    let cosigns = cosigns.into_iter().map(|line| Signed::parse(line).map(Part::Cosign));
    for part in minisign.into_iter().chain(cosigns) {
        match part {
            Ok(part) => parts.push(part),
            Err(error) => refused.push(error),
        }
    }
    if parts.is_empty() { Err(several(refused)) } else { Ok((parts, refused)) }
}

fn decode_minisign(text: &str) -> Result<Signature, SignatureError> {
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

/// No line of minisign's begins so.
fn is_cosign(line: &str) -> bool {
    line.starts_with('{')
}

pub(super) fn bounded(text: &str) -> Result<(), SignatureError> {
    if text.len() > SIGNATURE_MAX {
        return Err(SignatureError::TooLong { what: "the signature".into(), max: SIGNATURE_MAX });
    }
    Ok(())
}

/// Reads a text file of at most `max` bytes.
pub(super) fn read_file(
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
pub(super) fn into_io(error: dmabuf::Error) -> std::io::Error {
    match error {
        dmabuf::Error::Os { source, .. } => source,
        other => std::io::Error::other(other),
    }
}
