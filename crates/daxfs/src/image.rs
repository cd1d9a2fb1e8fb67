//! An opened image: validated metadata over a region, and path lookup.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use dmabuf::VerityDigest;

use crate::budget::Budget;
use crate::entry::{Entry, Walk};
use crate::error::{Error, Result};
use crate::generation::Stamp;
use crate::holder::Attachment;
use crate::signature::{PublicKeys, SignatureError};
use crate::snapshot::{self, Snapshot, Strict, Tree, ViewKind};
use crate::tensor::{self, Index, TensorCache, Tensors};
use crate::verify::{self, Lazy, Progress, Verify};
use crate::{File, FileType, Provenance, Region, Superblock, content, format};

/// Symbolic links followed in one lookup, as in the kernel's path walk.
pub const MAX_LINKS: usize = 40;

/// Default of [`OpenOptions::max_metadata`]: enough for about a million files.
pub const DEFAULT_MAX_METADATA: u64 = 512 << 20;

/// What [`Verify::Lazy`] takes for each file, in bytes: its hash, and the one that is computed.
const LAZY_BYTES: u64 = 160;

/// How often opening is tried while one image takes the place of another.
const OPEN_ATTEMPTS: u32 = 20;

/// How to open an image.
///
/// ```
/// # fn main() -> daxfs::Result<()> {
/// # let bytes = vec![0; 4096];
/// let result = daxfs::OpenOptions::new().strict(true).open_region(daxfs::Region::from_bytes(bytes));
/// assert!(matches!(result, Err(daxfs::Error::NotAnImage { found: 0 })));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct OpenOptions {
    strict: bool,
    /// The page size of the kernels that strictness is about, if they are not this machine's.
    page_size: Option<u64>,
    /// Whether strictness leaves out the kernel's rule that no split image keeps.
    split: bool,
    sealed_copy: bool,
    private: bool,
    max_metadata: u64,
    backing: Option<Region>,
    expect: Option<[u8; 32]>,
    verify: Option<Verify>,
    progress: Option<Progress>,
    signed: Option<Signed>,
    verity: Option<VerityDigest>,
}

/// Who must have signed, and what was given as the signature.
#[derive(Debug, Clone)]
struct Signed {
    keys: PublicKeys,
    signature: Option<String>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            strict: false,
            page_size: None,
            split: false,
            sealed_copy: false,
            private: false,
            max_metadata: DEFAULT_MAX_METADATA,
            backing: None,
            expect: None,
            verify: None,
            progress: None,
            signed: None,
            verity: None,
        }
    }
}

impl OpenOptions {
    /// Lenient about what the kernel mounts without `validate`, safe all the same; see the table in
    /// `docs/validation.md`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses what the kernel's `validate` mount option refuses, too.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Strict opening asks what kernels with pages of so many bytes refuse: those of the machine that the image is for,
    /// where that is not this one. Without it, blocks have to have the size of this machine's pages.
    #[must_use]
    pub fn page_size(mut self, bytes: u64) -> Self {
        self.page_size = Some(bytes);
        self
    }

    /// Strict but for what the kernel's validation gets wrong of split images: it looks for their files' bytes in the
    /// base image.
    pub(crate) fn split(mut self) -> Self {
        self.split = true;
        self
    }

    /// Copies the source once into a private sealed memfd and opens that: nobody can change or truncate it, and
    /// slices are available. Costs the memory of the whole image, and of the backing file of a split one, which is
    /// copied as well. The image belongs to nobody else then, so it stays current whatever becomes of the source.
    #[must_use]
    pub fn sealed_copy(mut self, copy: bool) -> Self {
        self.sealed_copy = copy;
        self
    }

    /// Most bytes that the image may cost this process: of metadata (inodes, directory entries, overlay entries, logs)
    /// that is copied when it is opened, of the tables that are built of it, and of the headers of tensors and the
    /// checkpoints that are parsed later, each once per extent. The default is [`DEFAULT_MAX_METADATA`]. Files that
    /// are read and arrays that are made are not counted.
    #[must_use]
    pub fn max_metadata(mut self, bytes: u64) -> Self {
        self.max_metadata = bytes;
        self
    }

    /// The backing file that holds the file data of a split image.
    #[must_use]
    pub fn backing(mut self, region: Region) -> Self {
        self.backing = Some(region);
        self
    }

    /// Maps the source copy-on-write, see [`Region::from_fd_private`]; only for [`OpenOptions::open`].
    #[must_use]
    pub fn private(mut self, private: bool) -> Self {
        self.private = private;
        self
    }

    /// Refuses an image whose content hash ([`Image::content_hash`]) is another one, or that has none. It is made
    /// anew of the names, the links, the hashes of the files and the records of the index, so that a lookup by the
    /// index is bound by it; an index of version 1, which has no hash of its records, is compared with the headers.
    /// Whether the bytes of the files are read and compared, too, [`OpenOptions::verify`] says. The table in
    /// `docs/holder.md` says what is covered.
    #[must_use]
    pub fn expect(mut self, content_hash: [u8; 32]) -> Self {
        self.expect = Some(content_hash);
        self
    }

    /// Which bytes are compared with the hashes that the content hash is made of, and when.
    ///
    /// | | when | what holds afterwards |
    /// |---|---|---|
    /// | [`Verify::Full`] | every file when the image is opened, by all processors | all files were right then |
    /// | [`Verify::Lazy`] | each file at its first use | the files that were used were right then |
    /// | [`Verify::Stored`] | never | names, sizes and index are right; a file may have any bytes |
    ///
    /// What others can write may change after it was compared, and a mapping shows that: with
    /// [`OpenOptions::sealed_copy`] what is compared is the copy, which nobody can change. Where nobody can write, what
    /// was right once stays right.
    ///
    /// Without a call it is [`Verify::Full`] with [`OpenOptions::expect`], unless the image lies in sealed memory that a
    /// holder gave: a holder hashes every file before a name means it, and its word is taken for that. It is
    /// [`Verify::Stored`] without `expect`; when [`Verify::Full`] or [`Verify::Lazy`] is asked for then, the files are
    /// compared with the content hash that the image says it has. [`File::check`] has more about [`Verify::Lazy`].
    ///
    /// The raw memory ([`Image::region`]) is never compared on its way; [`Image::check_files`] does it at once.
    #[must_use]
    pub fn verify(mut self, verify: Verify) -> Self {
        self.verify = Some(verify);
        self
    }

    /// Refuses an image whose content none of `keys` has signed; see [`crate::signature`]. The signature is that text, or
    /// without one what the image's holder has of it. The content is what [`OpenOptions::expect`] says, which need not be
    /// given: otherwise it is that which the image is found to have. Every file is compared unless
    /// [`OpenOptions::verify`] says otherwise, for the images of holders, too.
    #[must_use]
    pub fn signed(mut self, keys: PublicKeys, signature: Option<String>) -> Self {
        self.signed = Some(Signed { keys, signature });
        self
    }

    /// Refuses an image unless it lies in a file whose digest of fs-verity is this one. The kernel has the digest, so
    /// nothing is read for that, and compares every page with it that is read later: no file is hashed unless
    /// [`OpenOptions::verify`] says so. It stands for this file, byte for byte, so the same content packed again has
    /// another one. What a split image has in its backing file is not covered: that is compared as with
    /// [`OpenOptions::expect`].
    #[must_use]
    pub fn expect_verity(mut self, digest: VerityDigest) -> Self {
        self.verity = Some(digest);
        self
    }

    /// Calls `progress` with the bytes that were hashed and those that are to be, from several threads, which may
    /// overtake each other, while an image is opened with [`Verify::Full`]; `false` ends the opening with
    /// [`Error::Cancelled`].
    #[must_use]
    pub fn progress(mut self, progress: impl Fn(u64, u64) -> bool + Send + Sync + 'static) -> Self {
        self.progress = Some(Progress(Arc::new(progress)));
        self
    }

    /// Whether [`OpenOptions::strict`] was asked for.
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// Whether [`OpenOptions::sealed_copy`] was asked for.
    pub fn is_sealed_copy(&self) -> bool {
        self.sealed_copy
    }

    /// The content hash of [`OpenOptions::expect`].
    pub fn expected(&self) -> Option<[u8; 32]> {
        self.expect
    }

    /// Whether [`OpenOptions::signed`] was asked for.
    pub fn is_signed(&self) -> bool {
        self.signed.is_some()
    }

    /// The digest of [`OpenOptions::expect_verity`].
    pub fn expected_verity(&self) -> Option<&VerityDigest> {
        self.verity.as_ref()
    }

    /// What [`OpenOptions::verify`] was told, if it was.
    pub fn verification(&self) -> Option<Verify> {
        self.verify
    }

    /// The bound of [`OpenOptions::max_metadata`].
    pub fn metadata_bound(&self) -> u64 {
        self.max_metadata
    }

    /// Opens a source as [`Region::open`] names it.
    ///
    /// # Errors
    /// When the source cannot be mapped, or holds no valid image; see [`Error`].
    pub fn open(&self, source: impl AsRef<OsStr>) -> Result<Image> {
        self.open_region(Region::open_with(source.as_ref(), self.expect, self.private)?)
    }

    /// Opens the image in a region.
    ///
    /// # Errors
    /// When the region holds no valid image; see [`Error`].
    pub fn open_region(&self, region: Region) -> Result<Image> {
        self.open_one(region, false)
    }

    /// Opens one image, though another may take its place meanwhile. With `drop_caches` the memory is read anew.
    fn open_one(&self, source: Region, drop_caches: bool) -> Result<Image> {
        let mut attempts = 1_u32;
        loop {
            if drop_caches {
                source.drop_cached_image();
            }
            match self.attempt(&source) {
                // Switching to another image takes microseconds, unless it is written in the old one's place.
                Err(Error::BeingReplaced { .. }) if attempts < OPEN_ATTEMPTS => {
                    attempts = attempts.saturating_add(1);
                    std::thread::sleep(Duration::from_millis(1));
                }
                opened => return opened,
            }
        }
    }

    /// Opens the image that is there now. What was read while another one took its place is thrown away, and so is an
    /// error that this may have caused.
    fn attempt(&self, source: &Region) -> Result<Image> {
        let may_change =
            source.provenance() == Provenance::Shared && source.len() >= format::SUPERBLOCK_SIZE as u64;
        let before = if may_change { Some(source.stamp()?) } else { None };
        // What is no image is not copied to find that out.
        let copies = self.sealed_copy && before.as_ref().is_none_or(Stamp::is_of_image);
        if let Some(expected) = &self.verity
            && source.verity() != Some(expected)
        {
            let (expected, found) = (expected.clone(), source.verity().cloned());
            return Err(Error::OtherVerity { expected, found });
        }
        let is_bound = self.expect.is_some() || self.signed.is_some() || self.verity.is_some();
        // A signature binds whoever passes the image on, so a holder's word does not stand in for it.
        let vouched = source.is_vouched() && self.signed.is_none();
        let believes = self.backing.is_none() && (vouched || self.verity.is_some());
        let default = if is_bound && !believes { Verify::Full } else { Verify::Stored };
        let verify = self.verify.unwrap_or(default);
        let attached = source.attachment().and_then(Attachment::signature);
        let region = if copies { source.sealed_copy()? } else { source.clone() };
        let opened = self.open_there(region, verify, attached);
        if let Some(before) = before {
            let now = source.stamp()?;
            let was = opened.as_ref().map_or(&before, |image| &image.0.stamp);
            if *was != now || before != now {
                return Err(Error::BeingReplaced { generation: now.number().max(before.number()) });
            }
        }
        opened
    }

    /// Copies and checks the metadata, and the contents as far as that is asked for.
    fn open_there(&self, region: Region, verify: Verify, attached: Option<&str>) -> Result<Image> {
        let Snapshot { superblock, tree, view_kind, stamp, budget } = {
            let _access = region.cpu_access()?;
            let backing_len = self.backing.as_ref().map(Region::len);
            let live = region.provenance() == Provenance::Shared;
            let strict = match (self.strict, self.split) {
                (false, _) => Strict::No,
                (true, false) => Strict::Kernel,
                (true, true) => Strict::Split,
            };
            let page = self.page_size.unwrap_or_else(dmabuf::page_size);
            snapshot::take(region.view(), backing_len, strict, page, self.max_metadata, live)?
        };
        let backing = self.backing.as_ref().filter(|_| superblock.data_is_external());
        let backing = match backing {
            Some(backing) if self.sealed_copy => Some(backing.sealed_copy()?),
            backing => backing.cloned(),
        };
        let image = Image(Arc::new(Inner {
            region,
            backing,
            superblock,
            tree,
            view_kind,
            stamp,
            options: self.clone(),
            budget,
            tensors: TensorCache::default(),
            index: OnceLock::new(),
            lazy: OnceLock::new(),
            described: OnceLock::new(),
        }));
        self.compare(&image, verify, attached)?;
        crate::faults::opened(&image);
        Ok(image)
    }

    /// Compares the contents with what is expected, and the files with the contents. The image's holder may have a
    /// signature `attached`.
    fn compare(&self, image: &Image, verify: Verify, attached: Option<&str>) -> Result<()> {
        // What the image merely says of itself is looked at first: it costs nothing.
        let stored = image.content_hash();
        let wanted = match (self.expect, verify) {
            (Some(expected), _) if stored == Some(expected) => expected,
            (Some(expected), _) => return Err(Error::OtherContent { expected, found: stored }),
            (None, Verify::Stored) if self.signed.is_none() => return Ok(()),
            (None, _) => stored.ok_or(Error::NoHashes { verify })?,
        };
        let (content, hashes) = content::stated_content(image)?.ok_or(Error::NoHashes { verify })?;
        if content != wanted {
            return Err(Error::OtherContent { expected: wanted, found: Some(content) });
        }
        if let Some(Signed { keys, signature }) = &self.signed {
            let signature = signature.as_deref().or(attached).ok_or(SignatureError::Missing {
                advice: "give its file, IMAGE.minisig, or have the holder load it with one",
            })?;
            keys.verify(&content, signature)?;
        }
        match verify {
            Verify::Stored => {}
            Verify::Full => verify::check_all(image, &hashes, self.progress.as_ref())?,
            Verify::Lazy => {
                // A bit and at most one hash for each.
                let inodes = image.tree().inode_count();
                image.charge("hashes of files", (inodes as u64).saturating_mul(LAZY_BYTES))?;
                // Nobody else has the image yet.
                let _ = image.0.lazy.set(Lazy::new(hashes, inodes));
            }
        }
        Ok(())
    }
}

pub(crate) struct Inner {
    /// Goes first, while the memory that is described is still there.
    described: OnceLock<Vec<dmabuf::faults::Described>>,
    region: Region,
    backing: Option<Region>,
    superblock: Superblock,
    tree: Tree,
    view_kind: ViewKind,
    stamp: Stamp,
    options: OpenOptions,
    budget: Budget,
    tensors: TensorCache,
    index: OnceLock<Option<Index>>,
    /// Set where files are compared at their first use.
    lazy: OnceLock<Lazy>,
}

/// An opened image. Cloning is cheap and shares everything; entries, files and tensors hold a clone, so the memory
/// stays mapped as long as any of them lives.
#[derive(Clone)]
pub struct Image(Arc<Inner>);

impl Image {
    /// Opens a source with the default [`OpenOptions`].
    ///
    /// # Errors
    /// As for [`OpenOptions::open`].
    pub fn open(source: impl AsRef<OsStr>) -> Result<Self> {
        OpenOptions::new().open(source)
    }

    /// Opens the image behind a descriptor of any kind of shareable memory.
    ///
    /// # Errors
    /// As for [`OpenOptions::open`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        Self::from_region(Region::from_fd(fd)?)
    }

    /// Opens the image in a region.
    ///
    /// # Errors
    /// As for [`OpenOptions::open_region`].
    pub fn from_region(region: Region) -> Result<Self> {
        OpenOptions::new().open_region(region)
    }

    /// Opens an image that lies in bytes of this process.
    ///
    /// # Errors
    /// As for [`OpenOptions::open_region`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::from_region(Region::from_bytes(bytes))
    }

    /// The memory that holds the image.
    pub fn region(&self) -> &Region {
        &self.0.region
    }

    /// The backing file, if the image needs one and got it.
    pub fn backing(&self) -> Option<&Region> {
        self.0.backing.as_ref()
    }

    /// True while the source that it was opened from still means this image: see [`Region::is_current`], and no other
    /// image was written into the same memory.
    ///
    /// Bytes that were read before the call and for which it says true are those of this image, in memory that is
    /// coherent between writer and reader. `docs/generations.md` says more.
    ///
    /// # Errors
    /// [`Error::Holder`] when a holder cannot be asked; [`Error::Memory`] when the memory cannot be asked.
    pub fn is_current(&self) -> Result<bool> {
        Ok(self.region().is_current()? && self.is_there()?)
    }

    /// True while no other image was written into the same memory, whatever its source means now.
    pub(crate) fn is_there(&self) -> Result<bool> {
        Ok(self.region().provenance() == Provenance::Sealed || self.region().stamp()? == self.0.stamp)
    }

    /// How it was opened.
    pub fn options(&self) -> &OpenOptions {
        &self.0.options
    }

    /// True when its bytes were compared with hashes, or are at their first use: copies on devices have to be, too.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_expected(&self) -> bool {
        let OpenOptions { expect, verity, signed, verify, .. } = &self.0.options;
        expect.is_some()
            || verity.is_some()
            || signed.is_some()
            || matches!(verify, Some(Verify::Full | Verify::Lazy))
    }

    /// Opens what the source means now, as this image was opened; `None` while it is current. Files and tensors of
    /// this image keep their memory, whose bytes may be replaced in turn. On devices, what the processor has cached of
    /// the place where the new image lies is dropped first, which takes longer the larger it is.
    ///
    /// # Errors
    /// As for [`Image::is_current`] and [`OpenOptions::open`]; [`Error::BeingReplaced`] while another image is written
    /// in this one's place.
    pub fn refresh(&self) -> Result<Option<Self>> {
        if self.is_current()? {
            return Ok(None);
        }
        self.0.options.open_one(self.region().reopen()?, true).map(Some)
    }

    /// Number of the image in its region: 0 where none was before it, and higher with each that `--replace` puts there.
    pub fn generation(&self) -> u64 {
        self.0.stamp.number()
    }

    /// Where the regions of the image lie.
    pub fn superblock(&self) -> &Superblock {
        &self.0.superblock
    }

    /// What was laid over the base image.
    pub fn view_kind(&self) -> ViewKind {
        self.0.view_kind
    }

    /// True for clones of one opened image.
    #[cfg(any(feature = "vulkan", feature = "cuda"))]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A reference that does not keep the image.
    pub(crate) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.0)
    }

    /// The image of [`Image::downgrade`], if it is still there.
    pub(crate) fn upgrade(image: &Weak<Inner>) -> Option<Self> {
        image.upgrade().map(Self)
    }

    /// What compares files at their first use, if that was asked for.
    pub(crate) fn lazy(&self) -> Option<&Lazy> {
        self.0.lazy.get()
    }

    /// Where it is kept that faults in the image's memory are explained.
    pub(crate) fn described(&self) -> &OnceLock<Vec<dmabuf::faults::Described>> {
        &self.0.described
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.0.tree
    }

    /// Spends `bytes` of [`OpenOptions::max_metadata`] for a table that the caller derives from the image and keeps: a
    /// list of paths, names of tensors. An image can be made so that such a table is far larger than itself.
    ///
    /// # Errors
    /// [`Error::MetadataLimit`] with `place`, when there are not so many bytes left.
    pub fn charge(&self, place: &str, bytes: u64) -> Result<()> {
        self.0.budget.charge(|| place.to_owned(), bytes)
    }

    pub(crate) fn tensor_cache(&self) -> &TensorCache {
        &self.0.tensors
    }

    /// Names in the image, the root included.
    pub fn len(&self) -> usize {
        self.tree().len()
    }

    /// Never true: every image has a root.
    pub fn is_empty(&self) -> bool {
        self.tree().len() == 0
    }

    /// The root directory.
    pub fn root(&self) -> Entry {
        Entry::new(self.clone(), 0)
    }

    /// Looks a path up and follows symbolic links. Paths are bytes, relative to the root whether they begin with
    /// `/` or not; links are resolved inside the image, so an absolute target starts at its root and `..` does
    /// not leave it. Without links this is one hash and one table probe, no system call.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotADirectory`], [`Error::TooManyLinks`].
    pub fn entry(&self, path: impl AsRef<[u8]>) -> Result<Entry> {
        let found = self.resolve(path.as_ref(), true).map_err(|error| self.with_nearest(error))?;
        Ok(Entry::new(self.clone(), found))
    }

    /// Like [`Image::entry`], but a link at the end of the path is returned itself.
    ///
    /// # Errors
    /// As for [`Image::entry`].
    pub fn entry_no_follow(&self, path: impl AsRef<[u8]>) -> Result<Entry> {
        let found = self.resolve(path.as_ref(), false).map_err(|error| self.with_nearest(error))?;
        Ok(Entry::new(self.clone(), found))
    }

    /// What a symbolic link leads to, or the entry itself. Errors name no other paths, as those of [`Image::entry`] do.
    pub(crate) fn follow(&self, entry: &Entry) -> Result<Entry> {
        let tree = self.tree();
        let node = match tree.target(entry.node()) {
            Some(target) => self.walk_from(tree.node(entry.node()).parent, target, true)?,
            None => entry.node(),
        };
        Ok(Entry::new(self.clone(), node))
    }

    /// Adds what may have been meant.
    fn with_nearest(&self, error: Error) -> Error {
        match error {
            Error::NotFound { path, .. } => {
                let near = crate::nearest::nearest_paths(self, &path);
                Error::NotFound { path, near }
            }
            other => other,
        }
    }

    /// Looks a regular file up.
    ///
    /// # Errors
    /// As for [`Image::entry`], and [`Error::NotAFile`].
    pub fn file(&self, path: impl AsRef<[u8]>) -> Result<File> {
        self.entry(path)?.file()
    }

    /// Whether a path names something, as `access(2)` with `F_OK` says; links are followed.
    pub fn contains(&self, path: impl AsRef<[u8]>) -> bool {
        self.resolve(path.as_ref(), true).is_ok()
    }

    fn resolve(&self, path: &[u8], follow: bool) -> Result<u32> {
        let tree = self.tree();
        if let Some(node) = tree.find(path) {
            // A path that ends in `/` names a directory, so a link there is followed, and nothing else will do.
            let ends_in_slash = path.ends_with(b"/");
            match tree.node(node).file_type {
                FileType::Directory => return Ok(node),
                FileType::Symlink if follow || ends_in_slash => {}
                _ if ends_in_slash => return Err(Error::NotADirectory { path: path.to_vec() }),
                _ => return Ok(node),
            }
        }
        self.walk_components(path, follow)
    }

    /// The slow way: component by component, for paths with links or `..`.
    fn walk_components(&self, path: &[u8], follow: bool) -> Result<u32> {
        self.walk_from(0, path, follow)
    }

    /// From a directory on, or from the root if the path begins with `/`.
    fn walk_from(&self, directory: u32, path: &[u8], follow: bool) -> Result<u32> {
        let tree = self.tree();
        let not_found = || Error::NotFound { path: path.to_vec(), near: Vec::new() };
        let follow_last = follow || path.ends_with(b"/");
        // Components still to walk, the next one last.
        let mut pending: Vec<&[u8]> = reversed_components(path);
        let mut current = if path.starts_with(b"/") { 0 } else { directory };
        let mut links = 0_usize;
        while let Some(name) = pending.pop() {
            if tree.node(current).file_type != FileType::Directory {
                return Err(Error::NotADirectory { path: path.to_vec() });
            }
            if name == b".." {
                current = tree.node(current).parent;
                continue;
            }
            let child = tree.child(current, name).ok_or_else(not_found)?;
            match tree.target(child) {
                Some(target) if follow_last || !pending.is_empty() => {
                    links = links.saturating_add(1);
                    if links > MAX_LINKS {
                        return Err(Error::TooManyLinks { path: path.to_vec() });
                    }
                    if target.starts_with(b"/") {
                        current = 0;
                    }
                    pending.extend(reversed_components(target));
                }
                _ => current = child,
            }
        }
        if path.ends_with(b"/") && tree.node(current).file_type != FileType::Directory {
            return Err(Error::NotADirectory { path: path.to_vec() });
        }
        Ok(current)
    }

    /// Every entry, depth first, the root first, directories in stored order.
    pub fn walk(&self) -> Walk {
        Walk::new(self.clone())
    }

    /// The image's tensors: its one sharded checkpoint, its one safetensors file, or its one set of numbered shards
    /// (`*-00001-of-00004.safetensors`), all of which must be there. What lies at the root goes before what lies below;
    /// a variant (`model.fp16.safetensors`) gives way to the set that it is a variant of, see
    /// [`Image::tensors_of_variant`]; hidden names and directories count only when there is nothing else.
    ///
    /// # Errors
    /// [`Error::Tensor`] when there is none, when there are several (the message lists them; name one with
    /// [`Image::tensors_at`]), or when a header is wrong.
    pub fn tensors(&self) -> Result<Tensors> {
        tensor::default_tensors(self, None)
    }

    /// The tensors of a `.safetensors` file, of a checkpoint's `.safetensors.index.json`, of numbered shards
    /// (`model-*-of-00004.safetensors`), or of the one set in a directory.
    ///
    /// # Errors
    /// As for [`Image::tensors`] and [`Image::entry`].
    pub fn tensors_at(&self, path: impl AsRef<[u8]>) -> Result<Tensors> {
        tensor::tensors_at(self, path.as_ref(), None)
    }

    /// The tensors of one variant in a directory, as `transformers` and `diffusers` name them: `fp16` for
    /// `model.fp16.safetensors`, `model.safetensors.index.fp16.json`, `model.fp16-00001-of-00002.safetensors`. With `/`
    /// the whole image is meant, as by [`Image::tensors`].
    ///
    /// # Errors
    /// As for [`Image::tensors_at`]; [`TensorError::NoVariant`](crate::TensorError::NoVariant) names the variants that
    /// are there.
    pub fn tensors_of_variant(&self, path: impl AsRef<[u8]>, variant: &str) -> Result<Tensors> {
        match path.as_ref() {
            b"" | b"/" => tensor::default_tensors(self, Some(variant)),
            path => tensor::tensors_at(self, path, Some(variant)),
        }
    }

    /// The tensor index that the packer wrote, `/.daxfs/index`; `None` when the image has none.
    ///
    /// # Errors
    /// [`Error::Tensor`] when its header is wrong.
    pub fn index(&self) -> Result<Option<&Index>> {
        if self.0.index.get().is_none() {
            let index = match self.entry_no_follow(format::index::PATH) {
                Ok(_) => tensor::load_index(self)?,
                Err(_) => None,
            };
            // Another thread may have been first; both loaded the same.
            let _ = self.0.index.set(index);
        }
        Ok(self.0.index.get().and_then(Option::as_ref))
    }

    /// BLAKE3 over all names and contents, as the packer stored it; see [`format::index`]. `None` without an index
    /// or hashes in it. Nothing is recomputed here.
    pub fn content_hash(&self) -> Option<[u8; 32]> {
        self.index().ok().flatten().and_then(Index::content_hash)
    }
}

/// Components of a path in reverse, so that the next one is popped first.
fn reversed_components(path: &[u8]) -> Vec<&[u8]> {
    let mut components: Vec<_> = crate::snapshot::components(path).collect();
    components.reverse();
    components
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("version", &self.superblock().version)
            .field("entries", &self.len())
            .field("view", &self.view_kind())
            .field("region", self.region())
            .finish_non_exhaustive()
    }
}
