//! Memory that stands behind device files: devdax, the memory of PCI devices, physical ranges. Which device a file
//! belongs to is told by sysfs; the functions take its root, so that tests can show them another one.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::sys::uio::pread;

use crate::describe::{FdKind, fd_name, open};
use crate::error::{Error, Result};

/// `/dev/mem`: device number 1:1.
pub(crate) const DEV_MEM: (u64, u64) = (1, 1);
const DEV_MEM_PATH: &str = "/dev/mem";
/// `IORESOURCE_MEM` of `linux/ioport.h`.
const RESOURCE_MEM: u64 = 0x200;
/// Base address registers that a PCI device can have.
const BARS: usize = 6;

/// A base address register of a PCI device that leads to memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciBar {
    /// The file to map: `resourceN_wc` where the kernel offers it, else `resourceN`.
    pub path: PathBuf,
    /// Number of the register, 0 to 5.
    pub number: usize,
    /// Bytes.
    pub len: u64,
    /// Whether stores and loads through the file are combined (`_wc`); else they are uncached.
    pub write_combining: bool,
}

/// Opens memory by its path: a regular file, a devdax device, the memory of a PCI device. A directory of
/// `/sys/bus/pci/devices` stands for the largest memory of that device, and `resourceN` for `resourceN_wc` where
/// there is one: uncached reads are the slowest there are.
///
/// # Errors
/// [`Error::Unavailable`] for a devdax device without a driver and a PCI device without memory; [`Error::Os`] with
/// the kernel's answer.
pub fn open_memory(path: &Path, write: bool) -> Result<OwnedFd> {
    let found;
    let path = match pci_memory(path)? {
        Some(bar) => {
            found = bar;
            found.as_path()
        }
        None => path,
    };
    open(path, write).map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) if is_devdax(Path::new("/sys"), path) => no_driver(path),
        _ => error,
    })
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
pub(crate) fn physical_refused(offset: u64, len: usize, source: io::Error) -> Error {
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

fn no_driver(path: &Path) -> Error {
    let name = path.file_name().map_or_else(|| path.to_string_lossy(), OsStr::to_string_lossy);
    Error::Unavailable {
        what: format!("/dev/{name}"),
        needs: format!(
            "a driver, and none is bound: modprobe device_dax, then `daxctl reconfigure-device -m devdax -f {name}`, \
             or write {name} to /sys/bus/dax/drivers/device_dax/new_id"
        ),
    }
}

/// Whether the device of a descriptor of this kind still has its memory: a devdax device its driver, a PCI device its
/// place on the bus. Other kinds do not go away. A mapping outlives the device, and reading it is SIGBUS (devdax) or
/// bytes of nobody (PCI), so this is asked right before and after reading where that can be.
///
/// # Errors
/// [`Error::Unavailable`] with what has gone.
pub fn check_present(fd: BorrowedFd<'_>, kind: &FdKind) -> Result<()> {
    match kind {
        FdKind::DevDax { .. } => {
            let stat = fstat(fd).map_err(|e| Error::os("fstat", fd_name(fd), e))?;
            let (major, minor) = (libc::major(stat.st_rdev), libc::minor(stat.st_rdev));
            if Path::new(&format!("/sys/dev/char/{major}:{minor}/driver")).exists() {
                return Ok(());
            }
            Err(no_driver(Path::new(&fd_name(fd))))
        }
        FdKind::PciMemory { .. } => pci_present(fd),
        _ => Ok(()),
    }
}

/// Whether the PCI device of an open `resourceN` is still on the bus: sysfs says so to every read(2), and a read of no
/// bytes touches no device.
pub(crate) fn pci_present(fd: BorrowedFd<'_>) -> Result<()> {
    match pread(fd, &mut [], 0) {
        Err(Errno::ENODEV) => Err(Error::Unavailable {
            what: fd_name(fd),
            needs: "the PCI device, which was removed; `echo 1 > /sys/bus/pci/rescan` finds it again if it is still \
                    there, and then it has to be opened again"
                .into(),
        }),
        _ => Ok(()),
    }
}

/// Whether the node belongs to a device of the dax bus.
fn is_devdax(sysfs: &Path, node: &Path) -> bool {
    fs::metadata(node).is_ok_and(|meta| {
        meta.file_type().is_char_device() && sysfs_device(sysfs, meta.rdev(), "dax").is_some()
    })
}

/// Directory of a character device in sysfs, if it is of that bus.
fn sysfs_device(sysfs: &Path, device: libc::dev_t, bus: &str) -> Option<PathBuf> {
    let dir = sysfs.join(format!("dev/char/{}:{}", libc::major(device), libc::minor(device)));
    let link = fs::read_link(dir.join("subsystem")).ok()?;
    (link.file_name() == Some(OsStr::new(bus))).then_some(dir)
}

/// Size and alignment of a device-dax device, `None` for other character devices. fstat knows neither.
///
/// # Errors
/// [`Error::Unavailable`] for a device without a driver.
pub(crate) fn devdax(sysfs: &Path, device: libc::dev_t) -> Result<Option<(u64, u64)>> {
    let Some(dir) = sysfs_device(sysfs, device, "dax") else { return Ok(None) };
    // A node that was unbound while somebody has it open can still be opened, and mapping it is a fault in the kernel.
    if !dir.join("driver").exists() {
        let node = fs::read_link(&dir).unwrap_or_else(|_| dir.clone());
        return Err(no_driver(&node));
    }
    let (size, align) = (read_number(&dir.join("size"))?, read_number(&dir.join("align"))?);
    if !align.is_power_of_two() {
        let why = format!("alignment {align} is no power of two");
        return Err(Error::invalid(dir.display().to_string(), why));
    }
    Ok(Some((size, align)))
}

/// The decimal number in a file of sysfs.
pub(crate) fn read_number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).map_err(|e| Error::os("read", path.display().to_string(), e))?;
    let wrong = || Error::invalid(path.display().to_string(), format!("{:?} is no number", text.trim()));
    text.trim().parse().map_err(|_| wrong())
}

/// Whether a file of sysfs with this path is the memory of a PCI device, and if so, whether it is write-combining.
/// `None` for all other files.
pub(crate) fn pci_resource(path: &Path) -> Option<bool> {
    let name = path.file_name()?.to_str()?.strip_prefix("resource")?;
    let (number, write_combining) = match name.strip_suffix("_wc") {
        Some(number) => (number, true),
        None => (name, false),
    };
    matches!(number.as_bytes(), [b'0'..=b'5']).then_some(write_combining)
}

/// The file to map for a path below `/sys` that means the memory of a PCI device; `None` for other paths.
fn pci_memory(path: &Path) -> Result<Option<PathBuf>> {
    if !path.as_os_str().as_bytes().starts_with(b"/sys/") {
        return Ok(None);
    }
    match pci_resource(path) {
        Some(false) => {
            let mut combining = path.as_os_str().to_owned();
            combining.push("_wc");
            let combining = PathBuf::from(combining);
            Ok(Some(if combining.exists() { combining } else { path.to_path_buf() }))
        }
        Some(true) => Ok(None),
        None if path.join("resource").is_file() => {
            let best = pci_bars(path)?.into_iter().max_by_key(|bar| bar.len);
            best.map(|bar| Some(bar.path)).ok_or_else(|| Error::Unavailable {
                what: format!("memory of the PCI device {}", path.display()),
                needs: "a memory BAR: this device has only registers in I/O space, or none".into(),
            })
        }
        None => Ok(None),
    }
}

/// The memory of the PCI device whose directory in sysfs this is, in order of the registers.
///
/// # Errors
/// [`Error::Os`] if its list of resources cannot be read.
pub fn pci_bars(device: &Path) -> Result<Vec<PciBar>> {
    let list = device.join("resource");
    let text = fs::read_to_string(&list).map_err(|e| Error::os("read", list.display().to_string(), e))?;
    let bars = text.lines().take(BARS).enumerate().filter_map(|(number, line)| {
        let mut words = line.split_whitespace().map(|word| {
            word.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0)
        });
        let (start, end, flags) = (words.next()?, words.next()?, words.next()?);
        let plain = device.join(format!("resource{number}"));
        if flags & RESOURCE_MEM == 0 || end <= start || !plain.exists() {
            return None;
        }
        let combining = device.join(format!("resource{number}_wc"));
        let write_combining = combining.exists();
        let path = if write_combining { combining } else { plain };
        Some(PciBar { path, number, len: end - start + 1, write_combining })
    });
    Ok(bars.collect())
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
