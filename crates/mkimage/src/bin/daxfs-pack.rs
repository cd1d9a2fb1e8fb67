//! Packer.
fn main() {}
