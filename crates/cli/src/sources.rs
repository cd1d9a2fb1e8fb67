//! `daxfs sources`: the shareable memory that this machine offers, and what is missing for the rest.

use crate::args::SourcesArgs;
use crate::json;
use crate::output::{Outcome, Output};
use crate::text::{Side, Table, alignment, escape, human};
use daxfs_protocol::default_socket;
use dmabuf::Mounted;
use dmabuf::survey::{self, Access, Offer};
use serde::Serialize;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One kind of memory, or one device of it.
#[derive(Debug, Serialize)]
struct Line {
    /// What it is: the name of a kind of memory ([`dmabuf::kinds`]), or `mounted`, `drm`, `gpu`, `holder`.
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
    let mut lines: Vec<Line> = dmabuf::offers().into_iter().map(of).collect();
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

/// What the kinds of memory say.
fn of(offer: Offer) -> Line {
    let name = offer.name.as_deref().map(path_name);
    let Offer { kind, access, size, align, note, .. } = offer;
    Line { size, align, ..line(kind, name, access, note) }
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
