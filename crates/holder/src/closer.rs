//! Closing descriptors that clients have sent, away from the event loop: close(2) asks the file system (FUSE, NFS), and
//! one that does not answer would keep everybody waiting.

use std::os::fd::OwnedFd;
use std::sync::mpsc;

/// A thread that only closes. It begins with the first descriptor and ends with this.
#[derive(Debug, Default)]
pub(crate) struct Closer(Option<mpsc::Sender<Vec<OwnedFd>>>);

impl Closer {
    /// Closes these, sooner or later. One that does not close keeps those behind it open, which is bounded by who may
    /// control the holder: nobody else's are taken.
    pub(crate) fn close(&mut self, fds: Vec<OwnedFd>) {
        if fds.is_empty() {
            return;
        }
        let left = match &self.0 {
            Some(sender) => match sender.send(fds) {
                Ok(()) => return,
                Err(mpsc::SendError(fds)) => fds,
            },
            None => fds,
        };
        let (sender, receiver) = mpsc::channel::<Vec<OwnedFd>>();
        // It takes them from the channel. Without a thread they are closed here, with the channel.
        let _ = sender.send(left);
        let thread = std::thread::Builder::new().name("close".into());
        self.0 = thread.spawn(move || receiver.into_iter().for_each(drop)).ok().map(|_| sender);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_it_is_given_is_closed() {
        let mut closer = Closer::default();
        for _ in 0..3 {
            let (mut reader, writer) = std::io::pipe().unwrap();
            closer.close(vec![writer.into()]);
            // The end comes when the other end is closed.
            assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
        }
    }
}
