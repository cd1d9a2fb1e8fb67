//! Files against the digests of OpenSSF model signing, where a tree has a `model.sig`.

use super::bundle::{Algorithm, Signed};
use super::{Findings, Kind};
use crate::paths::each_in_order;
use crate::progress::Progress;
use crate::text::hex;
use blake2::Blake2b512;
use daxfs::signature::{PublicKeys, Scheme};
use daxfs::{Entry, Error, FileType, Image, Original, format};
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};

/// The name that the tool gives its signatures.
const NAME: &[u8] = b"model.sig";

/// What an entry costs that is listed and put in order.
const ORDERED: usize = 64;

/// Longest signature that is read: about 100,000 files.
const LONGEST: u64 = 16 << 20;

/// Most signatures of an image, and most paths that all of them leave out: each entry is compared with all.
const MOST: usize = 64;
const MOST_IGNORED: usize = 256;

/// Bytes of tables for each byte of a signature.
const COST: u64 = 8;

/// What was found of a signature.
#[derive(Debug, Serialize)]
pub struct Facts {
    /// Where it lies.
    path: String,
    /// Files that it names.
    files: usize,
    /// What is known of who made it.
    pub signature: Trust,
    /// The path in bytes.
    #[serde(skip)]
    bytes: Vec<u8>,
}

/// What is known of who made a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// One of the keys.
    Valid,
    /// None of the keys.
    Invalid,
    /// There is no key that could tell, or the content is signed by one, whoever else has signed its files.
    NotChecked,
}

impl Facts {
    /// For the summary.
    pub fn text(&self) -> String {
        let files = crate::text::count(self.files as u64, "file", "files");
        let trust = match self.signature {
            Trust::Valid => "its signature is valid",
            Trust::Invalid => "its signature is not valid",
            Trust::NotChecked => {
                "digests alone: its signature was not checked; --key with the key on P-256 that made it does that"
            }
        };
        format!("{files} of {} ({trust})", self.path)
    }

    /// Whether one of the keys has signed all files of the image.
    pub fn is_valid_for_all(&self) -> bool {
        self.signature == Trust::Valid && self.path == "/model.sig"
    }
}

/// A signature with the paths that it covers.
struct Covered {
    /// Of the signature itself.
    path: Vec<u8>,
    /// Its directory, with a slash at the end.
    root: Vec<u8>,
    names: BTreeSet<Vec<u8>>,
    ignored: Vec<Vec<u8>>,
}

/// A file that is hashed, and those that want something of the hash.
struct Job {
    original: Original,
    algorithm: Algorithm,
    wanted: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Compares the files of every tree in the image that has a signature, and the signatures with the keys.
pub fn compare(image: &Image, keys: Option<&PublicKeys>, quiet: bool, findings: &mut Findings) {
    let mut found = Vec::new();
    each_in_order(image, |path, entry| {
        if entry.name() == NAME && found.len() <= MOST {
            found.push(path.to_vec());
        }
    });
    if found.len() > MOST {
        findings.fail(anyhow::anyhow!("more than {MOST} files model.sig; they are not compared"));
        return;
    }
    let (mut covered, mut jobs, mut ignored) = (Vec::new(), Jobs::default(), 0_usize);
    for path in found {
        let signed = match read(image, &path) {
            Ok(Ok(signed)) => signed,
            Ok(Err(why)) => {
                findings.differ(Kind::Manifest, Some(&path), why);
                continue;
            }
            Err(error) => {
                findings.judge(Kind::Manifest, &path, error);
                continue;
            }
        };
        ignored = ignored.saturating_add(signed.ignored.len());
        if ignored > MOST_IGNORED {
            findings.differ(
                Kind::Manifest,
                Some(&path),
                format!("leaves out more than {MOST_IGNORED} paths"),
            );
            continue;
        }
        let signature = match keys.filter(|keys| keys.has(Scheme::Cosign)) {
            Some(keys) if signed.is_by(keys) => Trust::Valid,
            Some(_) => Trust::Invalid,
            None => Trust::NotChecked,
        };
        let (name, files) = (crate::text::escape(&path), signed.resources.len());
        let facts = Facts { path: name, files, signature, bytes: path.clone() };
        findings.facts.manifests.push(facts);
        covered.push(jobs.add(image, path, signed, findings));
    }
    jobs.run(image, quiet, findings);
    let mut check = |path: &[u8], entry: &Entry| {
        for covered in covered.iter().filter(|covered| !covered.has(path)) {
            match covered.objection(image, path, entry) {
                Ok(None) => (),
                Ok(Some(text)) => findings.differ(Kind::Manifest, Some(path), text),
                Err(error) => findings.judge(Kind::Manifest, path, error),
            }
        }
    };
    each_in_order(image, &mut check);
    // An index that does not count, as that of an image which was changed after packing, is compared with nothing else.
    if !matches!(image.index(), Ok(Some(_)))
        && let Ok(index) = image.entry_no_follow(format::index::PATH)
    {
        check(format::index::PATH.as_bytes(), &index);
    }
}

/// Says which signatures are by none of the keys, once it is known whether one of them has signed the content: then a
/// signature by somebody else is as good as none.
pub fn refuse(findings: &mut Findings, content_is_signed: bool) {
    let mut refused = Vec::new();
    for facts in &mut findings.facts.manifests {
        match facts.signature {
            Trust::Invalid if content_is_signed => facts.signature = Trust::NotChecked,
            Trust::Invalid => refused.push(facts.bytes.clone()),
            Trust::Valid | Trust::NotChecked => (),
        }
    }
    for path in refused {
        let text = "its signature was made by no key that is accepted, or was changed";
        findings.differ(Kind::Manifest, Some(&path), text);
    }
}

/// Reads a signature: what it says, or what is wrong with it.
fn read(image: &Image, path: &[u8]) -> daxfs::Result<Result<Signed, String>> {
    let file = image.file(path)?;
    if file.len() > LONGEST {
        return Ok(Err(format!(
            "has more than {LONGEST} bytes, too many for a signature of OpenSSF model signing"
        )));
    }
    let charge = |bytes: u64| image.charge("files of a model.sig", bytes);
    charge(file.len().saturating_mul(COST))?;
    let signed = match Signed::parse(&file.to_vec()?) {
        Ok(signed) => signed,
        Err(why) => return Ok(Err(why)),
    };
    // Each name becomes a path, which is kept with what is covered and with what is hashed.
    let names = (signed.resources.len() as u64).saturating_add(signed.ignored.len() as u64);
    charge(names.saturating_mul(root(path).len() as u64).saturating_mul(2))?;
    Ok(Ok(signed))
}

/// Directory of a signature, with a slash at the end.
fn root(path: &[u8]) -> &[u8] {
    path.strip_suffix(NAME).unwrap_or_default()
}

impl Covered {
    /// Whether the signature has this path, leaves it out, or is for another tree.
    fn has(&self, path: &[u8]) -> bool {
        let below = |of: &[u8]| path.strip_prefix(of).is_some_and(|rest| rest.starts_with(b"/"));
        !path.starts_with(&self.root)
            || path == self.path
            || self.names.contains(path)
            || self.ignored.iter().any(|ignored| path == ignored || below(ignored))
    }

    /// What is to be said of an entry that it does not have. Files may be named through a link to a directory; then all
    /// that is reached through it must be, for what the link leads to may be left out, or lie outside of the tree.
    fn objection(&self, image: &Image, path: &[u8], entry: &Entry) -> daxfs::Result<Option<String>> {
        let signature = crate::text::escape(&self.path);
        if entry.file_type() != FileType::Symlink {
            return Ok(Some(format!("a file that {signature} does not cover")));
        }
        let inside = [path, b"/"].concat();
        if !self.names.range(inside.clone()..).next().is_some_and(|next| next.starts_with(&inside)) {
            return Ok(Some(format!("a link that {signature} does not cover")));
        }
        let missed = self.missed_through(image, path, &entry.followed()?)?;
        Ok(missed.map(|missed| {
            let missed = crate::text::escape(&missed);
            format!("a link that leads to {missed}, which {signature} does not cover")
        }))
    }

    /// The first path through a link to this directory that it does not have. No other link to a directory is followed.
    fn missed_through(&self, image: &Image, link: &[u8], to: &Entry) -> daxfs::Result<Option<Vec<u8>>> {
        enum Stop {
            Missed(Vec<u8>),
            Failed(Error),
        }
        // Many links may lead to one directory, and what is in it is listed and put in order for each.
        let charge = |bytes: usize, directory: &Entry| {
            let children = directory.children().len().saturating_mul(ORDERED);
            image.charge("paths through links", bytes.saturating_add(children) as u64)
        };
        charge(0, to)?;
        let walked = to.each_below(|below, entry| {
            let path = [link, below].concat();
            charge(path.len(), entry).map_err(Stop::Failed)?;
            match entry.file_type() == FileType::Directory || self.has(&path) {
                true => Ok(()),
                false => Err(Stop::Missed(path)),
            }
        });
        match walked {
            Ok(()) => Ok(None),
            Err(Stop::Missed(path)) => Ok(Some(path)),
            Err(Stop::Failed(error)) => Err(error),
        }
    }
}

/// Where the bytes of a file lie.
#[derive(PartialEq, Eq, Hash)]
enum Place {
    /// Offset and length.
    Extent(u64, u64),
    /// In pieces, or put together from what was moved.
    Inode(u64),
}

#[derive(Default)]
struct Jobs {
    jobs: Vec<Job>,
    /// By where the bytes lie, so that those that files share are hashed once.
    known: HashMap<(Place, Algorithm), usize>,
}

impl Jobs {
    fn add(&mut self, image: &Image, path: Vec<u8>, signed: Signed, findings: &mut Findings) -> Covered {
        let root = root(&path).to_vec();
        let within = |name: &str| {
            // As in a path of Python's: no part of it is a dot.
            let mut path = root.clone();
            let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
            path.extend_from_slice(parts.join("/").as_bytes());
            path
        };
        let ignored = signed.ignored.iter().map(|name| within(name)).collect();
        let mut names = BTreeSet::new();
        for resource in signed.resources {
            let name = within(&resource.name);
            // An error would look for names that are like it.
            if !image.contains(&name) {
                let text = format!("is in {}, and not in the image", crate::text::escape(&path));
                findings.differ(Kind::Manifest, Some(&name), text);
                continue;
            }
            match image.file(&name).and_then(|file| file.original()) {
                Ok(original) => {
                    let file = original.file();
                    let place = match file.extent().filter(|_| !original.differs()) {
                        Some(extent) => Place::Extent(extent.offset, extent.len),
                        None => Place::Inode(file.ino()),
                    };
                    let at = *self.known.entry((place, resource.algorithm)).or_insert_with(|| {
                        let algorithm = resource.algorithm;
                        self.jobs.push(Job { original: original.clone(), algorithm, wanted: Vec::new() });
                        self.jobs.len().saturating_sub(1)
                    });
                    if let Some(job) = self.jobs.get_mut(at) {
                        job.wanted.push((name.clone(), resource.digest));
                    }
                }
                Err(error) => findings.judge(Kind::Manifest, &name, error),
            }
            names.insert(name);
        }
        Covered { path, root, names, ignored }
    }

    fn run(self, image: &Image, quiet: bool, findings: &mut Findings) {
        let total = self.jobs.iter().fold(0_u64, |sum, job| sum.saturating_add(job.original.len()));
        let memory = image.region().len().saturating_add(image.backing().map_or(0, daxfs::Region::len));
        // Twice for each of three functions: files that overlap would be more work than any image is worth.
        if total > memory.saturating_mul(6) {
            findings.fail(Error::FilesOverlap { total, memory });
            return;
        }
        let progress = Progress::new("digests", total, quiet);
        let hashed: Vec<daxfs::Result<Vec<u8>>> =
            self.jobs.par_iter().map(|job| hash(&job.original, job.algorithm, &progress)).collect();
        drop(progress);
        for (job, hashed) in self.jobs.iter().zip(hashed) {
            match hashed {
                Ok(found) => {
                    for (path, wanted) in job.wanted.iter().filter(|(_, wanted)| *wanted != found) {
                        let (name, found, wanted) = (job.algorithm.name(), hex(&found), hex(wanted));
                        let text = format!("{name} is {found}, signed is {wanted}");
                        findings.differ(Kind::Manifest, Some(path), text);
                    }
                }
                Err(error) => findings.judge(Kind::Manifest, &job.original.file().path(), error),
            }
        }
    }
}

fn hash(original: &Original, algorithm: Algorithm, progress: &Progress) -> daxfs::Result<Vec<u8>> {
    let read = |each: &mut dyn FnMut(&[u8])| {
        original.for_each_chunk::<Error>(|bytes| {
            each(bytes);
            progress.add(bytes.len() as u64);
            Ok(())
        })
    };
    Ok(match algorithm {
        Algorithm::Sha256 => {
            let mut hasher = Sha256::new();
            read(&mut |bytes| hasher.update(bytes))?;
            hasher.finalize().to_vec()
        }
        Algorithm::Blake2b => {
            let mut hasher = Blake2b512::new();
            read(&mut |bytes| hasher.update(bytes))?;
            hasher.finalize().to_vec()
        }
        Algorithm::Blake3 => {
            let mut hasher = blake3::Hasher::new();
            read(&mut |bytes| {
                hasher.update(bytes);
            })?;
            hasher.finalize().as_bytes().to_vec()
        }
    })
}
