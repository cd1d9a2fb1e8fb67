//! Loads: one at a time, in a thread of its own, while the loop goes on serving.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use daxfs_protocol::message::{Refusal, Reply};

use crate::access::Access;
use crate::crash::crash_point;
use crate::error::{Error, Result};
use crate::limits::Budget;
use crate::load::{By, LoadOptions, Watch, load};
use crate::requests::taken;
use crate::server::Server;
use crate::table::Ready;

/// A load that waits or runs.
#[derive(Debug)]
pub(crate) struct Job {
    pub token: u64,
    pub name: String,
    pub replace: bool,
    pub options: LoadOptions,
    pub by: By,
    pub source: OwnedFd,
    pub watch: Arc<Watch>,
}

/// A load that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    token: u64,
    name: String,
    replace: bool,
    result: Result<Ready>,
}

/// The load that runs.
#[derive(Debug)]
pub(crate) struct Running {
    /// The connection that waits for it.
    token: u64,
    pub watch: Arc<Watch>,
    since: Instant,
}

impl Server {
    /// Loads an image before the loop runs. `progress` is called now and then with bytes done and in all.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Cancelled`] after SIGTERM or SIGINT, and then [`Server::is_stopping`].
    pub fn load_now(
        &mut self,
        name: &str,
        source: OwnedFd,
        options: &[String],
        mut progress: impl FnMut(u64, u64),
    ) -> Result<()> {
        if self.is_stopping() {
            return Err(Error::Cancelled);
        }
        let options = LoadOptions::parse(options, &self.config)?;
        let watch = Arc::new(Watch::default());
        let (since, budget) = (Instant::now(), self.budget.clone());
        let ready = std::thread::scope(|scope| {
            let worker = scope.spawn(|| load_caught(source, &options, &By::Own, &budget, &watch));
            while !worker.is_finished() {
                std::thread::sleep(Duration::from_millis(20));
                progress(watch.done.load(Ordering::Relaxed), watch.total.load(Ordering::Relaxed));
                if let Ok(Some(signal)) = self.signals.read_signal() {
                    tracing::info!(signal = signal.ssi_signo, "ending");
                    self.begin_stop();
                    watch.cancel.store(true, Ordering::Relaxed);
                }
            }
            worker.join().unwrap_or(Err(Error::Panicked))
        });
        self.metrics.load_ended(since.elapsed());
        // The signal may have come when the load had looked at the watch for the last time.
        if self.is_stopping() {
            return Err(Error::Cancelled);
        }
        self.hold(name, ready?)?;
        self.metrics.loads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn is_loading(&self) -> bool {
        self.running.is_some() || !self.queue.is_empty()
    }

    /// Starts the next load that somebody still waits for, unless one runs.
    pub(crate) fn start_next_load(&mut self) {
        while self.running.is_none() {
            let Some(mut job) = self.queue.pop_front() else { return };
            if job.watch.cancel.load(Ordering::Relaxed) {
                self.closer.close(vec![job.source]);
                continue;
            }
            // Not when it was asked for: the loads before it may have replaced the image by one in other memory.
            if job.replace
                && let Some(fd) = self.table.get(&job.name).and_then(|held| held.fds.first())
            {
                job.options.keep_memory(fd.as_fd());
            }
            let watch = Arc::clone(&job.watch);
            self.running = Some(Running { token: job.token, watch, since: Instant::now() });
            let (budget, sender, wake) =
                (self.budget.clone(), self.finished.0.clone(), Arc::clone(&self.wake));
            let (token, name, replace) = (job.token, job.name.clone(), job.replace);
            let failed = (name.clone(), sender.clone());
            let spawned = std::thread::Builder::new().name("load".into()).spawn(move || {
                let result = load_caught(job.source, &job.options, &job.by, &budget, &job.watch);
                // The loop may have ended; then nobody wants to know.
                let _ = sender.send(Finished { token, name, replace, result });
                let _ = wake.write(1);
            });
            if let Err(error) = spawned {
                let result = Err(Error::system("start a thread", error));
                let _ = failed.1.send(Finished { token, name: failed.0, replace, result });
            }
        }
    }

    pub(crate) fn finish_load(&mut self, finished: Finished) {
        let Finished { token, name, replace, result } = finished;
        let mut warnings = Vec::new();
        if let Some(running) = self.running.take() {
            self.metrics.load_ended(running.since.elapsed());
            warnings = running.watch.take_warnings();
        }
        let waits = self.connections.contains_key(&token);
        let outcome = match result {
            Ok(_) if !waits => Err((Refusal::Failed, Error::Cancelled.to_string())),
            Ok(_) if self.is_stopping() => Err((Refusal::Busy, "the holder is ending".to_owned())),
            Ok(ready) => match self.table.check_free(&name, replace) {
                Ok(()) => self.hold(&name, ready).map_err(|error| (refusal_of(&error), error.to_string())),
                Err(refusal) => Err((refusal, taken(&name))),
            },
            Err(error) => Err((refusal_of(&error), error.to_string())),
        };
        let reply = match (outcome, self.table.get(&name)) {
            (Ok(()), Some(held)) => {
                self.metrics.loads.fetch_add(1, Ordering::Relaxed);
                Reply::Loaded(held.info.clone())
            }
            (Ok(()), None) => Reply::Ok,
            (Err((refusal, text)), _) => {
                self.metrics.failed_loads.fetch_add(1, Ordering::Relaxed);
                self.metrics.refuse(refusal);
                tracing::warn!(name, text, "load failed");
                Reply::Error { refusal, text }
            }
        };
        if let Some(mut connection) = self.connections.remove(&token) {
            connection.load = None;
            for text in warnings {
                connection.reply(&Reply::Warning { text }, Arc::new([]));
            }
            connection.reply(&reply, Arc::new([]));
            let alive = self.flush(&mut connection);
            self.put_back(token, connection, alive);
        }
        self.start_next_load();
        self.begin_waiting_takeover();
    }

    /// Tells those who wait for a load, or for its end, how far it is; nothing is done or known yet of those that queue.
    pub(crate) fn send_progress(&mut self) {
        let Some(running) = &self.running else { return };
        let (done, total) = (&running.watch.done, &running.watch.total);
        let (done, total) = (done.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
        let waiting = self.takeover.as_ref().map(|takeover| takeover.token);
        let mut told: Vec<(u64, u64, u64)> = self.queue.iter().map(|job| (job.token, 0, 0)).collect();
        told.extend([Some(running.token), waiting].into_iter().flatten().map(|token| (token, done, total)));
        for (token, done, total) in told {
            if let Some(mut connection) = self.connections.remove(&token) {
                connection.progress(done, total);
                let alive = self.flush(&mut connection);
                self.put_back(token, connection, alive);
            }
        }
    }

    /// Puts an image under its name. A supervisor has it before anybody is told.
    fn hold(&mut self, name: &str, ready: Ready) -> Result<()> {
        crash_point("hold-begin");
        let access = self.access_of(name, ready.access.as_ref())?.of_new();
        let kept = self.table.iter().map(|held| (&held.access, held.descriptors()));
        self.notify.check_room(kept, (&access, ready.fds.len()))?;
        if self.notify.is_active()
            && let Some(name) = self.stored_as(&ready.fds)
        {
            return Err(Error::StoredOnce { name: name.to_owned() });
        }
        let generation = self.table.next_generation();
        if let Err(error) = self.notify.store_all(name, generation, &access, &ready.info.roles, &ready.fds) {
            // What was stored before that: the next image of this name gets the same generation.
            self.notify.forget(name, generation, &[]);
            return Err(error);
        }
        crash_point("hold-stored");
        let old = self.table.put(name, Ready { access: Some(access), ..ready });
        if let Some(old) = &old {
            self.notify.forget(name, old.info.generation, &old.info.copies);
        }
        self.notify.forget_set_aside(Some(name));
        crash_point("hold-swapped");
        self.images_changed();
        let replaced = old.map(|old| old.info.generation);
        tracing::info!(name, generation, ?replaced, "held");
        Ok(())
    }

    /// Who may attach to what comes under a name: those who may attach to what it replaces, also where that one could
    /// not be looked at when the holder started.
    ///
    /// # Errors
    /// [`Error::OtherAccess`] when a load says otherwise.
    pub(crate) fn access_of(&self, name: &str, asked: Option<&Access>) -> Result<Access> {
        let now = self.table.get(name).map(|held| &held.access).or_else(|| self.notify.access_aside(name));
        match (now, asked) {
            (Some(now), Some(asked)) if !now.is_same(asked) => {
                Err(Error::OtherAccess { now: now.to_string() })
            }
            (Some(now), _) => Ok(now.clone()),
            (None, asked) => Ok(asked.cloned().unwrap_or_default()),
        }
    }

    /// The image under which a supervisor has one of these open files already, as far as can be told.
    fn stored_as(&self, fds: &[OwnedFd]) -> Option<&str> {
        let held = self.table.iter().find(|held| held.shares_open_file(fds));
        held.map(|held| held.info.name.as_str()).or_else(|| self.notify.set_aside_with(fds))
    }
}

/// Loads; a bug that ends the load by a panic does not end all loads after it. What the load has is given back when the
/// stack unwinds, and nothing else sees its state.
fn load_caught(
    source: OwnedFd,
    options: &LoadOptions,
    by: &By,
    budget: &Budget,
    watch: &Arc<Watch>,
) -> Result<Ready> {
    catch_unwind(AssertUnwindSafe(|| load(source, options, by, budget, watch)))
        .unwrap_or(Err(Error::Panicked))
}

/// What a client is told, for programs, when a load fails.
pub(crate) fn refusal_of(error: &Error) -> Refusal {
    match error {
        Error::Limit { .. } | Error::Store { .. } => Refusal::Limit,
        Error::Image(daxfs::Error::OtherContent { .. }) => Refusal::OtherContent,
        Error::ClientPacks => Refusal::ClientPacks,
        Error::NotSigned(_) => Refusal::NotSigned,
        Error::OtherAccess { .. } | Error::PathOnly | Error::SignedNotSealed | Error::Option { .. } => {
            Refusal::BadRequest
        }
        _ => Refusal::Failed,
    }
}
