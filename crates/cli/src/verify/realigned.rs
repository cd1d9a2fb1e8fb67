//! Two safetensors files whose tensors are equal although their bytes are not: what `--align-tensors` makes.

use anyhow::{Context, bail};
use daxfs::format::index::FILLER_PREFIX;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The largest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes that are compared at a time.
const CHUNK: usize = 1 << 20;

/// `None` when all tensors and the free metadata are equal, else what differs.
///
/// # Errors
/// When a side cannot be read. A header that is not valid is an error, too: nothing can be said then.
pub fn tensors_equal(image: &daxfs::File, source: &File) -> anyhow::Result<Option<String>> {
    let ours = Header::read(image.len(), |offset, buffer| {
        let len = image.read_at(offset, buffer)?;
        Ok(len == buffer.len())
    })
    .context("in the image")?;
    let theirs = Header::read(source.metadata()?.len(), |offset, buffer| {
        source.read_exact_at(buffer, offset)?;
        Ok(true)
    })
    .context("in the source")?;
    if ours.metadata.metadata() != theirs.metadata.metadata() {
        return Ok(Some("__metadata__ differs".to_owned()));
    }
    let (our_tensors, mut their_tensors) = (ours.tensors(), theirs.tensors());
    for (name, info) in &our_tensors {
        let Some(other) = their_tensors.remove(name) else {
            return Ok(Some(format!("tensor {name:?} is only in the image")));
        };
        if info.dtype != other.dtype || info.shape != other.shape {
            return Ok(Some(format!(
                "tensor {name:?} is {:?}{:?}, in the source {:?}{:?}",
                info.dtype, info.shape, other.dtype, other.shape
            )));
        }
        let (begin, end) = info.data_offsets;
        let other_begin = other.data_offsets.0;
        if !bytes_equal(
            image,
            source,
            ours.start.saturating_add(begin as u64),
            theirs.start.saturating_add(other_begin as u64),
            end.saturating_sub(begin),
        )? {
            return Ok(Some(format!("the data of tensor {name:?} differs")));
        }
    }
    Ok(their_tensors.keys().next().map(|name| format!("tensor {name:?} is only in the source")))
}

struct Header {
    metadata: Metadata,
    /// Where tensor data begins.
    start: u64,
}

impl Header {
    /// Reads and checks a header by the rules of the safetensors crate. `read` fills the buffer from an offset, and
    /// says whether there was enough.
    fn read(len: u64, read: impl Fn(u64, &mut [u8]) -> anyhow::Result<bool>) -> anyhow::Result<Self> {
        let mut first = [0; 8];
        if len < 8 || !read(0, &mut first)? {
            bail!("not a safetensors file: {len} bytes are too few");
        }
        let size = u64::from_le_bytes(first);
        if size > MAX_HEADER || size > len.saturating_sub(8) {
            bail!("not a safetensors file: the header of {size} bytes does not fit");
        }
        let mut bytes = vec![0; usize::try_from(size.saturating_add(8))?];
        if !read(0, &mut bytes)? {
            bail!("the file ends early");
        }
        // Checks types, shapes, sizes and offsets, as opening the whole file does.
        let json = bytes.get(8..).unwrap_or_default();
        let metadata: Metadata = serde_json::from_slice(json).context("not a safetensors header")?;
        Ok(Self { metadata, start: size.saturating_add(8) })
    }

    /// Tensors by name, without fillers.
    fn tensors(&self) -> BTreeMap<String, &TensorInfo> {
        let all: HashMap<String, &TensorInfo> = self.metadata.tensors();
        all.into_iter().filter(|(name, _)| !name.starts_with(FILLER_PREFIX)).collect()
    }
}

fn bytes_equal(
    image: &daxfs::File,
    source: &File,
    ours: u64,
    theirs: u64,
    len: usize,
) -> anyhow::Result<bool> {
    let (mut left, mut right) = (vec![0; CHUNK.min(len)], vec![0; CHUNK.min(len)]);
    let mut done = 0_usize;
    while done < len {
        let step = CHUNK.min(len.saturating_sub(done));
        let (Some(left), Some(right)) = (left.get_mut(..step), right.get_mut(..step)) else { break };
        if image.read_at(ours.saturating_add(done as u64), left)? != step {
            return Ok(false);
        }
        source.read_exact_at(right, theirs.saturating_add(done as u64))?;
        if left != right {
            return Ok(false);
        }
        done = done.saturating_add(step);
    }
    Ok(true)
}
