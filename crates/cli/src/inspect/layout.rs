//! What lies where in an image: every byte belongs to exactly one piece.

use crate::place::{alignment_of, metadata_extent};
use crate::text::escape;
use daxfs::tensor::ContainerKind;
use daxfs::{Dtype, Entry, File, FileType, Image, Tensors, ViewKind, format};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// What a piece of the image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Block 0.
    Superblock,
    /// Header of a version 5 base image.
    BaseHeader,
    /// Inodes.
    InodeTable,
    /// Arrays of directory entries.
    Directories,
    /// Targets of symbolic links.
    Symlinks,
    /// `/.daxfs/index`.
    Index,
    /// `/.daxfs/erofs`.
    Erofs,
    /// Contents of files.
    Files,
    /// Overlay region.
    Overlay,
    /// Branch table of version 5.
    BranchTable,
    /// Logs of version 5.
    DeltaRegion,
    /// Page cache region.
    PageCache,
    /// The rest of a base image under an overlay or a log: directories, links, and files that were changed or deleted.
    BaseRest,
    /// Nothing: space between pieces.
    Padding,
    /// Memory behind the image.
    Behind,
}

impl Kind {
    /// The name in tables, legends and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::BaseHeader => "base header",
            Self::InodeTable => "inode table",
            Self::Directories => "directories",
            Self::Symlinks => "symlinks",
            Self::Index => "index",
            Self::Erofs => "EROFS view",
            Self::Files => "files",
            Self::Overlay => "overlay",
            Self::BranchTable => "branch table",
            Self::DeltaRegion => "delta region",
            Self::PageCache => "page cache",
            Self::BaseRest => "other base data",
            Self::Padding => "padding",
            Self::Behind => "behind the image",
        }
    }
}

/// Part of the memory; pieces are sorted and do not overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Absolute bytes.
    pub range: Range<u64>,
    /// What it is.
    pub kind: Kind,
    /// Number of the file in [`Layout::files`], for contents.
    pub file: Option<usize>,
}

/// One regular file, once per inode.
#[derive(Debug)]
pub struct FileMap {
    /// First path, as bytes.
    pub path: Vec<u8>,
    /// The entry.
    pub entry: Entry,
    /// Absolute bytes in the image or, for split images, in the backing file; `None` without contents or in pieces.
    pub extent: Option<Range<u64>>,
    /// True when the extent is in the image itself.
    pub in_image: bool,
    /// Tensors of a file that has some by its name, or why they cannot be read.
    pub tensors: Option<Result<Vec<TensorMap>, String>>,
}

/// One tensor.
#[derive(Debug)]
pub struct TensorMap {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Bytes.
    pub nbytes: u64,
    /// First byte in the file.
    pub in_file: u64,
    /// First byte in the memory that holds the file; `None` for a file in pieces.
    pub offset: Option<u64>,
    /// Largest power of two, up to 2 MiB, that divides that offset.
    pub alignment: u64,
}

/// One sharded checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// Path of its JSON file.
    pub path: Vec<u8>,
    /// Numbers of tensors and of shards, or what is wrong.
    pub contents: Result<(usize, usize), String>,
}

/// The whole memory.
#[derive(Debug)]
pub struct Layout {
    /// Bytes of the image.
    pub image_size: u64,
    /// Pieces of the memory in order, without gaps.
    pub pieces: Vec<Piece>,
    /// Regular files in the order of the tree.
    pub files: Vec<FileMap>,
    /// Sharded checkpoints.
    pub checkpoints: Vec<Checkpoint>,
}

/// Bytes and number of the pieces of one kind, and where the first begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Bytes.
    pub bytes: u64,
    /// How many pieces.
    pub pieces: usize,
    /// First byte of the first.
    pub first: u64,
}

impl Layout {
    /// Looks at every entry of the image; parses the headers of the files with tensors, and the checkpoints, whose
    /// paths are wanted. Files with tensors are those whose names say so, and those `named` that begin as such.
    ///
    /// # Errors
    /// When the lists that are made exceed the image's budget.
    pub fn of(image: &Image, wanted: impl Fn(&[u8]) -> bool, named: &[&[u8]]) -> daxfs::Result<Self> {
        let superblock = image.superblock();
        let mut claims = Vec::new();
        let mut claim = |range: Option<Range<u64>>, kind| {
            if let Some(range) = range {
                claims.push(Piece { range, kind, file: None });
            }
        };
        claim(Some(0..format::SUPERBLOCK_SIZE as u64), Kind::Superblock);
        if superblock.version == format::v5::VERSION {
            claim(
                superblock
                    .base
                    .as_ref()
                    .map(|b| b.start..b.start.saturating_add(format::v5::BASE_HEADER_SIZE)),
                Kind::BaseHeader,
            );
        }
        claim(Some(superblock.inode_table.clone()), Kind::InodeTable);
        claim(superblock.overlay.clone(), Kind::Overlay);
        claim(superblock.page_cache.clone(), Kind::PageCache);
        claim(superblock.branch_table.clone(), Kind::BranchTable);
        claim(superblock.delta_region.clone(), Kind::DeltaRegion);

        let mut containers = named_containers(image);
        containers.extend(named.iter().filter_map(|path| container_at(image, path)));
        let mut files: Vec<FileMap> = Vec::new();
        let mut checkpoints = Vec::new();
        let mut seen = HashSet::new();
        for entry in image.walk() {
            if daxfs::tensor::is_checkpoint(entry.name()) {
                let path = entry.path();
                if wanted(&path) && image.file(&path).is_ok() {
                    checkpoints.push(Checkpoint::of(image, path));
                }
            }
            match entry.file_type() {
                FileType::Directory => claim(metadata_extent(image, &entry), Kind::Directories),
                FileType::Symlink => claim(metadata_extent(image, &entry), Kind::Symlinks),
                FileType::File => {
                    let ino = entry.metadata().ino;
                    if seen.insert(ino) {
                        let file = FileMap::of(image, entry, containers.contains(&ino), &wanted);
                        // In a deep tree the paths of all files together are far longer than the image.
                        image.charge("paths of files", file.path.len() as u64)?;
                        files.push(file);
                    }
                }
                _ => (),
            }
        }
        for (number, file) in files.iter().enumerate() {
            let kind = match &file.path[..] {
                path if path == format::index::PATH.as_bytes() => Kind::Index,
                path if path == format::erofs::PATH.as_bytes() => Kind::Erofs,
                _ => Kind::Files,
            };
            if let Some(range) = file.extent.clone().filter(|_| file.in_image) {
                claims.push(Piece { range, kind, file: Some(number) });
            }
        }
        let base = superblock.base.clone().filter(|_| image.view_kind() != ViewKind::Base);
        let pieces = cover(claims, base, superblock.total_size, image.region().len());
        Ok(Self { image_size: superblock.total_size, pieces, files, checkpoints })
    }

    /// Sums by kind, in the order of [`Kind`].
    pub fn usage(&self) -> BTreeMap<Kind, Usage> {
        let mut usage = BTreeMap::new();
        for Piece { range, kind, .. } in &self.pieces {
            let sum = usage.entry(*kind).or_insert(Usage { bytes: 0, pieces: 0, first: range.start });
            sum.bytes = sum.bytes.saturating_add(range.end.saturating_sub(range.start));
            sum.pieces = sum.pieces.saturating_add(1);
        }
        usage
    }

    /// Bytes of all tensors, those that several share once.
    pub fn tensor_bytes(&self) -> u64 {
        let mut sum = 0u64;
        for file in &self.files {
            let tensors = file.tensors.iter().flatten().flatten();
            let mut ranges: Vec<_> =
                tensors.filter_map(|tensor| Some((tensor.offset?, tensor.nbytes))).collect();
            ranges.sort_unstable();
            let mut covered = 0;
            for (start, len) in ranges {
                let end = start.saturating_add(len);
                sum = sum.saturating_add(end.saturating_sub(start.max(covered)));
                covered = covered.max(end);
            }
        }
        sum
    }

    /// All tensors that could be listed.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorMap> {
        self.files.iter().filter_map(|file| file.tensors.as_ref()?.as_ref().ok()).flatten()
    }
}

impl Checkpoint {
    fn of(image: &Image, path: Vec<u8>) -> Self {
        let contents = image.tensors_at(&path).and_then(|tensors| {
            tensors.iter().try_for_each(|tensor| tensor.map(drop))?;
            Ok((tensors.len(), tensors.shards()?.len()))
        });
        Self { path, contents: contents.map_err(|error| error.to_string()) }
    }
}

/// Inodes of files that a name says hold tensors; in a Hugging Face cache that is the name of a link.
fn named_containers(image: &Image) -> HashSet<u64> {
    let named = image.walk().filter(|entry| ContainerKind::of_name(entry.name()).is_some());
    named.filter_map(|entry| image.file(entry.path()).ok()).map(|file| file.ino()).collect()
}

/// The inode of the file at a path, if it begins as one with tensors does.
fn container_at(image: &Image, path: &[u8]) -> Option<u64> {
    let file = image.file(path).ok()?;
    let mut head = [0; ContainerKind::HEAD];
    let len = file.read_at(0, &mut head).ok()?;
    ContainerKind::of_head(head.get(..len)?, file.len()).map(|_| file.ino())
}

impl FileMap {
    fn of(image: &Image, entry: Entry, named: bool, wanted: impl Fn(&[u8]) -> bool) -> Self {
        let path = entry.path();
        let is_tensors = named && wanted(&path);
        let file = entry.file();
        let mut map = Self { path, entry, extent: None, in_image: false, tensors: None };
        match file {
            Ok(file) => {
                map.extent = file
                    .extent()
                    .map(|e| e.offset..e.offset.saturating_add(e.len))
                    .filter(|range| !range.is_empty());
                map.in_image = file.region().view().as_ptr() == image.region().view().as_ptr();
                if is_tensors {
                    map.tensors = Some(tensors_of(&file).map_err(|error| error.to_string()));
                }
            }
            Err(error) if is_tensors => map.tensors = Some(Err(error.to_string())),
            Err(_) => (),
        }
        map
    }

    /// The path, escaped.
    pub fn label(&self) -> String {
        escape(&self.path)
    }
}

/// About what a tensor's row of the tables costs, without its name and shape.
const ROW: u64 = 512;

/// The tensors of a file in the order of their bytes.
fn tensors_of(file: &File) -> daxfs::Result<Vec<TensorMap>> {
    let base = file.extent().map(|extent| extent.offset);
    let tensors: Tensors = file.tensors()?;
    let mut list = tensors
        .iter()
        .map(|tensor| {
            let tensor = tensor?;
            let shown = tensor.name().len().saturating_add(size_of_val::<[u64]>(tensor.shape()));
            file.image().charge("tensors to show", (shown as u64).saturating_mul(2).saturating_add(ROW))?;
            let offset = base.map(|base| base.saturating_add(tensor.offset()));
            Ok(TensorMap {
                name: tensor.name().to_owned(),
                dtype: tensor.dtype(),
                shape: tensor.shape().to_vec(),
                nbytes: tensor.nbytes(),
                in_file: tensor.offset(),
                offset,
                // Of the place in the image, which is the same wherever this process has mapped it.
                alignment: offset.map_or(1, alignment_of),
            })
        })
        .collect::<daxfs::Result<Vec<_>>>()?;
    list.sort_by(|a, b| (a.in_file, a.nbytes, &a.name).cmp(&(b.in_file, b.nbytes, &b.name)));
    Ok(list)
}

/// Turns claims into pieces that cover `0..memory` without gap or overlap. Of two claims to the same bytes the one
/// that begins first has them: identical files that are stored once appear once. What nobody claims is padding, or
/// the rest of the base image when it lies in `base`.
fn cover(mut claims: Vec<Piece>, base: Option<Range<u64>>, image: u64, memory: u64) -> Vec<Piece> {
    claims.sort_by_key(|claim| (claim.range.start, std::cmp::Reverse(claim.range.end)));
    let mut pieces: Vec<Piece> = Vec::with_capacity(claims.len().saturating_mul(2).saturating_add(1));
    let mut at = 0;
    for claim in claims {
        let start = claim.range.start.max(at);
        let end = claim.range.end.min(memory);
        if start >= end {
            continue;
        }
        fill(&mut pieces, at..start, base.as_ref(), image);
        match pieces.last_mut() {
            // Packed symlinks, and directories that touch, are one piece.
            Some(last) if last.kind == claim.kind && last.range.end == start && claim.file.is_none() => {
                last.range.end = end;
            }
            _ => pieces.push(Piece { range: start..end, ..claim }),
        }
        at = end;
    }
    fill(&mut pieces, at..memory, base.as_ref(), image);
    pieces
}

/// Adds what nobody claimed of `gap`.
fn fill(pieces: &mut Vec<Piece>, gap: Range<u64>, base: Option<&Range<u64>>, image: u64) {
    let base = base.cloned().unwrap_or(0..0);
    let mut at = gap.start;
    for (until, kind) in [
        (base.start.min(image), Kind::Padding),
        (base.end.min(image), Kind::BaseRest),
        (image, Kind::Padding),
        (gap.end, Kind::Behind),
    ] {
        let end = until.min(gap.end);
        if at < end {
            pieces.push(Piece { range: at..end, kind, file: None });
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(range: Range<u64>, kind: Kind, file: Option<usize>) -> Piece {
        Piece { range, kind, file }
    }

    fn kinds(pieces: &[Piece]) -> Vec<(u64, u64, Kind)> {
        pieces.iter().map(|piece| (piece.range.start, piece.range.end, piece.kind)).collect()
    }

    #[test]
    fn every_byte_belongs_to_one_piece() {
        let claims = vec![
            claim(100..150, Kind::Files, Some(1)),
            claim(0..10, Kind::Superblock, None),
            claim(20..25, Kind::Symlinks, None),
            claim(25..30, Kind::Symlinks, None),
            // Stored once for two files, then one that overlaps.
            claim(100..150, Kind::Files, Some(0)),
            claim(140..160, Kind::Files, Some(2)),
            claim(190..999, Kind::Files, Some(3)),
        ];
        let pieces = cover(claims, None, 180, 200);
        assert_eq!(
            kinds(&pieces),
            [
                (0, 10, Kind::Superblock),
                (10, 20, Kind::Padding),
                (20, 30, Kind::Symlinks),
                (30, 100, Kind::Padding),
                (100, 150, Kind::Files),
                (150, 160, Kind::Files),
                (160, 180, Kind::Padding),
                (180, 190, Kind::Behind),
                (190, 200, Kind::Files),
            ]
        );
    }

    #[test]
    fn unclaimed_base_data_is_not_padding() {
        let claims = vec![claim(0..10, Kind::Superblock, None), claim(50..60, Kind::Overlay, None)];
        let pieces = cover(claims, Some(20..40), 70, 80);
        assert_eq!(
            kinds(&pieces),
            [
                (0, 10, Kind::Superblock),
                (10, 20, Kind::Padding),
                (20, 40, Kind::BaseRest),
                (40, 50, Kind::Padding),
                (50, 60, Kind::Overlay),
                (60, 70, Kind::Padding),
                (70, 80, Kind::Behind),
            ]
        );
    }

    #[test]
    fn an_empty_memory_has_no_pieces() {
        assert!(cover(vec![claim(0..10, Kind::Superblock, None)], None, 0, 0).is_empty());
    }
}
