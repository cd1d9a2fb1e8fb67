//! Objects of web servers: GET with ranges, and nothing else.

use std::ops::Range;
use std::time::Duration;

use futures_util::TryStreamExt;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_MATCH, LAST_MODIFIED, RANGE};
use reqwest::{Client, Proxy, Response, StatusCode};
use url::Url;

use super::{Body, Head, Object, Reading, check_same};
use crate::error::{redacted, with_causes};
use crate::{Error, Location, Options, Result};

/// How long the connection to a server may take.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// The variable with a token for `Authorization: Bearer`.
pub(super) const TOKEN: &str = "DAXFS_REMOTE_TOKEN";

/// An object of a web server.
#[derive(Debug)]
pub(super) struct Page {
    client: Client,
    location: Location,
    /// Where it is asked for.
    url: Url,
    head: Head,
}

impl Page {
    pub(super) async fn open(location: &Location, options: &Options) -> Result<Self> {
        let client = client(location, options, std::env::var(TOKEN).ok())?;
        Self::open_at(client, location, location.url().clone()).await
    }

    /// Opens what lies at `url` and is called `location`.
    pub(super) async fn open_at(client: Client, location: &Location, url: Url) -> Result<Self> {
        // A range tells the length, the tag and whether the server knows ranges, which HEAD does not.
        let probe = Self { client, location: location.clone(), url, head: Head { len: 0, tag: None } };
        let response = probe.send(&(0..1), None).await?;
        let head = match response.status() {
            // Nothing of an empty object can be asked for.
            StatusCode::RANGE_NOT_SATISFIABLE => Head { len: 0, tag: None },
            _ => probe.head_of(&response, &(0..1))?,
        };
        Ok(Self { head, ..probe })
    }

    /// Sends a request; statuses that say nothing of the object are errors.
    async fn send(&self, range: &Range<u64>, tag: Option<&str>) -> Result<Response> {
        let mut headers = HeaderMap::new();
        let value = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        headers.insert(
            RANGE,
            HeaderValue::from_str(&value).map_err(|error| self.server(&error.to_string(), false))?,
        );
        // A weak tag matches nothing.
        if let Some(tag) = tag.filter(|tag| tag.starts_with('"'))
            && let Ok(tag) = HeaderValue::from_str(tag)
        {
            headers.insert(IF_MATCH, tag);
        }
        let request = self.client.get(self.url.clone()).headers(headers);
        let response = request.send().await.map_err(|error| failed(&self.location, error))?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        match checked(&self.location, response) {
            Ok(response) if response.status() == StatusCode::PARTIAL_CONTENT => Ok(response),
            Ok(_) => Err(Error::NoRanges { place: self.location.to_string() }),
            Err(Error::Changed { place, now, .. }) => {
                Err(Error::Changed { place, was: tag.unwrap_or("as it was opened").to_owned(), now })
            }
            Err(error) => Err(error),
        }
    }

    /// What an answer says of the object; the range has to be the one that was asked for.
    fn head_of(&self, response: &Response, asked: &Range<u64>) -> Result<Head> {
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let wrong = |got: String| Error::WrongRange {
            place: self.location.to_string(),
            asked: asked.clone(),
            got: redacted(&got),
        };
        let said = text(CONTENT_RANGE).ok_or_else(|| wrong("no Content-Range".into()))?;
        let (range, len) = content_range(said).ok_or_else(|| wrong(format!("Content-Range: {said}")))?;
        if range != *asked || range.end > len {
            return Err(wrong(format!("Content-Range: {said}")));
        }
        let tag = text(ETAG).or_else(|| text(LAST_MODIFIED)).map(str::to_owned);
        Ok(Head { len, tag })
    }

    async fn get(&self, range: Range<u64>) -> Result<Body> {
        let response = self.send(&range, self.head.tag.as_deref()).await?;
        let place = self.location.to_string();
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            let was = format!("{} bytes", self.head.len);
            return Err(Error::Changed { place, was, now: "fewer".into() });
        }
        check_same(&place, &self.head, &self.head_of(&response, &range)?)?;
        let location = self.location.clone();
        Ok(Box::pin(response.bytes_stream().map_err(move |error| failed(&location, error))))
    }

    fn server(&self, text: &str, again: bool) -> Error {
        server(&self.location, text, again)
    }
}

fn server(location: &Location, text: &str, again: bool) -> Error {
    Error::Server { place: location.to_string(), text: redacted(text), again }
}

/// What the client says; its texts name no address once that is taken away.
pub(super) fn failed(location: &Location, error: reqwest::Error) -> Error {
    let again = !(error.is_builder() || error.is_redirect());
    server(location, &with_causes(&error.without_url()), again)
}

/// An answer that says something of what was asked for; other statuses are errors.
pub(super) fn checked(location: &Location, response: Response) -> Result<Response> {
    let place = location.to_string();
    match response.status() {
        status if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND | StatusCode::GONE => Err(Error::NotFound { place }),
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            let hint = location.scheme().credentials();
            Err(Error::Denied { place, status: status.to_string(), hint })
        }
        StatusCode::PRECONDITION_FAILED => {
            Err(Error::Changed { place, was: "as it was opened".into(), now: "another tag".into() })
        }
        status => {
            let again = status.is_server_error()
                || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
            Err(server(location, &format!("the server answers {status}"), again))
        }
    }
}

impl Object for Page {
    fn head(&self) -> &Head {
        &self.head
    }

    fn read(&self, range: Range<u64>) -> Reading<'_> {
        Box::pin(self.get(range))
    }
}

/// A client of one server, with a token for it.
pub(super) fn client(location: &Location, options: &Options, token: Option<String>) -> Result<Client> {
    let wrong = |why: String| Error::Location { text: location.to_string(), why: redacted(&why) };
    let mut headers = HeaderMap::new();
    if let Some(token) = token {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| wrong("the token has bytes that no header can have".into()))?;
        value.set_sensitive(true);
        headers.insert(reqwest::header::AUTHORIZATION, value);
    }
    let mut builder = Client::builder()
        .user_agent(concat!("daxfs/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .connect_timeout(CONNECT)
        // For what nobody watches: who reads ranges says earlier how much has to come.
        .read_timeout(options.patience * 2)
        // One connection a range: those of HTTP/2 would share one window.
        .http1_only();
    if let Some(proxy) = &options.proxy {
        builder = builder.proxy(Proxy::all(proxy).map_err(|error| wrong(format!("the proxy: {error}")))?);
    }
    builder.build().map_err(|error| wrong(format!("no client can be made: {error}")))
}

/// `bytes FIRST-LAST/LENGTH`.
fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, len) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| !text.starts_with('+'));
    Some((number(first)?..number(last)?.checked_add(1)?, number(len)?))
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn content_ranges() {
        assert_eq!(content_range("bytes 0-0/7"), Some((0..1, 7)));
        assert_eq!(content_range("bytes 5-9/10"), Some((5..10, 10)));
        for wrong in
            ["", "bytes */7", "bytes 0-0/*", "0-0/7", "bytes 0-18446744073709551615/7", "bytes +0-0/7"]
        {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
