//! `daxfs verify`: is the image sound, does it hold what it says, does it hold what the source directory holds?

mod bundle;
mod contents;
mod manifest;
mod published;
mod signed;
mod source;
mod tensors;

use crate::args::{SourceArgs, VerifyArgs};
use crate::json::{self, PathJson};
use crate::output::{Outcome, Output, one_line, report};
use crate::source::{map, name, options};
use crate::text::{count, escape, hex, human};
use anyhow::{Context, bail};
use daxfs::{Image, Superblock, Verify, ViewKind, format};
use serde::Serialize;
use std::io::Write;

/// What `verify` found out, filled by its parts.
#[derive(Debug, Default)]
pub struct Findings {
    differences: Vec<Difference>,
    /// Bytes of their paths and texts.
    bytes: usize,
    /// Differences that are counted only: all paths together can be far longer than the image.
    unlisted: u64,
    errors: Vec<anyhow::Error>,
    facts: Facts,
}

/// Most bytes of differences that are kept.
const MOST_BYTES: usize = 64 << 20;

/// One thing that is not as it should be.
#[derive(Debug)]
struct Difference {
    kind: Kind,
    path: Option<Vec<u8>>,
    text: String,
}

/// Which check found a difference; its name in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A rule of the format.
    Structure,
    /// The index and the inodes.
    Index,
    /// BLAKE3 of a file, or of all contents.
    Hash,
    /// The index and the headers of safetensors files, and files that promise tensors and have none.
    Tensors,
    /// A sharded checkpoint.
    Checkpoint,
    /// The source directory.
    Source,
    /// A SHA-256 that was published.
    Sha256,
    /// The digests of OpenSSF model signing, and their signature.
    Manifest,
    /// The signature of the content.
    Signature,
    /// The EROFS view.
    Erofs,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Structure => "structure",
            Self::Index => "index",
            Self::Hash => "hash",
            Self::Tensors => "tensors",
            Self::Checkpoint => "checkpoint",
            Self::Source => "source",
            Self::Sha256 => "sha256",
            Self::Manifest => "manifest",
            Self::Signature => "signature",
            Self::Erofs => "erofs",
        }
    }
}

/// What was checked, for the summary.
#[derive(Debug, Default, Serialize)]
pub struct Facts {
    /// Entries whose structure was checked.
    pub entries: usize,
    /// True when the image has an index.
    pub indexed: bool,
    /// True when the image has an EROFS view, which is that of its tree.
    pub erofs: bool,
    /// Files that were hashed.
    pub hashed_files: usize,
    /// Their bytes.
    pub hashed_bytes: u64,
    /// Content hash, computed now; the same as the stored one when there is no difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_hash: Option<String>,
    /// Tensors of the index that were compared with headers.
    pub tensors: u64,
    /// Checkpoints that were looked at.
    pub checkpoints: usize,
    /// Entries that were compared with the source directory.
    pub compared_entries: usize,
    /// Bytes that were compared with it.
    pub compared_bytes: u64,
    /// Files whose tensors were moved in the image, and whose originals equal the source's.
    pub realigned_files: usize,
    /// Files that were compared with a SHA-256.
    pub sha256_files: usize,
    /// Signatures of OpenSSF model signing in the image, whose digests were compared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<manifest::Facts>,
    /// Which tool's signature of the content is valid, where a key was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// What that signature says beside the content, and signs with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed: Option<String>,
}

impl Findings {
    /// Notes a difference, at a path if it has one.
    pub fn differ(&mut self, kind: Kind, path: Option<&[u8]>, text: impl Into<String>) {
        let text = text.into();
        let bytes = self.bytes.saturating_add(text.len()).saturating_add(path.map_or(0, <[u8]>::len));
        if bytes > MOST_BYTES {
            self.unlisted = self.unlisted.saturating_add(1);
            return;
        }
        self.bytes = bytes;
        self.differences.push(Difference { kind, path: path.map(<[u8]>::to_vec), text });
    }

    /// Notes that something could not be checked.
    pub fn fail(&mut self, error: impl Into<anyhow::Error>) {
        let error = error.into();
        let bytes = self.bytes.saturating_add(error.to_string().len());
        if bytes <= MOST_BYTES || self.errors.is_empty() {
            self.bytes = bytes;
            self.errors.push(error);
        }
    }

    /// Notes an error of the reader: files whose contents are elsewhere cannot be checked, all else is a difference.
    pub fn judge(&mut self, kind: Kind, path: &[u8], error: daxfs::Error) {
        match error {
            daxfs::Error::NoContents { .. }
            | daxfs::Error::Memory(_)
            | daxfs::Error::MetadataLimit { .. } => self.fail(error),
            error => {
                let text = error.to_string();
                // Many messages begin with the path, which is shown anyway.
                let text = text.strip_prefix(&format!("{}: ", escape(path))).unwrap_or(&text).to_owned();
                self.differ(kind, Some(path), text);
            }
        }
    }

    /// As [`Findings::judge`], of the EROFS view, whose messages say where.
    fn judge_view(&mut self, error: daxfs::Error) {
        match error {
            daxfs::Error::Memory(_) | daxfs::Error::MetadataLimit { .. } => self.fail(error),
            error => {
                let text = error.to_string();
                let place = format!("{}: ", format::erofs::PATH);
                let text = text.strip_prefix(&place).unwrap_or(&text).to_owned();
                self.differ(Kind::Erofs, Some(format::erofs::PATH.as_bytes()), text);
            }
        }
    }

    fn is_clean(&self) -> bool {
        self.differences.is_empty() && self.errors.is_empty() && self.unlisted == 0
    }

    fn outcome(&self) -> Outcome {
        match (self.errors.is_empty(), self.differences.is_empty()) {
            (false, _) => Outcome::Failed,
            (true, false) => Outcome::Differences,
            (true, true) => Outcome::Clean,
        }
    }
}

impl Difference {
    fn line(&self) -> String {
        let text = crate::text::escape_message(&self.text);
        match &self.path {
            Some(path) => format!("{}: {}: {text}", self.kind.name(), escape(path)),
            None => format!("{}: {text}", self.kind.name()),
        }
    }
}

/// Runs every check that the image and the command line allow.
pub fn run(source: &SourceArgs, args: &VerifyArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    if let (None, Some(flag)) = (&args.dir, args.selection.given()) {
        bail!("{flag} is for comparing with a directory; name the one that the image was packed from");
    }
    let mut findings = Findings::default();
    let keys = signed::keys(args)?;
    let image = open(source, args, &mut findings)?;
    findings.facts.entries = image.len();
    let index = match image.index() {
        Ok(index) => index,
        Err(error) => {
            findings.differ(Kind::Index, None, error.to_string());
            None
        }
    };
    for other in daxfs::beside_index(&image) {
        let text = "/.daxfs must hold the index, the EROFS view, a configuration and nothing else: no hash and no signature covers this";
        findings.differ(Kind::Index, Some(&other.path()), text);
    }
    match image.check_erofs() {
        Ok(found) => findings.facts.erofs = found,
        Err(error) => findings.judge_view(error),
    }
    let mut sound = true;
    if let Some(index) = index {
        findings.facts.indexed = true;
        sound = contents::check(&image, index, args.quiet, &mut findings);
    }
    tensors::check(&image, index.filter(|_| sound), &mut findings);
    // What names do not lead to, such as the record of a list that only links call a list. What was found above is not
    // said again.
    if let Some(index) = index.filter(|_| sound && findings.is_clean())
        && let Err(error) = index.verify(&image)
    {
        findings.judge(Kind::Index, daxfs::format::index::PATH.as_bytes(), error);
    }
    if let Some(dir) = &args.dir {
        source::compare(&image, dir, args, &mut findings)?;
    }
    published::compare(&image, args, &mut findings)?;
    manifest::compare(&image, keys.as_ref(), args.quiet, &mut findings);
    if let Some(keys) = &keys {
        signed::check(&image, keys, args, &mut findings)?;
    }
    let outcome = findings.outcome();
    if args.json {
        json::write(out, &Report::of(&findings))?;
    } else {
        for difference in &findings.differences {
            writeln!(out, "{}", difference.line())?;
        }
        if findings.unlisted > 0 {
            writeln!(out, "and {}", count(findings.unlisted, "more difference", "more differences"))?;
        }
        if !args.quiet {
            writeln!(out, "{}: {}", name(&args.image), summary(&image, &findings, args))?;
        }
    }
    out.finish()?;
    findings.errors.iter().for_each(report);
    Ok(outcome)
}

/// Opens strictly, by the rules of kernels with the pages that the image is for. When that breaks a rule which lenient
/// opening forgives, the rule is a difference and the other checks go on.
fn open(source: &SourceArgs, args: &VerifyArgs, findings: &mut Findings) -> anyhow::Result<Image> {
    let region = map(&args.image)?;
    // Every file is hashed below, and what is wrong with it is a difference.
    let mut options = options(source)?.verify(Verify::Stored);
    if let Ok(superblock) = Superblock::read(region.view()) {
        options = options.page_size(superblock.block_size.into());
    }
    match options.clone().strict(true).open_region(region.clone()) {
        Ok(image) => Ok(image),
        Err(strict) => match options.strict(false).open_region(region) {
            Ok(image) => {
                findings.differ(Kind::Structure, None, strict.to_string());
                Ok(image)
            }
            Err(error) => Err(error).with_context(|| name(&args.image)),
        },
    }
}

/// What is to be said of an image that another machine's kernel mounts, and not this one's.
fn elsewhere(image: &Image) -> String {
    match u64::from(image.superblock().block_size) {
        size if size == dmabuf::page_size() => String::new(),
        size => {
            format!("; kernels with pages of {size} bytes mount it, not this one ({})", dmabuf::page_size())
        }
    }
}

fn summary(image: &Image, findings: &Findings, args: &VerifyArgs) -> String {
    let facts = &findings.facts;
    let mut parts = vec![format!("structure of {}", count(facts.entries as u64, "entry", "entries"))];
    if facts.hashed_files > 0 {
        let files = count(facts.hashed_files as u64, "file", "files");
        parts.push(format!("hashes of {files} ({})", human(facts.hashed_bytes)));
    }
    if facts.erofs {
        parts.push("the EROFS view".to_owned());
    }
    if facts.tensors > 0 {
        parts.push(count(facts.tensors, "tensor", "tensors"));
    }
    if facts.checkpoints > 0 {
        parts.push(count(facts.checkpoints as u64, "checkpoint", "checkpoints"));
    }
    if args.dir.is_some() {
        let entries = count(facts.compared_entries as u64, "entry", "entries");
        parts.push(format!("{entries} against the source ({})", human(facts.compared_bytes)));
    }
    if facts.realigned_files > 0 {
        parts.push(count(facts.realigned_files as u64, "realigned file", "realigned files"));
    }
    if facts.sha256_files > 0 {
        parts.push(format!("SHA-256 of {}", count(facts.sha256_files as u64, "file", "files")));
    }
    parts.extend(facts.manifests.iter().map(manifest::Facts::text));
    if let (Some(scheme), Some(comment)) = (&facts.signed_by, &facts.signed) {
        let comment = crate::text::escape_message(comment);
        parts.push(format!("signature by {scheme} ({comment})"));
    }
    let verdict = match (
        (findings.differences.len() as u64).saturating_add(findings.unlisted),
        findings.errors.len() as u64,
    ) {
        (0, 0) => "ok".to_owned(),
        (differences, 0) => count(differences, "difference", "differences"),
        (differences, errors) => {
            format!(
                "{}, {}",
                count(differences, "difference", "differences"),
                count(errors, "error", "errors")
            )
        }
    };
    let missing = if facts.indexed {
        ""
    } else if image.view_kind() != ViewKind::Base && image.entry(format::index::PATH).is_ok() {
        "; the image was changed after packing, so its index does not count"
    } else {
        "; no index, so no hashes"
    };
    format!("{verdict}; checked {}{missing}{}", parts.join(", "), elsewhere(image))
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    differences: Vec<DifferenceJson<'a>>,
    #[serde(skip_serializing_if = "is_none")]
    unlisted_differences: u64,
    errors: Vec<String>,
    checked: &'a Facts,
}

#[derive(Serialize)]
struct DifferenceJson<'a> {
    kind: Kind,
    #[serde(flatten)]
    path: Option<PathJson>,
    text: &'a str,
}

impl<'a> Report<'a> {
    fn of(findings: &'a Findings) -> Self {
        let difference = |difference: &'a Difference| DifferenceJson {
            kind: difference.kind,
            path: difference.path.as_deref().map(PathJson::new),
            text: &difference.text,
        };
        Self {
            ok: findings.outcome() == Outcome::Clean,
            differences: findings.differences.iter().map(difference).collect(),
            unlisted_differences: findings.unlisted,
            errors: findings.errors.iter().map(one_line).collect(),
            checked: &findings.facts,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// Text of a hash in the summary.
fn hash_text(hash: &[u8; 32]) -> String {
    hex(hash)
}
