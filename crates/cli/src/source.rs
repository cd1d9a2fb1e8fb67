//! Opens the image that the command line names.

use crate::args::{Expect, SourceArgs};
use crate::progress::Progress;
use crate::text::escape;
use anyhow::Context;
use daxfs::{ContentHash, Image, OpenOptions, Region, RemoteAddress, Verify, Wanted};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Opens `image` as the flags say, and shows how far hashing is unless that is to be `quiet`.
///
/// # Errors
/// When a source cannot be opened or the image breaks a rule; the message names the source.
pub fn open(args: &SourceArgs, image: &OsStr, quiet: bool) -> anyhow::Result<Image> {
    open_region(args, image, mapped(image, args.content(), quiet)?, quiet)
}

/// Opens `image` for a listing: of one that lies elsewhere the metadata alone is fetched. With `needs_index` tensors are
/// listed, which takes the index, or else the files.
///
/// # Errors
/// As for [`open`].
pub fn open_listing(
    args: &SourceArgs,
    image: &OsStr,
    needs_index: bool,
    quiet: bool,
) -> anyhow::Result<Image> {
    // What is compared is fetched, and a copy of nothing helps nobody.
    if let Some(address) = RemoteAddress::parse(image)
        && args.verify.is_none()
        && !args.sealed_copy
    {
        let fd = address?.fetch(Wanted::Metadata, args.content(), &mut |_, _| true)?;
        let options = options(args)?.verify(Verify::Stored);
        let listed = options.open_region(Region::from_fd(fd)?).with_context(|| name(image))?;
        if !needs_index || listed.index()?.is_some() {
            return Ok(listed);
        }
    }
    open(args, image, quiet)
}

fn open_region(args: &SourceArgs, image: &OsStr, region: Region, quiet: bool) -> anyhow::Result<Image> {
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

/// Maps a source; of one that lies elsewhere it shows how far fetching is.
fn mapped(source: &OsStr, expect: Option<ContentHash>, quiet: bool) -> anyhow::Result<Region> {
    match RemoteAddress::parse(source) {
        Some(address) => fetch(&address?, expect, quiet),
        None => map(source),
    }
}

/// Fetches an image that lies elsewhere.
///
/// # Errors
/// When it cannot be had.
pub fn fetch(address: &RemoteAddress, expect: Option<ContentHash>, quiet: bool) -> anyhow::Result<Region> {
    let bar = Progress::new("fetching", 0, quiet);
    let region = Region::fetch(address, expect, |done, total| {
        bar.set(done, total);
        true
    })?;
    bar.clear();
    Ok(region)
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

/// A source as errors show it. An address may hold what is secret.
pub fn name(source: &OsStr) -> String {
    if let Some(Ok(address)) = RemoteAddress::parse(source) {
        return escape(address.to_string().as_bytes());
    }
    if source == "-" { "standard input".to_owned() } else { escape(source.as_bytes()) }
}
