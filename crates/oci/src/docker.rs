//! Archives of images as `docker save` and `podman save` write them: a tar archive with `manifest.json`, and the
//! configurations and layers that it names.

use crate::archive::{Archive, SPOOL, sha256, spooled};
use crate::decode::{Compression, Unpacked};
use crate::digest::Digest;
use crate::document::{self, Config, Saved};
use crate::error::{Error, Result, shown};
use crate::image::{FILE, Image};
use crate::input::{Opened, Shared};
use crate::layout::list;
use crate::platform::Platform;
use crate::reference::Wanted;
use crate::spool::Spool;
use crate::tar::{Kind, Reader};
use std::collections::HashMap;
use std::sync::Arc;

/// Links that are followed from one member to another.
const LINKS: usize = 8;

/// What a name in the archive stands for.
enum Member {
    /// Bytes of it: where they begin, and how many.
    Bytes(u64, u64),
    /// Another name.
    Link(Vec<u8>),
}

/// An archive whose members are known.
pub(crate) struct DockerArchive {
    opened: Opened,
    source: u32,
    members: HashMap<Vec<u8>, Member>,
}

impl DockerArchive {
    /// Lists an archive. What is compressed or comes through a pipe is copied into the spool first.
    pub(crate) fn open(opened: Opened, spool: &Arc<Spool>, shared: Shared<'_>) -> Result<DockerArchive> {
        let place = opened.path.display().to_string();
        let is_plain = match opened.len {
            Some(_) => {
                Compression::of(&opened.start::<{ Compression::START }>(0)?, &place)? == Compression::None
            }
            None => false,
        };
        let (opened, source) = if is_plain {
            (opened, FILE)
        } else {
            let (_, len) = spooled(&opened, spool, shared)?;
            let Some(copy) = spool.opened() else {
                return Err(Error::Layout { path: opened.path, why: "is empty".to_owned() });
            };
            (Opened { path: opened.path, len: Some(len), ..copy }, SPOOL)
        };
        let raw = opened.whole(shared);
        let unpacked = Unpacked::new(raw, Compression::None, (None, None), &place, shared);
        let mut reader = Reader::new(unpacked, shared);
        let mut members = HashMap::new();
        while let Some(member) = reader.next()? {
            let found = match member.kind {
                Kind::File if member.map.is_none() => {
                    let Some(offset) = reader.source().in_file() else { continue };
                    Member::Bytes(offset, member.stored)
                }
                Kind::Symlink => Member::Link(beside(&member.name, &member.link)),
                Kind::HardLink => Member::Link(member.link),
                _ => continue,
            };
            members.insert(clean(&member.name), found);
        }
        Ok(DockerArchive { opened, source, members })
    }

    /// Finds an image and the places of its layers.
    pub(crate) fn image(&self, wanted: Option<&Wanted>, platform: Option<&Platform>) -> Result<Image> {
        let layout = |why: &str| Error::Layout { path: self.opened.path.clone(), why: why.to_owned() };
        let Some(list) = self.document("manifest.json")? else {
            return Err(layout("has no manifest.json: it is not what docker save or podman save write"));
        };
        let images: Vec<Saved> = document::parse(&list, "manifest.json")?;
        let mut found = Vec::new();
        for saved in self.choose(images, wanted)? {
            let Some(bytes) = self.document(&saved.config)? else {
                return Err(layout(&format!(
                    "has no {}, which manifest.json names",
                    shown(saved.config.as_bytes())
                )));
            };
            self.check_config(&saved.config, &bytes)?;
            let config: Config = document::parse(&bytes, &saved.config)?;
            if platform.is_none_or(|platform| config.platform().serves(platform)) {
                found.push((saved, config, bytes));
            }
        }
        let place = || self.opened.path.display().to_string();
        let (saved, config, bytes) = match (found.pop(), found.is_empty()) {
            (Some(one), true) => one,
            (None, _) => {
                let platform = platform.map(ToString::to_string).unwrap_or_default();
                let why = format!("no image is for {platform}");
                return Err(Error::Choice { place: place(), why, there: "others".to_owned() });
            }
            (Some(last), false) => {
                found.push(last);
                let why = "several images fit (docker-archive:FILE:NAME)".to_owned();
                let there = self::list(found.iter().map(|(saved, ..)| name_of(saved)));
                return Err(Error::Choice { place: place(), why, there });
            }
        };
        let diff_ids = config.diff_ids(saved.layers.len(), &saved.config)?;
        let count = saved.layers.len();
        let mut archives = Vec::with_capacity(count);
        for ((name, diff_id), number) in saved.layers.iter().zip(diff_ids).zip(1..) {
            let part = self.find(name.as_bytes()).ok_or_else(|| {
                layout(&format!("has no {}, which manifest.json names", shown(name.as_bytes())))
            })?;
            let place = format!("layer {number} of {count} ({})", shown(name.as_bytes()));
            let (opened, source) = (self.opened.clone(), self.source);
            archives.push(Archive {
                opened,
                part: Some(part),
                source,
                place,
                stored: None,
                unpacked: Some(diff_id),
            });
        }
        Ok(Image { archives, platform: config.platform(), config: bytes, manifest: None })
    }

    /// The images that are wanted.
    fn choose(&self, images: Vec<Saved>, wanted: Option<&Wanted>) -> Result<Vec<Saved>> {
        let there = || list(images.iter().map(name_of));
        let fits = |saved: &Saved| match wanted {
            None => true,
            Some(Wanted::Tag(tag)) => {
                let with_latest = format!("{tag}:latest");
                let mut tags = saved.repo_tags.iter().flatten();
                // `docker.io/library/` is what Docker leaves out.
                tags.any(|found| {
                    let short = found.strip_prefix("docker.io/library/").unwrap_or(found);
                    [found, short].iter().any(|found| found == tag || *found == with_latest)
                })
            }
            Some(Wanted::Digest(digest)) => saved.config.contains(digest.hex()),
        };
        let place = self.opened.path.display().to_string();
        match wanted {
            Some(wanted) if !images.iter().any(fits) => {
                Err(Error::NoImage { place, wanted: wanted.to_string(), there: there() })
            }
            _ => Ok(images.into_iter().filter(fits).collect()),
        }
    }

    /// A configuration is named by its digest.
    fn check_config(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let stem = name.rsplit('/').next().unwrap_or_default();
        let stem = stem.strip_suffix(".json").unwrap_or(stem);
        match Digest::parse(&format!("sha256:{stem}")) {
            Some(digest) => {
                let found = sha256(bytes);
                if found == digest {
                    return Ok(());
                }
                let place = shown(name.as_bytes());
                Err(Error::Digest { place, found: found.to_string(), expected: digest.to_string() })
            }
            None => Ok(()),
        }
    }

    /// A small member; `None`: there is none of that name.
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some((offset, len)) = self.find(name.as_bytes()) else { return Ok(None) };
        let place = format!("{}: {}", self.opened.path.display(), shown(name.as_bytes()));
        document::read(&self.opened, offset, len, &place).map(Some)
    }

    /// Where a member's bytes lie.
    fn find(&self, name: &[u8]) -> Option<(u64, u64)> {
        let mut name = clean(name);
        for _ in 0..LINKS {
            match self.members.get(&name)? {
                Member::Bytes(offset, len) => return Some((*offset, *len)),
                Member::Link(target) => name = clean(target),
            }
        }
        None
    }
}

fn name_of(saved: &Saved) -> String {
    let tag = saved.repo_tags.iter().flatten().next();
    tag.map_or_else(|| "one without a name".to_owned(), |tag| format!("{:?}", shown(tag.as_bytes())))
}

/// What a symbolic link leads to, from the root of the archive.
fn beside(name: &[u8], target: &[u8]) -> Vec<u8> {
    let end = name.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
    [name.get(..end).unwrap_or_default(), b"/", target].concat()
}

/// A name without `.`, `..` and slashes that mean nothing.
fn clean(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}
