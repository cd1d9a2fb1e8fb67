//! `daxfs.pack`: the packer, stoppable by Ctrl-C.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dmabuf::HugePages;
use mkimage::{DEFAULT_TENSOR_ALIGN, Format, Links, Memory, Overlay, Packer, Plan, Progress, Summary};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::OrRaise;
use crate::image::Image;
use crate::{source, unlocked};

/// Packs files and directories into an image.
///
/// sources: a path or several. One directory becomes the root of the image; otherwise each lies in the root.
/// output: the file to write; a dict that sums up what was written is returned.
/// into: in place of output, the memory to write to: "memfd" (the default), "udmabuf", "heap:NAME",
///     "/dev/daxX.Y@OFFSET", a PCI device's resourceN, "phys:ADDRESS+LENGTH", "fd:N", or the path of a file that stands
///     for memory. The opened image is returned; when it and all that came from it are gone, so is the memory.
/// align: large files start at multiples of it (default 2 MiB).
/// align_tensors: what the tensors of safetensors files are moved to multiples of: 256 bytes by default, a number, or a
///     page ("page"); False is exact=True. The index keeps what is needed to make the source's exact bytes again
///     (File.original()).
/// exact: pack all files byte for byte: no tensor is moved.
/// dedupe: store files with the same contents once.
/// overlay: room for what kernels that mount the image write: bytes, or bytes and buckets of the hash table over them.
/// empty: make an image without files, which takes an overlay and no sources.
/// split: the file that gets the contents of all files; the image holds names and metadata only, and is opened with
///     `backing=` that file.
/// links: symbolic links below the sources. "auto": kept where they lead to something that is packed (absolute ones as
///     if the root of the image were /), followed where they lead out of it, kept with a warning where they lead
///     nowhere. "keep", "follow": all of them. "refuse": an error.
/// exclude: globs of names to leave out, by the rules of gitignore.
/// include: globs; only what matches one of them is packed, less what exclude leaves out.
/// weights_only: in directories with safetensors files, leave out other forms of the same weights, and the state of a
///     training; everywhere, what downloads leave.
/// mode: permissions of the file; None for no more readers than all sources have.
/// skip_special: leave out FIFOs, sockets and devices, which are refused otherwise.
/// plain: leave out the index of tensors and hashes; files are packed byte for byte then.
/// hash: put hashes of all files into the index; None does so for files and devices, which stay, and not for new
///     memory, since hashing takes as long as packing into it.
/// erofs: whether the image gets an EROFS view, by which every stock Linux mounts it; None for where it can have one,
///     which is without plain, overlay, split and empty.
/// mtimes: whether that view has the times at which the sources were modified; otherwise all times are 1970.
/// format: version of the format, 8 or 5.
/// block_size: page size of the machine that will mount the image: 4096 (the default), 16384 or 65536, or "page" for
///     this one's.
/// huge_pages: pages of a memfd: "auto", "no", "thp", "2M" or "1G".
/// numa: the NUMA node that new memory lies on.
/// replace: replace the image that a device holds; readers of the old one notice (see Image.refresh).
/// sync: write the file through to the disk before it gets its name.
/// verify: compare the image with its sources afterwards.
/// threads: how many threads copy; None for as many as there are processors.
#[pyfunction]
#[pyo3(signature = (
    sources=None, output=None, *, into=None, align=None, align_tensors=None, exact=false, overlay=None, empty=false,
    split=None, dedupe=false, links="auto", exclude=None, include=None, weights_only=false, mode=None,
    skip_special=false, plain=false, hash=None, erofs=None, mtimes=false, format=8, block_size=None, huge_pages="auto",
    numa=None, replace=false, sync=true, verify=false, threads=None,
))]
#[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub fn pack<'py>(
    py: Python<'py>,
    sources: Option<&Bound<'py, PyAny>>,
    output: Option<&Bound<'py, PyAny>>,
    into: Option<&Bound<'py, PyAny>>,
    align: Option<u64>,
    align_tensors: Option<AlignTensors>,
    exact: bool,
    overlay: Option<Room>,
    empty: bool,
    split: Option<&Bound<'py, PyAny>>,
    dedupe: bool,
    links: &str,
    exclude: Option<Globs>,
    include: Option<Globs>,
    weights_only: bool,
    mode: Option<u32>,
    skip_special: bool,
    plain: bool,
    hash: Option<bool>,
    erofs: Option<bool>,
    mtimes: bool,
    format: u32,
    block_size: Option<BlockSize>,
    huge_pages: &str,
    numa: Option<u32>,
    replace: bool,
    sync: bool,
    verify: bool,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    let huge_pages = parse_huge_pages(huge_pages)?;
    let target = match (output, into) {
        (Some(_), Some(_)) => {
            return Err(PyValueError::new_err(
                "an image goes into a file (output) or memory (into), not both",
            ));
        }
        (Some(path), None) => Target::File(source::path(path)?),
        (None, Some(memory)) => {
            Target::Memory(Memory::parse(source::path(memory)?.as_os_str(), huge_pages).or_raise()?)
        }
        (None, None) => Target::Memory(Memory::Memfd(huge_pages)),
    };
    if mode.is_some() && !matches!(target, Target::File(_)) {
        return Err(PyValueError::new_err("mode is for files; memory has no permissions of its own"));
    }
    let links: Links = links.parse().map_err(|why: String| PyValueError::new_err(format!("links: {why}")))?;
    let cancel = Cancel::default();
    let backing = split.map(source::path).transpose()?;
    let mut packer = Packer::new()
        .dedupe(dedupe)
        .overlay(overlay.map(Overlay::from))
        .empty(empty)
        .split(backing.clone())
        .links(links)
        .weights_only(weights_only)
        .mode(mode)
        .skip_special(skip_special)
        .plain(plain)
        .hash(hash.unwrap_or_else(|| target.stays()))
        .mtimes(mtimes)
        .format(parse_format(format)?)
        .huge_pages(huge_pages)
        .numa(numa)
        .replace(replace)
        .sync(sync)
        .verify(verify)
        .progress(cancel.clone());
    packer = Globs::list(exclude).into_iter().fold(packer, Packer::exclude);
    packer = Globs::list(include).into_iter().fold(packer, Packer::include);
    match sources {
        Some(sources) => {
            for path in inputs(sources)? {
                packer = packer.input(path);
            }
        }
        None if !empty => {
            return Err(PyValueError::new_err("no sources; an image without files is made with empty=True"));
        }
        None => {}
    }
    if let Some(bytes) = align {
        packer = packer.align(bytes);
    }
    if let Some(on) = erofs {
        packer = packer.erofs(on);
    }
    if let Some(count) = threads {
        packer = packer.threads(count);
    }
    packer = match block_size {
        Some(BlockSize::Bytes(bytes)) => packer.block_size(bytes),
        Some(BlockSize::Page(name)) if name == "page" => packer.block_size(page_size()?),
        Some(BlockSize::Page(name)) => {
            let message = format!("block_size is 4096, 16384, 65536 or \"page\", not {name:?}");
            return Err(PyValueError::new_err(message));
        }
        None => packer,
    };
    let (alignment, unaligned) = AlignTensors::read(align_tensors)?;
    if alignment.is_some() {
        packer = packer.tensor_alignment(alignment);
    }
    if exact || unaligned {
        packer = packer.exact(true);
    }
    let write = move |_wake| target.write(&packer.plan()?, backing);
    match unlocked::stoppable(py, &cancel.0, write, |_| Ok(()))?.or_raise()? {
        Written::File(summary) => dict(py, &summary).map(Bound::into_any),
        Written::Memory(image) => Image::new(image).into_bound_py_any(py),
    }
}

/// One glob or several.
#[derive(FromPyObject)]
pub enum Globs {
    #[pyo3(transparent)]
    One(String),
    #[pyo3(transparent)]
    Several(Vec<String>),
}

impl Globs {
    pub fn list(globs: Option<Self>) -> Vec<String> {
        match globs {
            None => Vec::new(),
            Some(Self::One(glob)) => vec![glob],
            Some(Self::Several(globs)) => globs,
        }
    }
}

/// What `align_tensors` may be.
#[derive(FromPyObject)]
pub enum AlignTensors {
    #[pyo3(transparent)]
    On(bool),
    #[pyo3(transparent)]
    Bytes(u64),
    #[pyo3(transparent)]
    Page(String),
}

impl AlignTensors {
    /// The alignment, if one was given, and whether there is to be none.
    pub fn read(given: Option<Self>) -> PyResult<(Option<u64>, bool)> {
        match given {
            None => Ok((None, false)),
            Some(Self::On(true)) => Ok((Some(DEFAULT_TENSOR_ALIGN), false)),
            Some(Self::On(false)) => Ok((None, true)),
            Some(Self::Bytes(bytes)) => Ok((Some(bytes), false)),
            Some(Self::Page(name)) if name == "page" => Ok((Some(dmabuf::page_size()), false)),
            Some(Self::Page(name)) => Err(PyValueError::new_err(format!(
                "align_tensors is a number of bytes, True, False or \"page\", not {name:?}"
            ))),
        }
    }
}

/// What `block_size` may be.
#[derive(FromPyObject)]
pub enum BlockSize {
    #[pyo3(transparent)]
    Bytes(u32),
    #[pyo3(transparent)]
    Page(String),
}

/// What `overlay` may be.
#[derive(Debug, FromPyObject)]
pub enum Room {
    #[pyo3(transparent)]
    Bytes(u64),
    #[pyo3(transparent)]
    WithBuckets((u64, u32)),
}

impl From<Room> for Overlay {
    fn from(room: Room) -> Self {
        match room {
            Room::Bytes(size) => Self { size, buckets: None },
            Room::WithBuckets((size, buckets)) => Self { size, buckets: Some(buckets) },
        }
    }
}

enum Target {
    File(PathBuf),
    Memory(Memory),
}

enum Written {
    File(Box<Summary>),
    Memory(daxfs::Image),
}

impl Target {
    /// Whether what is written is there when all descriptors of it are gone.
    fn stays(&self) -> bool {
        match self {
            Self::File(_) => true,
            Self::Memory(memory) => !memory.is_new(),
        }
    }

    fn write(self, plan: &Plan, backing: Option<PathBuf>) -> mkimage::Result<Written> {
        match self {
            Self::File(path) => Ok(Written::File(Box::new(plan.write_file(path)?))),
            Self::Memory(memory) => {
                let (region, _summary) = plan.write_region(&memory)?;
                let mut options = daxfs::OpenOptions::new();
                if let Some(path) = backing {
                    options = options.backing(daxfs::Region::open(path)?);
                }
                Ok(Written::Memory(options.open_region(region)?))
            }
        }
    }
}

/// One path, or an iterable of paths.
fn inputs(sources: &Bound<'_, PyAny>) -> PyResult<Vec<PathBuf>> {
    if source::is_path(sources)? {
        return Ok(vec![source::path(sources)?]);
    }
    sources.try_iter()?.map(|path| source::path(&path?)).collect()
}

/// This machine's, as the packer takes a size of blocks.
fn page_size() -> PyResult<u32> {
    let bytes = dmabuf::page_size();
    u32::try_from(bytes)
        .map_err(|_| PyValueError::new_err(format!("block_size: pages of {bytes} bytes are too large")))
}

fn parse_format(version: u32) -> PyResult<Format> {
    match version {
        8 => Ok(Format::V8),
        5 => Ok(Format::V5),
        _ => Err(PyValueError::new_err(format!("format is 8 or 5, not {version}"))),
    }
}

pub fn parse_huge_pages(text: &str) -> PyResult<HugePages> {
    match text {
        "auto" => Ok(HugePages::Auto),
        "no" => Ok(HugePages::No),
        "thp" => Ok(HugePages::Thp),
        "2M" => Ok(HugePages::Hugetlb2M),
        "1G" => Ok(HugePages::Hugetlb1G),
        _ => {
            let message = format!("huge_pages is 'auto', 'no', 'thp', '2M' or '1G', not {text:?}");
            Err(PyValueError::new_err(message))
        }
    }
}

/// The summary as `daxfs-pack --json` prints it, as a dict.
fn dict<'py>(py: Python<'py>, summary: &Summary) -> PyResult<Bound<'py, PyAny>> {
    let json = serde_json::to_string(summary).map_err(|error| PyValueError::new_err(error.to_string()))?;
    py.import("json")?.call_method1("loads", (json,))
}

/// Asks a pack to stop.
#[derive(Debug, Clone, Default)]
struct Cancel(Arc<AtomicBool>);

impl Progress for Cancel {
    fn start(&self, _total: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}

    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
