//! Opens a small image of version 5 with any log of its branch "main": entries as a kernel makes them, in any order, and
//! then words of table and log overwritten.

#![no_main]

mod changes;
#[path = "../../tests/src/delta.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod delta;
#[path = "../../tests/src/examine.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod examine;
#[path = "../../tests/src/forge.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod forge;

use changes::Input;
use daxfs::Region;
use delta::Log;
use examine::examine_both;
use forge::Version;
use libfuzzer_sys::fuzz_target;

/// Enough for every input; what would take more is refused.
const MAX_METADATA: u64 = 4 << 20;
const MODES: [u32; 4] = [0o100_644, 0o040_755, 0o120_777, 0];

fuzz_target!(|data: &[u8]| {
    let mut image = forge::mini(Version::V5).finish();
    let base = image.len();
    let mut log = Log::new();
    let mut input = Input::new(data);
    while let Some(step) = input.step() {
        let [one, two] = step.numbers;
        let mode = MODES[usize::from(step.kind / 16) % MODES.len()];
        let half = step.bytes.split_at(step.bytes.len() / 2);
        log = match step.kind % 16 {
            0 => log.write(one, two, step.bytes, 0),
            1 => log.write(one, two, step.bytes, 8),
            2 | 3 => log.create(one, two, mode, step.bytes),
            4 => log.delete(one, two, step.bytes),
            5 => log.truncate(one, two),
            6 => log.rename(one, (two, half.0), (two, half.1)),
            7 => log.rename(one, (two, half.0), (1, half.1)),
            8 => log.setattr(one, 0xf, mode, 1, 2, two),
            9 => log.setattr(one, u32::from(step.kind), mode, 1, 2, two),
            10 => log.symlink(one, two, half.0, half.1),
            11 => log.push(u32::from(step.kind), one, &[step.bytes]),
            12 => log.push_sized(1 + u32::from(step.kind / 16), one, two as u32, &[step.bytes]),
            _ => log.create(1, one, mode, step.bytes),
        };
    }
    delta::attach_main(&mut image, &log);
    input.overwrite(&mut image[base..]);
    examine_both(|options| options.max_metadata(MAX_METADATA).open_region(Region::from_bytes(image.clone())));
});
