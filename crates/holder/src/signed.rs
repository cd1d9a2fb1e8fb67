//! Signatures of the images that are held: where they lie, and what a holder that requires them takes.
//!
//! A signature is a second descriptor of an image ([`Role::Signature`]): it goes to clients, to the next holder and into
//! the supervisor's store as the image does, so it is there whenever it is to be checked.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use daxfs::holder::message::{ImageInfo, MemoryKind, Role};
use daxfs::signature::{PublicKeys, SIGNATURE_MAX, SignatureError};
use dmabuf::{FdKind, HugePages, Memfd, Seals};

use crate::error::{Error, Result};

/// A signature in sealed memory.
///
/// # Errors
/// [`Error::Memory`].
pub(crate) fn sealed(signature: &str) -> Result<OwnedFd> {
    let memfd = Memfd::create("daxfs-signature", signature.len() as u64, HugePages::No)?;
    let file = memfd.as_fd().try_clone_to_owned().map_err(|e| Error::system("duplicate a descriptor", e))?;
    let written = std::fs::File::from(file).write_all_at(signature.as_bytes(), 0);
    written.map_err(|e| Error::system("write the signature", e))?;
    memfd.seal(Seals::IMMUTABLE | Seals::SEAL)?;
    Ok(memfd.into())
}

/// The signature among an image's descriptors; `None` where there is none, or where it is no text in sealed memory.
pub(crate) fn signature_of(info: &ImageInfo, fds: &[OwnedFd]) -> Option<String> {
    let found = info.roles.iter().zip(fds).find(|(role, _)| **role == Role::Signature);
    found.and_then(|(_, fd)| text(fd.as_fd()))
}

/// The text of a signature.
pub(crate) fn text(fd: BorrowedFd<'_>) -> Option<String> {
    let info = dmabuf::describe(fd).ok()?;
    let is_sealed = matches!(info.kind, FdKind::Memfd { seals, .. } if seals.contains(Seals::IMMUTABLE));
    if !is_sealed || info.len > SIGNATURE_MAX as u64 {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(info.len).ok()?];
    let file = std::fs::File::from(fd.try_clone_to_owned().ok()?);
    file.read_exact_at(&mut bytes, 0).ok()?;
    String::from_utf8(bytes).ok()
}

/// Whether an image may be held where one of `keys` must have signed it.
///
/// # Errors
/// [`Error::SignedNotSealed`] for memory that somebody could still write: what was signed would not be what clients get.
/// [`Error::NotSigned`] without a valid signature.
pub(crate) fn check(keys: Option<&PublicKeys>, info: &ImageInfo, signature: Option<&str>) -> Result<()> {
    let Some(keys) = keys else { return Ok(()) };
    if info.kind != MemoryKind::SealedMemfd {
        return Err(Error::SignedNotSealed);
    }
    let content = info.content_hash.ok_or(Error::NotSigned(SignatureError::Missing {
        advice: "it has no content hash that could be signed; pack it with --hash",
    }))?;
    let signature = signature.ok_or(Error::NotSigned(missing()))?;
    let comment = keys.verify(&content, signature).map_err(Error::NotSigned)?;
    tracing::info!(name = info.name, comment, "signature is valid");
    Ok(())
}

/// There is none.
pub(crate) fn missing() -> SignatureError {
    SignatureError::Missing {
        advice: "this holder was started with --require-signed; sign it (daxfs-pack --sign) and load it with --signature",
    }
}
