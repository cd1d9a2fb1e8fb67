//! What controls a holder: its images, who may attach to them, and its end. One function for each request.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Connection, HolderError};
use crate::message::{ImageInfo, Reply, Request, is_valid_name};

/// Time between two looks at whether a load is still wanted.
const PAUSE: Duration = Duration::from_millis(100);

/// Time between two attempts to reach a holder that is not there yet.
const RETRY: Duration = Duration::from_millis(20);

/// How a holder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// Its process, as it counts processes itself.
    pub pid: u32,
    /// Images that it holds.
    pub images: u64,
    /// Bytes of their memory.
    pub bytes: u64,
    /// Seconds since it started.
    pub uptime: u64,
}

/// Users and groups that may attach to an image. Both are empty for everybody who may connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Users.
    pub uids: Vec<u32>,
    /// Groups, primary or supplementary.
    pub gids: Vec<u32>,
}

/// What a load tells while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Nothing new, for a tenth of a second.
    Waiting,
    /// So many bytes are done.
    Progress {
        /// Bytes done.
        done: u64,
        /// Bytes in all; 0 while nothing is known of them, or the load queues.
        total: u64,
    },
    /// What is packed has something that its user may want to mend.
    Warning(String),
}

impl Health {
    /// Waits up to `patience` for a holder to answer at a socket: one that was just started answers when its images are
    /// loaded. `wanted` is asked several times a second whether to go on.
    ///
    /// # Errors
    /// [`HolderError`], the last one when no holder answered in time; [`HolderError::GivenUp`] once `wanted` says false.
    pub fn wait_for(
        socket: &Path,
        patience: Duration,
        wanted: &mut dyn FnMut() -> bool,
    ) -> Result<Self, HolderError> {
        let begin = Instant::now();
        loop {
            let left = patience.saturating_sub(begin.elapsed());
            let error = match Connection::open_within(socket, left) {
                Ok(mut connection) => match connection.health_within(left, wanted) {
                    Err(error) => error,
                    health => return health,
                },
                Err(error) => error,
            };
            // A holder that is starting is not there yet, or does not answer yet.
            if !error.is_unreachable() || left.is_zero() {
                return Err(error);
            }
            if !wanted() {
                return Err(HolderError::GivenUp { socket: socket.to_owned() });
            }
            std::thread::sleep(RETRY.min(left));
        }
    }
}

impl Connection {
    /// Asks how the holder is.
    ///
    /// # Errors
    /// As for [`Connection::request`].
    pub fn health(&mut self) -> Result<Health, HolderError> {
        let reply = self.request(&Request::Health, &[])?.0;
        self.health_of(&reply)
    }

    /// Asks how the holder is, which may take as long as there is time `left`: the socket of a holder that loads its first
    /// images accepts connections before they are answered.
    fn health_within(
        &mut self,
        left: Duration,
        wanted: &mut dyn FnMut() -> bool,
    ) -> Result<Health, HolderError> {
        let begin = Instant::now();
        self.send(&Request::Health, &[])?;
        while !self.is_readable(Some(PAUSE))? {
            if begin.elapsed() > left {
                return Err(self.timed_out());
            }
            if !wanted() {
                return Err(self.give_up());
            }
        }
        let reply = self.receive()?.0;
        self.health_of(&reply)
    }

    fn health_of(&self, reply: &Reply) -> Result<Health, HolderError> {
        match *reply {
            Reply::Health { pid, images, bytes, uptime } => Ok(Health { pid, images, bytes, uptime }),
            _ => Err(self.unexpected("not how the holder is")),
        }
    }

    /// Has the holder hold what `source` is, and waits for the end of that. `options` are those of
    /// `daxfs_holder::LoadOptions`. `tell` is called with each step, and ten times a second in between; once it returns
    /// false, the load is given up.
    ///
    /// # Errors
    /// As for [`Connection::request`]; [`HolderError::GivenUp`], and [`HolderError::Timeout`] when the holder is silent
    /// for longer than the connection waits: it reports progress several times a second.
    pub fn load(
        &mut self,
        name: &str,
        replace: bool,
        options: &[String],
        source: BorrowedFd<'_>,
        tell: &mut dyn FnMut(Step) -> bool,
    ) -> Result<ImageInfo, HolderError> {
        let (name, options) = (named(name)?, options.to_vec());
        self.send(&Request::Load { name, replace, options }, &[source])?;
        let mut heard = Instant::now();
        loop {
            let step = if self.is_readable(Some(PAUSE))? {
                heard = Instant::now();
                match self.receive()?.0 {
                    Reply::Progress { done, total } => Step::Progress { done, total },
                    Reply::Warning { text } => Step::Warning(text),
                    Reply::Loaded(info) => return Ok(info),
                    _ => return Err(self.unexpected("not the end of a load")),
                }
            } else if heard.elapsed() > self.timeout() {
                return Err(self.timed_out());
            } else {
                Step::Waiting
            };
            if !tell(step) {
                return Err(self.give_up());
            }
        }
    }

    /// Has the holder forget an image. Clients that have it keep it.
    ///
    /// # Errors
    /// As for [`Connection::request`].
    pub fn drop_image(&mut self, name: &str) -> Result<(), HolderError> {
        self.done(&Request::Drop { name: named(name)? })
    }

    /// Ends the holder, and waits until it has ended.
    ///
    /// # Errors
    /// As for [`Connection::request`].
    pub fn stop(&mut self) -> Result<(), HolderError> {
        self.done(&Request::Stop)?;
        match self.receive() {
            Err(HolderError::Closed { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(self.unexpected("not the end of the connection")),
        }
    }

    /// Who may attach to an image, and who may after the `change`, if there is one.
    ///
    /// # Errors
    /// As for [`Connection::request`].
    pub fn access(&mut self, name: &str, change: Option<Allowed>) -> Result<(Allowed, Allowed), HolderError> {
        let change = change.map(|Allowed { uids, gids }| (uids, gids));
        match self.request(&Request::Access { name: named(name)?, change }, &[])?.0 {
            Reply::Access { before, after } => Ok((before.into(), after.into())),
            _ => Err(self.unexpected("not who may attach")),
        }
    }

    fn done(&mut self, request: &Request) -> Result<(), HolderError> {
        match self.request(request, &[])?.0 {
            Reply::Ok => Ok(()),
            _ => Err(self.unexpected("not that it is done")),
        }
    }
}

impl From<(Vec<u32>, Vec<u32>)> for Allowed {
    fn from((uids, gids): (Vec<u32>, Vec<u32>)) -> Self {
        Self { uids, gids }
    }
}

/// The name, if it is one: a holder would refuse it, and could say less of it.
fn named(name: &str) -> Result<String, HolderError> {
    if is_valid_name(name) {
        return Ok(name.to_owned());
    }
    let why = "a name has 1 to 128 letters, digits, '.', '_' or '-' and begins with none of '.' and '-'";
    Err(HolderError::Address { text: name.to_owned(), why })
}
