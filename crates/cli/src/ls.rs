//! `daxfs ls`: directories as lists, like `ls`.

use crate::args::LsArgs;
use crate::json::{self, EntryJson};
use crate::output::{Outcome, Output, report};
use crate::text::{Side, Table, count, escape, mode_string};
use anyhow::anyhow;
use daxfs::{Entry, FileType, Image};
use serde::ser::{Error as _, Serialize, SerializeSeq, Serializer};
use std::cell::Cell;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

/// Longest path that is listed, from what was named on: that of the kernel, PATH_MAX without its NUL. Of a tree that is
/// made to be deep, all longer ones together would be far longer than the image.
const LONGEST: usize = 4095;

/// `{"entries": [...]}`, written entry by entry.
#[derive(serde::Serialize)]
struct Listing<'a> {
    entries: Entries<'a>,
}

struct Entries<'a> {
    single: &'a [(String, Entry)],
    directories: &'a [Entry],
    recursive: bool,
    too_deep: Cell<u64>,
}

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        let json = |entry: &Entry| EntryJson::new(entry).map_err(S::Error::custom);
        for (_, entry) in self.single {
            list.serialize_element(&json(entry)?)?;
        }
        for directory in self.directories {
            let too_deep = each_directory(directory.clone(), self.recursive, |_, children| {
                children.iter().try_for_each(|child| list.serialize_element(&json(child)?))
            })?;
            self.too_deep.set(self.too_deep.get().saturating_add(too_deep));
        }
        list.end()
    }
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
        let entries = Entries {
            single: &single,
            directories: &directories,
            recursive: args.recursive,
            too_deep: Cell::new(0),
        };
        let listing = Listing { entries };
        json::write(out, &listing)?;
        return Ok(complain(listing.entries.too_deep.get(), outcome));
    }
    let mut first = single.is_empty();
    list(&single, args.long, out)?;
    let headers = args.recursive || args.paths.len() > 1;
    let mut too_deep = 0_u64;
    for directory in directories {
        let below = each_directory(directory, args.recursive, |directory, children| -> anyhow::Result<()> {
            if !std::mem::replace(&mut first, false) {
                writeln!(out)?;
            }
            if headers {
                writeln!(out, "{}:", escape(&directory.path()))?;
            }
            let rows: Vec<_> = children.iter().map(|child| (escape(child.name()), child.clone())).collect();
            list(&rows, args.long, out)
        })?;
        too_deep = too_deep.saturating_add(below);
    }
    Ok(complain(too_deep, outcome))
}

/// Says that directories were not listed.
fn complain(too_deep: u64, outcome: Outcome) -> Outcome {
    if too_deep == 0 {
        return outcome;
    }
    let directories = count(too_deep, "directory is", "directories are");
    report(&anyhow!(
        "{directories} not listed: the path has more than {LONGEST} bytes; name what is above to list it"
    ));
    Outcome::Failed
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

/// Calls `visit` for a directory and, when `recursive`, for each directory below it, depth first. Returns how many were
/// left out with all that is below them, since their paths are too long.
fn each_directory<E>(
    top: Entry,
    recursive: bool,
    mut visit: impl FnMut(&Entry, &[Entry]) -> Result<(), E>,
) -> Result<u64, E> {
    let mut too_deep = 0_u64;
    let mut todo = vec![(top, 0_usize)];
    while let Some((directory, len)) = todo.pop() {
        let children = sorted_children(&directory);
        visit(&directory, &children)?;
        if !recursive {
            continue;
        }
        for child in children.into_iter().rev().filter(|child| child.file_type() == FileType::Directory) {
            let len = len.saturating_add(child.name().len()).saturating_add(1);
            if len > LONGEST {
                too_deep = too_deep.saturating_add(1);
            } else {
                todo.push((child, len));
            }
        }
    }
    Ok(too_deep)
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
