//! Memory of PCI devices, by their files in sysfs.

use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::uio::pread;

use super::{FdKind, Kind, KindFacts, Layout, Seen};
use crate::class::MemoryClass;
use crate::error::{Error, Result};
use crate::fd::fd_name;
use crate::page::page_size;
use crate::survey::{Offer, access, entries, link_name};

/// `SYSFS_MAGIC` of `linux/magic.h`.
const SYSFS_MAGIC: u32 = 0x6265_6572;
/// `IORESOURCE_MEM` of `linux/ioport.h`.
const RESOURCE_MEM: u64 = 0x200;
/// Base address registers that a PCI device can have.
const BARS: usize = 6;
/// Vendor and device of QEMU's shared memory between virtual machines.
const IVSHMEM: (u16, u16) = (0x1af4, 0x1110);
/// BARs below this are registers.
const SMALLEST_MEMORY: u64 = 1 << 20;
const NAME: &str = "PCI memory";

pub(super) struct Row;

impl Kind for Row {
    fn facts(&self) -> &'static KindFacts {
        &KindFacts {
            name: NAME,
            class: MemoryClass::WriteCombining,
            is_device: true,
            writers: "the device, every user who may open it, other VMs",
            shrinks: "no, but it can go away",
            pages: "4 KiB, not cached",
            coherence: "the bus",
        }
    }

    fn recognise(&self, seen: &Seen<'_>) -> Result<Option<Layout>> {
        if !seen.is_file_of(SYSFS_MAGIC) {
            return Ok(None);
        }
        if seen.link().and_then(pci_resource).is_none() {
            return seen.refuse("it is a file of sysfs other than the memory of a PCI device");
        }
        pci_present(seen.fd)?;
        Ok(Some(Layout { len: seen.file_len(), unit: page_size(), has_huge_pages: false }))
    }

    fn describe(&self, seen: &Seen<'_>, _: &Layout) -> Result<FdKind> {
        let write_combining = seen.link().and_then(pci_resource).unwrap_or(false);
        Ok(FdKind::PciMemory { write_combining })
    }

    fn keeps_pages(&self, _: &FdKind) -> bool {
        false
    }

    fn not_collapsed(&self, _: &FdKind) -> Option<&'static str> {
        Some("the memory of a PCI device has no pages of its own")
    }

    fn check_present(&self, fd: BorrowedFd<'_>) -> Result<()> {
        pci_present(fd)
    }

    fn find(&self, path: &Path) -> Result<Option<PathBuf>> {
        resource_of(path)
    }

    fn offers(&self) -> Vec<Offer> {
        let found = pci_memory(Path::new("/sys"));
        if found.is_empty() {
            return vec![Offer::missing(NAME, "no PCI device with memory of 1 MiB or more")];
        }
        found
    }
}

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

/// PCI memory of at least 1 MiB in a sysfs, sorted by device.
fn pci_memory(sysfs: &Path) -> Vec<Offer> {
    let hex = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        u16::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    };
    let mut found = Vec::new();
    for dir in entries(&sysfs.join("bus/pci/devices")) {
        let (Some(vendor), Some(device), Ok(bars)) =
            (hex(dir.join("vendor")), hex(dir.join("device")), pci_bars(&dir))
        else {
            continue;
        };
        let driver = link_name(&dir.join("driver"));
        for bar in bars.into_iter().filter(|bar| bar.len >= SMALLEST_MEMORY) {
            let mut note = format!("{vendor:04x}:{device:04x}");
            if (vendor, device) == IVSHMEM {
                note.push_str(" ivshmem");
            }
            note.push_str(if bar.write_combining { ", write-combining" } else { ", uncached" });
            if let Some(driver) = &driver {
                note.push_str(&format!(", in use by the driver {driver}"));
            }
            let access = access(&bar.path);
            found.push(Offer { size: Some(bar.len), note, ..Offer::new(NAME, bar.path, access) });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Whether the PCI device of an open `resourceN` is still on the bus: sysfs says so to every read(2), and a read of no
/// bytes touches no device.
fn pci_present(fd: BorrowedFd<'_>) -> Result<()> {
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

/// Whether a file of sysfs with this path is the memory of a PCI device, and if so, whether it is write-combining.
/// `None` for all other files.
fn pci_resource(path: &Path) -> Option<bool> {
    let name = path.file_name()?.to_str()?.strip_prefix("resource")?;
    let (number, write_combining) = match name.strip_suffix("_wc") {
        Some(number) => (number, true),
        None => (name, false),
    };
    matches!(number.as_bytes(), [b'0'..=b'5']).then_some(write_combining)
}

/// The file to map for a path below `/sys` that means the memory of a PCI device; `None` for other paths.
fn resource_of(path: &Path) -> Result<Option<PathBuf>> {
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
mod tests {
    use super::*;
    use crate::kind::open_memory;

    #[test]
    fn memory_of_another_machine() {
        let sysfs = tempfile::tempdir().unwrap();
        let pci = sysfs.path().join("bus/pci/devices/0000:00:04.0");
        fs::create_dir_all(&pci).unwrap();
        fs::write(pci.join("vendor"), "0x1af4\n").unwrap();
        fs::write(pci.join("device"), "0x1110\n").unwrap();
        let lines = "0x1000 0x10ff 0x40200\n0x0 0x0 0x0\n0xf8000000 0xfbffffff 0x14220c\n";
        fs::write(pci.join("resource"), lines).unwrap();
        for name in ["resource0", "resource2", "resource2_wc"] {
            fs::write(pci.join(name), "").unwrap();
        }
        let found = pci_memory(sysfs.path());
        assert_eq!(found.len(), 1, "registers are no memory");
        assert_eq!(
            (found[0].note.as_str(), found[0].size),
            ("1af4:1110 ivshmem, write-combining", Some(64 << 20))
        );
        assert_eq!(found[0].name, Some(pci.join("resource2_wc")));
        assert!(pci_memory(&pci).is_empty());
    }

    /// A directory like that of an ivshmem device: registers, an MSI-X table, memory; and one BAR in I/O space.
    fn pci_device(dir: &Path) {
        let resources = "\
    0x00000000febd1000 0x00000000febd10ff 0x0000000000040200
    0x000000000000c040 0x000000000000c05f 0x0000000000040101
    0x00000000f8000000 0x00000000fbffffff 0x000000000014220c
    0x0000000000000000 0x0000000000000000 0x0000000000000000
    0x0000000000000000 0x0000000000000000 0x0000000000000000
    0x0000000000000000 0x0000000000000000 0x0000000000000000
    0x00000000feb00000 0x00000000feffffff 0x0000000000046200
    ";
        fs::write(dir.join("resource"), resources).unwrap();
        for name in ["resource0", "resource1", "resource2", "resource2_wc"] {
            fs::write(dir.join(name), b"").unwrap();
        }
    }

    #[test]
    fn memory_bars_are_listed_and_the_combining_file_is_preferred() {
        let dir = tempfile::tempdir().unwrap();
        pci_device(dir.path());
        let bars = pci_bars(dir.path()).unwrap();
        let found: Vec<_> = bars.iter().map(|bar| (bar.number, bar.len, bar.write_combining)).collect();
        assert_eq!(found, [(0, 256, false), (2, 64 << 20, true)], "no I/O space, and no ROM");
        assert_eq!(bars[1].path, dir.path().join("resource2_wc"));
        fs::remove_file(dir.path().join("resource2_wc")).unwrap();
        assert_eq!(pci_bars(dir.path()).unwrap()[1].path, dir.path().join("resource2"));
        // Broken lines are no memory.
        fs::write(dir.path().join("resource"), "0x1\nnonsense x y\n\n0xffff 0x1 0x200\n").unwrap();
        assert_eq!(pci_bars(dir.path()).unwrap(), []);
        let error = pci_bars(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/resource"), "{error}");
    }

    #[test]
    fn names_of_resources() {
        for (name, answer) in [
            ("resource0", Some(false)),
            ("resource5_wc", Some(true)),
            ("resource", None),
            ("resource6", None),
            ("resource00", None),
            ("resource0_wc_wc", None),
            ("resource_alignment", None),
            ("rom", None),
        ] {
            assert_eq!(
                pci_resource(&Path::new("/sys/devices/pci0000:00/0000:00:04.0").join(name)),
                answer,
                "{name}"
            );
        }
    }

    /// The PCI memory of this machine is opened, described and mapped, but not touched: reading a register of an
    /// unknown device may have effects.
    #[test]
    fn the_memory_of_a_pci_device_here_is_mapped() {
        let devices = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
        let mut bars = devices.flat_map(|device| pci_bars(&device.path()).unwrap_or_default());
        let Some((bar, fd)) = bars.find_map(|bar| Some((bar.clone(), open_memory(&bar.path, false).ok()?)))
        else {
            return println!("not run: no PCI memory that may be opened");
        };
        use std::os::fd::AsFd;
        let info = crate::describe(fd.as_fd()).unwrap();
        assert_eq!(info.kind, crate::FdKind::PciMemory { write_combining: bar.write_combining });
        assert_eq!((info.len, info.writable), (bar.len, false));
        let len = usize::try_from(bar.len).unwrap();
        let map = match crate::Mapping::read_only(fd.as_fd(), 0, len) {
            Ok(map) => map,
            Err(error) => return println!("not run: {error}"),
        };
        assert_eq!(map.class(), crate::MemoryClass::WriteCombining);
        assert!(!map.populate().unwrap(), "the kernel is not asked");
        let error = crate::Mapping::read_only(fd.as_fd(), 0, len + 1).unwrap_err();
        assert!(matches!(error, Error::OutOfBounds { .. }), "{error}");
        assert!(crate::Mapping::read_write(fd.as_fd(), 0, len).is_err(), "the descriptor is for reading");
        // Its other files are no memory.
        let config = open_memory(&bar.path.with_file_name("config"), false).unwrap();
        let error = crate::describe(config.as_fd()).unwrap_err();
        assert!(
            matches!(error, Error::NotShareable { .. }) && error.to_string().contains("sysfs"),
            "{error}"
        );
    }
}
