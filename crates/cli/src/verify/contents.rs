//! Files against the records of the index: sizes, paths, hashes, and the hash of all contents.

use super::{Findings, Kind, hash_text};
use crate::progress::Progress;
use daxfs::{ContentHasher, Entry, File, FileType, Image, Index};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Bytes that are hashed at a time.
const CHUNK: usize = 1 << 20;

/// Compares every regular file outside `/.daxfs` with its record.
///
/// # Errors
/// None of its own; what cannot be read is noted.
pub fn check(image: &Image, index: &Index, quiet: bool, findings: &mut Findings) -> anyhow::Result<()> {
    let names = names(image);
    // One entry per inode, by its first path.
    let mut inodes: BTreeMap<u64, &(Vec<u8>, Entry)> = BTreeMap::new();
    for name in names.iter().filter(|(_, entry)| entry.file_type() == FileType::File) {
        inodes.entry(name.1.metadata().ino).or_insert(name);
    }
    records(index, &inodes, findings);
    if !index.has_hashes() {
        return Ok(());
    }
    let total = inodes.values().map(|(_, entry)| entry.metadata().size).sum();
    let progress = Progress::new("hashing", total, quiet);
    let hashes: Vec<(u64, daxfs::Result<[u8; 32]>)> = inodes
        .par_iter()
        .map(|(ino, (_, entry))| (*ino, entry.file().and_then(|file| hash(&file, &progress))))
        .collect();
    drop(progress);

    let mut known: BTreeMap<u64, [u8; 32]> = BTreeMap::new();
    for (ino, hash) in hashes {
        let Some((path, entry)) = inodes.get(&ino) else { continue };
        let hash = match hash {
            Ok(hash) => hash,
            Err(error) => {
                findings.fail(error);
                continue;
            }
        };
        known.insert(ino, hash);
        findings.facts.hashed_files += 1;
        findings.facts.hashed_bytes += entry.metadata().size;
        match index.file_hash(ino) {
            Ok(Some(stored)) if stored != hash => {
                let text = format!("BLAKE3 is {}, the index has {}", hash_text(&hash), hash_text(&stored));
                findings.differ(Kind::Hash, Some(path), text);
            }
            // A record that is missing or wrong was noted above.
            Ok(_) | Err(_) => (),
        }
    }
    if let Some(computed) = content_hash(&names, &known) {
        findings.facts.content_hash = Some(hash_text(&computed));
        match index.content_hash() {
            Some(stored) if stored != computed => {
                let text =
                    format!("content hash is {}, the index has {}", hash_text(&computed), hash_text(&stored));
                findings.differ(Kind::Hash, None, text);
            }
            _ => (),
        }
    }
    Ok(())
}

/// Names of files and links outside `/.daxfs` in the order of their absolute paths, as the content hash wants it.
fn names(image: &Image) -> Vec<(Vec<u8>, Entry)> {
    let mut names: Vec<_> = image
        .walk()
        .filter(|entry| matches!(entry.file_type(), FileType::File | FileType::Symlink))
        .map(|entry| (entry.path(), entry))
        .filter(|(path, _)| ContentHasher::covers(path))
        .collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    names
}

/// Every file has a record, and every record a file: same path, same size.
fn records(index: &Index, inodes: &BTreeMap<u64, &(Vec<u8>, Entry)>, findings: &mut Findings) {
    for (ino, (path, entry)) in inodes {
        let size = entry.metadata().size;
        match index.file(*ino) {
            Ok(Some(record)) if record.size != size => {
                let text = format!("{size} bytes, the index has {}", record.size);
                findings.differ(Kind::Index, Some(path), text);
            }
            Ok(Some(_)) => (),
            Ok(None) => {
                findings.differ(Kind::Index, Some(path), format!("inode {ino} has no record in the index"))
            }
            Err(error) => findings.judge(Kind::Index, path, error),
        }
    }
    let mut last = None;
    for (number, record) in index.files().enumerate() {
        // Broken records of existing inodes were noted above; those of others can only be noted here.
        let Ok(record) = record else { continue };
        let path = match index.path(&record) {
            Ok(path) => path,
            Err(error) => {
                findings.differ(Kind::Index, None, error.to_string());
                continue;
            }
        };
        if last.is_some_and(|last| last >= record.ino) {
            let text = format!("file record {number}: inode {} is not in order", record.ino);
            findings.differ(Kind::Index, Some(&path), text);
        }
        last = Some(record.ino);
        match inodes.get(&record.ino) {
            None => {
                let text = format!("file record {number}: the image has no file with inode {}", record.ino);
                findings.differ(Kind::Index, Some(&path), text);
            }
            Some((first, _)) if *first != path => {
                let text = format!("the index calls this inode {}", crate::text::escape(&path));
                findings.differ(Kind::Index, Some(first), text);
            }
            Some(_) => (),
        }
    }
}

/// BLAKE3 of a file, on all cores when it is large.
fn hash(file: &File, progress: &Progress) -> daxfs::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; usize::try_from(file.len()).unwrap_or(CHUNK).min(CHUNK)];
    let mut offset = 0;
    while offset < file.len() {
        let len = file.read_at(offset, &mut buffer)?;
        let Some(bytes) = buffer.get(..len).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update_rayon(bytes);
        progress.add(len as u64);
        offset += len as u64;
    }
    Ok(hasher.finalize().into())
}

/// The hash of all contents; `None` when the hash of a file is not known.
fn content_hash(names: &[(Vec<u8>, Entry)], hashes: &BTreeMap<u64, [u8; 32]>) -> Option<[u8; 32]> {
    let mut hasher = ContentHasher::new();
    for (path, entry) in names {
        let metadata = entry.metadata();
        match entry.file_type() {
            FileType::Symlink => hasher.link(path, entry.read_link().ok()?),
            _ => hasher.file(path, metadata.size, hashes.get(&metadata.ino)?),
        }
    }
    Some(hasher.finish())
}
