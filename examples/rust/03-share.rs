//! Packs a directory into memory and hands the descriptor to another process over a socket:
//! `cargo run --bin 03-share -- DIRECTORY`.
//!
//! The other process is this program again. It gets nothing but the socket: no path, no shared mount.

use std::error::Error;
use std::io::{Write, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args_os().nth(1).ok_or("usage: 03-share DIRECTORY")? {
        directory if directory != "--child" => parent(directory.as_ref()),
        _ => child(),
    }
}

fn parent(directory: &std::path::Path) -> Result<(), Box<dyn Error>> {
    // A sealed memfd: the other process can read it and do nothing else.
    let memory = mkimage::Memory::Memfd(dmabuf::HugePages::Auto);
    let (image, summary) = mkimage::Packer::new().input(directory).plan()?.write_memory(&memory)?;
    writeln!(stdout().lock(), "parent: packed {} bytes", summary.image_bytes)?;

    let (ours, theirs) = UnixStream::pair()?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("--child")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    dmabuf::send_fds(ours.as_fd(), b"image", &[image.as_fd()])?;
    // The memory lives as long as anybody holds it; the parent lets go before the child even looks.
    drop(image);
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(format!("child: {status}").into()) }
}

fn child() -> Result<(), Box<dyn Error>> {
    let stdin = std::io::stdin();
    let mut message = [0; 16];
    let (_, mut descriptors) = dmabuf::recv_fds(stdin.as_fd(), &mut message, 1)?;
    let image = daxfs::Image::from_fd(descriptors.pop().ok_or("no descriptor came")?)?;
    let bytes: usize = image.region().as_slice()?.len();
    let mut out = stdout().lock();
    writeln!(out, "child: {} entries, {bytes} bytes, {}", image.len(), image.region().provenance())?;
    Ok(())
}
