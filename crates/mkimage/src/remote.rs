//! Trees of files that lie elsewhere as inputs: a folder of a store, a repository of a hub. The program `daxfs-remote` lists
//! them, and fetches what is packed of them into a directory.

use crate::archive::{Settings, spool};
use crate::scan::Rules;
use crate::selection::{Choice, Named, Selection, is_weights, superfluous};
use crate::{Error, Result};
use daxfs::RemoteAddress;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The files of a tree, as long as this lives.
#[derive(Debug)]
pub(crate) struct Fetched {
    folder: TempDir,
    /// What has this content: of a repository the commit that was fetched.
    pub(crate) address: RemoteAddress,
    /// What was listed and left out, by its path.
    pub(crate) left_out: Vec<PathBuf>,
}

impl Fetched {
    /// The root of the tree.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("files")
    }
}

/// The address that an input is, if it is one of a tree.
pub(crate) fn address(input: &Path) -> Result<Option<RemoteAddress>> {
    match RemoteAddress::parse(input.as_os_str()) {
        Some(address) => Ok(Some(address.map_err(Error::Fetch)?).filter(RemoteAddress::is_tree)),
        None => Ok(None),
    }
}

/// What an image of a tree may be called: the folder, or the repository.
pub(crate) fn base_name(address: &RemoteAddress) -> Option<String> {
    let text = address.to_string();
    let (_, path) = text.split_once("://")?;
    let name = match text.starts_with("hf://") {
        true => path.split('@').next()?.rsplit('/').next()?,
        false => path.trim_end_matches('/').rsplit('/').next()?,
    };
    Some(name.to_owned()).filter(|name| !name.is_empty())
}

/// Fetches what is packed of a tree.
pub(crate) fn fetch(address: &RemoteAddress, rules: &Rules) -> Result<Fetched> {
    let Settings { progress, .. } = &rules.images;
    let failed = |error| match error {
        daxfs::Error::Cancelled => Error::Cancelled,
        error => Error::Fetch(error),
    };
    let folder = spool("daxfs-tree-")?;
    let opened = File::open(folder.path()).map_err(|error| Error::io("open", folder.path(), error))?;
    let mut goes_on = |_, _| !progress.cancelled();
    let address = address.list_tree(opened.as_fd(), &mut goes_on).map_err(failed)?;
    let path = folder.path().join("listing");
    let listing = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
    let (wanted, left_out) = choose(&listing, &rules.selection);
    let path = folder.path().join("wanted");
    std::fs::write(&path, wanted).map_err(|error| Error::io("write", &path, error))?;
    let mut told = |done, total| {
        progress.fetching(done, total);
        !progress.cancelled()
    };
    address.pull_tree(opened.as_fd(), &mut told).map_err(failed)?;
    Ok(Fetched { folder, address, left_out })
}

/// What a listing says of a file.
struct Record<'l> {
    text: &'l [u8],
    path: &'l [u8],
    /// Whether it can be a safetensors file: one has a header.
    has_header: bool,
}

impl<'l> Record<'l> {
    /// `BYTES SHA256 TAG PATH`.
    fn parse(text: &'l [u8]) -> Option<Record<'l>> {
        let mut words = text.splitn(4, |&byte| byte == b' ');
        let len: u64 = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
        Some(Record { text, path: words.nth(2)?, has_header: len >= 10 })
    }
}

/// Records of a listing that are packed, and the paths of all others.
fn choose(listing: &[u8], selection: &Selection) -> (Vec<u8>, Vec<PathBuf>) {
    let records = listing.split(|&byte| byte == 0).filter_map(Record::parse);
    let (mut records, excluded): (Vec<_>, Vec<_>) =
        records.partition(|record| !is_excluded(record.path, selection));
    let mut left_out: Vec<&[u8]> = excluded.iter().map(|record| record.path).collect();
    // What globs leave out makes nothing superfluous.
    let out = beside_weights(&records, selection);
    records.retain(|record| {
        let is_out = ends(record.path).any(|path| out.contains(path));
        left_out.extend(is_out.then_some(record.path));
        !is_out
    });
    let wanted: Vec<u8> = records.iter().flat_map(|record| [record.text, &[0]].concat()).collect();
    (wanted, left_out.into_iter().map(|path| PathBuf::from(OsStr::from_bytes(path))).collect())
}

/// A path and the directories that it lies in, the outermost first.
fn ends(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    slashes.chain([path.len()]).map(|end| &path[..end])
}

/// Whether globs leave a file out, or a directory that it lies in.
fn is_excluded(path: &[u8], selection: &Selection) -> bool {
    let mut whole = false;
    for end in ends(path) {
        let is_directory = end.len() < path.len();
        match selection.choose(Path::new(OsStr::from_bytes(end)), is_directory, whole) {
            Choice::Out => return true,
            Choice::Whole => whole = true,
            Choice::Enter => {}
        }
    }
    false
}

/// Names in a directory: of each the path, whether it is a directory, and whether it can be a safetensors file.
type Names<'p> = BTreeMap<&'p [u8], (&'p [u8], bool, bool)>;

/// Paths of what weights make superfluous, judged by names: it need not be fetched to be left out.
fn beside_weights<'p>(records: &[Record<'p>], selection: &Selection) -> HashSet<&'p [u8]> {
    if !selection.weights_only {
        return HashSet::new();
    }
    // By directory the names in it, each with its path and whether it is a directory.
    let mut directories: HashMap<&[u8], Names<'_>> = HashMap::new();
    for &Record { path, has_header, .. } in records {
        for end in ends(path) {
            let at = end.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
            let (directory, name) = end.split_at(at);
            directories.entry(directory).or_default().insert(name, (end, end.len() < path.len(), has_header));
        }
    }
    let mut out = HashSet::new();
    for names in directories.values() {
        let named: Vec<_> = names
            .iter()
            .map(|(&name, &(_, is_directory, has_header))| {
                let has_weights = !is_directory && has_header && is_weights(name);
                Named { name, is_directory, has_weights }
            })
            .collect();
        let superfluous = superfluous(&named);
        out.extend(names.values().zip(superfluous).filter(|(_, out)| *out).map(|((path, ..), _)| *path));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> RemoteAddress {
        super::address(Path::new(text)).unwrap().unwrap()
    }

    #[test]
    fn images_are_named_after_folders_and_repositories() {
        for (text, name) in [
            ("hf://org/Name-1.5B", Some("Name-1.5B")),
            ("hf://org/name@v1", Some("name")),
            ("hf://datasets/org/name@refs/pr/1", Some("name")),
            ("s3://models/llama/v1/", Some("v1")),
            ("s3://models/", Some("models")),
        ] {
            assert_eq!(base_name(&address(text)).as_deref(), name, "{text}");
        }
        assert!(super::address(Path::new("s3://models/a.daxfs")).unwrap().is_none());
        assert!(super::address(Path::new("weights")).unwrap().is_none());
    }

    #[test]
    fn what_is_left_out_is_not_fetched() {
        let names = ["README.md", "a/b.txt", "model.safetensors", "original/x.pth", "pytorch_model.bin"];
        let listing: String = names.iter().map(|name| format!("17 - - {name}\0")).collect();
        let chosen = |selection: Selection| {
            let (wanted, left_out) = choose(listing.as_bytes(), &selection);
            let wanted = String::from_utf8(wanted).unwrap();
            let wanted: Vec<String> = wanted
                .split_terminator('\0')
                .map(|record| record.trim_start_matches("17 - - ").to_owned())
                .collect();
            (wanted, left_out.len())
        };
        assert_eq!(chosen(Selection::default()), (names.map(str::to_owned).to_vec(), 0));
        let selection = Selection::new(&["a/".into()], &[], false).unwrap();
        assert_eq!(
            chosen(selection).0,
            ["README.md", "model.safetensors", "original/x.pth", "pytorch_model.bin"]
        );
        let selection = Selection::new(&[], &["*.txt".into()], false).unwrap();
        assert_eq!(chosen(selection), (Vec::from(["a/b.txt".to_owned()]), 4));
        let selection = Selection::new(&[], &[], true).unwrap();
        assert_eq!(chosen(selection).0, ["README.md", "a/b.txt", "model.safetensors"]);
        // Weights that are left out, and such that are none, make nothing superfluous.
        let selection = Selection::new(&["*.safetensors".into()], &[], true).unwrap();
        assert!(chosen(selection).0.contains(&"pytorch_model.bin".to_owned()));
        let empty = b"0 - - model.safetensors\x0017 - - pytorch_model.bin\0";
        let (wanted, _) = choose(empty, &Selection::new(&[], &[], true).unwrap());
        assert_eq!(wanted, empty);
    }
}
