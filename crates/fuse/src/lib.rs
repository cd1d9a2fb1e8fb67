//! DAXFS images as files, by FUSE: on every kernel, for every source, without a module and without root.
//!
//! ```text
//! Image -> Shown (inode numbers -> entries)   shown.rs     one for each image that the mount has shown
//!       -> Files (answers to the kernel)      files.rs     names, attributes, directories
//!                                             content.rs   bytes: slices of immutable memory, else bounded copies
//!       -> Mount (threads, the mount itself)  mount.rs     at a directory: point.rs; with options: options.rs
//!          watch                              watch.rs     another image in the same memory, or under the same name
//! ```
//!
//! A mount is read-only. What nobody can write is cached by the kernel for good: names, attributes and pages are asked
//! for once, and files are opened without a message. So is a regular file, until it is written; of other memory the
//! kernel asks again after a second. What it has cached is dropped when another image takes the place ([`Caching`]).
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let image = daxfs::Image::open("daxfs://llama")?;
//! let mount = daxfs_fuse::Mount::new(image, "/mnt/llama", &daxfs_fuse::Options::new("daxfs://llama"))?;
//! // Any program reads /mnt/llama now, until somebody unmounts it,
//! mount.wait()?; // or this process does: mount.unmount()?;
//! # Ok(()) }
//! ```
//!
//! What a mount costs: the kernel keeps a second copy of what is read in its page cache. Weights are better opened than
//! mounted.

#![deny(unsafe_code)]

mod attributes;
pub mod background;
mod content;
mod error;
mod files;
mod mount;
mod options;
mod point;
mod queues;
mod shown;
mod signals;
mod watch;

pub use error::{Error, Result};
pub use mount::Mount;
pub use options::Options;
pub use shown::Caching;
pub use signals::Signals;
