//! Buffers of the kernel's dma-heaps, through the `dma-heap` crate.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use dma_heap::{Heap, HeapKind};

use crate::error::{Error, Result};
use crate::kind::{HEAPS, heaps};
use crate::memfd::check_available;
use crate::numa::on_node;

/// Allocates a zeroed dma-buf of `len` bytes, rounded up to whole pages, from the heap `name`. The descriptor is open
/// for reading and writing and close-on-exec.
///
/// Heaps know no limit: the kernel ends processes rather than refuse, so `len` is compared with the memory that is
/// available first.
///
/// # Errors
/// [`Error::Invalid`] for a length of 0 or beyond the available memory, or a name that is not a plain file name;
/// [`Error::Unavailable`] if there is no such heap; [`Error::Os`] for the rest (EACCES: the node belongs to root).
pub fn heap_allocate(name: &str, len: u64) -> Result<OwnedFd> {
    heap_allocate_on(name, len, None)
}

/// As [`heap_allocate`], from one NUMA node if the heap takes ordinary memory (`system` does).
///
/// # Errors
/// As [`heap_allocate`], and [`Error::Unavailable`] for a node that this machine does not have.
pub fn heap_allocate_on(name: &str, len: u64, node: Option<u32>) -> Result<OwnedFd> {
    let what = || format!("dma-heap {name:?}");
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(Error::invalid(what(), "is not a file name in /dev/dma_heap"));
    }
    if len == 0 {
        return Err(Error::invalid(what(), "a buffer needs at least 1 byte"));
    }
    check_available(&what(), len)?;
    let len =
        usize::try_from(len).map_err(|_| Error::invalid(what(), format!("{len} bytes are too many")))?;
    let path = Path::new(HEAPS).join(name);
    let subject = path.display().to_string();
    let heap = Heap::new(HeapKind::Custom(path)).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::Unavailable {
            what: what(),
            needs: match heaps() {
                found if found.is_empty() => {
                    "a kernel with CONFIG_DMABUF_HEAPS and CONFIG_DMABUF_HEAPS_SYSTEM".into()
                }
                found => format!("a heap of that name; there are: {}", found.join(" ")),
            },
        },
        _ => Error::os("open", &subject, e),
    })?;
    on_node(node, || heap.allocate(len).map_err(|e| Error::os("DMA_HEAP_IOCTL_ALLOC", &subject, e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_arguments_are_refused_before_any_device() {
        for name in ["", ".", "..", "a/b", "../udmabuf", "a\0"] {
            let error = heap_allocate(name, 4096).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{name:?}: {error}");
        }
        assert!(matches!(heap_allocate("system", 0), Err(Error::Invalid { .. })));
    }

    #[test]
    fn more_than_the_memory_is_refused_with_both_numbers() {
        let error = heap_allocate("system", 1 << 50).unwrap_err().to_string();
        assert!(error.contains("1125899906842624 bytes asked for, but only "), "{error}");
        assert!(error.ends_with(" are available"), "{error}");
    }

    #[test]
    fn a_heap_that_is_not_there_is_named() {
        let error = heap_allocate("no-such-heap", 4096).unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("no-such-heap"), "{error}");
    }
}
