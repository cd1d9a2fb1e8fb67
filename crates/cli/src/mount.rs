//! `daxfs mount`: an image as files, by the kernel's own DAXFS.

use crate::args::MountArgs;
use crate::output::Outcome;
use crate::source::name;
use anyhow::Context;
use daxfs::Image;
use std::ffi::OsStr;
use std::path::Path;

/// Has the kernel mount the image, with the contents in `backing` if it is a split one.
pub fn run(image: &Image, args: &MountArgs, backing: Option<&OsStr>) -> anyhow::Result<Outcome> {
    match backing {
        None => image.mount(&args.dir),
        Some(path) => image.mount_split(&args.dir, Path::new(path)),
    }
    .with_context(|| name(&args.image))?;
    Ok(Outcome::Clean)
}
