//! DAXFS images from object stores and web servers.
//!
//! [`push`] writes one into a registry. [`Remote::load`] reads an image by ranges, in parallel, into a memfd, compares what arrives with the hashes that the
//! image has of its files, and seals the memory. [`Remote::metadata`] reads what names, shapes and listings need, and
//! nothing else.
//!
//! ```text
//! Location  s3://models/llama.daxfs, https://host/llama.daxfs ...        location.rs
//! Object    length, tag, ranges: one file a kind of server               object/
//! metadata  superblock, inodes, directories, index: a few requests       metadata.rs
//! Plan      parts that are fetched at once, and what each has to be      plan.rs
//! fetch     parts in parallel, again where they fail, into the memory    fetch.rs
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
pub mod talk;
mod target;

pub use error::{Error, Result};
pub use layout::pull_layout;
pub use location::{Location, Scheme};
pub use options::{Options, Progress};
pub use push::push;
pub use remote::{Loaded, Remote};
