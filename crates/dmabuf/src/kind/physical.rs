//! Ranges of physical memory, through `/dev/mem`.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::stat::SFlag;

use super::{FdKind, Kind, KindFacts, Layout, Seen};
use crate::class::MemoryClass;
use crate::error::{Error, Result};
use crate::fd::open;
use crate::page::page_size;
use crate::survey::{Offer, access};

/// `/dev/mem`: device number 1:1.
const DEV_MEM: (u64, u64) = (1, 1);
const DEV_MEM_PATH: &str = "/dev/mem";
/// What stands for the length of the physical address space: all that a file offset can name.
const PHYSICAL_LEN: u64 = i64::MAX as u64;
const NAME: &str = "physical range";

pub(super) struct Row;

impl Kind for Row {
    fn facts(&self) -> &'static KindFacts {
        &KindFacts {
            name: NAME,
            class: MemoryClass::PfnMap,
            is_device: false,
            writers: "root, other kernels",
            shrinks: "no",
            pages: "4 KiB",
            coherence: "the machine",
        }
    }

    fn recognise(&self, seen: &Seen<'_>) -> Result<Option<Layout>> {
        let device = seen.stat().st_rdev;
        let is_mem = seen.file_type() == SFlag::S_IFCHR
            && DEV_MEM == (libc::major(device).into(), libc::minor(device).into());
        Ok(is_mem.then(|| Layout { len: PHYSICAL_LEN, unit: page_size(), has_huge_pages: false }))
    }

    fn describe(&self, _: &Seen<'_>, _: &Layout) -> Result<FdKind> {
        Ok(FdKind::Physical)
    }

    fn keeps_pages(&self, _: &FdKind) -> bool {
        false
    }

    fn not_collapsed(&self, _: &FdKind) -> Option<&'static str> {
        Some("a physical range has no pages of its own")
    }

    fn not_mapped(&self, _: BorrowedFd<'_>, offset: u64, len: usize, error: io::Error) -> Error {
        physical_refused(offset, len, error)
    }

    fn offers(&self) -> Vec<Offer> {
        let device = Path::new(DEV_MEM_PATH);
        if !device.exists() {
            let why = "no /dev/mem: needs CONFIG_DEVMEM, and the node in a container";
            return vec![Offer::missing(NAME, why)];
        }
        let note = "reserve the range with memmap=SIZE$ADDRESS on the kernel's command line".to_owned();
        vec![Offer { note, ..Offer::new(NAME, "phys:ADDRESS+LENGTH", access(device)) }]
    }
}

/// Opens `/dev/mem`, whose bytes are those of the physical address space; it is mapped, never read.
///
/// # Errors
/// [`Error::Unavailable`] where the kernel has no `/dev/mem`, [`Error::Refused`] where it does not let this process
/// open it.
pub fn open_physical(write: bool) -> Result<OwnedFd> {
    open(Path::new(DEV_MEM_PATH), write).map_err(|error| match error {
        Error::Os { op, subject, source } => match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO) => Error::Unavailable {
                what: DEV_MEM_PATH.into(),
                needs: "a kernel with CONFIG_DEVMEM and the node (in a container it has to be passed in); devdax or \
                        a PCI device's memory need neither"
                    .into(),
            },
            Some(libc::EPERM) => Error::Refused {
                op,
                subject,
                source,
                advice: "it takes CAP_SYS_RAWIO, and a kernel that is not locked down (Secure Boot); \
                         /dev/daxX.Y needs permission on the node only"
                    .into(),
            },
            Some(libc::EACCES) => Error::Refused {
                op,
                subject,
                source,
                advice: "it belongs to root, and takes CAP_SYS_RAWIO besides".into(),
            },
            _ => Error::Os { op, subject, source },
        },
        other => other,
    })
}

/// What a refused mapping of a physical range means.
fn physical_refused(offset: u64, len: usize, source: io::Error) -> Error {
    let subject = format!("{DEV_MEM_PATH} at {offset:#x}, {len:#x} bytes");
    let advice = match source.raw_os_error() {
        Some(libc::EPERM) => {
            "CONFIG_STRICT_DEVMEM keeps ordinary RAM and what a driver has claimed out of reach: reserve the range \
             with memmap=SIZE$ADDRESS on the kernel's command line, or map what owns it (/dev/daxX.Y, a PCI resource)"
        }
        Some(libc::EINVAL) => {
            "the machine has no such physical addresses, or the start is no multiple of a page"
        }
        Some(libc::EAGAIN) => "the range is mapped with another cache type already; map what owns it instead",
        _ => return Error::os("mmap", subject, source),
    };
    Error::Refused { op: "mmap", subject, source, advice: advice.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_physical_memory_become_advice() {
        let refused = |errno| physical_refused(0x800_0000, 4096, io::Error::from_raw_os_error(errno));
        let error = refused(libc::EPERM);
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        let text = error.to_string();
        assert!(text.contains("mmap /dev/mem at 0x8000000, 0x1000 bytes: Operation not permitted"), "{text}");
        assert!(text.contains("memmap=SIZE$ADDRESS"), "{text}");
        assert!(refused(libc::EINVAL).to_string().contains("no such physical addresses"));
        assert!(refused(libc::EAGAIN).to_string().contains("cache type"));
        assert!(matches!(refused(libc::ENOMEM), Error::Os { .. }));
        if !Path::new(DEV_MEM_PATH).exists() {
            let error = open_physical(false).unwrap_err();
            assert!(
                matches!(error, Error::Unavailable { .. }) && error.to_string().contains("CONFIG_DEVMEM"),
                "{error}"
            );
        }
    }
}
