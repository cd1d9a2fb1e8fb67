//! `daxfs sources`: the shareable memory that this machine offers, and what is missing for the rest.

use crate::args::SourcesArgs;
use crate::json;
use crate::output::{Outcome, Output};
use crate::text::{Side, Table, alignment, escape, human};
use daxfs_protocol::default_socket;
use dmabuf::Mounted;
use dmabuf::survey::{self, Access};
use serde::Serialize;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One kind of memory, or one device of it.
#[derive(Debug, Serialize)]
struct Line {
    /// What it is: `memfd`, `udmabuf`, `dma-heap`, `devdax`, `pci`, `physical`, `mounted`, `drm`, `gpu`, `holder`.
    kind: &'static str,
    /// What to call it, as a source or a target.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Whether this process can use it now.
    available: bool,
    /// Bytes, where they are fixed or limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// What mappings are aligned to, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    align: Option<u64>,
    /// More of it, or why it cannot be used.
    note: String,
}

#[derive(Debug, Serialize)]
struct Listing<'a> {
    sources: &'a [Line],
}

/// Lists them.
///
/// # Errors
/// When the list cannot be written.
pub fn run(args: &SourcesArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let lines = survey();
    if args.json {
        json::write(out, &Listing { sources: &lines })?;
        return Ok(Outcome::Clean);
    }
    let mut table = Table::new([Side::Left, Side::Left, Side::Right, Side::Right, Side::Left, Side::Left]);
    table.row(["KIND", "NAME", "SIZE", "ALIGN", "USABLE", "NOTE"].map(str::to_owned));
    for line in lines {
        table.row([
            line.kind.to_owned(),
            line.name.unwrap_or_else(|| "-".to_owned()),
            line.size.map_or_else(String::new, human),
            line.align.map_or_else(String::new, alignment),
            if line.available { "yes" } else { "no" }.to_owned(),
            line.note,
        ]);
    }
    table.write(out, 0)?;
    Ok(Outcome::Clean)
}

fn survey() -> Vec<Line> {
    let mut lines = vec![memfd(), udmabuf()];
    heaps(&mut lines);
    devdax(&mut lines);
    pci(&mut lines);
    lines.push(physical());
    mounts(&mut lines);
    drm(&mut lines);
    gpus(&mut lines);
    lines.push(holder());
    lines
}

fn line(kind: &'static str, name: Option<String>, access: Access, note: impl Into<String>) -> Line {
    let note = note.into();
    let (available, note) = match access {
        Access::ReadWrite => (true, note),
        Access::Read if note.is_empty() => (true, "for reading only".to_owned()),
        Access::Read => (true, format!("{note}; for reading only")),
        Access::No(why) if note.is_empty() => (false, why),
        Access::No(why) => (false, format!("{note}; {why}")),
    };
    Line { kind, name, available, size: None, align: None, note }
}

/// A kind of which this machine has nothing.
fn missing(kind: &'static str, why: &str) -> Line {
    Line { kind, name: None, available: false, size: None, align: None, note: why.to_owned() }
}

fn path_name(path: &Path) -> String {
    escape(path.as_os_str().as_bytes())
}

fn memfd() -> Line {
    let huge = |name: &str| {
        let read = |file: &str| std::fs::read_to_string(format!("/sys/kernel/mm/hugepages/{name}/{file}"));
        read("free_hugepages").ok().and_then(|free| free.trim().parse::<u64>().ok())
    };
    let pool = |size, name| huge(name).map(|free| format!("{free} free pages of {size}"));
    let pools: Vec<String> =
        [pool("2M", "hugepages-2048kB"), pool("1G", "hugepages-1048576kB")].into_iter().flatten().collect();
    let note = match pools.is_empty() {
        true => "no hugetlb pages: --hugepages 2M and 1G need CONFIG_HUGETLBFS".to_owned(),
        false => format!("hugetlb: {}", pools.join(", ")),
    };
    line("memfd", Some("memfd".to_owned()), Access::ReadWrite, note)
}

fn udmabuf() -> Line {
    let device = Path::new("/dev/udmabuf");
    if !device.exists() {
        return missing("udmabuf", "needs CONFIG_UDMABUF and its module: modprobe udmabuf");
    }
    let list = dmabuf::udmabuf_list_limit().map_or_else(String::new, |limit| format!(", list_limit {limit}"));
    let note = format!("size_limit_mb is in /sys/module/udmabuf/parameters{list}");
    let size = dmabuf::udmabuf_limit();
    Line { size, ..line("udmabuf", Some("udmabuf".to_owned()), survey::access(device), note) }
}

fn heaps(lines: &mut Vec<Line>) {
    let heaps = dmabuf::heaps();
    if heaps.is_empty() {
        lines.push(missing("dma-heap", "needs CONFIG_DMABUF_HEAPS and CONFIG_DMABUF_HEAPS_SYSTEM"));
    }
    for name in heaps {
        let access = survey::access(&Path::new("/dev/dma_heap").join(&name));
        lines.push(line("dma-heap", Some(format!("heap:{}", escape(name.as_bytes()))), access, ""));
    }
}

fn devdax(lines: &mut Vec<Line>) {
    let devices = survey::dax_devices(Path::new("/sys"));
    if devices.is_empty() {
        let why = match Path::new("/sys/bus/dax").exists() {
            true => {
                "no device: CXL memory needs a region (cxl create-region), soft-reserved memory dax_hmem, \
                     persistent memory a namespace in mode devdax"
            }
            false => "needs CONFIG_DEV_DAX: modprobe device_dax",
        };
        lines.push(missing("devdax", why));
    }
    for device in devices {
        let (access, note) = match device.driver.as_deref() {
            Some("device_dax") => (survey::access(&device.path), String::new()),
            Some(driver) => (
                Access::No("the kernel uses it as ordinary memory".to_owned()),
                format!("driver {driver}: daxctl reconfigure-device -m devdax gives it back"),
            ),
            None => {
                (Access::No("no driver is bound".to_owned()), "modprobe device_dax, and bind it".to_owned())
            }
        };
        let note = match device.node {
            Some(node) if note.is_empty() => format!("NUMA node {node}"),
            _ => note,
        };
        lines.push(Line {
            size: Some(device.len),
            align: Some(device.align),
            ..line("devdax", Some(path_name(&device.path)), access, note)
        });
    }
}

fn pci(lines: &mut Vec<Line>) {
    let found = survey::pci_memory(Path::new("/sys"));
    if found.is_empty() {
        lines.push(missing("pci", "no PCI device with memory of 1 MiB or more"));
    }
    for memory in found {
        let (vendor, device) = memory.id;
        let mut note = format!("{vendor:04x}:{device:04x}");
        if memory.id == survey::IVSHMEM {
            note.push_str(" ivshmem");
        }
        note.push_str(if memory.bar.write_combining { ", write-combining" } else { ", uncached" });
        if let Some(driver) = &memory.driver {
            note.push_str(&format!(", in use by the driver {driver}"));
        }
        let access = survey::access(&memory.bar.path);
        let path = Path::new("/sys/bus/pci/devices").join(&memory.address);
        let path = path.join(memory.bar.path.file_name().unwrap_or_default());
        lines.push(Line { size: Some(memory.bar.len), ..line("pci", Some(path_name(&path)), access, note) });
    }
}

fn physical() -> Line {
    let device = Path::new("/dev/mem");
    if !device.exists() {
        return missing("physical", "no /dev/mem: needs CONFIG_DEVMEM, and the node in a container");
    }
    let note = "reserve the range with memmap=SIZE$ADDRESS on the kernel's command line";
    line("physical", Some("phys:ADDRESS+LENGTH".to_owned()), survey::access(device), note)
}

fn mounts(lines: &mut Vec<Line>) {
    let mounts = dmabuf::mounts();
    if mounts.is_empty() {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let known = known.lines().any(|line| line.split_whitespace().last() == Some("daxfs"));
        let why = if known { "nothing is mounted" } else { "this kernel has no module daxfs loaded" };
        lines.push(missing("mounted", why));
    }
    for point in mounts {
        let memory = dmabuf::open_read_only(&point).and_then(|root| dmabuf::mounted(root.as_fd()));
        let (access, note) = match memory {
            Ok(Some(Mounted::DmaBuf(_))) => (Access::Read, "a dma-buf".to_owned()),
            Ok(Some(Mounted::Physical { address, len })) => {
                let access = match survey::access(Path::new("/dev/mem")) {
                    Access::No(why) => Access::No(format!("/dev/mem: {why}")),
                    _ => Access::Read,
                };
                (access, format!("phys:{address:#x}+{len:#x}"))
            }
            // Something else was mounted over it, or it has just gone.
            Ok(_) => (Access::No("another file system is there by now".into()), String::new()),
            Err(error) => (Access::No(error.to_string()), String::new()),
        };
        lines.push(line("mounted", Some(path_name(&point)), access, note));
    }
}

fn drm(lines: &mut Vec<Line>) {
    let nodes = survey::nodes(Path::new("/dev/dri"), "renderD");
    if nodes.is_empty() {
        lines.push(missing("drm", "no render node: needs a DRM driver, and /dev/dri in a container"));
    }
    for node in nodes {
        let name = node.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let driver = std::fs::read_link(format!("/sys/class/drm/{name}/device/driver"));
        let driver = driver.ok().and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned()));
        let note = driver.map_or_else(String::new, |driver| format!("driver {driver}"));
        lines.push(line("drm", Some(path_name(&node)), survey::permission(&node), note));
    }
}

fn gpus(lines: &mut Vec<Line>) {
    let mut nodes = survey::nodes(Path::new("/dev"), "nvidia");
    nodes.retain(|node| {
        node.to_string_lossy().strip_prefix("/dev/nvidia").is_some_and(|number| number.parse::<u32>().is_ok())
    });
    nodes.extend(survey::nodes(Path::new("/dev"), "kfd"));
    if nodes.is_empty() {
        lines.push(missing(
            "gpu",
            "no /dev/nvidiaN and no /dev/kfd: needs a GPU, its driver, and the nodes in a container",
        ));
    }
    for node in nodes {
        lines.push(line("gpu", Some(path_name(&node)), survey::permission(&node), ""));
    }
}

fn holder() -> Line {
    let socket = default_socket();
    let note = path_name(&socket);
    match socket.exists() {
        true => line("holder", Some("daxfs://NAME".to_owned()), Access::Read, note),
        false => missing("holder", &format!("no socket {note}: `daxfs serve` makes it")),
    }
}
