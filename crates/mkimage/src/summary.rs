//! What was written, for people and for programs.

use crate::Lost;
use crate::archive::CAPABILITY;
use crate::packer::Plan;
use crate::plan::Format;
use daxfs::ContentHash;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Names that were left out and are shown to people.
const NAMED: usize = 8;

/// How an image in memory is backed, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// Bytes of the smallest page.
    pub page_size: u64,
    /// Bytes of the image that are mapped by pages of 2 MiB or more.
    pub huge_bytes: u64,
}

/// The result of writing an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// What it was written to.
    pub target: String,
    /// Version of the format.
    pub format: u32,
    /// Page size of the machines that mount it.
    pub block_size: u32,
    /// Bytes of the image.
    pub image_bytes: u64,
    /// Bytes of file contents in it.
    pub data_bytes: u64,
    /// Bytes of the backing file that holds the contents; `null` when they are in the image.
    pub backing_bytes: Option<u64>,
    /// Bytes of room for what kernels write; `null` for an image that cannot be written to.
    pub overlay_bytes: Option<u64>,
    /// Bytes of the EROFS view, by which every stock Linux mounts the image; `null` for an image without one.
    pub erofs_bytes: Option<u64>,
    /// Why the image has no EROFS view; `null` where it has one, or was not to have one.
    pub no_erofs: Option<String>,
    /// Bytes of padding in it.
    pub waste_bytes: u64,
    /// Bytes that were not stored again because another file has the same contents.
    pub deduplicated_bytes: u64,
    /// Bytes that the file system shares with the source instead of holding a copy.
    pub cloned_bytes: u64,
    /// Files whose tensors were moved.
    pub moved_files: u64,
    /// Bytes of them in the image.
    pub moved_bytes: u64,
    /// Bytes of them that the file system would share with the source if no tensor were moved.
    pub unclonable_bytes: u64,
    /// Regular files.
    pub files: u64,
    /// Directories, with the root.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Symbolic links of the source in whose place the image has what they lead to.
    pub followed_links: u64,
    /// Further names of files and links.
    pub hard_links: u64,
    /// Tensors in the index.
    pub tensors: u64,
    /// Special files that were left out.
    pub skipped: Vec<String>,
    /// What was fetched to be packed: of a repository at the commit of that moment; `null` for what lay here.
    pub fetched: Option<String>,
    /// What globs and the like left out, by its path in the image; directories end in a slash, and what lies in them is
    /// not listed.
    pub left_out: Vec<String>,
    /// Files of a container image or archive that lose extended attributes, for which the format has no room.
    pub lost: Vec<Lost>,
    /// Permissions of the file, in octal; `null` for memory.
    pub mode: Option<String>,
    /// Whether they are narrower than the umask says because those of the sources are.
    #[serde(skip)]
    pub(crate) is_private: bool,
    /// How the memory is backed; `null` for files on a disk and for devices.
    pub pages: Option<Pages>,
    /// Bytes of the memory by NUMA node, judged by one page of each 2 MiB; empty for files on a disk, for devices, and
    /// where the kernel does not say.
    pub nodes: BTreeMap<u32, u64>,
    /// Number of the image in its region; `null` when it replaced none.
    pub generation: Option<u64>,
    /// Whether the image that it replaced is still whole beside it.
    pub keeps_previous: bool,
    /// Time of the writing, without the planning.
    pub seconds: f64,
    /// Bytes of the image per second, in 10^9.
    pub gigabytes_per_second: f64,
    /// BLAKE3 over names and contents, in hexadecimal; `null` where it was not computed.
    #[serde(serialize_with = "digits")]
    pub content_hash: Option<ContentHash>,
    /// Digest of fs-verity, as `fsverity measure` writes it; `null` where it was not turned on.
    pub fsverity: Option<String>,
    /// File or OCI image layout with the signature of the contents; `null` where they were not signed.
    pub signature: Option<String>,
    /// Whether the image was compared with its source afterwards.
    pub verified: bool,
    /// What a user should know.
    pub warnings: Vec<String>,
}

impl Summary {
    /// What the plan says; the writer adds the rest.
    pub(crate) fn of(plan: &Plan, target: String) -> Summary {
        let layout = &plan.layout;
        let names = plan.tree.nodes.len() as u64;
        Summary {
            target,
            format: match layout.shape.format {
                Format::V8 => daxfs::format::v8::VERSION,
                Format::V5 => daxfs::format::v5::VERSION,
            },
            block_size: layout.shape.block_size,
            image_bytes: layout.total,
            data_bytes: layout.files.iter().map(|&ino| layout.extent(ino).len).sum(),
            backing_bytes: layout.backing.as_ref().map(|range| range.end - range.start),
            overlay_bytes: layout.overlay.map(|overlay| overlay.room()),
            erofs_bytes: layout.shape.erofs,
            no_erofs: plan.no_view.clone(),
            waste_bytes: plan.waste(),
            deduplicated_bytes: layout.shared,
            cloned_bytes: 0,
            moved_files: plan.moved().0,
            moved_bytes: plan.moved().1,
            unclonable_bytes: 0,
            files: plan.files(),
            directories: plan.directories(),
            symlinks: plan.symlinks(),
            followed_links: plan.followed_links(),
            hard_links: names - u64::from(layout.numbers.count()),
            tensors: if layout.shape.index.is_some() { plan.tensors() } else { 0 },
            skipped: plan.tree.skipped.iter().map(|path| path.display().to_string()).collect(),
            fetched: plan.tree.fetched.as_ref().map(|fetched| fetched.address.to_string()),
            left_out: plan.tree.left_out.iter().map(|path| path.display().to_string()).collect(),
            lost: lost(plan),
            mode: None,
            is_private: false,
            pages: None,
            nodes: BTreeMap::new(),
            generation: None,
            keeps_previous: false,
            seconds: 0.0,
            gigabytes_per_second: 0.0,
            content_hash: None,
            fsverity: None,
            signature: None,
            verified: false,
            warnings: plan.warnings(),
        }
    }

    pub(crate) fn took(&mut self, seconds: f64) {
        self.seconds = seconds;
        #[allow(clippy::cast_precision_loss, reason = "a rate for people; 2^53 bytes are beyond any image")]
        let bytes = self.image_bytes as f64;
        self.gigabytes_per_second = bytes / seconds.max(1e-9) / 1e9;
    }
}

/// What is lost of an archive, less what an EROFS view keeps.
fn lost(plan: &Plan) -> Vec<Lost> {
    let archive = plan.tree.archive.as_ref();
    let mut lost = archive.map_or_else(Vec::new, |archive| archive.lost.clone());
    if plan.view.is_some() {
        lost.iter_mut().for_each(|lost| lost.attributes.retain(|name| name != CAPABILITY));
        lost.retain(|lost| !lost.attributes.is_empty());
    }
    lost
}

/// One paragraph for a terminal; warnings and skipped files are not in it.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} ({} bytes), format {}: {} files, {} directories, {} symbolic links",
            self.target,
            Size(self.image_bytes),
            self.image_bytes,
            self.format,
            self.files,
            self.directories,
            self.symlinks,
        )?;
        if self.followed_links > 0 {
            write!(f, ", {} links followed", self.followed_links)?;
        }
        if self.hard_links > 0 {
            write!(f, ", {} hard links", self.hard_links)?;
        }
        if self.tensors > 0 {
            write!(f, ", {} tensors", self.tensors)?;
        }
        write!(f, "\nwritten in {:.3} s ({:.2} GB/s)", self.seconds, self.gigabytes_per_second)?;
        write!(f, ", {} of padding", Size(self.waste_bytes))?;
        if let Some(bytes) = self.backing_bytes {
            write!(f, ", contents in a backing file of {}", Size(bytes))?;
        }
        if let Some(bytes) = self.overlay_bytes {
            write!(f, ", room for {} of changes", Size(bytes))?;
        }
        if let Some(bytes) = self.erofs_bytes {
            write!(f, ", an EROFS view of {}", Size(bytes))?;
        }
        if self.deduplicated_bytes > 0 {
            write!(f, ", {} stored once less", Size(self.deduplicated_bytes))?;
        }
        if self.cloned_bytes > 0 {
            write!(f, ", {} cloned", Size(self.cloned_bytes))?;
        }
        if self.moved_files > 0 {
            let files = if self.moved_files == 1 { "file" } else { "files" };
            write!(f, ", tensors moved in {} {files} of {}", self.moved_files, Size(self.moved_bytes))?;
        }
        if self.unclonable_bytes > 0 {
            write!(f, ", which --exact would clone")?;
        }
        if let Some(pages) = self.pages {
            write!(f, ", {} in pages of 2 MiB or more", Size(pages.huge_bytes))?;
            if pages.page_size >= 2 << 20 {
                write!(f, " (hugetlb pages of {})", Size(pages.page_size))?;
            }
        }
        // A machine with one node has no choice, which is not worth a word.
        if self.nodes.len() > 1 || self.nodes.keys().any(|&node| node > 0) {
            let nodes = self.nodes.iter().map(|(node, bytes)| format!("{} on node {node}", Size(*bytes)));
            write!(f, ", {}", nodes.collect::<Vec<_>>().join(", "))?;
        }
        if let Some(generation) = self.generation {
            let old = if self.keeps_previous { "the one before stays whole beside it" } else { "in place" };
            write!(f, ", generation {generation} ({old})")?;
        }
        if self.verified {
            write!(f, ", verified")?;
        }
        if let Some(address) = &self.fetched {
            write!(f, "\nfetched from {address}")?;
        }
        if let Some(why) = &self.no_erofs {
            write!(f, "\nno EROFS view: {why}")?;
        }
        if !self.left_out.is_empty() {
            let named = self.left_out[..self.left_out.len().min(NAMED)].join(", ");
            write!(f, "\nleft out: {named}")?;
            if self.left_out.len() > NAMED {
                write!(f, " and {} more", self.left_out.len() - NAMED)?;
            }
        }
        if !self.lost.is_empty() {
            let name = |lost: &Lost| format!("{} ({})", lost.path, lost.attributes.join(", "));
            let named: Vec<String> = self.lost.iter().take(NAMED).map(name).collect();
            write!(f, "\nwithout their extended attributes: {}", named.join(", "))?;
            if self.lost.len() > NAMED {
                write!(f, " and {} more (--json lists them)", self.lost.len() - NAMED)?;
            }
        }
        if let Some(mode) = self.mode.as_ref().filter(|_| self.is_private) {
            let why = "not all sources, and directories around them, are open to everybody";
            write!(f, "\nmode {mode}: {why} (--mode says otherwise)")?;
        }
        if let Some(hash) = &self.content_hash {
            write!(f, "\ncontent {}", hash.digits())?;
        }
        if let Some(digest) = &self.fsverity {
            write!(f, "\nfsverity {digest}")?;
        }
        if let Some(path) = &self.signature {
            write!(f, "\nsigned in {path}")?;
        }
        Ok(())
    }
}

/// A number of bytes for people.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        #[allow(clippy::cast_precision_loss, reason = "one digit behind the point is shown")]
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", UNITS[unit])
    }
}

/// Of a hash, its digits alone.
fn digits<S: serde::Serializer>(hash: &Option<ContentHash>, to: S) -> Result<S::Ok, S::Error> {
    match hash {
        Some(hash) => to.collect_str(&hash.digits()),
        None => to.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        let shown = [0, 1023, 1024, 1536, 5 << 20, 4 << 30, u64::MAX].map(|size| Size(size).to_string());
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "4.0 GiB", "16384.0 PiB"]);
    }
}
