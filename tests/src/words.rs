//! The sums of `shaders/hash.comp`, on the CPU.

/// Two sums over the little-endian 32-bit words of `bytes`, each mixed with its position; the first word has the
/// position `first`. Bytes missing in the last word count as zero.
pub fn sums(bytes: &[u8], first: u32) -> [u32; 2] {
    let mut sums = [0u32; 2];
    for (chunk, position) in bytes.chunks(4).zip(first..) {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        let mut mixed = u32::from_le_bytes(word) ^ position.wrapping_mul(0x9E37_79B1);
        mixed ^= mixed >> 16;
        mixed = mixed.wrapping_mul(0x85EB_CA6B);
        mixed ^= mixed >> 13;
        mixed = mixed.wrapping_mul(0xC2B2_AE35);
        mixed ^= mixed >> 16;
        sums[0] = sums[0].wrapping_add(mixed);
        sums[1] = sums[1].wrapping_add(mixed.wrapping_mul(position.wrapping_mul(0x1656_67B1) | 1));
    }
    sums
}
