//! `daxfs.Image`.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use daxfs::{Entry, FileType, ViewKind};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyIterator, PyString};

use crate::device::{self, DeviceImage};
use crate::directory::{self, Directory};
use crate::error::{OrRaise, not_found};
use crate::tensors::Tensors;
use crate::text::{self, ImagePath};
use crate::walk::Walk;
use crate::watch::Watch;
use crate::{file, mapping, reduce, source, stat};

/// An opened image: a read-only mapping from paths to files.
///
/// Paths are relative to the root of the image; symbolic links are followed inside it. Close it, or use it in a
/// `with` statement; files, tensors and arrays taken from it stay valid after that.
#[pyclass(frozen, weakref, module = "daxfs")]
#[derive(Debug)]
pub struct Image(Mutex<Option<daxfs::Image>>);

impl Image {
    pub fn new(image: daxfs::Image) -> Self {
        Self(Mutex::new(Some(image)))
    }

    fn slot(&self) -> MutexGuard<'_, Option<daxfs::Image>> {
        // The slot holds a whole value at any time, so a panic elsewhere cannot have left it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image, or a `ValueError` when it was closed.
    fn opened(&self) -> PyResult<daxfs::Image> {
        self.slot().clone().ok_or_else(|| PyValueError::new_err("the image is closed"))
    }
}

/// Regular files, and symbolic links that lead to one, in the order of a walk.
pub fn files(image: &daxfs::Image) -> impl Iterator<Item = Entry> {
    image.walk().filter(|entry| match entry.file_type() {
        FileType::File => !is_index(&entry.path()),
        FileType::Symlink => {
            image.entry(entry.path()).is_ok_and(|target| target.file_type() == FileType::File)
        }
        _ => false,
    })
}

/// The file at a path; `NotFoundError` for a directory.
pub fn file_at(py: Python<'_>, image: &daxfs::Image, path: &ImagePath) -> PyResult<daxfs::File> {
    let entry = image.entry(&path.0).or_raise()?;
    if entry.file_type() == FileType::Directory {
        let name = text::quoted(py, &path.0)?;
        return Err(not_found(format!("{name} is a directory; image.directory({name}) opens it")));
    }
    entry.file().or_raise()
}

/// True for the packer's own directory, which is not part of what was packed.
pub fn is_index(path: &[u8]) -> bool {
    path.strip_prefix(b"/.daxfs").is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

#[pymethods]
impl Image {
    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().opened()?;
        Ok(slf)
    }

    #[pyo3(signature = (_exception_type, _exception, _traceback, /))]
    fn __exit__(
        &self,
        _exception_type: Option<&Bound<'_, PyAny>>,
        _exception: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) {
        self.close();
    }

    /// Lets go of the memory. It stays mapped as long as files, tensors or arrays of it are alive.
    fn close(&self) {
        let image = self.slot().take();
        // Unmapping, if it comes to that, does not need the lock.
        drop(image);
    }

    /// True after close().
    #[getter]
    fn closed(&self) -> bool {
        self.slot().is_none()
    }

    fn __getitem__<'py>(&self, py: Python<'py>, path: ImagePath) -> PyResult<Bound<'py, PyAny>> {
        file::create(py, file_at(py, &self.opened()?, &path)?)
    }

    /// The file at path, or default when there is none.
    #[pyo3(signature = (path, default=None, /))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        path: ImagePath,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        mapping::or_default(py, self.__getitem__(py, path), default)
    }

    fn __contains__(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let image = self.opened()?;
        let Ok(path) = key.extract::<ImagePath>() else { return Ok(false) };
        Ok(image.entry(&path.0).is_ok_and(|entry| entry.file_type() == FileType::File))
    }

    /// The file or directory at a path: image / "sub" / "config.json".
    fn __truediv__<'py>(&self, py: Python<'py>, path: ImagePath) -> PyResult<Bound<'py, PyAny>> {
        directory::at(py, &self.opened()?, &path.0)
    }

    /// The files whose paths match a pattern: image.glob("*.json"), image.glob("**/*.safetensors").
    ///
    /// "*" and "?" stand for characters of one name, "[seq]" and "[!seq]" for one of a set, "**" for any number of
    /// directories. As among the image's keys, symbolic links that lead to a file are found, and those that lead to a
    /// directory are not entered.
    fn glob<'py>(&self, py: Python<'py>, pattern: &str) -> PyResult<Vec<Bound<'py, PyAny>>> {
        directory::glob(py, &self.opened()?.root(), pattern)
    }

    /// (function, arguments): an image is pickled as how it is opened again: by its name, and between processes of
    /// multiprocessing by its descriptor. What was written to private memory stays here.
    ///
    /// TypeError for an image without a name, unless multiprocessing passes it.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        reduce::image(py, &self.opened()?)
    }

    /// Another object for the same memory, which is closed by itself.
    fn __copy__(&self) -> PyResult<Self> {
        self.opened().map(Self::new)
    }

    #[pyo3(signature = (_memo, /))]
    fn __deepcopy__(&self, _memo: &Bound<'_, PyAny>) -> PyResult<Self> {
        self.__copy__()
    }

    fn _ipython_key_completions_<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyString>>> {
        files(&self.opened()?).map(|entry| text::relative(py, &entry.path())).collect()
    }

    /// A table of the files; None when the image is closed.
    fn _repr_html_<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Ok(image) = self.opened() else { return Ok(None) };
        let rows = files(&image).filter_map(|entry| {
            let path = entry.path();
            let target = image.entry(&path).ok()?;
            Some((path.strip_prefix(b"/").unwrap_or(&path).to_vec(), target))
        });
        directory::html(py, &self.__repr__(py)?, rows).map(Some)
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        let image = self.opened()?;
        let names = files(&image).map(|entry| text::relative(py, &entry.path()));
        mapping::iter(py, names.collect::<PyResult<_>>()?)
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(files(&self.opened()?).count())
    }

    /// The paths of all files; symbolic links that lead to a file are among them.
    fn keys<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::keys(slf)
    }

    /// All files.
    fn values<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::values(slf)
    }

    /// All pairs of path and file.
    fn items<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        mapping::items(slf)
    }

    /// A directory of the image, by default its root.
    #[pyo3(signature = (path=ImagePath(Vec::new())))]
    fn directory(&self, py: Python<'_>, path: ImagePath) -> PyResult<Directory> {
        let entry = self.opened()?.entry(&path.0).or_raise()?;
        if entry.file_type() != FileType::Directory {
            return Err(not_found(format!("{} is not a directory", text::quoted(py, &path.0)?)));
        }
        Ok(Directory(entry))
    }

    /// The tensors of a safetensors file, of a checkpoint (its index.json) or of a directory that holds one of them.
    ///
    /// Without a path: of the one checkpoint or safetensors file that the image holds. variant chooses in a directory,
    /// or in the whole image: "fp16" for model.fp16.safetensors or model.safetensors.index.fp16.json.
    #[pyo3(signature = (path=None, *, variant=None))]
    fn tensors(&self, py: Python<'_>, path: Option<ImagePath>, variant: Option<String>) -> PyResult<Tensors> {
        let image = self.opened()?;
        let path = path.map(|path| path.0);
        let tensors = py.detach(|| match (&path, &variant) {
            (path, Some(variant)) => image.tensors_of_variant(path.as_deref().unwrap_or_default(), variant),
            (Some(path), None) => image.tensors_at(path),
            (None, None) => image.tensors(),
        });
        Ok(Tensors { tensors: tensors.or_raise()?, path, variant })
    }

    /// The path of a file that has the contents of the image's one, for libraries that take nothing else: made once, in
    /// a directory of this process that is removed when it ends. Of a directory, by default the root, the path of one
    /// with everything below but weights, and of the root without the caches of compilers.
    #[pyo3(signature = (path=None))]
    fn path<'py>(slf: &Bound<'py, Self>, path: Option<&Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("daxfs._files")?.call_method1("path", (slf, path))
    }

    /// Writes the files of the image into a directory, as they were before packing, and returns their paths in the
    /// image. What lies there already is FileExistsError.
    ///
    /// exclude_weights: leave out files of weights, by their names: *.safetensors, *.bin, *.gguf and the like.
    #[pyo3(signature = (directory, *, exclude_weights=false))]
    fn materialize<'py>(
        slf: &Bound<'py, Self>,
        directory: &Bound<'py, PyAny>,
        exclude_weights: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("daxfs._files")?.call_method1("materialize", (slf, directory, exclude_weights))
    }

    /// Walks the tree like os.walk: (path, names of directories, names of everything else) from top downward.
    ///
    /// Symbolic links are among the names of everything else and are not followed.
    #[pyo3(signature = (top=ImagePath(Vec::new())))]
    fn walk(&self, py: Python<'_>, top: ImagePath) -> PyResult<Walk> {
        Ok(Walk::new(self.directory(py, top)?.0))
    }

    /// What os.stat would say of path: type and mode, inode, links, owner, size. An image keeps no times.
    #[pyo3(signature = (path, *, follow_symlinks=true))]
    fn stat<'py>(
        &self,
        py: Python<'py>,
        path: ImagePath,
        follow_symlinks: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let image = self.opened()?;
        let entry =
            if follow_symlinks { image.entry(&path.0) } else { image.entry_no_follow(&path.0) }.or_raise()?;
        stat::result(py, entry.metadata())
    }

    /// The target of the symbolic link at path.
    fn readlink<'py>(&self, py: Python<'py>, path: ImagePath) -> PyResult<Bound<'py, PyString>> {
        let entry = self.opened()?.entry_no_follow(&path.0).or_raise()?;
        text::decode(py, entry.read_link().or_raise()?)
    }

    /// The image in a GPU's memory; device is "cuda" or "cuda:N". It is copied there, and complete when this returns. A
    /// copy that the image's holder keeps (DeviceImage.keep) is mapped instead, without progress, unless writable asks
    /// for an own one; with verify, and with the expect of open(), only if it is right. DeviceImage.copied tells.
    ///
    /// "cuda-host" or "cuda-host:N" makes the copy in host memory instead, on the NUMA node of the GPU N, which reads
    /// it in place over the link, as all other GPUs do, and so does the CPU: numpy.from_dlpack takes its tensors
    /// without a copy. The driver allocates it, so DeviceImage.share() and keep() pass it on as they do a GPU's memory,
    /// and nobody pins anything. The threads write it themselves, so register changes nothing.
    ///
    /// threads: how many threads read; None for as many as there are processors, at most 14. Meanwhile 40 MiB are
    ///     pinned as a rule.
    /// piece: bytes that each reads at a time, rounded up to 4096 (default 1 MiB).
    /// verify: compare the copy with the image, as DeviceImage.verify() does.
    /// writable: leave the memory writable for kernels of this process.
    /// register: pin the image's own pages for the copy instead of reading them into pinned buffers, where they can be
    ///     (see map()); worth trying where processors are few or busy, or pages are huge.
    /// direct: read what is not in the page cache around it, where the file system does that. False for a file that
    ///     several processes copy at the same time, so that the disk is read once.
    /// progress: called in this thread with (done, total) in bytes while the copy goes on. The bytes that verify
    ///     compares are counted for themselves after that, and so is a split image's backing file. When it returns
    ///     False, DeviceError is raised; its exceptions end the copy as well.
    /// plan, rank: copy only what a placement plan gives that rank: the path of a JSON file, or a dict of the same
    ///     form. DeviceTensor.part is what there is of a tensor then, and NotPlacedError what is asked for in vain;
    ///     ValueError for a wrong plan, or one that does not fit the image.
    ///
    /// DeviceMemoryError when the GPU, or the host, has too little memory, which leaves nothing behind; DaxfsError when
    /// another image took this one's place meanwhile; DeviceError where the driver allocates no such memory.
    #[pyo3(signature = (
        device, *, threads=None, piece=None, verify=false, writable=false, register=false, direct=true, progress=None,
        plan=None, rank=None,
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn to(
        &self,
        py: Python<'_>,
        device: &str,
        threads: Option<usize>,
        piece: Option<usize>,
        verify: bool,
        writable: bool,
        register: bool,
        direct: bool,
        progress: Option<&Bound<'_, PyAny>>,
        plan: Option<&Bound<'_, PyAny>>,
        rank: Option<usize>,
    ) -> PyResult<DeviceImage> {
        let plan = device::Ranked::read(py, plan, rank)?;
        let upload = device::Upload { threads, piece, verify, writable, register, direct, progress, plan };
        device::to(py, &self.opened()?, device, &upload)
    }

    /// Lets a GPU read the image's memory where it is, over the link: nothing is copied, the pages are pinned.
    ///
    /// That takes a memfd that is sealed against shrinking, or a file; where the driver pins only what could be
    /// written, no file, and a memfd that is not sealed against writing. DeviceError says why else.
    /// piece: most bytes in one piece, at least 2 MiB (default 64 GiB). What crosses from one to the next has no
    /// address.
    #[pyo3(signature = (device, *, piece=None))]
    fn map(&self, py: Python<'_>, device: &str, piece: Option<u64>) -> PyResult<DeviceImage> {
        device::map(py, &self.opened()?, device, piece)
    }

    /// The image in memory of a GPU that another process filled with it, or in host memory of to("cuda-host:N"), for
    /// any GPU: memory is a DeviceHandle, or the descriptor of one (duplicated: the caller keeps his) with its size and
    /// uuid. Nothing compares this image with what is there: send the content_hash along, and open with expect;
    /// DeviceImage.verify() compares. plan and rank are those that to() had there.
    #[pyo3(signature = (device, memory, *, size=None, uuid=None, plan=None, rank=None))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn attach(
        &self,
        py: Python<'_>,
        device: &str,
        memory: &Bound<'_, PyAny>,
        size: Option<u64>,
        uuid: Option<&str>,
        plan: Option<&Bound<'_, PyAny>>,
        rank: Option<usize>,
    ) -> PyResult<DeviceImage> {
        let plan = device::Ranked::read(py, plan, rank)?;
        device::attach(py, &self.opened()?, device, memory, size, uuid, plan.as_ref())
    }

    /// The descriptor of the memory, to pass it on: subprocess.Popen(..., pass_fds=[image.fileno()]).
    ///
    /// It belongs to the image: it is closed when the memory goes.
    fn fileno(&self) -> PyResult<RawFd> {
        let image = self.opened()?;
        let fd = image.region().fd().map(|fd| fd.as_raw_fd());
        fd.ok_or_else(|| PyOSError::new_err("memory of this process has no descriptor"))
    }

    /// The image that the source means now, opened as this one was; None while this one is current. Files and arrays of
    /// this image keep its memory, where another image may take its place in turn.
    ///
    /// expect: the content hash that the new image must have, in place of the one that this image was opened with.
    #[pyo3(signature = (*, expect=None))]
    fn refresh(&self, py: Python<'_>, expect: Option<&str>) -> PyResult<Option<Self>> {
        let image = self.opened()?;
        let mut options = image.options().clone();
        if let Some(hash) = expect {
            options = options.expect(text::parse_hash(hash)?);
        }
        Ok(py.detach(|| image.refresh_with(&options)).or_raise()?.map(Self::new))
    }

    /// Waits for the image's name to mean another image at its holder, or none: wait() blocks, and an event loop watches
    /// fileno() for reading.
    ///
    /// ValueError for an image that came from no holder.
    fn watch(&self, py: Python<'_>) -> PyResult<Watch> {
        let image = self.opened()?;
        let watch = py.detach(|| image.watch()).or_raise()?;
        let why = "the image came from no holder: is_current() looks at its file or memory";
        watch.map(Watch::new).ok_or_else(|| PyValueError::new_err(why))
    }

    /// The number of the image at its holder, as `daxfs ps` shows it; None for an image that came from no holder.
    #[getter]
    fn holder_generation(&self) -> PyResult<Option<u64>> {
        let image = self.opened()?;
        Ok(image.region().attachment().map(|attachment| attachment.info().generation))
    }

    /// Number of the image in its region: 0 for the first, and one more with each that replaced it there.
    #[getter]
    fn generation(&self) -> PyResult<u64> {
        Ok(self.opened()?.generation())
    }

    /// Maps all pages now, not at first touch. False where the kernel cannot.
    fn populate(&self, py: Python<'_>) -> PyResult<bool> {
        let image = self.opened()?;
        py.detach(|| image.region().populate()).or_raise()
    }

    /// Asks the kernel to move the memory to huge pages (2 MiB each where a page has 4 KiB), for everybody who maps it.
    /// False where it cannot.
    fn collapse(&self, py: Python<'_>) -> PyResult<bool> {
        let image = self.opened()?;
        py.detach(|| image.region().collapse()).or_raise()
    }

    /// Has the kernel mount the image at a directory, by its own DAXFS (the module daxfs of multikernel.io), which
    /// shows it as files from the same memory. It takes dma-bufs and physical ranges of format version 8; umount takes
    /// the mount away. An image with an overlay can be written there, and changes for all.
    ///
    /// SourceError for an image that is none of these and where the kernel has no DAXFS, FormatError for one that
    /// breaks a rule of strict opening, PermissionError without CAP_SYS_ADMIN, OSError with what else the kernel
    /// answers.
    #[pyo3(signature = (directory, *, backing=None))]
    fn mount(
        &self,
        py: Python<'_>,
        directory: &Bound<'_, PyAny>,
        backing: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (image, directory) = (self.opened()?, source::path(directory)?);
        let backing = backing.map(source::path).transpose()?;
        py.detach(|| match &backing {
            None => image.mount(&directory),
            Some(path) => image.mount_split(&directory, path),
        })
        .or_raise()
    }

    /// Bytes of the memory that this process has "mapped", that are "resident", and that "huge" pages map, and the
    /// "page_size".
    #[getter]
    fn pages<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let image = self.opened()?;
        let pages = PyDict::new(py);
        if let Some(stats) = py.detach(|| image.region().pages()).or_raise()? {
            pages.set_item("mapped", stats.mapped)?;
            pages.set_item("resident", stats.resident)?;
            pages.set_item("huge", stats.huge)?;
            pages.set_item("page_size", stats.page_size)?;
        }
        Ok(pages)
    }

    /// Format version, 5 or 8.
    #[getter]
    fn version(&self) -> PyResult<u32> {
        Ok(self.opened()?.superblock().version)
    }

    /// Block size in bytes: files start at multiples of it.
    #[getter]
    fn block_size(&self) -> PyResult<u32> {
        Ok(self.opened()?.superblock().block_size)
    }

    /// Bytes of the image.
    #[getter]
    fn size(&self) -> PyResult<u64> {
        Ok(self.opened()?.superblock().total_size)
    }

    /// What is known of writers: "sealed" (nobody can write), "trusted" or "shared" (others may write).
    #[getter]
    fn provenance(&self) -> PyResult<String> {
        Ok(self.opened()?.region().provenance().to_string())
    }

    /// The kind of memory: "memfd", "dma-buf", "file", "devdax", "PCI memory", "physical range", or "process memory"
    /// for bytes without a descriptor.
    #[getter]
    fn kind(&self) -> PyResult<&'static str> {
        Ok(kind(&self.opened()?))
    }

    /// The driver that made the dma-buf, for example "udmabuf"; None for other memory.
    #[getter]
    fn exporter(&self) -> PyResult<Option<String>> {
        let image = self.opened()?;
        Ok(image.region().info().and_then(|info| info.kind.exporter()).map(str::to_owned))
    }

    /// True while the source still means this image: the holder's name was not swapped or dropped, the path was not
    /// replaced by another file, the file not cut short, and no other image was packed over this one. A sealed copy,
    /// and sealed memory that came as a descriptor, is current for good.
    ///
    /// ConnectionError when no holder is there, TimeoutError when it does not answer.
    fn is_current(&self, py: Python<'_>) -> PyResult<bool> {
        let image = self.opened()?;
        py.detach(|| image.is_current()).or_raise()
    }

    /// What was applied to get the tree: "base", "overlay" (changes of a kernel that mounted it) or "branch".
    #[getter]
    fn view(&self) -> PyResult<&'static str> {
        Ok(match self.opened()?.view_kind() {
            ViewKind::Overlay { .. } => "overlay",
            ViewKind::Branch { .. } => "branch",
            _ => "base",
        })
    }

    /// BLAKE3 over all paths and contents as the packer recorded it, in hexadecimal; None when it did not.
    #[getter]
    fn content_hash(&self) -> PyResult<Option<String>> {
        Ok(self.opened()?.content_hash().map(|hash| hash.digits().to_string()))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let Ok(image) = self.opened() else {
            return Ok("<daxfs.Image, closed>".into());
        };
        let superblock = image.superblock();
        let path = match image.region().fd().and_then(dmabuf::fd_link) {
            Some(path) => format!(" {}", path.into_pyobject(py)?.str()?.repr()?),
            None => String::new(),
        };
        Ok(format!(
            "<daxfs.Image{path}: version {}, {} entries, {}, {}, {}>",
            superblock.version,
            image.len(),
            text::size(superblock.total_size),
            kind(&image),
            image.region().provenance(),
        ))
    }
}

fn kind(image: &daxfs::Image) -> &'static str {
    image.region().info().map_or("process memory", |info| info.kind.name())
}
