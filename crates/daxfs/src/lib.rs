//! Open DAXFS images from shareable memory, and reach their files and tensors without a copy.
//!
//! A DAXFS image is a read-only tree of files in one region of memory: a superblock, fixed 64-byte inodes, flat
//! directories, page-aligned data. The region is a sealed memfd, a dma-buf, a devdax device, or a file. Everybody
//! who gets its descriptor maps the same physical bytes.
//!
//! # The path of the data
//!
//! ```text
//! Source -> Region -> (snapshot of the metadata, copied once and validated) -> Image -> Entry -> File -> Tensor
//!           owner of                                                          lookup   name     extent  dtype, shape
//!           the mapping                                                                           |        |
//!                                                                        SharedBytes view, slice, DLPack <-+
//! ```
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let weights = dir.path().join("weights");
//! # std::fs::create_dir(&weights)?;
//! # let header = br#"{"lm_head.weight":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}      "#;
//! # let mut file = (header.len() as u64).to_le_bytes().to_vec();
//! # file.extend(header);
//! # file.extend([0, 1, 2, 3, 4, 5, 6, 7]);
//! # std::fs::write(weights.join("model.safetensors"), file)?;
//! # let model = dir.path().join("model.daxfs");
//! # mkimage::Packer::new().input(&weights).plan()?.write_file(&model)?;
//! let image = daxfs::Image::open(&model)?; // safe: no reference to shared bytes is made
//! let file = image.file("model.safetensors")?;
//! let weight = file.tensors()?.get("lm_head.weight")?;
//! assert_eq!((weight.dtype(), weight.shape()), (daxfs::Dtype::BF16, &[2, 2][..]));
//!
//! let mut copy = [0; 8];
//! weight.bytes()?.read_at(0, &mut copy)?; // a bounded view: always sound
//! assert!(weight.as_slice().is_err()); // a slice needs memory that nobody can write
//!
//! let sealed = daxfs::OpenOptions::new().sealed_copy(true).open(&model)?;
//! let weight = sealed.tensors()?.get("lm_head.weight")?;
//! assert_eq!(weight.as_slice()?, copy);
//! # Ok(()) }
//! ```
//!
//! # Rules that hold everywhere
//!
//! * Memory that others can write is never a `&[u8]`. [`SharedBytes`] is a bounded pointer; slices come only from
//!   regions that are proven immutable ([`Provenance::Sealed`]) or promised to be ([`Region::assume_immutable`]).
//! * Metadata is copied once under a limit, the copy is validated, and only the copy is used.
//! * An image is hostile until validated: every error is a value that names the place, what was found there, and
//!   the bound or rule. Nothing panics on bad input.
//! * An entry, file, tensor or exported array holds the image, so the memory stays mapped as long as it is used.
//!
//! The crate `daxfs-device` gives an image to a device and says where each file lies there.
//!
//! Format versions 5 and 8 are read; the structs are in [`mod@format`].

#![deny(unsafe_code)]

mod budget;
mod content;
mod entry;
pub mod erofs;
mod error;
mod file;
mod foreign;
pub mod format;
mod generation;
mod image;
mod mount;
mod nearest;
mod original;
mod reader;
mod region;
mod rule;
pub mod signature;
mod snapshot;
mod superblock;
pub mod tensor;
mod text;
mod verify;

pub mod dlpack;

pub use content::{
    DirectoryHasher, beside_index, content_hash, content_hash_by, is_content, join_content_hash,
};
pub use daxfs_protocol as holder;
pub use daxfs_protocol::{ContentHash, ContentHashError, DeviceUuid, DeviceUuidError};
/// Why memory cannot be had, mapped or asked; inside [`Error::Memory`].
pub use dmabuf::Error as MemoryError;
pub use dmabuf::{
    CpuAccess, DirectFile, FdInfo, FdKind, KindFacts, MemoryClass, PageStats, Seals, SharedBytes,
    SharedBytesMut, Transfer, VerityDigest,
};
pub use entry::{Entry, FileType, Metadata, Walk};
pub use error::{Error, Result};
pub use file::{Extent, File};
pub use foreign::Foreign;
pub use image::{DEFAULT_MAX_METADATA, Image, MAX_LINKS, OpenOptions, explain_faults};
pub use original::Original;
pub use reader::FileReader;
pub use region::{Opened, Part, Provenance, Region, RemoteAddress, RemoteError, Source, Wanted};
pub use rule::Rule;
/// What `Tensor::as_safetensors` gives is of this crate.
pub use safetensors;
pub use snapshot::{Piece, PieceSource, ViewKind};
pub use superblock::Superblock;
pub use tensor::{
    Dtype, Groups, Index, IndexedCheckpoint, IndexedFile, Rows, Tensor, TensorError, TensorInfo, Tensors,
};
pub use text::Escaped;
pub use verify::Verify;
/// What `Tensor::as_slice_of` asks of its types is of this crate.
pub use zerocopy;

/// Compiles the README's Rust example.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct ReadmeDoctests;
