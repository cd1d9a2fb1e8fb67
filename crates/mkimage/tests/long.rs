//! All settings with all others: takes long, and runs in `make test-long`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{list_directory, list_image, pack, varied_tree};
use mkimage::{Format, Packer};

#[test]
#[ignore = "long: make test-long"]
fn long_every_block_size_with_every_setting_gives_the_source_tree() {
    let dir = tempfile::tempdir().unwrap();
    varied_tree(dir.path());
    let wanted = list_directory(dir.path());
    let shapes = [(Format::V5, 4096), (Format::V8, 4096), (Format::V8, 16384), (Format::V8, 65536)];
    for (format, block_size) in shapes {
        for align in [1, 4096, 65536, 1 << 20, 2 << 20] {
            for (plain, dedupe, exact) in
                [(true, false, false), (false, false, true), (false, true, true), (false, true, false)]
            {
                for threads in [1, 2, 7] {
                    let packer = Packer::new().format(format).block_size(block_size).align(align);
                    let packer = packer.plain(plain).dedupe(dedupe).exact(exact);
                    let packer = packer.threads(threads).verify(true).sync(false);
                    let image = pack(dir.path(), packer.clone());
                    assert_eq!(image.superblock().block_size, block_size, "{packer:?}");
                    assert_eq!(list_image(&image), wanted, "{packer:?}");
                }
            }
        }
    }
}
