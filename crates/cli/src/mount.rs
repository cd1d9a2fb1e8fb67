//! `daxfs mount`: an image as files, by the kernel's own DAXFS.

use crate::args::MountArgs;
use crate::output::Outcome;
use crate::source::name;
use anyhow::Context;
use daxfs::Image;

/// Has the kernel mount the image.
pub fn run(image: &Image, args: &MountArgs) -> anyhow::Result<Outcome> {
    image.mount(&args.dir).with_context(|| name(&args.image))?;
    Ok(Outcome::Clean)
}
