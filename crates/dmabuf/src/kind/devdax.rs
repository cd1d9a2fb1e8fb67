//! Device-dax: CXL memory, persistent memory, soft-reserved memory. Sysfs tells which device a node belongs to; the
//! functions take its root, so that tests can show them another one.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{SFlag, fstat};

use super::{FdKind, Kind, KindFacts, Layout, Seen};
use crate::class::MemoryClass;
use crate::error::{Error, Result};
use crate::fd::fd_name;
use crate::survey::{Access, Offer, access, entries, link_name};

const NAME: &str = "devdax";
const SYSFS: &str = "/sys";

pub(super) struct Row;

impl Kind for Row {
    fn facts(&self) -> &'static KindFacts {
        &KindFacts {
            name: NAME,
            class: MemoryClass::DevicePages,
            is_device: true,
            writers: "every user who may open it, other hosts",
            shrinks: "no, but it can go away",
            pages: "2 MiB or more",
            coherence: "hosts whose hardware says so",
        }
    }

    /// fstat(2) knows neither size nor alignment.
    fn recognise(&self, seen: &Seen<'_>) -> Result<Option<Layout>> {
        if seen.file_type() != SFlag::S_IFCHR {
            return Ok(None);
        }
        let found = devdax(Path::new(SYSFS), seen.stat().st_rdev)?;
        Ok(found.map(|(len, align)| Layout { len, unit: align, has_huge_pages: false }))
    }

    fn describe(&self, _: &Seen<'_>, layout: &Layout) -> Result<FdKind> {
        Ok(FdKind::DevDax { align: layout.unit })
    }

    fn keeps_pages(&self, _: &FdKind) -> bool {
        true
    }

    fn not_collapsed(&self, _: &FdKind) -> Option<&'static str> {
        Some("the page size of a devdax device is set when it is made")
    }

    fn check_present(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let stat = fstat(fd).map_err(|e| Error::os("fstat", fd_name(fd), e))?;
        let (major, minor) = (libc::major(stat.st_rdev), libc::minor(stat.st_rdev));
        if Path::new(&format!("{SYSFS}/dev/char/{major}:{minor}/driver")).exists() {
            return Ok(());
        }
        Err(no_driver(Path::new(&fd_name(fd))))
    }

    fn not_opened(&self, path: &Path, error: Error) -> Error {
        match error.raw_os_error() {
            Some(libc::ENXIO) if is_devdax(Path::new(SYSFS), path) => no_driver(path),
            _ => error,
        }
    }

    fn offers(&self) -> Vec<Offer> {
        let devices = dax_devices(Path::new(SYSFS));
        if devices.is_empty() {
            let why = match Path::new("/sys/bus/dax").exists() {
                true => {
                    "no device: CXL memory needs a region (cxl create-region), soft-reserved memory dax_hmem, \
                     persistent memory a namespace in mode devdax"
                }
                false => "needs CONFIG_DEV_DAX: modprobe device_dax",
            };
            return vec![Offer::missing(NAME, why)];
        }
        devices
    }
}

/// The devdax devices in a sysfs (`/sys`), sorted by name.
fn dax_devices(sysfs: &Path) -> Vec<Offer> {
    let device = |dir: &Path| {
        let name = dir.file_name()?.to_str()?;
        // The bus has regions and other things beside the devices.
        let (region, number) = name.strip_prefix("dax")?.split_once('.')?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        (is_number(region) && is_number(number)).then_some(())?;
        let path = Path::new("/dev").join(name);
        let no = |why: &str| Access::No(why.to_owned());
        // `kmem` is the driver when the kernel uses it as ordinary memory.
        let (access, note) = match link_name(&dir.join("driver")).as_deref() {
            Some("device_dax") => {
                let node = read_number(&dir.join("numa_node"));
                (access(&path), node.map_or_else(|_| String::new(), |node| format!("NUMA node {node}")))
            }
            Some(driver) => (
                no("the kernel uses it as ordinary memory"),
                format!("driver {driver}: daxctl reconfigure-device -m devdax gives it back"),
            ),
            None => (no("no driver is bound"), "modprobe device_dax, and bind it".to_owned()),
        };
        let size = Some(read_number(&dir.join("size")).ok()?);
        let align = Some(read_number(&dir.join("align")).ok()?);
        Some(Offer { size, align, note, ..Offer::new(NAME, path, access) })
    };
    let mut found: Vec<_> =
        entries(&sysfs.join("bus/dax/devices")).iter().filter_map(|dir| device(dir)).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
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
fn devdax(sysfs: &Path, device: libc::dev_t) -> Result<Option<(u64, u64)>> {
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
fn read_number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).map_err(|e| Error::os("read", path.display().to_string(), e))?;
    let wrong = || Error::invalid(path.display().to_string(), format!("{:?} is no number", text.trim()));
    text.trim().parse().map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn devices_of_another_machine() {
        let sysfs = tempfile::tempdir().unwrap();
        let dax = sysfs.path().join("bus/dax/devices");
        let devices = [
            ("dax1.0", None),
            ("dax0.0", Some("device_dax")),
            ("dax2.0", Some("kmem")),
            ("dax_region0", None),
        ];
        for (name, driver) in devices {
            let dir = dax.join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("size"), "67108864\n").unwrap();
            fs::write(dir.join("align"), "2097152\n").unwrap();
            fs::write(dir.join("numa_node"), "1\n").unwrap();
            if let Some(driver) = driver {
                symlink(format!("../../drivers/{driver}"), dir.join("driver")).unwrap();
            }
        }
        let found = dax_devices(sysfs.path());
        let paths: Vec<_> =
            found.iter().map(|offer| offer.name.as_deref().unwrap().to_str().unwrap()).collect();
        assert_eq!(paths, ["/dev/dax0.0", "/dev/dax1.0", "/dev/dax2.0"]);
        assert_eq!((found[0].size, found[0].align), (Some(64 << 20), Some(2 << 20)));
        assert_eq!(found[0].note, "NUMA node 1");
        assert_eq!(found[1].access, Access::No("no driver is bound".into()));
        assert!(found[2].note.starts_with("driver kmem"), "{found:?}");
        assert!(dax_devices(&dax).is_empty());
    }

    #[test]
    fn devdax_is_told_by_its_bus() {
        let sysfs = tempfile::tempdir().unwrap();
        let dir = sysfs.path().join("dev/char/252:3");
        fs::create_dir_all(&dir).unwrap();
        let device = libc::makedev(252, 3);
        assert_eq!(devdax(sysfs.path(), device).unwrap(), None, "no bus");
        std::os::unix::fs::symlink("../../bus/dax", dir.join("subsystem")).unwrap();
        let error = devdax(sysfs.path(), device).unwrap_err();
        assert!(
            matches!(&error, Error::Unavailable { needs, .. } if needs.starts_with("a driver")),
            "{error}"
        );
        fs::create_dir(dir.join("driver")).unwrap();
        let error = devdax(sysfs.path(), device).unwrap_err();
        assert!(
            matches!(&error, Error::Os { op: "read", subject, .. } if subject.ends_with("252:3/size")),
            "{error}"
        );
        fs::write(dir.join("size"), "67108864\n").unwrap();
        fs::write(dir.join("align"), "2097152\n").unwrap();
        assert_eq!(devdax(sysfs.path(), device).unwrap(), Some((64 << 20, 2 << 20)));
        assert_eq!(devdax(sysfs.path(), libc::makedev(252, 4)).unwrap(), None);
        for (file, text, word) in [("align", "12\n", "no power of two"), ("size", "-1\n", "no number")] {
            let before = fs::read(dir.join(file)).unwrap();
            fs::write(dir.join(file), text).unwrap();
            let error = devdax(sysfs.path(), device).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains(word), "{error}");
            fs::write(dir.join(file), before).unwrap();
        }
    }

    #[test]
    fn a_device_without_a_driver_says_which_one() {
        let error = no_driver(Path::new("/dev/dax0.0")).to_string();
        assert!(error.starts_with("/dev/dax0.0 is not available: it needs a driver"), "{error}");
        assert!(error.contains("device_dax") && error.contains("-f dax0.0"), "{error}");
    }
}
