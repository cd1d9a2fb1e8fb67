//! The client's side: a connection to a holder, what attaching brings, and what controls a holder.

mod attachment;
mod connection;
mod control;
mod error;
mod watch;

pub use attachment::Attachment;
pub use connection::{Connection, DEFAULT_TIMEOUT};
pub use control::{Allowed, Health, Step};
pub use error::HolderError;
pub use watch::Watch;
