//! An opened image: validated metadata over a region, and path lookup.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock, Weak};

use crate::budget::Budget;
use crate::entry::{Entry, Walk};
use crate::error::{Error, Result};
use crate::generation::Stamp;
use crate::holder::{Attachment, Watch};
use crate::snapshot::{Tree, ViewKind};
use crate::tensor::{self, Index, TensorCache, Tensors};
use crate::verify::Lazy;
use crate::{ContentHash, File, FileType, Provenance, Region, Superblock, format};

mod faults;
mod near;
mod open;

pub use faults::explain_faults;
pub use open::{DEFAULT_MAX_METADATA, OpenOptions};

/// Symbolic links followed in one lookup, as in the kernel's path walk.
pub const MAX_LINKS: usize = 40;

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
        Ok(self.region().is_current()? && self.is_in_place()?)
    }

    /// Waits for the image's name to mean another image at its holder, or none, instead of asking
    /// [`Image::is_current`] again and again; `None` for an image that came from no holder.
    ///
    /// ```no_run
    /// # fn follow(mut image: daxfs::Image) -> Result<(), Box<dyn std::error::Error>> {
    /// while let Some(mut watch) = image.watch()? {
    ///     watch.wait(None)?; // or give its descriptor to an event loop
    ///     let Some(next) = image.refresh()? else { continue };
    ///     image = next;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Holder`] when the holder cannot be asked.
    pub fn watch(&self) -> Result<Option<Watch>> {
        Ok(self.region().attachment().map(Attachment::watch).transpose()?)
    }

    /// True while no other image was written into the same memory, whatever its source means now.
    ///
    /// # Errors
    /// [`Error::Memory`] when the memory cannot be asked.
    pub fn is_in_place(&self) -> Result<bool> {
        Ok(self.region().provenance() == Provenance::Sealed || self.region().stamp()? == self.0.stamp)
    }

    /// How it was opened.
    pub fn options(&self) -> &OpenOptions {
        &self.0.options
    }

    /// True when its bytes were compared with hashes, or are at their first use: copies of them have to be, too.
    pub fn is_compared(&self) -> bool {
        self.0.options.compares()
    }

    /// Opens what the source means now, as this image was opened; `None` while it is current. Files and tensors of
    /// this image keep their memory, whose bytes may be replaced in turn. On devices, what the processor has cached of
    /// the place where the new image lies is dropped first, which takes longer the larger it is.
    ///
    /// What [`OpenOptions::expect`] and [`OpenOptions::expect_verity`] said is asked of the new image as well: where its
    /// content is new, [`Image::refresh_with`] takes the new hash. The promise of [`Region::assume_immutable`] was made
    /// for the memory of this image and ends with it: the new region has the provenance that is found, and slices need the
    /// promise again.
    ///
    /// # Errors
    /// As for [`Image::is_current`] and [`OpenOptions::open`]; [`Error::BeingReplaced`] while another image is written
    /// in this one's place.
    pub fn refresh(&self) -> Result<Option<Self>> {
        self.refresh_with(&self.0.options)
    }

    /// As [`Image::refresh`], with other options, which the new image keeps for its own refreshes: the way to accept the
    /// content hash of a new release. Memory that was given mapped copy-on-write ([`Region::from_fd_private`]) stays so
    /// until options that say [`OpenOptions::private`] were used once; from then on they decide.
    ///
    /// ```
    /// # fn follow(image: &daxfs::Image, announced: daxfs::ContentHash) -> daxfs::Result<Option<daxfs::Image>> {
    /// let next = match image.refresh() {
    ///     Err(error) if error.is_other_content() => {
    ///         image.refresh_with(&image.options().clone().expect(announced))?
    ///     }
    ///     next => next?,
    /// };
    /// # Ok(next) }
    /// ```
    ///
    /// # Errors
    /// As for [`Image::refresh`].
    pub fn refresh_with(&self, options: &OpenOptions) -> Result<Option<Self>> {
        if self.is_current()? {
            return Ok(None);
        }
        let given_private = self.region().is_writable() && !self.0.options.is_private();
        let region = self.region().reopen(given_private || options.is_private(), options.timeout())?;
        options.open_one(region, true).map(Some)
    }

    /// What is higher in each image that follows this one under the same name: the holder's number, as `daxfs ps` shows
    /// it, for an image in memory that came from a holder, and [`Image::generation`] otherwise, also for a copy
    /// ([`OpenOptions::sealed_copy`]). Image files that take each other's place at a path have no number: 0. A holder that
    /// starts without the images of another one begins anew. Where that matters [`Image::content_hash`] tells images
    /// apart.
    pub fn version(&self) -> u64 {
        self.region()
            .attachment()
            .map_or_else(|| self.generation(), |attachment| attachment.info().generation)
    }

    /// Number of the image in its region: 0 where none was before it, and higher with each that `--replace` puts there. A
    /// holder's swap gives new memory, where it is 0 again; [`Image::version`] is the holder's number then.
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
    pub fn ptr_eq(&self, other: &Self) -> bool {
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
                let near = near::nearest_paths(self, &path);
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
            // A link there is followed, and nothing but a directory will do.
            let names_directory = names_directory(path);
            match tree.node(node).file_type {
                FileType::Directory => return Ok(node),
                FileType::Symlink if follow || names_directory => {}
                _ if names_directory => return Err(Error::NotADirectory { path: path.to_vec() }),
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
        let follow_last = follow || names_directory(path);
        // Components still to walk, the next one last.
        let mut pending: Vec<&[u8]> = reversed_components(path);
        let mut current = if path.starts_with(b"/") { 0 } else { directory };
        let mut links = 0_usize;
        // In the target of the last link, too.
        let mut needs_directory = names_directory(path);
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
                    needs_directory |= pending.is_empty() && names_directory(target);
                    pending.extend(reversed_components(target));
                }
                _ => current = child,
            }
        }
        if needs_directory && tree.node(current).file_type != FileType::Directory {
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

    /// The configuration of the container image that this one was packed from, byte for byte
    /// (`/.daxfs/oci-config.json`); `None` when it has none. The content hash covers it.
    ///
    /// # Errors
    /// [`Error::Memory`] and the like when it cannot be read.
    pub fn oci_config(&self) -> Result<Option<Vec<u8>>> {
        crate::content::config(self).map(|file| file.to_vec()).transpose()
    }

    /// BLAKE3 over all names and contents, as the packer stored it; see [`format::index`]. `None` without an index
    /// or hashes in it. Nothing is recomputed here.
    pub fn content_hash(&self) -> Option<ContentHash> {
        self.index().ok().flatten().and_then(Index::content_hash)
    }
}

/// Whether a path ends in `/` or `/.`, and so names a directory.
fn names_directory(path: &[u8]) -> bool {
    path.ends_with(b"/") || path.ends_with(b"/.")
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
