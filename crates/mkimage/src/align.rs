//! Rewrites the header of a safetensors file so that every tensor starts on a multiple of an alignment.
//!
//! The format allows no gaps between tensors, but it allows trailing spaces in the header and tensors that nobody
//! asked for. So the header is padded with spaces until the data starts aligned, and where a tensor would start
//! unaligned a U8 tensor of zeros is put before it, whose name begins with [`FILLER_PREFIX`]. The order of the
//! tensors in the file, their types, shapes and bytes, and `__metadata__` stay as they are; other members of the
//! header, which all readers ignore, are dropped.

use daxfs::format::index::FILLER_PREFIX;
use daxfs::tensor::TensorInfo;
use daxfs::tensor::safetensors::{Header, MAX_HEADER};
use std::fmt::Write as _;
use std::sync::Arc;

/// Bytes of the header's length, a little-endian u64, in front of it.
pub(crate) const PREFIX: u64 = 8;

/// A file that is made anew from a header and parts of its source.
#[derive(Debug)]
pub(crate) struct Rewrite {
    /// Bytes of the new file.
    pub(crate) len: u64,
    /// 8 bytes and the new header.
    pub(crate) data_start: u64,
    /// By offset in the new file, without gaps.
    pub(crate) segments: Vec<Segment>,
    /// New offset of the tensor data, by old offset and size: sorted.
    moved: Vec<((u64, u64), u64)>,
}

/// A stretch of the new file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// First byte in the new file.
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) content: Content,
}

/// What a segment is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// The new header, with its length in front.
    Header(Vec<u8>),
    /// Bytes of the source from this offset on.
    Source(u64),
    /// A filler tensor.
    Zeros,
}

impl Rewrite {
    /// Where the data of a tensor of the old header starts in the new file.
    pub(crate) fn offset_of(&self, info: &TensorInfo) -> u64 {
        let key = (info.offset, info.size);
        match self.moved.binary_search_by_key(&key, |moved| moved.0) {
            Ok(at) => self.moved[at].1,
            Err(_) => info.offset,
        }
    }
}

/// Plans the rewriting. `None`: the file is aligned as it is.
///
/// # Errors
///
/// In words, when the new header would be longer than the format allows.
pub(crate) fn rewrite(header: &Header, align: u64) -> Result<Option<Rewrite>, String> {
    if header.visible().all(|info| info.size == 0 || info.offset % align == 0) {
        return Ok(None);
    }
    // Fillers of an earlier alignment are dropped; the tensors keep their order in the file. Empty tensors come
    // before the one that shares their offset, as readers sort them.
    let mut tensors: Vec<&Arc<TensorInfo>> = header.visible().collect();
    tensors.sort_by_key(|info| (info.offset, info.size));

    let mut json = String::from("{");
    if let Some(metadata) = header.metadata() {
        let metadata = serde_json::to_string(metadata).map_err(|error| error.to_string())?;
        let _ = write!(json, "\"__metadata__\":{metadata},");
    }
    // Positions are relative to the start of the data, which is not known before the header is.
    let mut parts: Vec<(u64, u64, Content)> = Vec::new();
    let mut moved = Vec::with_capacity(tensors.len());
    let (mut at, mut fillers) = (0u64, 0u64);
    let overflow = || "the aligned file would be too long".to_owned();
    for info in tensors {
        let start =
            if info.size == 0 { at } else { at.checked_next_multiple_of(align).ok_or_else(overflow)? };
        if start > at {
            let name = format!("{FILLER_PREFIX}{fillers}");
            write_tensor(&mut json, &name, "U8", &[start - at], at, start);
            parts.push((at, start - at, Content::Zeros));
            fillers += 1;
        }
        let end = start.checked_add(info.size).ok_or_else(overflow)?;
        write_tensor(&mut json, &info.name, info.dtype.name(), &info.shape, start, end);
        parts.push((start, info.size, Content::Source(info.offset)));
        moved.push(((info.offset, info.size), start));
        at = end;
    }
    json.pop();
    json.push('}');

    let unpadded = PREFIX + json.len() as u64;
    let data_start = unpadded.checked_next_multiple_of(align).ok_or_else(overflow)?;
    let header_len = data_start - PREFIX;
    if header_len > MAX_HEADER {
        return Err(format!("its header would have {header_len} bytes, the format allows {MAX_HEADER}"));
    }
    let len = data_start.checked_add(at).ok_or_else(overflow)?;

    let mut bytes = header_len.to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(bytes.len() + usize::try_from(data_start - unpadded).map_err(|_| overflow())?, b' ');
    let mut segments = vec![Segment { offset: 0, len: data_start, content: Content::Header(bytes) }];
    for (offset, len, content) in parts.into_iter().filter(|(_, len, _)| *len > 0) {
        append(&mut segments, Segment { offset: data_start + offset, len, content });
    }
    for (_, offset) in &mut moved {
        *offset += data_start;
    }
    moved.sort_unstable();
    Ok(Some(Rewrite { len, data_start, segments, moved }))
}

/// Adds a segment; source ranges that follow each other become one.
fn append(segments: &mut Vec<Segment>, next: Segment) {
    if let (Some(last), Content::Source(from)) = (segments.last_mut(), &next.content)
        && let Content::Source(start) = last.content
        && start + last.len == *from
    {
        last.len += next.len;
        return;
    }
    segments.push(next);
}

fn write_tensor(json: &mut String, name: &str, dtype: &str, shape: &[u64], begin: u64, end: u64) {
    // A string as JSON cannot fail to be written, nor can a String.
    let name = serde_json::Value::from(name);
    let _ = write!(json, "{name}:{{\"dtype\":\"{dtype}\",\"shape\":[");
    for (at, dim) in shape.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let _ = write!(json, "{comma}{dim}");
    }
    let _ = write!(json, "],\"data_offsets\":[{begin},{end}]}},");
}

#[cfg(test)]
#[path = "align_tests.rs"]
mod tests;
