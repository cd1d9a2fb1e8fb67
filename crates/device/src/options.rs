//! How an image is copied into a device's memory.

#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

/// Told how many bytes of how many are done; `false` ends the copy.
type Progress = dyn Fn(u64, u64) -> bool + Send + Sync;

/// How an image is copied into a device's memory. Threads, pieces, [`UploadOptions::register`] and
/// [`UploadOptions::direct`] are for CUDA; OpenCL is written to by one thread.
#[derive(Clone)]
pub struct UploadOptions {
    pub(crate) threads: usize,
    pub(crate) piece: usize,
    verify: bool,
    writable: bool,
    in_host: bool,
    pub(crate) register: bool,
    pub(crate) direct: bool,
    progress: Option<Arc<Progress>>,
}

impl fmt::Debug for UploadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploadOptions")
            .field("threads", &self.threads)
            .field("piece", &self.piece)
            .field("verify", &self.verify)
            .field("writable", &self.writable)
            .field("in_host", &self.in_host)
            .field("register", &self.register)
            .field("direct", &self.direct)
            .finish_non_exhaustive()
    }
}

impl Default for UploadOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl UploadOptions {
    /// As many threads as there are processors, but at most 14; pieces of 1 MiB; files that are not in memory are read
    /// around the page cache; mapped for reading afterwards; no verification.
    ///
    /// On an H200 with 16 processors, whose link takes 55 GB/s, 12 to 14 threads of 4.7 GB/s come nearest to that; 16
    /// are in each other's way.
    pub fn new() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(14);
        Self {
            threads,
            piece: 1 << 20,
            verify: false,
            writable: false,
            in_host: false,
            register: false,
            direct: true,
            progress: None,
        }
    }

    /// Threads that read, at least 1. What they read lies in pinned memory until it is on the device: in blocks of as
    /// many pieces as have 8 MiB, at least one. There are blocks for a piece of each thread, and three more.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Bytes that a thread reads at a time, not 0, rounded up to a multiple of 4096.
    #[must_use]
    pub fn piece(mut self, bytes: usize) -> Self {
        self.piece = bytes.max(1).checked_next_multiple_of(4096).unwrap_or(usize::MAX - 4095);
        self
    }

    /// Compares the copy with the image, as [`MappedImage::verify`](crate::MappedImage::verify) does: each
    /// file's hash, computed by the device. [`DeviceError::Mismatch`](crate::DeviceError::Mismatch) names a
    /// file that is another there. A holder's copy is compared, too, and one that is another is not taken.
    #[must_use]
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Makes a copy of its own for this process, and leaves it writable for its kernels. Otherwise it is mapped for
    /// reading, and a kernel that writes to it is a fault, which ends the context: a guard rail, since whoever has the
    /// memory's descriptor may map it otherwise.
    #[must_use]
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }

    /// Makes the copy in host memory of the device's NUMA node, which the driver allocates, instead of the device's
    /// own. The device reads it over the link, at the speed of pinned memory, and the CPU at the same addresses. It is
    /// passed on as memory of the device is ([`Buffer::share`](crate::Buffer::share), [`MappedImage::keep`]), and
    /// every process that attaches to it, with whichever GPU of the machine, reads the same pages without pinning
    /// anything. A holder has such a copy besides those on devices, and neither is taken for the other. The threads
    /// fill the memory themselves, so [`UploadOptions::register`] changes nothing.
    ///
    /// [`MappedImage::keep`]: crate::MappedImage::keep
    #[must_use]
    pub fn in_host(mut self, in_host: bool) -> Self {
        self.in_host = in_host;
        self
    }

    /// Pins the image's own pages, a quarter of a GiB at a time, and lets the device fetch them from there, instead of
    /// reading them into pinned buffers. It saves the processors a copy and costs the pinning, which takes two to four
    /// times as long with pages of 4 KiB (measured on an H100 with 16 processors): for where processors are few or
    /// busy, or pages are huge. What cannot be pinned (see [`Image::map`](crate::ImageExt::map)) is read as without
    /// this. A memfd that this process has mapped for the same device by `ImageExt::map` is pinned already, and always
    /// fetched from there.
    #[must_use]
    pub fn register(mut self, register: bool) -> Self {
        self.register = register;
        self
    }

    /// Whether parts of a file that are not in the page cache are read around it (`O_DIRECT`), which saves a copy and
    /// leaves the cache to others; where the file system refuses that, or does not tell what is in the cache, all is
    /// read through it. `false` reads all through it: for a file that several processes copy at the same time, so that
    /// it is read from the disk once.
    #[must_use]
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// Calls `progress` with the bytes that were read and all bytes, from several threads, which may overtake each
    /// other; `false` ends the upload with [`DeviceError::Cancelled`](crate::DeviceError::Cancelled). A split
    /// image is two uploads. Verification comes after that and counts the bytes of all files anew.
    #[must_use]
    pub fn progress(mut self, progress: impl Fn(u64, u64) -> bool + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }

    /// Whether a copy that another process made will do: not for who wants to write.
    pub(crate) fn takes_others(&self) -> bool {
        !self.writable
    }

    pub(crate) fn verifies(&self) -> bool {
        self.verify
    }

    pub(crate) fn is_in_host(&self) -> bool {
        self.in_host
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Tells who wants to know; `false` when that ends the work.
    pub(crate) fn advance(&self, done: u64, all: u64) -> bool {
        self.progress.as_ref().is_none_or(|progress| progress(done, all))
    }
}
