//! Opens a finished image with the strict reader and compares it with its source, byte for byte, in place.

use crate::align::Content;
use crate::packer::Plan;
use crate::parallel;
use crate::source::{Opener, SourceFile};
use crate::tree::Kind;
use crate::{Error, Result};
use daxfs::{ContentHash, File, FileType, Image, OpenOptions, Region, SharedBytes};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Bytes that are compared at a time.
const STEP: usize = 256 << 10;

/// Compares the image in `region` with the source of `plan`, and its content hash with what the writer computed.
///
/// # Errors
///
/// [`Error::Reader`] when the strict reader refuses the image, [`Error::Mismatch`] with the first difference.
pub(crate) fn verify(
    plan: &Plan,
    region: Region,
    backing: Option<Region>,
    content_hash: Option<ContentHash>,
) -> Result<()> {
    let access = region.cpu_access()?;
    // The kernel's rules, which this machine's kernel would not get as far as for another page size.
    // The kernel's own validation takes no split image whose contents are longer than its metadata.
    let strict = dmabuf::page_size() == u64::from(plan.layout.shape.block_size) && backing.is_none();
    let mut options = OpenOptions::new().strict(strict);
    if let Some(backing) = backing {
        options = options.backing(backing);
    }
    let image = options.open_region(region.clone())?;
    let names = plan.tree.nodes.len();
    let own = usize::try_from(plan.layout.shape.own_inodes()).unwrap_or(usize::MAX);
    if image.len() != names + own {
        return Err(mismatch(b"/", format!("{} names, the source has {}", image.len(), names + own)));
    }
    let threads = plan.settings.threads;
    let state = || (Opener::new(&plan.tree), vec![0; STEP], vec![0; STEP]);
    parallel::map(names, threads, state, |(opener, left, right), number| {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        check_name(plan, &image, number)?;
        if matches!(plan.tree.node(number).kind, Kind::File) {
            let file = image.file(plan.tree.image_path(number))?;
            check_contents(plan, &file, opener.file(number)?, left, right)?;
        }
        Ok(())
    })?;
    check_index(plan, &image, plan.layout.shape.index.is_some(), content_hash)?;
    if plan.layout.shape.config.is_some() && image.oci_config()?.as_deref() != plan.tree.config() {
        return Err(mismatch(
            daxfs::format::index::CONFIG_PATH.as_bytes(),
            "it is not that of the source".to_owned(),
        ));
    }
    if image.check_erofs()? != plan.view.is_some() {
        return Err(mismatch(
            daxfs::format::erofs::PATH.as_bytes(),
            "the reader does not find it".to_owned(),
        ));
    }
    drop(access);
    Ok(())
}

/// Attributes of one name, and the target of a link.
fn check_name(plan: &Plan, image: &Image, number: u32) -> Result<()> {
    let path = plan.tree.image_path(number);
    let entry = image.entry_no_follow(&path)?;
    let node = plan.tree.node(number);
    let ino = plan.layout.numbers.ino[number as usize];
    let root_extra = u32::from(number == 0 && plan.layout.index_directory().is_some());
    let links = plan.layout.numbers.links[(ino - 1) as usize] + root_extra;
    let wanted =
        (u64::from(ino), node.mode, node.uid, node.gid, plan.layout.size_field(&plan.tree, ino), links);
    let metadata = entry.metadata();
    let found = (metadata.ino, metadata.mode, metadata.uid, metadata.gid, metadata.size, metadata.nlink);
    if found != wanted {
        let what = format!("inode, mode, owner, group, size, links are {found:?}, must be {wanted:?}");
        return Err(mismatch(&path, what));
    }
    match node.kind {
        Kind::Symlink { target } if entry.read_link()? != plan.tree.bytes(target) => {
            Err(mismatch(&path, "points elsewhere".to_owned()))
        }
        Kind::Directory { .. } if entry.file_type() != FileType::Directory => {
            Err(mismatch(&path, "is no directory".to_owned()))
        }
        _ => Ok(()),
    }
}

fn check_contents(
    plan: &Plan,
    file: &File,
    source: SourceFile<'_>,
    left: &mut [u8],
    right: &mut [u8],
) -> Result<()> {
    let ino = plan.layout.numbers.ino[source.number as usize];
    let path = plan.tree.image_path(source.number);
    let bytes = file.bytes()?;
    let mut check = |offset: u64, len: u64, from: Option<u64>| {
        compare(&path, bytes, offset, len, from.map(|from| (&source, from)), left, right)
    };
    match plan.rewrite(ino) {
        None => check(0, source.size(), Some(0))?,
        Some(rewrite) => {
            for segment in &rewrite.segments {
                match &segment.content {
                    Content::Source(from) => check(segment.offset, segment.len, Some(*from))?,
                    Content::Zeros => check(segment.offset, segment.len, None)?,
                    Content::Header(header)
                        if bytes.get(segment.offset, segment.len)?.to_vec() != *header =>
                    {
                        return Err(mismatch(&path, "its new header differs".to_owned()));
                    }
                    Content::Header(_) => {}
                }
            }
        }
    }
    source.check_end()?;
    source.check()
}

/// Compares a range of the file in the image with a range of the source, or with zeros.
fn compare(
    path: &[u8],
    bytes: SharedBytes<'_>,
    offset: u64,
    len: u64,
    source: Option<(&SourceFile<'_>, u64)>,
    left: &mut [u8],
    right: &mut [u8],
) -> Result<()> {
    let mut done = 0;
    while done < len {
        let count = usize::try_from(len - done).unwrap_or(STEP).min(STEP);
        let (left, right) = (&mut left[..count], &mut right[..count]);
        bytes.read_at(offset + done, left)?;
        match source {
            Some((source, from)) => source.read_exact_at(right, from + done)?,
            None => right.fill(0),
        }
        if left != right {
            let at = left.iter().zip(right.iter()).position(|(left, right)| left != right).unwrap_or(0);
            return Err(mismatch(path, format!("byte {} differs", offset + done + at as u64)));
        }
        done += count as u64;
    }
    Ok(())
}

/// The index must be what the reader finds in the headers.
fn check_index(plan: &Plan, image: &Image, wanted: bool, content_hash: Option<ContentHash>) -> Result<()> {
    let own = daxfs::format::index::PATH.as_bytes();
    let index = image.index()?;
    if index.is_some() != wanted {
        return Err(mismatch(own, "the reader does not take it".to_owned()));
    }
    if let Some(index) = index {
        let file = |ino| image.file(plan.tree.image_path(plan.layout.numbers.node_of(ino)));
        for &ino in plan.tensors.files.keys() {
            index.verify_file(&file(ino)?)?;
        }
        for checkpoint in &plan.tensors.checkpoints {
            index.verify_checkpoint(&file(checkpoint.ino)?)?;
        }
    }
    let found = image.content_hash();
    if found != content_hash {
        return Err(mismatch(own, format!("content hash {found:?}, must be {content_hash:?}")));
    }
    Ok(())
}

fn mismatch(path: &[u8], what: String) -> Error {
    Error::Mismatch { path: PathBuf::from(OsStr::from_bytes(path)), what }
}
