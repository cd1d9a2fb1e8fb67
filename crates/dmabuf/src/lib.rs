//! Shareable memory on Linux.

mod advice;
mod describe;
mod error;
mod fdpass;
mod heap;
mod map;
mod memfd;
mod sync;
mod udmabuf;
mod view;

pub use advice::PageStats;
pub use describe::{FdInfo, FdKind, describe, duplicate, open_read_only};
pub use error::{Error, Result};
pub use fdpass::{recv_fds, send_fds};
pub use heap::{heap_allocate, heaps};
pub use map::{Mapping, page_size};
pub use memfd::{HugePages, Memfd, Seals, allocate_huge, seals};
pub use sync::{Access, CpuAccess};
pub use udmabuf::{udmabuf_from, udmabuf_limit};
pub use view::{SharedBytes, SharedBytesMut};
