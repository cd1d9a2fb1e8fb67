//! `daxfs stat`: all that is known of an entry.

use crate::args::StatArgs;
use crate::json::{self, EntryJson};
use crate::output::{Outcome, Output, report};
use crate::place::{alignment_of, metadata_extent};
use crate::text::{Side, Table, alignment, count, escape, human, kind_name, mode_string};
use anyhow::Context;
use daxfs::{Entry, File, FileType, Image, Region};
use serde::Serialize;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

#[derive(Serialize)]
struct Listing {
    entries: Vec<StatJson>,
}

#[derive(Serialize)]
struct StatJson {
    #[serde(flatten)]
    entry: EntryJson,
    contents: Contents,
    /// Of the memory that holds the contents.
    provenance: String,
}

/// Where the contents of an entry are.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
enum Contents {
    /// None: size 0, or a special file.
    Empty,
    /// One range of the image.
    Extent(Place),
    /// One range of the backing file.
    Backing(Place),
    /// Pieces of the image, an overlay or a log.
    Pieces { pieces: usize },
    /// Somewhere in an overlay or a log.
    Changed,
    /// It cannot be found out.
    Unavailable { why: String },
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Place {
    /// Absolute, in bytes.
    offset: u64,
    length: u64,
    /// Largest power of two, up to 2 MiB, that divides the offset.
    alignment: u64,
}

/// Describes each of `args.paths`.
pub fn run(image: &Image, args: &StatArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::Clean;
    let mut entries = Vec::new();
    for path in &args.paths {
        let found = if args.dereference {
            image.entry(path.as_bytes())
        } else {
            image.entry_no_follow(path.as_bytes())
        };
        match found {
            Ok(entry) => entries.push(entry),
            Err(error) => {
                report(&error.into());
                outcome = Outcome::Failed;
            }
        }
    }
    if args.json {
        let entries = entries.iter().map(|entry| describe(image, entry)).collect::<anyhow::Result<_>>()?;
        json::write(out, &Listing { entries })?;
        return Ok(outcome);
    }
    for (number, entry) in entries.iter().enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        show(image, entry, out)?;
    }
    Ok(outcome)
}

fn describe(image: &Image, entry: &Entry) -> anyhow::Result<StatJson> {
    let (contents, provenance) = contents(image, entry);
    Ok(StatJson {
        entry: EntryJson::new(entry).with_context(|| escape(&entry.path()))?,
        contents,
        provenance,
    })
}

fn show(image: &Image, entry: &Entry, out: &mut impl Write) -> anyhow::Result<()> {
    let metadata = entry.metadata();
    let (contents, provenance) = contents(image, entry);
    let mut table = Table::new([Side::Right, Side::Left]);
    let mut line = |label: &str, text: String| table.row([format!("{label}:"), text]);
    line("path", escape(&entry.path()));
    if entry.file_type() == FileType::Symlink {
        line("target", escape(entry.read_link()?));
    }
    line("type", kind_name(metadata.mode).to_owned());
    line("size", format!("{} ({})", metadata.size, human(metadata.size)));
    line("mode", format!("{:04o} ({})", metadata.mode & 0o7777, mode_string(metadata.mode)));
    line("owner", format!("uid {}, gid {}", metadata.uid, metadata.gid));
    line("inode", format!("{}, {}", metadata.ino, count(metadata.nlink.into(), "link", "links")));
    line(
        "contents",
        match &contents {
            Contents::Empty => "none".to_owned(),
            Contents::Extent(place) => format!("image {}", place.line()),
            Contents::Backing(place) => format!("backing file {}", place.line()),
            Contents::Pieces { pieces } => format!("{pieces} pieces: changed after packing"),
            Contents::Changed => "changed after packing".to_owned(),
            Contents::Unavailable { why } => format!("unavailable: {why}"),
        },
    );
    line("memory", provenance);
    table.write(out, 0)?;
    Ok(())
}

/// Where the contents are, and the provenance of the memory that holds them.
fn contents(image: &Image, entry: &Entry) -> (Contents, String) {
    let own = image.region();
    let (contents, region) = match entry.file_type() {
        FileType::File if entry.metadata().size == 0 => (Contents::Empty, own.clone()),
        FileType::File => match entry.file() {
            Err(error) => (Contents::Unavailable { why: error.to_string() }, own.clone()),
            Ok(file) => (of_file(&file, own), file.region().clone()),
        },
        FileType::Directory | FileType::Symlink if entry.metadata().size == 0 => {
            (Contents::Empty, own.clone())
        }
        FileType::Directory | FileType::Symlink => match metadata_extent(image, entry) {
            Some(range) => (
                Contents::Extent(Place::new(range.start, range.end.saturating_sub(range.start))),
                own.clone(),
            ),
            None => (Contents::Changed, own.clone()),
        },
        _ => (Contents::Empty, own.clone()),
    };
    (contents, region.provenance().to_string())
}

fn of_file(file: &File, image: &Region) -> Contents {
    let Some(extent) = file.extent() else {
        return match file.bytes() {
            Err(daxfs::Error::NotContiguous { pieces, .. }) => Contents::Pieces { pieces },
            Err(error) => Contents::Unavailable { why: error.to_string() },
            // Unreachable: what has a view has an extent.
            Ok(_) => Contents::Empty,
        };
    };
    let place = Place::new(extent.offset, extent.len);
    let own = file.region().view().as_ptr() == image.view().as_ptr();
    if own { Contents::Extent(place) } else { Contents::Backing(place) }
}

impl Place {
    fn new(offset: u64, length: u64) -> Self {
        Self { offset, length, alignment: alignment_of(offset) }
    }

    fn line(&self) -> String {
        let Self { offset, length, alignment: align } = *self;
        format!(
            "{offset:#x}..{:#x}, offset {offset}, {length} bytes, aligned to {}",
            offset.saturating_add(length),
            alignment(align)
        )
    }
}
