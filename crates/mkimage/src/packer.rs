//! The builder: what to pack and how, and the plan that comes out of it.

mod check;
mod planned;

pub use planned::Plan;

use crate::erofs::{self, View};
use crate::parallel::Threads;
use crate::plan::{Format, Layout, Numbers, Placement, Shape};
use crate::progress::{Progress, Silent};
use crate::regions::Overlay;
use crate::scan::{Rules, scan};
use crate::selection::Selection;
use crate::tensors;
use crate::tree::Tree;
use crate::{Limits, Links, Platform, Result, dedupe, index};
use dmabuf::HugePages;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Default of [`Packer::align`].
pub const DEFAULT_ALIGN: u64 = 2 << 20;
/// Default of [`Packer::tensor_alignment`]: enough for all that takes tensors in place. JAX views what lies on 64 bytes,
/// Vulkan devices bind storage buffers at multiples of up to 256, and so does CUDA allocate.
pub const DEFAULT_TENSOR_ALIGN: u64 = 256;

/// Collects inputs and settings, then makes a [`Plan`].
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # std::fs::write(dir.path().join("config.json"), "{}")?;
/// # let source = dir.path();
/// let plan = mkimage::Packer::new().input(source).align(4096).plan()?;
/// assert_eq!(plan.files(), 1);
/// assert_eq!(plan.total_size() % 4096, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Packer {
    inputs: Vec<PathBuf>,
    rules: Rules,
    exclude: Vec<String>,
    include: Vec<String>,
    format: Format,
    block_size: u32,
    align: u64,
    tensor_align: Option<u64>,
    exact: bool,
    dedupe: bool,
    overlay: Option<Overlay>,
    empty: bool,
    erofs: Option<bool>,
    mtimes: bool,
    settings: Settings,
}

/// What the writer needs to know of the settings.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) hash: bool,
    pub(crate) pages: HugePages,
    /// Node that new memory lies on.
    pub(crate) node: Option<u32>,
    /// What an image may be moved by without changing the alignment of anything in it.
    pub(crate) unit: u64,
    pub(crate) replace: bool,
    /// The backing file.
    pub(crate) split: Option<PathBuf>,
    pub(crate) sync: bool,
    pub(crate) fsverity: bool,
    pub(crate) threads: Threads,
    pub(crate) verify: bool,
    /// Permissions of a file that is written, where they are not those that its sources and the umask leave.
    pub(crate) mode: Option<u32>,
    pub(crate) progress: Arc<dyn Progress>,
}

impl Default for Packer {
    fn default() -> Packer {
        Packer::new()
    }
}

impl Packer {
    /// A packer with the defaults named at each setting, and no input.
    #[must_use]
    pub fn new() -> Packer {
        Packer {
            inputs: Vec::new(),
            rules: Rules::default(),
            exclude: Vec::new(),
            include: Vec::new(),
            format: Format::V8,
            block_size: 4096,
            align: DEFAULT_ALIGN,
            tensor_align: None,
            exact: false,
            dedupe: false,
            overlay: None,
            empty: false,
            erofs: None,
            mtimes: false,
            settings: Settings {
                hash: true,
                pages: HugePages::Auto,
                node: None,
                unit: DEFAULT_ALIGN,
                replace: false,
                split: None,
                sync: true,
                fsverity: false,
                threads: Threads::Processors,
                verify: false,
                mode: None,
                progress: Arc::new(Silent),
            },
        }
    }

    /// Adds a file or directory, or a container image or archive by its name: `oci:DIR[:TAG]`,
    /// `oci://REGISTRY/REPOSITORY[:TAG]`, `docker-archive:FILE[:NAME]`, `tar:FILE` ([`daxfs_oci::Source`]), or a tree of files
    /// that lies elsewhere: `hf://ORG/NAME[@REVISION]`, `s3://BUCKET/FOLDER/` ([`daxfs::RemoteAddress::is_tree`]). Its root
    /// becomes that of the image; `./` in front of a path that begins so makes it a path. What lies elsewhere the program
    /// daxfs-remote fetches, when it is planned, into `TMPDIR` or `/var/tmp`. A single directory becomes the root of the image; a single file, and each of
    /// several inputs, lies in the root under its base name. Inputs that are symbolic links are followed; what becomes
    /// of links below them, [`Packer::links`] says.
    #[must_use]
    pub fn input(mut self, path: impl AsRef<Path>) -> Packer {
        self.inputs.push(path.as_ref().to_path_buf());
        self
    }

    /// Which of the container images for several machines is packed; by default the one for this machine, or the only
    /// one.
    #[must_use]
    pub fn platform(mut self, platform: Option<Platform>) -> Packer {
        self.rules.images.platform = platform;
        self
    }

    /// Bounds on what a container image or archive may hold.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Packer {
        self.rules.images.limits = limits;
        self
    }

    /// Files of at least this many bytes start on a multiple of it: a power of two up to 1 GiB, 2 MiB by default.
    /// All others start on a block boundary.
    #[must_use]
    pub fn align(mut self, bytes: u64) -> Packer {
        self.align = bytes;
        self
    }

    /// What tensors in safetensors files are moved to multiples of: a power of two from 8 to 1 GiB; `None` for the
    /// default, 256. A file in which one lies elsewhere gets a new header, and filler tensors where it needs them. The
    /// index keeps what is needed to make the source's exact bytes of it again ([`daxfs::File::original`]). Such a file
    /// is not cloned where the file system could.
    ///
    /// Files of other kinds, and safetensors files that are aligned as they are, are packed byte for byte.
    #[must_use]
    pub fn tensor_alignment(mut self, bytes: Option<u64>) -> Packer {
        self.tensor_align = bytes;
        self
    }

    /// Whether all files are packed byte for byte, off by default: no tensor is moved. Excludes
    /// [`Packer::tensor_alignment`].
    #[must_use]
    pub fn exact(mut self, on: bool) -> Packer {
        self.exact = on;
        self
    }

    /// Whether files with the same contents are stored once, off by default. They stay separate files.
    #[must_use]
    pub fn dedupe(mut self, on: bool) -> Packer {
        self.dedupe = on;
        self
    }

    /// Whether FIFOs, sockets and devices are left out instead of refused, off by default.
    #[must_use]
    pub fn skip_special(mut self, on: bool) -> Packer {
        self.rules.skip_special = on;
        self
    }

    /// What becomes of symbolic links below the inputs, [`Links::Auto`] by default.
    #[must_use]
    pub fn links(mut self, links: Links) -> Packer {
        self.rules.links = links;
        self
    }

    /// Whether a link that leads out of the tree is refused where it would be followed, off by default: for who packs
    /// with rights that the owner of the links does not have.
    #[must_use]
    pub fn confined(mut self, on: bool) -> Packer {
        self.rules.confined = on;
        self
    }

    /// Leaves out what a glob matches, and all that lies below a directory that it matches. The rules are gitignore's,
    /// on paths from the root of the image: `*.bin` is of every directory, `/original/` is of the root and a directory,
    /// and `!keep.bin` takes back what an earlier glob has left out.
    #[must_use]
    pub fn exclude(mut self, glob: impl Into<String>) -> Packer {
        self.exclude.push(glob.into());
        self
    }

    /// Packs only what one of these globs matches, and all that lies below a directory that it matches, less what
    /// [`Packer::exclude`] leaves out. Directories of which nothing is left are not packed.
    #[must_use]
    pub fn include(mut self, glob: impl Into<String>) -> Packer {
        self.include.push(glob.into());
        self
    }

    /// Whether, in directories with safetensors files, other forms of the same weights are left out (`.bin` and `.pth`
    /// twins, `original/`, `onnx/` and the like) and what a training leaves beside them; and everywhere what downloads
    /// leave (`.git`, `.cache`, `*.incomplete`, `*.lock`, `._*`). Off by default.
    #[must_use]
    pub fn weights_only(mut self, on: bool) -> Packer {
        self.rules.selection.weights_only = on;
        self
    }

    /// Permissions of a file that the image is written to, whatever the umask. By default it is readable by no more
    /// people than all files of the tree are, by their permissions and those of the directories in the tree and around
    /// it, within what the umask leaves.
    #[must_use]
    pub fn mode(mut self, mode: Option<u32>) -> Packer {
        self.settings.mode = mode;
        self
    }

    /// Whether the image holds the source tree and nothing else, that is, no index; off by default. Without it the
    /// image holds `/.daxfs/index` with the tensors, if there are any, and the hashes. Without an index moved tensors
    /// could not be moved back, so files are packed byte for byte, as with [`Packer::exact`].
    #[must_use]
    pub fn plain(mut self, on: bool) -> Packer {
        self.rules.plain = on;
        self
    }

    /// Whether the index holds the BLAKE3 hash of each file and of the whole content, on by default. Without it a
    /// tree that has no tensors gets no index.
    #[must_use]
    pub fn hash(mut self, on: bool) -> Packer {
        self.settings.hash = on;
        self
    }

    /// Whether the image gets an EROFS view ([`daxfs::erofs`]), by which every stock Linux mounts it: a second file system
    /// over the same data blocks. By default it gets one where it can have one, and [`Summary`](crate::Summary) says why
    /// not; with `true` planning fails there. No hash covers the view: readers compare it with the image's own tree.
    #[must_use]
    pub fn erofs(mut self, on: bool) -> Packer {
        self.erofs = Some(on);
        self
    }

    /// Whether the EROFS view has the times at which the sources were modified, off by default: the same contents give the
    /// same image then, whenever they were made, and all times are 0, as the kernel's DAXFS shows them.
    #[must_use]
    pub fn mtimes(mut self, on: bool) -> Packer {
        self.mtimes = on;
        self
    }

    /// The format's version, [`Format::V8`] by default.
    #[must_use]
    pub fn format(mut self, format: Format) -> Packer {
        self.format = format;
        self
    }

    /// Page size of the machine that will mount the image: 4096 (default), 16384 or 65536; 4096 for format 5.
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Packer {
        self.block_size = bytes;
        self
    }

    /// Which pages a file on tmpfs, or the memfd under a udmabuf, is made of: [`HugePages::Auto`] by default, which
    /// means ordinary pages for a udmabuf. Disk files have none, and [`Memory::Memfd`](crate::Memory::Memfd) says it
    /// itself.
    #[must_use]
    pub fn huge_pages(mut self, pages: HugePages) -> Packer {
        self.settings.pages = pages;
        self
    }

    /// The NUMA node that new memory lies on: memfds, the memfd under a udmabuf, buffers of the heap `system`. By
    /// default where the kernel likes. For memfds and udmabufs the summary says where it is.
    #[must_use]
    pub fn numa(mut self, node: Option<u32>) -> Packer {
        self.settings.node = node;
        self
    }

    /// Whether the image of a region that holds one, or held one, is replaced; off by default. Readers of the old one
    /// keep its bytes if both fit into the region, and notice in any case: see `docs/generations.md`.
    #[must_use]
    pub fn replace(mut self, on: bool) -> Packer {
        self.settings.replace = on;
        self
    }

    /// Room for what kernels that mount the image write, none by default. Format 8 only; in memory it takes what stays
    /// writable: a udmabuf, a dma-heap, a device.
    #[must_use]
    pub fn overlay(mut self, overlay: Option<Overlay>) -> Packer {
        self.overlay = overlay;
        self
    }

    /// Whether the image has no inputs and no base image, off by default: an empty file system that is written by the
    /// kernels that mount it, which needs [`Packer::overlay`]. Its root belongs to root and has mode 0755.
    #[must_use]
    pub fn empty(mut self, on: bool) -> Packer {
        self.empty = on;
        self
    }

    /// The file that gets the contents of all files, so that the image holds names and metadata only; none by default.
    /// Readers and the kernel need it besides the image ([`daxfs::OpenOptions::backing`]). It is written and replaced
    /// as [`Plan::write_file`] does, before the image appears. Format 8 only.
    #[must_use]
    pub fn split(mut self, backing: Option<PathBuf>) -> Packer {
        self.settings.split = backing;
        self
    }

    /// Turns fs-verity on for the file before it gets its name: nobody can write it from then on, and the kernel compares
    /// what is read of it with a digest, which the summary has. For files on ext4, btrfs and f2fs that have it; writing
    /// fails elsewhere.
    #[must_use]
    pub fn fsverity(mut self, on: bool) -> Packer {
        self.settings.fsverity = on;
        self
    }

    /// Whether a file is synced to its disk before it gets its name, on by default.
    #[must_use]
    pub fn sync(mut self, on: bool) -> Packer {
        self.settings.sync = on;
        self
    }

    /// How many threads read and copy, at least 1; by default as many as there are processors.
    #[must_use]
    pub fn threads(mut self, count: usize) -> Packer {
        self.settings.threads = Threads::Most(count);
        self
    }

    /// Whether the finished image is opened again and compared with its source, off by default.
    #[must_use]
    pub fn verify(mut self, on: bool) -> Packer {
        self.settings.verify = on;
        self
    }

    /// Who is told about the progress.
    #[must_use]
    pub fn progress(mut self, progress: impl Progress + 'static) -> Packer {
        self.settings.progress = Arc::new(progress);
        self.rules.images.progress = Arc::clone(&self.settings.progress);
        self
    }

    /// What of the inputs [`Packer::exclude`], [`Packer::include`] and [`Packer::weights_only`] leave out, by its path
    /// from the root of the image; directories end in a slash, and nothing below them is named. Lists the inputs; of
    /// contents, `weights_only` reads the first 8 bytes of safetensors files.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) for a setting out of range, and what is wrong with an input: see
    /// [`crate::Error`].
    pub fn left_out(mut self) -> Result<Vec<PathBuf>> {
        self.check()?;
        self.select()?;
        Ok(scan(&self.inputs, &self.rules, self.settings.threads)?.left_out)
    }

    fn select(&mut self) -> Result<()> {
        let weights_only = self.rules.selection.weights_only;
        self.rules.selection = Selection::new(&self.exclude, &self.include, weights_only)?;
        Ok(())
    }

    /// Lists the inputs, reads the headers of safetensors files, and lays the image out. Equal inputs and settings
    /// give an equal image: no time, owner of the process or order of a directory goes into it, but for the times that
    /// [`Packer::mtimes`] asks for.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) for a setting out of range, and what is wrong with an input: see
    /// [`crate::Error`].
    pub fn plan(mut self) -> Result<Plan> {
        self.check()?;
        self.select()?;
        let tree = match self.empty {
            true => Tree::of_nothing(),
            false => scan(&self.inputs, &self.rules, self.settings.threads)?,
        };
        let numbers = Numbers::assign(&tree);
        let tensor_align = self.moves_to();
        let tensors = tensors::read(&tree, &numbers, tensor_align)?;
        tensors::check_counts(&tensors)?;
        let is_rewritten = |ino| tensors.rewrite(ino).is_some();
        let has_view = self.has_view();
        let capabilities = match has_view {
            true => erofs::capabilities(&tree, &numbers, self.settings.threads)?,
            false => HashMap::new(),
        };
        // A view has no room for the end of a file beside its capabilities.
        let is_alone = |ino| capabilities.contains_key(&ino);
        let shares = match self.dedupe {
            true => dedupe::find(&tree, &numbers, is_rewritten, is_alone, self.settings.threads)?,
            false => HashMap::new(),
        };
        // Hashes are the identity of any content, so they are kept without tensors, too.
        let indexed = !self.empty && !self.rules.plain && (self.settings.hash || !tensors.files.is_empty());
        let size_of = |ino, size| tensors.rewrite(ino).map_or(size, |rewrite| rewrite.len);
        let index = indexed.then(|| index::size(&tree, &numbers, &tensors, size_of, self.settings.hash));
        let mut view = match has_view {
            true => {
                let shape = daxfs::erofs::Shape { block_size: self.block_size, times: self.mtimes };
                Some(View::plan(&tree, &numbers, capabilities, shape, &size_of, &shares)?)
            }
            false => None,
        };
        let config = tree.config().filter(|_| !self.rules.plain).map(|config| config.len() as u64);
        let unit = self.align.max(tensor_align.unwrap_or(1)).max(self.block_size.into());
        let shape = Shape {
            format: self.format,
            block_size: self.block_size,
            align: self.align,
            index,
            config,
            erofs: view.as_ref().map(View::len),
            overlay: self.overlay,
            split: self.settings.split.as_ref().map(|_| unit),
            empty: self.empty,
        };
        let placement = |ino| Placement {
            size: tensors.rewrite(ino).map(|rewrite| rewrite.len),
            align: tensor_align.filter(|_| tensors.files.contains_key(&ino)).unwrap_or(1),
            shares: shares.get(&ino).copied(),
        };
        let mut layout = Layout::new(&tree, numbers, placement, shape)?;
        let mut no_view = self.view_obstacle().filter(|_| self.erofs.is_none()).map(str::to_owned);
        if view.is_some() && layout.total / u64::from(self.block_size) > u64::from(u32::MAX) {
            let why = format!("an image of more than 2^32 blocks of {} bytes can have none", self.block_size);
            if self.erofs.is_some() || self.mtimes {
                return Err(erofs::refuse(why));
            }
            (view, no_view) = (None, Some(why));
            let shape = Shape { erofs: None, ..layout.shape };
            layout = Layout::new(&tree, layout.numbers, placement, shape)?;
        }
        let mut settings = self.settings;
        settings.unit = unit;
        Ok(Plan { tree, tensors, layout, shares, view, no_view, settings })
    }

    /// Whether the image gets an EROFS view: unless it is to have none, or can have none.
    fn has_view(&self) -> bool {
        self.erofs.unwrap_or_else(|| self.view_obstacle().is_none())
    }

    /// Why it can have none.
    fn view_obstacle(&self) -> Option<&'static str> {
        let split = self.settings.split.is_some();
        erofs::obstacle(self.rules.plain, self.overlay.is_some(), split, self.empty)
    }

    /// What tensors are moved to multiples of; `None`: they stay where they are.
    fn moves_to(&self) -> Option<u64> {
        (!self.exact && !self.rules.plain).then_some(self.tensor_align.unwrap_or(DEFAULT_TENSOR_ALIGN))
    }
}
