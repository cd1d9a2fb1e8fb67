//! The tensor records of the index against the headers that they were made from, and checkpoints.

use super::{Findings, Kind};
use daxfs::{Entry, FileType, Image, Index};
use std::collections::HashSet;

/// Parses the header of every safetensors file and every checkpoint, and compares the index, where there is one.
pub fn check(image: &Image, index: Option<&Index>, findings: &mut Findings) {
    let mut seen = HashSet::new();
    for entry in image.walk() {
        let path = entry.path();
        // Through links: in a Hugging Face cache they have the names, and the files do not.
        if path.ends_with(b".safetensors.index.json") && image.file(&path).is_ok() {
            findings.facts.checkpoints += 1;
            if let Err(error) = checkpoint(image, index, &entry) {
                findings.judge(Kind::Checkpoint, &path, error);
            }
        }
        if let (Some(index), FileType::File) = (index, entry.file_type())
            && seen.insert(entry.metadata().ino)
            && let Err(error) = file_record(index, &entry, findings)
        {
            findings.judge(Kind::Tensors, &path, error);
        }
    }
}

/// The record of a file in the index: true to the header, and there when there is a header.
fn file_record(index: &Index, entry: &Entry, findings: &mut Findings) -> daxfs::Result<()> {
    let file = entry.file()?;
    let listed = match index.file(file.ino())? {
        Some(record) if record.has_tensors => {
            index.verify_file(&file)?;
            findings.facts.tensors += record.tensors.len() as u64;
            true
        }
        // A wrong or missing record is a matter of the index, not of its tensors.
        _ => false,
    };
    let named = entry.name().ends_with(b".safetensors");
    if named && !listed && file.tensors().is_ok_and(|tensors| !tensors.is_empty()) {
        findings.differ(Kind::Tensors, Some(&file.path()), "the index does not list its tensors");
    }
    Ok(())
}

/// A checkpoint: every shard and every tensor is there, and the index, if it knows the checkpoint, says the same.
fn checkpoint(image: &Image, index: Option<&Index>, entry: &Entry) -> daxfs::Result<()> {
    if let (Some(index), Ok(json)) = (index, entry.file())
        && index.checkpoint(json.ino())?.is_some()
    {
        return index.verify_checkpoint(&json);
    }
    let tensors = image.tensors_at(entry.path())?;
    tensors.iter().try_for_each(|tensor| tensor.map(drop))
}
