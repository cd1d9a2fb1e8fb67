//! The report of `inspect` as JSON.

use super::layout::{Checkpoint as CheckpointMap, FileMap, Kind, Layout, TensorMap, Usage};
use super::report::is_aligned;
use crate::json::{self, PathJson};
use crate::memory::Memory;
use daxfs::{Image, ViewKind};
use serde::Serialize;
use std::io::Write;

#[derive(Serialize)]
struct Report<'a> {
    image: Summary,
    memory: &'a Memory,
    regions: Vec<Region>,
    checkpoints: Vec<Checkpoint<'a>>,
    files: Vec<File<'a>>,
}

#[derive(Serialize)]
struct Summary {
    version: u32,
    block_size: u32,
    size: u64,
    entries: usize,
    inodes: u32,
    view: &'static str,
    /// Overlay or log entries that were applied.
    view_entries: u64,
    tensors: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_hash: Option<String>,
}

#[derive(Serialize)]
struct Region {
    name: &'static str,
    first: u64,
    bytes: u64,
    pieces: usize,
}

#[derive(Serialize)]
struct Checkpoint<'a> {
    #[serde(flatten)]
    path: PathJson,
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shards: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct File<'a> {
    #[serde(flatten)]
    path: PathJson,
    ino: u64,
    size: u64,
    /// Absolute, in the image or in the backing file; missing for empty files and files in pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    in_image: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<Tensor<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    dtype: &'static str,
    shape: &'a [u64],
    bytes: u64,
    offset_in_file: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    alignment: u64,
    aligned: bool,
}

/// Writes everything.
pub fn write(
    image: &Image,
    layout: &Layout,
    memory: &Memory,
    files: &[&FileMap],
    align: u64,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let superblock = image.superblock();
    let (view, view_entries) = match image.view_kind() {
        ViewKind::Base => ("base", 0),
        ViewKind::Overlay { entries } => ("overlay", entries),
        ViewKind::Branch { entries } => ("branch", entries),
        _ => ("other", 0),
    };
    let report = Report {
        image: Summary {
            version: superblock.version,
            block_size: superblock.block_size,
            size: superblock.total_size,
            entries: image.len(),
            inodes: superblock.inode_count,
            view,
            view_entries,
            tensors: layout.tensors().count(),
            content_hash: image.content_hash().map(|hash| hash.digits().to_string()),
        },
        memory,
        regions: regions(layout),
        checkpoints: layout.checkpoints.iter().map(checkpoint).collect(),
        files: files.iter().map(|map| file(map, align)).collect(),
    };
    json::write(out, &report)
}

fn regions(layout: &Layout) -> Vec<Region> {
    let usage = layout.usage();
    let region = |(kind, usage): (Kind, Usage)| Region {
        name: kind.name(),
        first: usage.first,
        bytes: usage.bytes,
        pieces: usage.pieces,
    };
    usage.into_iter().map(region).collect()
}

fn checkpoint(checkpoint: &CheckpointMap) -> Checkpoint<'_> {
    let contents = checkpoint.contents.as_ref();
    Checkpoint {
        path: PathJson::new(&checkpoint.path),
        complete: contents.is_ok(),
        tensors: contents.ok().map(|(tensors, _)| *tensors),
        shards: contents.ok().map(|(_, shards)| *shards),
        error: contents.err().map(String::as_str),
    }
}

fn file(map: &FileMap, align: u64) -> File<'_> {
    let tensors = map.tensors.as_ref().map(Result::as_ref);
    File {
        path: PathJson::new(&map.path),
        ino: map.entry.metadata().ino,
        size: map.entry.metadata().size,
        offset: map.extent.as_ref().map(|extent| extent.start),
        in_image: map.in_image,
        tensors: tensors.and_then(Result::ok).map(|list| list.iter().map(|t| tensor(t, align)).collect()),
        error: tensors.and_then(Result::err).map(String::as_str),
    }
}

fn tensor(map: &TensorMap, align: u64) -> Tensor<'_> {
    Tensor {
        name: &map.name,
        dtype: map.dtype.name(),
        shape: &map.shape,
        bytes: map.nbytes,
        offset_in_file: map.in_file,
        offset: map.offset,
        alignment: map.alignment,
        aligned: is_aligned(map, align),
    }
}
