//! What the kind of a mapping means for those who use it: the rules that callers would have to know otherwise.

/// How memory is mapped, which decides on what can be done with the mapping.
///
/// | class | copied by the kernel (`write`, `send`) | pinned (O_DIRECT, `MSG_ZEROCOPY`, RDMA) | populate | loads |
/// |---|---|---|---|---|
/// | [`Pages`](Self::Pages) | yes | yes | yes | words |
/// | [`DevicePages`](Self::DevicePages) | yes | yes, read-only mappings for reading | yes | words |
/// | [`PfnMap`](Self::PfnMap) | yes | EFAULT | never: the driver maps all or by faults | 16 bytes |
/// | [`WriteCombining`](Self::WriteCombining) | yes, slowly | EFAULT | never: all is mapped | 16 bytes |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemoryClass {
    /// Ordinary pages of the page cache: files and memfds, and memory of this process.
    Pages,
    /// Memory of a device that the kernel has page structures for: devdax.
    DevicePages,
    /// Page frames without page structures: dma-bufs, `/dev/mem`. How they are cached is up to the exporter.
    PfnMap,
    /// The same, not cached by the CPU: memory of PCI devices. Each load goes to the device.
    WriteCombining,
}

impl MemoryClass {
    /// All classes.
    pub const ALL: [MemoryClass; 4] = [Self::Pages, Self::DevicePages, Self::PfnMap, Self::WriteCombining];

    /// Whether the kernel can map all pages ahead of their use.
    #[must_use]
    pub fn can_populate(self) -> bool {
        matches!(self, MemoryClass::Pages | MemoryClass::DevicePages)
    }

    /// Whether devices and zero-copy calls can pin the pages.
    #[must_use]
    pub fn can_pin(self) -> bool {
        self.can_populate()
    }

    /// Whether copies use loads of 16 bytes: memory that the CPU does not cache answers each load on its own, so
    /// that half the loads take half the time, and streaming loads fetch whole lines of write-combining memory.
    #[must_use]
    pub fn has_wide_loads(self) -> bool {
        matches!(self, MemoryClass::PfnMap | MemoryClass::WriteCombining)
    }

    /// A word for people and programs: `pages`, `device pages`, `page frames`, `write-combining`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            MemoryClass::Pages => "pages",
            MemoryClass::DevicePages => "device pages",
            MemoryClass::PfnMap => "page frames",
            MemoryClass::WriteCombining => "write-combining",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinning_and_populating_go_with_page_structures() {
        for (class, pages) in [
            (MemoryClass::Pages, true),
            (MemoryClass::DevicePages, true),
            (MemoryClass::PfnMap, false),
            (MemoryClass::WriteCombining, false),
        ] {
            assert_eq!(
                (class.can_pin(), class.can_populate(), class.has_wide_loads()),
                (pages, pages, !pages)
            );
        }
    }
}
