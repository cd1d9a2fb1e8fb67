//! The sources of a load: a directory is packed, a file is copied, and memory that nobody can write is kept as it is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use daxfs::{Image, OpenOptions, Verify, format};
use dmabuf::{CpuAccess, FdKind, HugePages, Mapping, Memfd, MemoryClass, Seals};
use mkimage::Packer;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};

use crate::config::Target;
use crate::error::{Error, Result};
use crate::limits::{Budget, Reservation};
use crate::load::{LoadOptions, Watch};

/// Bytes copied between two looks at the cancellation flag.
const COPY_CHUNK: u64 = 4 << 20;
/// Bytes on their way from one mapping to another.
const MAPPED_CHUNK: usize = 64 << 10;

/// The packer's progress goes to the watch.
#[derive(Debug)]
struct PackProgress(Arc<Watch>);

impl mkimage::Progress for PackProgress {
    fn start(&self, total: u64) {
        self.0.total.store(total, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn finish(&self) {}

    fn cancelled(&self) -> bool {
        self.0.cancel.load(Ordering::Relaxed)
    }
}

/// Packs a directory with the holder's rights, through the client's descriptor: for those who have the same rights.
pub(crate) fn pack(
    directory: &Path,
    options: &LoadOptions,
    budget: &Budget,
    watch: &Arc<Watch>,
) -> Result<(OwnedFd, Reservation)> {
    let packer = Packer::new().input(directory).progress(PackProgress(Arc::clone(watch)));
    let packer = options.packing.apply(packer);
    let failed = |error: mkimage::Error| match error {
        mkimage::Error::Cancelled => Error::Cancelled,
        mkimage::Error::Confined { .. } => Error::ClientPacks,
        error => Error::Packing(name_within(&error.to_string(), directory)),
    };
    let plan = packer.plan().map_err(failed)?;
    for warning in plan.warnings() {
        watch.warn(name_within(&warning, directory));
    }
    let reservation = budget.reserve(plan.total_size(), options.fresh(plan.total_size()))?;
    let (fd, _) = plan.write_memory(&options.memory()).map_err(failed)?;
    Ok((fd, reservation))
}

/// An error of the packer in the words of a load: paths begin with `.`, which stands for the source, since the path of a
/// descriptor says nothing to who named it; and what is advised exists.
pub(crate) fn name_within(text: &str, directory: &Path) -> String {
    let text = text.replace(&directory.display().to_string(), ".");
    let advice = "(daxfs-pack --skip-special leaves such files out)";
    text.replace("(--skip-special leaves such files out)", advice)
}

/// True for memory that a load keeps as it is, without a copy. Nobody can take its pages away, so it may be mapped; and
/// nobody can write it or grow it, unless it is to be open to writing anyhow (`shared`).
pub fn is_kept(kind: &FdKind, shared: bool) -> bool {
    let grows = kind.seals().is_some_and(|seals| !seals.contains(Seals::GROW));
    kind.is_immutable() || shared && kind.keeps_pages() && !grows
}

/// Takes from a memfd that could grow the way to do that, if it can be: else it could exceed every budget once it is
/// held.
pub(crate) fn forbid_growing(source: BorrowedFd<'_>, kind: &FdKind) {
    if let Some(seals) = kind.seals()
        && seals.contains(Seals::SHRINK)
        && !seals.intersects(Seals::GROW | Seals::SEAL)
    {
        // What cannot be sealed is copied.
        let _ = fcntl(source, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW));
    }
}

/// Copies an image of `len` bytes from a file, or from memory that others can write, into memory of its own. What could
/// be cut short is read, not mapped; what came is validated afterwards.
pub(crate) fn copy(
    source: BorrowedFd<'_>,
    len: u64,
    options: &LoadOptions,
    budget: &Budget,
    watch: &Watch,
) -> Result<(OwnedFd, Reservation)> {
    let bytes = usize::try_from(len).map_err(|_| too_short(0, len))?;
    // Devices and dma-bufs know no read(2), and their pages stay.
    let kind = dmabuf::describe(source)?.kind;
    let mapped = match kind.class() {
        MemoryClass::Pages => None,
        _ if kind.keeps_pages() => Some(Mapping::read_only(source, 0, bytes)?),
        _ => return Err(Error::NotCopied),
    };
    let syncs = kind.syncs_reads();
    let _access = syncs.then(|| CpuAccess::begin(source, dmabuf::Access::Read)).transpose()?;
    check_magic(source, mapped.as_ref())?;
    let reservation = budget.reserve(len, options.fresh(len))?;
    let from = match &mapped {
        Some(mapped) => Reading::Mapped(mapped),
        None => Reading::Read(source),
    };
    let fd = match &options.into {
        Target::Memfd(pages) => {
            let memfd = Memfd::create("daxfs", len, *pages)?;
            fill(memfd.as_fd(), len, matches!(pages, HugePages::Auto | HugePages::Thp), &from, watch)?;
            memfd.seal(options.seals())?;
            memfd.into()
        }
        Target::Udmabuf => {
            let memfd = Memfd::create("daxfs", len, HugePages::No)?;
            fill(memfd.as_fd(), len, false, &from, watch)?;
            dmabuf::udmabuf_from(&memfd)?
        }
        Target::Heap(name) => into_heap(name, len, &from, watch)?,
    };
    Ok((fd, reservation))
}

/// Memory that a helper has packed, as the kind that the load wants: only the holder need be allowed to make that. It is
/// never there twice: a udmabuf is made of the helper's pages, and those that a heap's are copied from go one by one.
pub(crate) fn settle(packed: OwnedFd, options: &LoadOptions, watch: &Watch) -> Result<OwnedFd> {
    match &options.into {
        Target::Memfd(_) => Ok(packed),
        Target::Udmabuf => Ok(dmabuf::udmabuf_from(&Memfd::from_fd(packed)?)?),
        Target::Heap(name) => {
            let len = dmabuf::describe(packed.as_fd())?.len;
            into_heap(name, len, &Reading::Released(packed.as_fd()), watch)
        }
    }
}

fn into_heap(name: &str, len: u64, from: &Reading<'_>, watch: &Watch) -> Result<OwnedFd> {
    let fd = dmabuf::heap_allocate(name, len)?;
    let access = CpuAccess::begin(fd.as_fd(), dmabuf::Access::Write)?;
    fill(fd.as_fd(), len, false, from, watch)?;
    access.finish()?;
    Ok(fd)
}

/// How bytes are copied.
enum Reading<'a> {
    /// Out of a mapping: what knows no read(2).
    Mapped(&'a Mapping),
    Read(BorrowedFd<'a>),
    /// Out of memory that nobody needs afterwards: what is copied is given back at once.
    Released(BorrowedFd<'a>),
}

/// Fills new memory of `len` bytes.
fn fill(fd: BorrowedFd<'_>, len: u64, huge: bool, from: &Reading<'_>, watch: &Watch) -> Result<()> {
    watch.total.store(len, Ordering::Relaxed);
    watch.done.store(0, Ordering::Relaxed);
    let bytes = usize::try_from(len).map_err(|_| too_short(0, len))?;
    let mut mapping = Mapping::read_write(fd, 0, bytes)?;
    if huge {
        dmabuf::allocate_huge(&mapping, 0..len)?;
    }
    let mut target = mapping.view_mut()?;
    let mut done = 0;
    while done < len {
        watch.check()?;
        let wanted = COPY_CHUNK.min(len - done);
        let count = match from {
            Reading::Read(source) | Reading::Released(source) => {
                let mut part = target.get_mut(done, wanted)?;
                part.pread_from(*source, done).map_err(|e| Error::system("read the source", e))? as u64
            }
            Reading::Mapped(mapped) => {
                let part = mapped.view().get(done, wanted)?;
                part.chunks(&mut vec![0; MAPPED_CHUNK], |at, bytes| target.copy_from(done + at, bytes))?;
                wanted
            }
        };
        if count == 0 {
            return Err(too_short(done, len));
        }
        if let Reading::Released(source) = from {
            release(*source, done, count)?;
        }
        done += count;
        watch.done.fetch_add(count, Ordering::Relaxed);
    }
    Ok(())
}

/// Gives pages of a memfd back.
fn release(memfd: BorrowedFd<'_>, from: u64, count: u64) -> Result<()> {
    let failed = |error: std::io::Error| Error::system("give memory of the helper back", error);
    let at = |at: u64| libc::off_t::try_from(at).map_err(|error| failed(std::io::Error::other(error)));
    let (from, count) = (at(from)?, at(count)?);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    dmabuf::uninterrupted(|| fallocate(memfd, flags, from, count)).map_err(|error| failed(error.into()))
}

fn too_short(found: u64, len: u64) -> Error {
    let error = std::io::Error::other(format!(
        "only {found} of its {len} bytes are there; did somebody cut it short?"
    ));
    Error::system("read the source", error)
}

/// Refuses at once what is not an image: it may be long.
fn check_magic(source: BorrowedFd<'_>, mapped: Option<&Mapping>) -> Result<()> {
    let mut head = [0; daxfs::Foreign::HEAD];
    let len = match mapped {
        Some(mapped) => {
            let len = mapped.view().len().min(head.len());
            mapped.view().read_at(0, head.get_mut(..len).unwrap_or_default())?;
            len
        }
        None => {
            nix::sys::uio::pread(source, &mut head, 0).map_err(|e| Error::system("read the source", e))?
        }
    };
    if let Some(kind) = head.get(..len).and_then(daxfs::Foreign::of) {
        return Err(daxfs::Error::Foreign { kind }.into());
    }
    let magic = head.first_chunk::<4>().copied().unwrap_or_default();
    match u32::from_le_bytes(magic) {
        format::MAGIC => Ok(()),
        found => Err(daxfs::Error::NotAnImage { found }.into()),
    }
}

/// Compares the index with the headers of the files, and recomputes the hashes that the image carries on all processors,
/// so that a name's content hash is what clients really get, by the index as well as by the files.
pub(crate) fn verify(image: &Image, watch: &Arc<Watch>) -> Result<()> {
    image.check_erofs()?;
    watch.check()?;
    let Some(index) = image.index()? else { return Ok(()) };
    index.check(image)?;
    watch.check()?;
    // The check of version 1 is this one.
    if index.version() != format::index::v1::VERSION {
        index.verify(image)?;
        watch.check()?;
    }
    if index.content_hash().is_none() {
        return Ok(());
    }
    let told = Arc::clone(watch);
    let progress = move |done, total| {
        told.total.store(total, Ordering::Relaxed);
        told.done.store(done, Ordering::Relaxed);
        told.check().is_ok()
    };
    let options = OpenOptions::new().verify(Verify::Full).progress(progress);
    match options.open_region(image.region().clone()) {
        Ok(_) => Ok(()),
        Err(daxfs::Error::Cancelled) => Err(Error::Cancelled),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_released_is_there_once() {
        let len = 3 * COPY_CHUNK + dmabuf::page_size();
        let [packed, target] =
            ["packed", "target"].map(|name| Memfd::create(name, len, HugePages::No).unwrap());
        let mut mapping = Mapping::read_write(packed.as_fd(), 0, usize::try_from(len).unwrap()).unwrap();
        let bytes: Vec<u8> = (0..len).map(|at| (at % 251).to_le_bytes()[0]).collect();
        mapping.view_mut().unwrap().copy_from(0, &bytes).unwrap();
        drop(mapping);
        let blocks = |memfd: &Memfd| nix::sys::stat::fstat(memfd.as_fd()).unwrap().st_blocks * 512;
        assert!(blocks(&packed) >= i64::try_from(len).unwrap());
        packed.seal(Seals::SHRINK | Seals::GROW).unwrap();
        fill(target.as_fd(), len, false, &Reading::Released(packed.as_fd()), &Watch::default()).unwrap();
        assert_eq!((blocks(&packed), packed.len()), (0, len));
        let copied = Mapping::read_only(target.as_fd(), 0, usize::try_from(len).unwrap()).unwrap();
        assert!(copied.view().to_vec() == bytes);
    }
}
