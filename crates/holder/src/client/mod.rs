//! The client's side of a load: what `daxfs load`, `daxfs swap` and `daxfs.Holder` do alike.
//!
//! All other requests are methods of [`daxfs_protocol::Connection`].

mod load;
mod signature;

pub use load::{Given, Load, LoadError};
pub use signature::{beside, found};
