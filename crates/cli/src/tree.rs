//! `daxfs tree`: the tree with sizes.

use crate::args::TreeArgs;
use crate::ls::sorted_children;
use crate::output::{Outcome, Output};
use crate::text::{count, escape, human_wide, kind_name};
use anyhow::bail;
use daxfs::{Entry, FileType, Image};
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

/// Sums over a tree; a file with several names counts once.
#[derive(Default)]
struct Totals {
    /// Bytes of the files below each directory, by inode number.
    below: HashMap<u64, u128>,
    directories: u64,
    files: u64,
    links: u64,
    special: u64,
    bytes: u128,
}

/// Levels that are drawn by lines; what is deeper has its level before its name. A tree that is made to be deep would
/// be drawn as mostly lines.
const DRAWN: usize = 200;

/// Draws the tree below `args.path` and ends with the sums.
pub fn run(image: &Image, args: &TreeArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let top = image.entry(args.path.as_bytes())?;
    if top.file_type() != FileType::Directory {
        bail!("{}: not a directory but a {}", escape(args.path.as_bytes()), kind_name(top.metadata().mode));
    }
    let totals = sum(&top);
    let size = |bytes: u128| if args.bytes { bytes.to_string() } else { human_wide(bytes) };
    // The widest number is not always the total's: "1000 B" is wider than "1.0 KiB".
    let width = totals.widest(&top, &size).max(size(totals.bytes).len());

    writeln!(out, "{:>width$}  {}", size(totals.bytes), escape(&top.path()))?;
    let mut levels = vec![sorted_children(&top).into_iter()];
    let mut prefix = String::new();
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.next() else {
            levels.pop();
            // Four columns per level; some of their characters take several bytes.
            for _ in 0..if levels.len() < DRAWN { 4 } else { 0 } {
                prefix.pop();
            }
            continue;
        };
        let last = level.len() == 0;
        let depth = levels.len();
        let deep = if depth > DRAWN { format!("({depth}) ") } else { String::new() };
        let bytes = totals.size_of(&entry);
        let branch = if last { "└── " } else { "├── " };
        let cell = bytes.map(size).unwrap_or_default();
        writeln!(out, "{cell:>width$}  {prefix}{branch}{deep}{}", label(&entry)?)?;
        let descend =
            args.depth.is_none_or(|depth| levels.len() < usize::try_from(depth).unwrap_or(usize::MAX));
        if entry.file_type() == FileType::Directory && descend {
            levels.push(sorted_children(&entry).into_iter());
            if depth < DRAWN {
                prefix.push_str(if last { "    " } else { "│   " });
            }
        }
    }
    writeln!(out, "\n{}", totals.summary())?;
    Ok(Outcome::Clean)
}

fn label(entry: &Entry) -> anyhow::Result<String> {
    let name = escape(entry.name());
    Ok(match entry.file_type() {
        FileType::Symlink => format!("{name} -> {}", escape(entry.read_link()?)),
        FileType::File | FileType::Directory => name,
        _ => format!("{name} [{}]", kind_name(entry.metadata().mode)),
    })
}

impl Totals {
    /// What the size column shows; nothing for links and special files.
    fn size_of(&self, entry: &Entry) -> Option<u128> {
        match entry.file_type() {
            FileType::Directory => Some(self.below.get(&entry.metadata().ino).copied().unwrap_or(0)),
            FileType::File => Some(entry.metadata().size.into()),
            _ => None,
        }
    }

    fn widest(&self, top: &Entry, size: &impl Fn(u128) -> String) -> usize {
        let mut width = 0;
        let mut todo = vec![top.clone()];
        while let Some(entry) = todo.pop() {
            width = self.size_of(&entry).map_or(0, |bytes| size(bytes).len()).max(width);
            todo.extend(entry.children());
        }
        width
    }

    fn summary(&self) -> String {
        let mut parts = vec![
            count(self.directories, "directory", "directories"),
            count(self.files, "file", "files"),
            count(self.links, "symlink", "symlinks"),
        ];
        if self.special > 0 {
            parts.push(count(self.special, "special file", "special files"));
        }
        format!("{}, {}", parts.join(", "), human_wide(self.bytes))
    }
}

/// Adds up what is below `top`, without recursion: trees can be deeper than a stack.
fn sum(top: &Entry) -> Totals {
    let mut totals = Totals::default();
    let mut seen = HashSet::new();
    let mut levels = vec![(top.metadata().ino, 0_u128, sorted_children(top).into_iter())];
    while let Some((ino, bytes, children)) = levels.last_mut() {
        let Some(entry) = children.next() else {
            let (ino, bytes) = (*ino, *bytes);
            totals.below.insert(ino, bytes);
            levels.pop();
            match levels.last_mut() {
                // 2^64 files of 2^64 bytes fit.
                Some((_, parent, _)) => *parent = parent.saturating_add(bytes),
                None => totals.bytes = bytes,
            }
            continue;
        };
        let metadata = entry.metadata();
        match entry.file_type() {
            FileType::Directory => {
                totals.directories = totals.directories.saturating_add(1);
                levels.push((metadata.ino, 0, sorted_children(&entry).into_iter()));
            }
            FileType::File => {
                totals.files = totals.files.saturating_add(1);
                if seen.insert(metadata.ino) {
                    *bytes = bytes.saturating_add(metadata.size.into());
                }
            }
            FileType::Symlink => totals.links = totals.links.saturating_add(1),
            _ => totals.special = totals.special.saturating_add(1),
        }
    }
    totals
}
