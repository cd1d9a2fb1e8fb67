//! Objects of S3, Google Cloud Storage and Azure, by the crate `object_store`: credentials, signatures and endpoints are
//! its business, and come from the environment variables that each cloud's own tools read.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ClientConfigKey, GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig};

use super::{Body, Head, Object, Reading, check_same};
use crate::error::with_causes;
use crate::tree::{Entry, Listing};
use crate::{Error, Location, Options, Result, Scheme};

/// How long a store's own client makes a request again before it is ours to do so.
const OWN_RETRIES: Duration = Duration::from_secs(5);

/// An object of a store.
#[derive(Debug)]
pub(super) struct Stored {
    store: Arc<dyn ObjectStore>,
    path: Path,
    location: Location,
    head: Head,
}

impl Stored {
    pub(super) async fn open(location: &Location, options: &Options) -> Result<Self> {
        let failed = |error| Self::failed(location, error);
        let store = build(location, options).map_err(failed)?;
        let path = Path::from_url_path(location.key()).map_err(|error| failed(error.into()))?;
        let meta = store.head(&path).await.map_err(failed)?;
        let head = Head { len: meta.size, tag: meta.e_tag };
        Ok(Self { store, path, location: location.clone(), head })
    }

    fn failed(location: &Location, error: object_store::Error) -> Error {
        use object_store::Error as E;
        let place = location.to_string();
        let denied = |status: &str| Error::Denied {
            place: location.to_string(),
            status: status.to_owned(),
            hint: location.scheme().credentials(),
        };
        match error {
            E::NotFound { .. } => Error::NotFound { place },
            E::PermissionDenied { .. } => denied("forbidden"),
            E::Unauthenticated { .. } => denied("no valid credentials"),
            E::Precondition { .. } => {
                Error::Changed { place, was: "as it was opened".into(), now: "another tag".into() }
            }
            // The library has no name for it.
            E::Generic { source, .. } if source.to_string().contains("non-partial response") => {
                Error::NoRanges { place }
            }
            other => {
                let text = with_causes(&other);
                let again = !matches!(other, E::UnknownConfigurationKey { .. } | E::InvalidPath { .. });
                Error::Server { place, text, again }
            }
        }
    }

    async fn get(&self, range: Range<u64>) -> Result<Body> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: self.head.tag.clone(),
            ..GetOptions::default()
        };
        let failed = |error| Self::failed(&self.location, error);
        let result = self.store.get_opts(&self.path, options).await.map_err(failed)?;
        let place = self.location.to_string();
        check_same(&place, &self.head, &Head { len: result.meta.size, tag: result.meta.e_tag.clone() })?;
        if result.range != range {
            let got = format!("bytes {}..{}", result.range.start, result.range.end);
            return Err(Error::WrongRange { place, asked: range, got });
        }
        let location = self.location.clone();
        Ok(Box::pin(result.into_stream().map_err(move |error| Self::failed(&location, error))))
    }
}

impl Object for Stored {
    fn head(&self) -> &Head {
        &self.head
    }

    fn read(&self, range: Range<u64>) -> Reading<'_> {
        Box::pin(self.get(range))
    }
}

/// All objects below a folder.
pub(crate) async fn list(location: &Location, options: &Options) -> Result<Vec<Entry>> {
    let failed = |error| Stored::failed(location, error);
    let store = build(location, options).map_err(failed)?;
    let folder = Path::from_url_path(location.key()).map_err(|error| failed(error.into()))?;
    let mut objects = store.list(Some(&folder));
    let mut listing = Listing::default();
    while let Some(object) = objects.try_next().await.map_err(failed)? {
        let Some(parts) = object.location.prefix_match(&folder) else { continue };
        let path = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
        if path.is_empty() {
            continue;
        }
        if listing.entries.len() % 1000 == 0 && !options.progress.tell(0, 0) {
            return Err(Error::Cancelled);
        }
        listing.push(
            location,
            Entry {
                path,
                len: object.size,
                sha256: None,
                tag: object.e_tag.filter(|tag| !tag.contains(' ')),
            },
        )?;
    }
    let mut entries = listing.entries;
    // Empty objects stand for folders in some tools.
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let folders: HashSet<String> = entries
        .iter()
        .flat_map(|entry| entry.path.match_indices('/').map(|(at, _)| entry.path[..at].to_owned()))
        .collect();
    entries.retain(|entry| entry.len > 0 || !folders.contains(&entry.path));
    Ok(entries)
}

/// The client of a store, as the environment says.
fn build(location: &Location, options: &Options) -> object_store::Result<Arc<dyn ObjectStore>> {
    let bucket = location.url().host_str().unwrap_or_default();
    let retry = RetryConfig { max_retries: 2, retry_timeout: OWN_RETRIES, ..RetryConfig::default() };
    let proxy = options.proxy.as_deref().map(|proxy| (ClientConfigKey::ProxyUrl, proxy));
    let is_http = |names: &[&str]| {
        names.iter().any(|name| std::env::var(name).is_ok_and(|endpoint| endpoint.starts_with("http://")))
    };
    // Who names an endpoint without TLS means it.
    let plain = |names| is_http(names).then_some((ClientConfigKey::AllowHttp, "true"));
    Ok(match location.scheme() {
        Scheme::Gcs => {
            let client = [proxy].into_iter().flatten();
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry);
            let with = |builder: GoogleCloudStorageBuilder, (key, value)| {
                builder.with_config(GoogleConfigKey::Client(key), value)
            };
            Arc::new(client.fold(builder, with).build()?)
        }
        Scheme::Azure => {
            let client = [proxy, plain(&["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"])].into_iter().flatten();
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(retry);
            let with = |builder: MicrosoftAzureBuilder, (key, value)| {
                builder.with_config(AzureConfigKey::Client(key), value)
            };
            Arc::new(client.fold(builder, with).build()?)
        }
        _ => {
            let client = [proxy, plain(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])];
            let builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
            let with = |builder: AmazonS3Builder, (key, value)| {
                builder.with_config(AmazonS3ConfigKey::Client(key), value)
            };
            Arc::new(client.into_iter().flatten().fold(builder, with).build()?)
        }
    })
}
