//! One error type. Each message gives the place, what was found there, and the bound or rule it breaks.

use std::ops::Range;

use dmabuf::Hex;

use crate::Rule;
use crate::foreign::Foreign;
use crate::holder::{ContentHash, HolderError};
use crate::region::RemoteError;
use crate::region::{Provenance, Source};
use crate::tensor::TensorError;
use crate::text::Escaped;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image, a file or a tensor could not be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call or the memory itself failed.
    #[error(transparent)]
    Memory(#[from] dmabuf::Error),

    /// A holder cannot be reached or refuses.
    #[error(transparent)]
    Holder(#[from] HolderError),

    /// An image that lies elsewhere cannot be had.
    #[error(transparent)]
    Remote(#[from] RemoteError),

    /// A text that is meant to name a source and does not.
    #[error("{text}: {why}")]
    Source {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },

    /// The part of a source that was named is not within it.
    #[error("{name}: {len:#x} bytes at {offset:#x} are outside of the {bound:#x} bytes that it has")]
    OutsideSource {
        /// The source.
        name: String,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Bytes that there are.
        bound: u64,
    },

    /// A DAXFS was mounted from a physical range, which this process cannot open.
    #[error(
        "{}: this mount lies in physical memory, which phys:{address:#x}+{len:#x} would open: {source}",
        path.display()
    )]
    PhysicalMount {
        /// The mount.
        path: std::path::PathBuf,
        /// First byte of the range.
        address: u64,
        /// Its bytes.
        len: u64,
        /// Why it cannot be opened.
        source: dmabuf::Error,
    },

    /// The kernel's own DAXFS does not mount this image.
    #[error("the kernel cannot mount this image: {why}")]
    NotMountable {
        /// What it is that it does not take.
        why: String,
    },

    /// The image holds other content than was expected.
    #[error("the image's content hash is {}, expected {}", found.map_or_else(|| "not stored".to_owned(), |hash| hash.to_string()), expected)]
    OtherContent {
        /// What was asked for.
        expected: ContentHash,
        /// What the image says, if it says anything.
        found: Option<ContentHash>,
    },

    /// The file of the image has another digest of fs-verity than was expected, or none that the kernel checks.
    #[error(
        "the file's fs-verity digest is {}, expected fsverity:{expected}",
        found.as_ref().map_or_else(|| "not there (it has no fs-verity that the kernel checks)".to_owned(), |it| format!("fsverity:{it}"))
    )]
    OtherVerity {
        /// What was asked for.
        expected: dmabuf::VerityDigest,
        /// What the kernel says, if it says anything.
        found: Option<dmabuf::VerityDigest>,
    },

    /// The bytes of a file are others than the hash stands for.
    #[error(
        "{}: BLAKE3 is {}, the image's content hash has {}: the bytes were changed",
        Escaped(.path), Hex(found.as_slice()), Hex(expected.as_slice())
    )]
    WrongHash {
        /// The file.
        path: Vec<u8>,
        /// What the content hash has.
        expected: [u8; 32],
        /// What its bytes give.
        found: [u8; 32],
    },

    /// Files are to be compared with hashes that the image does not have.
    #[error("the image has no hashes to compare with (verify {verify}); pack it with --hash")]
    NoHashes {
        /// What was asked for.
        verify: crate::Verify,
    },

    /// Files share bytes without being the same, so that hashing them could take any time.
    #[error(
        "files overlap without being the same: they have {total:#x} bytes to hash, more than twice the {memory:#x} of \
         the image"
    )]
    FilesOverlap {
        /// Bytes of all files, those that are the same counted once.
        total: u64,
        /// Bytes of the image.
        memory: u64,
    },

    /// The image has no valid signature of the keys that are asked for.
    #[error(transparent)]
    Signature(#[from] crate::signature::SignatureError),

    /// Who waits for the image to be opened has ended it.
    #[error("opening the image was cancelled while its files were hashed")]
    Cancelled,

    /// The EROFS view, by which kernels mount the image, is not that of the image's tree.
    #[error("/.daxfs/erofs: {place}: {why}; pack the image again, or with --no-erofs")]
    ErofsView {
        /// Where in the view, or of what.
        place: String,
        /// What is wrong.
        why: String,
    },

    /// The region is too small to hold a superblock.
    #[error("region: {len:#x} bytes, but a superblock takes {need:#x}")]
    TooSmall {
        /// Bytes of the region.
        len: u64,
        /// Bytes needed.
        need: u64,
    },

    /// The first four bytes are not the magic of a DAXFS image.
    #[error("superblock: magic is {found:#010x}, a DAXFS image begins with 0x64617835; this is not an image")]
    NotAnImage {
        /// The first four bytes.
        found: u32,
    },

    /// This is something else, of a well-known kind.
    #[error("this is not a DAXFS image but {kind}; {}", kind.advice())]
    Foreign {
        /// What it is.
        kind: Foreign,
    },

    /// The image is being replaced at this moment, or a replacement was broken off.
    #[error(
        "superblock: generation {generation} is being written into this region, or writing it was broken off; open it \
         again later, or pack it again with --replace"
    )]
    BeingReplaced {
        /// Number of the image that is being written.
        generation: u64,
    },

    /// A kernel that has the image mounted changed its names faster than they could be read.
    #[error(
        "overlay: it changed during each of {attempts} attempts to read it, by a kernel that has the image mounted; \
         open it again when less is written"
    )]
    Changing {
        /// How often it was tried.
        attempts: u32,
    },

    /// A version that this library does not read.
    #[error("{place}: version {found} is not supported (supported: {supported})")]
    UnsupportedVersion {
        /// Which structure.
        place: &'static str,
        /// Version found.
        found: u32,
        /// Versions that are read.
        supported: &'static str,
    },

    /// Flag bits that have no meaning in this version.
    #[error("{place}: unknown flag bits {bits:#x}")]
    UnknownFlags {
        /// Which structure.
        place: &'static str,
        /// The bits that are not known.
        bits: u32,
    },

    /// A byte range does not lie where it must.
    #[error("{place} {:#x}..{:#x} is outside the {within} ({bound:#x} bytes)", .range.start, .range.end)]
    OutOfBounds {
        /// What the range belongs to, for example `inode 17: data`.
        place: String,
        /// The range, from the start of `within`; the end saturates.
        range: Range<u64>,
        /// What it must lie in.
        within: &'static str,
        /// Size of that.
        bound: u64,
    },

    /// Two regions of the image share bytes.
    #[error("superblock: {first} {:#x}..{:#x} overlaps {second} {:#x}..{:#x}", .first_range.start, .first_range.end, .second_range.start, .second_range.end)]
    Overlap {
        /// One region.
        first: &'static str,
        /// Its bytes.
        first_range: Range<u64>,
        /// The other region.
        second: &'static str,
        /// Its bytes.
        second_range: Range<u64>,
    },

    /// A rule of the format is broken.
    #[error("{place}: {rule} (found {found})")]
    Invalid {
        /// Where.
        place: String,
        /// Which rule.
        rule: Rule,
        /// What was found there.
        found: String,
    },

    /// The metadata is larger than the caller allows.
    #[error(
        "{place}: with this, the image takes {needed:#x} bytes of metadata in all, the limit is {limit:#x}; raise max_metadata (--max-metadata) if the image is trusted to be this large"
    )]
    MetadataLimit {
        /// What was about to be copied or built.
        place: String,
        /// Bytes used so far and needed for this.
        needed: u64,
        /// The limit.
        limit: u64,
    },

    /// No such path in the image.
    #[error("{}: no such file or directory in the image{}", Escaped(.path), crate::text::question(near))]
    NotFound {
        /// The path as it was asked for.
        path: Vec<u8>,
        /// Paths that are there and like it, escaped, the nearest first; at most three.
        near: Vec<String>,
    },

    /// A path component is not a directory.
    #[error("{}: not a directory", Escaped(.path))]
    NotADirectory {
        /// The path.
        path: Vec<u8>,
    },

    /// The path names something else than a regular file.
    #[error("{}: not a regular file but a {kind}", Escaped(.path))]
    NotAFile {
        /// The path.
        path: Vec<u8>,
        /// What it is.
        kind: crate::FileType,
    },

    /// The path names something else than a symbolic link.
    #[error("{}: not a symbolic link but a {kind}", Escaped(.path))]
    NotALink {
        /// The path.
        path: Vec<u8>,
        /// What it is.
        kind: crate::FileType,
    },

    /// More symbolic links than [`crate::MAX_LINKS`] were followed.
    #[error("{}: more than {} symbolic links on the way", Escaped(.path), crate::MAX_LINKS)]
    TooManyLinks {
        /// The path.
        path: Vec<u8>,
    },

    /// A slice was asked for, but others may write to the memory.
    #[error(
        "a slice needs immutable memory, this region is {0}; read through a view, make a sealed copy, or promise immutability with Region::assume_immutable"
    )]
    NotImmutable(Provenance),

    /// The file is made of several pieces (overlay pages or log entries), so there is no one view of it.
    #[error("{}: its {pieces} pieces do not lie in one place; read it with read_at or to_vec", Escaped(.path))]
    NotContiguous {
        /// The file.
        path: Vec<u8>,
        /// How many.
        pieces: usize,
    },

    /// The image holds only the metadata of this file.
    #[error("{}: its contents are not in the image ({why})", Escaped(.path))]
    NoContents {
        /// The file.
        path: Vec<u8>,
        /// Where they are.
        why: &'static str,
    },

    /// A read or view outside a file.
    #[error("{}: {:#x}..{:#x} is outside the file ({len:#x} bytes)", Escaped(.path), .range.start, .range.end)]
    OutsideFile {
        /// The file.
        path: Vec<u8>,
        /// What was asked for; the end saturates.
        range: Range<u64>,
        /// Bytes of the file.
        len: u64,
    },

    /// Writing what was read failed.
    #[error("write: {0}")]
    Write(#[source] std::io::Error),

    /// A tensor header, index or checkpoint is wrong, or a tensor is missing.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl Error {
    /// Names the source where a message would speak of a range only.
    #[must_use]
    pub fn of_source(self, source: &Source) -> Self {
        match self {
            Self::Memory(dmabuf::Error::OutOfBounds { offset, len, bound }) => {
                Self::OutsideSource { name: source.to_string(), offset, len, bound }
            }
            other => other,
        }
    }

    /// True when a name means nothing of the kind that was asked for: no such path, file or tensor in an image, no such
    /// image at a holder, no such source. A checkpoint that lacks one of its shards is [`Error::is_format`] as well.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::NotADirectory { .. }
            | Self::NotAFile { .. }
            | Self::NotALink { .. }
            | Self::TooManyLinks { .. } => true,
            Self::Tensor(error) => error.is_not_found(),
            Self::Holder(error) => error.is_not_found(),
            Self::Remote(error) => error.is_not_found(),
            Self::Memory(error) => error.io_kind() == std::io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// True for a file with tensors that cannot be used in place, and may be sound all the same.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Tensor(error) if error.is_unsupported())
    }

    /// True when the image, or a safetensors file or checkpoint in it, breaks a rule of its format or a limit, or is
    /// something else: to open it again is of no use. Of memory that is asked for beyond its end nothing tells whether an
    /// image or the caller did: it counts, too.
    pub fn is_format(&self) -> bool {
        match self {
            Self::TooSmall { .. }
            | Self::NotAnImage { .. }
            | Self::Foreign { .. }
            | Self::UnsupportedVersion { .. }
            | Self::UnknownFlags { .. }
            | Self::OutOfBounds { .. }
            | Self::Overlap { .. }
            | Self::Invalid { .. }
            | Self::MetadataLimit { .. }
            | Self::ErofsView { .. }
            | Self::FilesOverlap { .. } => true,
            Self::Tensor(error) => error.is_format(),
            Self::Remote(error) => error.is_format(),
            Self::Memory(error) => matches!(error, dmabuf::Error::OutOfBounds { .. }),
            Self::Holder(_)
            | Self::Source { .. }
            | Self::OutsideSource { .. }
            | Self::PhysicalMount { .. }
            | Self::NotMountable { .. }
            | Self::OtherContent { .. }
            | Self::OtherVerity { .. }
            | Self::WrongHash { .. }
            | Self::NoHashes { .. }
            | Self::Signature(_)
            | Self::Cancelled
            | Self::BeingReplaced { .. }
            | Self::Changing { .. }
            | Self::NotFound { .. }
            | Self::NotADirectory { .. }
            | Self::NotAFile { .. }
            | Self::NotALink { .. }
            | Self::TooManyLinks { .. }
            | Self::NotImmutable(_)
            | Self::NotContiguous { .. }
            | Self::NoContents { .. }
            | Self::OutsideFile { .. }
            | Self::Write(_) => false,
        }
    }

    /// True when there is an image, and it has other content than was expected, whoever found that: this process by the
    /// image's content hash, by the digest of its file or by the bytes of its files, or the holder.
    pub fn is_other_content(&self) -> bool {
        match self {
            Self::OtherContent { .. } | Self::OtherVerity { .. } | Self::WrongHash { .. } => true,
            Self::Holder(error) => error.is_other_content(),
            Self::Remote(error) => error.is_other_content(),
            _ => false,
        }
    }

    /// True when the holder is not there, does not answer, or ended meanwhile: the same request may succeed later.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Holder(error) if error.is_unreachable())
    }

    /// The operating system's error number, where there is one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Memory(error) | Self::PhysicalMount { source: error, .. } => error.raw_os_error(),
            Self::Write(error) => error.raw_os_error(),
            Self::Holder(error) => error.raw_os_error(),
            Self::Remote(error) => error.raw_os_error(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::holder::message::Refusal;

    #[test]
    fn messages_give_place_found_and_bound() {
        let error = Error::OutOfBounds {
            place: "inode 17: data".into(),
            range: 0x4000..0x9000,
            within: "base image",
            bound: 0x8000,
        };
        assert_eq!(
            error.to_string(),
            "inode 17: data 0x4000..0x9000 is outside the base image (0x8000 bytes)"
        );
        let error = Error::NotFound { path: b"a\n\xff/\xc3\xa9".to_vec(), near: Vec::new() };
        assert_eq!(error.to_string(), "a\\n\\xff/é: no such file or directory in the image");
        assert!(error.is_not_found());
    }
    #[test]
    fn errors_are_of_the_groups_that_they_belong_to() {
        let socket = std::path::PathBuf::from("/s");
        let system = |number| dmabuf::Error::Os {
            op: "connect",
            subject: "/s".into(),
            source: std::io::Error::from_raw_os_error(number),
        };
        let refused = |refusal| {
            Error::from(HolderError::Refused { socket: socket.clone(), refusal, text: String::new() })
        };
        let unreachable =
            |number| Error::from(HolderError::Unreachable { socket: socket.clone(), source: system(number) });
        let hash = [0; 32];
        let (refused_connection, no_entry, denied, reset) = (111, 2, 13, 104);
        for (error, groups) in [
            (Error::NotFound { path: Vec::new(), near: Vec::new() }, "not found"),
            (Error::NotAFile { path: Vec::new(), kind: crate::FileType::Directory }, "not found"),
            (system(no_entry).into(), "not found"),
            (refused(Refusal::NoSuchName), "not found"),
            (TensorError::NoTensors { place: String::new() }.into(), "not found"),
            (
                TensorError::MissingShard { shard: String::new(), path: String::new() }.into(),
                "not found, format",
            ),
            (TensorError::Empty.into(), "format"),
            (Error::NotAnImage { found: 0 }, "format"),
            (dmabuf::Error::OutOfBounds { offset: 0, len: 1, bound: 0 }.into(), "format"),
            (Error::OtherContent { expected: hash.into(), found: None }, "other content"),
            (Error::WrongHash { path: Vec::new(), expected: hash, found: hash }, "other content"),
            (refused(Refusal::OtherContent), "other content"),
            (unreachable(refused_connection), "unreachable"),
            (unreachable(no_entry), "unreachable"),
            (HolderError::Closed { socket: socket.clone() }.into(), "unreachable"),
            (
                HolderError::Timeout { socket: socket.clone(), timeout: std::time::Duration::ZERO }.into(),
                "unreachable",
            ),
            (HolderError::System { socket: socket.clone(), source: system(reset) }.into(), "unreachable"),
            (HolderError::System { socket: socket.clone(), source: system(denied) }.into(), ""),
            (refused(Refusal::NotAllowed), ""),
            (system(denied).into(), ""),
            (Error::BeingReplaced { generation: 1 }, ""),
            (Error::Cancelled, ""),
        ] {
            let found = [
                (error.is_not_found(), "not found"),
                (error.is_format(), "format"),
                (error.is_other_content(), "other content"),
                (error.is_unreachable(), "unreachable"),
            ];
            let found: Vec<_> = found.into_iter().filter_map(|(is, name)| is.then_some(name)).collect();
            assert_eq!(found.join(", "), groups, "{error:?}");
        }
    }
}
