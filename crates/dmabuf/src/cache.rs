//! Writing CPU caches back to memory, for memory that machines share without keeping each other's caches coherent.

#![allow(unsafe_code, reason = "cache instructions")]

/// Bytes of a cache line on every x86-64 processor.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Writes the cache lines around `len` bytes at `ptr` back to memory and drops them, so that the next load comes from
/// memory. Returns `false` where this processor's instructions for it are not known here (all but x86-64): then only
/// the order of accesses is kept.
///
/// # Safety
/// The bytes are mapped readable. With a length of 0 any address will do.
pub(crate) unsafe fn flush(ptr: *const u8, len: usize) -> bool {
    // There would be a line around no bytes, too, and it need not be mapped.
    if len == 0 {
        return cfg!(target_arch = "x86_64");
    }
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    #[cfg(target_arch = "x86_64")]
    {
        let optimised = has_clflushopt();
        let start = ptr.addr() - ptr.addr() % LINE;
        for line in (start..ptr.addr() + len).step_by(LINE) {
            let line = ptr.with_addr(line);
            if optimised {
                // SAFETY: the line holds a byte of the readable range, and a line never crosses a page, so it is
                // mapped; the instruction changes no memory and no flags. The processor has it (CPUID).
                unsafe {
                    std::arch::asm!("clflushopt [{0}]", in(reg) line, options(nostack, preserves_flags))
                };
            } else {
                // SAFETY: as above; every x86-64 processor has this one.
                unsafe { std::arch::x86_64::_mm_clflush(line) };
            }
        }
        // Orders the write-backs before what follows.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        true
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (ptr, len);
        false
    }
}

/// CPUID leaf 7, EBX bit 23; the standard library does not know this feature.
#[cfg(target_arch = "x86_64")]
fn has_clflushopt() -> bool {
    use std::sync::OnceLock;
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let highest = std::arch::x86_64::__cpuid(0).eax;
        highest >= 7 && std::arch::x86_64::__cpuid_count(7, 0).ebx & (1 << 23) != 0
    })
}

#[cfg(test)]
mod tests {
    use crate::SharedBytes;

    #[test]
    fn no_bytes_have_no_cache_line() {
        // Its address is not mapped: a flush there ends the process.
        assert_eq!(SharedBytes::empty().flush_cache(), cfg!(target_arch = "x86_64"));
        assert_eq!(SharedBytes::from_slice(&[1]).flush_cache(), cfg!(target_arch = "x86_64"));
    }
}
