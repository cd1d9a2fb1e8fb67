//! `daxfs extract`: unpacks an image into a new directory.
//!
//! [`beneath`] makes every file system call, and cannot leave its directory; [`Descent`] is the way down. Here the order
//! is decided: directories are made with mode 0700, filled, and get their owner and mode when they are left. Nothing is
//! listed before, and no path is kept: memory and time are linear in what is written.

mod beneath;

use crate::args::ExtractArgs;
use crate::descent::Descent;
use crate::output::{Outcome, Output, note};
use crate::progress::Progress;
use crate::text::{count, escape, human, kind_name};
use anyhow::{Context, anyhow, bail};
use beneath::Attributes;
use daxfs::{Entry, File, FileType, Image, Region, ViewKind, format};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

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
    let top = image.entry(args.path.as_bytes())?;
    let total = survey(image, &top, args)?;
    let rules = Rules::of(args);
    let progress = Progress::new("extracting", total, args.quiet);
    let dest = beneath::create(&args.dest)?;
    let mut work = Work::new(image, &top, &rules, &progress, &dest);
    let result = match top.file_type() {
        FileType::Directory => work.tree(&top),
        _ => work.one(&top),
    };
    // What went wrong first is what is said.
    let result = result.and(work.remove_stage());
    let written = work.written;
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
    /// Whether files are written as they lie in the image, not as they were in their source.
    as_stored: bool,
}

impl Rules {
    /// What tar does: root restores owners and exact modes. Setuid, setgid and sticky bits come back only together
    /// with the owner they were meant for, or when they are asked for.
    fn of(args: &ExtractArgs) -> Self {
        let owner = geteuid().is_root() && !args.no_owner;
        let exact = owner || args.same_permissions;
        let umask = if exact { 0 } else { current_umask() };
        Self { owner, special_bits: exact, umask, as_stored: args.as_stored }
    }

    /// Writes the contents of a file and returns how many bytes they are.
    fn write(&self, file: &File, mut to: &std::fs::File) -> daxfs::Result<u64> {
        if !self.as_stored {
            let original = file.original()?;
            if original.differs() {
                return original.copy_to(&mut to);
            }
        }
        file.write_to(to)
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

/// Looks at all that is to be written before anything is, and returns its bytes: special files are refused, and more
/// bytes than the caller wants.
fn survey(image: &Image, top: &Entry, args: &ExtractArgs) -> anyhow::Result<u64> {
    let memory = image.backing().map_or(0, Region::len).saturating_add(image.region().len());
    let limit = args.max_bytes.unwrap_or_else(|| memory.saturating_mul(2));
    let mut inodes = HashSet::new();
    let mut bytes = 0_u64;
    for entry in below(top) {
        let metadata = entry.metadata();
        match entry.file_type() {
            FileType::Special if !args.skip_special => bail!(
                "{}: a {} cannot be extracted; skip such files with --skip-special",
                escape(&entry.path()),
                kind_name(metadata.mode)
            ),
            FileType::File if inodes.insert(metadata.ino) => {
                let len = if args.as_stored { metadata.size } else { original_len(&entry)? };
                bytes = bytes.saturating_add(len);
            }
            _ => (),
        }
    }
    if bytes > limit && args.max_bytes.is_some() {
        bail!("the files have {} ({bytes} bytes), more than --max-bytes {limit}", human(bytes));
    }
    if bytes > limit {
        bail!(
            "the files have {} ({bytes} bytes), more than twice the image's {}, because they share its bytes or have \
             holes; if that is what it is meant to hold (daxfs-pack --dedupe makes such images), write them all by \
             --max-bytes {bytes}",
            human(bytes),
            human(memory)
        );
    }
    Ok(bytes)
}

/// How long a file was in its source, and will be when it is written: not always what it has in the image.
fn original_len(entry: &Entry) -> anyhow::Result<u64> {
    let original = entry.file().and_then(|file| file.original());
    original.map(|original| original.len()).with_context(|| escape(&entry.path()))
}

/// All entries below a directory and itself, or the one that is none; without `/.daxfs`.
fn below(top: &Entry) -> impl Iterator<Item = Entry> {
    let mut pending = vec![top.clone()];
    std::iter::from_fn(move || {
        let entry = pending.pop()?;
        pending.extend(entry.children().filter(|child| !is_index(child)));
        Some(entry)
    })
}

/// True for the directory that the packer adds.
fn is_index(entry: &Entry) -> bool {
    entry.name() == format::index::DIR.as_bytes()
        && entry.parent().is_some_and(|parent| parent.parent().is_none())
}

/// A directory that is being filled.
struct Level {
    entry: Entry,
    children: Box<dyn Iterator<Item = Entry>>,
    /// Bytes of its path below the destination.
    path_len: usize,
}

impl Level {
    fn new(entry: Entry, path_len: usize) -> Self {
        let children = Box::new(entry.children().filter(|child| !is_index(child)));
        Self { entry, children, path_len }
    }
}

/// Where the first name of a file is, for its other names.
enum First {
    /// Where the image has it.
    There(Entry),
    /// In the stage, since its path is too long for one call.
    Staged,
}

/// Longest path that is given to the kernel; PATH_MAX is 4096 with the NUL.
const LONGEST: usize = 4000;

struct Work<'a> {
    image: &'a Image,
    top: &'a Entry,
    rules: &'a Rules,
    progress: &'a Progress,
    dest: &'a OwnedFd,
    written: Written,
    firsts: HashMap<u64, First>,
    /// A directory in the destination that is there only meanwhile, and the names in it: links to files that are too
    /// deep to be reached again by their paths.
    stage: Option<Stage>,
    /// Directories whose modes are for later: nobody could work in them.
    locked: bool,
}

struct Stage {
    name: Vec<u8>,
    fd: OwnedFd,
    links: Vec<u64>,
}

impl<'a> Work<'a> {
    fn new(
        image: &'a Image,
        top: &'a Entry,
        rules: &'a Rules,
        progress: &'a Progress,
        dest: &'a OwnedFd,
    ) -> Self {
        Self {
            image,
            top,
            rules,
            progress,
            dest,
            written: Written::default(),
            firsts: HashMap::new(),
            stage: None,
            locked: false,
        }
    }

    /// One file, in the destination, which stands for the directory that the image has it in.
    fn one(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let parent = entry.parent().ok_or_else(|| anyhow!("the root is not a directory"))?;
        self.written.directories = 1;
        self.leaf(self.dest.as_fd(), 0, entry)?;
        self.rules.attributes(&parent).apply(self.dest).with_context(|| escape(&parent.path()))
    }

    /// A directory's contents, into the destination.
    fn tree(&mut self, top: &Entry) -> anyhow::Result<()> {
        self.written.directories = 1;
        let mut way = Descent::new(self.dest.try_clone()?, Level::new(top.clone(), 0));
        loop {
            match way.data.children.next() {
                Some(entry) if entry.file_type() == FileType::Directory => {
                    let place = || escape(&entry.path());
                    let path_len = way.data.path_len.saturating_add(entry.name().len()).saturating_add(1);
                    beneath::make_directory(way.fd(), entry.name()).with_context(place)?;
                    way.enter(entry.name(), Level::new(entry.clone(), path_len)).with_context(place)?;
                    self.written.directories = self.written.directories.saturating_add(1);
                }
                Some(entry) => self.leaf(way.fd(), way.data.path_len, &entry)?,
                None => {
                    let attributes = self.rules.attributes(&way.data.entry);
                    let entry = way.data.entry.clone();
                    let place = || escape(&entry.path());
                    let left = way.leave().with_context(place)?;
                    if attributes.locks_out() {
                        self.locked = true;
                    } else {
                        let fd = left.as_ref().map_or(self.dest.as_fd(), |(fd, _)| fd.as_fd());
                        attributes.apply(fd).with_context(place)?;
                    }
                    if left.is_none() {
                        break;
                    }
                }
            }
        }
        // The stage lies in the destination, whose mode may forbid to take it away.
        self.remove_stage()?;
        if self.locked { self.lock(top) } else { Ok(()) }
    }

    /// Anything but a directory, in an open directory whose path has `path_len` bytes.
    fn leaf(&mut self, parent: BorrowedFd<'_>, path_len: usize, entry: &Entry) -> anyhow::Result<()> {
        let place = || escape(&entry.path());
        match entry.file_type() {
            FileType::Symlink => {
                let link = entry.read_link().with_context(place)?;
                let owner = self.rules.attributes(entry).owner;
                beneath::make_symlink(parent, entry.name(), link, owner).with_context(place)?;
                self.written.links = self.written.links.saturating_add(1);
            }
            FileType::File => {
                if !self.link(parent, entry).with_context(place)? {
                    let file = beneath::make_file(parent, entry.name()).with_context(place)?;
                    let bytes = self.rules.write(&entry.file()?, &file).with_context(place)?;
                    self.rules.attributes(entry).apply(&file).with_context(place)?;
                    self.remember(parent, path_len, entry).with_context(place)?;
                    self.written.bytes = self.written.bytes.saturating_add(bytes);
                    self.progress.add(bytes);
                }
                self.written.files = self.written.files.saturating_add(1);
            }
            FileType::Directory => (),
            _ => self.written.skipped = self.written.skipped.saturating_add(1),
        }
        Ok(())
    }

    /// Makes another name of a file that was written; false for a file that was not.
    fn link(&self, parent: BorrowedFd<'_>, entry: &Entry) -> io::Result<bool> {
        let ino = entry.metadata().ino;
        match (self.firsts.get(&ino), &self.stage) {
            (Some(First::There(first)), _) => {
                let directory = beneath::open_below(self.dest.as_fd(), &self.path_of_parent(first))?;
                beneath::make_link(directory.as_fd(), first.name(), parent, entry.name())?;
            }
            (Some(First::Staged), Some(stage)) => {
                beneath::make_link(stage.fd.as_fd(), ino.to_string().as_bytes(), parent, entry.name())?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Keeps the place of a file that may have other names. Changed images do not keep link counts.
    fn remember(&mut self, parent: BorrowedFd<'_>, path_len: usize, entry: &Entry) -> anyhow::Result<()> {
        let metadata = entry.metadata();
        if metadata.nlink < 2 && self.image.view_kind() == ViewKind::Base {
            return Ok(());
        }
        let first = if path_len < LONGEST {
            First::There(entry.clone())
        } else {
            let stage = match &mut self.stage {
                Some(stage) => stage,
                None => self.stage.insert(Stage::new(self.dest.as_fd(), self.top)?),
            };
            let name = metadata.ino.to_string();
            beneath::make_link(parent, entry.name(), stage.fd.as_fd(), name.as_bytes())?;
            stage.links.push(metadata.ino);
            First::Staged
        };
        self.firsts.insert(metadata.ino, first);
        Ok(())
    }

    /// Path of an entry's directory below the destination.
    fn path_of_parent(&self, entry: &Entry) -> Vec<u8> {
        let mut names = Vec::new();
        let mut directory = entry.parent();
        while let Some(entry) = directory.filter(|entry| entry.metadata().ino != self.top.metadata().ino) {
            names.push(entry.name().to_vec());
            directory = entry.parent();
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Gives directories modes that lock their owner out, from the deepest up, once nothing is left to do in them.
    fn lock(&self, top: &Entry) -> anyhow::Result<()> {
        let mut way = Descent::new(self.dest.try_clone()?, Level::new(top.clone(), 0));
        loop {
            match way.data.children.next() {
                Some(entry) if entry.file_type() == FileType::Directory => {
                    way.enter(entry.name(), Level::new(entry.clone(), 0))
                        .with_context(|| escape(&entry.path()))?;
                }
                Some(_) => (),
                None => {
                    let entry = way.data.entry.clone();
                    let attributes = self.rules.attributes(&entry);
                    let left = way.leave().with_context(|| escape(&entry.path()))?;
                    if attributes.locks_out() {
                        let fd = left.as_ref().map_or(self.dest.as_fd(), |(fd, _)| fd.as_fd());
                        attributes.apply(fd).with_context(|| escape(&entry.path()))?;
                    }
                    if left.is_none() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Takes the stage away, also after an error.
    fn remove_stage(&mut self) -> anyhow::Result<()> {
        let Some(stage) = self.stage.take() else { return Ok(()) };
        for ino in stage.links {
            unlinkat(&stage.fd, ino.to_string().as_str(), UnlinkatFlags::NoRemoveDir)?;
        }
        unlinkat(self.dest, OsStr::from_bytes(&stage.name), UnlinkatFlags::RemoveDir)?;
        Ok(())
    }
}

impl Stage {
    /// A directory whose name the image does not have.
    fn new(dest: BorrowedFd<'_>, top: &Entry) -> anyhow::Result<Self> {
        let names = (0_u32..).map(|number| format!(".daxfs-extract-{number}").into_bytes());
        let name = names.into_iter().find(|name| top.child(name).is_none()).unwrap_or_default();
        beneath::make_directory(dest, &name)?;
        let fd = beneath::open_below(dest, &name)?;
        Ok(Self { name, fd, links: Vec::new() })
    }
}
