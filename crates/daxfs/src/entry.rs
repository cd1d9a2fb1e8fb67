//! Names in an image: metadata, children, links, and the walk over all of them.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::fmt;

use crate::error::{Error, Result};
use crate::format::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use crate::snapshot::{Content, PieceSource};
use crate::{File, Image};

/// Type of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileType {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// FIFO, socket or device node, as upstream's packers store them: listed, never opened, as any type that a later
    /// release tells from these.
    Special,
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "regular file",
            Self::Directory => "directory",
            Self::Symlink => "symbolic link",
            Self::Special => "special file",
        })
    }
}

/// What an inode says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metadata {
    /// Inode number; the root is 1.
    pub ino: u64,
    /// `st_mode`: type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// File: bytes. Link: bytes of the target. Directory: 271 for each entry of its base image.
    pub size: u64,
    /// Link count.
    pub nlink: u32,
}

impl Metadata {
    /// The type that the mode says.
    pub fn file_type(&self) -> FileType {
        match self.mode & S_IFMT {
            S_IFREG => FileType::File,
            S_IFDIR => FileType::Directory,
            S_IFLNK => FileType::Symlink,
            _ => FileType::Special,
        }
    }

    /// Permission bits with setuid, setgid and sticky.
    pub fn permissions(&self) -> u32 {
        self.mode & !S_IFMT
    }
}

/// One name in an image. Cloning is cheap.
#[derive(Clone)]
pub struct Entry {
    image: Image,
    node: u32,
}

impl Entry {
    pub(crate) fn new(image: Image, node: u32) -> Self {
        Self { image, node }
    }

    pub(crate) fn node(&self) -> u32 {
        self.node
    }

    /// Number of its inode in the list of the image's tree.
    pub(crate) fn inode_number(&self) -> u32 {
        self.image.tree().node(self.node).inode
    }

    /// The image that it belongs to.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The last component of its path, as stored (any bytes but `/` and NUL); empty for the root.
    pub fn name(&self) -> &[u8] {
        self.image.tree().name(self.node)
    }

    /// Absolute path in the image; `/` for the root.
    pub fn path(&self) -> Vec<u8> {
        let tree = self.image.tree();
        let mut names = Vec::new();
        let mut node = self.node;
        while node != 0 {
            names.push(tree.name(node));
            node = tree.node(node).parent;
        }
        let len = names.iter().fold(0_usize, |sum, name| sum.saturating_add(name.len()).saturating_add(1));
        let mut path = Vec::with_capacity(len.max(1));
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        path
    }

    /// Metadata of its inode.
    pub fn metadata(&self) -> &Metadata {
        &self.image.tree().inode(self.node).metadata
    }

    /// Type of its inode.
    pub fn file_type(&self) -> FileType {
        self.image.tree().node(self.node).file_type
    }

    /// The directory that holds it; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        (self.node != 0).then(|| Self::new(self.image.clone(), self.image.tree().node(self.node).parent))
    }

    /// Its entries in stored order, if it is a directory; none otherwise.
    pub fn children(&self) -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator + use<> {
        let (image, parent) = (self.image.clone(), self.node);
        // Numbers of the children: the tree borrows from the image, which the iterator has to hold.
        let nodes = image.tree().children(parent).to_vec();
        nodes.into_iter().map(move |node| Self::new(image.clone(), node))
    }

    /// The entry at this place of [`Entry::children`], which takes no list of all of them.
    pub fn nth_child(&self, index: usize) -> Option<Self> {
        let node = self.image.tree().children(self.node).get(index);
        node.map(|node| Self::new(self.image.clone(), *node))
    }

    /// The entry of that name, if it is a directory that has one. Links are not followed.
    pub fn child(&self, name: impl AsRef<[u8]>) -> Option<Self> {
        self.image.tree().child(self.node, name.as_ref()).map(|node| Self::new(self.image.clone(), node))
    }

    /// Calls `each` with everything below this directory and its path from here on, which begins with a slash, in
    /// bytewise order of the paths of files, as if each directory's name ended with a slash; links are not followed. The
    /// first error ends it.
    ///
    /// Paths are made one by one: in a tree that is made to be deep they are together far longer than the image.
    ///
    /// # Errors
    /// Those of `each`.
    pub fn each_below<E>(&self, mut each: impl FnMut(&[u8], &Self) -> Result<(), E>) -> Result<(), E> {
        let mut path = Vec::new();
        // Entries that are left of a directory, and the bytes of its path.
        let mut levels = vec![(self.in_order(), 0)];
        while let Some((entries, len)) = levels.last_mut() {
            path.truncate(*len);
            let Some(entry) = entries.next() else {
                levels.pop();
                continue;
            };
            path.push(b'/');
            path.extend_from_slice(entry.name());
            each(&path, &entry)?;
            if entry.file_type() == FileType::Directory {
                levels.push((entry.in_order(), path.len()));
            }
        }
        Ok(())
    }

    /// What is in this directory, in the order of its paths.
    fn in_order(&self) -> std::vec::IntoIter<Self> {
        let mut entries: Vec<_> = self.children().collect();
        entries.sort_by(|a, b| a.name().cmp(b.name()));
        // Only a name that begins with a directory's name can be out of order.
        let is_directory = |entry: &Self| entry.file_type() == FileType::Directory;
        if entries.iter().any(is_directory) {
            entries.sort_by_cached_key(|entry| {
                let slash: &[u8] = if is_directory(entry) { b"/" } else { b"" };
                [entry.name(), slash].concat()
            });
        }
        entries.into_iter()
    }

    /// Target of a symbolic link, as stored.
    ///
    /// # Errors
    /// [`Error::NotALink`].
    pub fn read_link(&self) -> Result<&[u8]> {
        self.image
            .tree()
            .target(self.node)
            .ok_or_else(|| Error::NotALink { path: self.path(), kind: self.file_type() })
    }

    /// What a symbolic link leads to, inside the image; any other entry itself.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotADirectory`] and [`Error::TooManyLinks`], with the link's target as the path.
    pub fn followed(&self) -> Result<Self> {
        self.image.follow(self)
    }

    /// Its contents as a file.
    ///
    /// # Errors
    /// [`Error::NotAFile`].
    pub fn file(&self) -> Result<File> {
        match self.file_type() {
            FileType::File => Ok(File::new(self.clone())),
            kind => Err(Error::NotAFile { path: self.path(), kind }),
        }
    }

    /// End of the last of its bytes in the backing file; 0 when none lie there.
    pub(crate) fn backing_end(&self) -> u64 {
        match self.content() {
            Content::Backing(range) => range.end,
            Content::Pieces(pieces) => {
                let ends = pieces.iter().map(|piece| match piece.source {
                    PieceSource::Backing(start) => start.saturating_add(piece.len),
                    _ => 0,
                });
                ends.max().unwrap_or(0)
            }
            _ => 0,
        }
    }

    pub(crate) fn content(&self) -> &Content {
        &self.image.tree().inode(self.node).content
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path();
        f.debug_struct("Entry")
            .field("path", &format_args!("{}", crate::text::Escaped(&path)))
            .field("metadata", self.metadata())
            .finish_non_exhaustive()
    }
}

/// Iterator over every entry of an image, depth first; see [`Image::walk`].
#[derive(Clone)]
pub struct Walk {
    image: Image,
    pending: Vec<u32>,
}

impl Walk {
    pub(crate) fn new(image: Image) -> Self {
        Self { image, pending: vec![0] }
    }
}

impl Iterator for Walk {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        let node = self.pending.pop()?;
        self.pending.extend(self.image.tree().children(node).iter().rev());
        Some(Entry::new(self.image.clone(), node))
    }
}

impl fmt::Debug for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walk").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::test_image::TestImage;

    #[test]
    fn names_come_in_the_order_of_their_paths() {
        let paths =
            ["/b/c", "/a/b/c", "/a-", "/a.b", "/a.b.c/d", "/a.b.c/d.e", "/a0", "/c/z/a", "/c/z-", "/c0/a/a"];
        let image =
            paths.iter().fold(TestImage::new(), |image, path| image.file(path, path.as_bytes().to_vec()));
        let image = image.link("/a/link", "b/c").open();
        let mut found = Vec::new();
        image
            .root()
            .each_below(|path, entry| {
                assert_eq!(path, entry.path());
                if entry.file_type() != FileType::Directory {
                    found.push(path.to_vec());
                }
                Ok::<_, Error>(())
            })
            .unwrap();
        let mut wanted: Vec<_> =
            image.walk().filter(|entry| entry.file_type() != FileType::Directory).map(|e| e.path()).collect();
        wanted.sort_unstable();
        assert_eq!((found.len(), &found), (11, &wanted));
    }

    #[test]
    fn children_are_found_by_their_place() {
        let image =
            ["/b", "/a/c", "/d"].iter().fold(TestImage::new(), |image, path| image.file(path, "x")).open();
        let names = |entry: Entry| entry.name().to_vec();
        let all: Vec<_> = image.root().children().map(names).collect();
        let found: Vec<_> = (0..).map_while(|place| image.root().nth_child(place)).map(names).collect();
        assert_eq!((found.len(), found), (3, all));
        assert!(image.entry("/b").unwrap().nth_child(0).is_none());
    }

    #[test]
    fn paths_below_a_directory_begin_there_and_an_error_ends_them() {
        let image = ["/a/b/c", "/a/d", "/e"]
            .iter()
            .fold(TestImage::new(), |image, path| image.file(path, "x"))
            .open();
        let mut found = Vec::new();
        let stopped = image.entry("/a").unwrap().each_below(|path, _| {
            found.push(String::from_utf8(path.to_vec()).unwrap());
            if path == b"/b/c" { Err("enough") } else { Ok(()) }
        });
        assert_eq!((stopped, found), (Err("enough"), vec!["/b".to_owned(), "/b/c".to_owned()]));
    }
}
