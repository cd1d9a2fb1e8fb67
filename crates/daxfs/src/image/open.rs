//! How an image is opened: what is asked for, the attempts while another image takes its place, and what its contents are
//! compared with before anybody has it.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dmabuf::VerityDigest;

use super::{Image, Inner};
use crate::error::{Error, Result};
use crate::generation::Stamp;
use crate::holder::{Attachment, DEFAULT_TIMEOUT};
use crate::signature::{self, PublicKeys, SignatureError};
use crate::snapshot::{self, Snapshot, Strict};
use crate::tensor::TensorCache;
use crate::verify::{self, Lazy, Progress, Verify};
use crate::{ContentHash, Provenance, Region, content, format};

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
    holder_timeout: Option<Duration>,
    max_metadata: u64,
    backing: Option<Region>,
    expect: Option<ContentHash>,
    verify: Option<Verify>,
    progress: Option<Progress>,
    signed: Option<Signed>,
    verity: Option<VerityDigest>,
}

/// Who must have signed, and where the signature is.
#[derive(Debug, Clone)]
struct Signed {
    keys: PublicKeys,
    place: Place,
}

/// Where a signature is.
#[derive(Debug, Clone)]
enum Place {
    /// It was given, or the image's holder has it.
    Text(Option<String>),
    /// In a file or an OCI image layout.
    File(PathBuf),
    /// Beside the image with this path, if there.
    Beside(PathBuf),
}

impl Signed {
    /// Checks that the content was signed; the image's holder may have a signature `attached`.
    fn check(&self, content: &ContentHash, attached: Option<&str>) -> Result<(), SignatureError> {
        let found = match &self.place {
            Place::Text(text) => text.clone(),
            Place::File(path) => Some(signature::read(path)?),
            Place::Beside(image) => match signature::read_beside(image)? {
                Some(found) => return found.verify(&self.keys, content).map(drop),
                None => None,
            },
        };
        let text = found.as_deref().or(attached).ok_or(SignatureError::Missing {
            advice: "give its file or layout, IMAGE.minisig or IMAGE.cosign, or have the holder load it with one",
        })?;
        self.keys.verify(content, text).map(drop)
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            strict: false,
            page_size: None,
            split: false,
            sealed_copy: false,
            private: false,
            holder_timeout: None,
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

    /// How long a holder may take for an answer, when the image is opened and when it is asked later
    /// ([`Image::is_current`], [`Image::refresh`]); by default [`DEFAULT_TIMEOUT`]. A holder that is stopped keeps the
    /// caller for so long; [`Error::is_unreachable`] is true of the error then.
    #[must_use]
    pub fn holder_timeout(mut self, timeout: Duration) -> Self {
        self.holder_timeout = Some(timeout);
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
    /// `docs/content.md` says what is covered.
    #[must_use]
    pub fn expect(mut self, content_hash: impl Into<ContentHash>) -> Self {
        self.expect = Some(content_hash.into());
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
    /// compared with the content hash that the image says it has. [`File::check`](crate::File::check) has more about
    /// [`Verify::Lazy`].
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
        self.signed = Some(Signed { keys, place: Place::Text(signature) });
        self
    }

    /// As [`OpenOptions::signed`], with the signature in a file or an OCI image layout ([`signature::read`]), which is
    /// read each time an image is opened: [`Image::refresh`] finds that of the new image there.
    #[must_use]
    pub fn signed_in(mut self, keys: PublicKeys, path: impl Into<PathBuf>) -> Self {
        self.signed = Some(Signed { keys, place: Place::File(path.into()) });
        self
    }

    /// As [`OpenOptions::signed_in`], with the signatures that lie beside the image with this path
    /// ([`signature::read_beside`]).
    #[must_use]
    pub fn signed_beside(mut self, keys: PublicKeys, image: impl Into<PathBuf>) -> Self {
        self.signed = Some(Signed { keys, place: Place::Beside(image.into()) });
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
    /// [`Error::Cancelled`]. Before that it is told how many bytes of an image that lies elsewhere are there.
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

    /// Whether [`OpenOptions::private`] was asked for.
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// How long a holder may take for an answer.
    pub fn timeout(&self) -> Duration {
        self.holder_timeout.unwrap_or(DEFAULT_TIMEOUT)
    }

    /// The content hash of [`OpenOptions::expect`].
    pub fn expected(&self) -> Option<ContentHash> {
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

    /// True when bytes of files are compared with hashes, when the image is opened or later, or were proven otherwise.
    pub(super) fn compares(&self) -> bool {
        let compared = matches!(self.verify, Some(Verify::Full | Verify::Lazy));
        compared || self.expect.is_some() || self.verity.is_some() || self.signed.is_some()
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
        let progress = |done, total| self.progress.as_ref().is_none_or(|progress| progress.0(done, total));
        let region =
            Region::open_with(source.as_ref(), self.expect, self.private, self.timeout(), &progress)?;
        self.open_region(region)
    }

    /// Opens the image in a region.
    ///
    /// # Errors
    /// When the region holds no valid image; see [`Error`].
    pub fn open_region(&self, region: Region) -> Result<Image> {
        self.open_one(region, false)
    }

    /// Opens one image, though another may take its place meanwhile. With `drop_caches` the memory is read anew.
    pub(super) fn open_one(&self, source: Region, drop_caches: bool) -> Result<Image> {
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
        // Memory without an image is refused before anything is copied.
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
        super::faults::opened(&image);
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
        if let Some(signed) = &self.signed {
            signed.check(&content, attached)?;
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
