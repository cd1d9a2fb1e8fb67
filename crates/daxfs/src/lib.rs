//! DAXFS images.
pub mod format;
