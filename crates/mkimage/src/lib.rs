//! Packer.
