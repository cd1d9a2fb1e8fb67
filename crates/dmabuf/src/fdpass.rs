//! Passing descriptors, and with them the memory, over a Unix socket (SCM_RIGHTS).

#![allow(unsafe_code, reason = "recvmsg and the descriptors it installs")]

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::error::{Error, Result};
use crate::fd::fd_name;

/// `SCM_MAX_FD` of the kernel: most descriptors in one message.
const MAX_FDS: usize = 253;
/// Room for the most descriptors a message can have, whatever was asked for, and for other control messages: none is
/// cut off for want of space. Words, because control headers are aligned to them.
const CONTROL_WORDS: usize = (MAX_FDS * size_of::<RawFd>() + 512) / size_of::<u64>();

/// Sends `payload` with `fds` attached to its first byte. The receiver gets descriptors of its own for the same open
/// files; those here stay open.
///
/// On a stream socket all of `payload` is sent, in several calls if need be; a nonblocking one can fail in between.
///
/// # Errors
/// [`Error::Invalid`] for an empty payload (a stream socket would drop the descriptors) or more than 253 descriptors;
/// [`Error::Os`] from sendmsg, EPIPE instead of a signal if the peer is gone.
pub fn send_fds(socket: BorrowedFd<'_>, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    if payload.is_empty() {
        return Err(Error::invalid("empty payload", "at least 1 byte has to carry the descriptors"));
    }
    if fds.len() > MAX_FDS {
        return Err(Error::invalid(
            format!("{} descriptors", fds.len()),
            format!("at most {MAX_FDS} fit a message"),
        ));
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let mut control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let mut rest = payload;
    while !rest.is_empty() {
        let iov = [IoSlice::new(rest)];
        match sendmsg::<()>(socket.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(sent) => {
                rest = &rest[sent..];
                control = &[];
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(Error::os("sendmsg", fd_name(socket), e)),
        }
    }
    Ok(())
}

/// Receives one message: bytes into `buf`, and at most `max_fds` descriptors, all close-on-exec. Returns the number
/// of bytes (0: the peer has closed) and the descriptors. A stream socket may deliver fewer bytes than were sent in
/// one call; the descriptors come with the first of them.
///
/// # Errors
/// After each error every descriptor of the message is closed again, and the connection should be ended.
/// [`Error::Invalid`] for an empty `buf`, if the message has more bytes (datagrams) or descriptors than asked for, or
/// if the kernel could not install all of them (this process has too many open); [`Error::Os`] from recvmsg.
pub fn recv_fds(socket: BorrowedFd<'_>, buf: &mut [u8], max_fds: usize) -> Result<(usize, Vec<OwnedFd>)> {
    if buf.is_empty() {
        return Err(Error::invalid("empty buffer", "at least 1 byte has to carry the descriptors"));
    }
    receive(socket, buf, max_fds, &mut [0; CONTROL_WORDS])
}

fn receive(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    max_fds: usize,
    control: &mut [u64],
) -> Result<(usize, Vec<OwnedFd>)> {
    let (len, fds, cut) = receive_message(socket, buf, control)?;
    if cut {
        return Err(Error::invalid(
            fd_name(socket),
            format!("only {} descriptors of a message could be received (too many open files?)", fds.len()),
        ));
    }
    if fds.len() > max_fds {
        return Err(Error::invalid(
            fd_name(socket),
            format!("{} descriptors came, not {max_fds}", fds.len()),
        ));
    }
    Ok((len, fds))
}

/// Receives the bytes of one message, and none of its descriptors: the kernel drops them without giving them to this
/// process, which so never has to close one (of a file system that does not answer, that could take for ever). Returns
/// the number of bytes (0: the peer has closed) and whether there were descriptors.
///
/// # Errors
/// [`Error::Invalid`] for an empty `buf` or a message of more bytes; [`Error::Os`] from recvmsg.
pub fn recv_bytes(socket: BorrowedFd<'_>, buf: &mut [u8]) -> Result<(usize, bool)> {
    if buf.is_empty() {
        return Err(Error::invalid("empty buffer", "a message has at least 1 byte"));
    }
    let (len, _, cut) = receive_message(socket, buf, &mut [])?;
    Ok((len, cut))
}

/// One message: bytes, descriptors, and whether there were more of these than `control` has room for.
fn receive_message(
    socket: BorrowedFd<'_>,
    buf: &mut [u8],
    control: &mut [u64],
) -> Result<(usize, Vec<OwnedFd>, bool)> {
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: `msghdr` consists of integers and raw pointers, for which zeros are valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(control) as _;

    let received = loop {
        // SAFETY: the header describes one live buffer of `buf.len()` bytes and one live, aligned control buffer of
        // the stated length, both exclusively borrowed here; the kernel writes within those lengths and nothing else.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        if let Ok(n) = usize::try_from(n) {
            break n;
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(Error::os("recvmsg", fd_name(socket), error));
        }
    };
    // Own what the kernel installed before anything can fail: the early returns below close it. nix's `cmsgs` gives
    // nothing on truncation, and the descriptors that did fit would stay open for ever.
    let fds = take_fds(&header);
    if header.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(Error::invalid(fd_name(socket), format!("a message has more than {} bytes", buf.len())));
    }
    Ok((received, fds, header.msg_flags & libc::MSG_CTRUNC != 0))
}

/// Takes ownership of every descriptor in the control messages of a header that recvmsg has filled in.
fn take_fds(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel left `msg_control` and `msg_controllen` describing the control messages it wrote into the
    // live control buffer; the function reads only the header.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: not null, so the kernel wrote a whole header here, within the live buffer of aligned words.
        let cmsg = unsafe { next.read() };
        if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: computes a length from a length, reads no memory.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            #[allow(clippy::unnecessary_cast, reason = "the field's type differs between C libraries")]
            let count = (cmsg.cmsg_len as usize).saturating_sub(head) / size_of::<RawFd>();
            // SAFETY: `next` points to a control header within the buffer; the sum is the address of its data.
            let data = unsafe { libc::CMSG_DATA(next) };
            for i in 0..count {
                let number = data.wrapping_add(i * size_of::<RawFd>()).cast::<[u8; size_of::<RawFd>()]>();
                // SAFETY: `cmsg_len` of a message from the kernel covers header and data, so `count` descriptor
                // numbers lie here within the buffer; bytes have alignment 1 and any value.
                let raw = RawFd::from_ne_bytes(unsafe { number.read() });
                // SAFETY: the kernel installed this descriptor for this message; nobody else knows it, and each is
                // read once, so it is owned once.
                fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
        // SAFETY: `header` and `next` are the header and a control message in it, as above.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    fds
}

#[cfg(test)]
#[path = "fdpass_tests.rs"]
mod tests;
