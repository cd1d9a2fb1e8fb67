//! Blocks of 256 elements that are -1, 0 or 1 times one scale.

use super::half_at;

/// `48 bytes of five elements | 4 bytes of four elements | f16 d`
pub(super) fn tq1_0(block: &[u8], out: &mut [f32]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let scale = half_at(block, 52);
    let mut out = out.iter_mut();
    // Digit by digit of the bytes in a stretch.
    for (bytes, digits) in [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)] {
        for power in &POWERS[..digits] {
            for (byte, value) in bytes.iter().zip(&mut out) {
                let digit = (u16::from(byte.wrapping_mul(*power)) * 3) >> 8;
                *value = scale * (f32::from(digit) - 1.0);
            }
        }
    }
}

/// `64 bytes of four elements | f16 d`
pub(super) fn tq2_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 64);
    for (row, out) in out.chunks_exact_mut(32).enumerate() {
        let (bytes, shift) = (&block[row / 4 * 32..], row % 4 * 2);
        for (value, byte) in out.iter_mut().zip(bytes) {
            *value = scale * (f32::from(byte >> shift & 3) - 1.0);
        }
    }
}
