//! The event loop: all connections in one thread, which never waits for any of them.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use daxfs::holder::message::{Refusal, Reply, Request};
use daxfs::holder::wire::MESSAGE_MAX;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::config::Config;
use crate::connection::{Connection, Received};
use crate::crash::crash_point;
use crate::error::{Error, Result};
use crate::http;
use crate::limits::Budget;
use crate::load::{LoadOptions, Watch, load};
use crate::metrics::Metrics;
use crate::requests::taken;
use crate::restore::{forget, restore_all};
use crate::socket::Listener;
use crate::systemd::{Notify, take_passed};
use crate::table::{Ready, Table};
use crate::takeover::{TakenOver, Takeover, take_over};

/// A connection that does nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// How long connections are still served after everything was handed over or a stop was asked for.
const LINGER: Duration = Duration::from_millis(500);
/// How often progress is sent and time-outs are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Messages read from one connection before the others have their turn.
const BURST: usize = 16;
/// How long a port for metrics may stay taken by the holder that was replaced.
const METRICS_PATIENCE: Duration = Duration::from_secs(10);

const LISTENER: u64 = 0;
const WAKE: u64 = 1;
const SIGNALS: u64 = 2;
const FIRST_CONNECTION: u64 = 3;

/// A load that waits or runs.
#[derive(Debug)]
pub(crate) struct Job {
    pub token: u64,
    pub name: String,
    pub replace: bool,
    pub options: LoadOptions,
    pub source: OwnedFd,
    pub watch: Arc<Watch>,
}

/// A load that has ended.
#[derive(Debug)]
struct Finished {
    token: u64,
    name: String,
    replace: bool,
    result: Result<Ready>,
}

/// How the holder ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Asked to; the socket goes.
    Stop,
    /// Another process has everything; the socket stays.
    HandedOver,
}

/// The holder.
#[derive(Debug)]
pub struct Server {
    pub(crate) config: Config,
    pub(crate) listener: Listener,
    pub(crate) table: Table,
    pub(crate) budget: Budget,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) notify: Notify,
    pub(crate) own_uid: u32,
    pub(crate) queue: VecDeque<Job>,
    pub(crate) takeover: Option<Takeover>,
    running: Option<(u64, Arc<Watch>)>,
    finished: (mpsc::Sender<Finished>, mpsc::Receiver<Finished>),
    connections: HashMap<u64, Connection>,
    next_token: u64,
    epoll: Epoll,
    wake: Arc<EventFd>,
    signals: SignalFd,
    accepting: bool,
    end: Option<(End, Instant)>,
}

impl Server {
    /// Starts: takes what systemd kept, or what a running holder hands over, or makes the socket. Nothing is answered
    /// before [`Server::run`]; clients that connect earlier wait.
    ///
    /// SIGTERM and SIGINT are blocked in this thread, and in threads that it starts, and end the loop.
    ///
    /// # Errors
    /// [`Error::Running`] when another holder answers at the socket and `takeover` is false.
    pub fn start(config: Config, takeover: bool) -> Result<Self> {
        let passed = take_passed()?;
        let budget = Budget::new(config.max_bytes);
        let notify = Notify::from_environment()?;
        let mut table = Table::default();
        let listener = restore_all(passed, &mut table, &budget, &notify, &config.socket)?;
        let failed = |what: &'static str| move |error| Error::system(what, error);
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGINT);
        mask.thread_block().map_err(failed("block signals"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(failed("signalfd"))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("epoll_create"))?;
        let wake =
            EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(failed("eventfd"))?;
        for (fd, token) in [(signals.as_fd(), SIGNALS), (wake.as_fd(), WAKE)] {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token)).map_err(failed("epoll_ctl"))?;
        }
        let metrics = Arc::new(Metrics::new());
        raise_descriptor_limit();
        // Last: what fails after a takeover would lose what only this process has by then.
        let listener = if takeover {
            let TakenOver { listener, table: theirs } = take_over(&config.socket, &budget)?;
            table = theirs;
            listener
        } else {
            match listener {
                Some(listener) => listener,
                None => Listener::bind(&config.socket, config.mode, config.group)?,
            }
        };
        if let Some(address) = config.metrics {
            // The old holder has the port until it ends.
            let patience = if takeover { METRICS_PATIENCE } else { Duration::ZERO };
            http::serve(address, Arc::clone(&metrics), patience)?;
        }
        let server = Self {
            config,
            listener,
            table,
            budget,
            metrics,
            notify,
            own_uid: nix::unistd::geteuid().as_raw(),
            queue: VecDeque::new(),
            takeover: None,
            running: None,
            finished: mpsc::channel(),
            connections: HashMap::new(),
            next_token: FIRST_CONNECTION,
            epoll,
            wake: Arc::new(wake),
            signals,
            accepting: false,
            end: None,
        };
        if takeover && server.notify.is_active() {
            for held in server.table.iter() {
                for fd in held.fds.iter() {
                    let (name, generation) = (&held.info.name, held.info.generation);
                    if let Err(error) = server.notify.store(name, generation, &held.access, fd.as_fd()) {
                        tracing::warn!(name, %error, "the supervisor does not store the image");
                    }
                }
            }
        }
        server.images_changed();
        Ok(server)
    }

    /// True when it holds an image of that name: from a supervisor, from a takeover, or loaded.
    pub fn has(&self, name: &str) -> bool {
        self.table.get(name).is_some()
    }

    /// True while it holds no image.
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// Ends before it has served: the socket goes.
    pub fn cancel(self) {
        self.listener.remove();
    }

    /// Loads an image before the loop runs. `progress` is called now and then with bytes done and in all.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Cancelled`] after SIGTERM or SIGINT.
    pub fn load_now(
        &mut self,
        name: &str,
        source: OwnedFd,
        options: &[String],
        mut progress: impl FnMut(u64, u64),
    ) -> Result<()> {
        let options = LoadOptions::parse(options, &self.config)?;
        let watch = Arc::new(Watch::default());
        let ready = std::thread::scope(|scope| {
            let worker = scope.spawn(|| load(source, &options, &self.budget, &watch));
            while !worker.is_finished() {
                std::thread::sleep(Duration::from_millis(20));
                progress(watch.done.load(Ordering::Relaxed), watch.total.load(Ordering::Relaxed));
                if let Ok(Some(_)) = self.signals.read_signal() {
                    watch.cancel.store(true, Ordering::Relaxed);
                }
            }
            worker.join().unwrap_or(Err(Error::Cancelled))
        })?;
        self.hold(name, ready)
    }

    /// Serves until SIGTERM, SIGINT, a stop request, or a takeover.
    ///
    /// # Errors
    /// [`Error`] when the loop itself fails; single connections and loads never end it.
    pub fn run(mut self) -> Result<()> {
        self.resume_accepting();
        if let Err(error) = self.notify.ready(&self.status()) {
            tracing::warn!(%error, "the supervisor cannot be told that this holder is ready");
        }
        tracing::info!(socket = %self.config.socket.display(), images = self.table.len(), "serving");
        let mut events = [EpollEvent::empty(); 64];
        let mut buffer = vec![0; MESSAGE_MAX];
        let mut last_tick = Instant::now();
        loop {
            let timeout = EpollTimeout::try_from(TICK).unwrap_or(EpollTimeout::ZERO);
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(Error::system("epoll_wait", error)),
            };
            for event in events.iter().take(count) {
                match event.data() {
                    LISTENER => self.accept(),
                    WAKE => {
                        // Only the fact counts, not how often.
                        let _ = self.wake.read();
                    }
                    SIGNALS => {
                        while let Ok(Some(signal)) = self.signals.read_signal() {
                            tracing::info!(signal = signal.ssi_signo, "ending");
                            self.begin_stop();
                        }
                    }
                    token => self.serve(token, event.events(), &mut buffer),
                }
            }
            while let Ok(finished) = self.finished.1.try_recv() {
                self.finish_load(finished);
            }
            if last_tick.elapsed() >= TICK {
                last_tick = Instant::now();
                self.tick();
            }
            if let Some((end, since)) = self.end
                && (self.connections.is_empty() || since.elapsed() > LINGER)
            {
                return self.shut_down(end);
            }
        }
    }

    fn shut_down(self, end: End) -> Result<()> {
        if let Some((_, watch)) = &self.running {
            watch.cancel.store(true, Ordering::Relaxed);
        }
        if end == End::Stop {
            self.notify.stopping()?;
            self.listener.remove();
        }
        Ok(())
    }

    fn status(&self) -> String {
        format!("{} images, {} bytes", self.table.len(), self.budget.taken())
    }

    /// Tells metrics and supervisor what is held now.
    pub(crate) fn images_changed(&self) {
        self.metrics.set_images(&self.table);
        if let Err(error) = self.notify.status(&self.status()) {
            tracing::warn!(%error, "the supervisor does not take the status");
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.end.is_some()
    }

    pub(crate) fn is_loading(&self) -> bool {
        self.running.is_some() || !self.queue.is_empty()
    }

    pub(crate) fn begin_stop(&mut self) {
        self.begin_end(End::Stop);
    }

    pub(crate) fn begin_handed_over(&mut self) {
        self.begin_end(End::HandedOver);
    }

    fn begin_end(&mut self, end: End) {
        self.pause_accepting();
        match &mut self.end {
            // A process that has everything needs the socket file, even if this one was asked to stop meanwhile.
            Some((how, _)) if end == End::HandedOver => *how = end,
            Some(_) => {}
            None => self.end = Some((end, Instant::now())),
        }
    }

    pub(crate) fn pause_accepting(&mut self) {
        if self.accepting {
            self.accepting = false;
            // It was added, so it can be taken out.
            let _ = self.epoll.delete(&self.listener.fd);
        }
    }

    pub(crate) fn resume_accepting(&mut self) {
        if !self.accepting && !self.is_stopping() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
            match self.epoll.add(&self.listener.fd, event) {
                Ok(()) => self.accepting = true,
                Err(error) => tracing::error!(%error, "cannot watch the listening socket; trying again"),
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..self.config.max_connections {
            if self.connections.len() >= self.config.max_connections {
                self.close_longest_idle();
            }
            match dmabuf::accept_seqpacket(self.listener.fd.as_fd()) {
                Ok(Some(socket)) => self.add_connection(socket),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    // Too many descriptors: make room, and look again at the next tick.
                    self.close_longest_idle();
                    self.pause_accepting();
                    return;
                }
            }
        }
    }

    fn add_connection(&mut self, socket: OwnedFd) {
        let Ok(peer) = dmabuf::peer(socket.as_fd()) else { return };
        let token = self.next_token;
        self.next_token += 1;
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, token);
        if let Err(error) = self.epoll.add(&socket, event) {
            tracing::warn!(%error, "cannot watch a connection");
            return;
        }
        self.connections.insert(token, Connection::new(socket, peer));
        self.metrics.connections.store(self.connections.len() as u64, Ordering::Relaxed);
    }

    /// Makes room for others: of the user with the most connections, the one that was silent the longest goes.
    fn close_longest_idle(&mut self) {
        let handing_over = self.takeover.as_ref().map(|takeover| takeover.token);
        let mut of_user: HashMap<u32, (usize, Option<(Instant, u64)>)> = HashMap::new();
        for (token, connection) in &self.connections {
            let (count, longest) = of_user.entry(connection.peer.uid).or_default();
            *count += 1;
            let silent = (connection.active, *token);
            if connection.is_idle()
                && handing_over != Some(*token)
                && longest.is_none_or(|known| silent < known)
            {
                *longest = Some(silent);
            }
        }
        let most = of_user.values().filter_map(|(count, longest)| Some((*count, (*longest)?)));
        if let Some((_, (_, token))) = most.max_by_key(|(count, _)| *count) {
            self.close(token);
        }
    }

    fn close(&mut self, token: u64) {
        if let Some(connection) = self.connections.remove(&token) {
            // Closing the last descriptor would take it out, too.
            let _ = self.epoll.delete(connection.socket());
            drop(connection);
            self.metrics.connections.store(self.connections.len() as u64, Ordering::Relaxed);
            self.check_takeover(Some(token));
        }
    }

    /// Sends what waits and reads what came, in turns with the others.
    fn serve(&mut self, token: u64, events: EpollFlags, buffer: &mut [u8]) {
        let Some(mut connection) = self.connections.remove(&token) else { return };
        let mut alive = connection.flush() && !events.intersects(EpollFlags::EPOLLERR);
        self.continue_takeover(token, &mut connection);
        for _ in 0..BURST {
            if !alive || connection.is_blocked() || connection.load.is_some() || connection.ending {
                break;
            }
            match connection.receive(buffer) {
                Received::Nothing => break,
                Received::Closed => alive = false,
                Received::Message(len, fds) => {
                    let message = buffer.get(..len).unwrap_or_default();
                    match Request::decode(message, fds.len()) {
                        Ok(request) => self.answer(token, &mut connection, request, fds),
                        Err(error) => {
                            self.metrics.refusals.fetch_add(1, Ordering::Relaxed);
                            let text = error.to_string();
                            tracing::info!(peer.pid = connection.peer.pid, text, "bad request");
                            let reply = Reply::Error { refusal: Refusal::BadRequest, text };
                            connection.reply(&reply, Arc::new([]));
                            connection.ending = true;
                        }
                    }
                    alive = connection.flush();
                    while alive && !connection.is_blocked() && self.has_more_to_hand_over(token) {
                        self.continue_takeover(token, &mut connection);
                        alive = connection.flush();
                    }
                }
            }
        }
        // While a load runs nothing is read, so only the hang-up tells that its client is gone.
        alive &= !events.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP) || connection.is_blocked();
        alive &= !connection.ending || connection.is_blocked();
        self.put_back(token, connection, alive);
    }

    fn put_back(&mut self, token: u64, connection: Connection, alive: bool) {
        // A client that has closed its sending half but does not read what waits for it would wake the loop for ever,
        // so its hang-up is not looked at then; that it is gone altogether is always told.
        let interest = if connection.is_blocked() {
            EpollFlags::EPOLLOUT
        } else if connection.load.is_none() {
            EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP
        } else {
            EpollFlags::EPOLLRDHUP
        };
        let watched = self.epoll.modify(connection.socket(), &mut EpollEvent::new(interest, token)).is_ok();
        self.connections.insert(token, connection);
        if !alive || !watched {
            self.close(token);
        }
    }

    fn tick(&mut self) {
        let silent: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.is_idle() && connection.active.elapsed() > IDLE)
            .map(|(token, _)| *token)
            .collect();
        for token in silent {
            self.close(token);
        }
        if let Some((token, watch)) = &self.running {
            let (token, watch) = (*token, Arc::clone(watch));
            if let Some(mut connection) = self.connections.remove(&token) {
                let (done, total) = (&watch.done, &watch.total);
                connection.progress(done.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
                let alive = connection.flush();
                self.put_back(token, connection, alive);
            }
        }
        self.check_takeover(None);
        if self.takeover.is_none() {
            self.resume_accepting();
        }
    }

    /// Starts the next load that somebody still waits for, unless one runs.
    pub(crate) fn start_next_load(&mut self) {
        while self.running.is_none() {
            let Some(job) = self.queue.pop_front() else { return };
            if job.watch.cancel.load(Ordering::Relaxed) {
                continue;
            }
            self.running = Some((job.token, Arc::clone(&job.watch)));
            let (budget, sender, wake) =
                (self.budget.clone(), self.finished.0.clone(), Arc::clone(&self.wake));
            let (token, name, replace) = (job.token, job.name.clone(), job.replace);
            let failed = (name.clone(), sender.clone());
            let spawned = std::thread::Builder::new().name("load".into()).spawn(move || {
                let result = load(job.source, &job.options, &budget, &job.watch);
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

    fn finish_load(&mut self, finished: Finished) {
        let Finished { token, name, replace, result } = finished;
        self.running = None;
        let waits = self.connections.contains_key(&token);
        let outcome = match result {
            Ok(_) if !waits => Err((Refusal::Failed, Error::Cancelled.to_string())),
            Ok(_) if self.is_stopping() => Err((Refusal::Busy, "the holder is ending".to_owned())),
            Ok(ready) => match self.table.check_free(&name, replace) {
                Ok(()) => self.hold(&name, ready).map_err(|error| (Refusal::Failed, error.to_string())),
                Err(refusal) => Err((refusal, taken(&name))),
            },
            Err(error @ Error::Limit { .. }) => Err((Refusal::Limit, error.to_string())),
            Err(error) => Err((Refusal::Failed, error.to_string())),
        };
        let reply = match (outcome, self.table.get(&name)) {
            (Ok(()), Some(held)) => {
                self.metrics.loads.fetch_add(1, Ordering::Relaxed);
                Reply::Loaded(held.info.clone())
            }
            (Ok(()), None) => Reply::Ok,
            (Err((refusal, text)), _) => {
                self.metrics.failed_loads.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(name, text, "load failed");
                Reply::Error { refusal, text }
            }
        };
        if let Some(mut connection) = self.connections.remove(&token) {
            connection.load = None;
            connection.reply(&reply, Arc::new([]));
            let alive = connection.flush();
            self.put_back(token, connection, alive);
        }
        self.start_next_load();
    }

    /// Puts an image under its name. A supervisor has it before anybody is told.
    fn hold(&mut self, name: &str, ready: Ready) -> Result<()> {
        crash_point("hold-begin");
        let generation = self.table.next_generation();
        for fd in &ready.fds {
            self.notify.store(name, generation, &ready.access, fd.as_fd())?;
        }
        crash_point("hold-stored");
        let old = self.table.put(name, ready);
        if let Some(old) = &old {
            forget(&self.notify, name, old.info.generation);
        }
        crash_point("hold-swapped");
        self.images_changed();
        let replaced = old.map(|old| old.info.generation);
        tracing::info!(name, generation, ?replaced, "held");
        Ok(())
    }
}

/// Each connection takes a descriptor, so the soft limit is raised to the hard one.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
