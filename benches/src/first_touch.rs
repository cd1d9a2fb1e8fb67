//! Opening an image and touching every page of it once, for images in several kinds of pages, against a mapping of the
//! file that they were packed from, as the page cache has it after several ways of filling it.

use crate::peer;
use crate::rounds::{self, Case, Limits, touch};
use anyhow::Result;
use daxfs::{FileType, Image};
use serde_json::Value;
use std::path::Path;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file that the images were packed from: a name for the results, and its path.
    #[arg(long = "file", value_name = "NAME=PATH", value_parser = named, required = true)]
    files: Vec<(String, String)>,

    /// An image: a name for the results, and its source.
    #[arg(long = "image", value_name = "NAME=SOURCE", value_parser = named, required = true)]
    images: Vec<(String, String)>,

    #[command(flatten)]
    limits: Limits,
}

fn named(text: &str) -> Result<(String, String), &'static str> {
    let (name, rest) = text.split_once('=').ok_or("there is no = in it")?;
    Ok((name.to_owned(), rest.to_owned()))
}

pub(crate) fn run(args: &Args) -> Result<Value> {
    let populated: Vec<String> = args.images.iter().map(|(name, _)| format!("{name}, populated")).collect();
    let mut cases: Vec<Case<'_>> = Vec::new();
    for (name, path) in &args.files {
        cases.push((name, Box::new(move || rounds::time(|| mapped(Path::new(path))))));
    }
    for ((name, source), populated) in args.images.iter().zip(&populated) {
        cases.push((name, Box::new(move || rounds::time(|| opened(source, false)))));
        cases.push((populated, Box::new(move || rounds::time(|| opened(source, true)))));
    }
    rounds::interleave(&mut cases, args.limits)
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

fn mapped(file: &Path) -> Result<(memmap2::Mmap, u64)> {
    let map = peer::map(file)?;
    let sum = touch(&map);
    Ok((map, sum))
}
