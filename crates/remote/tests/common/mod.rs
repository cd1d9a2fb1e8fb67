//! A web server of the tests, which knows ranges and misbehaves as told.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    dead_code,
    reason = "a test fails by panicking; each test uses a part"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use daxfs_remote::{Location, Options};

/// A process that ends with the test.
pub struct Killed(pub std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What an answer is like.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// This status, and nothing.
    Status(u16),
    /// The whole object with status 200.
    NoRanges,
    /// Half of the bytes, then the connection ends.
    Cut,
    /// A range that is one byte off.
    Shifted,
    /// Bytes that are others.
    Wrong,
    /// Another tag.
    OtherTag,
    /// Nothing for ever.
    Stall,
    /// An object that grew.
    Grown,
}

/// A request of a client.
#[derive(Debug, Clone)]
pub struct Asked {
    pub range: Range<u64>,
    pub headers: HashMap<String, String>,
}

pub struct Server {
    port: u16,
    pub asked: Arc<Mutex<Vec<Asked>>>,
    faults: Arc<Mutex<Vec<(usize, usize, Fault)>>>,
    count: Arc<AtomicUsize>,
}

impl Server {
    /// Serves these bytes under every path.
    pub fn new(bytes: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self { port, asked: Arc::default(), faults: Arc::default(), count: Arc::default() };
        let (asked, faults) = (Arc::clone(&server.asked), Arc::clone(&server.faults));
        let (count, bytes) = (Arc::clone(&server.count), Arc::new(bytes));
        // It ends with the process of the test.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (asked, faults) = (Arc::clone(&asked), Arc::clone(&faults));
                let (count, bytes) = (Arc::clone(&count), Arc::clone(&bytes));
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    while answer(&stream, &bytes, &asked, &faults, &count).is_some() {}
                });
            }
        });
        server
    }

    /// Requests from number `from` on, `times` of them, are answered with a fault.
    pub fn fault(self, from: usize, times: usize, fault: Fault) -> Self {
        self.faults.lock().unwrap().push((from, times, fault));
        self
    }

    /// Where a store's client finds it.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn address(&self) -> String {
        format!("http://user:secret@127.0.0.1:{}/models/a.daxfs?sig=secret", self.port)
    }

    pub fn location(&self) -> Location {
        self.address().parse().unwrap()
    }

    pub fn requests(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

/// Answers one request; `None` when the connection is to end.
fn answer(
    mut stream: &TcpStream,
    bytes: &[u8],
    asked: &Mutex<Vec<Asked>>,
    faults: &Mutex<Vec<(usize, usize, Fault)>>,
    count: &AtomicUsize,
) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let [method, path, _] = first.split(' ').collect::<Vec<_>>()[..] else { panic!("{first}") };
    // By the address of a web server, or by the name in a store.
    assert!(["/models/a.daxfs?sig=secret", "/models/a.daxfs"].contains(&path), "{first}");
    let headers: HashMap<String, String> = lines
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    if method == "HEAD" {
        return head(stream, bytes.len(), faults);
    }
    let range = headers.get("range").unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let range: Range<u64> = range.0.parse().unwrap()..range.1.parse::<u64>().unwrap() + 1;
    asked.lock().unwrap().push(Asked { range: range.clone(), headers });
    let number = count.fetch_add(1, Ordering::SeqCst);
    let fault = faults
        .lock()
        .unwrap()
        .iter()
        .find(|(from, times, _)| (*from..from.saturating_add(*times)).contains(&number))
        .map(|found| found.2.clone());
    let whole = bytes.len() as u64;
    if range.start >= whole {
        stream.write_all(b"HTTP/1.1 416 x\r\nContent-Length: 0\r\n\r\n").ok()?;
        return Some(());
    }
    let end = range.end.min(whole);
    let mut body = bytes[range.start as usize..end as usize].to_vec();
    let (mut start, mut len, mut tag, mut status) = (range.start, whole, "\"tag\"", 206);
    let mut announced = body.len();
    match fault {
        Some(Fault::Status(code)) => (status, body, announced) = (code, Vec::new(), 0),
        Some(Fault::NoRanges) => (status, body, announced) = (200, bytes.to_vec(), bytes.len()),
        Some(Fault::Cut) => body.truncate(announced / 2),
        Some(Fault::Shifted) => start += 1,
        Some(Fault::Wrong) => body.iter_mut().skip(announced / 2).for_each(|byte| *byte ^= 0x55),
        Some(Fault::OtherTag) => tag = "\"other\"",
        Some(Fault::Grown) => len += 1,
        Some(Fault::Stall) => {
            std::thread::sleep(Duration::from_secs(3600));
        }
        None => {}
    }
    let last = start + announced as u64;
    let head = format!(
        "HTTP/1.1 {status} x\r\nContent-Length: {announced}\r\nETag: {tag}\r\n\
         Last-Modified: Wed, 02 Dec 2026 00:00:00 GMT\r\nContent-Range: bytes {start}-{}/{len}\r\n\r\n",
        last.saturating_sub(1)
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&body).ok()?;
    (body.len() == announced).then_some(())
}

/// What a store is asked first. Faults of the first request but its body are its own.
fn head(mut stream: &TcpStream, len: usize, faults: &Mutex<Vec<(usize, usize, Fault)>>) -> Option<()> {
    let fault = faults.lock().unwrap().iter().find(|(from, ..)| *from == 0).map(|found| found.2.clone());
    let status = match fault {
        Some(Fault::Status(code)) => code,
        _ => 200,
    };
    let date = "Wed, 02 Dec 2026 00:00:00 GMT";
    let text = format!(
        "HTTP/1.1 {status} x\r\nContent-Length: {len}\r\nETag: \"tag\"\r\nLast-Modified: {date}\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).ok()
}

/// An image of a few files: many small ones, one of some MiB with groups, an empty one, a link and a directory.
pub fn image() -> Vec<u8> {
    static ONCE: OnceLock<Vec<u8>> = OnceLock::new();
    ONCE.get_or_init(make_image).clone()
}

fn make_image() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    std::fs::create_dir_all(tree.join("nested/deeper")).unwrap();
    for number in 0..300_u32 {
        let text = format!("file {number} ").repeat(number as usize * 3);
        std::fs::write(tree.join(format!("nested/{number}.txt")), text).unwrap();
    }
    let large: Vec<u8> =
        (0..5_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(tree.join("large.bin"), large).unwrap();
    std::fs::write(tree.join("nested/deeper/empty"), "").unwrap();
    std::os::unix::fs::symlink("../large.bin", tree.join("nested/link")).unwrap();
    pack(&tree, &folder.path().join("a.daxfs"))
}

pub fn pack(tree: &Path, to: &Path) -> Vec<u8> {
    mkimage::Packer::new().input(tree).plan().unwrap().write_file(to).unwrap();
    std::fs::read(to).unwrap()
}

/// Options that do not wait long.
pub fn options() -> Options {
    let mut options = Options::default();
    options.patience = Duration::from_secs(2);
    options.retries = 2;
    options
}
