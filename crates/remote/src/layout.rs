//! Container images out of registries, as image layouts in a directory: what `daxfs-pack oci://...` reads.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt, TryStreamExt};
use oci_client::manifest::{ImageIndexEntry, OciDescriptor, OciManifest};
use oci_client::{Reference, manifest as kinds};
use sha2::{Digest, Sha256};
use tokio::runtime::Builder;

use crate::error::redacted;
use crate::object::registry::{self, Registry};
use crate::{Error, Location, Options, Result, Scheme};

/// What is asked for: images and indexes of images, of both families.
const MANIFESTS: [&str; 4] = [
    kinds::OCI_IMAGE_MEDIA_TYPE,
    kinds::OCI_IMAGE_INDEX_MEDIA_TYPE,
    kinds::IMAGE_MANIFEST_MEDIA_TYPE,
    kinds::IMAGE_MANIFEST_LIST_MEDIA_TYPE,
];
/// Manifests of one platform in an index.
const MOST_IMAGES: usize = 16;
/// Blobs that are fetched at a time.
const AT_ONCE: usize = 4;
/// Most bytes of a manifest or a configuration, as readers of layouts take them.
const MOST_DOCUMENT: usize = 8 << 20;

/// Fetches what a machine of `platform` (`OS/ARCHITECTURE[/VARIANT]`) needs of a container image into an image layout in
/// `folder`, an empty directory, and gives the digest of the manifest or index that the address names. Each blob is
/// compared with its digest as it arrives.
///
/// # Errors
/// [`Error::Location`] for an address of something else than a registry, [`Error::NotFound`], [`Error::Denied`], and what the
/// registry, the network and the file system say. What was written until then stays in the folder.
pub fn pull_layout(location: &Location, folder: &Path, platform: &str, options: &Options) -> Result<String> {
    crate::remote::install_provider();
    if location.scheme() != Scheme::Oci {
        let why = "is no registry (oci://...)".into();
        return Err(Error::Location { text: location.to_string(), why });
    }
    let registry = Registry::new(location, options)?;
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Error::system("start threads", error))?;
    let pull =
        Pull { registry: &registry, folder, options, done: AtomicU64::new(0), total: AtomicU64::new(0) };
    runtime.block_on(pull.all(platform))
}

struct Pull<'a> {
    registry: &'a Registry,
    folder: &'a Path,
    options: &'a Options,
    done: AtomicU64,
    total: AtomicU64,
}

impl Pull<'_> {
    async fn all(&self, platform: &str) -> Result<String> {
        let blobs = self.folder.join("blobs/sha256");
        std::fs::create_dir_all(blobs).map_err(|error| Error::system("make a directory", error))?;
        let (digest, size, manifest) = self.manifest(&self.registry.reference).await?;
        let kind = manifest.content_type().to_owned();
        match manifest {
            OciManifest::Image(image) => self.blobs(image.config, image.layers).await?,
            OciManifest::ImageIndex(index) => {
                let fitting = index.manifests.iter().filter(|entry| serves(entry, platform));
                for entry in fitting.take(MOST_IMAGES) {
                    let reference = &self.registry.reference;
                    let (registry, repository) = (reference.registry(), reference.repository());
                    let digest = entry.digest.clone();
                    let reference =
                        Reference::with_digest(registry.to_owned(), repository.to_owned(), digest);
                    // An index in an index is for nobody that is known.
                    if let (.., OciManifest::Image(image)) = self.manifest(&reference).await? {
                        self.blobs(image.config, image.layers).await?;
                    }
                }
            }
        }
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}]}}"#
        );
        self.write("index.json", index.as_bytes())?;
        self.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(digest)
    }

    /// Fetches a manifest or an index, and keeps it.
    async fn manifest(&self, reference: &Reference) -> Result<(String, usize, OciManifest)> {
        let Registry { client, auth, .. } = self.registry;
        let pulled = client.pull_manifest_raw(reference, auth, &MANIFESTS).await;
        let (bytes, _) = pulled.map_err(|error| self.registry.failed(error))?;
        if bytes.len() > MOST_DOCUMENT {
            return Err(
                self.wrong(&format!("has a manifest of {} bytes, {MOST_DOCUMENT} are read", bytes.len()))
            );
        }
        let digest = registry::sha256(&Sha256::digest(&bytes));
        if let Some(expected) = reference.digest().filter(|expected| *expected != digest) {
            let place = self.registry.location.to_string();
            return Err(Error::WrongDigest { place, expected: redacted(expected), got: digest });
        }
        self.write(&blob_name(&digest).unwrap_or_default(), &bytes)?;
        let manifest = serde_json::from_slice(&bytes);
        let manifest =
            manifest.map_err(|error| self.wrong(&format!("has a manifest that is none: {error}")))?;
        Ok((digest, bytes.len(), manifest))
    }

    /// Fetches the configuration and the layers of an image.
    async fn blobs(&self, config: OciDescriptor, layers: Vec<OciDescriptor>) -> Result<()> {
        let mut wanted = layers;
        wanted.push(config);
        wanted.sort_by(|a, b| a.digest.cmp(&b.digest));
        wanted.dedup_by(|a, b| a.digest == b.digest);
        let mut needed = 0_u64;
        let mut sized = Vec::with_capacity(wanted.len());
        for blob in &wanted {
            let size = u64::try_from(blob.size);
            let size = size.map_err(|_| self.wrong(&format!("has a blob of {} bytes", blob.size)))?;
            needed = needed.saturating_add(size);
            sized.push((blob, size));
        }
        check_room(&self.registry.location.to_string(), self.folder, needed)?;
        self.total.fetch_add(needed, Ordering::Relaxed);
        futures_util::stream::iter(sized.into_iter().map(Ok::<_, Error>))
            .try_for_each_concurrent(AT_ONCE, |(blob, size)| self.blob(blob, size))
            .await
    }

    async fn blob(&self, blob: &OciDescriptor, size: u64) -> Result<()> {
        let Some(name) = blob_name(&blob.digest) else {
            return Err(self.wrong(&format!("names a blob by {:?}, which is no SHA-256", blob.digest)));
        };
        let path = self.folder.join(name);
        // Another image of the index has it, too.
        if path.exists() {
            self.done.fetch_add(size, Ordering::Relaxed);
            return Ok(());
        }
        let (mut tries, place) = (0, || self.registry.location.to_string());
        loop {
            match self.download(blob, size, &path).await {
                Err(error) if error.is_worth_again() && tries < self.options.retries => {
                    tries += 1;
                    tokio::time::sleep(std::time::Duration::from_millis(100 << tries.min(7))).await;
                }
                Err(Error::Server { text, again, .. }) => {
                    let text = format!("blob {}: {text}", redacted(&blob.digest));
                    return Err(Error::Server { place: place(), text, again });
                }
                done => return done,
            }
        }
    }

    /// Writes a blob; its client compares it with its digest at the end.
    async fn download(&self, blob: &OciDescriptor, size: u64, path: &Path) -> Result<()> {
        let write = |error| Error::system("write a blob", error);
        let Registry { client, reference, .. } = self.registry;
        let reply = client.pull_blob_stream(reference, blob).await;
        let mut stream = reply.map_err(|error| self.registry.failed(error))?.stream;
        let mut file = File::create(path).map_err(write)?;
        let mut got = 0_u64;
        while let Some(bytes) = stream.next().await {
            let server = |error: std::io::Error| Error::Server {
                place: self.registry.location.to_string(),
                text: redacted(&error.to_string()),
                again: true,
            };
            let bytes = bytes.map_err(server)?;
            got = got.saturating_add(bytes.len() as u64);
            if got > size {
                return Err(self.wrong(&format!("has a blob of more than the {size} bytes it says")));
            }
            file.write_all(&bytes).map_err(write)?;
            let done = self.done.load(Ordering::Relaxed).saturating_add(got);
            let total = self.total.load(Ordering::Relaxed);
            if !self.options.progress.tell(done.min(total), total) {
                return Err(Error::Cancelled);
            }
        }
        self.done.fetch_add(got, Ordering::Relaxed);
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        std::fs::write(self.folder.join(name), bytes).map_err(|error| Error::system("write a layout", error))
    }

    fn wrong(&self, why: &str) -> Error {
        Error::Server { place: self.registry.location.to_string(), text: redacted(why), again: false }
    }
}

/// Refuses what does not fit before anything of it is fetched.
pub(crate) fn check_room(place: &str, folder: &Path, needed: u64) -> Result<()> {
    let seen = rustix::fs::statvfs(folder).map_err(|errno| Error::system("ask for room", errno.into()))?;
    let available = seen.f_bavail.saturating_mul(seen.f_frsize);
    if needed <= available {
        return Ok(());
    }
    let folder = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    Err(Error::NoSpace { place: place.to_owned(), folder, needed, available })
}

/// The place of a blob in a layout. `None` for what is no SHA-256: a hostile name could lead elsewhere.
fn blob_name(digest: &str) -> Option<String> {
    let hex = digest.strip_prefix("sha256:")?;
    let is_hex = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hex.then(|| format!("blobs/sha256/{hex}"))
}

/// Whether an entry of an index may be for a platform; readers of the layout choose among those.
fn serves(entry: &ImageIndexEntry, platform: &str) -> bool {
    let Some(said) = &entry.platform else { return true };
    let mut words = platform.split('/');
    let (os, architecture) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    said.os.to_string() == os && said.architecture.to_string() == architecture
}

#[cfg(test)]
mod tests {
    use super::blob_name;

    #[test]
    fn only_digests_are_names() {
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(blob_name(&format!("sha256:{hex}")), Some(format!("blobs/sha256/{hex}")));
        for wrong in ["", "sha256:", "sha256:../../../etc/passwd", "sha512:00", &format!("sha256:{hex}0")] {
            assert_eq!(blob_name(wrong), None, "{wrong}");
        }
        assert_eq!(blob_name(&format!("sha256:{}", hex.to_uppercase())), None);
    }
}
