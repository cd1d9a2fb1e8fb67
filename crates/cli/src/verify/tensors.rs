//! Every file that a name or the index promises to hold tensors, the records of the index against the headers that they
//! were made from, checkpoints, and numbered shards.

use super::{Findings, Kind};
use daxfs::tensor::{ContainerKind, is_checkpoint, listed_kind, shard_sets};
use daxfs::{Entry, File, FileType, Foreign, Image, Index};
use std::collections::HashSet;

/// Ends of other names that people give files with weights: these are not parsed, but a file that was never downloaded
/// is found.
const WEIGHTS: [&[u8]; 9] =
    [b".bin", b".pt", b".pth", b".ckpt", b".onnx", b".onnx_data", b".h5", b".msgpack", b".npz"];

/// Longest pointer that git-lfs writes.
const LONGEST_POINTER: u64 = 1024;

/// Parses the header of every file with tensors and every checkpoint, and compares the index, where there is one.
pub fn check(image: &Image, index: Option<&Index>, findings: &mut Findings) {
    let (mut recorded, mut parsed) = (HashSet::new(), HashSet::new());
    for entry in image.walk() {
        // Through links: in a Hugging Face cache they have the names, and the files do not.
        if is_checkpoint(entry.name()) && entry.followed().is_ok_and(|target| target.file().is_ok()) {
            findings.facts.checkpoints = findings.facts.checkpoints.saturating_add(1);
            if let Err(error) = checkpoint(image, index, &entry)
                && !(is_other_format(&entry) && is_leftover(&error))
            {
                findings.judge(Kind::Checkpoint, &entry.path(), error);
            }
        }
        if let (Some(index), FileType::File) = (index, entry.file_type())
            && recorded.insert(entry.metadata().ino)
            && let Err(error) = file_record(index, &entry, findings)
        {
            parsed.insert(entry.metadata().ino);
            findings.judge(Kind::Tensors, &entry.path(), error);
        }
        if let Ok(file) = entry.followed().and_then(|target| target.file())
            && let Some(error) = container(&entry, &file, &mut parsed)
        {
            match error {
                Fault::Reader(error) => findings.judge(Kind::Tensors, &entry.path(), error),
                Fault::Kind(text) => findings.differ(Kind::Tensors, Some(&entry.path()), text),
            }
        }
        if entry.file_type() == FileType::Directory {
            for (_, set) in shard_sets(&entry) {
                if let Err(error) = set.and_then(|set| set.iter().try_for_each(|tensor| tensor.map(drop))) {
                    findings.judge(Kind::Checkpoint, &entry.path(), error);
                }
            }
        }
    }
}

/// Whether a list of shards is one of a format that goes after safetensors.
fn is_other_format(entry: &Entry) -> bool {
    listed_kind(entry.name()).is_some_and(|kind| ContainerKind::all().next() != Some(kind))
}

/// A list of PyTorch's shards lies beside safetensors where only these were downloaded.
fn is_leftover(error: &daxfs::Error) -> bool {
    matches!(error, daxfs::Error::Tensor(error) if error.lists_nothing())
}

enum Fault {
    Reader(daxfs::Error),
    Kind(String),
}

/// What is wrong with a file whose name promises weights; each file is looked at once.
fn container(entry: &Entry, file: &File, parsed: &mut HashSet<u64>) -> Option<Fault> {
    let name = entry.name();
    if ContainerKind::of_name(name).is_some() {
        // What cannot be used in place may be sound all the same.
        let is_fault = |error: &daxfs::Error| !error.is_unsupported();
        return if parsed.insert(file.ino()) {
            file.tensors().err().filter(is_fault).map(Fault::Reader)
        } else {
            None
        };
    }
    if file.len() > LONGEST_POINTER || !WEIGHTS.iter().any(|end| name.ends_with(end)) {
        return None;
    }
    if !parsed.insert(file.ino()) {
        return None;
    }
    let mut head = [0; Foreign::HEAD];
    let kind = match file.read_at(0, &mut head) {
        Ok(len) => head.get(..len).and_then(Foreign::of),
        Err(error) => return Some(Fault::Reader(error)),
    };
    match kind {
        Some(Foreign::LfsPointer) => Some(Fault::Kind(
            "a git-lfs pointer; the file itself was not downloaded: run `git lfs pull`, then pack again"
                .to_owned(),
        )),
        _ => None,
    }
}

/// The record of a file in the index: true to the header, and there when there is a header.
fn file_record(index: &Index, entry: &Entry, findings: &mut Findings) -> daxfs::Result<()> {
    let file = entry.file()?;
    let listed = match index.file(file.ino())? {
        Some(record) if record.has_tensors => {
            index.verify_file(&file)?;
            findings.facts.tensors = findings.facts.tensors.saturating_add(record.tensors.len() as u64);
            true
        }
        // A wrong or missing record is a matter of the index, not of its tensors; but no file stands for another one.
        Some(_) => {
            index.verify_file(&file)?;
            false
        }
        None => false,
    };
    let has_name = ContainerKind::of_name(entry.name()).is_some();
    if has_name && !listed && file.tensors().is_ok_and(|tensors| !tensors.is_empty()) {
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
