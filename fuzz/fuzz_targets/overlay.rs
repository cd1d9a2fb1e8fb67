//! Opens a small image under any overlay of version 8: entries as a kernel makes them, in any order and number, and then
//! words of the region overwritten. The steps reach further than bytes that are turned blindly.

#![no_main]

mod changes;
#[path = "../../tests/src/examine.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod examine;
#[path = "../../tests/src/forge.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod forge;
#[path = "../../tests/src/overlay.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod overlay;

use changes::Input;
use daxfs::Region;
use examine::examine_both;
use forge::Version;
use libfuzzer_sys::fuzz_target;
use overlay::Overlay;

/// Enough for every input; what would take more is refused.
const MAX_METADATA: u64 = 4 << 20;
const BUCKETS: usize = 64;
const MODES: [u32; 6] = [0o100_644, 0o040_755, 0o120_777, 0o020_600, 0, 0o177_777];

fuzz_target!(|data: &[u8]| {
    let mut image = forge::mini(Version::V8).finish();
    let base = image.len();
    let inodes = forge::superblock(&mut image).inode_count.get();
    let mut overlay = Overlay::new(BUCKETS, inodes);
    let mut input = Input::new(data);
    // What stands for nothing is added last: the others build on each other.
    let mut wild = Vec::new();
    // Each takes at most two buckets.
    for _ in 0..BUCKETS / 2 - 1 {
        let Some(step) = input.step() else { break };
        let [one, two] = step.numbers;
        let mode = MODES[usize::from(step.kind / 8) % MODES.len()];
        // Keys have 63 bits; larger inodes have no entries.
        let ino = one % (1 << 43);
        match step.kind % 8 {
            0 => drop(overlay.inode(ino, mode, two, 1)),
            1 => drop(overlay.inode(ino, mode, step.bytes.len() as u64, 2)),
            2 | 3 if !step.bytes.is_empty() => drop(overlay.page(ino, two % (1 << 20), step.bytes)),
            4 | 5 => drop(overlay.name(ino, step.bytes, two, mode)),
            6 => drop(overlay.tombstone(ino, step.bytes)),
            _ => wild.push((ino << 20 | two % (1 << 20), two)),
        }
    }
    wild.into_iter().for_each(|(key, value)| overlay.insert(key, value));
    overlay.attach(&mut image);
    input.overwrite(&mut image[base..]);
    examine_both(|options| options.max_metadata(MAX_METADATA).open_region(Region::from_bytes(image.clone())));
});
