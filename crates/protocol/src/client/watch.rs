//! Waiting for a name to mean another image, without asking again and again.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::{Connection, HolderError};
use crate::message::{Reply, Request, Version};

/// Waits until the name of an image means another image, or none.
///
/// Its descriptor ([`Watch::fd`]) becomes readable then, and also when the holder ends or is replaced: an event loop watches
/// it for reading, and calls [`Watch::wait`] without patience when it is readable.
#[derive(Debug)]
pub struct Watch {
    connection: Connection,
    /// The answer came: the name means something else.
    changed: bool,
}

impl Watch {
    /// Over a connection of its own: a holder answers nothing else on it.
    pub(super) fn new(mut connection: Connection, of: Version) -> Result<Self, HolderError> {
        connection.send(&Request::Watch { of }, &[])?;
        Ok(Self { connection, changed: false })
    }

    /// The descriptor to watch for reading; `None` once the connection has ended.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.connection.socket()
    }

    /// Whether the name means another image, or none, by now. Waits for that for `patience` at most, without an end for
    /// `None`.
    ///
    /// # Errors
    /// [`HolderError`]. When the holder ended or was replaced, [`HolderError::is_disconnect`] is true of it: ask whether
    /// the image is still current, and watch again.
    pub fn wait(&mut self, patience: Option<Duration>) -> Result<bool, HolderError> {
        // Without an end when the patience is longer than the clock can count.
        let end = patience.and_then(|patience| Instant::now().checked_add(patience));
        while !self.changed {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if self.connection.is_readable(left)? {
                self.changed = match self.connection.receive() {
                    Ok((Reply::Current { .. }, _)) => true,
                    Ok(_) => return Err(self.connection.unexpected("not what the name means")),
                    Err(error) if error.is_not_found() => true,
                    Err(error) => return Err(error),
                };
            } else if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
