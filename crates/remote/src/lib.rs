//! DAXFS images from object stores and web servers.
//!
//! [`Remote::load`] reads an image by ranges, in parallel, into a memfd, compares what arrives with the hashes that the
//! image has of its files, and seals the memory. [`Remote::metadata`] reads what names, shapes and listings need, and
//! nothing else. [`push`] writes an image into a registry; [`pull_tree`] and [`pull_layout`] fetch what is packed.
//!
//! ```text
//! Location  s3://models/llama.daxfs, https://host/llama.daxfs ...        location.rs
//! Object    length, tag, ranges: one file a kind of server               object/
//! metadata  superblock, inodes, directories, index: a few requests       metadata.rs
//! Plan      parts that are fetched at once, and what each has to be      plan.rs
//! fetch     parts in parallel, again where they fail, into the memory    fetch.rs
//! tree      files of folders and repositories, for the packer            tree.rs
//! ```
//!
//! A server is hostile until what it sent is compared: lengths are bounded before memory is made, ranges have to be those
//! that were asked for, an object that changes meanwhile is an error, and of an image with hashes no byte of a file stays
//! that is another than its hash says. What an image says of itself is checked as that of a local one.
//!
//! The program `daxfs-remote` does this for other processes, over a socket ([`talk`]).

#![forbid(unsafe_code)]

mod check;
mod error;
mod fetch;
mod layout;
mod location;
mod metadata;
mod object;
mod options;
mod plan;
mod push;
mod remote;
mod sink;
pub mod talk;
mod target;
mod tree;

pub use error::{Error, Result};
pub use layout::pull_layout;
pub use location::{Location, Scheme};
pub use options::{Options, Progress};
pub use push::push;
pub use remote::{Loaded, Remote};
pub use tree::{list_tree, pull_tree};
