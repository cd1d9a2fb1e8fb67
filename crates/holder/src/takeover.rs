//! Replacing a running holder by a new process, without a moment in which nobody holds the images or the socket.
//!
//! The new process asks; the old one stops accepting and controlling (but goes on answering attaches on connections
//! that it has), sends every image with its descriptors, its copies on devices behind it, and at last the listening
//! socket, and waits. When the new one says that it has everything, the old one answers, serves what is left on its
//! connections, and ends without removing the socket. Loads that go on are waited for first; meanwhile the new process
//! is sent their progress, and no other load is begun. Clients that connect in between wait in the socket's backlog and
//! are served by the new one. If the new process dies before it says so, the old one goes on as if nothing had been.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daxfs_protocol::Connection as Client;
use daxfs_protocol::message::{Refusal, Reply, Request};
use nix::sys::signalfd::SignalFd;

use crate::access::Access;
use crate::config::Config;
use crate::connection::Connection;
use crate::crash::crash_point;
use crate::error::{Error, Result};
use crate::limits::Budget;
use crate::server::Server;
use crate::signed;
use crate::socket::Listener;
use crate::table::{Ready, Table};

/// How long the new process may take to say that it has everything, once it is sent the first image.
const PATIENCE: Duration = Duration::from_secs(10);

/// A takeover that is going on.
#[derive(Debug)]
pub(crate) struct Takeover {
    pub(crate) token: u64,
    /// Until when it must be done; `None` while it waits for loads to end.
    deadline: Option<Instant>,
    /// Name of the last image that was sent.
    sent: String,
    /// How many of its copies on devices were sent.
    copies_sent: usize,
    /// Whether the socket was sent, which comes last.
    complete: bool,
}

impl Server {
    pub(crate) fn begin_takeover(
        &mut self,
        token: u64,
        connection: &mut Connection,
    ) -> std::result::Result<Option<Reply>, (Refusal, String)> {
        if ![0, self.own_uid].contains(&connection.peer.uid) {
            return Err((Refusal::NotAllowed, "only root and the holder's own user may take it over".into()));
        }
        if self.takeover.is_some() || self.is_stopping() {
            return Err((Refusal::Busy, "the holder is being replaced or is ending".into()));
        }
        let (peer, waits) = (connection.peer, self.is_loading());
        tracing::info!(peer.pid, peer.uid, waits, "takeover asked for");
        self.takeover =
            Some(Takeover { token, deadline: None, sent: String::new(), copies_sent: 0, complete: false });
        if !waits {
            self.hand_over(token, connection);
        }
        Ok(None)
    }

    /// Begins what waited for the last load to end.
    pub(crate) fn begin_waiting_takeover(&mut self) {
        let Some(Takeover { token, deadline: None, .. }) = self.takeover else { return };
        if self.is_loading() || self.is_stopping() {
            return;
        }
        if let Some(mut connection) = self.connections.remove(&token) {
            self.hand_over(token, &mut connection);
            let alive = self.flush_takeover(token, &mut connection);
            self.put_back(token, connection, alive);
        }
    }

    /// Sends the first message of a takeover; the others follow when there is room.
    fn hand_over(&mut self, token: u64, connection: &mut Connection) {
        self.pause_accepting();
        if let Some(takeover) = &mut self.takeover {
            takeover.deadline = Some(Instant::now() + PATIENCE);
        }
        self.continue_takeover(token, connection);
    }

    /// True from the first image that is sent until the new process has everything or is given up.
    pub(crate) fn is_handing_over(&self) -> bool {
        self.takeover.as_ref().is_some_and(|takeover| takeover.deadline.is_some())
    }

    /// Queues the next message of a takeover, if this connection has one and nothing waits in it.
    fn continue_takeover(&mut self, token: u64, connection: &mut Connection) {
        let next_generation = self.table.next_generation();
        let Some(takeover) = self.takeover.as_mut().filter(|takeover| takeover.token == token) else {
            return;
        };
        if takeover.complete || takeover.deadline.is_none() || connection.is_blocked() {
            return;
        }
        // Nothing is kept, dropped or loaded meanwhile.
        let copy = self.table.get(&takeover.sent).and_then(|held| held.copies().nth(takeover.copies_sent));
        if let Some((copy, fd)) = copy {
            takeover.copies_sent += 1;
            connection.reply(&Reply::HandoverCopy(copy), Arc::clone(fd));
            crash_point("takeover-copy");
            return;
        }
        let next = self.table.after(&takeover.sent).next();
        if let Some(held) = next {
            takeover.copies_sent = 0;
            takeover.sent = held.info.name.clone();
            let Access { uids, gids, .. } = held.access.clone();
            connection.reply(&Reply::Handover { info: held.info.clone(), uids, gids }, Arc::clone(&held.fds));
            crash_point("takeover-image");
            return;
        }
        match self.listener.fd.try_clone() {
            Ok(socket) => {
                takeover.complete = true;
                let supervised = self.listener.is_foreign() || self.notify.is_active();
                connection.reply(&Reply::Socket { next_generation, supervised }, Arc::new([socket]));
                crash_point("takeover-socket");
            }
            Err(error) => {
                let text = format!("duplicate the socket: {error}");
                connection.reply(&Reply::Error { refusal: Refusal::Failed, text }, Arc::new([]));
                self.abandon_takeover("the socket could not be duplicated");
            }
        }
    }

    /// Sends what waits in a connection, and, if it is the new process', all that follows as long as there is room.
    /// Returns false when the connection is broken.
    pub(crate) fn flush_takeover(&mut self, token: u64, connection: &mut Connection) -> bool {
        let mut alive = self.flush(connection);
        while alive && !connection.is_blocked() && self.has_more_to_hand_over(token) {
            self.continue_takeover(token, connection);
            alive = self.flush(connection);
        }
        alive
    }

    /// True while the new process waits for more.
    fn has_more_to_hand_over(&self, token: u64) -> bool {
        self.is_handing_over()
            && self.takeover.as_ref().is_some_and(|takeover| takeover.token == token && !takeover.complete)
    }

    pub(crate) fn end_takeover(
        &mut self,
        token: u64,
    ) -> std::result::Result<Option<Reply>, (Refusal, String)> {
        match &self.takeover {
            Some(takeover) if takeover.token == token && takeover.complete => {
                tracing::info!("taken over; ending");
                crash_point("takeover-done");
                self.begin_handed_over();
                Ok(Some(Reply::Ok))
            }
            _ => Err((Refusal::BadRequest, "no takeover is complete on this connection".into())),
        }
    }

    /// Goes on holding when the new process is gone or too slow.
    pub(crate) fn check_takeover(&mut self, closed: Option<u64>) {
        let Some(takeover) = &self.takeover else { return };
        if self.is_stopping() {
            return;
        }
        if closed == Some(takeover.token) {
            self.abandon_takeover("the new holder went away");
        } else if takeover.deadline.is_some_and(|deadline| Instant::now() > deadline) {
            self.abandon_takeover("the new holder did not answer in time");
        }
    }

    fn abandon_takeover(&mut self, why: &str) {
        tracing::warn!(why, "takeover abandoned; this holder goes on");
        self.takeover = None;
        self.resume_accepting();
    }
}

/// What a new process has after a takeover.
#[derive(Debug)]
pub(crate) struct TakenOver {
    pub listener: Listener,
    pub table: Table,
}

/// Takes everything over from the holder at `socket`. While it waits for loads of the old holder it can be ended by
/// `signals`.
///
/// # Errors
/// [`Error::Takeover`], [`Error::Interrupted`], [`Error::Supervised`] and [`Error::TakesUnsigned`]; the old holder then
/// goes on.
pub(crate) fn take_over(config: &Config, budget: &Budget, signals: &SignalFd) -> Result<TakenOver> {
    let socket = config.socket.as_path();
    let mut client = Client::open(socket).map_err(Error::Takeover)?;
    client.set_timeout(PATIENCE).map_err(Error::Takeover)?;
    let mut table = Table::default();
    let mut waited = false;
    let mut last = String::new();
    let mut received = client.request(&Request::Takeover, &[]);
    let listener = loop {
        match received.map_err(Error::Takeover)? {
            (Reply::Handover { mut info, uids, gids }, mut fds) => {
                tracing::info!(name = info.name, generation = info.generation, "image received");
                let signature = signed::keep_signature(&mut info, &mut fds);
                signed::check(config.require_signed.as_ref(), &info, signature.as_deref()).map_err(
                    |error| Error::TakesUnsigned { name: info.name.clone(), source: Box::new(error) },
                )?;
                let reservation = budget.adopt(info.size);
                last.clone_from(&info.name);
                let access = Some(Access::new(uids, gids));
                table.adopt(Ready { info, fds, access, reservation });
                crash_point("takeover-received");
            }
            // No signature says what lies on a device.
            (Reply::HandoverCopy(copy), _) if config.require_signed.is_some() => {
                tracing::warn!(
                    name = last,
                    size = copy.size,
                    "copy on a device left out: nobody has signed it"
                );
            }
            (Reply::HandoverCopy(copy), fds) => {
                tracing::info!(name = last, size = copy.size, "copy on a device received");
                table.keep(&last, copy, fds.into());
            }
            (Reply::Progress { .. }, _) => {
                if let Ok(Some(_)) = signals.read_signal() {
                    return Err(Error::Interrupted);
                }
                if !waited {
                    tracing::info!("the old holder loads an image; waiting for it");
                    waited = true;
                }
            }
            // When the old one has ended, the supervisor would start another holder at its socket, and go on keeping
            // images that nobody can make it drop.
            (Reply::Socket { supervised: true, .. }, _) => {
                return Err(Error::Supervised { socket: socket.to_owned() });
            }
            (Reply::Socket { next_generation, .. }, mut fds) => {
                table.continue_at(next_generation);
                break fds.pop();
            }
            (reply, _) => {
                tracing::warn!(?reply, "unexpected reply in a takeover");
                break None;
            }
        }
        received = client.receive();
    };
    let unexpected = || {
        Error::Takeover(daxfs_protocol::HolderError::Protocol {
            socket: socket.to_owned(),
            source: daxfs_protocol::wire::WireError::Field {
                field: "reply",
                what: "not a part of a takeover",
            },
        })
    };
    let listener = Listener::over(listener.ok_or_else(unexpected)?, socket)?;
    crash_point("takeover-before-done");
    match client.request(&Request::TakeoverDone, &[]) {
        Ok((Reply::Ok, _)) => {}
        Ok(_) => return Err(unexpected()),
        // It keeps this connection as long as it lives, so it was killed, and only this process has the images now. An
        // end that it was asked for is another matter: then the socket file is gone, too.
        Err(error) if error.is_disconnect() && listener.is_in_place() => {
            tracing::warn!(%error, "the old holder died in the takeover; this one has everything");
        }
        Err(error) => return Err(Error::Takeover(error)),
    }
    // From here on clients are told of this process.
    if let Err(error) = listener.claim() {
        tracing::warn!(%error, "clients are told of the process that made the socket");
    }
    crash_point("takeover-after-done");
    Ok(TakenOver { listener, table })
}
