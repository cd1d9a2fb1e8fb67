//! What each request does.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use daxfs_protocol::ContentHash;
use daxfs_protocol::message::{
    COPIES_MAX, DeviceCopy, ImageInfo, PAGE_MAX, Refusal, Reply, Request, Version,
};

use dmabuf::Peer;

use crate::access::{Access, Rights, may_control, peer_groups};
use crate::connection::{Attached, Connection};
use crate::error::Error;
use crate::load::{By, LoadOptions, Watch, refuse_path_only};
use crate::loads::{Job, refusal_of};
use crate::server::Server;
use crate::table::Held;
use crate::view;

/// Loads that may wait for their turn.
const QUEUE_MAX: usize = 16;

/// Users and groups of one image: they are handed over in one message.
const IDS_MAX: usize = 1024;

/// Attaches on one connection: nobody needs more, and they are what a client can make the holder work for.
const ATTACHES_MAX: u32 = 32;

/// A refusal with its text.
type Refused = (Refusal, String);

impl Server {
    /// Answers a request, now or (loads) later.
    pub(crate) fn answer(
        &mut self,
        token: u64,
        connection: &mut Connection,
        request: Request,
        mut fds: Vec<OwnedFd>,
    ) {
        let peer = connection.peer;
        let result = match request {
            Request::Attach { name, expect } => self.attach(connection, &name, expect),
            Request::Current { name } => self.current(connection, &name),
            Request::List { after } => Ok(Some(self.list(connection, &after))),
            Request::Load { name, replace, options } => {
                self.begin_load(token, connection, name, replace, &options, &mut fds)
            }
            Request::Drop { name } => self.drop_image(connection, &name),
            Request::Stop => self.stop(connection),
            Request::Access { name, change } => self.access(connection, &name, change),
            Request::Health => Ok(Some(self.health())),
            Request::Watch { of } => self.watch(connection, of),
            Request::Takeover => self.begin_takeover(token, connection),
            Request::TakeoverDone => self.end_takeover(token),
            Request::Keep { of, copy } => self.keep(connection, &of, copy, &mut fds),
            Request::Copy { of, device, placement } => {
                self.copy(connection, &of, &DeviceCopy { device, placement, size: 0 })
            }
            _ => Err((Refusal::BadRequest, "this holder does not know that request".into())),
        };
        // What a refused request has brought.
        self.closer.close(fds);
        match result {
            Ok(Some(reply)) => connection.reply(&reply, Arc::new([])),
            Ok(None) => {}
            Err((refusal, text)) => {
                self.metrics.refuse(refusal);
                tracing::info!(peer.pid, peer.uid, peer.gid, ?refusal, text, "refused");
                connection.reply(&Reply::Error { refusal, text }, Arc::new([]));
            }
        }
    }

    /// The image, if there is one and the peer may have it. Who may not have it is not told that it is there.
    fn visible(&self, connection: &Connection, name: &str) -> Result<&Held, Refused> {
        let held = self.table.get(name).filter(|held| {
            held.access.allows(connection.peer, self.own_uid, || peer_groups(connection.socket()))
        });
        held.ok_or_else(|| (Refusal::NoSuchName, format!("there is no image {name:?}, or not for this user")))
    }

    fn attach(
        &mut self,
        connection: &mut Connection,
        name: &str,
        expect: Option<ContentHash>,
    ) -> Result<Option<Reply>, Refused> {
        check_attaches(connection)?;
        let info = &self.visible(connection, name)?.info;
        if expect.is_some() && info.content_hash != expect {
            return Err((Refusal::OtherContent, format!("{name:?} holds other content than expected")));
        }
        let (info, generation) = (info.clone(), info.generation);
        if let Some(held) = self.table.get(name) {
            let attach = Attached { name: name.to_owned(), generation, on_device: false };
            connection.reply_attach(&Reply::Attached(info), Arc::clone(&held.fds), attach);
        }
        connection.attaches += 1;
        // What cannot be sent now is sent when there is room.
        self.flush(connection);
        Ok(None)
    }

    /// Sends what waits in a connection, as far as there is room, and counts the attaches among it; the client need not
    /// wait for the log. Returns false when the connection is broken.
    pub(crate) fn flush(&mut self, connection: &mut Connection) -> bool {
        let alive = connection.flush(&mut self.in_flight);
        let peer = connection.peer;
        for Attached { name, generation, on_device } in connection.sent.drain(..) {
            if on_device {
                tracing::info!(peer.pid, peer.uid, peer.gid, name, generation, "attached on a device");
                continue;
            }
            self.table.count_attach(&name, generation);
            self.metrics.attaches.fetch_add(1, Ordering::Relaxed);
            tracing::info!(peer.pid, peer.uid, peer.gid, name, generation, "attached");
        }
        alive
    }

    fn current(&self, connection: &Connection, name: &str) -> Result<Option<Reply>, Refused> {
        let held = self.visible(connection, name)?;
        Ok(Some(Reply::Current { generation: held.info.generation, inode: held.inode() }))
    }

    /// What the name means, if that is another image than the client has; else the connection waits for that.
    fn watch(&self, connection: &mut Connection, of: Version) -> Result<Option<Reply>, Refused> {
        let held = self.visible(connection, &of.name)?;
        let (generation, inode) = (held.info.generation, held.inode());
        if (generation, inode) != (of.generation, of.inode) {
            return Ok(Some(Reply::Current { generation, inode }));
        }
        if self.is_stopping() {
            connection.ending = true;
        }
        connection.watch = Some(of);
        Ok(None)
    }

    /// The image as a client has it, if its name still means that.
    fn same(&self, connection: &Connection, of: &Version) -> Result<&Held, Refused> {
        let held = self.visible(connection, &of.name)?;
        if (held.info.generation, held.inode()) == (of.generation, of.inode) {
            return Ok(held);
        }
        Err((Refusal::NoSuchName, format!("the image {:?} is another one by now", of.name)))
    }

    fn keep(
        &mut self,
        connection: &Connection,
        of: &Version,
        copy: DeviceCopy,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Option<Reply>, Refused> {
        self.check_control(connection)?;
        // Nobody here can look at it. Whoever is trusted with all else is trusted with that.
        if self.config.require_signed.is_some() && ![0, self.own_uid].contains(&connection.peer.uid) {
            let text =
                "a holder with --require-signed keeps copies on devices only of root and of its own user";
            return Err((Refusal::NotAllowed, text.into()));
        }
        for fd in fds.iter() {
            refuse_path_only(fd.as_fd()).map_err(|error| (Refusal::BadRequest, error.to_string()))?;
        }
        let held = self.same(connection, of)?;
        let (name, generation, old) = (&of.name, of.generation, held.copy_like(&copy).map(|(old, _)| old));
        if held.copies.len() >= COPIES_MAX && old.is_none() {
            return Err((Refusal::Limit, format!("{COPIES_MAX} copies of {name:?} are kept already")));
        }
        if let Some(old) = old {
            // Another one can be made, so that none is there for a moment does no harm.
            self.notify.forget_copy(name, generation, &old);
        } else {
            let kept = self.table.iter().map(|held| (&held.access, held.descriptors()));
            let room = self.notify.check_room(kept, (&Access::default(), 1));
            room.map_err(|error| (Refusal::Limit, error.to_string()))?;
        }
        for fd in fds.iter() {
            if let Err(error) = self.notify.store_copy(name, generation, &copy, fd.as_fd()) {
                // The one that it was to replace is not in the store any more either.
                self.table.drop_copy(name, &copy);
                return Err((Refusal::Failed, error.to_string()));
            }
        }
        self.table.keep(name, copy, std::mem::take(fds).into());
        let (peer, size) = (connection.peer, copy.size);
        tracing::info!(peer.pid, peer.uid, peer.gid, name, generation, size, "copy on a device kept");
        Ok(Some(Reply::Ok))
    }

    fn copy(
        &mut self,
        connection: &mut Connection,
        of: &Version,
        wanted: &DeviceCopy,
    ) -> Result<Option<Reply>, Refused> {
        check_attaches(connection)?;
        let held = self.same(connection, of)?;
        // There is none, which is no failure.
        let Some((copy, fd)) = held.copy_like(wanted) else { return Ok(Some(Reply::Ok)) };
        let attach = Attached { name: of.name.clone(), generation: of.generation, on_device: true };
        connection.reply_attach(&Reply::Copy { size: copy.size }, Arc::clone(fd), attach);
        connection.attaches += 1;
        self.flush(connection);
        Ok(None)
    }

    fn list(&self, connection: &Connection, after: &str) -> Reply {
        let groups = std::cell::OnceCell::new();
        let visible = self.table.after(after).filter(|held| {
            let groups = || groups.get_or_init(|| peer_groups(connection.socket())).clone();
            held.access.allows(connection.peer, self.own_uid, groups)
        });
        let mut images: Vec<ImageInfo> = visible.take(PAGE_MAX + 1).map(|held| held.info.clone()).collect();
        let more = images.len() > PAGE_MAX;
        images.truncate(PAGE_MAX);
        Reply::Page { images, more }
    }

    fn check_control(&self, connection: &Connection) -> Result<(), Refused> {
        if !may_control(connection.peer, self.own_uid, &self.config.control) {
            return Err((Refusal::NotAllowed, no_control(connection.peer)));
        }
        if self.is_handing_over() || self.is_stopping() {
            return Err((Refusal::Busy, "the holder is being replaced or is ending".into()));
        }
        Ok(())
    }

    fn begin_load(
        &mut self,
        token: u64,
        connection: &mut Connection,
        name: String,
        replace: bool,
        options: &[String],
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Option<Reply>, Refused> {
        self.check_control(connection)?;
        if self.takeover.is_some() {
            return Err((
                Refusal::Busy,
                "another holder waits for the loads that go on, to take over".into(),
            ));
        }
        self.table.check_free(&name, replace).map_err(|refusal| (refusal, taken(&name)))?;
        // Nobody waits for those any more.
        let is_given_up = |job: &Job| job.watch.cancel.load(Ordering::Relaxed);
        let (given_up, waiting) = std::mem::take(&mut self.queue).into_iter().partition(is_given_up);
        self.queue = waiting;
        let given_up: VecDeque<Job> = given_up;
        self.closer.close(given_up.into_iter().map(|job| job.source).collect());
        if self.queue.len() >= QUEUE_MAX {
            return Err((Refusal::Limit, format!("{QUEUE_MAX} loads wait already")));
        }
        let bad = |error: Error| (Refusal::BadRequest, error.to_string());
        let refused = |error: Error| (refusal_of(&error), error.to_string());
        let mut options = LoadOptions::parse(options, &self.config).map_err(refused)?;
        options.packing.confined = !view::is_shared(connection.peer, connection.socket());
        if replace {
            // At once, not after a long load.
            self.access_of(&name, options.access.as_ref()).map_err(bad)?;
        }
        for fd in fds.iter() {
            refuse_path_only(fd.as_fd()).map_err(bad)?;
        }
        let Some(source) = fds.pop() else {
            return Err((Refusal::BadRequest, "a load needs a descriptor".into()));
        };
        let rights = Rights::of(connection.peer, connection.socket());
        let by = if rights.cover(&self.own_rights) {
            By::Own
        } else {
            By::Peer { rights, helper: self.config.helper.clone() }
        };
        let watch = Arc::new(Watch::default());
        connection.load = Some(Arc::clone(&watch.cancel));
        let peer = connection.peer;
        tracing::info!(peer.pid, peer.uid, peer.gid, name, replace, "load queued");
        self.queue.push_back(Job { token, name, replace, options, by, source, watch });
        self.start_next_load();
        Ok(None)
    }

    fn drop_image(&mut self, connection: &Connection, name: &str) -> Result<Option<Reply>, Refused> {
        self.check_control(connection)?;
        let removed = self.table.remove(name);
        // What this holder could not look at, and so does not hold, would come back with the next one.
        let aside = self.notify.forget_set_aside(Some(name));
        if removed.is_none() && aside == 0 {
            return Err((Refusal::NoSuchName, format!("there is no image {name:?}")));
        }
        if let Some(held) = &removed {
            self.notify.forget(name, held.info.generation, &held.info.copies);
        }
        self.images_changed();
        let (peer, generation) = (connection.peer, removed.map(|held| held.info.generation));
        tracing::info!(peer.pid, peer.uid, peer.gid, name, ?generation, aside, "dropped");
        Ok(Some(Reply::Ok))
    }

    /// Says who may attach to an image, and changes it if that is asked for.
    fn access(
        &mut self,
        connection: &Connection,
        name: &str,
        change: Option<(Vec<u32>, Vec<u32>)>,
    ) -> Result<Option<Reply>, Refused> {
        self.check_control(connection)?;
        let Some(held) = self.table.get(name) else {
            return Err((Refusal::NoSuchName, format!("there is no image {name:?}")));
        };
        let (before, generation) = (held.access.clone(), held.info.generation);
        let ids = |access: &Access| (access.uids.clone(), access.gids.clone());
        let Some((uids, gids)) = change else {
            return Ok(Some(Reply::Access { before: ids(&before), after: ids(&before) }));
        };
        if uids.len() + gids.len() > IDS_MAX {
            return Err((Refusal::Limit, format!("{IDS_MAX} users and groups at most")));
        }
        let after = Access::new(uids, gids).in_place_of(&before);
        if after.is_stored() && !before.is_stored() {
            // The list, and the mark that there is one.
            let kept = self.table.iter().map(|held| (&held.access, held.descriptors()));
            let room = self.notify.check_room(kept, (&Access::default(), after.descriptors()));
            room.map_err(|error| (Refusal::Limit, error.to_string()))?;
        }
        let changed = self.notify.change_access(name, generation, &before, &after);
        changed.map_err(|error| (Refusal::Failed, error.to_string()))?;
        self.table.set_access(name, after.clone());
        self.tell_watching();
        let peer = connection.peer;
        tracing::info!(peer.pid, peer.uid, peer.gid, name, generation, %before, %after, "access changed");
        Ok(Some(Reply::Access { before: ids(&before), after: ids(&after) }))
    }

    fn stop(&mut self, connection: &mut Connection) -> Result<Option<Reply>, Refused> {
        self.check_control(connection)?;
        let peer = connection.peer;
        tracing::info!(peer.pid, peer.uid, peer.gid, "stop requested");
        // Asked to end for good: a supervisor must not keep the images, either.
        for held in self.table.iter() {
            self.notify.forget(&held.info.name, held.info.generation, &held.info.copies);
        }
        self.notify.forget_set_aside(None);
        self.begin_stop();
        Ok(Some(Reply::Ok))
    }

    fn health(&self) -> Reply {
        Reply::Health {
            pid: std::process::id(),
            images: self.table.len() as u64,
            bytes: self.budget.taken(),
            uptime: self.metrics.uptime(),
        }
    }
}

/// Refuses, and ends the connection, when it has brought too many descriptors.
fn check_attaches(connection: &mut Connection) -> Result<(), Refused> {
    if connection.attaches < ATTACHES_MAX {
        return Ok(());
    }
    connection.ending = true;
    Err((Refusal::Limit, format!("{ATTACHES_MAX} attaches on one connection; open another one")))
}

/// Text of a refusal to who may not control the holder.
pub(crate) fn no_control(peer: Peer) -> String {
    format!("user {} may not control this holder", peer.uid)
}

/// Text of a refusal because of a name.
pub(crate) fn taken(name: &str) -> String {
    format!("there is an image {name:?} already; replace it with swap")
}
