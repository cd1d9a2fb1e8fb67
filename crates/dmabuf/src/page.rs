//! Sizes of pages.

#![forbid(unsafe_code)]

use std::sync::OnceLock;

/// Size of an ordinary page in bytes.
pub fn page_size() -> u64 {
    match nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE) {
        Ok(Some(size)) if size > 0 => size.cast_unsigned(),
        // POSIX wants an answer; 64 KiB is a multiple of every page size that Linux uses.
        _ => 64 << 10,
    }
}

/// Size of a transparent huge page in bytes: 2 MiB where ordinary pages have 4 KiB, 32 MiB with 16 KiB, 512 MiB with
/// 64 KiB.
pub fn huge_page_size() -> u64 {
    static SIZE: OnceLock<u64> = OnceLock::new();
    *SIZE.get_or_init(|| {
        let told = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
        let told = told.ok().and_then(|text| text.trim().parse().ok());
        // What one page of entries covers, 8 bytes each. Where the kernel does not say, it has no such pages.
        told.filter(|size| is_huge(*size)).unwrap_or_else(|| page_size() * (page_size() / 8))
    })
}

/// Whether addresses can be congruent modulo it.
fn is_huge(size: u64) -> bool {
    size.is_power_of_two() && (page_size()..=1 << 40).contains(&size)
}
