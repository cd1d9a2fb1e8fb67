//! Images in registries of containers, by the crate `oci-client`: artifacts with a layer that is the image as it is, byte
//! by byte, so that a range of the layer is a range of the image.

use std::ops::Range;

use dmabuf::Hex;
use futures_util::TryStreamExt;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::{OciDescriptor, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

use super::http::{CONNECT, TOKEN};
use super::{Body, Head, Object, Reading};
use crate::error::{redacted, with_causes};
use crate::{Error, Location, Options, Result};

/// Where artifacts say what a layer's file is called: that of the model specification, and that of `oras`.
pub(crate) const NAMES: [&str; 2] = ["org.cncf.model.filepath", "org.opencontainers.image.title"];

/// What the names of images end with.
pub(crate) const SUFFIX: &str = ".daxfs";

/// Artifacts that a message lists.
const LISTED: usize = 20;

/// A registry, and an artifact in it.
pub(crate) struct Registry {
    pub(crate) client: Client,
    pub(crate) reference: Reference,
    pub(crate) auth: RegistryAuth,
    pub(crate) location: Location,
}

impl Registry {
    /// Reads the address and the credentials; nothing is asked yet.
    pub(crate) fn new(location: &Location, options: &Options) -> Result<Self> {
        let wrong = |why: String| Error::Location { text: location.to_string(), why: redacted(&why) };
        let reference: Reference =
            location.registry_name().parse().map_err(|error| wrong(format!("{error}")))?;
        let client = Client::new(config(&reference, options));
        let auth = credentials(reference.resolve_registry()).map_err(wrong)?;
        Ok(Self { client, reference, auth, location: location.clone() })
    }

    pub(crate) fn failed(&self, error: OciDistributionError) -> Error {
        failed(&self.location, error)
    }
}

// Neither credentials nor the client that has them.
impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registry({})", self.location)
    }
}

/// A layer of an artifact.
#[derive(Debug)]
pub(super) struct Layer {
    registry: Registry,
    descriptor: OciDescriptor,
    head: Head,
}

impl Layer {
    /// Asks for the manifest, and chooses the layer.
    pub(super) async fn open(location: &Location, options: &Options) -> Result<Self> {
        let wrong = |why: String| Error::Location { text: location.to_string(), why: redacted(&why) };
        let registry = Registry::new(location, options)?;
        let pulled = registry.client.pull_manifest(&registry.reference, &registry.auth).await;
        let (manifest, _) = pulled.map_err(|error| registry.failed(error))?;
        let descriptor = match manifest {
            OciManifest::Image(manifest) => choose(manifest.layers).map_err(wrong)?,
            OciManifest::ImageIndex(index) => {
                let there = list(index.manifests.iter().map(|found| found.digest.clone()));
                let why = format!("is an index of several artifacts; name one as NAME@DIGEST: {there}");
                return Err(wrong(why));
            }
        };
        let len = u64::try_from(descriptor.size)
            .map_err(|_| wrong(format!("has a layer of {} bytes", descriptor.size)))?;
        let head = Head { len, tag: Some(descriptor.digest.clone()) };
        Ok(Self { registry, descriptor, head })
    }

    async fn get(&self, range: Range<u64>) -> Result<Body> {
        let len = range.end.saturating_sub(range.start);
        let Registry { client, reference, location, .. } = &self.registry;
        let reply = client.pull_blob_stream_partial(reference, &self.descriptor, range.start, Some(len));
        let place = || location.to_string();
        let stream = match reply.await.map_err(|error| self.registry.failed(error))? {
            BlobResponse::Partial(stream) => stream,
            BlobResponse::Full(stream) if range == (0..self.head.len) => stream,
            BlobResponse::Full(_) => return Err(Error::NoRanges { place: place() }),
        };
        let fail = place();
        Ok(Box::pin(stream.stream.map_err(move |error| Error::Server {
            place: fail.clone(),
            text: redacted(&error.to_string()),
            again: true,
        })))
    }
}

impl Object for Layer {
    fn head(&self) -> &Head {
        &self.head
    }

    fn read(&self, range: Range<u64>) -> Reading<'_> {
        Box::pin(self.get(range))
    }

    /// Who names a digest is given what has it; who names a tag is given what the image's own hashes bind.
    fn digest(&self, is_hashed: bool) -> Option<&str> {
        (self.registry.reference.digest().is_some() || !is_hashed).then_some(self.descriptor.digest.as_str())
    }
}

/// The only layer, or the only one whose file is called as images are.
fn choose(layers: Vec<OciDescriptor>) -> Result<OciDescriptor, String> {
    let name = |layer: &OciDescriptor| {
        let annotations = layer.annotations.as_ref()?;
        NAMES.iter().find_map(|name| annotations.get(*name)).cloned()
    };
    let there = list(layers.iter().map(|layer| name(layer).unwrap_or_else(|| layer.media_type.clone())));
    let is_image = |layer: &OciDescriptor| name(layer).is_some_and(|name| name.ends_with(SUFFIX));
    let mut images: Vec<_> = layers.iter().filter(|layer| is_image(layer)).cloned().collect();
    if images.is_empty() && layers.len() == 1 {
        images = layers;
    }
    match images.len() {
        1 => Ok(images.remove(0)),
        0 => Err(format!(
            "holds no DAXFS image: no layer's file is called NAME{SUFFIX}, and there is not one layer alone: {there}"
        )),
        _ => Err(format!("holds several DAXFS images; one of them belongs into an artifact: {there}")),
    }
}

/// A digest as registries write it.
pub(crate) fn sha256(hash: &[u8]) -> String {
    format!("sha256:{}", Hex(hash))
}

fn config(reference: &Reference, options: &Options) -> ClientConfig {
    // Registries on this machine have no certificates; all others speak TLS, as with the tools of containers.
    let registry = reference.resolve_registry();
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let is_here = ["localhost", "127.0.0.1", "[::1]"].contains(&host);
    ClientConfig {
        protocol: if is_here { ClientProtocol::Http } else { ClientProtocol::Https },
        connect_timeout: Some(CONNECT),
        read_timeout: Some(options.patience),
        user_agent: concat!("daxfs/", env!("CARGO_PKG_VERSION")),
        https_proxy: options.proxy.clone(),
        http_proxy: options.proxy.clone(),
        platform_resolver: None,
        ..ClientConfig::default()
    }
}

/// What `docker login` or `podman login` has kept for a registry, or a token; nothing is no error.
fn credentials(registry: &str) -> Result<RegistryAuth, String> {
    use docker_credential::{CredentialRetrievalError as E, DockerCredential as Found};
    if let Ok(token) = std::env::var(TOKEN) {
        return Ok(RegistryAuth::Bearer(token));
    }
    let mut said = None;
    for ask in [docker_credential::get_credential, docker_credential::get_podman_credential] {
        match ask(registry) {
            Ok(Found::UsernamePassword(user, password)) => return Ok(RegistryAuth::Basic(user, password)),
            Ok(Found::IdentityToken(token)) => return Ok(RegistryAuth::Bearer(token)),
            Err(E::ConfigNotFound | E::ConfigReadError | E::NoCredentialConfigured) => {}
            // A helper may say of itself what it knows.
            Err(E::HelperFailure { .. }) => {
                said = Some("the credential helper of docker's config.json failed")
            }
            Err(_) => said = Some("docker's config.json cannot be read"),
        }
    }
    match said {
        Some(why) => Err(why.to_owned()),
        None => Ok(RegistryAuth::Anonymous),
    }
}

fn failed(location: &Location, error: OciDistributionError) -> Error {
    use OciDistributionError as E;
    let place = location.to_string();
    let denied = |status: &str| Error::Denied {
        place: location.to_string(),
        status: status.to_owned(),
        hint: location.scheme().credentials(),
    };
    match error {
        E::ImageManifestNotFoundError(_) => Error::NotFound { place },
        E::UnauthorizedError { .. } | E::AuthenticationFailure(_) => denied("not authorized"),
        E::ServerError { code: 404, .. } => Error::NotFound { place },
        E::ServerError { code: 401 | 403, .. } => denied("not authorized"),
        E::ServerError { code, .. } => {
            let again = code >= 500 || [408, 429].contains(&code);
            Error::Server { place, text: format!("the registry answers {code}"), again }
        }
        E::RegistryError { envelope, .. } => {
            let is = |codes: &[OciErrorCode]| envelope.errors.iter().any(|error| codes.contains(&error.code));
            if is(&[OciErrorCode::ManifestUnknown, OciErrorCode::NameUnknown, OciErrorCode::BlobUnknown]) {
                return Error::NotFound { place };
            }
            if is(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                return denied("not authorized");
            }
            let again = is(&[OciErrorCode::Toomanyrequests]);
            Error::Server { place, text: redacted(&envelope.to_string()), again }
        }
        E::RequestError(error) => {
            let again = !error.is_builder();
            Error::Server { place, text: with_causes(&error.without_url()), again }
        }
        other => Error::Server { place, text: redacted(&other.to_string()), again: false },
    }
}

fn list(names: impl Iterator<Item = String>) -> String {
    let names: Vec<_> = names.collect();
    match names.len() {
        0 => "none".to_owned(),
        count if count > LISTED => format!("{} and {} more", names[..LISTED].join(", "), count - LISTED),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::{OciDescriptor, choose};

    fn layer(name: Option<&str>) -> OciDescriptor {
        let annotations = name.map(|name| [("org.cncf.model.filepath".to_owned(), name.to_owned())].into());
        OciDescriptor { media_type: "raw".to_owned(), annotations, ..OciDescriptor::default() }
    }

    #[test]
    fn the_layer_that_is_an_image() {
        assert!(choose(vec![layer(None)]).is_ok());
        let found = choose(vec![layer(Some("README.md")), layer(Some("a.daxfs")), layer(None)]).unwrap();
        assert_eq!(found.annotations.unwrap()["org.cncf.model.filepath"], "a.daxfs");
        assert!(choose(vec![]).unwrap_err().contains("holds no DAXFS image"));
        assert!(choose(vec![layer(None), layer(None)]).unwrap_err().contains("raw, raw"));
        let two = choose(vec![layer(Some("a.daxfs")), layer(Some("b.daxfs"))]).unwrap_err();
        assert!(two.contains("a.daxfs, b.daxfs"), "{two}");
    }
}
