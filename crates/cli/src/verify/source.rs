//! The image against the directory that it was packed from.

use super::realigned::tensors_equal;
use super::{Findings, Kind};
use crate::args::VerifyArgs;
use crate::ls::sorted_children;
use crate::progress::Progress;
use crate::text::{escape, kind_name};
use anyhow::{Context, bail};
use daxfs::{Entry, FileType, Image, format};
use rayon::prelude::*;
use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes that are compared at a time.
const CHUNK: usize = 1 << 20;

/// A file on both sides whose contents are still to be compared.
struct Pair {
    entry: Entry,
    source: PathBuf,
    size: u64,
}

/// What comparing two files gave.
enum Verdict {
    Equal,
    /// Bytes differ, tensors are equal.
    Realigned,
    Different(String),
}

/// Compares trees, then contents.
///
/// # Errors
/// When `dir` is no directory. What cannot be read below it is noted.
pub fn compare(image: &Image, dir: &Path, args: &VerifyArgs, findings: &mut Findings) -> anyhow::Result<()> {
    let top = fs::metadata(dir).with_context(|| escape(dir.as_os_str().as_bytes()))?;
    if !top.is_dir() {
        bail!("{}: not a directory", escape(dir.as_os_str().as_bytes()));
    }
    let mut walk = Comparison { args, findings, pairs: Vec::new(), links: Links::default() };
    walk.entry(&image.root(), dir, &top);
    let mut todo = vec![(image.root(), dir.to_path_buf())];
    while let Some((directory, source)) = todo.pop() {
        walk.directory(&directory, &source, &mut todo);
    }
    let pairs = walk.pairs;
    contents(&pairs, args, findings);
    Ok(())
}

struct Comparison<'a> {
    args: &'a VerifyArgs,
    findings: &'a mut Findings,
    pairs: Vec<Pair>,
    links: Links,
}

/// Which inode of the image is which inode of the source, by the first name that showed it.
#[derive(Default)]
struct Links {
    by_image: HashMap<u64, ((u64, u64), Vec<u8>)>,
    by_source: HashMap<(u64, u64), (u64, Vec<u8>)>,
}

impl Comparison<'_> {
    /// Compares the names in a directory, and what they name; directories on both sides go to `todo`.
    fn directory(&mut self, directory: &Entry, source: &Path, todo: &mut Vec<(Entry, PathBuf)>) {
        let at_root = directory.parent().is_none();
        let own = |name: &[u8]| at_root && name == format::index::DIR.as_bytes();
        let listed =
            fs::read_dir(source).and_then(|names| names.map(|n| Ok(n?.file_name().into_vec())).collect());
        let mut names: Vec<Vec<u8>> = match listed {
            Ok(names) => names,
            Err(error) => {
                self.findings.fail(anyhow::Error::new(error).context(escape(source.as_os_str().as_bytes())));
                return;
            }
        };
        names.retain(|name| !own(name));
        names.sort();
        let mut below = Vec::new();
        for child in sorted_children(directory).into_iter().filter(|child| !own(child.name())) {
            match names.binary_search_by(|name| name.as_slice().cmp(child.name())) {
                Err(_) => self.differ(&child, "only in the image"),
                Ok(found) => {
                    let path = source.join(std::ffi::OsStr::from_bytes(&names.remove(found)));
                    match fs::symlink_metadata(&path) {
                        Err(error) => {
                            self.findings
                                .fail(anyhow::Error::new(error).context(escape(path.as_os_str().as_bytes())));
                        }
                        Ok(metadata) if self.entry(&child, &path, &metadata) => below.push((child, path)),
                        Ok(_) => (),
                    }
                }
            }
        }
        for name in names {
            let mut path = directory.path();
            if !at_root {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            self.findings.differ(Kind::Source, Some(&path), "only in the source directory");
        }
        todo.extend(below.into_iter().rev());
    }

    /// Compares what can be compared without reading contents. True for a directory on both sides.
    fn entry(&mut self, entry: &Entry, source: &Path, metadata: &Metadata) -> bool {
        self.findings.facts.compared_entries += 1;
        let ours = entry.metadata();
        if (ours.mode ^ metadata.mode()) & format::S_IFMT != 0 {
            let text = format!("a {}, in the source a {}", kind_name(ours.mode), kind_name(metadata.mode()));
            self.differ(entry, text);
            return false;
        }
        let (mode, source_mode) = (ours.mode & 0o7777, metadata.mode() & 0o7777);
        // Linux has no modes of symbolic links.
        if mode != source_mode && entry.file_type() != FileType::Symlink {
            self.differ(entry, format!("mode {mode:04o}, in the source {source_mode:04o}"));
        }
        match entry.file_type() {
            FileType::Directory => return true,
            FileType::Symlink => self.symlink(entry, source),
            FileType::File => self.file(entry, source, metadata),
            FileType::Special => (),
        }
        false
    }

    fn symlink(&mut self, entry: &Entry, source: &Path) {
        let (ours, theirs) = match (entry.read_link(), fs::read_link(source)) {
            (Ok(ours), Ok(theirs)) => (ours, theirs),
            (Err(error), _) => return self.findings.fail(error),
            (_, Err(error)) => {
                return self
                    .findings
                    .fail(anyhow::Error::new(error).context(escape(source.as_os_str().as_bytes())));
            }
        };
        let theirs = theirs.as_os_str().as_bytes();
        if ours != theirs {
            self.differ(entry, format!("leads to {}, in the source to {}", escape(ours), escape(theirs)));
        }
    }

    fn file(&mut self, entry: &Entry, source: &Path, metadata: &Metadata) {
        let (ino, id) = (entry.metadata().ino, (metadata.dev(), metadata.ino()));
        let path = entry.path();
        let first = self.links.by_image.entry(ino).or_insert_with(|| (id, path.clone()));
        let first_source = self.links.by_source.entry(id).or_insert_with(|| (ino, path.clone()));
        if first.0 != id {
            let text = format!("the same file as {}, but not in the source", escape(&first.1));
            self.findings.differ(Kind::Source, Some(&path), text);
        } else if first_source.0 != ino {
            let text = format!("not the same file as {}, as in the source", escape(&first_source.1));
            self.findings.differ(Kind::Source, Some(&path), text);
        } else if first.1 != path {
            // Another name of a pair that is compared already.
            return;
        }
        let (size, source_size) = (entry.metadata().size, metadata.len());
        let may_be_realigned = self.args.realigned && entry.name().ends_with(b".safetensors");
        if size != source_size && !may_be_realigned {
            self.differ(entry, format!("{size} bytes, in the source {source_size}"));
            return;
        }
        self.pairs.push(Pair { entry: entry.clone(), source: source.to_path_buf(), size });
    }

    fn differ(&mut self, entry: &Entry, text: impl Into<String>) {
        self.findings.differ(Kind::Source, Some(&entry.path()), text);
    }
}

/// Compares the contents of all pairs, on all cores.
fn contents(pairs: &[Pair], args: &VerifyArgs, findings: &mut Findings) {
    let progress = Progress::new("comparing", pairs.iter().map(|pair| pair.size).sum(), args.quiet);
    let verdicts: Vec<anyhow::Result<Verdict>> = pairs
        .par_iter()
        .map(|pair| {
            let verdict = pair.compare(args.realigned);
            progress.add(pair.size);
            verdict.with_context(|| escape(pair.source.as_os_str().as_bytes()))
        })
        .collect();
    drop(progress);
    for (pair, verdict) in pairs.iter().zip(verdicts) {
        findings.facts.compared_bytes += pair.size;
        match verdict {
            Ok(Verdict::Equal) => (),
            Ok(Verdict::Realigned) => findings.facts.realigned_files += 1,
            Ok(Verdict::Different(text)) => findings.differ(Kind::Source, Some(&pair.entry.path()), text),
            Err(error) => findings.fail(error),
        }
    }
}

impl Pair {
    fn compare(&self, realigned: bool) -> anyhow::Result<Verdict> {
        // Without O_NONBLOCK a FIFO that was swapped in would block for ever.
        let flags = (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits();
        let mut source = OpenOptions::new().read(true).custom_flags(flags).open(&self.source)?;
        let file = self.entry.file()?;
        let Some(at) = first_difference(&file, &mut source)? else { return Ok(Verdict::Equal) };
        if realigned && self.entry.name().ends_with(b".safetensors") {
            return Ok(match tensors_equal(&file, &source)? {
                None => Verdict::Realigned,
                Some(text) => Verdict::Different(text),
            });
        }
        Ok(Verdict::Different(format!("contents differ from byte {at} on")))
    }
}

/// Offset of the first byte that differs, or where the shorter one ends.
fn first_difference(file: &daxfs::File, source: &mut File) -> anyhow::Result<Option<u64>> {
    let (mut ours, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut offset = 0;
    loop {
        let len = file.read_at(offset, &mut ours)?;
        let (Some(ours), Some(theirs)) = (ours.get(..len), theirs.get_mut(..len.max(1))) else {
            return Ok(None);
        };
        let got = read_full(source, theirs)?;
        let theirs = theirs.get(..got).unwrap_or_default();
        if ours != theirs {
            let common = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
            return Ok(Some(offset + common as u64));
        }
        if len == 0 {
            return Ok(None);
        }
        offset += len as u64;
    }
}

/// Reads until the buffer is full or the file ends.
fn read_full(source: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
