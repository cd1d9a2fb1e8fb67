//! Container images and archives as inputs: their names become the nodes of a tree, their contents stay where
//! `daxfs_oci` found them.

use crate::links::Links;
use crate::parallel::Threads;
use crate::scan::{Rules, name_error};
use crate::selection::{Choice, Named, can_be_safetensors, is_weights, superfluous};
use crate::tree::{Identity, Input, Kind, Node, ROOT, Stamp, Tree};
use crate::{Error, Progress, Result, Silent};
use daxfs::RemoteAddress;
use daxfs::format::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, index};
use daxfs_oci::{Content, Id, Inode, Limits, Platform, Rootfs, Source};
use nix::sys::stat::fstat;
use serde::Serialize;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// The device that files of archives are on: no file system has it.
const DEVICE: u64 = u64::MAX;

/// Where what is fetched is kept meanwhile, unless `TMPDIR` says it.
const SPOOL: &str = "/var/tmp";

/// The attribute with the capabilities of a file.
pub(crate) const CAPABILITY: &str = "security.capability";

/// How images are read.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) platform: Option<Platform>,
    pub(crate) limits: Limits,
    /// Who can end it.
    pub(crate) progress: Arc<dyn Progress>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { platform: None, limits: Limits::default(), progress: Arc::new(Silent) }
    }
}

/// A file that loses something in an image, which has no room for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Its path in the image.
    pub path: String,
    /// Names of its extended attributes; `security.capability` is what lets a program do more than who starts it. An
    /// EROFS view has that one.
    pub attributes: Vec<String>,
}

/// A file that contents lie in.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) file: Arc<File>,
    /// What identifies it; `None` for what nobody else can reach.
    pub(crate) identity: Option<Identity>,
}

/// Where the contents of a tree lie that comes out of an archive.
#[derive(Debug)]
pub(crate) struct Archive {
    sources: Vec<Option<Held>>,
    /// By the number of the inode in the source.
    contents: Vec<Content>,
    inputs: Vec<PathBuf>,
    /// What lets programs do more than who starts them, by the number of the inode in the source.
    capabilities: HashMap<u64, Box<[u8]>>,
    /// The configuration of the image, byte for byte; `None` for archives that are none.
    config: Option<Vec<u8>>,
    /// Files that lose something.
    pub(crate) lost: Vec<Lost>,
    /// What a user should know of the image.
    pub(crate) warnings: Vec<String>,
}

impl Archive {
    /// Where the contents of an inode lie.
    pub(crate) fn place(&self, ino: u64) -> Option<(&Held, Content)> {
        let content = *self.contents.get(usize::try_from(ino).ok()?)?;
        // What is empty lies nowhere; any file will do for it.
        let held = match content.len {
            0 => self.sources.iter().flatten().next()?,
            _ => self.sources.get(content.source as usize)?.as_ref()?,
        };
        Some((held, content))
    }

    /// The capability of a file, as the attribute has it.
    pub(crate) fn capability(&self, ino: u64) -> Option<&[u8]> {
        self.capabilities.get(&ino).map(AsRef::as_ref)
    }

    /// The configuration of the image.
    pub(crate) fn config(&self) -> Option<&[u8]> {
        self.config.as_deref()
    }

    /// Paths of the files that it lies in.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = &Path> {
        self.inputs.iter().map(PathBuf::as_path)
    }

    /// The input that is this file.
    pub(crate) fn input_at(&self, dev: u64, ino: u64) -> Option<&Path> {
        self.inputs().find(|path| {
            nix::sys::stat::stat(*path).is_ok_and(|found| (found.st_dev, found.st_ino) == (dev, ino))
        })
    }
}

/// Reads an image or archive: its root becomes the root of the tree.
///
/// # Errors
///
/// [`Error::Archive`], [`Error::Name`], [`Error::Link`], [`Error::Setting`].
pub(crate) fn scan(source: &Source, rules: &Rules, threads: Threads) -> Result<Tree> {
    if rules.links == Links::Follow {
        let why = format!("follow: links of {source} lead to nothing outside of it, and are kept");
        return Err(Error::Setting { option: "--links", why });
    }
    let settings = &rules.images;
    let options = daxfs_oci::Options {
        platform: settings.platform.clone(),
        limits: settings.limits,
        spool: None,
        threads: match threads {
            Threads::Processors => 0,
            Threads::Most(count) => count,
        },
    };
    let fetched = match source {
        Source::Registry { address } => Some(fetch(address, settings)?),
        _ => None,
    };
    let layout = fetched.as_ref().map(|folder| Source::Layout { path: folder.path().into(), wanted: None });
    let from = layout.as_ref().unwrap_or(source);
    let rootfs = daxfs_oci::read(from, &options, &|| settings.progress.cancelled())?;
    let mut tree = Tree::default();
    tree.inputs.push(Input { node: ROOT, path: source.to_string().into() });
    let mut scan = Scan { rules, rootfs: &rootfs, visits: Vec::new(), left_out: Vec::new(), source };
    scan.list(&mut tree)?;
    scan.choose();
    scan.build(&mut tree)?;
    // Before what is open is looked at: to lose its name changes a file.
    drop(fetched);
    tree.archive = Some(hold(rootfs, &mut tree, settings)?);
    Ok(tree)
}

/// A directory for what is fetched, for its owner alone, which goes with what it gives.
pub(crate) fn spool(prefix: &str) -> Result<TempDir> {
    let place = std::env::var_os("TMPDIR").filter(|place| !place.is_empty());
    let place = place.map_or_else(|| PathBuf::from(SPOOL), PathBuf::from);
    let folder =
        tempfile::Builder::new().prefix(prefix).permissions(Permissions::from_mode(0o700)).tempdir_in(&place);
    folder.map_err(|error| Error::io("make a directory in", &place, error))
}

/// Has `daxfs-remote` fetch what is needed of an image in a registry into an image layout.
fn fetch(address: &str, settings: &Settings) -> Result<TempDir> {
    let folder = spool("daxfs-oci-")?;
    let opened = File::open(folder.path()).map_err(|error| Error::io("open", folder.path(), error))?;
    let platform = settings.platform.clone().unwrap_or_else(Platform::host).to_string();
    let address = match RemoteAddress::parse(address.as_ref()) {
        Some(address) => address.map_err(Error::Fetch)?,
        None => return Err(name_error(Path::new(address), "is no address")),
    };
    let mut told = |done, total| {
        settings.progress.fetching(done, total);
        !settings.progress.cancelled()
    };
    match address.pull_layout(opened.as_fd(), &platform, &mut told) {
        Ok(_) => Ok(folder),
        Err(daxfs::Error::Cancelled) => Err(Error::Cancelled),
        Err(error) => Err(Error::Fetch(error)),
    }
}

/// What became of a name.
#[derive(Debug)]
struct Visit {
    id: Id,
    /// Number of the visit to the directory around it.
    around: usize,
    /// Whether a glob has chosen all of it.
    whole: bool,
    is_kept: bool,
    /// Path from the root of the image; only where globs look at it.
    path: Vec<u8>,
}

struct Scan<'s> {
    rules: &'s Rules,
    rootfs: &'s Rootfs,
    /// Level by level; children of one directory are adjacent, and sorted.
    visits: Vec<Visit>,
    /// Visits to what is left out.
    left_out: Vec<usize>,
    source: &'s Source,
}

impl Scan<'_> {
    fn inode(&self, id: Id) -> &Inode {
        self.rootfs.tree.inode(id)
    }

    fn is_directory(&self, id: Id) -> bool {
        self.inode(id).kind == daxfs_oci::Kind::Directory
    }

    /// Path of a name as messages have it.
    fn source_path(&self, id: Id) -> PathBuf {
        let path = self.rootfs.tree.path(id);
        PathBuf::from(format!("{}{}", self.source, OsStr::from_bytes(&path).display()))
    }

    /// Goes through all names, directory by directory.
    fn list(&mut self, tree: &mut Tree) -> Result<()> {
        let root = Visit { id: daxfs_oci::ROOT, around: 0, whole: false, is_kept: true, path: Vec::new() };
        self.visits.push(root);
        let mut at = 0;
        while at < self.visits.len() {
            let Visit { id, is_kept, .. } = self.visits[at];
            if is_kept && self.is_directory(id) {
                if self.rules.images.progress.cancelled() {
                    return Err(Error::Cancelled);
                }
                self.list_directory(at, tree)?;
            }
            at += 1;
        }
        Ok(())
    }

    fn list_directory(&mut self, around: usize, tree: &mut Tree) -> Result<()> {
        let selection = &self.rules.selection;
        let first = self.visits.len();
        for id in self.rootfs.tree.children(self.visits[around].id) {
            let name = self.rootfs.tree.name(id);
            if around == 0 && *name == *index::DIR.as_bytes() {
                if self.rules.plain || !self.is_directory(id) {
                    return Err(name_error(
                        &self.source_path(id),
                        "this name is kept for the packer's own index",
                    ));
                }
                tree.dropped = Some(self.source_path(id));
                continue;
            }
            match &self.inode(id).kind {
                daxfs_oci::Kind::Special(special) => {
                    let path = self.source_path(id);
                    tree.skipped.push(PathBuf::from(format!("{} ({})", path.display(), special.name())));
                    continue;
                }
                daxfs_oci::Kind::Symlink(target) if self.rules.links == Links::Refuse => {
                    let target = OsStr::from_bytes(target).display().to_string();
                    let why = format!("a symbolic link to {target}, and links are refused");
                    return Err(Error::Link { path: self.source_path(id), why });
                }
                _ => {}
            }
            let (mut whole, mut is_kept, mut path) = (true, true, Vec::new());
            if selection.has_globs() {
                let parent = &self.visits[around];
                path = if parent.path.is_empty() { name.to_vec() } else { [&parent.path, name].join(&b'/') };
                let is_directory = self.is_directory(id);
                let choice =
                    selection.choose(Path::new(OsStr::from_bytes(&path)), is_directory, parent.whole);
                (whole, is_kept) = (choice == Choice::Whole, choice != Choice::Out);
            }
            self.visits.push(Visit { id, around, whole, is_kept, path });
        }
        if selection.weights_only {
            self.leave_out_superfluous(first);
        }
        let left_out = (first..self.visits.len()).filter(|&at| !self.visits[at].is_kept);
        self.left_out.extend(left_out);
        Ok(())
    }

    /// Leaves out what weights in a directory make superfluous.
    fn leave_out_superfluous(&mut self, first: usize) {
        let kept: Vec<usize> = (first..self.visits.len()).filter(|&at| self.visits[at].is_kept).collect();
        let mut names = Vec::with_capacity(kept.len());
        for &at in &kept {
            let id = self.visits[at].id;
            let name = self.rootfs.tree.name(id);
            let has_weights = is_weights(name) && self.has_weights(id);
            names.push(Named { name, is_directory: self.is_directory(id), has_weights });
        }
        let out = superfluous(&names);
        for (at, _) in kept.into_iter().zip(out).filter(|(_, out)| *out) {
            self.visits[at].is_kept = false;
        }
    }

    /// Whether a file may be one of safetensors.
    fn has_weights(&self, id: Id) -> bool {
        let daxfs_oci::Kind::File(content) = self.inode(id).kind else { return false };
        let Some(Some(source)) = self.rootfs.sources.get(content.source as usize) else { return false };
        let mut start = [0; 8];
        content.len >= 8
            && source.file.read_exact_at(&mut start, content.offset).is_ok()
            && can_be_safetensors(content.len, start)
    }

    /// Leaves out directories that hold nothing of what globs match, where only that is packed.
    fn choose(&mut self) {
        if !self.rules.selection.only_matches() {
            return;
        }
        let mut holds = vec![false; self.visits.len()];
        // What a directory holds has higher numbers than it.
        for at in (1..self.visits.len()).rev() {
            let visit = &self.visits[at];
            let is_needed = visit.is_kept && (!self.is_directory(visit.id) || visit.whole || holds[at]);
            if visit.is_kept && !is_needed {
                self.left_out.push(at);
            }
            self.visits[at].is_kept = is_needed;
            holds[self.visits[at].around] |= is_needed;
        }
    }

    /// Appends what is kept to the tree.
    fn build(&self, tree: &mut Tree) -> Result<()> {
        let mut links: HashMap<u32, u64> = HashMap::new();
        for visit in self.visits.iter().filter(|visit| visit.is_kept) {
            *links.entry(self.rootfs.tree.inode_number(visit.id)).or_default() += 1;
        }
        let mut nodes: Vec<u32> = vec![0; self.visits.len()];
        for (at, visit) in self.visits.iter().enumerate() {
            // What lies in a directory that is left out has no node either.
            if !visit.is_kept || !self.visits[visit.around].is_kept {
                continue;
            }
            let parent = nodes[visit.around];
            let ino = self.rootfs.tree.inode_number(visit.id);
            let inode = self.inode(visit.id);
            let (sort, kind, size) = match &inode.kind {
                daxfs_oci::Kind::Directory => (S_IFDIR, Kind::Directory { first: 0, count: 0 }, 0),
                daxfs_oci::Kind::File(content) => (S_IFREG, Kind::File, content.len),
                daxfs_oci::Kind::Symlink(target) => {
                    (S_IFLNK, Kind::Symlink { target: tree.intern(target)? }, target.len() as u64)
                }
                daxfs_oci::Kind::Special(_) => continue,
            };
            let name = tree.intern(self.rootfs.tree.name(visit.id))?;
            let modified =
                Stamp { seconds: inode.mtime.seconds, nanoseconds: inode.mtime.nanoseconds.into() };
            let identity = Identity {
                dev: DEVICE,
                ino: ino.into(),
                size,
                modified,
                changed: Stamp { seconds: 0, nanoseconds: 0 },
            };
            let number = tree.push(Node {
                parent,
                mode: sort | inode.mode,
                uid: inode.uid,
                gid: inode.gid,
                kind,
                name,
                identity,
                links: links.get(&ino).copied().unwrap_or(1),
                followed: false,
            })?;
            nodes[at] = number;
            if at > 0
                && let Kind::Directory { first, count } = &mut tree.nodes[parent as usize].kind
            {
                *first = if *count == 0 { number } else { *first };
                *count += 1;
            }
        }
        // Of what lies in a directory that is left out nothing is named.
        for &at in self.left_out.iter().filter(|&&at| self.visits[self.visits[at].around].is_kept) {
            let id = self.visits[at].id;
            let mut path = self.rootfs.tree.path(id)[1..].to_vec();
            path.extend(self.is_directory(id).then_some(b'/'));
            tree.left_out.push(PathBuf::from(OsStr::from_bytes(&path)));
        }
        tree.left_out.sort_unstable();
        Ok(())
    }
}

/// Keeps what the tree needs of an image.
fn hold(rootfs: Rootfs, tree: &mut Tree, settings: &Settings) -> Result<Archive> {
    let mut sources = Vec::with_capacity(rootfs.sources.len());
    for source in rootfs.sources {
        let held = source.map(|source| {
            let seen = fstat(&source.file).map_err(|errno| Error::io("stat", &source.path, errno))?;
            // Of a pipe nothing is left to be read.
            let is_file = seen.st_mode & S_IFMT == S_IFREG;
            let identity = (is_file && !source.is_spool).then(|| Identity::of(&seen));
            Ok::<_, Error>(Held { file: source.file, identity })
        });
        sources.push(held.transpose()?);
    }
    let content = |inode: &Inode| match inode.kind {
        daxfs_oci::Kind::File(content) => content,
        _ => Content::default(),
    };
    let contents = rootfs.tree.inodes().iter().map(content).collect();
    let (mut lost, mut capabilities) = (Vec::new(), HashMap::new());
    for (number, node) in tree.iter() {
        let ino = usize::try_from(node.identity.ino).unwrap_or(usize::MAX);
        let attributes = rootfs.tree.inodes().get(ino).map_or(&[][..], |inode| &inode.attributes);
        if !attributes.is_empty() {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let capability = attributes.iter().find(|(name, _)| **name == *CAPABILITY.as_bytes());
            capabilities.extend(capability.map(|(_, value)| (node.identity.ino, value.clone())));
            let attributes = attributes.iter().map(|(name, _)| text(name)).collect();
            lost.push(Lost { path: text(&tree.image_path(number)), attributes });
        }
    }
    let mut warnings = Vec::new();
    if let Some(platform) = rootfs.platform.filter(|_| settings.platform.is_none()) {
        let host = Platform::host();
        if (&platform.os, &platform.architecture) != (&host.os, &host.architecture) {
            warnings.push(format!("the image is for {platform}, this machine is {host}"));
        }
    }
    Ok(Archive {
        sources,
        contents,
        inputs: rootfs.paths,
        capabilities,
        config: rootfs.config,
        lost,
        warnings,
    })
}
