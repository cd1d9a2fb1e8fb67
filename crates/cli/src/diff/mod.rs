//! `daxfs diff`: which files, and which tensors, of two images differ.
//!
//! Files are compared as they were in their sources, tensors by name, whatever files they lie in: so a model that was
//! packed or sharded otherwise is the same. What both indexes have a hash of is not read, as `diff` believes images
//! unless `--verify` proves them first.

mod bytes;
mod files;
mod tensors;

use crate::args::{DiffArgs, SourceArgs};
use crate::json::PathJson;
use crate::output::{Outcome, Output};
use crate::source;
use crate::text::{count, escape};
use anyhow::bail;
use bytes::Bytes;
use serde::Serialize;
use std::io::{self, Write};

/// How something differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Change {
    /// Only the first image has it.
    Removed,
    /// Only the second image has it.
    Added,
    /// Both have it, and it is not the same.
    Changed,
}

impl Change {
    fn sign(self) -> char {
        match self {
            Self::Removed => '-',
            Self::Added => '+',
            Self::Changed => '~',
        }
    }
}

/// A difference, as JSON has it.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    name: Name<'a>,
    change: Change,
    /// What differs, of both.
    #[serde(skip_serializing_if = "Option::is_none")]
    what: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Name<'a> {
    #[serde(serialize_with = "path")]
    File(&'a [u8]),
    Tensor {
        tensor: &'a str,
    },
}

fn path<S: serde::Serializer>(path: &[u8], to: S) -> Result<S::Ok, S::Error> {
    PathJson::new(path).serialize(to)
}

/// Where differences go, as they are found: a deep tree's paths are long together.
struct Report<'a> {
    out: &'a mut Output,
    json: bool,
    quiet: bool,
    /// Rows of the section so far.
    rows: u64,
    found: u64,
}

impl Report<'_> {
    fn open(&mut self, section: &str) -> io::Result<()> {
        self.rows = 0;
        if !self.json {
            return Ok(());
        }
        write!(self.out, "{}\"{section}\":[", if section == "files" { "{" } else { "]," })
    }

    fn row(&mut self, name: Name<'_>, change: Change, what: Option<&str>) -> io::Result<()> {
        self.rows = self.rows.saturating_add(1);
        self.found = self.found.saturating_add(1);
        if self.quiet {
            return Ok(());
        }
        if self.json {
            self.out.write_all(if self.rows > 1 { b",\n" } else { b"\n" })?;
            return Ok(serde_json::to_writer(&mut *self.out, &Row { name, change, what })?);
        }
        let shown = match name {
            Name::File(path) => escape(path),
            Name::Tensor { tensor } => format!("tensor {}", escape(tensor.as_bytes())),
        };
        match what {
            Some(what) => writeln!(self.out, "{} {shown}: {what}", change.sign()),
            None => writeln!(self.out, "{} {shown}", change.sign()),
        }
    }

    fn file(&mut self, path: &[u8], change: Change, what: Option<&str>) -> io::Result<()> {
        self.row(Name::File(path), change, what)
    }

    fn tensor(&mut self, tensor: &str, change: Change, what: Option<&str>) -> io::Result<()> {
        self.row(Name::Tensor { tensor }, change, what)
    }
}

/// Compares two images. Status 1 when they differ.
pub fn run(source: &SourceArgs, args: &DiffArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    if source.expect.is_some() || source.backing.is_some() {
        bail!("--expect and --backing are of one image, and diff opens two");
    }
    let quiet = args.quiet || args.brief;
    let first = source::open(source, &args.image, quiet)?;
    let second = source::open(source, &args.other, quiet)?;
    // The same content, if both say so and are believed: all that is compared is part of it.
    let is_same = first.content_hash().is_some() && first.content_hash() == second.content_hash();
    let mut bytes = Bytes::new(&first, &second, quiet);
    let mut report = Report { out, json: args.json, quiet: args.brief, rows: 0, found: 0 };
    report.open("files")?;
    let mut totals = (0_u64, 0_u64);
    if !is_same {
        totals.0 = files::compare(&first, &second, &mut bytes, &mut report)?;
    }
    let files = report.found;
    report.open("tensors")?;
    if !is_same {
        totals.1 = tensors::compare(&first, &second, args, &mut bytes, &mut report)?;
    }
    bytes.finish();
    let tensors = report.found.saturating_sub(files);
    if args.json {
        writeln!(out, "],\n\"same\":{}}}", files == 0 && tensors == 0)?;
    } else if !args.brief && files.saturating_add(tensors) > 0 {
        let entries = count(totals.0, "entry", "entries");
        let all = count(totals.1, "tensor", "tensors");
        writeln!(out, "{files} of {entries} and {tensors} of {all} differ")?;
    }
    Ok(if files == 0 && tensors == 0 { Outcome::Clean } else { Outcome::Differences })
}
