//! The image against the directory that it was packed from.

use super::{Findings, Kind};
use crate::args::VerifyArgs;
use crate::descent::{DIRECTORY, Descent};
use crate::ls::sorted_children;
use crate::progress::Progress;
use crate::text::{escape, kind_name};
use anyhow::{Context, bail};
use daxfs::{Entry, FileType, Image, Original, format};
use mkimage::Packer;
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Bytes that are compared at a time.
const CHUNK: usize = 1 << 20;

/// Files that are open at a time while their contents are compared.
const BATCH: usize = 128;

/// A file on both sides whose contents are still to be compared.
struct Pair {
    entry: Entry,
    source: File,
    size: u64,
}

/// What comparing two files gave.
enum Verdict {
    Equal,
    /// What lies in the image is another file with the same tensors; its original is equal.
    Realigned,
    Different(String),
}

/// Compares trees and contents, directory by directory, by descriptors: neither the number of names, nor depth, nor the
/// length of paths matters.
///
/// # Errors
/// When `dir` is no directory. What cannot be read below it is noted.
pub fn compare(image: &Image, dir: &Path, args: &VerifyArgs, findings: &mut Findings) -> anyhow::Result<()> {
    let name = || escape(dir.as_os_str().as_bytes());
    // The last component may be a link.
    let top = open(dir, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).with_context(name)?;
    let stat = fstat(&top).with_context(name)?;
    if stat.st_mode & format::S_IFMT != format::S_IFDIR {
        bail!("{}: not a directory", name());
    }
    let files = image.walk().filter(|entry| entry.file_type() == FileType::File);
    let total = files.fold(0_u64, |sum, entry| sum.saturating_add(entry.metadata().size));
    let progress = Progress::new("comparing", total, args.quiet);
    let mut walk = Comparison {
        findings,
        dir,
        left_out: left_out(dir, args)?,
        progress,
        batch: Vec::new(),
        different: Vec::new(),
        links: Links::default(),
    };
    walk.entry(&image.root(), top.as_fd(), b".", &stat, false);
    let first = walk.directory(&image.root(), top.as_fd());
    let mut way = Descent::new(top, first);
    loop {
        let Some((entry, stat, by_link)) = way.data.next() else {
            match way.leave() {
                Ok(Some(_)) => continue,
                Ok(None) => break,
                Err(error) => {
                    walk.findings.fail(anyhow::Error::new(error).context(name()));
                    break;
                }
            }
        };
        if walk.entry(&entry, way.fd(), entry.name(), &stat, by_link) {
            let below = Vec::new().into_iter();
            let entered = match by_link {
                true => way.enter_link(entry.name(), below),
                false => way.enter(entry.name(), below),
            };
            match entered {
                Ok(()) => way.data = walk.directory(&entry, way.fd()),
                Err(error) => walk.fail(&entry, error),
            }
        }
        if walk.batch.len() >= BATCH {
            walk.contents();
        }
    }
    walk.contents();
    let Comparison { findings, different, .. } = walk;
    for (entry, text) in different {
        findings.differ(Kind::Source, Some(&entry.path()), text);
    }
    Ok(())
}

/// What packing with the same selection leaves out; directories end in a slash.
fn left_out(dir: &Path, args: &VerifyArgs) -> anyhow::Result<HashSet<Vec<u8>>> {
    if args.selection.given().is_none() {
        return Ok(HashSet::new());
    }
    // Its other rules are those of packing, not of comparing.
    let packer = args.selection.apply(Packer::new().input(dir)).skip_special(true);
    Ok(packer.left_out()?.into_iter().map(|path| path.into_os_string().into_vec()).collect())
}

struct Comparison<'a> {
    findings: &'a mut Findings,
    dir: &'a Path,
    left_out: HashSet<Vec<u8>>,
    progress: Progress,
    batch: Vec<Pair>,
    /// Differences of contents, which are shown behind those of the trees.
    different: Vec<(Entry, String)>,
    links: Links,
}

/// Which inode of the image is which inode of the source, by the first name that showed it.
#[derive(Default)]
struct Links {
    by_image: HashMap<u64, ((u64, u64), Entry)>,
    by_source: HashMap<(u64, u64), (u64, Entry)>,
}

/// Names on both sides, what the source says of them, and whether that is of what a link leads to.
type Common = std::vec::IntoIter<(Entry, FileStat, bool)>;

impl Comparison<'_> {
    /// Notes an error of the source.
    fn fail(&mut self, entry: &Entry, error: impl Into<std::io::Error>) {
        let place = self.dir.join(OsStr::from_bytes(entry.path().strip_prefix(b"/").unwrap_or_default()));
        self.findings.fail(anyhow::Error::new(error.into()).context(escape(place.as_os_str().as_bytes())));
    }

    /// Compares the names in a directory, both sides sorted, and returns those that are on both.
    fn directory(&mut self, directory: &Entry, source: BorrowedFd<'_>) -> Common {
        let at_root = directory.parent().is_none();
        let own = |name: &[u8]| at_root && name == format::index::DIR.as_bytes();
        let mut names = match names_in(source) {
            Ok(names) => names,
            Err(error) => {
                self.fail(directory, error);
                return Vec::new().into_iter();
            }
        };
        names.retain(|name| !own(name));
        names.sort_unstable();
        let mut names = names.into_iter().peekable();
        let mut common = Vec::new();
        for child in sorted_children(directory).into_iter().filter(|child| !own(child.name())) {
            while let Some(name) = names.next_if(|name| name.as_slice() < child.name()) {
                self.only_in_source(directory, &name);
            }
            if names.next_if(|name| name.as_slice() == child.name()).is_none() {
                self.differ(&child, "only in the image");
                continue;
            }
            let name = OsStr::from_bytes(child.name());
            match fstatat(source, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                // The packer follows links that lead out of the tree.
                Ok(stat) if is_link(stat.st_mode) && child.file_type() != FileType::Symlink => {
                    match fstatat(source, name, AtFlags::empty()) {
                        Ok(target) => common.push((child, target, true)),
                        Err(_) => common.push((child, stat, false)),
                    }
                }
                Ok(stat) => common.push((child, stat, false)),
                Err(error) => self.fail(&child, error),
            }
        }
        names.for_each(|name| self.only_in_source(directory, &name));
        common.into_iter()
    }

    fn only_in_source(&mut self, directory: &Entry, name: &[u8]) {
        let mut path = directory.path();
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let from_root = path.strip_prefix(b"/").unwrap_or(&path);
        if self.left_out.contains(from_root) || self.left_out.contains(&[from_root, b"/"].concat()) {
            return;
        }
        self.findings.differ(Kind::Source, Some(&path), "only in the source directory");
    }

    /// Compares what can be compared without reading contents. True for a directory on both sides.
    fn entry(
        &mut self,
        entry: &Entry,
        parent: BorrowedFd<'_>,
        name: &[u8],
        stat: &FileStat,
        by_link: bool,
    ) -> bool {
        self.findings.facts.compared_entries = self.findings.facts.compared_entries.saturating_add(1);
        let ours = entry.metadata();
        if (ours.mode ^ stat.st_mode) & format::S_IFMT != 0 {
            let text = format!("a {}, in the source a {}", kind_name(ours.mode), kind_name(stat.st_mode));
            self.differ(entry, text);
            return false;
        }
        let (mode, source_mode) = (ours.mode & 0o7777, stat.st_mode & 0o7777);
        // Linux has no modes of symbolic links.
        if mode != source_mode && entry.file_type() != FileType::Symlink {
            self.differ(entry, format!("mode {mode:04o}, in the source {source_mode:04o}"));
        }
        match entry.file_type() {
            FileType::Directory => return true,
            FileType::Symlink => self.symlink(entry, parent, name),
            FileType::File => self.file(entry, parent, name, stat, by_link),
            _ => (),
        }
        false
    }

    fn symlink(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) {
        let (ours, theirs) = match (entry.read_link(), readlinkat(parent, OsStr::from_bytes(name))) {
            (Ok(ours), Ok(theirs)) => (ours, theirs),
            (Err(error), _) => return self.findings.fail(error),
            (_, Err(error)) => return self.fail(entry, error),
        };
        let theirs = theirs.as_os_str().as_bytes();
        if ours != theirs {
            self.differ(entry, format!("leads to {}, in the source to {}", escape(ours), escape(theirs)));
        }
    }

    fn file(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8], stat: &FileStat, by_link: bool) {
        let (ino, id) = (entry.metadata().ino, (stat.st_dev, stat.st_ino));
        let known = self.links.by_image.contains_key(&ino);
        let first = self.links.by_image.entry(ino).or_insert_with(|| (id, entry.clone()));
        let first_source = self.links.by_source.entry(id).or_insert_with(|| (ino, entry.clone()));
        if first.0 != id {
            let text = format!("the same file as {}, but not in the source", escape(&first.1.path()));
            self.differ(entry, text);
        } else if first_source.0 != ino {
            let text = format!("not the same file as {}, as in the source", escape(&first_source.1.path()));
            self.differ(entry, text);
        } else if known {
            // Another name of a pair that is compared already.
            return;
        }
        let size = match entry.file().and_then(|file| file.original()) {
            Ok(original) => original.len(),
            Err(error) => return self.findings.judge(Kind::Source, &entry.path(), error),
        };
        let source_size = u64::try_from(stat.st_size).unwrap_or(0);
        if size != source_size {
            self.differ(entry, format!("{size} bytes, in the source {source_size}"));
            return;
        }
        // Without O_NONBLOCK a FIFO that was swapped in would block for ever.
        let mut flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        flags.set(OFlag::O_NOFOLLOW, !by_link);
        match openat(parent, OsStr::from_bytes(name), flags, Mode::empty()) {
            Ok(source) => self.batch.push(Pair { entry: entry.clone(), source: source.into(), size }),
            Err(error) => self.fail(entry, error),
        }
    }

    fn differ(&mut self, entry: &Entry, text: impl Into<String>) {
        self.findings.differ(Kind::Source, Some(&entry.path()), text);
    }

    /// Compares the contents of the files that are open, on all cores.
    fn contents(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        let verdicts: Vec<anyhow::Result<Verdict>> = batch
            .par_iter_mut()
            .map(|pair| {
                let verdict = pair.compare();
                self.progress.add(pair.size);
                verdict
            })
            .collect();
        for (pair, verdict) in batch.into_iter().zip(verdicts) {
            let facts = &mut self.findings.facts;
            facts.compared_bytes = facts.compared_bytes.saturating_add(pair.size);
            match verdict {
                Ok(Verdict::Equal) => (),
                Ok(Verdict::Realigned) => facts.realigned_files = facts.realigned_files.saturating_add(1),
                Ok(Verdict::Different(text)) => self.different.push((pair.entry, text)),
                Err(error) => {
                    let path = pair.entry.path();
                    let place = self.dir.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or_default()));
                    self.findings.fail(error.context(escape(place.as_os_str().as_bytes())));
                }
            }
        }
    }
}

fn is_link(mode: u32) -> bool {
    mode & format::S_IFMT == format::S_IFLNK
}

/// All names in an open directory.
fn names_in(directory: BorrowedFd<'_>) -> nix::Result<Vec<Vec<u8>>> {
    // With a reading position of its own.
    let mut listing = Dir::from_fd(openat(directory, ".", DIRECTORY, Mode::empty())?)?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

impl Pair {
    fn compare(&mut self) -> anyhow::Result<Verdict> {
        let original = self.entry.file()?.original()?;
        Ok(match first_difference(&original, &mut self.source)? {
            None if original.differs() => Verdict::Realigned,
            None => Verdict::Equal,
            Some(at) => Verdict::Different(format!("contents differ from byte {at} on")),
        })
    }
}

/// Offset of the first byte that differs, or where the shorter one ends.
fn first_difference(file: &Original, source: &mut File) -> anyhow::Result<Option<u64>> {
    let (mut ours, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut offset = 0_u64;
    loop {
        let len = file.read_at(offset, &mut ours)?;
        let (Some(ours), Some(theirs)) = (ours.get(..len), theirs.get_mut(..len.max(1))) else {
            return Ok(None);
        };
        let got = read_full(source, theirs)?;
        let theirs = theirs.get(..got).unwrap_or_default();
        if ours != theirs {
            let common = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
            return Ok(Some(offset.saturating_add(common as u64)));
        }
        if len == 0 {
            return Ok(None);
        }
        offset = offset.saturating_add(len as u64);
    }
}

/// Reads until the buffer is full or the file ends.
fn read_full(source: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0_usize;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
            Ok(0) => break,
            Ok(len) => filled = filled.saturating_add(len),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
