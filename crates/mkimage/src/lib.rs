//! Packs a tree of files into a DAXFS image.
//!
//! ```text
//! inputs -> scan (names, attributes) -> plan (where everything lies; pure) -> write (each byte once) -> image
//!                        |                    ^
//!                        +-> tensor headers --+
//! ```
//!
//! The image can be a file, or memory that is handed on by its descriptor: a memfd, a udmabuf, a buffer of a
//! dma-heap, a devdax device, the memory of a PCI device, a physical range. Source files are read straight into that
//! memory by several threads; the memory that packing itself needs depends on the number of files (less than 1 KiB
//! each), not on their size.
//!
//! The same inputs and settings give the same bytes, whatever the time, the user and the order of directories.
//! A file that changes while it is packed is an error, and no partial image is left behind.
//!
//! ```
//! # let dir = tempfile::tempdir()?;
//! # let weights = dir.path().join("weights");
//! # std::fs::create_dir(&weights)?;
//! # std::fs::write(weights.join("config.json"), "{}")?;
//! # let target = dir.path().join("model.daxfs");
//! let summary = mkimage::Packer::new().input(&weights).plan()?.write_file(&target)?;
//! assert_eq!(summary.files, 1);
//!
//! let image = daxfs::Image::open(&target)?;
//! assert_eq!(image.file("config.json")?.to_vec()?, b"{}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Into memory, sealed so that nobody can change it:
//!
//! ```
//! # let dir = tempfile::tempdir()?;
//! # std::fs::write(dir.path().join("config.json"), "{}")?;
//! # let weights = dir.path();
//! use mkimage::{HugePages, Memory, Packer};
//!
//! let plan = Packer::new().input(weights).plan()?;
//! let (fd, _) = plan.write_memory(&Memory::Memfd(HugePages::Auto))?;
//! let image = daxfs::Image::from_fd(fd)?;
//! assert_eq!(image.file("config.json")?.as_slice()?, b"{}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The layout is described in [`Format`]'s module and, byte by byte, in [`daxfs::format`]. An index is
//! added as `/.daxfs/index`: the tensors of safetensors files, and the hashes of all files; [`Packer::plain`] leaves it
//! out.

mod access;
mod again;
mod align;
mod archive;
mod block;
mod buffers;
pub mod command;
mod copy;
mod dedupe;
mod erofs;
mod error;
mod hash;
mod index;
mod lfs;
mod links;
mod memory;
mod metadata;
mod output;
mod packer;
mod parallel;
mod plan;
mod progress;
mod publish;
mod reflink;
mod regions;
mod remote;
mod reserve;
mod scan;
mod selection;
mod sign;
mod source;
mod summary;
mod target;
mod tensors;
mod tree;
mod verify;
mod walk;
mod write;
mod writeback;

pub use archive::Lost;
pub use daxfs_oci::{Limits, Platform};
pub use dmabuf::HugePages;
pub use error::{Error, Result};
pub use links::Links;
pub use memory::Memory;
pub use packer::{DEFAULT_ALIGN, DEFAULT_TENSOR_ALIGN, Packer, Plan};
pub use plan::Format;
pub use progress::{Progress, Silent};
pub use regions::Overlay;
pub use sign::Signer;
pub use summary::{Pages, Summary};
