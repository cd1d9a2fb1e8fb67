//! Parts in parallel, into memory or a file: more at a time while that helps, again where they fail.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::check::Check;
use crate::object::Object;
use crate::plan::{Part, Piece};
use crate::sink::Sink;
use crate::{Error, Location, Options, Result};

/// Requests at a time at the beginning.
const FIRST: usize = 4;

/// How long it is watched whether more requests help.
const WATCHED: Duration = Duration::from_millis(500);

/// The wait before the first repetition; it doubles with each.
const WAIT: Duration = Duration::from_millis(200);

/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What is fetched, and how.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) object: Arc<dyn Object>,
    pub(crate) location: Location,
    pub(crate) options: Options,
}

/// How far a whole image is.
#[derive(Debug)]
pub(crate) struct Total {
    done: AtomicU64,
    total: u64,
}

impl Total {
    pub(crate) fn new(done: u64, total: u64) -> Self {
        Self { done: AtomicU64::new(done), total }
    }
}

impl Fetch {
    /// The address, as errors have it.
    pub(crate) fn place(&self) -> String {
        self.location.to_string()
    }

    /// An error of the reader.
    pub(crate) fn image(&self, source: daxfs::Error) -> Error {
        Error::Image { place: self.place(), source: Box::new(source) }
    }

    /// Fetches parts into the sink, and compares their pieces, on all threads.
    pub(crate) async fn all(
        self: &Arc<Self>,
        sink: &Arc<Sink>,
        parts: Vec<Part>,
        total: Option<&Arc<Total>>,
    ) -> Result<()> {
        let most = self.options.connections.max(1);
        let mut limit = FIRST.min(most);
        let mut waiting = parts.into_iter();
        // What still runs when one fails ends with this.
        let mut running = JoinSet::new();
        let done = || total.map_or(0, |total| total.done.load(Ordering::Relaxed));
        let (mut since, mut before, mut speed) = (Instant::now(), done(), 0_u64);
        loop {
            while running.len() < limit
                && let Some(part) = waiting.next()
            {
                let (fetch, sink, total) = (Arc::clone(self), Arc::clone(sink), total.cloned());
                running.spawn(async move { fetch.part(&sink, part, total.as_deref()).await });
            }
            match running.join_next().await {
                Some(Ok(result)) => result?,
                Some(Err(error)) => return Err(Error::system("fetch a part", std::io::Error::other(error))),
                None => return Ok(()),
            }
            // Twice as many requests, as long as a tenth more comes of it.
            if since.elapsed() >= WATCHED && limit < most {
                let millis = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
                let now = done().saturating_sub(before) / millis;
                if now > speed.saturating_add(speed / 10) {
                    limit = (limit * 2).min(most);
                }
                (since, before, speed) = (Instant::now(), done(), now.max(speed));
            }
        }
    }

    /// Fetches a part, and makes the request again from where it failed.
    async fn part(&self, sink: &Sink, part: Part, total: Option<&Total>) -> Result<()> {
        let mut at = part.range.start;
        let (mut tries, mut wait) = (0, WAIT);
        while at < part.range.end {
            let before = at;
            let Err(error) = self.request(sink, &part, &mut at, total).await else { continue };
            // One that got far is no repetition of the same failure.
            if at - before >= self.options.least {
                (tries, wait) = (0, WAIT);
            }
            tries += 1;
            if !error.is_worth_again() || tries > self.options.retries {
                return Err(error);
            }
            sleep(wait).await;
            self.tell(total, 0)?;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        Ok(())
    }

    /// One request for what is left of a part. `at` is moved behind what came and need not be fetched again, also where
    /// the request fails.
    async fn request(&self, sink: &Sink, part: &Part, at: &mut u64, total: Option<&Total>) -> Result<()> {
        let range = *at..part.range.end;
        let mut check = Check::new(part, range.start);
        let mut offset = range.start;
        let received = self.receive(sink, &range, &mut check, &mut offset, total).await;
        // What came of a piece that is not whole, or is wrong, is fetched again, and is not done.
        *at = if received.is_ok() { offset } else { check.resume() };
        if let Some(total) = total {
            total.done.fetch_sub(offset - *at, Ordering::Relaxed);
        }
        received
    }

    /// Receives a range. `offset` is behind what came.
    async fn receive(
        &self,
        sink: &Sink,
        range: &Range<u64>,
        check: &mut Check<'_>,
        offset: &mut u64,
        total: Option<&Total>,
    ) -> Result<()> {
        let wrong = |got: String| Error::WrongRange { place: self.place(), asked: range.clone(), got };
        let mut patience = Patience::new(self);
        let mut body = patience.within(self.object.read(range.clone())).await??;
        while let Some(bytes) = patience.within(body.next()).await? {
            let bytes = bytes?;
            let end = offset.saturating_add(bytes.len() as u64);
            if end > range.end {
                return Err(wrong(format!("at least {} bytes", end - range.start)));
            }
            sink.write(*offset, &bytes)?;
            *offset = end;
            let told = self.tell(total, bytes.len() as u64);
            check.update(&bytes).map_err(|piece| self.wrong(piece))?;
            told?;
            patience.came(bytes.len() as u64)?;
        }
        match *offset < range.end {
            true => Err(wrong(format!("{} bytes", *offset - range.start))),
            false => Ok(()),
        }
    }

    /// A piece that is not what its hash says.
    pub(crate) fn wrong(&self, piece: &Piece) -> Error {
        let range = piece.from..piece.from.saturating_add(piece.range.end - piece.range.start);
        Error::WrongBytes { place: self.place(), path: piece.path.to_string(), range }
    }

    /// Says how far it is.
    pub(crate) fn tell(&self, total: Option<&Total>, bytes: u64) -> Result<()> {
        let Some(total) = total else { return Ok(()) };
        let done = total.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if self.options.progress.tell(done, total.total) { Ok(()) } else { Err(Error::Cancelled) }
    }
}

/// Ends a request that brings too little.
struct Patience<'a> {
    fetch: &'a Fetch,
    /// When the window ends, and what has come in it.
    until: Instant,
    came: u64,
}

impl<'a> Patience<'a> {
    fn new(fetch: &'a Fetch) -> Self {
        Self { fetch, until: Instant::now() + fetch.options.patience, came: 0 }
    }

    fn stalled(&self) -> Error {
        let Options { patience, least, .. } = self.fetch.options;
        Error::Stalled { place: self.fetch.place(), got: self.came, within: patience, least }
    }

    /// Waits for something, but not beyond the window.
    async fn within<T>(&self, future: impl Future<Output = T>) -> Result<T> {
        timeout_at(self.until, future).await.map_err(|_| self.stalled())
    }

    /// Counts what came. A window with enough is followed by another one.
    fn came(&mut self, bytes: u64) -> Result<()> {
        self.came = self.came.saturating_add(bytes);
        if self.came >= self.fetch.options.least {
            (self.until, self.came) = (Instant::now() + self.fetch.options.patience, 0);
        } else if Instant::now() >= self.until {
            return Err(self.stalled());
        }
        Ok(())
    }
}
