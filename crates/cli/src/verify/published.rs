//! Files against a SHA-256 that somebody published: what is compared are the bytes that a file had in its source.

use super::{Findings, Kind};
use crate::args::{VerifyArgs, sha256};
use crate::progress::Progress;
use crate::text::{escape, hex};
use anyhow::{Context, bail};
use daxfs::{Image, Original};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Compares the files that the command line and its list name, on all cores.
///
/// # Errors
/// When the list cannot be read, or a line of it is none.
pub fn compare(image: &Image, args: &VerifyArgs, findings: &mut Findings) -> anyhow::Result<()> {
    let mut wanted = args.sha256.clone();
    if let Some(list) = &args.sha256sums {
        wanted.extend(read_list(list)?);
    }
    let mut files: Vec<(OsString, Original, [u8; 32])> = Vec::new();
    for (path, hash) in wanted {
        match image.file(path.as_bytes()).and_then(|file| file.original()) {
            Ok(original) => files.push((path, original, hash)),
            Err(error) => findings.judge(Kind::Sha256, path.as_bytes(), error),
        }
    }
    let total = files.iter().fold(0_u64, |sum, (_, original, _)| sum.saturating_add(original.len()));
    let progress = Progress::new("SHA-256", total, args.quiet);
    let found: Vec<daxfs::Result<[u8; 32]>> =
        files.par_iter().map(|(_, original, _)| hash_of(original, &progress)).collect();
    drop(progress);
    for ((path, _, wanted), found) in files.iter().zip(found) {
        match found {
            Ok(found) => {
                findings.facts.sha256_files = findings.facts.sha256_files.saturating_add(1);
                if found != *wanted {
                    let text = format!("SHA-256 is {}, expected {}", hex(&found), hex(wanted));
                    findings.differ(Kind::Sha256, Some(path.as_bytes()), text);
                }
            }
            Err(error) => findings.judge(Kind::Sha256, path.as_bytes(), error),
        }
    }
    Ok(())
}

fn hash_of(original: &Original, progress: &Progress) -> daxfs::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    original.for_each_chunk::<daxfs::Error>(|bytes| {
        hasher.update(bytes);
        progress.add(bytes.len() as u64);
        Ok(())
    })?;
    Ok(hasher.finalize().into())
}

/// Lines of 64 digits, a space, a space or an asterisk, and a path, as sha256sum(1) writes them. Empty lines and those
/// that begin with `#` are skipped.
fn read_list(list: &Path) -> anyhow::Result<Vec<(OsString, [u8; 32])>> {
    let name = || escape(list.as_os_str().as_bytes());
    let text = std::fs::read(list).with_context(name)?;
    let mut files = Vec::new();
    for (number, line) in (1_u64..).zip(text.split(|&byte| byte == b'\n')) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let parsed = line.split_at_checked(64).and_then(|(digits, rest)| {
            let hash = sha256(str::from_utf8(digits).ok()?)?;
            let path = rest.strip_prefix(b"  ").or_else(|| rest.strip_prefix(b" *"))?;
            (!path.is_empty()).then(|| (OsString::from_vec(path.to_vec()), hash))
        });
        match parsed {
            Some(file) => files.push(file),
            None => bail!("{}: line {number}: expected 64 hexadecimal digits, two spaces and a path", name()),
        }
    }
    Ok(files)
}
