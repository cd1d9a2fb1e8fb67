//! Opens the image that the command line names.

use crate::args::{Expect, SourceArgs};
use crate::progress::Progress;
use crate::text::escape;
use anyhow::Context;
use daxfs::{Image, OpenOptions, Region};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Opens `image` as the flags say, and shows how far hashing is unless that is to be `quiet`.
///
/// # Errors
/// When a source cannot be opened or the image breaks a rule; the message names the source.
pub fn open(args: &SourceArgs, image: &OsStr, quiet: bool) -> anyhow::Result<Image> {
    let region = map(image)?;
    let bar = Progress::new("hashing", 0, quiet);
    let shown = bar.another();
    let options = options(args)?.progress(move |done, total| {
        shown.set(done, total);
        true
    });
    let opened = options.open_region(region).with_context(|| name(image));
    bar.clear();
    opened
}

/// The flags as options of the reader; opens the backing file.
///
/// # Errors
/// When the backing file cannot be opened.
pub fn options(args: &SourceArgs) -> anyhow::Result<OpenOptions> {
    let mut options =
        OpenOptions::new().strict(args.strict).sealed_copy(args.sealed_copy).max_metadata(args.max_metadata);
    match &args.expect {
        Some(Expect::Content(hash)) => options = options.expect(*hash),
        Some(Expect::Verity(digest)) => options = options.expect_verity(digest.clone()),
        None => {}
    }
    if let Some(verify) = args.verify {
        options = options.verify(verify);
    }
    if let Some(backing) = &args.backing {
        options = options.backing(map(backing)?);
    }
    Ok(options)
}

/// Maps a source.
///
/// # Errors
/// When it cannot be opened or is no shareable memory.
pub fn map(source: &OsStr) -> anyhow::Result<Region> {
    match Region::open(source) {
        Ok(region) => Ok(region),
        // The system call's own message names its subject.
        Err(error) if error.to_string().contains(&name(source)) => Err(error.into()),
        Err(error) => Err(error).with_context(|| name(source)),
    }
}

/// A source as errors show it.
pub fn name(source: &OsStr) -> String {
    if source == "-" { "standard input".to_owned() } else { escape(source.as_bytes()) }
}
