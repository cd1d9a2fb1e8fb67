//! The protocol between a holder of DAXFS images and its clients, and the client: attach to an image that another
//! process keeps in memory.
//!
//! A holder (`daxfs serve`) keeps descriptors of packed images and passes them to all who may connect to its socket.
//! Attaching costs one message each way, whatever the size of the image; afterwards the client is independent: the
//! memory lives as long as a process has it, and the holder may die.
//!
//! | source | meaning |
//! |---|---|
//! | `daxfs://NAME` | at the default socket, see [`default_socket`] |
//! | `daxfs+unix:///path/to.sock/NAME` | at that socket |
//!
//! `daxfs::Image::open` and `daxfs::Region::open` take both, and `daxfs::holder` is this crate. The protocol is in
//! [`wire`] and [`message`].

#![forbid(unsafe_code)]

mod address;
mod client;
mod device;
mod hash;
pub mod message;
pub mod wire;

pub use address::{Address, default_socket};
pub use client::{Allowed, Attachment, Connection, DEFAULT_TIMEOUT, Health, HolderError, Step, Watch};
pub use device::{DeviceUuid, DeviceUuidError};
pub use dmabuf::Hex;
pub use hash::{ContentHash, ContentHashError};
