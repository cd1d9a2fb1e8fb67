//! Copies by loads of 16 bytes. Memory that the CPU does not cache answers each load on its own, so the number of loads
//! is what a copy costs; `movntdqa` (SSE4.1) moreover fetches whole lines of write-combining memory.

#![allow(unsafe_code, reason = "loads of shared memory that no Rust type has")]

/// Bytes per step: what one line of write-combining memory brings.
pub(crate) const STEP: usize = 64;
/// Shorter copies are done by words.
pub(crate) const LEAST: usize = 128;

/// Loads a line of 64 bytes from `$src` by `$load`, a load of 16 aligned bytes, and stores it at `$dst`. Expands to
/// assembly, so the caller proves that both lines are there.
#[cfg(target_arch = "x86_64")]
macro_rules! copy_line {
    ($load:literal, $src:expr, $dst:expr) => {
        std::arch::asm!(
            concat!($load, " {a}, [{src}]"),
            concat!($load, " {b}, [{src} + 16]"),
            concat!($load, " {c}, [{src} + 32]"),
            concat!($load, " {d}, [{src} + 48]"),
            "movdqu [{dst}], {a}",
            "movdqu [{dst} + 16], {b}",
            "movdqu [{dst} + 32], {c}",
            "movdqu [{dst} + 48], {d}",
            src = in(reg) $src,
            dst = in(reg) $dst,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack, preserves_flags),
        )
    };
}

/// Copies `blocks` times 64 bytes.
///
/// # Safety
/// `src` is valid for reads and `dst` for writes of `64 * blocks` bytes, they do not overlap, and `src` is a multiple
/// of 64 unless `blocks` is 0. Others may write to the source meanwhile.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn copy(src: *const u8, dst: *mut u8, blocks: usize) {
    let has_streaming_loads = std::arch::is_x86_feature_detected!("sse4.1");
    for at in (0..blocks * STEP).step_by(STEP) {
        let (src, dst) = (src.wrapping_add(at), dst.wrapping_add(at));
        if has_streaming_loads {
            // SAFETY: 64 readable and 64 writable bytes by the contract, the source aligned to 16; the processor has
            // the instruction. Loads in assembly are not accesses of the Rust memory model, so concurrent writers are
            // no data race; they are those of the hardware, which sees them in some order.
            unsafe { copy_line!("movntdqa", src, dst) };
        } else {
            // SAFETY: as above, with SSE2, which every x86-64 processor has.
            unsafe { copy_line!("movdqa", src, dst) };
        }
    }
}

/// Elsewhere by words of 8 bytes: no wider load is known to be single-copy for every processor.
///
/// # Safety
/// As on x86-64.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn copy(src: *const u8, dst: *mut u8, blocks: usize) {
    // SAFETY: the same ranges, and 64 is a multiple of 8.
    unsafe { crate::view::load_words(src, dst, blocks * STEP / 8) };
}

#[cfg(test)]
mod tests {
    use crate::memfd::{HugePages, Memfd};
    use crate::{Mapping, SharedBytes};
    use std::os::fd::AsFd;

    #[test]
    fn wide_copies_are_the_same_bytes_at_every_alignment() {
        let bytes: Vec<u8> =
            (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
        let memfd = Memfd::create("wide", 8192, HugePages::No).unwrap();
        let mut map = Mapping::read_write(memfd.as_fd(), 0, 8192).unwrap();
        map.view_mut().unwrap().copy_from(0, &bytes).unwrap();
        let wide = map.view().with_wide_loads();
        for start in (0..130).chain([4000]) {
            for len in [0, 1, 15, 63, 64, 127, 128, 129, 200, 1000] {
                let mut copy = vec![0xaa; len + 2];
                wide.read_at(start as u64, &mut copy[1..=len]).unwrap();
                assert!(copy[1..=len] == bytes[start..start + len], "{start} {len}");
                assert_eq!((copy[0], copy[len + 1]), (0xaa, 0xaa), "nothing beside it is written");
            }
        }
        assert!(wide.get(1, 4000).unwrap().to_vec() == bytes[1..4001], "parts are wide, too");
        assert!(SharedBytes::from_slice(&bytes).with_wide_loads().to_vec() == bytes);
        assert!(wide.flush_cache() || cfg!(not(target_arch = "x86_64")));
        assert!(wide.get(3, 4997).unwrap().to_vec() == bytes[3..]);
    }
}
