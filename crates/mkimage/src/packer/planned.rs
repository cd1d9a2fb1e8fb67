//! The plan: a layout that is complete, and what it says of itself before anything is written.

use super::Settings;
use crate::align::Rewrite;
use crate::erofs::View;
use crate::plan::Layout;
use crate::tensors::TensorSet;
use crate::tree::{Kind, Tree};
use std::collections::HashMap;

/// What of a backing file the kernel reads, with pages of 4 KiB.
const KERNEL_BACKING: u64 = 4 << 30;

/// A complete layout, ready to be written any number of times.
///
/// It holds the names and attributes of the source (about 200 bytes a file) and none of the contents: files are
/// read when the image is written, and a file that has changed until then is an error.
#[derive(Debug)]
pub struct Plan {
    pub(crate) tree: Tree,
    pub(crate) tensors: TensorSet,
    pub(crate) layout: Layout,
    /// Inodes whose contents another inode has, too.
    pub(crate) shares: HashMap<u32, u32>,
    /// The EROFS view, if the image gets one.
    pub(crate) view: Option<View>,
    /// Why it gets none, where it would have got one by default.
    pub(crate) no_view: Option<String>,
    pub(crate) settings: Settings,
}

impl Plan {
    /// Bytes of the image.
    #[must_use]
    pub fn total_size(&self) -> u64 {
        self.layout.total
    }

    /// Regular files in the source, hard links to one counted once.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.layout.numbers.files(&self.tree).count() as u64
    }

    /// Directories in the source, with the root.
    #[must_use]
    pub fn directories(&self) -> u64 {
        self.count(|kind| matches!(kind, Kind::Directory { .. }))
    }

    /// Symbolic links in the source, hard links to one counted once.
    #[must_use]
    pub fn symlinks(&self) -> u64 {
        self.layout.symlinks.len() as u64
    }

    /// Symbolic links of the source in whose place the image has what they lead to.
    #[must_use]
    pub fn followed_links(&self) -> u64 {
        self.tree.followed
    }

    /// Tensors that the index will list.
    #[must_use]
    pub fn tensors(&self) -> u64 {
        self.tensors.files.values().map(|file| file.tensors.len() as u64).sum()
    }

    /// Files whose tensors are moved: how many, and their bytes in the image. Files whose contents are stored with those
    /// of another file do not count.
    #[must_use]
    pub fn moved(&self) -> (u64, u64) {
        let stored = self.tensors.files.iter().filter(|(ino, _)| !self.shares.contains_key(ino));
        let moved = stored.filter_map(|(_, file)| file.rewrite.as_ref());
        moved.fold((0, 0), |(files, bytes), rewrite| (files + 1, bytes + rewrite.len))
    }

    /// Bytes that are neither metadata nor contents: padding and gaps of alignment.
    #[must_use]
    pub fn waste(&self) -> u64 {
        self.layout.waste()
    }

    /// What a user should know before or after writing.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let dropped = self.tree.dropped.as_ref();
        let dropped = dropped.map(|path| format!("{}: left out, the packer makes its own", path.display()));
        // The kernel counts the pages of a backing file in 20 bits, and shows others' bytes beyond.
        let beyond = self.layout.backing.as_ref().filter(|range| range.end - range.start > KERNEL_BACKING);
        let beyond = beyond.map(|_| {
            "the backing file is larger than 4 GiB: it can be read, but the kernel cannot mount it".to_owned()
        });
        let tree = &self.tree;
        let more = tree.dangling - tree.dangling_names.len() as u64;
        let more =
            (more > 0).then(|| format!("{more} more symbolic links lead to nothing that can be packed"));
        let empty = self.files() == 0 && !tree.left_out.is_empty();
        let empty = empty.then(|| "no file is left: all were left out".to_owned());
        let archive = tree.archive.iter().flat_map(|archive| archive.warnings.iter().cloned());
        let warnings =
            dropped.into_iter().chain(tree.dangling_names.iter().cloned()).chain(more).chain(empty);
        warnings.chain(archive).chain(self.tensors.warnings.iter().cloned()).chain(beyond).collect()
    }

    pub(crate) fn rewrite(&self, ino: u32) -> Option<&Rewrite> {
        self.tensors.rewrite(ino)
    }

    fn count(&self, wanted: impl Fn(&Kind) -> bool) -> u64 {
        self.tree.iter().filter(|(_, node)| wanted(&node.kind)).count() as u64
    }
}

impl TensorSet {
    /// How a file is made anew, when it is.
    pub(crate) fn rewrite(&self, ino: u32) -> Option<&Rewrite> {
        self.files.get(&ino)?.rewrite.as_ref()
    }
}
