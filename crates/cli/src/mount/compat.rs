//! `daxfs mount --compat-check`: which kernels can mount an image and how, and what would be done here. Nothing is mounted.

use super::{Request, WAYS, Wanted, choose};
use crate::args::MountWay;
use crate::json;
use crate::output::{Outcome, Output};
use crate::text::{Side, Table, count, escape_message, human};
use daxfs::format::{erofs, v8};
use daxfs::{File, Image, OpenOptions};
use serde::Serialize;
use std::io::Write;
use std::mem::offset_of;
use std::path::Path;

#[derive(Serialize)]
struct Report<'a> {
    source: &'a str,
    /// Version of the format.
    format: u32,
    block_size: u32,
    /// Bytes of the EROFS view.
    erofs_bytes: Option<u64>,
    /// Files with capabilities, which the view alone has.
    capabilities: Option<u32>,
    /// Whether the view has times.
    times: Option<bool>,
    /// Every way there is, on any machine.
    ways: Vec<Elsewhere>,
    here: Here,
}

/// A way to mount the image, on a machine that fits.
#[derive(Serialize)]
struct Elsewhere {
    by: &'static str,
    /// Kernels that do it.
    kernels: String,
    /// Where the image lies then.
    on: &'static str,
    /// Why none does, for this image.
    why_not: Option<String>,
}

/// This machine, and the image where it lies now.
#[derive(Serialize)]
struct Here {
    kernel: Option<String>,
    page_size: u64,
    /// The way that is taken.
    chosen: &'static str,
    ways: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    by: &'static str,
    why_not: Option<String>,
}

/// Prints the report of an image.
pub fn report(image: &Image, name: &str, wanted: &Wanted, as_json: bool) -> anyhow::Result<Outcome> {
    let report = Report::of(image, name, wanted)?;
    let mut out = Output::stdout();
    let written = match as_json {
        true => json::write(&mut out, &report),
        false => report.write(&mut out).map_err(Into::into),
    };
    if out.reader_left() {
        return Ok(Outcome::Clean);
    }
    written?;
    out.finish()?;
    Ok(Outcome::Clean)
}

impl<'a> Report<'a> {
    fn of(image: &Image, name: &'a str, wanted: &Wanted) -> anyhow::Result<Self> {
        let superblock = image.superblock();
        let view = View::of(image);
        let request = Request { image, at: Path::new("/"), name, wanted };
        let (chosen, _) = choose(&request)?;
        let found = WAYS.iter().map(|way| {
            let own = || if way.id == MountWay::Erofs { view.wrong.clone() } else { None };
            let why_not = way.lacks(wanted).or_else(own).or_else(|| (way.unfit)(&request));
            Found { by: way.name, why_not }
        });
        Ok(Self {
            source: name,
            format: superblock.version,
            block_size: superblock.block_size,
            erofs_bytes: view.len,
            capabilities: view.capabilities,
            times: view.flags.map(|flags| flags & erofs::HAS_TIMES != 0),
            ways: elsewhere(image, &view),
            here: Here {
                kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                    .ok()
                    .map(|text| text.trim().to_owned()),
                page_size: dmabuf::page_size(),
                chosen: chosen.name,
                ways: found.collect(),
            },
        })
    }

    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let view = match (self.erofs_bytes, self.capabilities) {
            (Some(bytes), Some(capabilities)) => format!(
                "an EROFS view of {} with the capabilities of {} and {}",
                human(bytes),
                count(capabilities.into(), "file", "files"),
                if self.times == Some(true) { "times" } else { "no times" }
            ),
            _ => "no EROFS view".to_owned(),
        };
        let source = escape_message(self.source);
        writeln!(out, "{source}: format {}, blocks of {} bytes, {view}", self.format, self.block_size)?;
        writeln!(out, "\nOn machines that fit:")?;
        let mut table = Table::new([Side::Left; 3]);
        for way in &self.ways {
            let kernels = match &way.why_not {
                None => way.kernels.clone(),
                Some(why) => format!("none: {}", escape_message(why)),
            };
            table.row([way.by.to_owned(), way.on.to_owned(), kernels]);
        }
        table.write(out, 2)?;
        let kernel = self.here.kernel.as_deref().unwrap_or("of an unknown version");
        writeln!(out, "\nHere, on Linux {kernel} with pages of {} bytes:", self.here.page_size)?;
        let mut table = Table::new([Side::Left; 2]);
        for way in &self.here.ways {
            let said = match &way.why_not {
                // What --as has asked for is tried whatever is known of it.
                _ if way.by == self.here.chosen => {
                    let doubt = way.why_not.as_ref().map(|why| format!(", but {}", escape_message(why)));
                    format!("chosen{}", doubt.unwrap_or_default())
                }
                None => "fits as well".to_owned(),
                Some(why) => format!("no: {}", escape_message(why)),
            };
            table.row([way.by.to_owned(), said]);
        }
        table.write(out, 2)
    }
}

/// What is known of the view of an image.
struct View {
    len: Option<u64>,
    capabilities: Option<u32>,
    flags: Option<u32>,
    /// Why kernels cannot use it: there is none, or a wrong one.
    wrong: Option<String>,
}

impl View {
    fn of(image: &Image) -> Self {
        let wrong = match image.check_erofs() {
            Ok(true) => None,
            Ok(false) => Some("it has no EROFS view; pack it with --erofs".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        let file = image.file(erofs::PATH).ok().filter(|_| wrong.is_none());
        // Its header was compared just now.
        let number = |place: usize| {
            let mut bytes = [0; 4];
            let read = file.as_ref()?.read_at(place as u64, &mut bytes).ok()?;
            (read == bytes.len()).then(|| u32::from_le_bytes(bytes))
        };
        Self {
            len: file.as_ref().map(File::len),
            capabilities: number(offset_of!(erofs::Header, capabilities)),
            flags: number(offset_of!(erofs::Header, flags)),
            wrong,
        }
    }
}

/// The ways of machines that have what it takes.
fn elsewhere(image: &Image, view: &View) -> Vec<Elsewhere> {
    let block = image.superblock().block_size;
    // Until 6.4 blocks and pages had to be of one size, which was 4 KiB everywhere.
    let pages = match block {
        4096 => "pages of 4096 bytes, others from 6.4".to_owned(),
        _ => format!("pages of at least {block} bytes"),
    };
    let since = |version: &str, first: &str| {
        let version = if block == 4096 { version } else { first };
        format!("Linux {version}, {pages}")
    };
    let by_erofs = |kernels, on| Elsewhere { by: "EROFS", kernels, on, why_not: view.wrong.clone() };
    vec![
        Elsewhere {
            by: "DAXFS",
            kernels: format!("with the module daxfs, pages of {block} bytes"),
            on: "a dma-buf, physical memory",
            why_not: no_daxfs(image),
        },
        by_erofs(since("6.12", "6.12"), "a file on ext4, XFS, btrfs"),
        by_erofs(since("5.4", "6.4"), "a disk, a loop device"),
        by_erofs(format!("Linux 5.15, pages of {block} bytes, with dax=always"), "pmem, virtio-pmem"),
        Elsewhere { by: "FUSE", kernels: "every Linux".to_owned(), on: "anywhere", why_not: None },
    ]
}

/// Why the kernel's DAXFS mounts the image nowhere.
fn no_daxfs(image: &Image) -> Option<String> {
    let superblock = image.superblock();
    if superblock.version != v8::VERSION {
        return Some(format!("it is of format {}, the module takes {}", superblock.version, v8::VERSION));
    }
    if superblock.data_is_external() {
        // Its rules are those of mounting: the backing file counts, too.
        return None;
    }
    let options = OpenOptions::new().strict(true).page_size(superblock.block_size.into());
    options.open_region(image.region().clone()).err().map(|error| error.to_string())
}
