use super::*;
use crate::map::Mapping;
use crate::memfd::{HugePages, Memfd};
use nix::fcntl::{FcntlArg, fcntl};
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

/// Descriptors of this process that lead to the memfd `name`: other tests, in other threads, do not disturb this.
fn open_of(name: &str) -> usize {
    let link = format!("/memfd:{name} (deleted)");
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    entries.filter(|e| std::fs::read_link(e.path()).is_ok_and(|l| l.as_os_str() == &link[..])).count()
}

fn memfds(name: &str, count: usize) -> Vec<Memfd> {
    (0..count).map(|_| Memfd::create(name, 4096, HugePages::No).unwrap()).collect()
}

fn borrowed(memfds: &[Memfd]) -> Vec<BorrowedFd<'_>> {
    memfds.iter().map(|m| m.as_fd()).collect()
}

#[test]
fn bytes_and_descriptors_arrive_close_on_exec() {
    let (a, b) = UnixStream::pair().unwrap();
    let sent = memfds("arrive", 3);
    let mut map = Mapping::read_write(sent[2].as_fd(), 0, 4096).unwrap();
    map.view_mut().unwrap().copy_from(0, b"over the socket").unwrap();
    send_fds(a.as_fd(), b"three", &borrowed(&sent)).unwrap();
    let mut buf = [0; 64];
    let (n, fds) = recv_fds(b.as_fd(), &mut buf, 3).unwrap();
    assert_eq!((&buf[..n], fds.len()), (&b"three"[..], 3));
    let received = Mapping::read_only(fds[2].as_fd(), 0, 15).unwrap();
    assert_eq!(received.view().to_vec(), b"over the socket");
    for fd in &fds {
        assert_eq!(fcntl(fd, FcntlArg::F_GETFD).unwrap() & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }
    assert_eq!(open_of("arrive"), 6);
    drop(fds);
    assert_eq!(open_of("arrive"), 3);
}

#[test]
fn without_descriptors_and_after_the_end() {
    let (a, b) = UnixStream::pair().unwrap();
    send_fds(a.as_fd(), b"plain", &[]).unwrap();
    let mut buf = [0; 3];
    assert_eq!(recv_fds(b.as_fd(), &mut buf, 0).unwrap().0, 3);
    assert_eq!(recv_fds(b.as_fd(), &mut buf, 0).unwrap().0, 2);
    drop(a);
    assert_eq!(recv_fds(b.as_fd(), &mut buf, 9).unwrap().0, 0);
    let error = send_fds(b.as_fd(), b"x", &[]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPIPE), "an error, not the signal");
}

#[test]
fn a_message_holds_253_descriptors() {
    let (a, b) = UnixStream::pair().unwrap();
    let one = memfds("most", 1);
    let fds = vec![one[0].as_fd(); 253];
    send_fds(a.as_fd(), b"x", &fds).unwrap();
    let (_, received) = recv_fds(b.as_fd(), &mut [0; 1], 253).unwrap();
    assert_eq!(received.len(), 253);
    let error = send_fds(a.as_fd(), b"x", &vec![one[0].as_fd(); 254]).unwrap_err();
    assert_eq!(error.to_string(), "254 descriptors: at most 253 fit a message");
}

#[test]
fn truncated_control_data_leaks_nothing() {
    let (a, b) = UnixStream::pair().unwrap();
    let sent = memfds("truncated", 5);
    send_fds(a.as_fd(), b"five", &borrowed(&sent)).unwrap();
    // Room for a header and two descriptors: the kernel installs two and sets MSG_CTRUNC.
    let mut control = [0; 3];
    let error = receive(b.as_fd(), &mut [0; 8], 5, &mut control).unwrap_err();
    assert!(error.to_string().contains("only 2 descriptors"), "{error}");
    assert_eq!(open_of("truncated"), 5, "those that were installed are closed again");
}

#[test]
fn more_than_asked_for_are_closed() {
    let (a, b) = UnixStream::pair().unwrap();
    let sent = memfds("excess", 2);
    send_fds(a.as_fd(), b"two", &borrowed(&sent)).unwrap();
    let error = recv_fds(b.as_fd(), &mut [0; 8], 1).unwrap_err();
    assert!(error.to_string().ends_with("2 descriptors came, not 1"), "{error}");
    assert_eq!(open_of("excess"), 2);
}

#[test]
fn cut_datagrams_are_errors_and_leak_nothing() {
    let (a, b) = UnixDatagram::pair().unwrap();
    let sent = memfds("datagram", 1);
    send_fds(a.as_fd(), b"longer than four", &borrowed(&sent)).unwrap();
    let error = recv_fds(b.as_fd(), &mut [0; 4], 1).unwrap_err();
    assert!(error.to_string().ends_with("a message has more than 4 bytes"), "{error}");
    assert_eq!(open_of("datagram"), 1);
}

#[test]
fn long_payloads_go_out_whole_with_the_descriptors_first() {
    let (a, b) = UnixStream::pair().unwrap();
    let sent = memfds("long", 1);
    let payload: Vec<u8> = (0..1_000_000u32).map(|i| i.to_le_bytes()[0]).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| send_fds(a.as_fd(), &payload, &borrowed(&sent)).unwrap());
        let mut got = Vec::new();
        let mut fds = Vec::new();
        while got.len() < payload.len() {
            let mut buf = vec![0; 100_000];
            let (n, new) = recv_fds(b.as_fd(), &mut buf, 1).unwrap();
            assert!(n > 0);
            assert_eq!(new.len(), usize::from(got.is_empty()), "with the first bytes only");
            got.extend_from_slice(&buf[..n]);
            fds.extend(new);
        }
        assert!(got == payload);
        assert_eq!(fds.len(), 1);
    });
}

#[test]
fn bad_arguments_and_sockets() {
    let (a, _b) = UnixStream::pair().unwrap();
    assert!(matches!(send_fds(a.as_fd(), b"", &[]), Err(Error::Invalid { .. })));
    assert!(matches!(recv_fds(a.as_fd(), &mut [], 1), Err(Error::Invalid { .. })));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"x").unwrap();
    assert_eq!(send_fds(file.as_fd(), b"x", &[]).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
    assert_eq!(recv_fds(file.as_fd(), &mut [0; 1], 1).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
}

#[test]
fn descriptors_that_are_not_taken_are_closed() {
    use std::os::fd::AsFd;
    let (own, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let (mut reader, writer) = io::pipe().unwrap();
    let mut buffer = [0; 8];
    send_fds(theirs.as_fd(), b"none", &[]).unwrap();
    assert_eq!(recv_bytes(own.as_fd(), &mut buffer).unwrap(), (4, false));
    send_fds(theirs.as_fd(), b"some", &[writer.as_fd(), theirs.as_fd()]).unwrap();
    assert_eq!(recv_bytes(own.as_fd(), &mut buffer).unwrap(), (4, true));
    drop(writer);
    assert_eq!(io::Read::read(&mut reader, &mut buffer).unwrap(), 0);
    send_fds(theirs.as_fd(), b"too many bytes", &[]).unwrap();
    assert!(recv_bytes(own.as_fd(), &mut buffer).is_err());
}
