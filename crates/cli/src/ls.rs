//! `daxfs ls`: directories as lists, like `ls`.

use crate::args::LsArgs;
use crate::json::{self, EntryJson};
use crate::output::{Outcome, Output, report};
use crate::text::{Side, Table, escape, mode_string};
use daxfs::{Entry, FileType, Image};
use serde::Serialize;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

#[derive(Serialize)]
struct Listing {
    entries: Vec<EntryJson>,
}

/// Lists `args.paths`: first what is no directory, then each directory.
pub fn run(image: &Image, args: &LsArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::Clean;
    let (mut single, mut directories) = (Vec::new(), Vec::new());
    for path in &args.paths {
        match named(image, path.as_bytes(), args.long) {
            Ok(entry) if entry.file_type() == FileType::Directory => directories.push(entry),
            Ok(entry) => single.push((escape(path.as_bytes()), entry)),
            Err(error) => {
                report(&error.into());
                outcome = Outcome::Failed;
            }
        }
    }
    if args.json {
        let mut entries = Vec::new();
        for (_, entry) in &single {
            entries.push(EntryJson::new(entry)?);
        }
        for directory in directories {
            each_directory(directory, args.recursive, |_, children| {
                for child in children {
                    entries.push(EntryJson::new(child)?);
                }
                Ok(())
            })?;
        }
        json::write(out, &Listing { entries })?;
        return Ok(outcome);
    }
    let mut first = single.is_empty();
    list(&single, args.long, out)?;
    let headers = args.recursive || args.paths.len() > 1;
    for directory in directories {
        each_directory(directory, args.recursive, |directory, children| {
            if !std::mem::replace(&mut first, false) {
                writeln!(out)?;
            }
            if headers {
                writeln!(out, "{}:", escape(&directory.path()))?;
            }
            let rows: Vec<_> = children.iter().map(|child| (escape(child.name()), child.clone())).collect();
            list(&rows, args.long, out)
        })?;
    }
    Ok(outcome)
}

/// The entry that a path of the command line means. As in `ls`, a symbolic link is followed when it leads to a
/// directory and the long form, which shows links, was not asked for; or when a slash ends the path.
fn named(image: &Image, path: &[u8], long: bool) -> daxfs::Result<Entry> {
    let entry = image.entry_no_follow(path)?;
    if entry.file_type() != FileType::Symlink {
        return Ok(entry);
    }
    if path.ends_with(b"/") {
        return image.entry(path);
    }
    match image.entry(path) {
        Ok(target) if !long && target.file_type() == FileType::Directory => Ok(target),
        _ => Ok(entry),
    }
}

/// The children of a directory, sorted by the bytes of their names.
pub fn sorted_children(directory: &Entry) -> Vec<Entry> {
    let mut children: Vec<_> = directory.children().collect();
    children.sort_by(|a, b| a.name().cmp(b.name()));
    children
}

/// Calls `visit` for a directory and, when `recursive`, for each directory below it, depth first.
fn each_directory(
    top: Entry,
    recursive: bool,
    mut visit: impl FnMut(&Entry, &[Entry]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut todo = vec![top];
    while let Some(directory) = todo.pop() {
        let children = sorted_children(&directory);
        visit(&directory, &children)?;
        if recursive {
            todo.extend(children.into_iter().rev().filter(|child| child.file_type() == FileType::Directory));
        }
    }
    Ok(())
}

fn list(rows: &[(String, Entry)], long: bool, out: &mut impl Write) -> anyhow::Result<()> {
    if !long {
        for (name, _) in rows {
            writeln!(out, "{name}")?;
        }
        return Ok(());
    }
    let right = Side::Right;
    let mut table = Table::new([Side::Left, right, right, right, right, Side::Left]);
    for (name, entry) in rows {
        let metadata = entry.metadata();
        table.row([
            mode_string(metadata.mode),
            metadata.nlink.to_string(),
            metadata.uid.to_string(),
            metadata.gid.to_string(),
            metadata.size.to_string(),
            match entry.file_type() {
                FileType::Symlink => format!("{name} -> {}", escape(entry.read_link()?)),
                _ => name.clone(),
            },
        ]);
    }
    table.write(out, 0)?;
    Ok(())
}
