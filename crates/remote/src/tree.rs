//! Trees of files that are packed: folders of stores, and repositories of hubs. They are listed first, and what is wanted
//! of them is fetched into a directory.

use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use tokio::runtime::{Builder, Runtime};

use crate::fetch::{Fetch, Total};
use crate::object::{self, Object, hub::Hub, registry, store};
use crate::plan::Part;
use crate::remote::with_retries;
use crate::sink::Sink;
use crate::{Error, Location, Options, Result, Scheme};

/// The file of the directory with what there is; one with what is wanted has the same form.
const LISTING: &str = "listing";
/// The file of the directory with what is wanted.
const WANTED: &str = "wanted";
/// Where the files go.
const FILES: &str = "files";
/// Most files of a tree.
const MOST_FILES: usize = 1 << 20;
/// Most bytes of the paths of a tree, and of what else a listing has.
const MOST_PATHS: usize = 256 << 20;
const MOST_LISTING: u64 = 512 << 20;
/// The longest path, and the most directories in one.
const LONGEST_PATH: usize = 4096;
const DEEPEST: usize = 64;
/// Bytes of a request.
const PART: u64 = 8 << 20;
/// Files of at most one request that are fetched at a time.
const AT_ONCE: usize = 8;

/// A file of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) len: u64,
    /// What its server says of its content, in hexadecimal.
    pub(crate) sha256: Option<String>,
    /// The entity tag in the listing, where it has one.
    pub(crate) tag: Option<String>,
}

impl Entry {
    /// As the listing has it.
    fn write(&self, to: &mut Vec<u8>) {
        let digest = self.sha256.as_deref().unwrap_or("-");
        let tag = self.tag.as_deref().unwrap_or("-");
        to.extend_from_slice(format!("{} {digest} {tag} {}\0", self.len, self.path).as_bytes());
    }

    fn parse(record: &str) -> Option<Self> {
        let mut words = record.splitn(4, ' ');
        let len = words.next()?.parse().ok()?;
        let mut word = || words.next().map(|word| (word != "-").then(|| word.to_owned()));
        let (sha256, tag) = (word()?, word()?);
        Some(Self { path: words.next()?.to_owned(), len, sha256, tag })
    }

    /// What a server says is no path yet: one that leads out of the tree must not be written.
    fn why_not(&self) -> Option<&'static str> {
        // Addresses lose tabs and the like, and would be those of other files then.
        let is_name =
            |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains(char::is_control);
        let is_short = self.path.split('/').all(|name| name.len() <= daxfs::format::NAME_MAX)
            && self.path.split('/').count() <= DEEPEST;
        let is_digest = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !self.path.split('/').all(is_name) {
            return Some("a path that is none");
        }
        if self.path.len() > LONGEST_PATH || !is_short {
            return Some("a path that is too long or too deep");
        }
        if self.tag.as_ref().is_some_and(|tag| tag.contains([' ', '\0'])) {
            return Some("a tag that is none");
        }
        if !self.sha256.as_ref().is_none_or(is_digest) {
            return Some("a SHA-256 that is none");
        }
        i64::try_from(self.len).is_err().then_some("a size that no file has")
    }
}

/// What a server lists, within bounds.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) entries: Vec<Entry>,
    bytes: usize,
}

impl Listing {
    pub(crate) fn push(&mut self, location: &Location, entry: Entry) -> Result<()> {
        self.bytes = self.bytes.saturating_add(entry.path.len());
        if self.entries.len() == MOST_FILES || self.bytes > MOST_PATHS {
            let text = format!(
                "the server lists more than the {MOST_FILES} files, or {MOST_PATHS} bytes of paths, that are read"
            );
            return Err(Error::Server { place: location.to_string(), text, again: false });
        }
        self.entries.push(entry);
        Ok(())
    }
}

/// Lists a tree into the file `listing` of `folder`, and gives the address that has this content: of a repository that at
/// the commit of now. The listing has a record `BYTES SHA256|- TAG|- PATH` and a NUL for each file, sorted by path.
///
/// # Errors
/// [`Error::NotFound`], also for a tree without a file, [`Error::Denied`], and what the server and the network say.
pub fn list_tree(location: &Location, folder: &Path, options: &Options) -> Result<Location> {
    let (pinned, mut entries) = runtime()?.block_on(list(location, options))?;
    let place = location.to_string();
    for entry in &entries {
        if let Some(why) = entry.why_not() {
            let text = crate::error::redacted(&format!("the server lists {why}: {:?}", entry.path));
            return Err(Error::Server { place, text, again: false });
        }
    }
    if entries.is_empty() {
        return Err(Error::NotFound { place });
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let files: HashSet<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
    let is_both =
        |entry: &&Entry| entry.path.match_indices('/').any(|(at, _)| files.contains(&entry.path[..at]));
    if let Some(entry) = entries.iter().find(is_both) {
        let text = format!("the server has a file of a name that directories of {:?} have, too", entry.path);
        return Err(Error::Server { place, text: crate::error::redacted(&text), again: false });
    }
    if files.len() < entries.len() {
        let text = "the server lists a file twice".to_owned();
        return Err(Error::Server { place, text, again: false });
    }
    let mut listing = Vec::new();
    for entry in &entries {
        entry.write(&mut listing);
    }
    let written = fs::write(folder.join(LISTING), listing);
    written.map_err(|error| Error::system("write a listing", error))?;
    Ok(pinned)
}

/// Fetches files of a tree into `files` of `folder`: those in its file `wanted`, which has the form of a listing. Each is
/// compared with its size, and with its SHA-256 where the listing has it. Gives how many there are.
///
/// # Errors
/// [`Error::NoSpace`] before anything is fetched, [`Error::Changed`], [`Error::WrongDigest`], and as for [`list_tree`]. What
/// was written until then stays in the folder.
pub fn pull_tree(location: &Location, folder: &Path, options: &Options) -> Result<usize> {
    let entries = read_wanted(folder)?;
    let mut needed = 0_u64;
    for entry in &entries {
        needed = needed.saturating_add(entry.len);
    }
    crate::layout::check_room(&location.to_string(), folder, needed)?;
    let files = folder.join(FILES);
    make_directory(&files)?;
    let (small, large): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.len <= PART);
    let pull = Pull { location, files: &files, options, total: Arc::new(Total::new(0, needed)) };
    runtime()?.block_on(async {
        let small = futures_util::stream::iter(small.into_iter().map(Ok));
        small.try_for_each_concurrent(AT_ONCE, |entry| pull.file(entry)).await?;
        // Requests of one file run beside each other.
        futures_util::stream::iter(large).map(Ok).try_for_each(|entry| pull.file(entry)).await
    })?;
    Ok(entries.len())
}

fn runtime() -> Result<Runtime> {
    crate::remote::install_provider();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| Error::system("start threads", error))
}

async fn list(location: &Location, options: &Options) -> Result<(Location, Vec<Entry>)> {
    if location.scheme() != Scheme::Hub {
        let listed = with_retries(options, async || store::list(location, options).await);
        return Ok((location.clone(), listed.await?));
    }
    let hub = Hub::new(location, options)?;
    let pinned = with_retries(options, async || hub.pinned().await).await?;
    let hub = Hub::new(&pinned, options)?;
    let entries = with_retries(options, async || hub.list(options).await).await?;
    Ok((pinned, entries))
}

fn read_wanted(folder: &Path) -> Result<Vec<Entry>> {
    let read = |error| Error::system("read what is wanted", error);
    let mut text = String::new();
    let file = File::open(folder.join(WANTED)).map_err(read)?;
    file.take(MOST_LISTING).read_to_string(&mut text).map_err(read)?;
    let entries = text
        .split_terminator('\0')
        .map(|record| Entry::parse(record).filter(|entry| entry.why_not().is_none()));
    let entries: Option<Vec<_>> = entries.collect();
    entries.ok_or_else(|| read(io::Error::other("it has not the form of a listing")))
}

fn make_directory(path: &Path) -> Result<()> {
    let made =
        fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)));
    made.map_err(|error| Error::system("make a directory", error))
}

struct Pull<'a> {
    location: &'a Location,
    files: &'a Path,
    options: &'a Options,
    total: Arc<Total>,
}

impl Pull<'_> {
    async fn file(&self, entry: &Entry) -> Result<()> {
        let location = self.location.child(&entry.path);
        let write = |error| Error::system("write a file of a tree", error);
        let path = self.files.join(&entry.path);
        let mut folder = self.files.to_owned();
        // Permissions are said for each: a mask of the user's must not decide what an image has.
        let folders = entry.path.split('/').rev().skip(1).collect::<Vec<_>>();
        for name in folders.into_iter().rev() {
            folder.push(name);
            make_directory(&folder)?;
        }
        let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(write)?;
        file.set_permissions(Permissions::from_mode(0o644))
            .and_then(|()| file.set_len(entry.len))
            .map_err(write)?;
        let sink = Arc::new(Sink::new(file, entry.len));
        if entry.len > 0 {
            let object = self.open(&location, entry).await?;
            let len = object.head().len;
            if len != entry.len {
                let (was, now) = (format!("{} bytes", entry.len), format!("{len} bytes"));
                return Err(Error::Changed { place: location.to_string(), was, now });
            }
            if let (Some(was), Some(now)) = (&entry.tag, &object.head().tag)
                && was != now
            {
                let (was, now) = (was.clone(), now.clone());
                return Err(Error::Changed { place: location.to_string(), was, now });
            }
            let parts = (0..len.div_ceil(PART)).map(|at| Part::of(at * PART..len.min((at + 1) * PART)));
            let options = self.options.clone();
            let fetch = Arc::new(Fetch { object, location: location.clone(), options });
            fetch.all(&sink, parts.collect(), Some(&self.total)).await?;
        }
        let Some(expected) = entry.sha256.clone() else { return Ok(()) };
        let got = tokio::task::spawn_blocking(move || sha256_of(sink.file()));
        let got = got.await.map_err(|error| Error::system("hash a file", io::Error::other(error)))?;
        let got = got.map_err(|error| Error::system("read a file of a tree", error))?;
        let expected = format!("sha256:{}", expected.to_ascii_lowercase());
        match got == expected {
            true => Ok(()),
            false => Err(Error::WrongDigest { place: location.to_string(), expected, got }),
        }
    }

    async fn open(&self, location: &Location, entry: &Entry) -> Result<Arc<dyn Object>> {
        // A hub keeps small files itself, without a SHA-256.
        if location.scheme() == Scheme::Hub
            && entry.sha256.is_none()
            && let Some(whole) = object::hub::open_whole(location, entry.len, self.options)?
        {
            return Ok(Arc::new(whole));
        }
        with_retries(self.options, async || object::open(location, self.options).await).await
    }
}

fn sha256_of(mut file: &File) -> io::Result<String> {
    use std::io::Seek;
    file.rewind()?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(registry::sha256(&hasher.finalize())),
            count => hasher.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Entry;

    #[test]
    fn records() {
        let entry =
            Entry { path: "a b/c".into(), len: 7, sha256: Some("ab".repeat(32)), tag: Some("\"1\"".into()) };
        let mut bytes = Vec::new();
        entry.write(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(Entry::parse(text.trim_end_matches('\0')), Some(entry));
        assert_eq!(
            Entry::parse("7 - - a"),
            Some(Entry { path: "a".into(), len: 7, sha256: None, tag: None })
        );
        for wrong in ["", "7", "7 -", "7 - a", "x - - a", "-1 - - a"] {
            assert_eq!(Entry::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn paths_stay_in_the_tree() {
        let why = |path: &str, len, sha256: Option<&str>| {
            Entry { path: path.into(), len, sha256: sha256.map(str::to_owned), tag: None }.why_not()
        };
        assert_eq!(why("a/b.c", 1, Some(&"0f".repeat(32))), None);
        for wrong in ["", "/a", "a/", "a//b", "..", "../a", "a/../b", "a/.", "a\0b", "a\tb", ".\t./b"] {
            assert!(why(wrong, 1, None).is_some(), "{wrong}");
        }
        assert!(why("a", u64::MAX, None).is_some() && why("a", 1, Some("../x")).is_some());
        for long in [format!("{}b", "a/".repeat(100)), "a".repeat(300), "a".repeat(5000)] {
            assert_eq!(why(&long, 1, None), Some("a path that is too long or too deep"));
        }
    }
}
