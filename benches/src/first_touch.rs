//! Opening an image and touching every page of it once, for images in several kinds of pages, against a mapping of the
//! file that they were packed from.

use crate::peer;
use crate::rounds::{self, Case, Limits, touch};
use anyhow::{Context, Result};
use daxfs::{FileType, Image};
use serde_json::Value;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file that was packed, for the peer.
    #[arg(long)]
    model: PathBuf,

    /// An image: a name for the results, and its source.
    #[arg(long = "image", value_name = "NAME=SOURCE", required = true)]
    images: Vec<String>,

    #[command(flatten)]
    limits: Limits,
}

pub(crate) fn run(args: &Args) -> Result<Value> {
    let model = args.model.as_path();
    let populated: Vec<String> =
        args.images.iter().map(|image| name(image).to_owned() + ", populated").collect();
    let mut cases: Vec<Case<'_>> = vec![("mmap", Box::new(move || rounds::time(|| mapped(model))))];
    for (image, populated) in args.images.iter().zip(&populated) {
        let (_, source) = image.split_once('=').context("--image takes NAME=SOURCE")?;
        cases.push((name(image), Box::new(move || rounds::time(|| opened(source, false)))));
        cases.push((populated, Box::new(move || rounds::time(|| opened(source, true)))));
    }
    rounds::interleave(&mut cases, args.limits)
}

fn name(image: &str) -> &str {
    image.split('=').next().unwrap_or(image)
}

fn opened(source: &str, populate: bool) -> Result<(Image, u64)> {
    let image = Image::open(source)?;
    if populate {
        image.region().populate()?;
    }
    let mut sum = 0;
    for entry in image.walk().filter(|entry| entry.file_type() == FileType::File) {
        sum += touch(entry.file()?.as_slice()?);
    }
    Ok((image, sum))
}

fn mapped(model: &Path) -> Result<(memmap2::Mmap, u64)> {
    let map = peer::map(model)?;
    let sum = touch(&map);
    Ok((map, sum))
}
