//! The holder: a small server that keeps packed images in memory and passes their descriptors to clients.
//!
//! Clients attach over a Unix socket with one message each way (`daxfs_protocol` has their side and the protocol) and
//! are independent afterwards. The holder can be replaced without a gap: by systemd's descriptor store, or by a
//! takeover, in which a new process receives every descriptor and the listening socket from the old one.
//!
//! One thread serves all connections from an event loop and never waits for a client. Loads run in a thread of their
//! own and report to the loop.
//!
//! ```text
//! Server (event loop) -> Requests -> Table (names, generations, access)
//!        |                   |
//!        |                   +-> Load (thread): descriptor -> packed or copied, validated, sealed -> Held
//!        +-> Connection (one message in, few out)      Takeover, systemd, Metrics
//! ```

#![deny(unsafe_code)]

mod access;
pub mod client;
mod clients;
mod closer;
mod config;
mod connection;
mod crash;
mod error;
pub mod helper;
mod http;
mod inflight;
mod limits;
mod load;
mod loads;
mod metrics;
mod packing;
mod requests;
mod restore;
mod server;
mod signed;
mod socket;
mod source;
mod stored;
mod systemd;
mod table;
mod takeover;
pub mod users;
mod view;

pub use access::Access;
pub use config::{Config, LostLines, Target};
pub use error::{Error, Result};
pub use load::LoadOptions;
pub use packing::Packing;
pub use server::Server;
pub use source::is_kept;
