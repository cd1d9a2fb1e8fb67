//! How an image is fetched.

use daxfs::ContentHash;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dmabuf::HugePages;

use crate::{Error, Result};

/// Told how many bytes of how many are there; `false` ends the work.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(u64, u64) -> bool + Send + Sync>);

impl Progress {
    /// Calls `tell` now and then, from any thread.
    pub fn new(tell: impl Fn(u64, u64) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    pub(crate) fn tell(&self, done: u64, total: u64) -> bool {
        (self.0)(done, total)
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new(|_, _| true)
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

/// How an image is fetched. What is not said has a default that fits.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// The content hash that the image must have. It is compared before any file is fetched.
    pub expect: Option<ContentHash>,
    /// Most requests at a time. Fewer are made as long as more do not help.
    pub connections: usize,
    /// Pages of the memory.
    pub pages: HugePages,
    /// Most bytes of metadata, as [`daxfs::OpenOptions::max_metadata`].
    pub max_metadata: u64,
    /// A request that brings less than [`Options::least`] bytes in this time is ended and made again.
    pub patience: Duration,
    /// See [`Options::patience`].
    pub least: u64,
    /// How often a request is made again before the load fails.
    pub retries: u32,
    /// A proxy that all requests go through, such as `http://127.0.0.1:4001`; without one those of the environment
    /// (`HTTPS_PROXY`, `NO_PROXY`).
    pub proxy: Option<String>,
    /// Told how far it is.
    pub progress: Progress,
}

impl Options {
    /// The defaults, with what `DAXFS_REMOTE_CONNECTIONS` and `DAXFS_REMOTE_PROXY` say.
    ///
    /// # Errors
    /// [`Error::Location`] for a number of connections that is none, or not within 1 to 1024.
    pub fn from_environment() -> Result<Self> {
        let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let mut options = Self { proxy: text("DAXFS_REMOTE_PROXY"), ..Self::default() };
        if let Some(text) = text("DAXFS_REMOTE_CONNECTIONS") {
            let number = text.parse().ok().filter(|number| (1..=1024).contains(number));
            options.connections = number.ok_or_else(|| Error::Location {
                text: format!("DAXFS_REMOTE_CONNECTIONS={text}"),
                why: "is not a number from 1 to 1024".into(),
            })?;
        }
        Ok(options)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            expect: None,
            connections: 32,
            pages: HugePages::Auto,
            max_metadata: daxfs::DEFAULT_MAX_METADATA,
            patience: Duration::from_secs(30),
            least: 1 << 20,
            retries: 6,
            proxy: None,
            progress: Progress::default(),
        }
    }
}
