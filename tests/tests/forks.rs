//! A process that forks while other threads open images has children that open images.

#![allow(unsafe_code, reason = "fork")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use daxfs::Image;
use dmabuf::faults::Advice;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// Forks; without the locks around them one in some dozens meets a lock that is held.
const FORKS: usize = 400;
/// More than a child needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sets it when it goes: threads that go on until then end, however the test does.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn fork_while_images_are_opened(bytes: &[u8]) {
    let open = || Image::from_bytes(bytes.to_vec());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = Done(&done);
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    open().unwrap();
                }
            });
        }
        for number in 0..FORKS {
            // SAFETY: the child opens an image, which takes memory, as the C library allows after a fork, and ends without
            // running anything of its parent's.
            let child = match unsafe { fork() }.unwrap() {
                ForkResult::Parent { child } => child,
                ForkResult::Child => {
                    let status = i32::from(open().is_err());
                    // SAFETY: ends the process.
                    unsafe { nix::libc::_exit(status) }
                }
            };
            let started = Instant::now();
            loop {
                match waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap() {
                    WaitStatus::StillAlive if started.elapsed() < PATIENCE => {
                        std::thread::sleep(Duration::from_micros(100));
                    }
                    WaitStatus::StillAlive => {
                        kill(child, Signal::SIGKILL).unwrap();
                        waitpid(child, None).unwrap();
                        panic!("child {number} waits for a thread that it does not have");
                    }
                    status => {
                        assert_eq!(status, WaitStatus::Exited(child, 0));
                        break;
                    }
                }
            }
        }
    });
}

#[test]
fn children_of_a_fork_open_images() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), b"bytes").unwrap();
    let plan = mkimage::Packer::new().input(dir.path()).plan().unwrap();
    let memory = plan.write_memory(&mkimage::Memory::Memfd(mkimage::HugePages::No)).unwrap().0;
    let image = daxfs::Region::from_fd(memory.as_fd().try_clone_to_owned().unwrap()).unwrap();
    let bytes = image.as_slice().unwrap().to_vec();
    fork_while_images_are_opened(&bytes);
    // From here on each image is described when it is opened, and the description goes with it.
    daxfs::explain_faults(Advice { read_only: "", gone: "" }).unwrap();
    fork_while_images_are_opened(&bytes);
}
