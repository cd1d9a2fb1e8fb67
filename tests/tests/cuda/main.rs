//! Images in the memory of a GPU.
//!
//! `make test` runs these with a simulated driver (`tests/cuda/libcuda.c`), which has everything but the hardware:
//! processes, descriptors, order, lifetimes, errors. `make test-gpu` runs them with the machine's driver, except for
//! those that make the driver fail.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]
#![allow(unsafe_code, reason = "asks the simulated driver what is left, and calls deleters")]

mod errors;
mod exhausted;
mod holder;
mod host_copies;
mod host_memory;
mod long_copies;
mod placed;
mod resident;
mod sharing;
mod sources;
mod support;
mod tensors;
mod verify;
