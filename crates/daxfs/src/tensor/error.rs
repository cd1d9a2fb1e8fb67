//! What can be wrong with tensors: their headers, the index, checkpoints, and what was asked of them.

mod groups;

use std::sync::Arc;

use super::Dtype;
use crate::Foreign;

/// Why tensors could not be found, read or exported.
///
/// Names come from the image and may hold anything, so messages show them quoted and escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// One of the other errors, with the file it was found in.
    #[error("{file}: {fault}")]
    InFile {
        /// Path in the image, escaped.
        file: String,
        /// What is wrong.
        fault: Arc<TensorError>,
    },

    /// A file without a byte where tensors should be.
    #[error("the file is empty, one with tensors has a header")]
    Empty,

    /// Another kind of file where tensors should be.
    #[error("not a {format} file but {kind}{}", kind.advice_inside())]
    NotOfFormat {
        /// What its name, or who asked, takes it for.
        format: &'static str,
        /// What it is.
        kind: Foreign,
    },

    /// A rule of the format of a file with tensors is broken.
    #[error("{format}: {place}: {rule} (found {found})")]
    Malformed {
        /// The format.
        format: &'static str,
        /// Where in the file.
        place: String,
        /// The rule.
        rule: &'static str,
        /// What was found.
        found: String,
    },

    /// A sound file, or one that may be sound, that cannot be used in place.
    #[error("{format}: {place}: {what}")]
    Unsupported {
        /// The format.
        format: &'static str,
        /// Where in the file.
        place: String,
        /// What it is, and what to do.
        what: &'static str,
    },

    /// Too short to be a safetensors file.
    #[error("{len} bytes are too few, a safetensors file begins with 8 bytes that give its header's length")]
    TooShort {
        /// Bytes of the file.
        len: u64,
    },

    /// The header is longer than the format allows.
    #[error(
        "header of {len} bytes is longer than the format's limit of {bound}; is this a safetensors file?"
    )]
    HeaderTooLong {
        /// Length that the first 8 bytes give.
        len: u64,
        /// [`MAX_HEADER`](super::safetensors::MAX_HEADER).
        bound: u64,
    },

    /// A checkpoint file is longer than any real one.
    #[error("{len} bytes are more than the limit of {bound} for a checkpoint")]
    DocumentTooLong {
        /// Bytes of the file.
        len: u64,
        /// [`MAX_DOCUMENT`](super::checkpoint::MAX_DOCUMENT).
        bound: u64,
    },

    /// The header does not end inside the file.
    #[error("header 0x8..{end:#x} is outside the file ({file_len:#x} bytes); is the file cut off?")]
    HeaderOutsideFile {
        /// Where the header would end.
        end: u64,
        /// Bytes of the file.
        file_len: u64,
    },

    /// A document is not UTF-8.
    #[error("{what}: not UTF-8 at byte {valid}")]
    NotText {
        /// Which document.
        what: &'static str,
        /// How many bytes are valid.
        valid: usize,
    },

    /// A document is not the JSON that it should be.
    #[error("{what}: {error}")]
    Json {
        /// Which document.
        what: &'static str,
        /// What the parser says, with line and column where it knows them.
        error: serde_json::Error,
    },

    /// The same key twice in one object. Readers disagree about which one counts, so neither is taken.
    #[error("{what}: key {key:?} stands there twice")]
    DuplicateKey {
        /// Which object.
        what: &'static str,
        /// The key.
        key: String,
    },

    /// A data type of a newer safetensors.
    #[error("data type {name} is not known to this library")]
    UnknownDtype {
        /// Its name.
        name: String,
    },

    /// A tensor's data does not begin where the data of the tensor before it ends.
    #[error(
        "tensor {tensor:?}: data {begin:#x}..{end:#x} must begin at {expected:#x} and not end before it begins; gaps and overlaps are not allowed"
    )]
    Offsets {
        /// The tensor.
        tensor: String,
        /// First byte, from the start of the data.
        begin: u64,
        /// Byte behind the last.
        end: u64,
        /// Where the data before it ends.
        expected: u64,
    },

    /// The size of a tensor does not fit 64 bits.
    #[error("tensor {tensor:?}: {dtype}{shape:?} has more than 2^64 bits")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Its data type.
        dtype: Dtype,
        /// Its dimensions.
        shape: Vec<u64>,
    },

    /// A tensor of a sub-byte type does not fill its last byte.
    #[error("tensor {tensor:?}: {dtype}{shape:?} does not end on a byte boundary")]
    PartialByte {
        /// The tensor.
        tensor: String,
        /// Its data type.
        dtype: Dtype,
        /// Its dimensions.
        shape: Vec<u64>,
    },

    /// The last dimension of a quantised tensor is not a whole number of blocks.
    #[error(
        "tensor {tensor:?}: the last dimension of {dtype}{shape:?} is not a multiple of {}, the elements of a block",
        dtype.block().elements
    )]
    PartialBlock {
        /// The tensor.
        tensor: String,
        /// Its data type.
        dtype: Dtype,
        /// Its dimensions.
        shape: Vec<u64>,
    },

    /// The data of a tensor is not as long as its type and dimensions say.
    #[error("tensor {tensor:?}: {got} bytes of data, but {dtype}{shape:?} takes {expected}")]
    Size {
        /// The tensor.
        tensor: String,
        /// Its data type.
        dtype: Dtype,
        /// Its dimensions.
        shape: Vec<u64>,
        /// Bytes of data.
        got: u64,
        /// Bytes needed.
        expected: u64,
    },

    /// The tensors do not cover the rest of the file exactly.
    #[error(
        "tensor data ends at {data_end:#x}, the file at {file_len:#x}; is the file cut off, or was something added?"
    )]
    DataEnd {
        /// Where the last tensor ends, from the start of the file.
        data_end: u64,
        /// Bytes of the file.
        file_len: u64,
    },

    /// A tensor's bytes are outside its file.
    #[error("tensor {tensor:?}: {begin:#x}..{end:#x} is outside the file ({file_len:#x} bytes)")]
    OutsideFile {
        /// The tensor.
        tensor: String,
        /// First byte, from the start of the file.
        begin: u64,
        /// Byte behind the last; saturates.
        end: u64,
        /// Bytes of the file.
        file_len: u64,
    },

    /// A record of the index breaks a rule.
    #[error("/.daxfs/index: {place}: {rule} (found {found})")]
    Index {
        /// Which record.
        place: String,
        /// The rule.
        rule: &'static str,
        /// What was found.
        found: String,
    },

    /// A part of the index is another than its hash says.
    #[error("/.daxfs/index: {place}: its BLAKE3 is {found}, the index has {stored}")]
    IndexHash {
        /// Which part.
        place: String,
        /// The hash that stands in the index.
        stored: String,
        /// The hash that it has.
        found: String,
    },

    /// The index says something else than the file that it describes.
    #[error("/.daxfs/index: {file}: {what}: the index has {index}, the file {header}")]
    IndexMismatch {
        /// Path of the file, escaped.
        file: String,
        /// What differs.
        what: String,
        /// According to the index.
        index: String,
        /// According to the file.
        header: String,
    },

    /// A checkpoint names a shard by a path that is absolute, empty, or leaves the checkpoint's directory.
    #[error("shard {shard:?}: must be a relative path without `..` that stays in the checkpoint's directory")]
    ShardPath {
        /// The path.
        shard: String,
    },

    /// A shard of a checkpoint is not in the image.
    #[error("shard {shard:?} is not in the image (looked for {path})")]
    MissingShard {
        /// As the checkpoint names it.
        shard: String,
        /// Where it was looked for, escaped.
        path: String,
    },

    /// Several shards of a checkpoint are not in the image.
    #[error(
        "{} of its {count} shards are not in the image (looked for in {directory}): {}",
        missing.len(), listed(missing, missing.len())
    )]
    MissingShards {
        /// As the checkpoint names them.
        missing: Vec<String>,
        /// How many it names.
        count: usize,
        /// Where they were looked for, escaped.
        directory: String,
    },

    /// Files that are numbered as the shards of a checkpoint, without a list that joins them, and not all there.
    #[error(
        "{set}: {absent} of {count} shards are missing{}: {}",
        if set.ends_with(".safetensors") { ", and no *.safetensors.index.json is there" } else { "" },
        listed(missing, *absent as usize)
    )]
    IncompleteShards {
        /// Path of the shards, with a `*` for their numbers, escaped.
        set: String,
        /// Numbers that are missing, as they stand in the names; the first hundred.
        missing: Vec<String>,
        /// How many are missing.
        absent: u32,
        /// How many there should be.
        count: u32,
    },

    /// Two shards of a set without a list have one tensor both.
    #[error(
        "tensor {tensor:?} is in {first} and in {second}, and no list of shards (*.safetensors.index.json) says which \
         one counts"
    )]
    TensorInTwoShards {
        /// The tensor.
        tensor: String,
        /// Path of one shard, escaped.
        first: String,
        /// Path of the other, escaped.
        second: String,
    },

    /// A checkpoint promises a tensor that its shard does not have.
    #[error("tensor {tensor:?} should be in shard {shard:?}, which does not have it")]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },

    /// There is no tensor of this name.
    #[error("{file}: no tensor {name:?}{}", crate::text::question(near))]
    NoTensor {
        /// The name that was asked for.
        name: String,
        /// Path of the safetensors file or checkpoint, escaped.
        file: String,
        /// Names of tensors that are like it, the nearest first; at most three.
        near: Vec<String>,
    },

    /// No tensors where they were looked for.
    #[error("{place}: no *.safetensors file, no *.safetensors.index.json, and no *.gguf file")]
    NoTensors {
        /// Directory or image.
        place: String,
    },

    /// More than one candidate, and no rule to choose between them.
    #[error(
        "{place}: {count} sets of tensors, name one of them: {}{}{}",
        .paths.join(", "),
        if paths.len() < *count { ", ..." } else { "" },
        by_variant(variants)
    )]
    Ambiguous {
        /// Directory or image.
        place: String,
        /// How many candidates.
        count: usize,
        /// Paths of the first five, escaped; each can be given to [`Image::tensors_at`](crate::Image::tensors_at).
        paths: Vec<String>,
        /// Variants that choose one of them each; empty when the sets are no variants of each other.
        variants: Vec<String>,
    },

    /// No set of tensors is of the variant that was asked for.
    #[error(
        "{place}: no tensors of the variant {variant:?}{}",
        if known.is_empty() { "; no variants are there".to_owned() } else { format!("; there are {}", listed(known, known.len())) }
    )]
    NoVariant {
        /// Directory or image.
        place: String,
        /// The variant.
        variant: String,
        /// Variants that are there.
        known: Vec<String>,
    },

    /// A variant was asked for of a file, which has none: variants are chosen in directories.
    #[error("{file}: this is a file; a variant chooses among the sets of tensors of a directory")]
    VariantOfFile {
        /// Path of the file, escaped.
        file: String,
    },

    /// A tensor cannot be handed over as DLPack.
    #[error("tensor {tensor:?}: {dtype}{shape:?} cannot be exported as DLPack: {why}")]
    NotExportable {
        /// The tensor.
        tensor: String,
        /// Its data type.
        dtype: Dtype,
        /// Its dimensions.
        shape: Vec<u64>,
        /// Why, and what to do instead.
        why: &'static str,
    },

    /// A type whose elements cannot be computed here.
    #[error(
        "tensor {tensor:?}: {dtype}{shape:?} cannot be dequantized here; take its bytes, which are blocks"
    )]
    NotDequantizable {
        /// The tensor.
        tensor: String,
        /// Its data type.
        dtype: Dtype,
        /// Its dimensions.
        shape: Vec<u64>,
    },

    /// Memory for the elements of a tensor is of another length.
    #[error("tensor {tensor:?}: its elements take {wanted} bytes, not {got}")]
    WrongLength {
        /// The tensor.
        tensor: String,
        /// Bytes of the memory.
        got: u64,
        /// Bytes that are needed.
        wanted: u64,
    },

    /// A tensor has another number of dimensions than the caller takes.
    #[error("tensor {tensor:?}: {dtype}{shape:?} has {} dimensions, not {wanted}", shape.len())]
    WrongRank {
        /// The tensor.
        tensor: String,
        /// Its data type.
        dtype: Dtype,
        /// Its dimensions.
        shape: Vec<u64>,
        /// How many were asked for.
        wanted: usize,
    },

    /// A tensor has elements of another type than the caller takes.
    #[error(
        "tensor {tensor:?}: its elements are {dtype}{}, which are not values of {wanted} ({size} bytes); {}",
        dtype.bits().map(|bits| format!(" ({bits} bits)")).unwrap_or_default(),
        match dtype.bits() {
            Some(_) => "take its bytes, or an unsigned integer of its size for the bits",
            None => "take its bytes, which are blocks, or dequantize it",
        }
    )]
    WrongType {
        /// The tensor.
        tensor: String,
        /// Its data type.
        dtype: Dtype,
        /// Rust's name of the type that was asked for.
        wanted: &'static str,
        /// Bytes of that type.
        size: usize,
    },

    /// A tensor lies at an address that the caller's type does not allow.
    #[error(
        "tensor {tensor:?}: it lies at {address:#x}, but {wanted} takes a multiple of {align} bytes; copy it, or pack the \
         image with --align-tensors"
    )]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Where its elements begin.
        address: u64,
        /// Rust's name of the type that was asked for.
        wanted: &'static str,
        /// Alignment of that type.
        align: usize,
    },

    /// Rows that a tensor does not have.
    #[error("tensor {tensor:?}: rows {}..{} are outside of the {count} that it has", range.start, range.end)]
    OutsideRows {
        /// The tensor.
        tensor: String,
        /// What was asked for.
        range: std::ops::Range<u64>,
        /// Its first dimension; 0 for a scalar.
        count: u64,
    },

    /// Rows of a packed type that do not begin and end with a byte.
    #[error("tensor {tensor:?}: rows {}..{} of {dtype}{shape:?} are not whole bytes", range.start, range.end)]
    PartialRows {
        /// The tensor.
        tensor: String,
        /// Its data type.
        dtype: Dtype,
        /// Its dimensions.
        shape: Vec<u64>,
        /// What was asked for.
        range: std::ops::Range<u64>,
    },

    /// A writable export of memory that is mapped read-only: the first write would kill the process.
    #[error("tensor {tensor:?}: its memory is mapped read-only; open the image copy-on-write to write to it")]
    NotWritable {
        /// The tensor.
        tensor: String,
    },
}

impl TensorError {
    /// Adds the file that the error was found in.
    pub(crate) fn in_file(self, path: &[u8]) -> Self {
        Self::InFile { file: escaped(path), fault: Arc::new(self) }
    }
}

/// The first ten of a list of `count`, and how many more there are.
fn listed(items: &[String], count: usize) -> String {
    const SHOWN: usize = 10;
    let shown = items.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match count.saturating_sub(SHOWN.min(items.len())) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// How a variant is named where it would choose.
fn by_variant(variants: &[String]) -> String {
    if variants.is_empty() {
        return String::new();
    }
    format!("; or choose a variant (variant=..., --variant): {}", listed(variants, variants.len()))
}

/// A path as readable text.
pub(crate) fn escaped(path: &[u8]) -> String {
    crate::text::Escaped(path).to_string()
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
