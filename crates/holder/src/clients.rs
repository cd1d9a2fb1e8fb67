//! The connections of the event loop: accepting, serving in turns, and closing.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use daxfs_protocol::message::{Refusal, Reply, Request};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::access::may_control;
use crate::connection::{Connection, Received};
use crate::requests::no_control;
use crate::server::Server;

/// A connection that does nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// Messages read from one connection before the others have their turn.
const BURST: usize = 16;
/// Descriptors that are kept free of connections: for sources, loads, helpers, metrics.
const RESERVED: usize = 64;
/// So many clients are served however few descriptors there are.
const CONNECTIONS_MIN: usize = 8;
/// Connections that are closed at once when there are too few descriptors after all.
const MAKE_ROOM: usize = 16;
/// How long a client may leave descriptors unread while others wait for that.
const UNREAD_PATIENCE: Duration = Duration::from_secs(6);
/// What a connection is watched for that nothing waits in.
const READING: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP);

impl Server {
    pub(crate) fn accept(&mut self, buffer: &mut [u8]) {
        let most = self.connections_max();
        let mut short = 0;
        for _ in 0..self.config.max_connections {
            // What the last one asked for may have ended this: a stop, a takeover.
            if !self.accepting {
                return;
            }
            if self.connections.len() >= most {
                self.close_longest_idle();
            }
            match dmabuf::accept_seqpacket(self.listener.fd.as_fd()) {
                Ok(Some(socket)) => self.add_connection(socket, buffer),
                Ok(None) => return,
                // Too many descriptors, of loads and images for one: make room, and look again.
                Err(_) if short < MAKE_ROOM => {
                    short += 1;
                    self.close_longest_idle();
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept; trying again");
                    self.pause_accepting();
                    return;
                }
            }
        }
    }

    /// Most connections now: they take descriptors of which images, and what else is at work, need some.
    fn connections_max(&self) -> usize {
        let free = self.descriptor_limit.saturating_sub(self.table.descriptors() + RESERVED);
        self.config.max_connections.min(free).max(CONNECTIONS_MIN)
    }

    /// Sends what waits for descriptors in flight to be read. A client that does not read them while others of its user, or
    /// all others, wait for that is cut off in the end.
    pub(crate) fn serve_parked(&mut self) {
        for connection in self.connections.values_mut() {
            connection.look_for_read(&mut self.in_flight);
        }
        let parked: Vec<u64> = self.parked.iter().copied().collect();
        let mut waiting = HashSet::new();
        for token in parked {
            let Some(mut connection) = self.connections.remove(&token) else { continue };
            let alive = self.flush_takeover(token, &mut connection);
            if connection.parked {
                waiting.insert(connection.peer.uid);
            }
            self.put_back(token, connection, alive);
        }
        if waiting.is_empty() {
            return;
        }
        let full = self.in_flight.is_full();
        let unread = self.connections.iter().filter(|(_, connection)| {
            connection.unread_for().is_some_and(|time| time > UNREAD_PATIENCE)
                && (full || waiting.contains(&connection.peer.uid))
        });
        for token in unread.map(|(token, _)| *token).collect::<Vec<_>>() {
            tracing::info!("closing a connection that does not read while others wait");
            self.close(token);
        }
    }

    fn add_connection(&mut self, socket: OwnedFd, buffer: &mut [u8]) {
        let Ok(peer) = dmabuf::peer(socket.as_fd()) else { return };
        let token = self.next_token;
        self.next_token += 1;
        if let Err(error) = self.epoll.add(&socket, EpollEvent::new(READING, token)) {
            tracing::warn!(%error, "cannot watch a connection");
            return;
        }
        let takes_fds = may_control(peer, self.own_uid, &self.config.control);
        self.connections.insert(token, Connection::new(socket, peer, takes_fds, READING));
        self.metrics.connections.store(self.connections.len() as u64, Ordering::Relaxed);
        // Most clients have sent their request by now.
        self.serve(token, EpollFlags::empty(), buffer);
    }

    /// Makes room for others: of the user with the most connections, the one that was silent the longest goes.
    fn close_longest_idle(&mut self) {
        let handing_over = self.takeover.as_ref().map(|takeover| takeover.token);
        let mut of_user: HashMap<u32, (usize, Option<(Instant, u64)>)> = HashMap::new();
        for (token, connection) in &self.connections {
            let (count, longest) = of_user.entry(connection.peer.uid).or_default();
            *count += 1;
            let silent = (connection.active, *token);
            if !connection.is_loading()
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
        if let Some(mut connection) = self.connections.remove(&token) {
            self.parked.remove(&token);
            connection.give_up_unread(&mut self.in_flight);
            // Closing the last descriptor would take it out, too.
            let _ = self.epoll.delete(connection.socket());
            drop(connection);
            self.metrics.connections.store(self.connections.len() as u64, Ordering::Relaxed);
            self.check_takeover(Some(token));
        }
    }

    /// Sends what waits and reads what came, in turns with the others.
    pub(crate) fn serve(&mut self, token: u64, events: EpollFlags, buffer: &mut [u8]) {
        let Some(mut connection) = self.connections.remove(&token) else { return };
        let mut alive =
            self.flush_takeover(token, &mut connection) && !events.intersects(EpollFlags::EPOLLERR);
        for _ in 0..BURST {
            if !alive || connection.is_blocked() || !connection.is_idle() || connection.ending {
                break;
            }
            match connection.receive(buffer) {
                Received::Nothing => break,
                Received::Closed => alive = false,
                Received::Dropped => {
                    let refusal = Refusal::NotAllowed;
                    self.metrics.refuse(refusal);
                    let (peer, text) = (connection.peer, no_control(connection.peer));
                    tracing::info!(peer.pid, peer.uid, peer.gid, text, "sends descriptors");
                    connection.reply(&Reply::Error { refusal, text }, Arc::new([]));
                    connection.ending = true;
                    alive = self.flush_takeover(token, &mut connection);
                }
                Received::Message(len, fds) => {
                    let message = buffer.get(..len).unwrap_or_default();
                    match Request::decode(message, fds.len()) {
                        Ok(request) => self.answer(token, &mut connection, request, fds),
                        Err(error) => {
                            self.closer.close(fds);
                            self.metrics.refuse(Refusal::BadRequest);
                            let text = error.to_string();
                            tracing::info!(peer.pid = connection.peer.pid, text, "bad request");
                            let reply = Reply::Error { refusal: Refusal::BadRequest, text };
                            connection.reply(&reply, Arc::new([]));
                            connection.ending = true;
                        }
                    }
                    alive = self.flush_takeover(token, &mut connection);
                }
            }
        }
        // While a load runs, or the client watches, nothing is read, so only the hang-up tells that its client is gone.
        alive &= !events.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP) || connection.is_blocked();
        // What is parked sends nothing, so only the hang-up tells that nobody will ever read it.
        alive &= !connection.parked || !events.intersects(EpollFlags::EPOLLHUP);
        alive &= !connection.ending || connection.is_blocked();
        self.put_back(token, connection, alive);
    }

    pub(crate) fn put_back(&mut self, token: u64, mut connection: Connection, alive: bool) {
        // A client that has closed its sending half but does not read what waits for it would wake the loop for ever,
        // so its hang-up is not looked at then; that it is gone altogether is always told.
        let interest = if connection.parked {
            EpollFlags::empty()
        } else if connection.is_blocked() {
            EpollFlags::EPOLLOUT
        } else if connection.is_idle() {
            READING
        } else {
            EpollFlags::EPOLLRDHUP
        };
        let mut watched = true;
        if connection.interest != interest {
            connection.interest = interest;
            watched = self.epoll.modify(connection.socket(), &mut EpollEvent::new(interest, token)).is_ok();
        }
        if connection.parked {
            self.parked.insert(token);
        } else {
            self.parked.remove(&token);
        }
        self.connections.insert(token, connection);
        if !alive || !watched {
            self.close(token);
        }
    }

    /// Tells those who wait for a name to mean another image that it does.
    pub(crate) fn tell_watching(&mut self) {
        for token in self.watching() {
            let Some(mut connection) = self.connections.remove(&token) else { continue };
            if let Some(of) = connection.watch.take() {
                self.answer(token, &mut connection, Request::Watch { of }, Vec::new());
            }
            let alive = self.flush(&mut connection);
            self.put_back(token, connection, alive);
        }
    }

    /// Ends the connections of those who watch: they ask the next holder, or learn that there is none.
    pub(crate) fn close_watching(&mut self) {
        for token in self.watching() {
            self.close(token);
        }
    }

    fn watching(&self) -> Vec<u64> {
        let watching = self.connections.iter().filter(|(_, connection)| connection.watch.is_some());
        watching.map(|(token, _)| *token).collect()
    }

    /// Closes connections that wait for nothing and have been silent for long.
    pub(crate) fn close_silent(&mut self) {
        let silent: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.is_idle() && connection.active.elapsed() > IDLE)
            .map(|(token, _)| *token)
            .collect();
        for token in silent {
            self.close(token);
        }
    }
}
