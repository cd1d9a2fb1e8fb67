//! Whether the tests of real dma-bufs can run here.

use std::env;
use std::path::Path;

/// Whether `/dev/udmabuf` and the heap `system` are there, and what else a test needs (its name, and whether it is).
/// What is missing is printed.
///
/// # Panics
/// Where something is missing and `DAXFS_REQUIRE_DEVICES` is in the environment, as in the kernel tests.
pub fn are_here(others: &[(&str, bool)]) -> bool {
    let nodes = ["/dev/udmabuf", "/dev/dma_heap/system"].map(|node| (node, Path::new(node).exists()));
    let missing = nodes.iter().chain(others).find(|(_, is_here)| !is_here);
    if let Some((name, _)) = missing {
        assert!(env::var_os("DAXFS_REQUIRE_DEVICES").is_none(), "no {name}");
        eprintln!("not run: no {name}");
    }
    missing.is_none()
}
