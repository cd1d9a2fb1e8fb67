//! Addresses of images that lie elsewhere.

use std::fmt;
use std::str::FromStr;

use daxfs::RemoteAddress;
use url::Url;

use crate::{Error, Result};

/// What kind of server an address names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// `s3://BUCKET/KEY`: Amazon S3 and what speaks its protocol (`AWS_ENDPOINT_URL`).
    S3,
    /// `gs://BUCKET/KEY`: Google Cloud Storage.
    Gcs,
    /// `az://CONTAINER/KEY`: Azure Blob Storage, of the account in `AZURE_STORAGE_ACCOUNT_NAME`.
    Azure,
    /// `oci://REGISTRY/REPOSITORY[:TAG|@DIGEST]`: a registry of containers, and an artifact in it that holds an image.
    Oci,
    /// `https://HOST/PATH`, `http://HOST/PATH`: any server that knows ranges.
    Http,
}

impl Scheme {
    /// Every scheme, as addresses begin.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("s3", Self::S3),
        ("gs", Self::Gcs),
        ("az", Self::Azure),
        ("oci", Self::Oci),
        ("https", Self::Http),
        ("http", Self::Http),
    ];

    /// Where its credentials come from.
    pub(crate) fn credentials(self) -> &'static str {
        match self {
            Self::S3 => {
                "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a web identity, the container or \
                 the instance; AWS_SKIP_SIGNATURE=true reads without any"
            }
            Self::Gcs => {
                "credentials come from GOOGLE_SERVICE_ACCOUNT, GOOGLE_APPLICATION_CREDENTIALS or the instance; \
                 GOOGLE_SKIP_SIGNATURE=true reads without any"
            }
            Self::Azure => {
                "credentials come from AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, \
                 AZURE_STORAGE_SAS_TOKEN or a managed identity; AZURE_SKIP_SIGNATURE=true reads without any"
            }
            Self::Oci => {
                "credentials come from what docker login or podman login has kept (DOCKER_CONFIG, REGISTRY_AUTH_FILE), a \
                 token from DAXFS_REMOTE_TOKEN"
            }
            Self::Http => "a token is taken from DAXFS_REMOTE_TOKEN, a user from the address",
        }
    }
}

/// The address of an image. Its text form has no credentials: neither user nor query.
#[derive(Clone, PartialEq, Eq)]
pub struct Location {
    scheme: Scheme,
    url: Url,
}

impl Location {
    /// Whether a text begins as an address of this kind, right or wrong.
    pub fn is_one(text: &str) -> bool {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        scheme.is_some_and(|scheme| Scheme::NAMES.iter().any(|(name, _)| *name == scheme))
    }

    /// Which kind of server.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The whole address, secrets included.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// What a registry's tools call the artifact: `HOST[:PORT]/REPOSITORY[:TAG|@DIGEST]`.
    pub(crate) fn registry_name(&self) -> String {
        self.to_string().trim_start_matches("oci://").to_owned()
    }

    /// Bucket and key of a store.
    pub(crate) fn key(&self) -> &str {
        self.url.path().trim_start_matches('/')
    }
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let shown = match RemoteAddress::parse(text.as_ref()) {
            Some(Ok(address)) => address.to_string(),
            _ => crate::error::redacted(text.split(['?', '#']).next().unwrap_or_default()),
        };
        let wrong = |why: String| Error::Location { text: shown.clone(), why };
        let url = Url::parse(text).map_err(|error| wrong(format!("is no address: {error}")))?;
        let found = Scheme::NAMES.iter().find(|(name, _)| *name == url.scheme());
        let Some((name, scheme)) = found else {
            let known: Vec<_> = Scheme::NAMES.iter().map(|(name, _)| format!("{name}://")).collect();
            return Err(wrong(format!("begins with none of {}", known.join(", "))));
        };
        let location = Self { scheme: *scheme, url };
        if location.url.host_str().is_none_or(str::is_empty) {
            return Err(wrong(format!(
                "names no {}",
                match scheme {
                    Scheme::Http => "host",
                    Scheme::Oci => "registry",
                    _ => "bucket",
                }
            )));
        }
        if location.key().is_empty() || location.key().ends_with('/') {
            let named = if *scheme == Scheme::Oci { "REPOSITORY:TAG" } else { "NAME.daxfs" };
            return Err(wrong(format!("names no object; an image is {name}://.../{named}")));
        }
        if *scheme != Scheme::Http && (location.url.query().is_some() || !location.url.username().is_empty())
        {
            return Err(wrong(
                "takes neither a user nor a query; credentials come from the environment".into(),
            ));
        }
        if location.url.fragment().is_some() {
            return Err(wrong("takes no #fragment".into()));
        }
        Ok(location)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port().map(|port| format!(":{port}")).unwrap_or_default();
        write!(f, "{}://{host}{port}{}", self.url.scheme(), self.url.path())
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let location: Location = "https://user:secret@host:8443/a/b.daxfs?sig=secret".parse().unwrap();
        assert_eq!(location.to_string(), "https://host:8443/a/b.daxfs");
        assert!(!format!("{location:?}").contains("secret"));
        assert_eq!(location.scheme(), Scheme::Http);
        let location: Location = "s3://models/llama/v1.daxfs".parse().unwrap();
        assert_eq!((location.scheme(), location.key()), (Scheme::S3, "llama/v1.daxfs"));
        assert_eq!(location.to_string(), "s3://models/llama/v1.daxfs");
        let location: Location = "oci://host:5000/models/llama:v1".parse().unwrap();
        assert_eq!(location.registry_name(), "host:5000/models/llama:v1");
        for (text, why) in [
            ("ftp://host/a", "begins with none of s3://"),
            ("s3://models", "names no object"),
            ("s3://models/", "names no object"),
            ("https://host/folder/", "names no object"),
            ("s3:///key", "names no bucket"),
            ("oci:///llama:v1", "names no registry"),
            ("oci://host:5000", "an image is oci://.../REPOSITORY:TAG"),
            ("oci://user:secret@host/llama:v1", "takes neither a user nor a query"),
            ("s3://user@models/key", "takes neither a user nor a query"),
            ("gs://models/key?x=secret", "takes neither a user nor a query"),
            ("https://host/a#b", "takes no #fragment"),
            ("nothing", "is no address"),
            ("https://user:se/secret@host/a", "https://...: is no address"),
        ] {
            let error = text.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("secret"), "{text}: {error}");
        }
        assert!(Location::is_one("s3://"));
        assert!(!Location::is_one("daxfs://a") && !Location::is_one("a.daxfs"));
    }
}
