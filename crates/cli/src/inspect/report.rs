//! The report of `inspect` as text.

use super::layout::{FileMap, Kind, Layout, TensorMap};
use crate::memory::Memory;
use crate::text::{Side, Table, alignment, count, escape, human, percent};
use daxfs::{Image, ViewKind};
use std::io::{self, Write};

/// Writes everything.
pub fn write(
    image: &Image,
    layout: &Layout,
    memory: &Memory,
    files: &[&FileMap],
    align: u64,
    out: &mut impl Write,
) -> io::Result<()> {
    summary(image, layout, memory, out)?;
    regions(image, layout, out)?;
    checkpoints(layout, out)?;
    for file in files {
        // Headers that are not valid are reported as errors, after this.
        if let Some(Ok(tensors)) = &file.tensors {
            writeln!(out)?;
            tensor_table(file, tensors, align, out)?;
        }
    }
    Ok(())
}

fn summary(image: &Image, layout: &Layout, memory: &Memory, out: &mut impl Write) -> io::Result<()> {
    let superblock = image.superblock();
    let mut table = Table::new([Side::Left, Side::Left]);
    let mut line = |label: &str, text: String| table.row([format!("{label}:"), text]);
    line(
        "image",
        format!(
            "DAXFS version {}, {} ({} bytes), blocks of {}",
            superblock.version,
            human(superblock.total_size),
            superblock.total_size,
            superblock.block_size
        ),
    );
    line("view", view(image));
    line(
        "holds",
        format!(
            "{} in {}, {}",
            count(image.len() as u64, "entry", "entries"),
            count(superblock.inode_count.into(), "inode", "inodes"),
            count(layout.tensors().count() as u64, "tensor", "tensors")
        ),
    );
    if let Some(hash) = image.content_hash() {
        line("content hash", hash.digits().to_string());
    }
    for (label, text) in memory.lines() {
        line(label, text);
    }
    table.write(out, 0)
}

/// What was applied to get the tree that is shown.
pub fn view(image: &Image) -> String {
    let base = if image.superblock().base.is_some() { "base image under an overlay" } else { "overlay" };
    match image.view_kind() {
        ViewKind::Base => "base image".to_owned(),
        ViewKind::Overlay { entries } => format!("{base} of {}", count(entries, "entry", "entries")),
        ViewKind::Branch { entries } => {
            format!("base image with {} of branch main", count(entries, "log entry", "log entries"))
        }
        other => format!("{other:?}"),
    }
}

fn regions(image: &Image, layout: &Layout, out: &mut impl Write) -> io::Result<()> {
    let memory = image.region().len();
    let right = Side::Right;
    let mut table = Table::new([Side::Left, right, right, right, right]);
    table.row(["region", "first byte", "bytes", "share", "pieces"].map(str::to_owned));
    for (kind, usage) in layout.usage() {
        table.row([
            kind.name().to_owned(),
            format!("{:#x}", usage.first),
            usage.bytes.to_string(),
            percent(usage.bytes, memory),
            usage.pieces.to_string(),
        ]);
        if kind == Kind::Files {
            let tensors = layout.tensor_bytes();
            if tensors > 0 {
                let name = "  tensors in them".to_owned();
                let number = layout.tensors().count().to_string();
                table.row([name, String::new(), tensors.to_string(), percent(tensors, memory), number]);
            }
        }
    }
    let total = layout.pieces.len().to_string();
    table.row(["total".to_owned(), String::new(), memory.to_string(), percent(memory, memory), total]);
    writeln!(out)?;
    table.write(out, 0)
}

fn checkpoints(layout: &Layout, out: &mut impl Write) -> io::Result<()> {
    for checkpoint in &layout.checkpoints {
        let path = escape(&checkpoint.path);
        let Ok((tensors, shards)) = &checkpoint.contents else { continue };
        let text = format!(
            "{} in {}, complete",
            count(*tensors as u64, "tensor", "tensors"),
            count(*shards as u64, "shard", "shards")
        );
        writeln!(out, "\ncheckpoint {path}: {text}")?;
    }
    Ok(())
}

fn tensor_table(file: &FileMap, tensors: &[TensorMap], align: u64, out: &mut impl Write) -> io::Result<()> {
    let off = tensors.iter().filter(|tensor| !is_aligned(tensor, align)).count();
    let place = match (&file.extent, file.in_image) {
        (Some(extent), true) => format!(" at {:#x}", extent.start),
        (Some(extent), false) => format!(" at {:#x} of the backing file", extent.start),
        (None, _) => " in pieces".to_owned(),
    };
    let verdict = match off {
        0 => format!("all aligned to {align} bytes"),
        off => format!("{off} not aligned to {align} bytes"),
    };
    let size = file.entry.metadata().size;
    let number = count(tensors.len() as u64, "tensor", "tensors");
    writeln!(out, "{}: {number}, {}{place}, {verdict}", file.label(), human(size))?;
    if tensors.is_empty() {
        return Ok(());
    }
    let (left, right) = (Side::Left, Side::Right);
    let mut table = Table::new([left, left, right, right, right, left, left]);
    table.row(["dtype", "shape", "bytes", "offset", "align", "aligned", "name"].map(str::to_owned));
    for tensor in tensors {
        table.row([
            tensor.dtype.name().to_owned(),
            shape(&tensor.shape),
            tensor.nbytes.to_string(),
            tensor.offset.map_or_else(|| "-".to_owned(), |offset| format!("{offset:#x}")),
            tensor.offset.map_or_else(|| "-".to_owned(), |_| alignment(tensor.alignment)),
            if is_aligned(tensor, align) { "yes" } else { "no" }.to_owned(),
            escape(tensor.name.as_bytes()),
        ]);
    }
    table.write(out, 2)
}

/// Aligned where it lies; a tensor in pieces lies nowhere.
pub fn is_aligned(tensor: &TensorMap, align: u64) -> bool {
    tensor.offset.is_some_and(|offset| offset.is_multiple_of(align))
}

/// `[2, 3]`; `[]` for a scalar.
pub fn shape(shape: &[u64]) -> String {
    let parts: Vec<_> = shape.iter().map(u64::to_string).collect();
    format!("[{}]", parts.join(", "))
}
