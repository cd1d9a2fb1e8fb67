//! Signatures in an OCI image layout: a folder with `oci-layout`, `index.json` and blobs under their SHA-256.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::{Descriptor, Signed, json, signed_layer};
use crate::ContentHash;
use crate::signature::text::read_file;
use crate::signature::{SIGNATURE_MAX, SignatureError, statement};

/// Longest index or manifest, in bytes.
const JSON_MAX: usize = 64 << 10;

/// Most manifests of an index, and most layers of all of them, that are looked at.
const PARTS_MAX: usize = 64;

/// Media type of a manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// Type of the artifact that is a statement of a content, and of its one layer.
const CONTENT_TYPE: &str = "application/vnd.daxfs.content.v1";

const EMPTY: &[u8] = b"{}";
const VERSION: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Names by which cosign finds what is signed, and what signs it.
const KIND: &str = "kind";
const KIND_IMAGE: &str = "dev.cosignproject.cosign/image";
const KIND_SIGNATURES: &str = "dev.cosignproject.cosign/sigs";
/// Name by which a registry's tag is made of a manifest.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    manifests: Vec<Descriptor>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// The manifest that stands for a content: an artifact whose one layer is the [`statement`], the same bytes each time.
pub fn manifest(content: &ContentHash) -> String {
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE.to_owned(),
        artifact_type: Some(CONTENT_TYPE.to_owned()),
        config: Descriptor::new(EMPTY_TYPE, EMPTY),
        layers: vec![Descriptor::new(CONTENT_TYPE, statement(content).as_bytes())],
    };
    String::from_utf8(json(&manifest)).unwrap_or_default()
}

/// Every file of a layout with the manifest of a content and one signature, in DER, of its payload; `index.json`, which
/// leads to the others, is the last.
pub fn layout(content: &ContentHash, payload: &[u8], signature: &[u8]) -> Vec<(PathBuf, Vec<u8>)> {
    #[derive(Serialize)]
    struct Config {
        architecture: &'static str,
        os: &'static str,
        config: BTreeMap<String, String>,
        rootfs: RootFs,
    }
    #[derive(Serialize)]
    struct RootFs {
        r#type: &'static str,
        diff_ids: Vec<String>,
    }
    let layer = signed_layer(payload, signature);
    // What tools for images of containers expect beside layers.
    let rootfs = RootFs { r#type: "layers", diff_ids: vec![layer.digest.clone()] };
    let config = json(&Config { architecture: "", os: "", config: BTreeMap::new(), rootfs });
    let signatures = json(&Manifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE.to_owned(),
        artifact_type: None,
        config: Descriptor::new(CONFIG_TYPE, &config),
        layers: vec![layer],
    });
    let content_manifest = manifest(content).into_bytes();
    let mut image = Descriptor::new(MANIFEST_TYPE, &content_manifest).annotated(KIND, KIND_IMAGE);
    image.artifact_type = Some(CONTENT_TYPE.to_owned());
    let tag = format!("{}.sig", image.digest.replace(':', "-"));
    let signed = Descriptor::new(MANIFEST_TYPE, &signatures).annotated(KIND, KIND_SIGNATURES);
    let index = json(&Index {
        schema_version: 2,
        media_type: INDEX_TYPE.to_owned(),
        manifests: vec![image, signed.annotated(REF_NAME, tag)],
    });
    let blobs = [
        EMPTY.to_vec(),
        statement(content).into_bytes(),
        content_manifest,
        payload.to_vec(),
        config,
        signatures,
    ];
    let mut files: Vec<(PathBuf, Vec<u8>)> = vec![("oci-layout".into(), VERSION.to_vec())];
    files.extend(blobs.into_iter().filter_map(|bytes| Some((blob(&super::digest(&bytes))?, bytes))));
    files.push(("index.json".into(), index));
    files
}

/// The blobs that a signature of a content leads to, each below the layout, where an index is one that [`layout`]
/// makes: they may give way to another signature with it. `None` for any other index. `open` opens a file of the
/// layout.
///
/// # Errors
/// As for [`read`](crate::signature::read): the index is none, or is not there.
pub fn replaceable_blobs(
    path: &Path,
    open: &dyn Fn(&Path) -> dmabuf::Result<OwnedFd>,
) -> Result<Option<Vec<PathBuf>>, SignatureError> {
    let layout = Layout { path, open };
    let index = layout.index()?;
    let [image, signed] = index.manifests.as_slice() else { return Ok(None) };
    let is_own = image.artifact_type.as_deref() == Some(CONTENT_TYPE)
        && signed.annotations.get(KIND).is_some_and(|kind| kind == KIND_SIGNATURES);
    if !is_own {
        return Ok(None);
    }
    let mut digests = Vec::new();
    for descriptor in [image, signed] {
        digests.push(descriptor.digest.clone());
        // What a damaged manifest led to stays.
        let text = layout.blob(descriptor, JSON_MAX).unwrap_or_default();
        if let Ok(manifest) = serde_json::from_str::<Manifest>(&text) {
            digests.push(manifest.config.digest);
            digests.extend(manifest.layers.into_iter().map(|layer| layer.digest));
        }
    }
    Ok(Some(digests.iter().filter_map(|digest| blob(digest)).collect()))
}

/// Whether a file below a layout is one that [`layout`] writes before the index, whole: `oci-layout`, or a blob that
/// has its own SHA-256 as its name.
pub fn is_part(name: &Path, bytes: &[u8]) -> bool {
    (name == Path::new("oci-layout") && bytes == VERSION)
        || (bytes.len() <= JSON_MAX && blob(&super::digest(bytes)).as_deref() == Some(name))
}

/// The signatures in a layout, each a line; `None` where the path is no directory, or one without an `index.json`.
/// Files of it are opened by their names below it.
pub(in crate::signature) fn read_layout(
    path: &Path,
    open: &dyn Fn(&Path) -> dmabuf::Result<OwnedFd>,
) -> Option<Result<String, SignatureError>> {
    let layout = Layout { path, open };
    let index = match layout.index() {
        Err(SignatureError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => return None,
        index => index,
    };
    Some(index.and_then(|index| layout.signatures(&index)))
}

/// A layout that is read.
struct Layout<'a> {
    /// For errors.
    path: &'a Path,
    open: &'a dyn Fn(&Path) -> dmabuf::Result<OwnedFd>,
}

impl Layout<'_> {
    fn refuse(&self, why: impl Into<String>) -> SignatureError {
        SignatureError::NotALayout { path: self.path.to_owned(), why: why.into() }
    }

    fn read(&self, name: &Path, max: usize) -> Result<String, SignatureError> {
        read_file(&self.path.join(name), max, |_| (self.open)(name))
    }

    fn index(&self) -> Result<Index, SignatureError> {
        let name = Path::new("index.json");
        let none = |error| SignatureError::NotALayout {
            path: self.path.join(name),
            why: format!("it is not an index: {error}"),
        };
        serde_json::from_str(&self.read(name, JSON_MAX)?).map_err(none)
    }

    fn signatures(&self, index: &Index) -> Result<String, SignatureError> {
        let too_many = || self.refuse("more than 64 manifests or layers");
        if index.manifests.len() > PARTS_MAX {
            return Err(too_many());
        }
        let (mut lines, mut layers) = (String::new(), 0_usize);
        for descriptor in &index.manifests {
            // An index within this one has images for machines, and no signatures.
            if descriptor.media_type == INDEX_TYPE {
                continue;
            }
            let text = self.blob(descriptor, JSON_MAX)?;
            let manifest: Manifest = serde_json::from_str(&text).map_err(|error| {
                self.refuse(format!("the manifest {} is none: {error}", descriptor.digest))
            })?;
            layers = layers.saturating_add(manifest.layers.len());
            if layers > PARTS_MAX {
                return Err(too_many());
            }
            for layer in manifest.layers.iter().filter(|layer| layer.media_type == super::PAYLOAD_TYPE) {
                let payload = self.blob(layer, SIGNATURE_MAX)?;
                lines.push_str(&Signed::of(layer, payload.into_bytes())?.text());
                if lines.len() > SIGNATURE_MAX {
                    let what = self.path.display().to_string();
                    return Err(SignatureError::TooLong { what, max: SIGNATURE_MAX });
                }
            }
        }
        if lines.is_empty() {
            return Err(self.refuse("no manifest in it has a layer of simple signing"));
        }
        Ok(lines)
    }

    /// The bytes that a descriptor names, and no others.
    fn blob(&self, descriptor: &Descriptor, max: usize) -> Result<String, SignatureError> {
        let refuse = |why: &str| self.refuse(format!("{:?} {why}", descriptor.digest));
        let name = blob(&descriptor.digest).ok_or_else(|| refuse("is no SHA-256"))?;
        let text = self.read(&name, max)?;
        if !descriptor.is_of(text.as_bytes()) {
            return Err(refuse("is not what lies under this name"));
        }
        Ok(text)
    }
}

/// Where the bytes of a digest lie.
fn blob(digest: &str) -> Option<PathBuf> {
    let digits = digest.strip_prefix("sha256:")?;
    let is_hash = digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hash.then(|| Path::new("blobs/sha256").join(digits))
}
