//! Shareable memory.
