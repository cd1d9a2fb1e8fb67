//! Lists what lies below directories, by descriptors, and appends it to the tree.
//!
//! Linear in the number of names, whatever their depth: a directory is opened by its name from the one around it, whose
//! descriptor is kept until all that it holds are open. The walk goes down before it goes on, so few are kept; where
//! more than [`KEPT`] would be, the directory is opened by its path from the nearest one that is. No path is made but
//! for messages and globs. The tree gets the names in its own order, level by level, when all are known.

use crate::again::openat;
use crate::links::Links;
use crate::parallel::{self, Threads};
use crate::scan::{Rules, check_name, name_error};
use crate::selection::{Choice, Named, can_be_safetensors, is_weights, superfluous};
use crate::source::{Opener, Sort, Step, THROUGH, descend, kind_of};
use crate::tree::{Kind, ROOT, Tree};
use crate::{Error, Result};
use daxfs::format::{NAME_MAX, index};
use nix::dir::Dir as Stream;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directories that are listed by several threads at once.
const BATCH: usize = 64;
/// Descriptors that are kept for what lies below them.
const KEPT: usize = 128;

/// A device and an inode on it.
pub(crate) type Id = (u64, u64);

/// A directory of the walk.
#[derive(Debug)]
struct Directory {
    /// The directory around it, by number; a node of the tree for those that the walk begins with.
    around: Around,
    name: Box<[u8]>,
    id: Id,
    /// For those below it, while some wait.
    fd: Option<OwnedFd>,
    /// Directories in it that are still to be opened.
    waiting: usize,
    /// Path from the root of the image; only where globs look at it.
    path: Vec<u8>,
    /// Whether a glob has chosen all of it.
    whole: bool,
    /// Directories that it must not be one of: those around the link that led here.
    above: Arc<HashSet<Id>>,
    children: Vec<Child>,
}

#[derive(Debug, Clone, Copy)]
enum Around {
    Tree(u32),
    Walk(usize),
}

/// A name in a directory.
#[derive(Debug)]
struct Child {
    name: Box<[u8]>,
    stat: FileStat,
    found: Found,
}

/// What a name in a directory stands for.
#[derive(Debug)]
enum Found {
    File,
    /// With its number, when it has one.
    Directory(Option<usize>, bool),
    /// With its target.
    Symlink(OsString),
    /// Left out, as the rules say.
    Special,
    /// The packer's own index of an image that was extracted.
    Index,
    /// Left out by a glob or the like; whether it is a directory.
    LeftOut(bool),
    /// The same, and no link may lead to it.
    Excluded(bool),
}

/// Appends what lies below the directories `roots` of the tree, which hold nothing yet.
///
/// # Errors
///
/// [`Error::Special`], [`Error::Name`], [`Error::Changed`] for a directory that is replaced meanwhile, [`Error::Link`]
/// for one that a link made part of itself, [`Error::TooMany`], [`Error::Io`].
pub(crate) fn walk(tree: &mut Tree, roots: &[u32], rules: &Rules, threads: Threads) -> Result<()> {
    let mut walk = Walk { tree, rules, directories: Vec::new(), kept: VecDeque::new() };
    for &node in roots {
        walk.add_root(node);
    }
    let mut stack: Vec<usize> = (0..roots.len()).rev().collect();
    while !stack.is_empty() {
        let batch: Vec<usize> = stack.drain(stack.len().saturating_sub(BATCH)..).rev().collect();
        let lists = parallel::map(batch.len(), threads, || (), |(), at| walk.list(batch[at]))?;
        let mut found = Vec::new();
        for (&number, (children, fd)) in batch.iter().zip(lists) {
            walk.take(number, children, fd, &mut found);
        }
        stack.extend(found.into_iter().rev());
    }
    let Walk { mut directories, .. } = walk;
    let kept = chosen(&directories, rules);
    let mut queue: VecDeque<(u32, usize)> = roots.iter().copied().zip(0..).collect();
    while let Some((node, number)) = queue.pop_front() {
        let children = std::mem::take(&mut directories[number].children);
        append(tree, node, children, &kept, &mut queue)?;
    }
    Ok(())
}

struct Walk<'w> {
    tree: &'w Tree,
    rules: &'w Rules,
    directories: Vec<Directory>,
    /// Numbers of those whose descriptor may be open, oldest first.
    kept: VecDeque<usize>,
}

impl Walk<'_> {
    fn add_root(&mut self, node: u32) {
        let found = self.tree.node(node);
        let mut above = HashSet::new();
        let mut at = node;
        while found.followed && at != ROOT {
            at = self.tree.node(at).parent;
            above.insert((self.tree.node(at).identity.dev, self.tree.node(at).identity.ino));
        }
        let path = match self.rules.selection.has_globs() && node != ROOT {
            true => self.tree.image_path(node)[1..].to_vec(),
            false => Vec::new(),
        };
        let rules = &self.rules.selection;
        let whole = node != ROOT
            && Path::new(OsStr::from_bytes(&path))
                .ancestors()
                .filter(|path| !path.as_os_str().is_empty())
                .any(|path| rules.only_matches() && rules.choose(path, true, false) == Choice::Whole);
        self.directories.push(Directory {
            around: Around::Tree(node),
            name: Box::default(),
            id: (found.identity.dev, found.identity.ino),
            fd: None,
            waiting: 0,
            path,
            whole,
            above: Arc::new(above),
            children: Vec::new(),
        });
    }

    /// Opens a directory for listing.
    fn open(&self, number: usize) -> Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let mut steps = Vec::new();
        let mut at = number;
        loop {
            let directory = &self.directories[at];
            if at != number
                && let Some(fd) = &directory.fd
            {
                return self.descend(number, fd, steps, flags);
            }
            match directory.around {
                Around::Walk(around) => {
                    steps.push(Step { name: &directory.name, followed: false });
                    at = around;
                }
                Around::Tree(node) if steps.is_empty() => return Opener::new(self.tree).directory(node),
                Around::Tree(node) => {
                    let mut opener = Opener::new(self.tree);
                    let top = opener.through(node)?;
                    return self.descend(number, top, steps, flags);
                }
            }
        }
    }

    fn descend(&self, number: usize, from: impl AsFd, steps: Vec<Step<'_>>, flags: OFlag) -> Result<OwnedFd> {
        descend(from.as_fd(), steps.into_iter().rev(), flags)
            .map_err(|errno| Error::io("open", &self.source_path(number), errno))
    }

    /// Path of a directory in the source, for messages.
    fn source_path(&self, number: usize) -> PathBuf {
        let (mut names, mut at) = (Vec::new(), number);
        loop {
            let directory = &self.directories[at];
            match directory.around {
                Around::Walk(around) => {
                    names.push(OsStr::from_bytes(&directory.name));
                    at = around;
                }
                Around::Tree(node) => {
                    let mut path = self.tree.source_path(node);
                    path.extend(names.into_iter().rev());
                    return path;
                }
            }
        }
    }

    /// Reads one directory: its names in order, and what they stand for; and a descriptor to open from what it holds.
    fn list(&self, number: usize) -> Result<(Vec<Child>, Option<OwnedFd>)> {
        let fd = self.open(number)?;
        let here = || self.source_path(number);
        let now = fstat(&fd).map_err(|errno| Error::io("stat", &here(), errno))?;
        if self.directories[number].id != (now.st_dev, now.st_ino) {
            return Err(Error::changed(&here(), "another directory stands in its place"));
        }
        let mut stream = Stream::from_fd(fd).map_err(|errno| Error::io("open", &here(), errno))?;
        let mut names = Vec::new();
        for entry in stream.iter() {
            let entry = entry.map_err(|errno| Error::io("list", &here(), errno))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(Box::<[u8]>::from(name));
            }
        }
        names.sort_unstable();
        let mut list = Vec::with_capacity(names.len());
        for name in names {
            let os_name = OsStr::from_bytes(&name);
            let path = || here().join(os_name);
            let stat = match fstatat(&stream, os_name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::ENOENT) => return Err(Error::changed(&path(), "it was removed")),
                Err(errno) => return Err(Error::io("stat", &path(), errno)),
            };
            let found = self.find(number, &stream, &name, &stat)?;
            list.push(Child { name, stat, found });
        }
        if self.rules.selection.weights_only {
            self.leave_out_superfluous(&stream, &mut list);
        }
        let has_more = list.iter().any(|child| matches!(child.found, Found::Directory(..)));
        let through = has_more.then(|| openat(&stream, ".", THROUGH, Mode::empty()));
        Ok((list, through.transpose().map_err(|errno| Error::io("open", &here(), errno))?))
    }

    /// What a name in the directory that `stream` is stands for.
    fn find(&self, number: usize, stream: &Stream, name: &[u8], stat: &FileStat) -> Result<Found> {
        let os_name = OsStr::from_bytes(name);
        let path = || self.source_path(number).join(os_name);
        let sort = kind_of(stat.st_mode);
        let is_root = matches!(self.directories[number].around, Around::Tree(ROOT));
        if is_root && *name == *index::DIR.as_bytes() {
            if self.rules.plain || sort != Ok(Sort::Directory) {
                return Err(name_error(&path(), "this name is kept for the packer's own index"));
            }
            return Ok(Found::Index);
        }
        let is_directory = sort == Ok(Sort::Directory);
        let (choice, is_excluded) = self.choose(number, stream, name, sort);
        // In a folder that a link leads to, what was left out elsewhere in the tree has another path.
        if is_excluded || sort != Ok(Sort::Symlink) && self.tree.excluded.has(stat) {
            return Ok(Found::Excluded(is_directory));
        }
        if choice == Choice::Out {
            return Ok(Found::LeftOut(is_directory));
        }
        let found = match sort {
            Ok(Sort::File) => Found::File,
            Ok(Sort::Directory) => {
                let id = (stat.st_dev, stat.st_ino);
                if self.directories[number].above.contains(&id) {
                    let why = "lies inside a folder that a symbolic link leads to, and around that link: it would \
                               hold itself (--links keep packs links as they are)";
                    return Err(Error::Link { path: path(), why: why.to_owned() });
                }
                Found::Directory(None, choice == Choice::Whole)
            }
            Ok(Sort::Symlink) => {
                let target =
                    readlinkat(stream, os_name).map_err(|errno| Error::io("readlink", &path(), errno))?;
                if target.is_empty() {
                    return Err(name_error(&path(), "a symbolic link without a target cannot be packed"));
                }
                if self.rules.links == Links::Refuse {
                    let why = format!("a symbolic link to {}, and links are refused", target.display());
                    return Err(Error::Link { path: path(), why });
                }
                Found::Symlink(target)
            }
            Err(_) if self.rules.skip_special => Found::Special,
            Err(kind) => return Err(Error::Special { path: path(), kind }),
        };
        if name.len() > NAME_MAX {
            check_name(&path(), name)?;
        }
        Ok(found)
    }

    /// Leaves out what weights in the directory that `stream` is make superfluous.
    fn leave_out_superfluous(&self, stream: &Stream, list: &mut [Child]) {
        let is_in = |child: &&Child| !matches!(child.found, Found::LeftOut(_) | Found::Excluded(_));
        let mut names = Vec::with_capacity(list.len());
        for Child { name, found, .. } in list.iter().filter(is_in) {
            let is_directory = matches!(found, Found::Directory(..));
            let has_weights = is_weights(name) && self.has_weights(stream, name, found);
            names.push(Named { name, is_directory, has_weights });
        }
        let out = superfluous(&names);
        for (child, _) in list.iter_mut().filter(|child| is_in(&&**child)).zip(out).filter(|(_, out)| *out) {
            child.found = Found::LeftOut(matches!(child.found, Found::Directory(..)));
        }
    }

    /// Whether a name stands for a safetensors file that is there and can be read. A link that stays one says nothing of
    /// what the image will hold.
    fn has_weights(&self, stream: &Stream, name: &[u8], found: &Found) -> bool {
        match found {
            Found::File => {}
            Found::Symlink(_) if self.rules.links != Links::Keep => {}
            _ => return false,
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let Ok(fd) = openat(stream, OsStr::from_bytes(name), flags, Mode::empty()) else { return false };
        let mut start = [0; 8];
        let file = File::from(fd);
        let Ok(found) = file.metadata() else { return false };
        found.is_file() && file.read_exact_at(&mut start, 0).is_ok() && can_be_safetensors(found.len(), start)
    }

    fn choose(
        &self,
        number: usize,
        stream: &Stream,
        name: &[u8],
        sort: std::result::Result<Sort, &'static str>,
    ) -> (Choice, bool) {
        let selection = &self.rules.selection;
        if !selection.has_globs() {
            return (Choice::Whole, false);
        }
        let is_directory = match sort {
            Ok(Sort::Directory) => true,
            // What will be packed in its place counts, for globs that end in a slash.
            Ok(Sort::Symlink) if self.rules.links != Links::Keep => {
                fstatat(stream, OsStr::from_bytes(name), AtFlags::empty())
                    .is_ok_and(|stat| kind_of(stat.st_mode) == Ok(Sort::Directory))
            }
            _ => false,
        };
        let directory = &self.directories[number];
        let path = join(&directory.path, name);
        let path = Path::new(OsStr::from_bytes(&path));
        let choice = selection.choose(path, is_directory, directory.whole);
        (choice, choice == Choice::Out && selection.is_excluded(path, is_directory))
    }

    /// Takes in what a directory holds.
    fn take(&mut self, number: usize, mut children: Vec<Child>, fd: Option<OwnedFd>, found: &mut Vec<usize>) {
        let has_globs = self.rules.selection.has_globs();
        for child in &mut children {
            let Found::Directory(below, whole) = &mut child.found else { continue };
            *below = Some(self.directories.len());
            found.push(self.directories.len());
            self.directories[number].waiting += 1;
            let around = &self.directories[number];
            self.directories.push(Directory {
                around: Around::Walk(number),
                name: child.name.clone(),
                id: (child.stat.st_dev, child.stat.st_ino),
                fd: None,
                waiting: 0,
                path: if has_globs { join(&around.path, &child.name) } else { Vec::new() },
                whole: *whole,
                above: Arc::clone(&around.above),
                children: Vec::new(),
            });
        }
        self.directories[number].children = children;
        self.directories[number].fd = fd;
        self.kept.push_back(number);
        if let Around::Walk(around) = self.directories[number].around {
            let around = &mut self.directories[around];
            around.waiting -= 1;
            if around.waiting == 0 {
                around.fd = None;
            }
        }
        if self.kept.len() > KEPT {
            // Those that were closed in the meantime still stand in the list.
            self.kept.retain(|&kept| self.directories[kept].fd.is_some());
        }
        if self.kept.len() > KEPT
            && let Some(oldest) = self.kept.pop_front()
        {
            self.directories[oldest].fd = None;
        }
    }
}

/// A path below a directory, both from the root of the image.
fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match directory {
        [] => name.to_vec(),
        _ => [directory, b"/", name].concat(),
    }
}

/// Which directories are packed: all, but where only what globs match is, those that hold none of it.
fn chosen(directories: &[Directory], rules: &Rules) -> Vec<bool> {
    let mut chosen = vec![true; directories.len()];
    if rules.selection.only_matches() {
        // What a directory holds has higher numbers than it.
        for (number, directory) in directories.iter().enumerate().rev() {
            let holds = |child: &Child| match child.found {
                Found::File | Found::Symlink(_) => true,
                Found::Directory(below, _) => below.is_some_and(|below| chosen[below]),
                _ => false,
            };
            let is_root = matches!(directory.around, Around::Tree(_));
            chosen[number] = is_root || directory.whole || directory.children.iter().any(holds);
        }
    }
    chosen
}

/// Appends the children of a directory; those that are directories themselves go to `queue`.
fn append(
    tree: &mut Tree,
    directory: u32,
    children: Vec<Child>,
    chosen: &[bool],
    queue: &mut VecDeque<(u32, usize)>,
) -> Result<()> {
    let first = u32::try_from(tree.nodes.len()).unwrap_or(u32::MAX);
    let mut count = 0;
    for Child { name, stat, found } in children {
        let os_name = OsStr::from_bytes(&name);
        let mut below = None;
        let kind = match found {
            Found::File => Kind::File,
            Found::Directory(Some(number), _) if chosen[number] => {
                below = Some(number);
                Kind::Directory { first: 0, count: 0 }
            }
            // Nothing in it is packed.
            Found::Directory(..) => {
                leave_out(tree, directory, &name, true);
                continue;
            }
            Found::Symlink(target) => Kind::Symlink { target: tree.intern(target.as_bytes())? },
            Found::Special => {
                let path = tree.source_path(directory).join(os_name);
                tree.skipped.push(path);
                continue;
            }
            Found::Index => {
                tree.dropped = Some(tree.source_path(directory).join(os_name));
                continue;
            }
            Found::Excluded(is_directory) => {
                tree.excluded.note(directory, &name, &stat);
                leave_out(tree, directory, &name, is_directory);
                continue;
            }
            Found::LeftOut(is_directory) => {
                leave_out(tree, directory, &name, is_directory);
                continue;
            }
        };
        let node = tree.add(directory, &name, kind, &stat)?;
        queue.extend(below.map(|number| (node, number)));
        count += 1;
    }
    tree.nodes[directory as usize].kind = Kind::Directory { first, count };
    Ok(())
}

/// Notes that a name in a directory of the tree is not packed.
pub(crate) fn leave_out(tree: &mut Tree, directory: u32, name: &[u8], is_directory: bool) {
    let mut path = join(&tree.image_path(directory)[1..], name);
    path.extend(is_directory.then_some(b'/'));
    tree.left_out.push(PathBuf::from(OsString::from_vec(path)));
}
