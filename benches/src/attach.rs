//! Attaching to an image of a holder, against the bare cost: a descriptor over a socket (SCM_RIGHTS), and mmap.

use crate::rounds::{self, Case, Limits};
use anyhow::{Context, Result};
use daxfs::{Image, Region};
use memmap2::{MmapOptions, MmapRaw};
use serde_json::Value;
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image, as `daxfs+unix:///path/to.sock/NAME`.
    address: OsString,

    /// Where the bare server is to make its socket.
    #[arg(long)]
    socket: PathBuf,

    #[command(flatten)]
    limits: Limits,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BareServerArgs {
    /// The image whose descriptor is passed.
    address: OsString,

    /// Socket to make.
    socket: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<Value> {
    let mut server = Command::new(std::env::current_exe()?)
        .arg("bare-server")
        .args([args.address.as_os_str(), args.socket.as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ready = [0];
    server.stdout.take().context("a pipe")?.read_exact(&mut ready).context("the bare server")?;
    let len = usize::try_from(Region::open(&args.address)?.len())?;
    let (address, socket) = (args.address.as_os_str(), args.socket.as_path());
    let mut cases: Vec<Case<'_>> = vec![
        ("attach", Box::new(move || rounds::time(|| Ok(Region::open(address)?)))),
        ("open", Box::new(move || rounds::time(|| Ok(Image::open(address)?)))),
        ("bare", Box::new(move || rounds::time(|| bare(socket, len)))),
    ];
    let result = rounds::interleave(&mut cases, args.limits);
    // It ends with its input.
    drop(server.stdin.take());
    server.wait()?;
    result
}

/// Connects, takes the descriptor that comes, and maps it.
fn bare(socket: &Path, len: usize) -> Result<(MmapRaw, OwnedFd)> {
    let stream = UnixStream::connect(socket)?;
    let (_, mut fds) = dmabuf::recv_fds(stream.as_fd(), &mut [0], 1)?;
    let fd = fds.pop().context("no descriptor came")?;
    let map = MmapOptions::new().len(len).map_raw_read_only(fd.as_raw_fd())?;
    Ok((map, fd))
}

/// The least that a server can do: it sends the descriptor to whoever connects, until standard input ends.
pub(crate) fn bare_server(args: &BareServerArgs) -> Result<()> {
    let region = Region::open(&args.address)?;
    let fd = region.fd().context("the image has no descriptor")?;
    let listener = UnixListener::bind(&args.socket).with_context(|| args.socket.display().to_string())?;
    crate::print(&Value::Null)?;
    std::thread::scope(|scope| {
        scope.spawn(|| -> Result<()> {
            for stream in listener.incoming() {
                // A client that is gone already is no reason to stop.
                let _ = dmabuf::send_fds(stream?.as_fd(), b"x", &[fd]);
            }
            Ok(())
        });
        let read = std::io::stdin().read_to_end(&mut Vec::new());
        // The other thread waits for clients that do not come any more.
        std::process::exit(i32::from(read.is_err()))
    })
}
