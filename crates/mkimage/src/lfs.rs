//! Pointers of git-lfs: what lies in the place of large files that were cloned but not downloaded.

use crate::Result;
use crate::source::Opener;

/// How they begin, whatever their version.
const START: &[u8] = b"version https://git-lfs.github.com/spec/v";

/// The specification allows less than 1024 bytes; three lines with a hash have more than 100.
const SIZES: std::ops::Range<u64> = 100..1024;

/// How names of files end that are kept by git-lfs as a rule. Others of that size are many, and not worth opening.
const SUFFIXES: [&[u8]; 14] = [
    b".safetensors",
    b".bin",
    b".gguf",
    b".pt",
    b".pth",
    b".ckpt",
    b".h5",
    b".msgpack",
    b".onnx",
    b".model",
    b".npz",
    b".ot",
    b".tflite",
    b".zip",
];

/// What a user is told of one.
pub(crate) const WARNING: &str = "a pointer of git-lfs, the file itself was not downloaded: run git lfs pull";

/// Whether the file of this name and size is a pointer.
pub(crate) fn is_pointer(opener: &mut Opener<'_>, node: u32, name: &[u8], size: u64) -> Result<bool> {
    if !SIZES.contains(&size) || !SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) {
        return Ok(false);
    }
    let source = opener.file(node)?;
    let mut start = [0; START.len()];
    source.read_exact_at(&mut start, 0)?;
    Ok(start == *START)
}
