//! Lists what will be packed: the inputs, what lies below them, and what symbolic links lead to. Nothing is opened but
//! directories, and what links lead to.

use crate::archive;
use crate::links::{self, Links};
use crate::parallel::Threads;
use crate::remote;
use crate::selection::{Choice, Selection};
use crate::source::{Sort, kind_of};
use crate::tree::{Input, Kind, ROOT, Tree};
use crate::walk::walk;
use crate::{Error, Result};
use daxfs::format::{NAME_MAX, S_IFDIR, index};
use nix::sys::stat::{FileStat, stat};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What the scan does with names that an image cannot or must not hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    /// Leave special files out instead of refusing them.
    pub(crate) skip_special: bool,
    /// Refuse a `.daxfs` at the root instead of leaving it out.
    pub(crate) plain: bool,
    /// What becomes of symbolic links.
    pub(crate) links: Links,
    /// Refuse links that would be followed out of the tree.
    pub(crate) confined: bool,
    /// Which names are left out.
    pub(crate) selection: Selection,
    /// How images of containers are read.
    pub(crate) images: archive::Settings,
}

/// Lists `inputs`: one directory becomes the root of the image; anything else lies in the root by its base name.
///
/// # Errors
///
/// [`Error::NoInput`], [`Error::DuplicateName`], and those of the walk and of the links.
pub(crate) fn scan(inputs: &[PathBuf], rules: &Rules, threads: Threads) -> Result<Tree> {
    for input in inputs {
        let alone = |source: String| match inputs.len() {
            1 => Ok(()),
            _ => {
                let why = format!("{source} becomes the root of an image, and is packed alone");
                Err(Error::Setting { option: "INPUT", why })
            }
        };
        if let Some(source) = daxfs_oci::Source::parse(input)? {
            alone(source.to_string())?;
            return archive::scan(&source, rules, threads);
        }
        if let Some(address) = remote::address(input)? {
            alone(address.to_string())?;
            let fetched = remote::fetch(&address, rules)?;
            let mut tree = scan(&[fetched.root()], rules, threads)?;
            tree.left_out.extend_from_slice(&fetched.left_out);
            tree.left_out.sort_unstable();
            tree.fetched = Some(fetched);
            return Ok(tree);
        }
    }
    let mut tree = Tree::default();
    match inputs {
        [] => return Err(Error::NoInput),
        [path] => match stat_input(path)? {
            stat if stat.st_mode & daxfs::format::S_IFMT == S_IFDIR => {
                tree.add(ROOT, b"", Kind::Directory { first: 0, count: 0 }, &stat)?;
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
    let roots: Vec<u32> = tree.inputs.iter().map(|input| input.node).collect();
    let roots: Vec<u32> =
        roots.into_iter().filter(|&node| matches!(tree.node(node).kind, Kind::Directory { .. })).collect();
    walk(&mut tree, &roots, rules, threads)?;
    links::settle(&mut tree, rules, threads)?;
    Ok(tree)
}

/// Inputs themselves may be symbolic links: they are followed, as `cp` follows its operands with `-H`.
fn stat_input(path: &Path) -> Result<FileStat> {
    stat(path).map_err(|errno| Error::io("stat", path, errno))
}

/// The name of an input in the root of the image. `.` and `dir/..` get the name of what they stand for.
pub(crate) fn base_name(path: &Path) -> Result<OsString> {
    if let Some(source) = daxfs_oci::Source::parse(path)? {
        let none = || name_error(path, "has no name that an image could be called after; name the file");
        return source.base_name().ok_or_else(none);
    }
    if let Some(address) = remote::address(path)? {
        let none = || name_error(path, "has no name that an image could be called after; name the file");
        return remote::base_name(&address).map(OsString::from).ok_or_else(none);
    }
    let resolved = match path.file_name() {
        Some(name) => return Ok(name.to_owned()),
        None => path.canonicalize().map_err(|error| Error::io("resolve", path, error))?,
    };
    let name = resolved.file_name().map(OsStr::to_owned);
    name.ok_or_else(|| name_error(path, "has no name to be packed under; pack it alone or name its entries"))
}

/// Makes a root out of nothing (0755, owner of the first input by name) and puts the inputs into it.
fn push_inputs(tree: &mut Tree, mut named: Vec<(OsString, &PathBuf, FileStat)>, rules: &Rules) -> Result<()> {
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
    tree.add(ROOT, b"", Kind::Directory { first: 1, count: 0 }, &root)?;
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
        let is_directory = matches!(kind, Kind::Directory { .. });
        if rules.selection.choose(Path::new(&name), is_directory, false) == Choice::Out {
            if rules.selection.is_excluded(Path::new(&name), is_directory) {
                tree.excluded.note(ROOT, name.as_bytes(), &stat);
            }
            let mut name = name;
            name.push(if is_directory { "/" } else { "" });
            tree.left_out.push(PathBuf::from(name));
            continue;
        }
        let node = tree.add(ROOT, name.as_bytes(), kind, &stat)?;
        tree.inputs.push(Input { node, path: path.clone() });
        tree.nodes[ROOT as usize].kind = Kind::Directory { first: 1, count: node };
    }
    Ok(())
}

/// Names that come out of a directory hold no `/` and no NUL; only their length is left to check.
pub(crate) fn check_name(path: &Path, name: &[u8]) -> Result<()> {
    match name.len() {
        1..=NAME_MAX => Ok(()),
        len => {
            Err(name_error(path, &format!("a name of {len} bytes, an image holds names of 1 to {NAME_MAX}")))
        }
    }
}

pub(crate) fn name_error(path: &Path, why: &str) -> Error {
    Error::Name { path: path.to_path_buf(), why: why.to_owned() }
}
