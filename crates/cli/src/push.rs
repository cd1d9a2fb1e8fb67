//! `daxfs push`: an image into a registry of containers.

use crate::args::PushArgs;
use crate::output::{Outcome, Output};
use crate::progress::Progress;
use crate::source::name;
use anyhow::{Context, bail};
use daxfs::{Image, RemoteAddress};
use std::io::Write;

/// Pushes an image, and prints its address by digest.
pub fn run(image: &Image, args: &PushArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let Some(address) = RemoteAddress::parse(&args.address).transpose()? else {
        bail!("{}: an image is pushed to a registry: oci://REGISTRY/REPOSITORY:TAG", name(&args.address));
    };
    if image.backing().is_some() || image.superblock().data_is_external() {
        bail!("{}: a split image is two memories, and a layer is one", name(&args.image));
    }
    let bar = Progress::new("pushing", 0, args.quiet);
    let digest = address
        .push(image.region(), &mut |done, total| {
            bar.set(done, total);
            true
        })
        .with_context(|| name(&args.image))?;
    bar.clear();
    // Only what stands behind the last slash can have a tag: a port stands before it.
    let shown = address.to_string();
    let repository = match shown.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => &shown,
    };
    writeln!(out, "{repository}@{digest}")?;
    Ok(Outcome::Clean)
}
