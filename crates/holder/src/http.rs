//! `GET /metrics`, `GET /healthz` and `GET /readyz`: each connection in a thread of its own, a few at a time.
//!
//! No connection makes another one wait. When too many are open the oldest one is closed, so a health check is answered
//! beside any number of silent clients; each has a deadline for its whole request and answer.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::metrics::Metrics;

/// A scraper that takes longer is cut off.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest request that is read.
const REQUEST_MAX: usize = 4096;
/// Connections at a time.
const CONNECTIONS_MAX: usize = 16;

/// The connections that are open, oldest first.
type Open = Arc<Mutex<VecDeque<(u64, TcpStream)>>>;

/// Listens and serves until the process ends. Returns the address, whose port may have been chosen. With `patience` an
/// address that is in use is tried again for so long in the background; then it is an error in the log only.
///
/// # Errors
/// [`Error::System`] when it cannot listen, and there is no patience.
pub fn serve(address: SocketAddr, metrics: Arc<Metrics>, patience: Duration) -> Result<SocketAddr> {
    let failed = |e| Error::system(format!("listen on {address} for metrics"), e);
    let listener = match TcpListener::bind(address) {
        Ok(listener) => Some(listener),
        Err(error) if patience.is_zero() => return Err(failed(error)),
        Err(_) => None,
    };
    let bound = listener.as_ref().map_or(Ok(address), TcpListener::local_addr).map_err(failed)?;
    std::thread::Builder::new()
        .name("metrics".into())
        .spawn(move || match listener.map_or_else(|| bind_within(address, patience), Ok) {
            Ok(listener) => {
                tracing::info!(address = %bound, "serving metrics");
                accept(&listener, &metrics);
            }
            Err(error) => tracing::error!(%address, %error, "no metrics are served"),
        })
        .map_err(|e| Error::system("start the metrics thread", e))?;
    Ok(bound)
}

fn bind_within(address: SocketAddr, patience: Duration) -> std::io::Result<TcpListener> {
    let deadline = Instant::now() + patience;
    loop {
        match TcpListener::bind(address) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            result => return result,
        }
    }
}

fn accept(listener: &TcpListener, metrics: &Arc<Metrics>) {
    let open = Open::default();
    for number in 0.. {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) => {
                // Too many descriptors, for one; the queue of the socket is not emptied by asking faster.
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        let Ok(handle) = stream.try_clone() else { continue };
        {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            if open.len() >= CONNECTIONS_MAX
                && let Some((_, oldest)) = open.pop_front()
            {
                // Its thread ends by that.
                let _ = oldest.shutdown(Shutdown::Both);
            }
            open.push_back((number, handle));
        }
        let (others, metrics) = (Arc::clone(&open), Arc::clone(metrics));
        let serve = move || {
            // A scraper that breaks off is its own business.
            let _ = answer(stream, &metrics);
            others.lock().unwrap_or_else(PoisonError::into_inner).retain(|(other, _)| *other != number);
        };
        if std::thread::Builder::new().name("http".into()).spawn(serve).is_err() {
            open.lock().unwrap_or_else(PoisonError::into_inner).pop_back();
        }
    }
}

fn answer(mut stream: TcpStream, metrics: &Metrics) -> std::io::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    // The head of a request ends with an empty line.
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || request.len() > REQUEST_MAX {
            return Ok(());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            len => request.extend_from_slice(buffer.get(..len).unwrap_or_default()),
        }
    }
    let (status, kind, body) = respond(&request, metrics);
    let head = format!(
        "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let answer = [head, body].concat();
    write_until(&mut stream, answer.as_bytes(), deadline)
}

/// Writes all, or fails at the deadline, also for one who reads a few bytes now and then.
fn write_until(stream: &mut TcpStream, mut rest: &[u8], deadline: Instant) -> std::io::Result<()> {
    while !rest.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(len) => rest = rest.get(len..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn respond(request: &[u8], metrics: &Metrics) -> (&'static str, &'static str, String) {
    let line = request.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/metrics")) => {
            ("200 OK", "text/plain; version=0.0.4; charset=utf-8", metrics.render())
        }
        (Some(b"GET"), Some(b"/readyz")) if !metrics.ready.load(Ordering::Relaxed) => {
            ("503 Service Unavailable", "text/plain", "new clients are not answered now\n".to_owned())
        }
        (Some(b"GET"), Some(b"/healthz" | b"/readyz")) => ("200 OK", "text/plain", "ok\n".to_owned()),
        (Some(b"GET"), _) => ("404 Not Found", "text/plain", "only /metrics, /healthz, /readyz\n".to_owned()),
        _ => ("405 Method Not Allowed", "text/plain", "only GET\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn answers() {
        let shared = Arc::new(Metrics::new(None));
        let address = serve("127.0.0.1:0".parse().unwrap(), Arc::clone(&shared), Duration::ZERO).unwrap();
        let metrics = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(metrics.starts_with("HTTP/1.0 200 OK") && metrics.contains("daxfs_images 0"), "{metrics}");
        assert!(ask(address, "GET /healthz HTTP/1.0\r\n\r\n").ends_with("ok\n"));
        assert!(ask(address, "GET /readyz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 503 "));
        shared.ready.store(true, Ordering::Relaxed);
        assert!(ask(address, "GET /readyz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200 "));
        assert!(ask(address, "GET / HTTP/1.0\r\n\r\n").contains("404"));
        assert!(ask(address, "POST /metrics HTTP/1.0\r\n\r\n").contains("405"));
        assert_eq!(ask(address, &"x".repeat(9000)), "");
    }

    #[test]
    fn who_reads_slowly_is_cut_off_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut reads = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut writes = listener.accept().unwrap().0;
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while reads.read(&mut buffer).is_ok_and(|len| len > 0) {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        // Each write has some success long before its own time is over.
        let deadline = Instant::now() + Duration::from_millis(300);
        let error = write_until(&mut writes, &vec![0; 64 << 20], deadline).unwrap_err();
        assert!([ErrorKind::TimedOut, ErrorKind::WouldBlock].contains(&error.kind()), "{error}");
        drop(writes);
        reader.join().unwrap();
    }

    #[test]
    fn a_silent_scraper_does_not_keep_others_waiting_for_good() {
        let address =
            serve("127.0.0.1:0".parse().unwrap(), Arc::new(Metrics::new(None)), Duration::ZERO).unwrap();
        let silent = TcpStream::connect(address).unwrap();
        let mut slow = TcpStream::connect(address).unwrap();
        slow.write_all(b"GET /metrics HT").unwrap();
        // Both are there still, and were there first.
        assert!(ask(address, "GET /healthz HTTP/1.0\r\n\r\n").ends_with("ok\n"));
        // The oldest of many go; none of them keeps a health check waiting.
        let many: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert!(ask(address, "GET /healthz HTTP/1.0\r\n\r\n").ends_with("ok\n"));
        let mut oldest = silent;
        oldest.set_read_timeout(Some(TIMEOUT / 4)).unwrap();
        assert_eq!(oldest.read(&mut [0; 8]).unwrap(), 0, "closed to make room, long before its deadline");
        drop((oldest, slow, many));
    }
}
