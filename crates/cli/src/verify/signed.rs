//! The signature of the content, which is the one that was computed from every byte.

use super::{Findings, Kind};
use crate::args::VerifyArgs;
use anyhow::bail;
use daxfs::signature::{PublicKeys, SignatureError, read};
use daxfs::{ContentHash, Image};

/// The keys that the command line names, read before anything that takes long.
///
/// # Errors
/// When the file cannot be read or holds something else.
pub fn keys(args: &VerifyArgs) -> anyhow::Result<Option<PublicKeys>> {
    Ok(args.key.as_deref().map(PublicKeys::read).transpose()?)
}

/// Checks the signature of what was found to be the content.
///
/// # Errors
/// When the signature cannot be read.
pub fn check(
    image: &Image,
    keys: &PublicKeys,
    args: &VerifyArgs,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    // A key on P-256 may have signed the digests of all files instead.
    let files_are_signed = findings.facts.manifests.iter().any(super::manifest::Facts::is_valid_for_all);
    match findings.facts.content_hash.as_deref().and_then(|content| content.parse().ok()) {
        Some(content) => {
            check_content(image, keys, args, &content, files_are_signed, findings)?;
            let is_signed = files_are_signed || findings.facts.signed_by.is_some();
            super::manifest::refuse(findings, is_signed);
        }
        None => {
            super::manifest::refuse(findings, files_are_signed);
            if findings.is_clean() && !files_are_signed {
                bail!(
                    "the image has no content hash, so there is nothing that could be signed; pack it with --hash"
                );
            }
        }
    }
    Ok(())
}

fn check_content(
    image: &Image,
    keys: &PublicKeys,
    args: &VerifyArgs,
    content: &ContentHash,
    files_are_signed: bool,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let attached = image.region().attachment().and_then(|attachment| attachment.signature());
    let checked = match (&args.signature, attached) {
        (Some(path), _) => keys.verify(content, &read(path)?),
        (None, Some(text)) => keys.verify(content, text),
        (None, None) => match daxfs_holder::client::beside(&args.image) {
            Ok(Some(found)) => found.verify(keys, content),
            // What lies beside the image says nothing of it, whatever is wrong with it.
            Ok(None) | Err(_) if files_are_signed => return Ok(()),
            Err(error) => {
                findings.differ(Kind::Signature, None, format!("{error:#}"));
                return Ok(());
            }
            Ok(None) => {
                let advice = "it is looked for in IMAGE.minisig and IMAGE.cosign; --signature names it";
                Err(SignatureError::Missing { advice })
            }
        },
    };
    match checked {
        Ok(valid) => {
            findings.facts.signed_by = Some(valid.scheme.to_string());
            findings.facts.signed = Some(valid.comment);
        }
        Err(error) => findings.differ(Kind::Signature, None, error.to_string()),
    }
    Ok(())
}
