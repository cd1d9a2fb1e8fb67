//! Addresses of images that lie elsewhere.

use std::fmt;
use std::str::FromStr;

use daxfs::RemoteAddress;
use url::Url;

use crate::{Error, Result};

/// What hubs have but models, as addresses name it.
const KINDS: [&str; 2] = ["datasets", "spaces"];

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
    /// `hf://ORG/NAME[@REVISION]`: a repository of a hub of models (`HF_ENDPOINT`); with a path behind it a file of one.
    Hub,
    /// `https://HOST/PATH`, `http://HOST/PATH`: any server that knows ranges.
    Http,
}

impl Scheme {
    /// Every scheme, as addresses begin.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("s3", Self::S3),
        ("gs", Self::Gcs),
        ("az", Self::Azure),
        ("oci", Self::Oci),
        ("hf", Self::Hub),
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
            Self::Hub => {
                "a token comes from HF_TOKEN or the file that hf auth login writes (HF_TOKEN_PATH, HF_HOME); a hub refuses \
                 access to what does not exist, too"
            }
            Self::Http => "a token is taken from DAXFS_REMOTE_TOKEN, a user from the address",
        }
    }
}

/// The address of an image, or of a tree of files. Its text form has no credentials: neither user nor query.
#[derive(Clone, PartialEq, Eq)]
pub struct Location {
    scheme: Scheme,
    url: Url,
}

/// What an address of a hub names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Repository<'l> {
    /// `models`, `datasets` or `spaces`.
    pub(crate) kind: &'static str,
    pub(crate) owner: &'l str,
    pub(crate) name: &'l str,
    /// A branch, a tag or a commit.
    pub(crate) revision: &'l str,
    /// A file of it, encoded as in addresses; empty for all of them.
    pub(crate) file: &'l str,
}

impl Repository<'_> {
    /// What comes before the owner in addresses of what is no model.
    pub(crate) fn prefix(&self) -> String {
        if self.kind == "models" { String::new() } else { format!("{}/", self.kind) }
    }
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

    /// Reads the address of a tree of files: a folder of a store, which ends with a slash, or a repository of a hub.
    ///
    /// # Errors
    /// [`Error::Location`], also for what names one object.
    pub fn tree(text: &str) -> Result<Self> {
        let location = Self::parse(text)?;
        if location.is_tree() {
            return Ok(location);
        }
        let why =
            "names no tree of files; a folder of a store ends with a slash, a repository is hf://ORG/NAME";
        Err(Error::Location { text: location.to_string(), why: why.into() })
    }

    /// Whether it names a tree of files.
    fn is_tree(&self) -> bool {
        match self.scheme {
            Scheme::S3 | Scheme::Gcs | Scheme::Azure => self.url.path().ends_with('/'),
            Scheme::Hub => self.repository().is_some_and(|repository| repository.file.is_empty()),
            Scheme::Http | Scheme::Oci => false,
        }
    }

    /// The repository of a hub; `None` for what names none.
    pub(crate) fn repository(&self) -> Option<Repository<'_>> {
        let host = self.url.host_str().filter(|host| !host.is_empty())?;
        let path = self.url.path().strip_prefix('/')?;
        let (kind, owner, rest) = match KINDS.iter().find(|kind| **kind == host) {
            Some(kind) => {
                let (owner, rest) = path.split_once('/')?;
                (*kind, owner, rest)
            }
            None => ("models", host, path),
        };
        let (name, file) = match rest.split_once('@') {
            // A revision may have slashes, and those that hubs make themselves do.
            Some((name, behind)) if !name.contains('/') => {
                let slashes = if behind.starts_with("refs/") { 2 } else { 0 };
                let end = behind.match_indices('/').nth(slashes).map_or(behind.len(), |(at, _)| at);
                let (revision, file) = behind.split_at(end);
                return Self::named(kind, owner, name, revision, file.trim_start_matches('/'));
            }
            _ => rest.split_once('/').unwrap_or((rest, "")),
        };
        Self::named(kind, owner, name, "main", file)
    }

    fn named<'l>(
        kind: &'static str,
        owner: &'l str,
        name: &'l str,
        revision: &'l str,
        file: &'l str,
    ) -> Option<Repository<'l>> {
        let is_name = |name: &str| !name.is_empty() && name != "." && name != "..";
        (is_name(owner) && is_name(name) && is_name(revision)).then_some(Repository {
            kind,
            owner,
            name,
            revision,
            file,
        })
    }

    /// The address of the same repository at a commit.
    pub(crate) fn at_revision(&self, revision: &str) -> Result<Self> {
        let Some(found) = self.repository() else { return Ok(self.clone()) };
        Self::parse(&format!("hf://{}{}/{}@{revision}", found.prefix(), found.owner, found.name))
    }

    /// The address of a file of a tree, by its path there.
    pub(crate) fn child(&self, path: &str) -> Self {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/'));
        }
        Self { scheme: self.scheme, url }
    }

    /// Bucket and key of a store.
    pub(crate) fn key(&self) -> &str {
        self.url.path().trim_start_matches('/')
    }
}

impl Location {
    /// Reads the address of an image or of a tree.
    fn parse(text: &str) -> Result<Self> {
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
                    Scheme::Hub => "owner",
                    _ => "bucket",
                }
            )));
        }
        if *scheme == Scheme::Hub && location.repository().is_none() {
            return Err(wrong("names no repository; one is hf://ORG/NAME[@REVISION]".into()));
        }
        let is_object = !location.key().is_empty() && !location.key().ends_with('/');
        if !is_object && !location.is_tree() {
            let named = match scheme {
                Scheme::Oci => "REPOSITORY:TAG",
                Scheme::Hub => "NAME.daxfs, and a repository has no / at its end",
                _ => "NAME.daxfs",
            };
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

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let location = Self::parse(text)?;
        if location.is_tree() {
            let why = format!(
                "names a tree of files and no image; daxfs-pack {location} -o IMAGE packs it, and daxfs load NAME \
                 {location} packs it into the holder"
            );
            return Err(Error::Location { text: location.to_string(), why });
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
    fn trees() {
        let tree = |text: &str| Location::tree(text).unwrap();
        let commit = tree("hf://org/name").at_revision("abc").unwrap();
        assert_eq!(commit.to_string(), "hf://org/name@abc");
        assert_eq!(commit.child("a b/c.json").to_string(), "hf://org/name@abc/a%20b/c.json");
        assert_eq!(tree("s3://models/llama/").child("a/b").key(), "llama/a/b");
        assert_eq!(tree("s3://models/").child("a").key(), "a");
        for text in ["s3://models/llama", "https://host/folder/x", "hf://org/name/a.daxfs", "oci://host/a:b"]
        {
            let error = Location::tree(text).unwrap_err().to_string();
            assert!(error.contains("names no tree of files"), "{error}");
        }
    }

    #[test]
    fn repositories() {
        for (text, kind, name, revision, file) in [
            ("hf://Org/Name", "models", "Name", "main", ""),
            ("hf://Org/Name@v1.0", "models", "Name", "v1.0", ""),
            ("hf://Org/Name@v1/a@b/c.json", "models", "Name", "v1", "a@b/c.json"),
            ("hf://Org/Name@refs/pr/7", "models", "Name", "refs/pr/7", ""),
            ("hf://Org/Name@refs/pr/7/a", "models", "Name", "refs/pr/7", "a"),
            ("hf://Org/Name/a@b", "models", "Name", "main", "a@b"),
            ("hf://datasets/Org/Name@x/a/b", "datasets", "Name", "x", "a/b"),
        ] {
            let location = Location::parse(text).unwrap();
            let found = location.repository().unwrap();
            let owner = "Org";
            assert_eq!(found, Repository { kind, owner, name, revision, file }, "{text}");
        }
    }

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
            ("s3://models/", "names a tree of files and no image; daxfs-pack s3://models/ -o IMAGE packs it"),
            ("hf://org/name", "names a tree of files"),
            ("hf://org", "names no repository"),
            ("hf://datasets/org", "names no repository"),
            ("hf://org/@main", "names no repository"),
            ("hf://user@org/name/a", "takes neither a user nor a query"),
            ("hf://org/name/folder/", "names no object"),
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
