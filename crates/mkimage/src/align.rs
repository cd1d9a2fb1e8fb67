//! Rewrites the header of a safetensors file so that every tensor starts on a multiple of an alignment.
//!
//! The format allows no gaps between tensors, but it allows trailing spaces in the header and tensors that nobody
//! asked for. So the header is padded with spaces until the data starts aligned, and where a tensor would start
//! unaligned a U8 tensor of zeros is put before it, whose name begins with [`FILLER_PREFIX`]. The order of the
//! tensors in the file, their types, shapes and bytes, and `__metadata__` stay as they are; other members of the
//! header, which all readers ignore, are dropped. Fillers that the file has already stay, too, as what they are: bytes
//! of the source. So the source is its own first bytes and then the segments that come from it, in their order.

use daxfs::format::index::FILLER_PREFIX;
use daxfs::tensor::safetensors::MAX_HEADER;
use daxfs::tensor::{Header, TensorInfo};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::ops::Range;
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
    /// Bytes of the source.
    pub(crate) source_len: u64,
    /// What the source begins with: 8 bytes and its header.
    pub(crate) source_start: Vec<u8>,
    /// What the tensors were moved to multiples of.
    pub(crate) align: u64,
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

    /// How many bytes of the source lie before this one of the new file. What the source begins with lies where the
    /// new header does, as a whole.
    pub(crate) fn source_position(&self, offset: u64) -> u64 {
        if offset == 0 {
            return 0;
        }
        let at = self.segments.partition_point(|segment| segment.offset + segment.len <= offset);
        for segment in &self.segments[at..] {
            if let Content::Source(from) = segment.content {
                return from + offset.saturating_sub(segment.offset);
            }
        }
        self.source_len
    }

    /// Stretches of the source in the new file: first byte there, and how many.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let sources = self.segments.iter().filter(|segment| segment.is_source());
        sources.map(|segment| (segment.offset, segment.len))
    }

    /// The segments that have bytes in `wanted`, a range of the new file, each with the part of it that is theirs.
    pub(crate) fn parts(&self, wanted: Range<u64>) -> impl Iterator<Item = (Range<u64>, &Segment)> {
        let first = self.segments.partition_point(|segment| segment.offset + segment.len <= wanted.start);
        self.segments[first..].iter().map_while(move |segment| {
            let end = segment.offset + segment.len;
            let part = segment.offset.max(wanted.start)..end.min(wanted.end);
            (!part.is_empty()).then_some((part, segment))
        })
    }
}

impl Segment {
    pub(crate) fn is_source(&self) -> bool {
        matches!(self.content, Content::Source(_))
    }
}

/// Plans the rewriting of a file that begins with `source_start`, 8 bytes and the header. `None`: the file is aligned as it is.
///
/// # Errors
///
/// In words, when the new header would be longer than the format allows.
pub(crate) fn rewrite(header: &Header, source_start: &[u8], align: u64) -> Result<Option<Rewrite>, String> {
    if header.visible().all(|info| info.size == 0 || info.offset % align == 0) {
        return Ok(None);
    }
    // The tensors keep their order in the file. Empty tensors come before the one that shares their offset, as readers
    // sort them.
    let mut tensors: Vec<&Arc<TensorInfo>> = header.all().iter().collect();
    let is_filler = |info: &TensorInfo| info.name.starts_with(FILLER_PREFIX);
    let taken: HashSet<&str> =
        tensors.iter().filter(|info| is_filler(info)).map(|info| info.name.as_str()).collect();
    tensors.sort_by_key(|info| (info.offset, info.size));

    let source_len = tensors.iter().try_fold(header.data_start(), |len, info| len.checked_add(info.size));
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
        let start = match info.size == 0 || is_filler(info) {
            true => at,
            false => at.checked_next_multiple_of(align).ok_or_else(overflow)?,
        };
        if start > at {
            let mut name = format!("{FILLER_PREFIX}{fillers}");
            while taken.contains(name.as_str()) {
                fillers += 1;
                name = format!("{FILLER_PREFIX}{fillers}");
            }
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
    let source_len = source_len.ok_or_else(overflow)?;
    let source_start = source_start.to_vec();
    Ok(Some(Rewrite { len, data_start, source_len, source_start, align, segments, moved }))
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
