//! Signatures of the images that are held: where they lie, and what a holder that requires them takes.
//!
//! A signature is a second descriptor of an image ([`Role::Signature`]): it goes to clients, to the next holder and into
//! the supervisor's store as the image does, so it is there whenever it is to be checked.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use daxfs::signature::{PublicKeys, SIGNATURE_MAX, SignatureError};
use daxfs_protocol::message::{ImageInfo, MemoryKind, Role};
use dmabuf::{HugePages, Memfd, Seals};

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

/// The signature among an image's descriptors, which gets the place of what was there; `None` where there is none, or
/// where it is not one in sealed memory, which is left out then.
pub(crate) fn keep_signature(info: &mut ImageInfo, fds: &mut Vec<OwnedFd>) -> Option<String> {
    let at = info.roles.iter().position(|role| *role == Role::Signature).filter(|at| *at < fds.len())?;
    info.roles.remove(at);
    let (text, fd) = cleaned(fds.remove(at))?;
    info.roles.insert(at, Role::Signature);
    fds.insert(at, fd);
    Some(text)
}

/// A signature that another holder had, and a descriptor of it and of nothing else.
pub(crate) fn cleaned(fd: OwnedFd) -> Option<(String, OwnedFd)> {
    let found = text(fd.as_fd())?;
    let text = daxfs::signature::canonical(&found).ok()?;
    let fd = if text == found { fd } else { sealed(&text).ok()? };
    Some((text, fd))
}

/// The text of a signature.
fn text(fd: BorrowedFd<'_>) -> Option<String> {
    let info = dmabuf::describe(fd).ok()?;
    let is_sealed = info.kind.is_immutable();
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
/// [`Error::SignedNotSealed`] for memory that can still be written: what was signed would not be what clients get.
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
    let valid = keys.verify(&content, signature).map_err(Error::NotSigned)?;
    let (scheme, comment) = (valid.scheme, valid.comment);
    tracing::info!(name = info.name, %scheme, comment, "signature is valid");
    Ok(())
}

/// There is none.
pub(crate) fn missing() -> SignatureError {
    SignatureError::Missing {
        advice: "this holder was started with --require-signed; sign it (daxfs-pack --sign) and load it with --signature",
    }
}
