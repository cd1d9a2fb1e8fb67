//! What copies have in common, whatever the device: which bytes they consist of, and the threads that move them.

#![forbid(unsafe_code)]

#[cfg(feature = "cuda")]
pub(crate) mod ring;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod ring_tests;
pub(crate) mod segments;
#[cfg(feature = "cuda")]
mod sync;
pub(crate) mod threads;
