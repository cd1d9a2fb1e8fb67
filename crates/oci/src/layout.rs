//! OCI image layouts: directories with an index and with blobs under their digests.

use crate::archive::Archive;
use crate::digest::Digest;
use crate::document::{self, Config, Descriptor, Index, Manifest};
use crate::error::{Error, Result, shown};
use crate::image::Image;
use crate::input::Opened;
use crate::platform::Platform;
use crate::reference::Wanted;
use std::path::{Path, PathBuf};

/// Indexes inside of indexes.
const DEPTH: usize = 4;
/// Names that a message lists.
const LISTED: usize = 20;

/// What the blobs of layers are; behind it comes the compression, which the bytes tell, too.
const LAYERS: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// A layout, and what is wanted of it.
pub(crate) struct Layout<'a> {
    pub(crate) path: &'a Path,
    /// `None`: an image for this machine, or the only one.
    pub(crate) platform: Option<&'a Platform>,
}

/// A manifest that was found in an index.
struct Found {
    descriptor: Descriptor,
    manifest: Manifest,
    config: Config,
    config_bytes: Vec<u8>,
}

impl Layout<'_> {
    /// Finds an image and opens its layers.
    pub(crate) fn open(&self, wanted: Option<&Wanted>) -> Result<Image> {
        let version = self.file("oci-layout")?;
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            image_layout_version: String,
        }
        let Version { image_layout_version } = document::parse(&version, "oci-layout")?;
        if image_layout_version != "1.0.0" {
            let why = format!("is an image layout of version {image_layout_version:?}, 1.0.0 is taken");
            return Err(Error::Layout { path: self.path.to_path_buf(), why });
        }
        let index: Index = document::parse(&self.file("index.json")?, "index.json")?;
        let chosen = self.choose(index.manifests, wanted)?;
        let found = self.manifests(chosen)?;
        self.image(self.pick(found)?)
    }

    /// The descriptors of the index that the tag or digest names, or all.
    fn choose(&self, manifests: Vec<Descriptor>, wanted: Option<&Wanted>) -> Result<Vec<Descriptor>> {
        let place = || self.path.display().to_string();
        let tags = || {
            let tags = manifests.iter().map(|found| match found.tag() {
                Some(tag) => format!("{:?}", shown(tag.as_bytes())),
                None => format!("one without a tag ({})", shown(found.digest.as_bytes())),
            });
            list(tags)
        };
        let Some(wanted) = wanted else {
            let mut tags: Vec<_> = manifests.iter().map(Descriptor::tag).collect();
            tags.sort_unstable();
            tags.dedup();
            if tags.len() > 1 {
                let why = "several images have a tag (oci:DIR:TAG)".to_owned();
                return Err(Error::Choice { place: place(), why, there: self::list(tags_of(&manifests)) });
            }
            return Ok(manifests);
        };
        let fits = |found: &Descriptor| match wanted {
            Wanted::Tag(tag) => found.tag() == Some(tag),
            Wanted::Digest(digest) => found.digest == digest.to_string(),
        };
        let chosen: Vec<_> = manifests.iter().filter(|found| fits(found)).cloned().collect();
        match (chosen.is_empty(), wanted) {
            (false, _) => Ok(chosen),
            // A manifest that an index of platforms has, or that no index has any more.
            (true, Wanted::Digest(digest)) if self.blob_path(digest).exists() => {
                let path = self.blob_path(digest);
                let size = std::fs::metadata(&path).map_err(|error| Error::io("stat", &path, error))?.len();
                let (annotations, platform) = (std::collections::BTreeMap::new(), None);
                let digest = digest.to_string();
                Ok(vec![Descriptor { media_type: String::new(), digest, size, annotations, platform }])
            }
            _ => Err(Error::NoImage { place: place(), wanted: wanted.to_string(), there: tags() }),
        }
    }

    /// The manifests that descriptors lead to, through indexes.
    fn manifests(&self, mut level: Vec<Descriptor>) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for _ in 0..DEPTH {
            let mut below = Vec::new();
            for descriptor in self.narrow(level) {
                let digest = Digest::of_document(&descriptor.digest, "index.json")?;
                let place = self.place(&digest);
                if !descriptor.is_index() && !descriptor.is_manifest() && !descriptor.media_type.is_empty() {
                    continue;
                }
                let bytes = self.document(&digest, Some(descriptor.size))?;
                let is_index = descriptor.is_index()
                    || descriptor.media_type.is_empty() && document::parse::<Index>(&bytes, &place).is_ok();
                if is_index {
                    below.extend(document::parse::<Index>(&bytes, &place)?.manifests);
                } else {
                    found.extend(self.manifest(descriptor, &bytes, &place)?);
                }
            }
            if below.is_empty() {
                return Ok(found);
            }
            level = below;
        }
        let why = format!("its indexes lie in each other more than {DEPTH} deep");
        Err(Error::Layout { path: self.path.to_path_buf(), why })
    }

    /// Leaves out what says that it is for another machine: it need not be there.
    fn narrow(&self, mut level: Vec<Descriptor>) -> Vec<Descriptor> {
        let host = Platform::host();
        let wanted = self.platform.unwrap_or(&host);
        let says = |found: &Descriptor| found.platform.as_ref().map(|platform| platform.serves(wanted));
        // Where nothing is for this machine, what there is may be taken nevertheless, if nobody asked for a platform.
        if self.platform.is_some() || level.iter().any(|found| says(found) == Some(true)) {
            level.retain(|found| says(found) != Some(false));
        }
        level
    }

    /// An image by its manifest. `None`: it is something else, such as a signature.
    fn manifest(&self, descriptor: Descriptor, bytes: &[u8], place: &str) -> Result<Option<Found>> {
        let manifest: Manifest = document::parse(bytes, place)?;
        let is_image = matches!(
            manifest.config.media_type.as_str(),
            "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
        );
        let is_layer = |layer: &Descriptor| LAYERS.iter().any(|kind| layer.media_type.starts_with(kind));
        if !is_image || !manifest.layers.iter().all(is_layer) {
            return Ok(None);
        }
        let digest = Digest::of_document(&manifest.config.digest, place)?;
        let config_bytes = self.document(&digest, Some(manifest.config.size))?;
        let config: Config = document::parse(&config_bytes, &self.place(&digest))?;
        Ok(Some(Found { descriptor, manifest, config, config_bytes }))
    }

    /// One of several images.
    fn pick(&self, mut found: Vec<Found>) -> Result<Found> {
        let host = Platform::host();
        let platforms = list(found.iter().map(|found| found.platform().to_string()));
        let choice = |why: String, there: String| {
            Err(Error::Choice { place: self.path.display().to_string(), why, there })
        };
        if found.is_empty() {
            let why = match self.platform {
                Some(platform) => format!("no image is for {platform}"),
                None => "no manifest of an image was found".to_owned(),
            };
            return choice(why, "none that fit".to_owned());
        }
        // The only image is taken wherever it runs, unless something else was asked for.
        if found.len() == 1 && self.platform.is_none() {
            return Ok(found.remove(0));
        }
        let wanted = self.platform.unwrap_or(&host);
        let mut fitting: Vec<_> = found.into_iter().filter(|found| found.platform().serves(wanted)).collect();
        // Of two tags of one image either is it.
        fitting.dedup_by(|left, right| left.descriptor.digest == right.descriptor.digest);
        match fitting.len() {
            1 => Ok(fitting.remove(0)),
            0 => choice(format!("no image is for {wanted} (--platform says another one)"), platforms),
            _ => choice(format!("several images are for {wanted} (oci:DIR:TAG, oci:DIR@DIGEST)"), platforms),
        }
    }

    /// Opens the layers of an image.
    fn image(&self, found: Found) -> Result<Image> {
        let digest = Digest::of_document(&found.manifest.config.digest, "the manifest")?;
        let layers = &found.manifest.layers;
        let diff_ids = found.config.diff_ids(layers.len(), &self.place(&digest))?;
        let mut archives = Vec::with_capacity(layers.len());
        let count = layers.len();
        for ((descriptor, diff_id), number) in layers.iter().zip(diff_ids).zip(1..) {
            let digest = Digest::of_document(&descriptor.digest, "the manifest")?;
            if descriptor.media_type.ends_with("+encrypted") {
                let what = "is encrypted; decrypt the image first".to_owned();
                return Err(Error::Unsupported { place: self.place(&digest), what });
            }
            let opened = self.blob(&digest, Some(descriptor.size))?;
            let place = format!("layer {number} of {count} ({}:{})", digest.algorithm(), digest.short());
            let (stored, unpacked) = (Some(digest), Some(diff_id));
            archives.push(Archive { opened, part: None, source: 0, place, stored, unpacked });
        }
        let platform = found.platform();
        let manifest = Digest::parse(&found.descriptor.digest);
        Ok(Image { archives, config: found.config_bytes, platform, manifest })
    }

    /// A small file of the layout.
    fn file(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path.join(name);
        let opened = Opened::open_regular(&path).map_err(|error| match error {
            Error::Io { source, .. }
                if source.kind() == std::io::ErrorKind::NotFound && self.path.is_dir() =>
            {
                let why = format!("has no {name}: it is no OCI image layout");
                Error::Layout { path: self.path.to_path_buf(), why }
            }
            other => other,
        })?;
        document::read(&opened, 0, opened.len.unwrap_or(0), &path.display().to_string())
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    /// Opens a blob of the length that its descriptor says.
    fn blob(&self, digest: &Digest, size: Option<u64>) -> Result<Opened> {
        let opened = Opened::open_regular(&self.blob_path(digest))?;
        let found = opened.len.unwrap_or(0);
        match size {
            Some(expected) if expected != found => {
                Err(Error::Size { place: self.place(digest), found, expected })
            }
            _ => Ok(opened),
        }
    }

    /// A blob that is a document, compared with its digest.
    fn document(&self, digest: &Digest, size: Option<u64>) -> Result<Vec<u8>> {
        let opened = self.blob(digest, size)?;
        let place = self.place(digest);
        let bytes = document::read(&opened, 0, opened.len.unwrap_or(0), &place)?;
        let mut hasher = digest.hasher();
        hasher.update(&bytes);
        digest.check(hasher, &place)?;
        Ok(bytes)
    }

    fn place(&self, digest: &Digest) -> String {
        format!("blob {}:{}", digest.algorithm(), digest.short())
    }
}

impl Found {
    fn platform(&self) -> Platform {
        match &self.descriptor.platform {
            Some(platform) => platform.clone(),
            None => self.config.platform(),
        }
    }
}

fn tags_of(manifests: &[Descriptor]) -> impl Iterator<Item = String> {
    manifests.iter().map(|found| format!("{:?}", found.tag().unwrap_or_default()))
}

/// A list for messages.
pub(crate) fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    let named = items.get(..items.len().min(LISTED)).unwrap_or_default().join(", ");
    match items.len().checked_sub(LISTED) {
        _ if items.is_empty() => "none".to_owned(),
        Some(more) if more > 0 => format!("{named} and {more} more"),
        _ => named,
    }
}
