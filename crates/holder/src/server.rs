//! The event loop: all connections in one thread, which never waits for any of them.
//!
//! Connections are served in `clients`, requests answered in `requests`, loads begun and ended in `loads`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use daxfs_protocol::wire::MESSAGE_MAX;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::access::Rights;
use crate::closer::Closer;
use crate::config::Config;
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::http;
use crate::inflight::InFlight;
use crate::limits::Budget;
use crate::loads::{Finished, Job, Running};
use crate::metrics::Metrics;
use crate::restore::restore_all;
use crate::socket::Listener;
use crate::systemd::{Notify, take_passed};
use crate::table::Table;
use crate::takeover::{TakenOver, Takeover, take_over};

/// How long connections are still served after everything was handed over or a stop was asked for.
const LINGER: Duration = Duration::from_millis(500);
/// How often progress is sent and time-outs are looked at.
const TICK: Duration = Duration::from_millis(200);
/// How often it is looked whether descriptors in flight were read while replies wait for that: the kernel tells nobody.
const PARKED_TICK: Duration = Duration::from_millis(10);
/// How long a port for metrics may stay taken by the holder that was replaced.
const METRICS_PATIENCE: Duration = Duration::from_secs(10);

const LISTENER: u64 = 0;
const WAKE: u64 = 1;
const SIGNALS: u64 = 2;
const FIRST_CONNECTION: u64 = 3;

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
    pub(crate) own_rights: Rights,
    pub(crate) queue: VecDeque<Job>,
    pub(crate) takeover: Option<Takeover>,
    pub(crate) running: Option<Running>,
    pub(crate) finished: (mpsc::Sender<Finished>, mpsc::Receiver<Finished>),
    pub(crate) connections: HashMap<u64, Connection>,
    /// Connections whose replies wait for descriptors in flight.
    pub(crate) parked: HashSet<u64>,
    pub(crate) in_flight: InFlight,
    pub(crate) descriptor_limit: usize,
    pub(crate) next_token: u64,
    pub(crate) epoll: Epoll,
    pub(crate) closer: Closer,
    pub(crate) wake: Arc<EventFd>,
    pub(crate) signals: SignalFd,
    pub(crate) accepting: bool,
    end: Option<(End, Instant)>,
}

impl Server {
    /// Starts: takes what systemd kept, or what a running holder hands over, or makes the socket. Nothing is answered
    /// before [`Server::run`]; clients that connect earlier wait.
    ///
    /// SIGTERM, SIGINT and SIGHUP are blocked in this thread, and in threads that it starts, and end the loop.
    ///
    /// # Errors
    /// [`Error::Running`] when another holder answers at the socket and `takeover` is false;
    /// [`Error::TakeoverOfPassed`] when it is true and systemd passed something to this process.
    pub fn start(config: Config, takeover: bool) -> Result<Self> {
        let passed = take_passed()?;
        // Nobody could be asked: at a passed socket a connect leads to this process, and stored images are others.
        if takeover && !passed.is_empty() {
            return Err(Error::TakeoverOfPassed);
        }
        let budget = Budget::new(config.max_bytes);
        let mut notify = Notify::from_environment()?;
        let mut table = Table::default();
        let descriptor_limit = raise_descriptor_limit();
        let listener = restore_all(passed, &mut table, &budget, &mut notify, &config)?;
        let failed = |what: &'static str| move |error| Error::system(what, error);
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGINT);
        // A terminal that closes ends what runs in it; it must not leave a socket at which nobody listens.
        mask.add(Signal::SIGHUP);
        mask.thread_block().map_err(failed("block signals"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(failed("signalfd"))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("epoll_create"))?;
        let wake =
            EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(failed("eventfd"))?;
        for (fd, token) in [(signals.as_fd(), SIGNALS), (wake.as_fd(), WAKE)] {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token)).map_err(failed("epoll_ctl"))?;
        }
        let metrics = Arc::new(Metrics::new(config.lost_log_lines.clone()));
        // Last: what fails after a takeover would lose what only this process has by then.
        let listener = if takeover {
            let TakenOver { listener, table: theirs } = take_over(&config, &budget, &signals)?;
            table = theirs;
            listener
        } else if let Some(listener) = listener {
            listener
        } else {
            Listener::bind(&config.socket, config.mode, config.group)?
        };
        if let Some(address) = config.metrics {
            // The old holder has the port until it ends.
            let patience = if takeover { METRICS_PATIENCE } else { Duration::ZERO };
            match http::serve(address, Arc::clone(&metrics), patience) {
                Ok(_) => {}
                // The old holder is gone: only this process has the images now.
                Err(error) if takeover => tracing::error!(%error, "no metrics are served"),
                Err(error) => return Err(error),
            }
        }
        let mut server = Self {
            config,
            listener,
            table,
            budget,
            metrics,
            notify,
            own_uid: nix::unistd::geteuid().as_raw(),
            own_rights: Rights::own(),
            queue: VecDeque::new(),
            takeover: None,
            running: None,
            finished: mpsc::channel(),
            connections: HashMap::new(),
            parked: HashSet::new(),
            in_flight: InFlight::new(descriptor_limit),
            descriptor_limit,
            next_token: FIRST_CONNECTION,
            epoll,
            closer: Closer::default(),
            wake: Arc::new(wake),
            signals,
            accepting: false,
            end: None,
        };
        if takeover && server.notify.is_active() {
            for (index, held) in server.table.iter().enumerate() {
                let mut before = server.table.iter().take(index);
                if let Some(other) = before.find(|other| other.shares_open_file(&held.fds)) {
                    let (name, other) = (&held.info.name, &other.info.name);
                    tracing::warn!(name, other, "the same open file: the supervisor keeps only the other");
                }
                let (name, generation) = (&held.info.name, held.info.generation);
                let roles = &held.info.roles;
                if let Err(error) = server.notify.store_all(name, generation, &held.access, roles, &held.fds)
                {
                    tracing::warn!(name, %error, "the supervisor does not store the image");
                }
                for (copy, fds) in held.copies() {
                    let stored = fds
                        .iter()
                        .try_for_each(|fd| server.notify.store_copy(name, generation, &copy, fd.as_fd()));
                    if let Err(error) = stored {
                        tracing::warn!(name, %error, "the supervisor does not store the copy on a device");
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

    /// Serves until SIGTERM, SIGINT, SIGHUP, a stop request, or a takeover.
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
        let (mut last_tick, mut last_parked) = (Instant::now(), Instant::now());
        loop {
            let wait = if self.parked.is_empty() { TICK } else { PARKED_TICK };
            let timeout = EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::ZERO);
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(Error::system("epoll_wait", error)),
            };
            for event in events.iter().take(count) {
                match event.data() {
                    LISTENER => self.accept(&mut buffer),
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
            if !self.parked.is_empty() && last_parked.elapsed() >= PARKED_TICK / 2 {
                last_parked = Instant::now();
                self.serve_parked();
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
        if let Some(running) = &self.running {
            running.watch.cancel.store(true, Ordering::Relaxed);
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
    pub(crate) fn images_changed(&mut self) {
        self.metrics.set_images(&self.table);
        if let Err(error) = self.notify.status(&self.status()) {
            tracing::warn!(%error, "the supervisor does not take the status");
        }
        self.tell_watching();
    }

    /// True once it was told to end, by a signal or a request.
    pub fn is_stopping(&self) -> bool {
        self.end.is_some()
    }

    pub(crate) fn begin_stop(&mut self) {
        self.begin_end(End::Stop);
    }

    pub(crate) fn begin_handed_over(&mut self) {
        self.begin_end(End::HandedOver);
    }

    fn begin_end(&mut self, end: End) {
        self.pause_accepting();
        self.close_watching();
        match &mut self.end {
            // A process that has everything needs the socket file, even if this one was asked to stop meanwhile.
            Some((how, _)) if end == End::HandedOver => *how = end,
            Some(_) => {}
            None => self.end = Some((end, Instant::now())),
        }
    }

    pub(crate) fn pause_accepting(&mut self) {
        if self.accepting {
            self.set_accepting(false);
            // It was added, so it can be taken out.
            let _ = self.epoll.delete(&self.listener.fd);
        }
    }

    pub(crate) fn resume_accepting(&mut self) {
        if !self.accepting && !self.is_stopping() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
            match self.epoll.add(&self.listener.fd, event) {
                Ok(()) => self.set_accepting(true),
                Err(error) => tracing::error!(%error, "cannot watch the listening socket; trying again"),
            }
        }
    }

    /// The question whether the holder is ready is whether it answers those who connect now.
    fn set_accepting(&mut self, accepting: bool) {
        self.accepting = accepting;
        self.metrics.ready.store(accepting, Ordering::Relaxed);
    }

    fn tick(&mut self) {
        self.close_silent();
        self.send_progress();
        self.check_takeover(None);
        if !self.is_handing_over() {
            self.resume_accepting();
        }
    }
}

/// Each connection takes a descriptor, so the soft limit is raised to the hard one. Returns what it is then.
fn raise_descriptor_limit() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            soft
        }
    };
    usize::try_from(limit).unwrap_or(usize::MAX)
}
