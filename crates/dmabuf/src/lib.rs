//! Shareable memory on Linux: making it, describing it, mapping it, passing it on, and reading it while others write.
//!
//! This is the leaf crate of the workspace: every system call on memory and every read of memory that another process,
//! kernel or device may be writing happens here. It knows nothing of any data format.
//!
//! Three rules hold throughout:
//! 1. **No references to shared memory.** Bytes are reached through [`SharedBytes`] (bounded pointer, relaxed atomic
//!    loads); a `&[u8]` comes only out of an `unsafe` function whose caller promises that nobody writes.
//! 2. **Descriptors are owned or borrowed, never numbers**, and all are close-on-exec; the one exception is
//!    [`duplicate`], for numbers inherited from a parent.
//! 3. **A mapping lies within its object** when it is made. Whether it stays so depends on the kind of memory:
//!
//! | memory | made by | can shrink (SIGBUS) | contents final | huge pages | devices import it |
//! |---|---|---|---|---|---|
//! | memfd | [`Memfd::create`] | not with [`Seals::SHRINK`] | with [`Seals::IMMUTABLE`], proven by the kernel | [`allocate_huge`], hugetlb | some (software Vulkan) |
//! | udmabuf | [`udmabuf_from`] | no | never: always writable | no | yes |
//! | dma-heap buffer | [`heap_allocate`] | no | never: always writable | no | yes |
//! | dma-buf of a driver | [`recv_fds`], [`duplicate`] | no | not for this process if the descriptor is read-only | no | yes |
//! | devdax | [`open_memory`] | no | no proof | by the device, 2 MiB | by address |
//! | PCI memory | [`open_memory`] | no | no proof | no | by address |
//! | physical range | [`open_physical`] | no | no proof | no | no |
//! | file | [`open_read_only`] | **yes**, by every writer | with fs-verity ([`measure_verity`]), proven by the kernel | page cache, on tmpfs [`allocate_huge`] | no |
//!
//! CPU access to dma-bufs belongs between [`CpuAccess::begin`] and [`CpuAccess::finish`], which order caches and do not
//! exclude others. Copying out of a mapping works for every kind; what pins pages (O_DIRECT, `MSG_ZEROCOPY`, io_uring
//! buffers, RDMA) fails with EFAULT on dma-bufs, PCI and physical memory: [`MemoryClass`] says which, and [`Transfer`]
//! sends memory by the best way that is left.
//!
//! ```
//! use std::os::fd::AsFd;
//! use dmabuf::{HugePages, Mapping, Memfd, Seals, describe};
//!
//! # fn main() -> dmabuf::Result<()> {
//! let memfd = Memfd::create("example", 4096, HugePages::No)?;
//! let mut writer = Mapping::read_write(memfd.as_fd(), 0, 4096)?;
//! writer.view_mut()?.copy_from(100, b"weights")?;
//! drop(writer); // the kernel refuses the write seal while a writable mapping lives
//! memfd.seal(Seals::IMMUTABLE)?;
//!
//! let reader = Mapping::read_only(memfd.as_fd(), 0, 4096)?;
//! let mut bytes = [0; 7];
//! reader.view().read_at(100, &mut bytes)?;
//! assert_eq!(&bytes, b"weights");
//!
//! // Sealed against writing and shrinking: here a slice is sound.
//! // SAFETY: the kernel refuses every write and truncation of this memory from now on.
//! let slice = unsafe { reader.view().as_slice() };
//! assert_eq!(&slice[100..107], b"weights");
//! assert!(Mapping::read_write(memfd.as_fd(), 0, 4096).is_err());
//! assert_eq!(describe(memfd.as_fd())?.len, 4096);
//! # Ok(())
//! # }
//! ```

mod advice;
mod again;
mod beneath;
mod cache;
mod class;
mod describe;
mod direct;
mod error;
pub mod faults;
mod fd;
mod fdpass;
mod fork;
mod heap;
mod hex;
mod kind;
mod loops;
mod map;
mod memfd;
mod mount;
mod mounted;
mod numa;
mod page;
mod seals;
mod socket;
mod standard;
pub mod survey;
mod sync;
mod transfer;
mod udmabuf;
mod verity;
mod view;
mod view_mut;
mod wide;

pub use advice::PageStats;
pub use again::uninterrupted;
pub use beneath::open_beneath;
pub use class::MemoryClass;
pub use describe::{FdInfo, describe};
pub use direct::DirectFile;
pub use error::{Error, Result};
pub use fd::{duplicate, fd_link, open_no_follow, open_read_only, reopen, same_open_file};
pub use fdpass::{recv_bytes, recv_fds, send_fds};
pub use fork::around_forks;
pub use heap::{heap_allocate, heap_allocate_on};
pub use hex::Hex;
pub use kind::{
    FdKind, KindFacts, PciBar, check_present, heaps, kinds, offers, open_memory, open_physical, pci_bars,
    syncs_reads, udmabuf_limit, udmabuf_list_limit,
};
pub use map::Mapping;
pub use memfd::{HugePages, Memfd, allocate_huge};
pub use mount::{ErofsMount, Mountable, has_file_system, mount, mount_erofs, unmount};
pub use mounted::{Mounted, mounted, mounts};
pub use numa::nodes_of;
pub use page::{huge_page_size, page_size};
pub use seals::{Seals, seals};
pub use socket::{
    Peer, accept_seqpacket, connect_seqpacket, is_all_read, listen_seqpacket, pair_seqpacket, peer,
    peer_groups, set_timeout,
};
pub use standard::fill_standard_descriptors;
pub use sync::{Access, CpuAccess};
pub use transfer::{Transfer, Way, wait_readable, wait_writable};
pub use udmabuf::{udmabuf_from, udmabuf_join};
pub use verity::{VerityDigest, enable_verity, measure_verity};
pub use view::SharedBytes;
pub use view_mut::SharedBytesMut;
