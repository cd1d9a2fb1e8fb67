//! Trees on disk: how tests write them, and what is compared between a tree and an image.

use crate::golden::{Expected, sha256};
use daxfs::{FileType, Image};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// One thing to put into a source tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A directory with these permission bits.
    Dir(u32),
    /// A regular file with these permission bits and contents.
    File(u32, Vec<u8>),
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// Another name of the file at this path, relative to the tree's root.
    HardLink(Vec<u8>),
}

/// A source tree: paths relative to its root, parents before children.
pub type Tree = Vec<(Vec<u8>, Item)>;

/// Everything that an image must keep of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// File, directory, link or special file.
    pub kind: FileType,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes; 271 per entry for a directory.
    pub size: u64,
    /// Names of a file; 2 and one per subdirectory for a directory.
    pub nlink: u32,
    /// SHA-256 of the contents, or the link's target in quotes.
    pub contents: String,
    /// The first path, in bytewise order, that names the same file.
    pub same_as: Vec<u8>,
}

/// Writes a tree under `root`, which exists. Permissions of directories are set last, so that they may forbid
/// writing.
pub fn write(tree: &Tree, root: &Path) {
    for (path, item) in tree {
        let place = under(root, path);
        match item {
            Item::Dir(_) => fs::create_dir(&place).unwrap(),
            Item::File(mode, contents) => {
                fs::write(&place, contents).unwrap();
                fs::set_permissions(&place, fs::Permissions::from_mode(*mode)).unwrap();
            }
            Item::Symlink(target) => symlink(OsStr::from_bytes(target), &place).unwrap(),
            Item::HardLink(first) => fs::hard_link(under(root, first), &place).unwrap(),
        }
    }
    for (path, item) in tree.iter().rev() {
        if let Item::Dir(mode) = item {
            fs::set_permissions(under(root, path), fs::Permissions::from_mode(*mode)).unwrap();
        }
    }
}

fn under(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path))
}

/// What lies on disk under `root`, by absolute path in the image.
pub fn on_disk(root: &Path) -> BTreeMap<Vec<u8>, Facts> {
    let mut found = BTreeMap::new();
    let mut first: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
    let mut paths = BTreeSet::new();
    collect(root, b"/".to_vec(), &mut paths);
    for path in paths {
        let place = under(root, &path[1..]);
        let meta = fs::symlink_metadata(&place).unwrap();
        let names = || fs::read_dir(&place).unwrap().map(Result::unwrap);
        let (kind, size, nlink, contents) = if meta.is_dir() {
            let subdirs = names().filter(|entry| entry.file_type().unwrap().is_dir()).count();
            (
                FileType::Directory,
                271 * names().count() as u64,
                2 + u32::try_from(subdirs).unwrap(),
                String::new(),
            )
        } else if meta.is_symlink() {
            let target = fs::read_link(&place).unwrap().into_os_string().into_vec();
            (FileType::Symlink, target.len() as u64, 1, quoted(&target))
        } else if meta.is_file() {
            let nlink = u32::try_from(meta.nlink()).unwrap();
            (FileType::File, meta.len(), nlink, sha256(&fs::read(&place).unwrap()))
        } else {
            (FileType::Special, 0, 1, String::new())
        };
        let same_as = first.entry((meta.dev(), meta.ino())).or_insert_with(|| path.clone()).clone();
        let mode = meta.mode() & 0o7777;
        let (uid, gid) = (meta.uid(), meta.gid());
        found.insert(path, Facts { kind, mode, uid, gid, size, nlink, contents, same_as });
    }
    found
}

fn collect(root: &Path, path: Vec<u8>, paths: &mut BTreeSet<Vec<u8>>) {
    let place = under(root, &path[1..]);
    if fs::symlink_metadata(&place).unwrap().is_dir() {
        for entry in fs::read_dir(&place).unwrap() {
            let mut child = path.clone();
            if child != b"/" {
                child.push(b'/');
            }
            child.extend_from_slice(entry.unwrap().file_name().as_bytes());
            collect(root, child, paths);
        }
    }
    paths.insert(path);
}

/// What the image holds, by absolute path. The packer's own `/.daxfs` is left out, and the root's size and
/// link count are what they are without it.
pub fn in_image(image: &Image) -> BTreeMap<Vec<u8>, Facts> {
    let mut found = BTreeMap::new();
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut entries: Vec<_> = image.walk().collect();
    entries.sort_by_key(daxfs::Entry::path);
    let indexed = entries.iter().any(|entry| entry.path() == b"/.daxfs");
    for entry in entries {
        let path = entry.path();
        if path == b"/.daxfs" || path.starts_with(b"/.daxfs/") {
            continue;
        }
        let meta = entry.metadata();
        let own = u32::from(indexed && path == b"/");
        let contents = match entry.file_type() {
            FileType::File => sha256(&entry.file().unwrap().to_vec().unwrap()),
            FileType::Symlink => quoted(entry.read_link().unwrap()),
            _ => String::new(),
        };
        let same_as = first.entry(meta.ino).or_insert_with(|| path.clone()).clone();
        let facts = Facts {
            kind: entry.file_type(),
            mode: meta.mode & 0o7777,
            uid: meta.uid,
            gid: meta.gid,
            size: meta.size - 271 * u64::from(own),
            nlink: meta.nlink - own,
            contents,
            same_as,
        };
        found.insert(path, facts);
    }
    found
}

/// Fails with the first difference, if there is one.
///
/// # Panics
/// When the two differ.
pub fn assert_same(image: &BTreeMap<Vec<u8>, Facts>, tree: &BTreeMap<Vec<u8>, Facts>) {
    for path in image.keys().chain(tree.keys()) {
        let shown = quoted(path);
        assert_eq!(image.get(path), tree.get(path), "{shown}: image left, tree right");
    }
}

/// What the golden set's list of the source tree says, in the same form. Its links of files are counts, so
/// `same_as` is not filled in.
pub fn from_manifest(entries: &[Expected]) -> BTreeMap<Vec<u8>, Facts> {
    let facts = entries.iter().map(|entry| {
        let (kind, contents) = match entry.kind.as_str() {
            "file" => (FileType::File, entry.sha256.clone().unwrap()),
            "symlink" => (FileType::Symlink, quoted(entry.target.as_ref().unwrap().as_bytes())),
            "dir" => (FileType::Directory, String::new()),
            _ => (FileType::Special, String::new()),
        };
        let mode = u32::from_str_radix(&entry.mode, 8).unwrap();
        let (uid, gid, size, nlink) = (entry.uid, entry.gid, entry.size, entry.nlink);
        (entry.path_bytes(), Facts { kind, mode, uid, gid, size, nlink, contents, same_as: Vec::new() })
    });
    facts.collect()
}

fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}
