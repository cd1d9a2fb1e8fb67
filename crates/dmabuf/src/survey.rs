//! What shareable memory this machine offers at the moment, and what is missing for the rest.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::AccessFlags;

use crate::device::{PciBar, pci_bars, read_number};

/// Whether this process can open a device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading and writing.
    ReadWrite,
    /// For reading.
    Read,
    /// Not at all, and why.
    No(String),
}

/// A devdax device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaxDevice {
    /// Its node, `/dev/daxX.Y`.
    pub path: PathBuf,
    /// Bytes.
    pub len: u64,
    /// What mappings are aligned to.
    pub align: u64,
    /// Name of the bound driver: `device_dax`, or `kmem` when the kernel uses it as ordinary memory. `None`: it cannot
    /// be opened.
    pub driver: Option<String>,
    /// NUMA node next to it.
    pub node: Option<u64>,
}

/// Memory of a PCI device that could hold an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciMemory {
    /// The device's address, such as `0000:00:04.0`.
    pub address: String,
    /// Vendor and device number.
    pub id: (u16, u16),
    /// The memory.
    pub bar: PciBar,
    /// Driver that is bound to the device, which then has the memory's use.
    pub driver: Option<String>,
}

/// Vendor and device of QEMU's shared memory between virtual machines.
pub const IVSHMEM: (u16, u16) = (0x1af4, 0x1110);
/// BARs below this are registers.
const SMALLEST_MEMORY: u64 = 1 << 20;

/// Whether a node can be opened, by opening it: for nodes of memory, whose drivers have the last word and do nothing
/// else then.
#[must_use]
pub fn access(path: &Path) -> Access {
    let open = |write| fs::OpenOptions::new().read(true).write(write).open(path).map(drop);
    match open(true) {
        Ok(()) => Access::ReadWrite,
        Err(_) => open(false).map_or_else(|error| Access::No(why(&error)), |()| Access::Read),
    }
}

/// Whether a node's permissions allow to open it, without opening it: for GPUs, whose drivers wake the device or set up
/// a context then. A container's list of devices and the driver can still refuse.
#[must_use]
pub fn permission(path: &Path) -> Access {
    let allowed = |mode| nix::unistd::eaccess(path, mode);
    match allowed(AccessFlags::R_OK | AccessFlags::W_OK) {
        Ok(()) => Access::ReadWrite,
        Err(_) => match allowed(AccessFlags::R_OK) {
            Ok(()) => Access::Read,
            Err(error) => Access::No(why(&error.into())),
        },
    }
}

fn why(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "it is not there".into(),
        Some(libc::EACCES) => "no permission on the node".into(),
        Some(libc::EPERM) => {
            "not permitted: CAP_SYS_RAWIO is needed, and a kernel that is not locked down".into()
        }
        Some(libc::ENXIO) => "no driver is bound to it".into(),
        _ => error.to_string(),
    }
}

/// The devdax devices in a sysfs (`/sys`), sorted by name.
#[must_use]
pub fn dax_devices(sysfs: &Path) -> Vec<DaxDevice> {
    let device = |dir: &Path| {
        let name = dir.file_name()?.to_str()?;
        // The bus has regions and other things beside the devices.
        let (region, number) = name.strip_prefix("dax")?.split_once('.')?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        (is_number(region) && is_number(number)).then_some(())?;
        Some(DaxDevice {
            path: Path::new("/dev").join(name),
            len: read_number(&dir.join("size")).ok()?,
            align: read_number(&dir.join("align")).ok()?,
            driver: link_name(&dir.join("driver")),
            node: read_number(&dir.join("numa_node")).ok(),
        })
    };
    let mut found: Vec<_> =
        entries(&sysfs.join("bus/dax/devices")).iter().filter_map(|dir| device(dir)).collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// PCI memory of at least 1 MiB in a sysfs, sorted by device.
#[must_use]
pub fn pci_memory(sysfs: &Path) -> Vec<PciMemory> {
    let hex = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        u16::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    };
    let mut found = Vec::new();
    for dir in entries(&sysfs.join("bus/pci/devices")) {
        let (Some(address), Some(vendor), Some(device), Ok(bars)) = (
            dir.file_name().map(|name| name.to_string_lossy().into_owned()),
            hex(dir.join("vendor")),
            hex(dir.join("device")),
            pci_bars(&dir),
        ) else {
            continue;
        };
        let driver = link_name(&dir.join("driver"));
        found.extend(bars.into_iter().filter(|bar| bar.len >= SMALLEST_MEMORY).map(|bar| PciMemory {
            address: address.clone(),
            id: (vendor, device),
            bar,
            driver: driver.clone(),
        }));
    }
    found.sort_by(|a, b| (&a.address, a.bar.number).cmp(&(&b.address, b.bar.number)));
    found
}

/// Nodes of a directory of `/dev` whose names begin so, sorted; character devices only.
#[must_use]
pub fn nodes(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let is_node = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
            && fs::metadata(path).is_ok_and(|meta| meta.mode() & libc::S_IFMT == libc::S_IFCHR)
    };
    let mut found: Vec<_> = entries(dir).into_iter().filter(is_node).collect();
    found.sort();
    found
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn link_name(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn devices_of_another_machine() {
        let sysfs = tempfile::tempdir().unwrap();
        let dax = sysfs.path().join("bus/dax/devices");
        for (name, driver) in [("dax1.0", None), ("dax0.0", Some("device_dax")), ("dax_region0", None)] {
            let dir = dax.join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("size"), "67108864\n").unwrap();
            fs::write(dir.join("align"), "2097152\n").unwrap();
            if let Some(driver) = driver {
                symlink(format!("../../drivers/{driver}"), dir.join("driver")).unwrap();
                fs::write(dir.join("numa_node"), "-1\n").unwrap();
            } else {
                fs::write(dir.join("numa_node"), "1\n").unwrap();
            }
        }
        let found = dax_devices(sysfs.path());
        let paths: Vec<_> = found.iter().map(|device| device.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/dev/dax0.0", "/dev/dax1.0"]);
        assert_eq!((found[0].driver.as_deref(), found[0].node), (Some("device_dax"), None));
        assert_eq!((found[1].driver.as_deref(), found[1].node, found[1].align), (None, Some(1), 2 << 20));

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
        assert_eq!((found[0].id, found[0].bar.len), (IVSHMEM, 64 << 20));
        assert_eq!(found[0].bar.path, pci.join("resource2_wc"));
        assert!(dax_devices(&pci).is_empty() && pci_memory(&dax).is_empty());
    }

    #[test]
    fn nodes_and_their_access() {
        assert_eq!(nodes(Path::new("/dev"), "nul"), [PathBuf::from("/dev/null")]);
        assert_eq!(access(Path::new("/dev/null")), Access::ReadWrite);
        assert_eq!(access(Path::new("/dev/nonexistent")), Access::No("it is not there".into()));
        assert_eq!(permission(Path::new("/dev/null")), Access::ReadWrite);
        assert_eq!(permission(Path::new("/dev/nonexistent")), Access::No("it is not there".into()));
        // A pipe without a reader: to open it would wait, and to ask does not.
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
        assert_eq!(permission(&pipe), Access::ReadWrite);
        assert!(why(&io::Error::from_raw_os_error(libc::ENXIO)).contains("driver"));
    }
}
