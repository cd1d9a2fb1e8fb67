//! The documents of an image: index, manifest, configuration, and the list of an archive of Docker's. Structures with
//! the fields that are used; `oci-spec` has all of them, and brings macros and derives of its own for it.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::input::Opened;
use crate::limits::{FIXED, Limits, within};
use crate::platform::Platform;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;

/// Annotation with the tag of an image in a layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What a blob is, how long it is, and what it is named.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
}

impl Descriptor {
    /// Whether it is of an index of images.
    pub(crate) fn is_index(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/vnd.oci.image.index.v1+json"
                | "application/vnd.docker.distribution.manifest.list.v2+json"
        )
    }

    /// Whether it is of the manifest of an image.
    pub(crate) fn is_manifest(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/vnd.oci.image.manifest.v1+json"
                | "application/vnd.docker.distribution.manifest.v2+json"
        )
    }

    /// The tag.
    pub(crate) fn tag(&self) -> Option<&str> {
        self.annotations.get(REF_NAME).map(String::as_str)
    }
}

/// A list of images, of tags or of platforms.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

/// An image: its configuration and its layers, the lowest first.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// What the configuration of an image says of its layers, and of where it runs.
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
    pub(crate) rootfs: RootFs,
}

impl Config {
    pub(crate) fn platform(&self) -> Platform {
        let (os, architecture, variant) = (self.os.clone(), self.architecture.clone(), self.variant.clone());
        Platform { os, architecture, variant }
    }

    /// Digests of the layers, decompressed.
    pub(crate) fn diff_ids(&self, layers: usize, place: &str) -> Result<Vec<Digest>> {
        let count = self.rootfs.diff_ids.len();
        if count != layers {
            let what = format!("names {count} layers, the manifest has {layers}");
            return Err(Error::Unsupported { place: place.to_owned(), what });
        }
        within(count as u64, Limits::LAYERS as u64, place, "layers", FIXED)?;
        self.rootfs.diff_ids.iter().map(|digest| Digest::of_document(digest, place)).collect()
    }
}

/// The layers of a configuration.
#[derive(Debug, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub(crate) diff_ids: Vec<String>,
}

/// An image in an archive of Docker's.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Saved {
    pub(crate) config: String,
    #[serde(default)]
    pub(crate) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) layers: Vec<String>,
}

/// Reads JSON.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], place: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json { place: place.to_owned(), source })
}

/// Reads a document that lies in a part of a file.
pub(crate) fn read(opened: &Opened, offset: u64, len: u64, place: &str) -> Result<Vec<u8>> {
    within(len, Limits::DOCUMENT, place, "bytes of a document", FIXED)?;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    opened.file.read_exact_at(&mut bytes, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            Error::Truncated { place: place.to_owned(), offset, inside: "a document" }
        }
        _ => Error::io("read", &opened.path, error),
    })?;
    Ok(bytes)
}
