//! Tests of [`super`]: sysfs as other machines have it, and the errors of what is not there.

use super::*;

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

#[test]
fn devdax_is_told_by_its_bus() {
    let sysfs = tempfile::tempdir().unwrap();
    let dir = sysfs.path().join("dev/char/252:3");
    fs::create_dir_all(&dir).unwrap();
    let device = libc::makedev(252, 3);
    assert_eq!(devdax(sysfs.path(), device).unwrap(), None, "no bus");
    std::os::unix::fs::symlink("../../bus/dax", dir.join("subsystem")).unwrap();
    let error = devdax(sysfs.path(), device).unwrap_err();
    assert!(matches!(&error, Error::Unavailable { needs, .. } if needs.starts_with("a driver")), "{error}");
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

/// The PCI memory of this machine is opened, described and mapped, but not touched: reading a register of an unknown
/// device may have effects.
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
    assert!(matches!(error, Error::NotShareable { .. }) && error.to_string().contains("sysfs"), "{error}");
}
