//! Placement plans: which of several devices holds which part of an image.
//!
//! A [`Plan`] is read from JSON. [`Plan::place`] follows it for one rank, without a device: the result, a
//! [`Placement`], is a table of the image's bytes and of where they lie in the rank's memory.
//! [`Placement::to`] makes the copy.
//!
//! A placement knows tensors by their bytes in the image, so the table is the same for everybody who has the image and
//! the plan, and its hash is the identity by which holders keep copies.

#![forbid(unsafe_code)]

mod error;
mod pattern;
mod plan;
mod table;

#[cfg(test)]
mod tests;

pub use error::PlanError;
pub use plan::{MAX_RANKS, Plan};
pub use table::{ALIGNMENT, Assigned, PartLayout, Placement};
