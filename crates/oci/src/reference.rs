//! How inputs are named: `oci:DIR[:TAG]`, `oci://REGISTRY/REPOSITORY[:TAG]`, `docker-archive:FILE[:NAME]`, `tar:FILE`.

use crate::digest::Digest;
use crate::error::{Error, Result};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Which image of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The one that has this name.
    Tag(String),
    /// The one whose manifest, or index of platforms, has this digest.
    Digest(Digest),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::Tag(tag) => write!(f, "{tag:?}"),
            Wanted::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A container image, or an archive, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An OCI image layout: a directory with `oci-layout`, `index.json` and blobs.
    Layout {
        /// The directory.
        path: PathBuf,
        /// Which of its images; `None`: the only one.
        wanted: Option<Wanted>,
    },
    /// An image in a registry, `oci://REGISTRY/REPOSITORY[:TAG|@DIGEST]`: this crate has no network, and who uses it fetches
    /// a layout first.
    Registry {
        /// The whole address.
        address: String,
    },
    /// What `docker save` and `podman save` write. `-` is standard input.
    DockerArchive {
        /// The file, which may be compressed.
        path: PathBuf,
        /// Which of its images; `None`: the only one.
        wanted: Option<Wanted>,
    },
    /// A tar archive. `-` is standard input.
    Tar {
        /// The file, which may be compressed.
        path: PathBuf,
    },
}

impl Source {
    /// The prefixes that names begin with.
    pub const PREFIXES: [&str; 3] = ["oci:", "docker-archive:", "tar:"];

    /// Reads a name. `None`: it begins with none of [`Source::PREFIXES`], and is the path of something else.
    ///
    /// Where a colon stands in what follows, the part in front of it is the path if there is something of that path;
    /// `@sha256:...` in place of a tag chooses by digest.
    ///
    /// # Errors
    /// [`Error::Name`] for a name without a path or with an empty tag.
    pub fn parse(name: impl AsRef<OsStr>) -> Result<Option<Source>> {
        let name = name.as_ref();
        let wrong = |why: &str| Error::Name { text: name.display().to_string(), why: why.to_owned() };
        let rest = |prefix: &str| name.as_bytes().strip_prefix(prefix.as_bytes()).map(OsStr::from_bytes);
        let source = if let Some(rest) = rest("oci:") {
            if rest.as_bytes().starts_with(b"//") {
                let address = name.to_str().ok_or_else(|| wrong("an address is UTF-8"))?.to_owned();
                return Ok(Some(Source::Registry { address }));
            }
            let (path, wanted) = split(rest).map_err(wrong)?;
            Source::Layout { path, wanted }
        } else if let Some(rest) = rest("docker-archive:") {
            let (path, wanted) = split(rest).map_err(wrong)?;
            Source::DockerArchive { path, wanted }
        } else if let Some(rest) = rest("tar:") {
            Source::Tar { path: PathBuf::from(rest) }
        } else {
            return Ok(None);
        };
        if source.path().as_os_str().is_empty() {
            return Err(wrong(
                "no path follows; names are oci:DIR[:TAG], docker-archive:FILE[:NAME] and tar:FILE",
            ));
        }
        Ok(Some(source))
    }

    /// The directory or file; of a registry the address.
    pub fn path(&self) -> &Path {
        match self {
            Source::Registry { address } => Path::new(address),
            Source::Layout { path, .. } | Source::DockerArchive { path, .. } | Source::Tar { path } => path,
        }
    }

    /// What an image of it may be called: the last part of the path, without the ends of archives, tags and digests.
    pub fn base_name(&self) -> Option<OsString> {
        let name = self.path().file_name().filter(|name| *name != "-")?.as_bytes();
        if matches!(self, Source::Registry { .. }) {
            let end = name.iter().position(|byte| b":@".contains(byte)).unwrap_or(name.len());
            return name
                .get(..end)
                .filter(|name| !name.is_empty())
                .map(|name| OsStr::from_bytes(name).to_owned());
        }
        let ends = [".gz", ".zst", ".tar", ".tgz"];
        let bare = ends.iter().fold(name, |name, end| match name.strip_suffix(end.as_bytes()) {
            Some(bare) if !bare.is_empty() && !matches!(self, Source::Layout { .. }) => bare,
            _ => name,
        });
        Some(OsStr::from_bytes(bare).to_owned())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, wanted) = match self {
            Source::Registry { address } => return f.write_str(address),
            Source::Layout { wanted, .. } => ("oci", wanted.as_ref()),
            Source::DockerArchive { wanted, .. } => ("docker-archive", wanted.as_ref()),
            Source::Tar { .. } => ("tar", None),
        };
        write!(f, "{prefix}:{}", self.path().display())?;
        match wanted {
            Some(Wanted::Tag(tag)) => write!(f, ":{tag}"),
            Some(Wanted::Digest(digest)) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// Path and tag or digest.
fn split(text: &OsStr) -> std::result::Result<(PathBuf, Option<Wanted>), &'static str> {
    let bytes = text.as_bytes();
    if let Some(at) = bytes.windows(8).rposition(|part| part == b"@sha256:" || part == b"@sha512:")
        && let (path, [b'@', digest @ ..]) = bytes.split_at(at)
    {
        let digest = std::str::from_utf8(digest).ok().and_then(Digest::parse);
        let digest = digest.ok_or("a digest is sha256: and 64 digits, or sha512: and 128, in hexadecimal")?;
        return Ok((PathBuf::from(OsStr::from_bytes(path)), Some(Wanted::Digest(digest))));
    }
    if Path::new(text).exists() {
        return Ok((PathBuf::from(text), None));
    }
    let colons = || bytes.iter().enumerate().filter(|(_, byte)| **byte == b':').map(|(at, _)| at);
    let parts = |at: usize| {
        let (path, rest) = bytes.split_at(at);
        (OsStr::from_bytes(path), rest.get(1..).unwrap_or_default())
    };
    let there = colons().find(|&at| Path::new(parts(at).0).exists());
    let Some(at) = there.or_else(|| colons().next()) else { return Ok((PathBuf::from(text), None)) };
    let (path, tag) = parts(at);
    let tag = std::str::from_utf8(tag).ok().filter(|tag| !tag.is_empty());
    let tag = tag.ok_or("behind the colon there must be a tag, in UTF-8")?;
    Ok((PathBuf::from(path), Some(Wanted::Tag(tag.to_owned()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str) -> Source {
        Source::parse(name).unwrap().unwrap()
    }

    #[test]
    fn names() {
        let tag = |tag: &str| Some(Wanted::Tag(tag.to_owned()));
        let layout = |path: &str, wanted| Source::Layout { path: path.into(), wanted };
        assert_eq!(parse("oci:no/such"), layout("no/such", None));
        assert_eq!(parse("oci:no/such:1.0"), layout("no/such", tag("1.0")));
        assert_eq!(parse("oci:no/such:docker.io/a/b:1.0"), layout("no/such", tag("docker.io/a/b:1.0")));
        let digest = format!("sha256:{}", "ab".repeat(32));
        let by_digest = parse(&format!("oci:a:b@{digest}"));
        assert_eq!(by_digest, layout("a:b", Some(Wanted::Digest(Digest::parse(&digest).unwrap()))));
        assert_eq!(by_digest.to_string(), format!("oci:a:b@{digest}"));
        let address = "oci://host:5000/library/debian:12".to_owned();
        assert_eq!(parse(&address).base_name().unwrap(), "debian");
        assert_eq!(parse(&address).to_string(), address);
        assert_eq!(parse(&address), Source::Registry { address });
        assert_eq!(parse("tar:-"), Source::Tar { path: "-".into() });
        assert_eq!(parse("tar:a:b"), Source::Tar { path: "a:b".into() });
        let archive = Source::DockerArchive { path: "i.tar".into(), wanted: tag("a/b:c") };
        assert_eq!(parse("docker-archive:i.tar:a/b:c"), archive);
        for path in ["weights", "./oci:dir", "/oci:dir", "oci", "ociv:x", ""] {
            assert_eq!(Source::parse(path).unwrap(), None, "{path}");
        }
        for name in ["oci:", "oci::tag", "oci:dir:", "tar:", "oci:d@sha256:00", "docker-archive:"] {
            assert!(Source::parse(name).is_err(), "{name}");
        }
    }

    #[test]
    fn what_is_there_decides_where_the_path_ends() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a:b");
        std::fs::create_dir(&odd).unwrap();
        let name = |end: &str| format!("oci:{}{end}", odd.display());
        assert_eq!(parse(&name("")), Source::Layout { path: odd.clone(), wanted: None });
        assert_eq!(
            parse(&name(":c:d")),
            Source::Layout { path: odd, wanted: Some(Wanted::Tag("c:d".into())) }
        );
    }

    #[test]
    fn images_are_named_after_their_source() {
        let name = |text: &str| parse(text).base_name().map(|name| name.into_string().unwrap());
        assert_eq!(name("oci:a/debian.gz:12").as_deref(), Some("debian.gz"));
        assert_eq!(name("tar:a/root.tar.zst").as_deref(), Some("root"));
        assert_eq!(name("docker-archive:b.tgz").as_deref(), Some("b"));
        assert_eq!((name("tar:.tar").as_deref(), name("tar:-")), (Some(".tar"), None));
    }
}
