//! The sources of a load: a directory is packed, a file is copied, and memory that cannot shrink is kept as it is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use daxfs::{Image, format};
use dmabuf::{CpuAccess, FdKind, HugePages, Mapping, Memfd};
use mkimage::Packer;

use crate::config::Target;
use crate::error::{Error, Result};
use crate::limits::{Budget, Reservation};
use crate::load::{LoadOptions, Watch};

/// Bytes copied between two looks at the cancellation flag.
const COPY_CHUNK: u64 = 4 << 20;

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

/// Packs a directory. Its files are read with the holder's rights, through the client's descriptor.
pub(crate) fn pack(
    directory: &Path,
    options: &LoadOptions,
    budget: &Budget,
    watch: &Arc<Watch>,
) -> Result<(OwnedFd, Reservation)> {
    let packer = Packer::new()
        .input(directory)
        .tensor_alignment(options.align_tensors)
        .dedupe(options.dedupe)
        .progress(PackProgress(Arc::clone(watch)));
    let plan = packer.plan()?;
    let reservation = budget.reserve(plan.total_size(), options.fresh(plan.total_size()))?;
    let (fd, _) = plan.write_memory(&options.memory())?;
    Ok((fd, reservation))
}

/// True for memory that a load keeps as it is, without a copy: nobody can take its pages away, so it may be mapped.
pub fn is_kept(kind: &FdKind) -> bool {
    kind.keeps_pages()
}

/// Copies an image of `len` bytes from a file, or from a memfd that could shrink, into memory of its own. It is read,
/// not mapped; what came is validated afterwards.
pub(crate) fn copy(
    source: BorrowedFd<'_>,
    len: u64,
    options: &LoadOptions,
    budget: &Budget,
    watch: &Watch,
) -> Result<(OwnedFd, Reservation)> {
    check_magic(source)?;
    let reservation = budget.reserve(len, options.fresh(len))?;
    watch.total.store(len, Ordering::Relaxed);
    watch.done.store(0, Ordering::Relaxed);
    let bytes = usize::try_from(len).map_err(|_| too_short(0, len))?;
    let fill = |fd: BorrowedFd<'_>, huge: bool| -> Result<()> {
        let mut mapping = Mapping::read_write(fd, 0, bytes)?;
        if huge {
            dmabuf::allocate_huge(&mapping, 0..len)?;
        }
        let mut target = mapping.view_mut()?;
        let mut done = 0;
        while done < len {
            watch.check()?;
            let mut part = target.get_mut(done, COPY_CHUNK.min(len - done))?;
            let count = part.pread_from(source, done).map_err(|e| Error::system("read the source", e))?;
            if count == 0 {
                return Err(too_short(done, len));
            }
            done += count as u64;
            watch.done.fetch_add(count as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    let fd = match &options.into {
        Target::Memfd(pages) => {
            let memfd = Memfd::create("daxfs", len, *pages)?;
            fill(memfd.as_fd(), matches!(pages, HugePages::Auto | HugePages::Thp))?;
            memfd.seal(options.seals())?;
            memfd.into()
        }
        Target::Udmabuf => {
            let memfd = Memfd::create("daxfs", len, HugePages::No)?;
            fill(memfd.as_fd(), false)?;
            dmabuf::udmabuf_from(&memfd)?
        }
        Target::Heap(name) => {
            let fd = dmabuf::heap_allocate(name, len)?;
            let access = CpuAccess::begin(fd.as_fd(), dmabuf::Access::Write)?;
            fill(fd.as_fd(), false)?;
            access.finish()?;
            fd
        }
    };
    Ok((fd, reservation))
}

fn too_short(found: u64, len: u64) -> Error {
    let error = std::io::Error::other(format!(
        "only {found} of its {len} bytes are there; did somebody cut it short?"
    ));
    Error::system("read the source", error)
}

/// Refuses at once what is no image: it may be long.
fn check_magic(source: BorrowedFd<'_>) -> Result<()> {
    let mut magic = [0; 4];
    nix::sys::uio::pread(source, &mut magic, 0).map_err(|e| Error::system("read the source", e))?;
    match u32::from_le_bytes(magic) {
        format::MAGIC => Ok(()),
        found => Err(daxfs::Error::NotAnImage { found }.into()),
    }
}

/// Recomputes the hashes that the image carries, so that a name's content hash is what clients really get.
pub(crate) fn verify(image: &Image, watch: &Watch) -> Result<()> {
    let Some(index) = image.index()? else { return Ok(()) };
    let Some(stored) = index.content_hash() else { return Ok(()) };
    watch.total.store(image.region().len(), Ordering::Relaxed);
    watch.done.store(0, Ordering::Relaxed);
    let found = daxfs::content_hash(image, |file, hash| {
        watch.check()?;
        watch.done.fetch_add(file.len(), Ordering::Relaxed);
        let stored = index.file_hash(file.ino())?;
        if stored.is_some_and(|stored| stored != hash) {
            return Err(Error::WrongHash {
                path: String::from_utf8_lossy(&file.path()).into_owned(),
                stored: stored.map_or_else(String::new, |hash| hex(&hash)),
                found: hex(&hash),
            });
        }
        Ok(())
    })?;
    if found != stored {
        let path = "content hash of the image".to_owned();
        return Err(Error::WrongHash { path, stored: hex(&stored), found: hex(&found) });
    }
    Ok(())
}

fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
