//! From nothing to the first tensor's pointer, and from nothing to every page of every tensor touched.

use crate::rounds::{self, Case, Limits, touch};
use crate::{image_source, peer};
use anyhow::{Context, Result};
use daxfs::{Image, Tensor};
use safetensors::SafeTensors;
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The safetensors file that the image was packed from, for the peer.
    #[arg(long)]
    model: PathBuf,

    /// The same image as a file.
    #[arg(long)]
    image_file: Option<PathBuf>,

    /// The tensor to reach.
    #[arg(long)]
    tensor: String,

    #[command(flatten)]
    limits: Limits,
}

pub(crate) fn run(args: &Args) -> Result<Value> {
    let source = image_source()?;
    let source = source.as_os_str();
    let model = args.model.as_path();
    let name = args.model.file_name().context("--model names no file")?.as_encoded_bytes();
    let tensor = args.tensor.as_str();
    let mut first: Vec<Case<'_>> = vec![
        ("daxfs", Box::new(move || rounds::time(|| daxfs_first(source, name, tensor)))),
        ("safetensors", Box::new(move || rounds::time(|| safetensors_first(model, tensor)))),
    ];
    if let Some(path) = &args.image_file {
        let path = path.as_os_str();
        first.push(("daxfs, file", Box::new(move || rounds::time(|| daxfs_first(path, name, tensor)))));
    }
    let mut touched: Vec<Case<'_>> = vec![
        ("daxfs, touched", Box::new(move || rounds::time(|| daxfs_all(source, name)))),
        ("safetensors, touched", Box::new(move || rounds::time(|| safetensors_all(model)))),
    ];
    // Not in turns with each other: what comes after all has been touched finds the processor's caches full of that.
    rounds::interleave_apart(&mut [&mut first, &mut touched], args.limits)
}

fn daxfs_first(source: &OsStr, file: &[u8], name: &str) -> Result<(Tensor, *const u8)> {
    let tensor = Image::open(source)?.file(file)?.tensors()?.get(name)?;
    let pointer = tensor.bytes()?.as_ptr();
    Ok((tensor, pointer))
}

fn safetensors_first(model: &Path, name: &str) -> Result<(memmap2::Mmap, *const u8)> {
    let map = peer::map(model)?;
    let pointer = SafeTensors::deserialize(&map)?.tensor(name)?.data().as_ptr();
    Ok((map, pointer))
}

fn daxfs_all(source: &OsStr, file: &[u8]) -> Result<(Image, u64)> {
    let image = Image::open(source)?;
    let mut sum = 0;
    for tensor in image.file(file)?.tensors()?.iter() {
        sum += touch(tensor?.as_slice()?);
    }
    Ok((image, sum))
}

fn safetensors_all(model: &Path) -> Result<(memmap2::Mmap, u64)> {
    let map = peer::map(model)?;
    let sum = SafeTensors::deserialize(&map)?.iter().map(|(_, view)| touch(view.data())).sum();
    Ok((map, sum))
}
