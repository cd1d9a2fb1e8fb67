//! Signatures in an OCI image layout: a folder with `oci-layout`, `index.json` and blobs under their SHA-256.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::{Descriptor, Signed, json, signed_layer};
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
pub fn manifest(content: &[u8; 32]) -> String {
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
pub fn layout(content: &[u8; 32], payload: &[u8], signature: &[u8]) -> Vec<(PathBuf, Vec<u8>)> {
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

/// Whether a directory holds nothing but a signature of a content as [`layout`] makes it, or the beginning of one,
/// which may give way to another.
pub fn is_replaceable(directory: &Path) -> bool {
    let is_ours = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| {
            ["oci-layout", "blobs", "index.json"].iter().any(|name| entry.file_name() == OsStr::new(name))
        })
    };
    if !std::fs::read_dir(directory).is_ok_and(|mut entries| entries.all(is_ours)) {
        return false;
    }
    match read_json::<Index>(&directory.join("index.json"), &dmabuf::open_no_follow) {
        Err(SignatureError::Read { source, .. }) => source.kind() == ErrorKind::NotFound,
        Err(_) => false,
        Ok(index) => {
            let [image, signed] = index.manifests.as_slice() else { return false };
            image.artifact_type.as_deref() == Some(CONTENT_TYPE)
                && signed.annotations.get(KIND).is_some_and(|kind| kind == KIND_SIGNATURES)
        }
    }
}

/// The signatures in a layout, each a line; `None` where the path is no directory, or one without an `index.json`.
pub(in crate::signature) fn read_layout(
    path: &Path,
    open: impl Fn(&Path) -> dmabuf::Result<OwnedFd>,
) -> Option<Result<String, SignatureError>> {
    if !path.is_dir() {
        return None;
    }
    let index = match read_json::<Index>(&path.join("index.json"), &open) {
        Err(SignatureError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => return None,
        index => index,
    };
    Some(index.and_then(|index| read_index(path, &index, &open)))
}

fn read_index(
    path: &Path,
    index: &Index,
    open: &dyn Fn(&Path) -> dmabuf::Result<OwnedFd>,
) -> Result<String, SignatureError> {
    let refuse = |why: &str| SignatureError::NotALayout { path: path.to_owned(), why: why.to_owned() };
    let too_many = || refuse("more than 64 manifests or layers");
    if index.manifests.len() > PARTS_MAX {
        return Err(too_many());
    }
    let (mut lines, mut layers) = (String::new(), 0_usize);
    for descriptor in &index.manifests {
        // An index within this one has images for machines, and no signatures.
        if descriptor.media_type == INDEX_TYPE {
            continue;
        }
        let text = read_blob(path, descriptor, JSON_MAX, open)?;
        let manifest: Manifest = serde_json::from_str(&text)
            .map_err(|error| refuse(&format!("the manifest {} is none: {error}", descriptor.digest)))?;
        layers = layers.saturating_add(manifest.layers.len());
        if layers > PARTS_MAX {
            return Err(too_many());
        }
        for layer in manifest.layers.iter().filter(|layer| layer.media_type == super::PAYLOAD_TYPE) {
            let payload = read_blob(path, layer, SIGNATURE_MAX, open)?;
            lines.push_str(&Signed::of(layer, payload.into_bytes())?.text());
            if lines.len() > SIGNATURE_MAX {
                return Err(SignatureError::TooLong { what: path.display().to_string(), max: SIGNATURE_MAX });
            }
        }
    }
    if lines.is_empty() {
        return Err(refuse("no manifest in it has a layer of simple signing"));
    }
    Ok(lines)
}

/// The bytes that a descriptor names, and no others.
fn read_blob(
    path: &Path,
    descriptor: &Descriptor,
    max: usize,
    open: &dyn Fn(&Path) -> dmabuf::Result<OwnedFd>,
) -> Result<String, SignatureError> {
    let refuse = |why: &str| {
        let why = format!("{:?} {why}", descriptor.digest);
        SignatureError::NotALayout { path: path.to_owned(), why }
    };
    let blob = path.join(blob(&descriptor.digest).ok_or_else(|| refuse("is no SHA-256"))?);
    let text = read_file(&blob, max, open)?;
    if !descriptor.is_of(text.as_bytes()) {
        return Err(refuse("is not what lies under this name"));
    }
    Ok(text)
}

/// Where the bytes of a digest lie.
fn blob(digest: &str) -> Option<PathBuf> {
    let digits = digest.strip_prefix("sha256:")?;
    let is_hash = digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hash.then(|| Path::new("blobs/sha256").join(digits))
}

fn read_json<T: for<'a> Deserialize<'a>>(
    path: &Path,
    open: &dyn Fn(&Path) -> dmabuf::Result<OwnedFd>,
) -> Result<T, SignatureError> {
    let text = read_file(path, JSON_MAX, open)?;
    let none =
        |error| SignatureError::NotALayout { path: path.to_owned(), why: format!("it is no index: {error}") };
    serde_json::from_str(&text).map_err(none)
}
