//! Writes a planned image, once: into a file that appears when it is complete, or into memory with a descriptor.

use crate::buffers::Buffers;
use crate::copy::{Copier, Task};
use crate::hash::{self, Leaf};
use crate::index::{self, Hashes};
use crate::memory::{self, Finish, Memory};
use crate::output::{Output, Readers, parent};
use crate::packer::Plan;
use crate::parallel::Threads;
use crate::source::Opener;
use crate::summary::{Pages, Size, Summary};
use crate::target::{Access, DISK_STEP, Target};
use crate::tree::Kind;
use crate::{Error, Result, metadata, parallel, reflink, verify};
use daxfs::format::erofs;
use daxfs::{Part, Region};
use dmabuf::{CpuAccess, HugePages, Mapping};
use nix::sys::stat::{FileStat, fstat};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

/// Files below this size are copied even where they could be cloned: the system call and the extent that it adds
/// to the file system's tables cost more than the bytes.
pub(crate) const SMALLEST_CLONE: u64 = 256 << 10;

/// One byte of so many is asked for its page: no transparent huge page is smaller.
const PROBE: u64 = 2 << 20;

/// The backing file of a split image, while it is written.
#[derive(Debug)]
struct Backing {
    output: Output,
    target: Target,
}

impl Backing {
    /// `None` for an image that has none. `image` is the file that the image goes to.
    fn create(plan: &Plan, image: Option<&Path>) -> Result<Option<Backing>> {
        let (Some(path), Some(range)) = (&plan.settings.split, &plan.layout.backing) else { return Ok(None) };
        if image.is_some_and(|image| is_same_place(image, path)) {
            let why = "is the file that the image goes to; the contents need another one".to_owned();
            return Err(Error::Output { path: path.clone(), why });
        }
        plan.refuse_output_inside_input(path)?;
        let readers = plan.readers()?;
        let output = Output::create(path, readers)?;
        let fd = output.as_fd().try_clone_to_owned().map_err(|error| Error::io("open", path, error))?;
        let mut target = Target::new(fd, path, Access::Write(DISK_STEP), true);
        target.first = range.start;
        target.syncs = plan.settings.sync;
        let len = range.end - range.start;
        target.file.set_len(len).map_err(|error| Error::io("set the length of", path, error))?;
        Ok(Some(Backing { output, target }))
    }
}

/// What was cloned into a target.
#[derive(Debug, Default)]
struct Cloned {
    /// The files, of which the target has everything now.
    files: HashSet<u32>,
    /// How much of them was not copied.
    bytes: u64,
}

/// Whether two paths name one file, or will.
fn is_same_place(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| Some((parent(path).canonicalize().ok()?, path.file_name()?.to_owned()));
    matches!((place(one), place(other)), (Some(one), Some(other)) if one == other)
}

impl Plan {
    /// Writes the image into a file, which appears under `path` when it is complete and replaces what was there.
    /// Programs that have mapped an image of that name keep the old one.
    ///
    /// On a file system with reflinks large files are cloned; in a tmpfs the file is made of huge pages unless
    /// [`Packer::huge_pages`](crate::Packer::huge_pages) says otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::Changed`] when a source file is not what the plan saw, [`Error::Output`], [`Error::Io`],
    /// [`Error::Setting`] for huge pages that the file system has not and for a NUMA node, and with
    /// verification [`Error::Mismatch`] and [`Error::Reader`]. No file is left behind by any of them.
    pub fn write_file(&self, path: impl AsRef<Path>) -> Result<Summary> {
        let path = path.as_ref();
        let started = Instant::now();
        if self.settings.node.is_some() {
            let why = "is for memory that --into makes, not for files".to_owned();
            return Err(Error::Setting { option: "--numa", why });
        }
        self.refuse_output_inside_input(path)?;
        let readers = self.readers()?;
        let backing = Backing::create(self, Some(path))?;
        let mut output = Output::create(path, readers)?;
        let fd = output.as_fd().try_clone_to_owned().map_err(|error| Error::io("open", path, error))?;
        let is_memory = fstatfs(&fd).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC);
        let mut target = match (is_memory, self.settings.pages) {
            (true, pages @ (HugePages::No | HugePages::Auto | HugePages::Thp)) => {
                Target::of_pages(fd, path, pages)
            }
            (false, HugePages::No | HugePages::Auto) => Target::new(fd, path, Access::Write(DISK_STEP), true),
            _ => {
                let why =
                    format!("{}: files on a tmpfs have auto, no or thp, others auto or no", path.display());
                return Err(Error::Setting { option: "--hugepages", why });
            }
        };
        target.syncs = self.settings.sync && !is_memory;
        target
            .file
            .set_len(self.layout.total)
            .map_err(|error| Error::io("set the length of", path, error))?;
        let mut summary = Summary::of(self, path.display().to_string());
        summary.mode = Some(format!("{:04o}", output.mode));
        summary.is_private = matches!(readers, Readers::Of { others: false, .. });
        let erofs = self.write(&target, backing.as_ref(), !is_memory, &mut summary)?;
        target.write_superblock(&metadata::superblock(&self.layout, 0, erofs.as_ref()))?;
        if is_memory {
            self.describe_pages(target.file.as_fd(), &mut summary)?;
        }
        summary.warnings.extend(target.shortfall());
        if self.settings.verify {
            self.verify(target.file.as_fd(), Part::WHOLE, backing.as_ref(), &mut summary)?;
        }
        // Whoever finds the image finds its backing file.
        if let Some(backing) = backing {
            backing.output.commit(self.settings.sync)?;
        }
        if self.settings.fsverity {
            // Its descriptor can write.
            drop(target);
            summary.fsverity = Some(output.protect()?.to_string());
        }
        output.commit(self.settings.sync)?;
        summary.took(started.elapsed().as_secs_f64());
        Ok(summary)
    }

    /// Writes the image into memory and gives its descriptor, which is all that keeps the memory (but for a
    /// device).
    ///
    /// A memfd comes back sealed: nobody can change it any more. A udmabuf or heap is a dma-buf, which everybody
    /// who has the descriptor can write to.
    ///
    /// # Errors
    ///
    /// As [`Plan::write_file`], and [`Error::Memory`] when the memory cannot be had, [`Error::TooSmall`],
    /// [`Error::HoldsImage`].
    pub fn write_memory(&self, memory: &Memory) -> Result<(OwnedFd, Summary)> {
        let (fd, _, summary) = self.write_part(memory)?;
        Ok((fd, summary))
    }

    /// As [`Plan::write_memory`], and maps the memory, or the part of it that was named, for reading.
    ///
    /// # Errors
    ///
    /// As [`Plan::write_memory`], and [`Error::Target`] when it cannot be mapped.
    pub fn write_region(&self, memory: &Memory) -> Result<(Region, Summary)> {
        let (fd, part, summary) = self.write_part(memory)?;
        Ok((Region::from_fd_part(fd, part).map_err(Error::Target)?, summary))
    }

    /// Writes the image into memory; the part is what was named of it.
    pub(crate) fn write_part(&self, memory: &Memory) -> Result<(OwnedFd, Part, Summary)> {
        let started = Instant::now();
        let mut summary = Summary::of(self, memory.to_string());
        if self.layout.overlay.is_some() && matches!(memory, Memory::Memfd(_)) {
            let why = "needs memory that stays writable: udmabuf, heap:NAME or a device, not a sealed memfd";
            return Err(Error::Setting { option: "--overlay", why: why.to_owned() });
        }
        let backing = Backing::create(self, None)?;
        let (target, finish) = memory::create(memory, self.layout.total, &self.settings, |path, fd| {
            let stat = fstat(fd).map_err(|errno| Error::io("stat", path, errno))?;
            self.refuse_backing(path, &stat, backing.as_ref())?;
            self.refuse_source(path, &stat)
        })?;
        {
            let access = finish.begin(&target)?;
            let erofs = self.write(&target, backing.as_ref(), false, &mut summary)?;
            target.write_superblock(&finish.superblock(&self.layout, target.shift, erofs.as_ref()))?;
            access.map_or(Ok(()), CpuAccess::finish)?;
        }
        if finish.has_pages() {
            self.describe_pages(target.file.as_fd(), &mut summary)?;
        }
        summary.warnings.extend(target.shortfall());
        // A memfd cannot be sealed while its own descriptor maps it; none does here.
        let fd = finish.end(&target, self.settings.sync)?;
        let mut part = Part::WHOLE;
        if let Finish::Region { region, .. } = &finish {
            part = region.part;
            summary.generation = (region.generation > 0).then_some(region.generation);
            summary.keeps_previous = region.keeps_old();
        }
        if self.settings.verify
            && let Err(error) = self.verify(fd.as_fd(), part, backing.as_ref(), &mut summary)
        {
            if let Finish::Region { region, .. } = &finish {
                region.withdraw(&target)?;
            }
            return Err(error);
        }
        if let Some(backing) = backing {
            backing.output.commit(self.settings.sync)?;
        }
        summary.took(started.elapsed().as_secs_f64());
        Ok((fd, part, summary))
    }

    /// Fills the target with everything but the superblock. Returns that of the EROFS view.
    fn write(
        &self,
        target: &Target,
        backing: Option<&Backing>,
        is_file: bool,
        summary: &mut Summary,
    ) -> Result<Option<erofs::Superblock>> {
        let progress = &*self.settings.progress;
        progress.start(summary.data_bytes);
        let outcome = self.write_parts(target, backing, is_file, summary);
        progress.finish();
        outcome
    }

    fn write_parts(
        &self,
        target: &Target,
        backing: Option<&Backing>,
        is_file: bool,
        summary: &mut Summary,
    ) -> Result<Option<erofs::Superblock>> {
        // The one of the two that what is in files goes to.
        let files = backing.map_or(target, |backing| &backing.target);
        let can_clone = is_file || backing.is_some();
        let Cloned { files: present, bytes } =
            if can_clone { self.clone_files(files)? } else { Cloned::default() };
        summary.cloned_bytes = bytes;
        if can_clone {
            summary.unclonable_bytes = self.unclonable(files, !present.is_empty())?;
            if present.is_empty() {
                self.reserve(files)?;
            }
        }
        let has_index = self.layout.shape.index.is_some();
        let progress = &*self.settings.progress;
        let hash = self.settings.hash && has_index;
        let mut task = Task { plan: self, target, hash, present, progress };
        let mut leaves = self.copy(&task, 0..self.layout.total)?;
        if let Some(range) = self.layout.backing.clone() {
            task.target = files;
            let [files, originals] = self.copy(&task, range)?;
            leaves[0].extend(files);
            leaves[1].extend(originals);
        }
        self.check_unread()?;
        let hashes = if hash { Some(self.file_hashes(leaves)?) } else { None };
        if let Some(ino) = self.layout.index_file() {
            let (bytes, content) = index::build(&self.tree, &self.layout, &self.tensors, hashes.as_ref())?;
            files.write_late(self.layout.extent(ino).offset, &bytes)?;
            summary.content_hash = content;
        }
        if let (Some(ino), Some(config)) = (self.layout.config_file(), self.tree.config()) {
            files.write_late(self.layout.extent(ino).offset, config)?;
        }
        self.view.as_ref().map_or(Ok(None), |view| view.write(self, target))
    }

    /// Copies everything but superblock and index, on several threads. The hashes come back unsorted: those of the
    /// files, and those of the sources of files that are made anew.
    fn copy(&self, task: &Task<'_>, part: Range<u64>) -> Result<[Vec<Leaf>; 2]> {
        let total = part.end - part.start;
        // The room of regions stays as it is where it is zero.
        let is_room =
            |window: &Range<u64>| task.target.zeroed && task.target.first == 0 && self.layout.is_room(window);
        let size = task.target.window();
        let windows =
            usize::try_from(total.div_ceil(size)).map_err(|_| Error::Overflow { what: "the image" })?;
        let work = |state: &mut (Copier<'_>, Buffers), at: usize| {
            let (copier, buffers) = state;
            let start = part.start + at as u64 * size;
            let window = start..part.end.min(start + size);
            if is_room(&window) {
                return Ok([Vec::new(), Vec::new()]);
            }
            if !task.hash && self.is_in_one_of(&task.present, &window) {
                task.progress.advance(window.end - window.start);
                return Ok([Vec::new(), Vec::new()]);
            }
            task.target.fill(window.clone(), buffers, |block, range| copier.fill(block, range, &window))?;
            copier.finish()?;
            Ok([std::mem::take(&mut copier.leaves), std::mem::take(&mut copier.original_leaves)])
        };
        let state = || (Copier::new(task), Buffers::default());
        // A thread for each window's worth of bytes at most; what was cloned is read only to be hashed.
        let present =
            if task.hash { 0 } else { task.present.iter().map(|&ino| self.layout.extent(ino).len).sum() };
        let pieces = usize::try_from((total - present).div_ceil(size)).unwrap_or(windows);
        let threads = Threads::Most(self.settings.threads.for_pieces(pieces));
        let parts = parallel::map(windows, threads, state, work)?;
        let (files, originals): (Vec<_>, Vec<_>) =
            parts.into_iter().map(|[files, originals]| (files, originals)).unzip();
        Ok([files.concat(), originals.concat()])
    }

    /// Files that own no bytes of the image, because they are empty or share another file's, are not read. They
    /// must not have changed either.
    fn check_unread(&self) -> Result<()> {
        let owns = |ino| self.layout.extent(ino).len > 0 && !self.shares.contains_key(&ino);
        let files = self.layout.numbers.files(&self.tree);
        let unread: Vec<u32> = files.filter(|&(ino, _)| !owns(ino)).map(|(_, node)| node).collect();
        let state = || Opener::new(&self.tree);
        parallel::map(unread.len(), self.settings.threads, state, |opener, at| {
            let source = opener.file(unread[at])?;
            source.check_end()
        })?;
        Ok(())
    }

    /// The hashes of all regular files from those of their parts.
    fn file_hashes(&self, [mut leaves, mut originals]: [Vec<Leaf>; 2]) -> Result<Hashes> {
        leaves.sort_unstable_by_key(Leaf::key);
        originals.sort_unstable_by_key(Leaf::key);
        let count = self.layout.numbers.node.len();
        let mut hashes = Hashes {
            files: vec![[0; 32]; count],
            groups: vec![Vec::new(); count],
            originals: HashMap::new(),
        };
        let mut rest = &leaves[..];
        for (ino, node) in self.layout.numbers.files(&self.tree) {
            let count = rest.partition_point(|leaf| leaf.ino <= ino);
            let (own, others) = rest.split_at(count);
            rest = others;
            let len = self.layout.extent(ino).len;
            let found = match self.shares.get(&ino).map(|owner| (owner - 1) as usize) {
                Some(owner) => Some((hashes.files[owner], hashes.groups[owner].clone())),
                None => hash::root(own, len).zip(hash::groups(own, len)),
            };
            // Every byte was copied, so every leaf is there, unless the copying itself is wrong.
            let at = (ino - 1) as usize;
            (hashes.files[at], hashes.groups[at]) = found.ok_or_else(|| Error::Mismatch {
                path: self.tree.source_path(node),
                what: "parts of its hash are missing".to_owned(),
            })?;
            let Some(rewrite) = self.rewrite(ino) else { continue };
            let owner = self.shares.get(&ino).copied().unwrap_or(ino);
            let start = originals.partition_point(|leaf| leaf.ino < owner);
            let own = &originals[start..];
            let own = &own[..own.partition_point(|leaf| leaf.ino == owner)];
            let hash = hash::root(own, rewrite.source_len).ok_or_else(|| Error::Mismatch {
                path: self.tree.source_path(node),
                what: "parts of the hash of its source are missing".to_owned(),
            })?;
            hashes.originals.insert(ino, hash);
        }
        Ok(hashes)
    }

    /// Clones what can be cloned into the target: whole blocks, behind which the rest of the file is written.
    fn clone_files(&self, target: &Target) -> Result<Cloned> {
        let mut cloned = Cloned::default();
        let Ok(device) = fstat(&target.file).map(|stat| stat.st_dev) else { return Ok(cloned) };
        let candidates: Vec<u32> =
            self.layout.files.iter().copied().filter(|&ino| self.is_clonable(ino, device)).collect();
        let mut opener = Opener::new(&self.tree);
        let unit = reflink::unit(&target.file);
        for ino in candidates {
            if self.settings.progress.cancelled() {
                return Err(Error::Cancelled);
            }
            let extent = self.layout.extent(ino);
            let len = extent.len / unit * unit;
            let source = opener.file(self.layout.numbers.node_of(ino))?;
            let Some(file) = source.whole() else { continue };
            match reflink::clone(file, &target.file, target.place(extent.offset), len) {
                Ok(true) => {}
                // The first refusal speaks for the file system: most have no clones at all.
                Ok(false) if cloned.files.is_empty() => break,
                Ok(false) => continue,
                Err(errno) => return Err(Error::io("clone a file into", &target.path, errno)),
            }
            let rest = source.read_end(len)?;
            if !rest.is_empty() {
                target.write_late(extent.offset + len, &rest)?;
            }
            source.check()?;
            cloned.files.insert(ino);
            cloned.bytes += len;
        }
        Ok(cloned)
    }

    /// Whether all of `window` lies in one of these files.
    fn is_in_one_of(&self, files: &HashSet<u32>, window: &Range<u64>) -> bool {
        let at = self.layout.files.partition_point(|&ino| self.layout.extent(ino).end() < window.end);
        let file = self.layout.files.get(at);
        file.is_some_and(|ino| files.contains(ino) && self.layout.extent(*ino).offset <= window.start)
    }

    /// Bytes of files that are not cloned because their tensors are moved. Where nothing was cloned, one block tells
    /// whether the file system can; what is written there replaces it.
    fn unclonable(&self, target: &Target, mut can_clone: bool) -> Result<u64> {
        let Ok(device) = fstat(&target.file).map(|stat| stat.st_dev) else { return Ok(0) };
        let mut opener = Opener::new(&self.tree);
        let mut bytes = 0;
        for &ino in self.layout.files.iter().filter(|&&ino| self.rewrite(ino).is_some()) {
            // A short one can be made of a source that is mostly spaces.
            if !self.is_large_neighbour(ino, device) || self.layout.extent(ino).len < SMALLEST_CLONE {
                continue;
            }
            if !can_clone {
                let source = opener.file(self.layout.numbers.node_of(ino))?;
                let place = target.place(self.layout.extent(ino).offset);
                let Some(file) = source.whole() else { continue };
                can_clone = reflink::clone(file, &target.file, place, reflink::unit(&target.file))
                    .map_err(|errno| Error::io("clone a block into", &target.path, errno))?;
                if !can_clone {
                    return Ok(0);
                }
            }
            bytes += self.layout.extent(ino).len;
        }
        Ok(bytes)
    }

    fn is_clonable(&self, ino: u32, device: u64) -> bool {
        self.is_large_neighbour(ino, device) && self.rewrite(ino).is_none()
    }

    /// Whether a file lies in the file system `device`, and cloning it is worth a call.
    fn is_large_neighbour(&self, ino: u32, device: u64) -> bool {
        let identity = self.tree.node(self.layout.numbers.node_of(ino)).identity;
        identity.dev == device && identity.size >= SMALLEST_CLONE
    }

    /// Who may read the image.
    fn readers(&self) -> Result<Readers> {
        match self.settings.mode {
            Some(mode) => Ok(Readers::Mode(mode)),
            None => self.tree.readers(self.settings.threads),
        }
    }

    /// An image inside its own source would be packed into the next one.
    fn refuse_output_inside_input(&self, path: &Path) -> Result<()> {
        let directory = parent(path);
        let stat = nix::sys::stat::stat(directory).map_err(|errno| Error::io("open", directory, errno))?;
        let mut directories =
            self.tree.iter().filter(|(_, node)| matches!(node.kind, Kind::Directory { .. }));
        // A root that stands for several inputs has the identity of the first of them.
        let is_source = |number| self.tree.origin(number).is_some();
        match directories.find(|(number, node)| {
            (node.identity.dev, node.identity.ino) == (stat.st_dev, stat.st_ino) && is_source(*number)
        }) {
            None => self.refuse_input_as_output(path),
            Some(_) => Err(Error::Output {
                path: path.to_path_buf(),
                why: "lies inside the tree that is being packed; name a place outside of it".to_owned(),
            }),
        }
    }

    /// An output in place of a file that it holds would be all that is left of that file.
    fn refuse_input_as_output(&self, path: &Path) -> Result<()> {
        let Ok(stat) = nix::sys::stat::stat(path) else { return Ok(()) };
        self.refuse_source(path, &stat)
    }

    /// Refuses to write into a file that the backing file will take the place of: the image would be lost with it.
    fn refuse_backing(&self, path: &Path, stat: &FileStat, backing: Option<&Backing>) -> Result<()> {
        let Some(split) = self.settings.split.as_deref().filter(|_| backing.is_some()) else { return Ok(()) };
        match nix::sys::stat::lstat(split) {
            Ok(there) if (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino) => Err(Error::Output {
                path: split.to_path_buf(),
                why: format!(
                    "is {}, which the image goes into; name another file for --split",
                    path.display()
                ),
            }),
            _ => Ok(()),
        }
    }

    /// Refuses to write into a file that is packed.
    fn refuse_source(&self, path: &Path, stat: &FileStat) -> Result<()> {
        let source = match &self.tree.archive {
            Some(archive) => archive.input_at(stat.st_dev, stat.st_ino).map(Path::to_path_buf),
            None => self.tree.file_at(stat.st_dev, stat.st_ino).map(|number| self.tree.source_path(number)),
        };
        let Some(source) = source else { return Ok(()) };
        let why = format!("is {}, which is being packed; name another file", source.display());
        Err(Error::Output { path: path.to_path_buf(), why })
    }

    /// Asks the kernel which pages the memory is made of and where they are: one byte of each 2 MiB is enough to have
    /// them mapped.
    fn describe_pages(&self, fd: BorrowedFd<'_>, summary: &mut Summary) -> Result<()> {
        let len = usize::try_from(self.layout.total).map_err(|_| Error::Overflow { what: "the image" })?;
        let map = Mapping::read_only(fd, 0, len)?;
        let mut offset = 0;
        while offset < self.layout.total {
            map.view().read_at(offset, &mut [0])?;
            offset += PROBE;
        }
        summary.pages = match map.pages() {
            Ok(stats) => {
                Some(Pages { page_size: stats.page_size, huge_bytes: stats.huge.min(self.layout.total) })
            }
            // Without a mounted /proc nobody says, and nothing else needs it.
            Err(error) if error.io_kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        let step = usize::try_from(PROBE).map_err(|_| Error::Overflow { what: "a page" })?;
        summary.nodes = dmabuf::nodes_of(map.view(), step)?;
        if let Some(node) = self.settings.node {
            let elsewhere: u64 =
                summary.nodes.iter().filter(|(at, _)| **at != node).map(|(_, bytes)| bytes).sum();
            if elsewhere > 0 {
                let text = format!("NUMA node {node}: {} lie on other nodes", Size(elsewhere));
                summary.warnings.push(text);
            }
        }
        Ok(())
    }

    fn verify(
        &self,
        fd: BorrowedFd<'_>,
        part: Part,
        backing: Option<&Backing>,
        summary: &mut Summary,
    ) -> Result<()> {
        let path = Path::new(&summary.target);
        let own =
            |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(|error| Error::io("open", path, error));
        let backing = match backing {
            Some(backing) => Some(Region::from_fd(own(backing.target.file.as_fd())?)?),
            None => None,
        };
        let region = Region::from_fd_part(own(fd)?, part)?;
        verify::verify(self, region, backing, summary.content_hash)?;
        summary.verified = true;
        Ok(())
    }
}
