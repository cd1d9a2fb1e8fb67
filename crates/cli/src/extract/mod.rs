//! `daxfs extract`: unpacks an image into a new directory.
//!
//! [`Beneath`] makes every file system call, and cannot leave its directory. Here the order is decided:
//! directories are made with mode 0700, filled, and get their owner and mode last, from the deepest up.

mod beneath;

use crate::args::ExtractArgs;
use crate::output::{Outcome, Output, note};
use crate::progress::Progress;
use crate::text::{count, escape, human, kind_name};
use anyhow::{Context, anyhow, bail};
use beneath::{Attributes, Beneath};
use daxfs::{Entry, FileType, Image, format};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use std::collections::HashMap;
use std::collections::hash_map;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

/// An entry, and its path below the destination.
struct Item {
    entry: Entry,
    target: Vec<u8>,
}

/// What was written.
#[derive(Default)]
struct Written {
    files: u64,
    directories: u64,
    links: u64,
    bytes: u64,
    skipped: u64,
}

/// Extracts what `args.path` names.
pub fn run(image: &Image, args: &ExtractArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let items = items(image, args)?;
    let rules = Rules::of(args);
    let total = items.iter().filter(|item| item.entry.file_type() == FileType::File);
    let progress =
        Progress::new("extracting", total.map(|item| item.entry.metadata().size).sum(), args.quiet);
    let dest = Beneath::create(&args.dest)?;
    let mut written = Written::default();
    let result = write_all(&dest, &items, &rules, &progress, &mut written);
    drop(progress);
    let name = escape(args.dest.as_os_str().as_bytes());
    result.with_context(|| format!("{name} is left incomplete: {}", written.summary()))?;
    if !args.quiet {
        writeln!(out, "{name}: {}", written.summary())?;
    }
    if written.skipped > 0 {
        note(&format!("skipped {}", count(written.skipped, "special file", "special files")));
    }
    Ok(Outcome::Clean)
}

impl Written {
    fn summary(&self) -> String {
        format!(
            "{}, {}, {}, {}",
            count(self.directories, "directory", "directories"),
            count(self.files, "file", "files"),
            count(self.links, "symlink", "symlinks"),
            human(self.bytes)
        )
    }
}

/// Which attributes are restored.
struct Rules {
    owner: bool,
    special_bits: bool,
    umask: u32,
}

impl Rules {
    /// What tar does: root restores owners and exact modes. Setuid, setgid and sticky bits come back only together
    /// with the owner they were meant for, or when they are asked for.
    fn of(args: &ExtractArgs) -> Self {
        let owner = geteuid().is_root() && !args.no_owner;
        let exact = owner || args.same_permissions;
        let umask = if exact { 0 } else { current_umask() };
        Self { owner, special_bits: exact, umask }
    }

    fn attributes(&self, entry: &Entry) -> Attributes {
        let metadata = entry.metadata();
        let bits = if self.special_bits { 0o7777 } else { 0o777 };
        Attributes {
            owner: self.owner.then_some((metadata.uid, metadata.gid)),
            mode: metadata.mode & bits & !self.umask,
        }
    }
}

/// The umask can only be read by setting it.
fn current_umask() -> u32 {
    let mask = umask(Mode::from_bits_truncate(0o077));
    umask(mask);
    mask.bits()
}

/// What to write, parents before children; refuses special files before anything is written.
fn items(image: &Image, args: &ExtractArgs) -> anyhow::Result<Vec<Item>> {
    let top = image.entry(args.path.as_bytes())?;
    let mut items = Vec::new();
    match top.file_type() {
        FileType::Directory => items.push(Item { entry: top, target: Vec::new() }),
        _ => {
            let target = top.name().to_vec();
            let parent = top.parent().ok_or_else(|| anyhow!("the root is not a directory"))?;
            items.push(Item { entry: parent, target: Vec::new() });
            items.push(Item { entry: top, target });
            return refuse_special(items, args);
        }
    }
    let mut next = 0;
    while let Some(Item { entry, target }) = items.get(next) {
        let mut below = Vec::new();
        let at_root = entry.parent().is_none();
        for child in entry.children() {
            if at_root && child.name() == format::index::DIR.as_bytes() {
                continue;
            }
            let mut path = target.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(child.name());
            below.push(Item { entry: child, target: path });
        }
        items.extend(below);
        next += 1;
    }
    refuse_special(items, args)
}

fn refuse_special(items: Vec<Item>, args: &ExtractArgs) -> anyhow::Result<Vec<Item>> {
    let special = |item: &&Item| item.entry.file_type() == FileType::Special;
    match items.iter().find(special) {
        Some(Item { entry, .. }) if !args.skip_special => bail!(
            "{}: a {} cannot be extracted; skip such files with --skip-special",
            escape(&entry.path()),
            kind_name(entry.metadata().mode)
        ),
        _ => Ok(items),
    }
}

fn write_all(
    dest: &Beneath,
    items: &[Item],
    rules: &Rules,
    progress: &Progress,
    written: &mut Written,
) -> anyhow::Result<()> {
    let mut first_names: HashMap<u64, &[u8]> = HashMap::new();
    for Item { entry, target } in items {
        let place = || escape(&entry.path());
        match entry.file_type() {
            FileType::Directory => {
                if !target.is_empty() {
                    dest.make_directory(target).with_context(place)?;
                }
                written.directories += 1;
            }
            FileType::Symlink => {
                let link = entry.read_link().with_context(place)?;
                dest.make_symlink(target, link, rules.attributes(entry).owner).with_context(place)?;
                written.links += 1;
            }
            FileType::File => {
                match first_names.entry(entry.metadata().ino) {
                    hash_map::Entry::Occupied(first) => {
                        dest.make_link(first.get(), target).with_context(place)?
                    }
                    hash_map::Entry::Vacant(slot) => {
                        slot.insert(target);
                        let file = dest.make_file(target).with_context(place)?;
                        written.bytes += entry.file()?.write_to(&file).with_context(place)?;
                        rules.attributes(entry).apply(&file).with_context(place)?;
                    }
                }
                progress.add(entry.metadata().size);
                written.files += 1;
            }
            FileType::Special => written.skipped += 1,
        }
    }
    for Item { entry, target } in
        items.iter().rev().filter(|item| item.entry.file_type() == FileType::Directory)
    {
        let directory = dest.open_directory(target).with_context(|| escape(&entry.path()))?;
        rules.attributes(entry).apply(&directory).with_context(|| escape(&entry.path()))?;
    }
    Ok(())
}
