//! Files of a hub of models (Hugging Face's, and what speaks its protocol): listings by its API, contents by addresses that
//! lead to wherever they lie. Facts are of the hub's documentation of its API.

use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::once;
use reqwest::Client;
use reqwest::header::{HeaderMap, LINK};
use serde_json::Value;
use url::Url;

use super::http::{Page, checked, client, failed};
use super::{Body, Head, Object, Reading};
use crate::error::redacted;
use crate::tree::{Entry, Listing};
use crate::{Error, Location, Options, Result};

/// Where the hub is, unless `HF_ENDPOINT` says it.
const ENDPOINT: &str = "https://huggingface.co";

/// Most bytes of an answer of the API; a page of a listing has a thousand names.
const MOST_ANSWER: usize = 16 << 20;

/// Most bytes of a file that is asked for as a whole: hubs keep larger ones where ranges are known.
const MOST_WHOLE: u64 = 16 << 20;

/// Most pages of a listing.
const MOST_PAGES: usize = 4096;

/// A hub, and a repository of it.
#[derive(Debug)]
pub(crate) struct Hub {
    client: Client,
    endpoint: Url,
    location: Location,
}

impl Hub {
    pub(crate) fn new(location: &Location, options: &Options) -> Result<Self> {
        let wrong = |why: String| Error::Location { text: location.to_string(), why };
        let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = Url::parse(endpoint.trim_end_matches('/'))
            .ok()
            .filter(|url| ["https", "http"].contains(&url.scheme()) && url.has_host())
            .ok_or_else(|| wrong("HF_ENDPOINT is no address of a web server (https://...)".into()))?;
        let client = client(location, options, token())?;
        Ok(Self { client, endpoint, location: location.clone() })
    }

    /// An address below the endpoint. What is no part of the path by itself is escaped.
    fn url<'s>(&self, segments: impl IntoIterator<Item = &'s str>) -> Result<Url> {
        let mut url = self.endpoint.clone();
        match url.path_segments_mut() {
            Ok(mut path) => path.pop_if_empty().extend(segments),
            Err(()) => return Err(self.wrong("cannot be asked for: the endpoint has no paths")),
        };
        Ok(url)
    }

    fn wrong(&self, why: &str) -> Error {
        Error::Server { place: self.location.to_string(), text: redacted(why), again: false }
    }

    /// The same repository at the commit that its revision is now.
    pub(crate) async fn pinned(&self) -> Result<Location> {
        let found = self.location.repository().ok_or_else(|| self.wrong("names no repository"))?;
        let url = self.url(["api", found.kind, found.owner, found.name, "revision", found.revision])?;
        let (_, answer) = self.json(url).await?;
        let commit = answer.get("sha").and_then(Value::as_str).unwrap_or_default();
        let is_commit =
            (7..=64).contains(&commit.len()) && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_commit {
            return Err(self.wrong(&format!("the hub names the commit {commit:?}, which is none")));
        }
        self.location.at_revision(commit)
    }

    /// All files of the repository.
    pub(crate) async fn list(&self, options: &Options) -> Result<Vec<Entry>> {
        let found = self.location.repository().ok_or_else(|| self.wrong("names no repository"))?;
        let mut url = self.url(["api", found.kind, found.owner, found.name, "tree", found.revision])?;
        url.query_pairs_mut().append_pair("recursive", "true");
        let mut listing = Listing::default();
        for _ in 0..MOST_PAGES {
            let (headers, answer) = self.json(url).await?;
            let page = answer.as_array().ok_or_else(|| self.wrong("the hub's listing is no list"))?;
            for value in page.iter().filter(|value| value.get("type").and_then(Value::as_str) == Some("file"))
            {
                listing.push(&self.location, self.entry(value)?)?;
            }
            if !options.progress.tell(0, 0) {
                return Err(Error::Cancelled);
            }
            let Some(next) = next_page(&headers) else { return Ok(listing.entries) };
            url = Url::parse(next)
                .ok()
                .filter(|url| url.origin() == self.endpoint.origin())
                .ok_or_else(|| self.wrong("the hub's listing goes on at another server"))?;
        }
        Err(self.wrong(&format!("the hub's listing has more than {MOST_PAGES} pages")))
    }

    fn entry(&self, value: &Value) -> Result<Entry> {
        let path = value.get("path").and_then(Value::as_str);
        // Of a file elsewhere the size and the SHA-256 are those of its content, not of what points to it.
        let large = value.get("lfs").filter(|large| large.is_object());
        let len = large.unwrap_or(value).get("size").and_then(Value::as_u64);
        let digest = large.and_then(|large| large.get("oid")).and_then(Value::as_str);
        match (path, len) {
            (Some(path), Some(len)) => {
                Ok(Entry { path: path.to_owned(), len, sha256: digest.map(str::to_owned), tag: None })
            }
            _ => Err(self.wrong("the hub lists a file without a path or a size")),
        }
    }

    async fn json(&self, url: Url) -> Result<(HeaderMap, Value)> {
        let (headers, bytes) = self.whole(url, MOST_ANSWER).await?;
        let value = serde_json::from_slice(&bytes);
        value
            .map(|value| (headers, value))
            .map_err(|error| self.wrong(&format!("the hub's answer is no JSON: {error}")))
    }

    /// All of an answer of at most `most` bytes.
    async fn whole(&self, url: Url, most: usize) -> Result<(HeaderMap, Vec<u8>)> {
        let response = self.client.get(url).send().await.map_err(|error| failed(&self.location, error))?;
        let response = checked(&self.location, response)?;
        let headers = response.headers().clone();
        let mut stream = response.bytes_stream();
        let mut bytes = Vec::new();
        while let Some(more) = stream.try_next().await.map_err(|error| failed(&self.location, error))? {
            if bytes.len().saturating_add(more.len()) > most {
                return Err(self.wrong(&format!("an answer has more than {most} bytes")));
            }
            bytes.extend_from_slice(&more);
        }
        Ok((headers, bytes))
    }

    /// Where the content of the file is asked for.
    fn resolve(&self) -> Result<Url> {
        let found = self.location.repository().ok_or_else(|| self.wrong("names no repository"))?;
        let prefix = found.prefix();
        let kind = prefix.strip_suffix('/');
        let segments = [found.owner, found.name, "resolve", found.revision];
        let mut url = self.url(kind.into_iter().chain(segments))?;
        // This part is escaped already.
        let path = format!("{}/{}", url.path(), found.file);
        url.set_path(&path);
        Ok(url)
    }
}

/// A file of a repository that is read by ranges.
pub(super) async fn open(location: &Location, options: &Options) -> Result<Page> {
    let hub = Hub::new(location, options)?;
    let url = hub.resolve()?;
    Page::open_at(hub.client, location, url).await
}

/// A file that a hub keeps itself, and need not know ranges of: it is asked for as a whole. `None` for a large one.
pub(crate) fn open_whole(location: &Location, len: u64, options: &Options) -> Result<Option<Whole>> {
    if len > MOST_WHOLE {
        return Ok(None);
    }
    Ok(Some(Whole { hub: Hub::new(location, options)?, head: Head { len, tag: None } }))
}

/// See [`open_whole`].
#[derive(Debug)]
pub(crate) struct Whole {
    hub: Hub,
    head: Head,
}

impl Whole {
    async fn get(&self, range: Range<u64>) -> Result<Body> {
        let most = usize::try_from(self.head.len).unwrap_or(usize::MAX);
        let (_, bytes) = self.hub.whole(self.hub.resolve()?, most).await?;
        let ends = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let part = ends.and_then(|(start, end)| bytes.get(start..end).map(Bytes::copy_from_slice));
        let got = bytes.len();
        let place = self.hub.location.to_string();
        let part = part.ok_or(Error::WrongRange { place, asked: range, got: format!("{got} bytes") })?;
        Ok(Box::pin(once(async move { Ok(part) })))
    }
}

impl Object for Whole {
    fn head(&self) -> &Head {
        &self.head
    }

    fn read(&self, range: Range<u64>) -> Reading<'_> {
        Box::pin(self.get(range))
    }
}

/// The user's token, where the hub's own tools have it.
fn token() -> Option<String> {
    let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    text("HF_TOKEN").or_else(|| {
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
        let cache = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
        let folder = || text("HF_HOME").map(PathBuf::from).or_else(|| Some(cache()?.join("huggingface")));
        let path = text("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(folder()?.join("token")))?;
        let token = std::fs::read_to_string(path).ok()?;
        Some(token.trim().to_owned()).filter(|token| !token.is_empty())
    })
}

/// The address of the next page: `<ADDRESS>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<&str> {
    let links = headers.get_all(LINK).into_iter().filter_map(|value| value.to_str().ok());
    links.flat_map(|value| value.split(',')).find_map(|link| {
        let (address, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
        rest.split(';').any(|part| part.trim() == r#"rel="next""#).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    #[test]
    fn links_to_the_next_page() {
        let next = |text: &'static str| {
            let headers = HeaderMap::from_iter([(LINK, HeaderValue::from_static(text))]);
            next_page(&headers).map(str::to_owned)
        };
        assert_eq!(next(r#"<https://h/a?b>; rel="next""#).unwrap(), "https://h/a?b");
        assert_eq!(next(r#"<https://h/a>; rel="prev", <https://h/b>; rel="next""#).unwrap(), "https://h/b");
        assert_eq!(next(r#"<https://h/a>; rel="prev""#), None);
        assert_eq!(next("nothing"), None);
    }
}
