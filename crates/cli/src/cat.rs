//! `daxfs cat`: contents of files, byte for byte: as they lie in the image, or as they were in their source.

use crate::args::CatArgs;
use crate::output::{Outcome, Output, report};
use daxfs::Image;
use std::os::unix::ffi::OsStrExt;

/// Writes one file after the other. A path that cannot be read is reported, and the next one follows.
pub fn run(image: &Image, args: &CatArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::Clean;
    for path in &args.paths {
        let written = image.file(path.as_bytes()).and_then(|file| match args.original {
            true => file.original()?.copy_to(out),
            false => file.copy_to(out),
        });
        match written {
            Ok(_) => (),
            Err(error) if out.reader_left() => return Err(error.into()),
            Err(error) => {
                out.finish()?;
                report(&error.into());
                outcome = Outcome::Failed;
            }
        }
    }
    Ok(outcome)
}
