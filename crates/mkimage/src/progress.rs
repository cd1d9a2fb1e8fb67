//! How packing tells what it has done.

use std::fmt::Debug;

/// Told about the progress of packing, from several threads at once.
pub trait Progress: Debug + Send + Sync {
    /// What lies elsewhere is fetched before it is packed: so many bytes of how many are there. It may be told the same
    /// again, several times a second, and zeros while nothing is known.
    fn fetching(&self, _done: u64, _total: u64) {}
    /// Copying begins; `total` bytes of file data will be written.
    fn start(&self, total: u64);
    /// So many more bytes are done.
    fn advance(&self, bytes: u64);
    /// All is written, or packing failed.
    fn finish(&self);
    /// Asked between two pieces of work: true ends packing with [`Error::Cancelled`](crate::Error::Cancelled).
    fn cancelled(&self) -> bool {
        false
    }
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _total: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
}
