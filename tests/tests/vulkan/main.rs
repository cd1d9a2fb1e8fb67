//! Images in the memory of a Vulkan device: shaders hash whole files and tensors, and the sums equal the CPU's.
//!
//! Mesa's software driver is enough; `make test` fetches it and runs these with `DAXFS_REQUIRE_VULKAN=1`, which makes
//! a missing driver a failure. In the kernel tests the same program runs on real udmabuf, dma-heap and vgem buffers.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

#[path = "../../../examples/rust/04-vulkan-lookup/compute.rs"]
mod compute;
mod errors;
mod export;
mod lent;
mod lifetime;
mod reading;
mod support;

use daxfs_tests::golden::project_root;

#[test]
fn checked_in_shaders_are_built_from_the_source_beside_them() {
    for (folder, source, built) in [
        ("tests/shaders", "hash.comp", "hash-binding.spv"),
        ("tests/shaders", "hash.comp", "hash-address.spv"),
        ("examples/rust/04-vulkan-lookup", "gather.comp", "gather.spv"),
    ] {
        let folder = project_root().join(folder);
        let text = std::fs::read(folder.join(source)).unwrap();
        let spirv = std::fs::read(folder.join(built)).unwrap();
        let held = spirv.windows(text.len()).any(|window| window == text);
        assert!(held, "{built} was built from another {source}: run scripts/shaders.sh");
    }
}
