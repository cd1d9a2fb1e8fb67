//! The signature of the content, which is the one that was computed from every byte.

use super::{Findings, Kind};
use crate::args::VerifyArgs;
use anyhow::bail;
use daxfs::signature::{PublicKeys, SignatureError, read};
use daxfs::{Image, parse_content_hash};

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
    let is_signed = findings.facts.manifests.iter().any(super::manifest::Facts::is_valid_for_all);
    let Some(content) = findings.facts.content_hash.as_deref().and_then(parse_content_hash) else {
        if findings.is_clean() && !is_signed {
            bail!(
                "the image has no content hash, so there is nothing that could be signed; pack it with --hash"
            );
        }
        return Ok(());
    };
    let attached = image.region().attachment().and_then(|attachment| attachment.signature());
    let signature = match (&args.signature, attached) {
        (Some(path), _) => Some(read(path)?),
        (None, Some(text)) => Some(text.to_owned()),
        (None, None) => crate::holder::beside(&args.image)?,
    };
    let checked = match signature {
        Some(text) => keys.verify(&content, &text),
        None if is_signed => return Ok(()),
        None => {
            let advice = "it is looked for in IMAGE.minisig and IMAGE.cosign; --signature names it";
            Err(SignatureError::Missing { advice })
        }
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
