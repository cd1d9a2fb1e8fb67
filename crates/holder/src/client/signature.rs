//! The signatures that lie beside what is loaded.

use std::ffi::OsStr;
use std::path::PathBuf;

use daxfs::signature::{self, Found, SignatureError};
use daxfs::{Part, Source};

/// The signature beside a source for its holder, which passes it on: nothing but what is signed. Nobody has named it, so
/// what is beside the source and cannot be read as a signature is left out, `warn` gets a text about it, and a holder
/// that requires a signature refuses the source.
///
/// # Errors
/// When the text of the source breaks a rule.
pub fn found(source: &OsStr, mut warn: impl FnMut(String)) -> daxfs::Result<Option<String>> {
    let Some(path) = whole(source)? else { return Ok(None) };
    let (text, refused): (String, Vec<SignatureError>) = match signature::read_beside(&path) {
        Ok(None) => return Ok(None),
        Ok(Some(found)) => found.canonical(),
        Err(error) => (String::new(), vec![error]),
    };
    for error in refused {
        warn(format!("{}: what lies beside it is not a signature and is left out: {error}", path.display()));
    }
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// The signatures beside a source that is a path, if any is there.
///
/// # Errors
/// When the text of the source breaks a rule, or what lies beside it cannot be read.
pub fn beside(source: &OsStr) -> daxfs::Result<Option<Found>> {
    let Some(path) = whole(source)? else { return Ok(None) };
    signature::read_beside(&path).map_err(daxfs::Error::Signature)
}

/// The path of a source that is a whole file or directory.
fn whole(source: &OsStr) -> daxfs::Result<Option<PathBuf>> {
    match Source::parse(source)? {
        Source::Path { path, part: Part::WHOLE } => Ok(Some(path)),
        _ => Ok(None),
    }
}
