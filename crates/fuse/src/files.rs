//! The answers to the kernel's questions.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::{Duration, UNIX_EPOCH};

use daxfs::{Entry, FileType};
use fuser::{
    Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, Request,
};

use crate::content;
use crate::options::Options;
use crate::shown::{Caching, Shown};

/// Longest name, as everywhere on Linux.
const NAME_MAX: u32 = 255;
/// Requests that wait at once without anybody waiting for them: pages that are read ahead.
const BACKGROUND: u16 = 64;
/// The unit of statfs(2).
const BLOCK: u32 = 4096;

/// What is shown now, for the threads that answer and the one that watches.
pub struct State {
    shown: RwLock<Arc<Shown>>,
    /// Whether the watching thread is to look now.
    look: Mutex<bool>,
    told: Condvar,
}

impl State {
    pub fn new(shown: Shown) -> Self {
        Self { shown: RwLock::new(Arc::new(shown)), look: Mutex::new(false), told: Condvar::new() }
    }

    /// The image that is shown now.
    pub fn shown(&self) -> Arc<Shown> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows another one.
    pub fn show(&self, next: Arc<Shown>) {
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = next;
    }

    /// Has the watching thread look now.
    pub fn look(&self) {
        *self.look.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.told.notify_all();
    }

    /// Waits until it is time to look.
    pub fn wait(&self, most: Duration) {
        let look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.told.wait_timeout_while(look, most, |look| !*look);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

/// The file system.
pub struct Files {
    state: Arc<State>,
    /// Whether files and directories are opened without a message.
    silent: bool,
    /// Whether others than the owner may ask.
    for_others: bool,
    /// Whether files are read around the page cache.
    direct: bool,
}

impl Files {
    pub fn new(state: Arc<State>, options: &Options) -> Self {
        Self { state, silent: false, for_others: options.for_others(), direct: options.direct_io }
    }

    /// Calls `answer` with an entry and what shows it, or says that the image of that number is gone.
    fn with<R>(
        &self,
        id: INodeNo,
        answer: impl FnOnce(&Shown, &Entry) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        let shown = self.state.shown();
        let entry = shown.entry(id.0).ok_or(Errno::ESTALE)?;
        answer(&shown, entry)
    }

    /// What a name in a directory means: attributes, and how long they hold. A name that is not there is worth to be
    /// remembered, too: attributes with the number 0.
    fn look_up(&self, parent: INodeNo, name: &[u8]) -> Result<(Duration, FileAttr), Errno> {
        if name.len() > NAME_MAX as usize {
            return Err(Errno::ENAMETOOLONG);
        }
        self.with(parent, |shown, directory| {
            let entry = match name {
                // Of any inode: the kernel has nothing but its number, from a handle (open_by_handle_at(2)).
                b"." => Some(directory.clone()),
                _ if directory.file_type() != FileType::Directory => return Err(Errno::ENOTDIR),
                b".." => Some(directory.parent().unwrap_or_else(|| directory.clone())),
                _ => directory.child(name),
            };
            let time = shown.caching().time();
            match entry {
                Some(entry) => Ok((time, shown.attributes(&entry).ok_or(Errno::EIO)?)),
                None => Ok((time, absent())),
            }
        })
    }
}

/// What stands for a name that is not there.
fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    }
}

/// Calls `add` with what is in a directory from `offset` on, until that says that there is no more room: number, offset
/// of what follows, name, and the entry.
fn list(
    shown: &Shown,
    directory: &Entry,
    offset: u64,
    mut add: impl FnMut(u64, u64, &[u8], &Entry) -> bool,
) -> Result<(), Errno> {
    if directory.file_type() != FileType::Directory {
        return Err(Errno::ENOTDIR);
    }
    let mut at = offset;
    loop {
        let next = at.saturating_add(1);
        let child;
        let (name, entry): (&[u8], Entry) = match at {
            0 => (b".", directory.clone()),
            1 => (b"..", directory.parent().unwrap_or_else(|| directory.clone())),
            _ => match usize::try_from(at.saturating_sub(2)).ok().and_then(|at| directory.nth_child(at)) {
                Some(found) => {
                    child = found;
                    (child.name(), child.clone())
                }
                None => return Ok(()),
            },
        };
        at = next;
        // What the kernel cannot be told of is not there for it; a look at its name says why.
        if let Some(id) = shown.id(entry.metadata().ino)
            && add(id, next, name, &entry)
        {
            return Ok(());
        }
    }
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPORT_SUPPORT
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_ASYNC_DIO;
        let silent = InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        let is_kept = self.state.shown().caching() != Caching::Brief;
        self.silent = is_kept && !self.direct && config.capabilities().contains(silent);
        if self.silent {
            wanted |= silent;
        }
        if self.direct {
            // Programs are mapped: without this none of the image could be started.
            wanted |= InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
            self.direct = config.capabilities().contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        }
        // Where others may ask, mounts with mapped owners can be made of this one. The kernel checks permissions.
        if self.for_others {
            wanted |= InitFlags::FUSE_ALLOW_IDMAP;
        }
        let known = wanted & config.capabilities();
        config.add_capabilities(known).map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
        // A larger number than it has is no error to the kernel.
        let _ = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.look_up(parent, name.as_bytes()) {
            Ok((time, attributes)) => reply.entry(&time, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.with(ino, |shown, entry| {
            Ok((shown.caching().time(), shown.attributes(entry).ok_or(Errno::EIO)?))
        });
        match found {
            Ok((time, attributes)) => reply.attr(&time, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let shown = self.state.shown();
        match shown.entry(ino.0).map(Entry::read_link) {
            Some(Ok(target)) => reply.data(target),
            Some(Err(_)) => reply.error(Errno::EINVAL),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.silent {
            // The kernel does not ask again, and keeps the pages.
            return reply.error(Errno::ENOSYS);
        }
        match self.with(ino, |shown, _| Ok(shown.caching())) {
            Ok(caching) => {
                let mut flags = FopenFlags::FOPEN_NOFLUSH;
                flags.set(FopenFlags::FOPEN_KEEP_CACHE, caching != Caching::Brief);
                flags.set(FopenFlags::FOPEN_DIRECT_IO, self.direct);
                reply.opened(FileHandle(0), flags);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let shown = self.state.shown();
        let Some(entry) = shown.entry(ino.0) else { return reply.error(Errno::ESTALE) };
        let is_current = || {
            let current = shown.image().is_in_place().unwrap_or(false);
            if !current {
                self.state.look();
            }
            current
        };
        content::answer(entry, offset, size, is_current, reply);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.silent {
            // As for files; the kernel keeps the listing.
            return reply.error(Errno::ENOSYS);
        }
        match self.with(ino, |_, _| Ok(())) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.with(ino, |shown, directory| {
            list(shown, directory, offset, |id, next, name, entry| {
                let kind =
                    crate::attributes::kind(entry.metadata().mode).unwrap_or(fuser::FileType::RegularFile);
                reply.add(INodeNo(id), next, kind, OsStr::from_bytes(name))
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.with(ino, |shown, directory| {
            let time = shown.caching().time();
            list(shown, directory, offset, |id, next, name, entry| match shown.attributes(entry) {
                Some(attributes) => {
                    reply.add(INodeNo(id), next, OsStr::from_bytes(name), &time, &attributes, Generation(0))
                }
                None => false,
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let shown = self.state.shown();
        let image = shown.image();
        let len = image.region().len().saturating_add(image.backing().map_or(0, daxfs::Region::len));
        let blocks = len.div_ceil(BLOCK.into());
        reply.statfs(blocks, 0, 0, shown.inodes(), 0, BLOCK, NAME_MAX, BLOCK);
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = self.with(ino, |_, entry| {
            let file = entry.file().map_err(|_| Errno::EINVAL)?;
            let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
            let hole = match whence {
                libc::SEEK_DATA => false,
                libc::SEEK_HOLE => true,
                _ => return Err(Errno::EINVAL),
            };
            let found = content::seek(&file, offset, hole)?;
            i64::try_from(found).map_err(|_| Errno::EOVERFLOW)
        });
        match found {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        }
    }
}
