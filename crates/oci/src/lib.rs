//! Container images and tar archives as one tree of files, without unpacking them.
//!
//! ```text
//! oci:DIR, docker-archive:FILE, tar:FILE -> archives -> members -> tree of names and inodes
//!                                              |                       |
//!                                              +-> bytes: in place, or in a spool
//! ```
//!
//! [`read`] gives a [`Rootfs`]: names, permissions, owners, links, and for each file the place of its bytes in a file
//! that is open. What is not compressed is read where it lies; what is, or comes through a pipe, is decompressed once
//! into a file without a name. Memory depends on the number of names alone, and nothing is made that others could see.
//!
//! Layers are applied by the rules of the OCI image specification: whiteouts and opaque directories take away what
//! lies below, hard links may lead to a lower layer, and what is no directory gives way to what takes its place. Links
//! in the place of directories are followed inside the tree only. Digests of all blobs are compared, and those of the
//! layers as they come out.
//!
//! Everything is hostile until it was checked. The errors say what was found where, and which rule it broke;
//! [`Limits`] bound what comes out by what goes in, so that a small file cannot stand for terabytes.
//!
//! ```
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("files.tar");
//! # std::fs::write(&path, [0; 1024])?;
//! use daxfs_oci::{Options, ROOT, Source};
//!
//! let name = format!("tar:{}", path.display());
//! let source = Source::parse(&name)?.ok_or("no archive")?;
//! let rootfs = daxfs_oci::read(&source, &Options::default(), &|| false)?;
//! assert!(rootfs.tree.children(ROOT).is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, clippy::indexing_slicing, reason = "a test may panic")
)]

mod archive;
mod decode;
mod digest;
mod docker;
mod document;
mod error;
mod image;
mod input;
mod layout;
mod limits;
mod platform;
mod reference;
mod spool;
mod tar;
mod tree;

pub use digest::Digest;
pub use error::{Error, Result};
pub use image::{Options, Rootfs, SourceFile, read, read_layers};
pub use limits::Limits;
pub use platform::Platform;
pub use reference::{Source, Wanted};
pub use tar::{Attribute, Time};
pub use tree::{Content, Id, Inode, Kind, ROOT, Special, Tree};
