//! Blocks of 256 elements whose scales are quantised themselves.

#![allow(clippy::cast_possible_wrap, reason = "bytes that hold signed integers")]

use super::half_at;

/// `16 scales and minimums of 4 bits | 64 bytes | f16 d | f16 dmin`
pub(super) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (scale, least) = (half_at(block, 80), half_at(block, 82));
    for (group, (out, packed)) in out.chunks_exact_mut(16).zip(scales).enumerate() {
        let (scale, least) = (scale * f32::from(packed & 15), least * f32::from(packed >> 4));
        // Groups 0 to 7 are in bytes 0 to 31, two for each pair of bits.
        let (start, shift) = (group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2);
        for (value, byte) in out.iter_mut().zip(&quants[start..]) {
            *value = scale * f32::from(byte >> shift & 3) - least;
        }
    }
}

/// `32 bytes of third bits | 64 bytes | 16 scales of 6 bits | f16 d`
pub(super) fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high, quants, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half_at(block, 108);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let low = packed[group % 8] >> (group / 8 * 4) & 15;
        let bits = low | (packed[8 + group % 4] >> (group / 4 * 2) & 3) << 4;
        let scale = scale * (f32::from(bits) - 32.0);
        let (start, shift) = (group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2);
        let third = group / 2;
        for (at, value) in out.iter_mut().enumerate() {
            let bits = quants[start + at] >> shift & 3;
            let is_high = high[group % 2 * 16 + at] >> third & 1 == 1;
            *value = scale * (f32::from(bits) - if is_high { 0.0 } else { 4.0 });
        }
    }
}

/// Scale and minimum number `group` of 8, of 6 bits each, in 12 bytes.
fn scale_and_least(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, least) = match group {
        0..=3 => (packed[group] & 63, packed[group + 4] & 63),
        _ => (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        ),
    };
    (f32::from(scale), f32::from(least))
}

/// `f16 d | f16 dmin | 8 scales and minimums | 128 bytes`
pub(super) fn q4_k(block: &[u8], out: &mut [f32]) {
    with_least(block, &block[16..], out, |_, _, bits| bits);
}

/// `f16 d | f16 dmin | 8 scales and minimums | 32 bytes of fifth bits | 128 bytes`
pub(super) fn q5_k(block: &[u8], out: &mut [f32]) {
    let high = &block[16..48];
    with_least(block, &block[48..], out, |group, at, bits| bits | (high[at] >> group & 1) << 4);
}

/// Groups of 32 elements; two of them share their bytes.
fn with_least(block: &[u8], quants: &[u8], out: &mut [f32], bits: impl Fn(usize, usize, u8) -> u8) {
    let (scale, least, packed) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (own_scale, own_least) = scale_and_least(packed, group);
        let (scale, least) = (scale * own_scale, least * own_least);
        let (start, shift) = (group / 2 * 32, group % 2 * 4);
        for (at, value) in out.iter_mut().enumerate() {
            let bits = bits(group, at, quants[start + at] >> shift & 15);
            *value = scale * f32::from(bits) - least;
        }
    }
}

/// `128 bytes of low bits | 64 bytes of high bits | 16 scales, i8 | f16 d`
pub(super) fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for (group, (out, own)) in out.chunks_exact_mut(16).zip(scales).enumerate() {
        let scale = scale * f32::from(*own as i8);
        // Of 128 elements each: four rows of 32, two groups to a row.
        let (half, row, column) = (group / 8, group % 8 / 2, group % 2 * 16);
        let (low, shift) = (&low[half * 64 + row % 2 * 32 + column..], row / 2 * 4);
        let high = &high[half * 32 + column..];
        for (at, value) in out.iter_mut().enumerate() {
            let bits = low[at] >> shift & 15 | (high[at] >> (row * 2) & 3) << 4;
            *value = scale * (f32::from(bits) - 32.0);
        }
    }
}
