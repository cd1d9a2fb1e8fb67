//! Types without blocks, and blocks of 32 elements with one scale.

#![allow(clippy::cast_possible_wrap, reason = "bytes that hold signed integers")]

use super::{half, half_at};

/// Values of 4-bit floats and of the table of IQ4, by their bits.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Twice the values of e2m1.
const FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(super) fn f32(block: &[u8], out: &mut [f32]) {
    out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
}

pub(super) fn f16(block: &[u8], out: &mut [f32]) {
    out[0] = half([block[0], block[1]]);
}

pub(super) fn bf16(block: &[u8], out: &mut [f32]) {
    out[0] = f32::from_bits(u32::from(u16::from_le_bytes([block[0], block[1]])) << 16);
}

/// The low halves of bytes are the first half of the elements, the high halves the second.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    let middle = bytes.len();
    for (at, byte) in bytes.iter().enumerate() {
        out[at] = value(at, byte & 15);
        out[at + middle] = value(at + middle, byte >> 4);
    }
}

/// `f16 d | 16 bytes`
pub(super) fn q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    nibbles(&block[2..], out, |_, bits| scale * (f32::from(bits) - 8.0));
}

/// `f16 d | f16 m | 16 bytes`
pub(super) fn q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..], out, |_, bits| scale * f32::from(bits) + least);
}

/// Element `at` with its fifth bit.
fn fifth(high: u32, at: usize, bits: u8) -> f32 {
    f32::from(bits) + if high >> at & 1 == 1 { 16.0 } else { 0.0 }
}

fn word_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// `f16 d | u32 fifth bits | 16 bytes`
pub(super) fn q5_0(block: &[u8], out: &mut [f32]) {
    let (scale, high) = (half_at(block, 0), word_at(block, 2));
    nibbles(&block[6..], out, |at, bits| scale * (fifth(high, at, bits) - 16.0));
}

/// `f16 d | f16 m | u32 fifth bits | 16 bytes`
pub(super) fn q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, least, high) = (half_at(block, 0), half_at(block, 2), word_at(block, 4));
    nibbles(&block[8..], out, |at, bits| scale * fifth(high, at, bits) + least);
}

/// `f16 d | 32 i8`
pub(super) fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (value, byte) in out.iter_mut().zip(&block[2..]) {
        *value = scale * f32::from(*byte as i8);
    }
}

/// `f16 d | 16 bytes`
pub(super) fn iq4_nl(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    nibbles(&block[2..], out, |_, bits| scale * f32::from(IQ4[usize::from(bits)]));
}

/// `f16 d | u16 high bits of scales | 4 bytes of low bits | 8 times 16 bytes`
pub(super) fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (group, (bytes, out)) in block[8..].chunks_exact(16).zip(out.chunks_exact_mut(32)).enumerate() {
        let low = block[4 + group / 2] >> (4 * (group % 2)) & 15;
        let high = block[2 + group / 4] >> (group % 4 * 2) & 3;
        let bits = low | high << 4;
        let scale = scale * (f32::from(bits) - 32.0);
        nibbles(bytes, out, |_, bits| scale * f32::from(IQ4[usize::from(bits)]));
    }
}

/// `e8m0 scale | 16 bytes`
pub(super) fn mxfp4(block: &[u8], out: &mut [f32]) {
    // Half of 2^(e - 127), since the table has twice the values.
    let scale = match u32::from(block[0]) {
        exponent @ 0..=1 => f32::from_bits(0x0020_0000 << exponent),
        exponent => f32::from_bits((exponent - 1) << 23),
    };
    nibbles(&block[1..], out, |_, bits| scale * f32::from(FP4[usize::from(bits)]));
}
