//! Opens any bytes as an image and uses everything that it offers.
//!
//! The input is the image. Most of an image is padding, so that blind mutation would mostly change bytes that nobody
//! reads: the mutator below aims at places that are in use, with the values that break arithmetic.

#![no_main]

#[path = "../../tests/src/examine.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod examine;

use daxfs::{OpenOptions, Region};
use examine::{examine, examine_both};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

/// Enough for every seed; a longer claim is refused before memory is taken.
const MAX_METADATA: u64 = 16 << 20;

fuzz_target!(|data: &[u8]| {
    let open = |options: OpenOptions| {
        options.max_metadata(MAX_METADATA).open_region(Region::from_bytes(data.to_vec()))
    };
    examine_both(open);
    // A split image keeps its file data elsewhere: here in a short file, so that extents end before, in and behind it.
    if let Ok(image) = open(OpenOptions::new().backing(Region::from_bytes(vec![0x5a; 10_000]))) {
        examine(&image);
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = Random(u64::from(seed));
    if size < 8 || random.below(4) == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let image = &mut data[..size];
    for _ in 0..=random.below(3) {
        let at = place_in_use(image, &mut random);
        if random.below(2) == 0 {
            let end = (at + 64).min(size);
            let window = &mut image[at..end];
            fuzzer_mutate(window, window.len(), window.len());
        } else {
            let width = 1 << random.below(4);
            let at = (at & !(width - 1)).min(size - width);
            let value = AWKWARD[random.below(AWKWARD.len())].to_le_bytes();
            image[at..at + width].copy_from_slice(&value[..width]);
        }
    }
    size
});

/// Values at the edges of the format's fields.
const AWKWARD: [u64; 12] = [
    0,
    1,
    2,
    0xff,
    271,
    272,
    0x1000,
    0x8000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_f000,
    0xffff_ffff_ffff_ffff,
];

/// The first byte that is not zero at or after a random place.
fn place_in_use(image: &[u8], random: &mut Random) -> usize {
    let start = random.below(image.len());
    image[start..].iter().position(|byte| *byte != 0).map_or(start, |step| start + step)
}

/// SplitMix64: the same choices for the same seed, as libFuzzer requires.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}
