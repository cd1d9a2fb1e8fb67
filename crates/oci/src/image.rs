//! From the name of an input to its files: opens it, reads its archives, several at a time, and applies them in order.

use crate::archive::{Archive, SPOOL};
use crate::digest::Digest;
use crate::docker::DockerArchive;
use crate::error::{Error, Result};
use crate::input::{Opened, Shared};
use crate::layout::Layout;
use crate::limits::{Budget, FIXED, Limits, within};
use crate::platform::Platform;
use crate::reference::Source;
use crate::spool::Spool;
use crate::tree::{Applier, Record, Rules, Tree};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

/// Number of the file among the sources, where there is one file of all.
pub(crate) const FILE: u32 = 1;
/// Records that go from one thread to another at a time.
const BATCH: usize = 256;

/// How an image is read.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Which of the images for several machines; `None`: for this machine, or the only one.
    pub platform: Option<Platform>,
    /// Bounds on what it may hold.
    pub limits: Limits,
    /// Where contents wait that cannot be read twice; `None`: in `$TMPDIR`, or else /var/tmp.
    pub spool: Option<PathBuf>,
    /// Archives that are read at the same time; 0: as many as there are processors.
    pub threads: usize,
}

/// An open file from which contents are read.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// The file.
    pub file: Arc<File>,
    /// Its path; for the spool, the directory that it was made in.
    pub path: PathBuf,
    /// Whether it is the spool, which nobody else can reach.
    pub is_spool: bool,
}

/// The root file system of an image, and where the bytes of its files lie.
#[derive(Debug)]
pub struct Rootfs {
    /// Names and what they stand for.
    pub tree: Tree,
    /// Paths of the files that all of it comes from; `-` is standard input.
    pub paths: Vec<PathBuf>,
    /// The files that contents lie in, by the number that [`Content`](crate::Content) has. `None`: no content lies
    /// there.
    pub sources: Vec<Option<SourceFile>>,
    /// The configuration of the image, byte for byte; `None` for archives that are none.
    pub config: Option<Vec<u8>>,
    /// What it is for; `None` for archives that are no images.
    pub platform: Option<Platform>,
    /// Digest of the manifest, where there is one.
    pub manifest: Option<Digest>,
}

/// An image whose layers were found.
pub(crate) struct Image {
    /// The lowest layer first.
    pub(crate) archives: Vec<Archive>,
    pub(crate) config: Vec<u8>,
    pub(crate) platform: Platform,
    pub(crate) manifest: Option<Digest>,
}

/// Reads the names of an image or archive, and finds the bytes of its files. Ends early when `cancelled` says so.
///
/// # Errors
/// What is wrong with it: see [`Error`].
pub fn read(source: &Source, options: &Options, cancelled: &(dyn Fn() -> bool + Sync)) -> Result<Rootfs> {
    let budget = Budget::new(options.limits);
    let shared = Shared { budget: &budget, cancelled };
    let spool = Arc::new(Spool::new(options.spool.as_deref()));
    match source {
        Source::Registry { address } => Err(Error::Name {
            text: address.clone(),
            why: "an image in a registry is fetched into a layout first".to_owned(),
        }),
        Source::Layout { path, wanted } => {
            let layout = Layout { path, platform: options.platform.as_ref() };
            let mut image = layout.open(wanted.as_ref())?;
            for (archive, number) in image.archives.iter_mut().zip(FILE..) {
                archive.source = number;
            }
            apply_image(image, &spool, shared, options)
        }
        Source::DockerArchive { path, wanted } => {
            let archive = DockerArchive::open(open(path)?, &spool, shared)?;
            let image = archive.image(wanted.as_ref(), options.platform.as_ref())?;
            let mut rootfs = apply_image(image, &spool, shared, options)?;
            rootfs.paths = vec![path.clone()];
            Ok(rootfs)
        }
        Source::Tar { path } => {
            let opened = open(path)?;
            let place = opened.path.display().to_string();
            let archive = Archive { opened, part: None, source: FILE, place, stored: None, unpacked: None };
            let mut rootfs = apply(&[archive], Rules::Archive, &spool, shared, options)?;
            rootfs.paths = vec![path.clone()];
            Ok(rootfs)
        }
    }
}

/// As [`read`], for layers that lie in files of their own, the lowest first, without an image around them.
///
/// # Errors
/// As for [`read`].
pub fn read_layers(
    layers: impl IntoIterator<Item = File>,
    options: &Options,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Rootfs> {
    let budget = Budget::new(options.limits);
    let shared = Shared { budget: &budget, cancelled };
    let spool = Arc::new(Spool::new(options.spool.as_deref()));
    let mut archives = Vec::new();
    for (file, source) in layers.into_iter().zip(FILE..) {
        let place = format!("layer {source}");
        let opened = Opened::new(file, Path::new(&place))?;
        archives.push(Archive { opened, part: None, source, place, stored: None, unpacked: None });
    }
    apply(&archives, Rules::Layer, &spool, shared, options)
}

fn open(path: &Path) -> Result<Opened> {
    if path.as_os_str() != "-" {
        return Opened::open(path);
    }
    use std::os::fd::AsFd;
    let name = Path::new("standard input");
    let fd = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| Error::io("open", name, error))?;
    let mut opened = Opened::new(File::from(fd), name)?;
    // Whoever read before us has moved the position, which only reading from it respects.
    if opened.len.is_some() {
        opened.len = None;
    }
    Ok(opened)
}

fn apply_image(image: Image, spool: &Arc<Spool>, shared: Shared<'_>, options: &Options) -> Result<Rootfs> {
    let mut rootfs = apply(&image.archives, Rules::Layer, spool, shared, options)?;
    rootfs.config = Some(image.config);
    rootfs.platform = Some(image.platform);
    rootfs.manifest = image.manifest;
    Ok(rootfs)
}

/// Reads archives and applies them, the first one first.
fn apply(
    archives: &[Archive],
    rules: Rules,
    spool: &Arc<Spool>,
    shared: Shared<'_>,
    options: &Options,
) -> Result<Rootfs> {
    within(archives.len() as u64, Limits::LAYERS as u64, "the image", "layers", FIXED)?;
    let mut tree = Tree::default();
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    if archives.len() < 2 || threads < 2 {
        for (archive, layer) in archives.iter().zip(1..) {
            let budget = shared.budget;
            let mut applier = Applier { tree: &mut tree, budget, rules, place: &archive.place, layer };
            archive.read(spool, shared, |record| applier.apply(record))?;
        }
    } else {
        apply_beside(&mut tree, archives, rules, spool, shared, threads)?;
    }
    tree.check_paths("the image")?;
    let mut sources: Vec<Option<SourceFile>> = vec![spool.opened().map(SourceFile::of)];
    for archive in archives {
        let number = archive.source as usize;
        sources.resize(sources.len().max(number.saturating_add(1)), None);
        if let Some(slot) = sources.get_mut(number).filter(|slot| slot.is_none() && number != SPOOL as usize)
        {
            *slot = Some(SourceFile::of(archive.opened.clone()));
        }
    }
    let paths = archives.iter().map(|archive| archive.opened.path.clone()).collect();
    Ok(Rootfs { tree, paths, sources, config: None, platform: None, manifest: None })
}

impl SourceFile {
    fn of(opened: Opened) -> SourceFile {
        SourceFile { file: opened.file, path: opened.path, is_spool: opened.is_spool }
    }
}

/// What a thread that reads an archive has to say.
type Batch = Result<Vec<Record>>;

/// As [`apply`], with several threads that read. An archive that is read before its turn waits in memory.
fn apply_beside(
    tree: &mut Tree,
    archives: &[Archive],
    rules: Rules,
    spool: &Arc<Spool>,
    shared: Shared<'_>,
    threads: usize,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    let cancelled = || stop.load(Ordering::Relaxed) || (shared.cancelled)();
    let within = Shared { budget: shared.budget, cancelled: &cancelled };
    let next = AtomicUsize::new(0);
    let (senders, receivers): (Vec<_>, Vec<_>) = archives.iter().map(|_| mpsc::channel::<Batch>()).unzip();
    let senders: Vec<_> = senders.into_iter().map(|sender| Mutex::new(Some(sender))).collect();
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let (Some(archive), Some(sender)) = (archives.get(at), senders.get(at)) else { return };
            let Some(sender) = sender.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
            let mut batch = Vec::with_capacity(BATCH);
            let read = archive.read(spool, within, |record| {
                batch.push(record);
                // Whoever receives has gone only after an error of its own.
                if batch.len() >= BATCH && sender.send(Ok(std::mem::take(&mut batch))).is_err() {
                    return Err(Error::Cancelled);
                }
                Ok(())
            });
            let _ = sender.send(read.map(|()| batch));
        }
    };
    std::thread::scope(|scope| {
        let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
        let started = (0..threads.min(archives.len())).map_while(spawn).count();
        if started == 0 {
            // Where there can be no threads, everything waits until it was read.
            work();
        }
        let applied = archives.iter().zip(receivers).zip(1..).try_for_each(|((archive, receiver), layer)| {
            let budget = shared.budget;
            let mut applier = Applier { tree: &mut *tree, budget, rules, place: &archive.place, layer };
            for batch in receiver {
                batch?.into_iter().try_for_each(|record| applier.apply(record))?;
            }
            Ok(())
        });
        stop.store(applied.is_err(), Ordering::Relaxed);
        applied
    })
}
