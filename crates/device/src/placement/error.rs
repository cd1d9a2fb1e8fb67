//! What is wrong with a plan, or with a plan for an image.

use daxfs::Escaped;

/// Why a plan cannot be read or followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The text is no plan.
    #[error("the plan: {why}")]
    Syntax {
        /// What is wrong, and where.
        why: String,
    },

    /// A rule means nothing.
    #[error("the plan's rule {rule}: {why}")]
    Rule {
        /// Which, counted from 1.
        rule: usize,
        /// What is wrong.
        why: String,
    },

    /// The plan has no such rank.
    #[error("the plan has no rank {rank}: it has {ranks}, numbered from 0")]
    NoSuchRank {
        /// What was asked for.
        rank: usize,
        /// How many there are.
        ranks: usize,
    },

    /// A tensor cannot be split as its rule says.
    #[error(
        "tensor {tensor:?} of shape {shape:?}: rule {rule} splits dimension {dim} among {ways} ranks: {why}"
    )]
    NotSplit {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        shape: Vec<u64>,
        /// The rule, counted from 1.
        rule: usize,
        /// The dimension, from 0.
        dim: usize,
        /// Ranks that were to share it.
        ways: usize,
        /// What is in the way.
        why: &'static str,
    },

    /// Bytes that a rank is to hold are not in one place of the image.
    #[error("{}: {why}, so no rank can hold it by a plan", Escaped(.path))]
    NotInOnePlace {
        /// The file.
        path: Vec<u8>,
        /// Where they are.
        why: &'static str,
    },

    /// Gathered parts would take more than the image has, as no sensible image makes them.
    #[error("rank {rank}: gathered parts of {bytes} bytes, of an image of {bound}: its tensors overlap")]
    TooMuch {
        /// The rank.
        rank: usize,
        /// Bytes of the parts.
        bytes: u64,
        /// Bytes of the image.
        bound: u64,
    },
}
