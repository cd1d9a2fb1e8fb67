//! Images into registries of containers: one layer that is the image as it is, in an artifact of the model specification.

use std::sync::Arc;

use bytes::Bytes;
use daxfs::{Image, OpenOptions, Region};
use oci_client::manifest::{OciDescriptor, OciImageManifest, OciManifest};
use sha2::{Digest, Sha256};
use tokio::runtime::Builder;

use crate::object::registry::{self, Registry};
use crate::{Error, Location, Options, Result, Scheme};

/// What an artifact with a model calls itself, its configuration and its files.
const ARTIFACT: &str = "application/vnd.cncf.model.manifest.v1+json";
const CONFIG: &str = "application/vnd.cncf.model.config.v1+json";
const LAYER: &str = "application/vnd.cncf.model.weight.v1.raw";
/// Beside the name of the file: the image's content, as `expect` takes it.
const CONTENT: &str = "io.multikernel.daxfs.content";

/// Bytes that are read and sent at once.
const PIECE: usize = 4 << 20;

/// Pushes an image into a registry, and gives the digest of its manifest. A layer that the registry has already is not
/// sent again. [`Options::progress`] is told of each byte twice: its hash comes before it.
///
/// # Errors
/// [`Error::Location`] for an address of something else than a registry, or with a digest; [`Error::Image`] for what is no
/// image, [`Error::Denied`], and what the registry and the network say. Without a manifest nothing refers to what was sent
/// until then.
pub fn push(region: &Region, location: &Location, options: &Options) -> Result<String> {
    crate::remote::install_provider();
    let wrong = |why: &str| Error::Location { text: location.to_string(), why: why.into() };
    if location.scheme() != Scheme::Oci {
        return Err(wrong("is no registry (oci://...); stores and web servers have tools that write files"));
    }
    let registry = Registry::new(location, options)?;
    if registry.reference.digest().is_some() {
        return Err(wrong("has a digest; what is pushed gets one, and is named by a tag"));
    }
    let image_error = |source| Error::Image { place: location.to_string(), source: Box::new(source) };
    let image = OpenOptions::new().max_metadata(options.max_metadata).open_region(region.clone());
    let image = image.map_err(image_error)?;
    let total = region.len().saturating_mul(2);
    let digest = digest_of(region, options, total).map_err(|error| error.at(location))?;
    let manifest = manifest(&image, &registry, region.len(), &digest);
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| Error::system("start threads", error))?;
    runtime.block_on(send(&registry, region, options, &digest, manifest, total))
}

/// Why bytes are not to be had, before it is known where to.
enum Failed {
    Image(daxfs::Error),
    Cancelled,
}

impl Failed {
    fn at(self, location: &Location) -> Error {
        match self {
            Self::Image(source) => Error::Image { place: location.to_string(), source: Box::new(source) },
            Self::Cancelled => Error::Cancelled,
        }
    }
}

/// A piece of the region; others may be writing to it, so it is copied once.
fn piece(region: &Region, at: u64) -> Result<Vec<u8>, daxfs::Error> {
    let left = region.len().saturating_sub(at);
    let mut bytes = vec![0; usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
    region.read_at(at, &mut bytes)?;
    Ok(bytes)
}

fn digest_of(region: &Region, options: &Options, total: u64) -> Result<String, Failed> {
    let mut hasher = Sha256::new();
    let mut at = 0;
    while at < region.len() {
        let bytes = piece(region, at).map_err(Failed::Image)?;
        hasher.update(&bytes);
        at = at.saturating_add(bytes.len() as u64);
        if !options.progress.tell(at, total) {
            return Err(Failed::Cancelled);
        }
    }
    Ok(registry::sha256(&hasher.finalize()))
}

/// The configuration, and the manifest that names it.
fn manifest(image: &Image, registry: &Registry, len: u64, digest: &str) -> (Vec<u8>, OciImageManifest) {
    let repository = registry.reference.repository();
    let name = repository.rsplit('/').next().unwrap_or(repository);
    let config = format!(
        r#"{{"descriptor":{{"name":"{name}"}},"modelfs":{{"type":"layers","diffIds":["{digest}"]}},"config":{{"format":"daxfs"}}}}"#
    );
    let mut annotations: std::collections::BTreeMap<_, _> = registry::NAMES
        .iter()
        .map(|key| ((*key).to_owned(), format!("{name}{}", registry::SUFFIX)))
        .collect();
    if let Some(content) = image.content_hash() {
        annotations.insert(CONTENT.to_owned(), content.to_string());
    }
    let descriptor = |kind: &str, digest: String, len: u64| OciDescriptor {
        media_type: kind.to_owned(),
        digest,
        size: i64::try_from(len).unwrap_or(i64::MAX),
        ..OciDescriptor::default()
    };
    let own = registry::sha256(&Sha256::digest(&config));
    let manifest = OciImageManifest {
        media_type: Some(oci_client::manifest::OCI_IMAGE_MEDIA_TYPE.to_owned()),
        artifact_type: Some(ARTIFACT.to_owned()),
        config: descriptor(CONFIG, own, config.len() as u64),
        layers: vec![OciDescriptor {
            annotations: Some(annotations),
            ..descriptor(LAYER, digest.to_owned(), len)
        }],
        ..OciImageManifest::default()
    };
    (config.into_bytes(), manifest)
}

async fn send(
    registry: &Registry,
    region: &Region,
    options: &Options,
    digest: &str,
    (config, manifest): (Vec<u8>, OciImageManifest),
    total: u64,
) -> Result<String> {
    let (client, reference) = (&registry.client, &registry.reference);
    let failed = |error| registry.failed(error);
    client.store_auth_if_needed(reference.resolve_registry(), &registry.auth).await;
    let operation = oci_client::RegistryOperation::Push;
    client.auth(reference, &registry.auth, operation).await.map_err(failed)?;
    if !client.blob_exists(reference, digest).await.map_err(failed)? {
        let stopped: Arc<std::sync::Mutex<Option<Failed>>> = Arc::default();
        let (said, region, progress) = (Arc::clone(&stopped), region.clone(), options.progress.clone());
        let stream = futures_util::stream::unfold(0, move |at| {
            let next = (at < region.len()).then(|| match piece(&region, at) {
                Ok(bytes) if progress.tell(region.len().saturating_add(at), total) => Ok(bytes),
                Ok(_) => Err(Failed::Cancelled),
                Err(error) => Err(Failed::Image(error)),
            });
            let item = next.map(|next| match next {
                Ok(bytes) => {
                    let behind = at.saturating_add(bytes.len() as u64);
                    (Ok(Bytes::from(bytes)), behind)
                }
                Err(why) => {
                    *said.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(why);
                    let error = std::io::Error::other("stopped");
                    (Err(oci_client::errors::OciDistributionError::IoError(error)), u64::MAX)
                }
            });
            std::future::ready(item)
        });
        let sent =
            client.push_blob_stream(reference, stream, digest, Some(manifest.layers[0].size.unsigned_abs()));
        let sent = sent.await;
        let why = stopped.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(why) = why {
            return Err(why.at(&registry.location));
        }
        sent.map_err(failed)?;
    }
    let own = manifest.config.digest.clone();
    client.push_blob(reference, config, &own).await.map_err(failed)?;
    client.push_manifest(reference, &OciManifest::Image(manifest)).await.map_err(failed)?;
    client.fetch_manifest_digest(reference, &registry.auth).await.map_err(failed)
}
