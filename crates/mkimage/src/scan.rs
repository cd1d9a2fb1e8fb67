//! Walks the inputs and lists what will be packed. Nothing is opened but directories.
//!
//! Linear in the number of names: every directory is read once, by descriptor, so that a tree may be deeper
//! than a path can be long.

use crate::parallel;
use crate::source::{Opener, Sort, check_directory, kind_of};
use crate::tree::{Identity, Input, Kind, Node, ROOT, Tree};
use crate::{Error, Result};
use daxfs::format::{NAME_MAX, S_IFDIR, index};
use nix::dir::Dir;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FileStat, fstatat, stat};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Directories that are listed by several threads at once, before what they hold is put into the tree.
const BATCH: usize = 64;

/// What the scan does with names that an image cannot or must not hold.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rules {
    /// Leave special files out instead of refusing them.
    pub(crate) skip_special: bool,
    /// Refuse a `.daxfs` at the root instead of leaving it out.
    pub(crate) plain: bool,
}

/// Lists `inputs`: one directory becomes the root of the image; anything else lies in the root by its base name.
///
/// # Errors
///
/// [`Error::NoInput`], [`Error::DuplicateName`], [`Error::Special`], [`Error::Name`], [`Error::Changed`] for a
/// directory that is replaced meanwhile, [`Error::TooMany`], [`Error::Io`].
pub(crate) fn scan(inputs: &[PathBuf], rules: Rules, threads: usize) -> Result<Tree> {
    let mut tree = Tree::default();
    match inputs {
        [] => return Err(Error::NoInput),
        [path] => match stat_input(path)? {
            stat if stat.st_mode & daxfs::format::S_IFMT == S_IFDIR => {
                push(&mut tree, ROOT, b"", Kind::Directory { first: 0, count: 0 }, &stat)?;
                tree.inputs.push(Input { node: ROOT, path: path.clone() });
            }
            stat => push_inputs(&mut tree, vec![(base_name(path)?, path, stat)], rules)?,
        },
        several => {
            let mut named = Vec::with_capacity(several.len());
            for path in several {
                named.push((base_name(path)?, path, stat_input(path)?));
            }
            push_inputs(&mut tree, named, rules)?;
        }
    }
    let mut next = if tree.nodes.len() == 1 { ROOT } else { 1 };
    while (next as usize) < tree.nodes.len() {
        // Directories that are known already; what they hold comes behind all of them.
        let mut batch = Vec::new();
        while (next as usize) < tree.nodes.len() && batch.len() < BATCH {
            if matches!(tree.node(next).kind, Kind::Directory { .. }) {
                batch.push(next);
            }
            next += 1;
        }
        let lists = parallel::map(batch.len(), threads, || (), |(), at| list(&tree, batch[at], rules))?;
        for (&directory, found) in batch.iter().zip(lists) {
            append(&mut tree, directory, found)?;
        }
    }
    Ok(tree)
}

/// Inputs themselves may be symbolic links: they are followed, as `cp` follows its operands with `-H`.
fn stat_input(path: &Path) -> Result<FileStat> {
    stat(path).map_err(|errno| Error::io("stat", path, errno))
}

/// The name of an input in the root of the image. `.` and `dir/..` get the name of what they stand for.
pub(crate) fn base_name(path: &Path) -> Result<OsString> {
    let resolved = match path.file_name() {
        Some(name) => return Ok(name.to_owned()),
        None => path.canonicalize().map_err(|error| Error::io("resolve", path, error))?,
    };
    let name = resolved.file_name().map(OsStr::to_owned);
    name.ok_or_else(|| name_error(path, "has no name to be packed under; pack it alone or name its entries"))
}

/// Makes a root out of nothing (0755, owner of the first input by name) and puts the inputs into it.
fn push_inputs(tree: &mut Tree, mut named: Vec<(OsString, &PathBuf, FileStat)>, rules: Rules) -> Result<()> {
    named.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
    if let Some(pair) = named.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(Error::DuplicateName {
            name: PathBuf::from(&pair[0].0),
            first: pair[0].1.clone(),
            second: pair[1].1.clone(),
        });
    }
    let Some((_, _, first)) = named.first() else { return Err(Error::NoInput) };
    let mut root = *first;
    root.st_mode = S_IFDIR | 0o755;
    push(tree, ROOT, b"", Kind::Directory { first: 1, count: 0 }, &root)?;
    for (name, path, stat) in named {
        if name == index::DIR {
            return Err(name_error(path, "this name is kept for the packer's own index"));
        }
        let kind = match kind_of(stat.st_mode) {
            Ok(Sort::Directory) => Kind::Directory { first: 0, count: 0 },
            Ok(_) => Kind::File,
            Err(_) if rules.skip_special => {
                tree.skipped.push(path.clone());
                continue;
            }
            Err(kind) => return Err(Error::Special { path: path.clone(), kind }),
        };
        check_name(path, name.as_bytes())?;
        let node = push(tree, ROOT, name.as_bytes(), kind, &stat)?;
        tree.inputs.push(Input { node, path: path.clone() });
        tree.nodes[ROOT as usize].kind = Kind::Directory { first: 1, count: node };
    }
    Ok(())
}

/// What a name in a directory stands for.
enum Found {
    File,
    Directory,
    /// With its target.
    Symlink(OsString),
    /// Left out, as the rules say.
    Special,
    /// The packer's own index of an image that was extracted.
    Index,
}

/// A name in a directory.
struct Child {
    name: Box<[u8]>,
    stat: FileStat,
    found: Found,
}

/// Reads one directory: its names in order, and what they stand for.
fn list(tree: &Tree, directory: u32, rules: Rules) -> Result<Vec<Child>> {
    let fd = Opener::new(tree).directory(directory)?;
    // The path is made for messages only, so that a tree of any depth stays linear.
    check_directory(tree, directory, &fd, &tree.source_path(directory))?;
    let mut stream =
        Dir::from_fd(fd).map_err(|errno| Error::io("open", &tree.source_path(directory), errno))?;
    let mut names = Vec::new();
    for entry in stream.iter() {
        let entry = entry.map_err(|errno| Error::io("list", &tree.source_path(directory), errno))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(Box::<[u8]>::from(name));
        }
    }
    names.sort_unstable();

    let mut list = Vec::with_capacity(names.len());
    for name in names {
        let path = || tree.source_path(directory).join(OsStr::from_bytes(&name));
        let os_name = OsStr::from_bytes(&name);
        let stat = match fstatat(&stream, os_name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(nix::errno::Errno::ENOENT) => return Err(Error::changed(&path(), "it was removed")),
            Err(errno) => return Err(Error::io("stat", &path(), errno)),
        };
        let found = match kind_of(stat.st_mode) {
            sort if directory == ROOT && *name == *index::DIR.as_bytes() => {
                if rules.plain || sort != Ok(Sort::Directory) {
                    return Err(name_error(&path(), "this name is kept for the packer's own index"));
                }
                Found::Index
            }
            Ok(Sort::File) => Found::File,
            Ok(Sort::Directory) => Found::Directory,
            Ok(Sort::Symlink) => {
                let target =
                    readlinkat(&stream, os_name).map_err(|errno| Error::io("readlink", &path(), errno))?;
                if target.is_empty() {
                    return Err(name_error(&path(), "a symbolic link without a target cannot be packed"));
                }
                Found::Symlink(target)
            }
            Err(_) if rules.skip_special => Found::Special,
            Err(kind) => return Err(Error::Special { path: path(), kind }),
        };
        if name.len() > NAME_MAX {
            check_name(&path(), &name)?;
        }
        list.push(Child { name, stat, found });
    }
    Ok(list)
}

/// Appends the children of a directory.
fn append(tree: &mut Tree, directory: u32, list: Vec<Child>) -> Result<()> {
    let first = u32::try_from(tree.nodes.len()).unwrap_or(u32::MAX);
    let mut count = 0;
    for Child { name, stat, found } in list {
        let path = |tree: &Tree| tree.source_path(directory).join(OsStr::from_bytes(&name));
        let kind = match found {
            Found::File => Kind::File,
            Found::Directory => Kind::Directory { first: 0, count: 0 },
            Found::Symlink(target) => Kind::Symlink { target: tree.intern(target.as_bytes())? },
            Found::Special => {
                let path = path(tree);
                tree.skipped.push(path);
                continue;
            }
            Found::Index => {
                tree.dropped = Some(path(tree));
                continue;
            }
        };
        push(tree, directory, &name, kind, &stat)?;
        count += 1;
    }
    tree.nodes[directory as usize].kind = Kind::Directory { first, count };
    Ok(())
}

fn push(tree: &mut Tree, parent: u32, name: &[u8], kind: Kind, stat: &FileStat) -> Result<u32> {
    let name = tree.intern(name)?;
    tree.push(Node {
        parent,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        kind,
        name,
        identity: Identity::of(stat),
        links: links(stat),
    })
}

#[allow(clippy::useless_conversion, reason = "32 bits wide on some architectures")]
fn links(stat: &FileStat) -> u64 {
    u64::from(stat.st_nlink)
}

/// Names that come out of a directory hold no `/` and no NUL; only their length is left to check.
fn check_name(path: &Path, name: &[u8]) -> Result<()> {
    match name.len() {
        1..=NAME_MAX => Ok(()),
        len => {
            Err(name_error(path, &format!("a name of {len} bytes, an image holds names of 1 to {NAME_MAX}")))
        }
    }
}

fn name_error(path: &Path, why: &str) -> Error {
    Error::Name { path: path.to_path_buf(), why: why.to_owned() }
}
