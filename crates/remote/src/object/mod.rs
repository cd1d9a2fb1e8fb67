//! An object on a server: its length, a tag of its content, and ranges of its bytes. One file a kind of server.

mod http;
pub(crate) mod hub;
pub(crate) mod registry;
pub(crate) mod store;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;

use crate::{Error, Location, Options, Result, Scheme};

/// Bytes of a range as they come, in order.
pub(crate) type Body = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// What [`Object::read`] gives.
pub(crate) type Reading<'a> = Pin<Box<dyn Future<Output = Result<Body>> + Send + 'a>>;

/// What a server says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) len: u64,
    /// The entity tag, or whatever changes with the content; `None` where the server says nothing of the kind.
    pub(crate) tag: Option<String>,
}

/// An object that can be read by ranges. It is the one that was opened: another content under its name is
/// [`Error::Changed`], as far as the server has tags.
pub(crate) trait Object: fmt::Debug + Send + Sync {
    /// What the server said when the object was opened.
    fn head(&self) -> &Head;

    /// Asks for a range within the object. What comes may be shorter or longer than that: the caller counts.
    fn read(&self, range: Range<u64>) -> Reading<'_>;

    /// The digest that the whole object has to have, as `sha256:HEX`, if it has to be compared; `is_hashed` says whether
    /// the image has hashes of its own, which were.
    fn digest(&self, is_hashed: bool) -> Option<&str> {
        let _ = is_hashed;
        None
    }
}

/// Opens an object: one request.
pub(crate) async fn open(location: &Location, options: &Options) -> Result<Arc<dyn Object>> {
    Ok(match location.scheme() {
        Scheme::S3 | Scheme::Gcs | Scheme::Azure => Arc::new(store::Stored::open(location, options).await?),
        Scheme::Http => Arc::new(http::Page::open(location, options).await?),
        Scheme::Hub => Arc::new(hub::open(location, options).await?),
        Scheme::Oci => Arc::new(registry::Layer::open(location, options).await?),
    })
}

/// Compares what an answer says of the object with what was said when it was opened.
fn check_same(place: &str, was: &Head, now: &Head) -> Result<()> {
    let changed = |was: String, now: String| Err(Error::Changed { place: place.to_owned(), was, now });
    if was.len != now.len {
        return changed(format!("{} bytes", was.len), format!("{} bytes", now.len));
    }
    match (&was.tag, &now.tag) {
        (Some(was), Some(now)) if was != now => changed(was.clone(), now.clone()),
        _ => Ok(()),
    }
}
