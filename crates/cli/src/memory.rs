//! What kind of memory an image lies in, for people and as JSON.

use crate::text::{alignment, escape, human, percent};
use daxfs::Region;
use dmabuf::{FdKind, PageStats};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use serde::Serialize;
use std::os::unix::ffi::OsStrExt;

/// The memory behind a region.
#[derive(Debug, Serialize)]
pub struct Memory {
    /// The name of the kind ([`FdKind::name`]); a `file` in a tmpfs is a `tmpfs file`, and bytes without a descriptor
    /// are `process memory`.
    kind: &'static str,
    /// Where the descriptor leads, escaped.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// Driver that made a dma-buf.
    #[serde(skip_serializing_if = "Option::is_none")]
    exporter: Option<String>,
    /// Name given to a dma-buf.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Seals of a memfd, in lower case.
    #[serde(skip_serializing_if = "Option::is_none")]
    seals: Option<Vec<String>>,
    /// Page size of hugetlb memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    hugetlb: Option<u64>,
    /// Alignment that a devdax device demands, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_alignment: Option<u64>,
    /// Whether loads and stores of PCI memory are combined; else they are uncached.
    #[serde(skip_serializing_if = "Option::is_none")]
    write_combining: Option<bool>,
    /// Bytes.
    size: u64,
    /// `sealed`, `trusted` or `shared`.
    provenance: String,
    /// Pages that this process has mapped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pages: Option<Pages>,
}

/// Pages, in bytes.
#[derive(Debug, Serialize)]
pub struct Pages {
    mapped: u64,
    resident: u64,
    huge: u64,
    page_size: u64,
}

impl Pages {
    /// Maps all of an in-memory region, then counts its pages; `None` for bytes without a mapping of their own.
    ///
    /// A region on disk is counted as it is: mapping it all would read it.
    ///
    /// # Errors
    /// When the kernel's statistics cannot be read, or memory runs out.
    pub fn of(region: &Region) -> anyhow::Result<Option<Self>> {
        if is_in_memory(region) {
            region.populate()?;
        }
        Ok(region.pages()?.map(|PageStats { mapped, resident, huge, page_size, .. }| Self {
            mapped,
            resident,
            huge,
            page_size,
        }))
    }

    /// Bytes in pages of 2 MiB or more.
    pub fn huge(&self) -> u64 {
        self.huge
    }

    /// One line: `86.7 MiB mapped, 86.7 MiB present, 84.0 MiB (96.89%) of it in pages of 2 MiB or more`.
    pub fn line(&self) -> String {
        let Self { mapped, resident, huge, page_size } = *self;
        let share = if resident == 0 { String::new() } else { format!(" ({})", percent(huge, resident)) };
        format!(
            "{} mapped in {} pages, {} present, {}{share} of it in pages of 2 MiB or more",
            human(mapped),
            alignment(page_size),
            human(resident),
            human(huge)
        )
    }
}

impl Memory {
    /// Describes `region` and counts its pages.
    ///
    /// # Errors
    /// As [`Pages::of`].
    pub fn of(region: &Region) -> anyhow::Result<Self> {
        let mut memory = Self {
            kind: "process memory",
            path: None,
            exporter: None,
            name: None,
            seals: None,
            hugetlb: None,
            device_alignment: None,
            write_combining: None,
            size: region.len(),
            provenance: region.provenance().to_string(),
            pages: Pages::of(region)?,
        };
        let Some(info) = region.info() else { return Ok(memory) };
        memory.path = region.fd().and_then(dmabuf::fd_link).map(|path| escape(path.as_os_str().as_bytes()));
        memory.kind = if is_tmpfs(region, &info.kind) { "tmpfs file" } else { info.kind.name() };
        match &info.kind {
            FdKind::Memfd { seals, hugetlb } => {
                memory.seals = Some(seals.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect());
                memory.hugetlb = *hugetlb;
            }
            FdKind::DmaBuf { exporter, name } => {
                memory.exporter = Some(escape(exporter.as_bytes()));
                memory.name = name.as_ref().map(|name| escape(name.as_bytes()));
            }
            FdKind::DevDax { align } => memory.device_alignment = Some(*align),
            FdKind::PciMemory { write_combining } => memory.write_combining = Some(*write_combining),
            // Nothing more is known of these.
            _ => {}
        }
        Ok(memory)
    }

    /// Lines of `label: text`.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let mut kind = self.kind.to_owned();
        if let Some(exporter) = &self.exporter {
            kind = format!("{kind} exported by {exporter}");
        }
        if let Some(name) = &self.name {
            kind = format!("{kind}, named {name}");
        }
        match self.write_combining {
            Some(true) => kind = format!("write-combining {kind}"),
            Some(false) => kind = format!("uncached {kind}"),
            None => {}
        }
        if let Some(page) = self.hugetlb {
            kind = format!("{kind} of {} hugetlb pages", alignment(page));
        }
        if let Some(align) = self.device_alignment {
            kind = format!("{kind}, mappings aligned to {}", alignment(align));
        }
        if let Some(path) = &self.path {
            kind = format!("{kind} {path}");
        }
        let mut lines = vec![("memory", format!("{kind}, {}", human(self.size)))];
        if let Some(seals) = &self.seals {
            let names = if seals.is_empty() { "none".to_owned() } else { seals.join(", ") };
            lines.push(("seals", names));
        }
        let meaning = match self.provenance.as_str() {
            "sealed" => "sealed: nobody can change it",
            "trusted" => "trusted: promised not to change",
            _ => "shared: others may write to it",
        };
        lines.push(("provenance", meaning.to_owned()));
        if let Some(pages) = &self.pages {
            lines.push(("pages", pages.line()));
        }
        lines
    }
}

/// True when mapping the region reads nothing from a disk.
pub fn is_in_memory(region: &Region) -> bool {
    region.info().is_none_or(|info| info.kind != FdKind::File || is_tmpfs(region, &info.kind))
}

fn is_tmpfs(region: &Region, kind: &FdKind) -> bool {
    *kind == FdKind::File
        && region.fd().is_some_and(|fd| fstatfs(fd).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC))
}
