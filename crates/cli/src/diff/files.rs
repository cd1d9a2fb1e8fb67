//! The trees of two images, side by side.

use super::bytes::Bytes;
use super::{Change, Report};
use crate::text::{escape, human, kind_name};
use daxfs::{Entry, FileType, Image, format};
use std::cmp::Ordering;

/// Two directories of one path, and how far they were compared.
struct Pair {
    first: Vec<Entry>,
    second: Vec<Entry>,
}

impl Pair {
    /// The last ones come first.
    fn of(first: &Entry, second: &Entry, is_root: bool) -> Self {
        let list = |directory: &Entry| {
            let children = directory.children();
            let own = |child: &Entry| is_root && child.name() == format::index::DIR.as_bytes();
            let mut children: Vec<_> = children.filter(|child| !own(child)).collect();
            children.sort_unstable_by(|a, b| b.name().cmp(a.name()));
            children
        };
        Self { first: list(first), second: list(second) }
    }
}

/// Compares every entry, and returns how many there are in both together, each path once. What lies below a directory
/// that only one of them has is not listed.
pub(super) fn compare(
    first: &Image,
    second: &Image,
    bytes: &mut Bytes,
    report: &mut Report<'_>,
) -> anyhow::Result<u64> {
    let mut seen = 0_u64;
    let mut left = vec![Pair::of(&first.root(), &second.root(), true)];
    while let Some(pair) = left.last_mut() {
        let order = match (pair.first.last(), pair.second.last()) {
            (None, None) => {
                left.pop();
                continue;
            }
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => one.name().cmp(other.name()),
        };
        seen = seen.saturating_add(1);
        let one = if order == Ordering::Greater { None } else { pair.first.pop() };
        let other = if order == Ordering::Less { None } else { pair.second.pop() };
        match (one, other) {
            (Some(one), None) => report.file(&one.path(), Change::Removed, None)?,
            (None, Some(other)) => report.file(&other.path(), Change::Added, None)?,
            (Some(one), Some(other)) => {
                if let Some(what) = difference(&one, &other, bytes)? {
                    report.file(&one.path(), Change::Changed, Some(&what))?;
                } else if one.file_type() == FileType::Directory {
                    left.push(Pair::of(&one, &other, false));
                }
            }
            (None, None) => {}
        }
    }
    Ok(seen)
}

/// What differs between two entries of one path. Owners, modes and times are who packed them, and not looked at.
fn difference(one: &Entry, other: &Entry, bytes: &mut Bytes) -> anyhow::Result<Option<String>> {
    if one.file_type() != other.file_type() {
        return Ok(Some(format!(
            "{}, then {}",
            kind_name(one.metadata().mode),
            kind_name(other.metadata().mode)
        )));
    }
    Ok(match one.file_type() {
        FileType::Symlink => {
            let (from, to) = (one.read_link()?, other.read_link()?);
            (from != to).then(|| format!("leads to {}, then to {}", escape(from), escape(to)))
        }
        FileType::File => {
            let (one, other) = (one.file()?.original()?, other.file()?.original()?);
            match bytes.same_originals(&one, &other)? {
                true => None,
                false if one.len() == other.len() => Some(format!("other contents of {}", human(one.len()))),
                false => Some(format!("{}, then {}", human(one.len()), human(other.len()))),
            }
        }
        _ => None,
    })
}
