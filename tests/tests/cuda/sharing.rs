//! Device memory in several processes: it outlives the one that filled it, and others take only what is theirs.

use std::env;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;

use daxfs::Image;
use daxfs_device::{Device, DeviceError, Route};
use daxfs_device::{Error, ImageExt, Shared, UploadOptions};
use dmabuf::{recv_fds, send_fds};

use crate::support::{check, device, image, live, on_a_gpu, simulated};

/// What a process of these tests does, and the number of its socket.
const ROLE: &str = "DAXFS_TEST_CUDA_ROLE";

/// Starts this test once more, in a role, and gives the socket to it.
fn start(test: &str, role: &str) -> (std::process::Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs = OwnedFd::from(theirs);
    nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(ROLE, format!("{role} {}", theirs.as_raw_fd()));
    (command.spawn().unwrap(), ours)
}

/// Fills the device's memory, sends descriptors of it and of the host's image, and waits for its end.
fn uploader(socket: &UnixStream, options: &UploadOptions) {
    let image = image();
    let resident = image.to_with(&device(), options).unwrap();
    let Shared { fd, size, uuid } = resident.buffers()[0].as_cuda().unwrap().share().unwrap();
    let mut message = size.to_le_bytes().to_vec();
    message.extend(uuid.as_bytes());
    send_fds(socket.as_fd(), &message, &[fd.as_fd(), image.region().fd().unwrap()]).unwrap();
    std::thread::park();
}

fn receive(socket: &UnixStream) -> (Shared, Image) {
    let mut message = [0; 24];
    let (len, mut fds) = recv_fds(socket.as_fd(), &mut message, 2).unwrap();
    assert_eq!((len, fds.len()), (24, 2));
    let image = Image::from_fd(fds.pop().unwrap()).unwrap();
    let size = u64::from_le_bytes(message[..8].try_into().unwrap());
    (
        Shared { fd: fds.pop().unwrap(), size, uuid: <[u8; 16]>::try_from(&message[8..]).unwrap().into() },
        image,
    )
}

/// A process fills memory, by `options`, and is killed. This one has the descriptor then, and no context; two others
/// `read` the memory, one after the other.
pub fn outlives(test: &str, options: &UploadOptions, read: fn(Shared, &Image)) {
    on_a_gpu(test, || {
        if let Ok(role) = env::var(ROLE) {
            let (role, number) = role.split_once(' ').unwrap();
            let socket = UnixStream::from(dmabuf::duplicate(number.parse().unwrap()).unwrap());
            if role == "upload" {
                return uploader(&socket, options);
            }
            let (shared, image) = receive(&socket);
            read(shared, &image);
            return assert_eq!(live(), 0);
        }
        let (mut process, socket) = start(test, "upload");
        let (shared, image) = receive(&socket);
        process.kill().unwrap();
        process.wait().unwrap();
        for _ in 0..2 {
            let (mut reader, socket) = start(test, "read");
            let mut message = shared.size.to_le_bytes().to_vec();
            message.extend(shared.uuid.as_bytes());
            send_fds(socket.as_fd(), &message, &[shared.fd.as_fd(), image.region().fd().unwrap()]).unwrap();
            assert!(reader.wait().unwrap().success());
        }
    });
}

#[test]
fn memory_outlives_the_process_that_filled_it() {
    const TEST: &str = "sharing::memory_outlives_the_process_that_filled_it";
    outlives(TEST, &UploadOptions::new(), |shared, image| {
        let attached = device().attach(image, &shared).unwrap();
        assert_eq!(attached.memory().route(), Route::Descriptor);
        drop(shared);
        check(image, &attached);
    });
}

#[test]
fn only_the_memory_of_this_device_and_image_is_attached() {
    let settings = [("DAXFS_FAKE_CUDA_DEVICES", "2")];
    simulated("sharing::only_the_memory_of_this_device_and_image_is_attached", &settings, || {
        let image = image();
        let resident = image.to(&device()).unwrap();
        let share = || resident.buffers()[0].as_cuda().unwrap().share().unwrap();
        let attach = |device: &Device, shared: &Shared| device.attach(&image, shared);
        let other = Device::open("cuda", 1).unwrap();
        let error = attach(&other, &share()).unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::OtherDevice { .. })), "{error}");
        assert!(error.to_string().starts_with("the memory lies on device "), "{error}");
        // Whatever is said of it.
        let uuid = other.as_cuda().unwrap().uuid();
        let error = attach(&other, &Shared { uuid, ..share() }).unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::OtherDevice { .. })), "{error}");

        let short = Shared { size: 4096, ..share() };
        let error = attach(&device(), &short).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Image(daxfs::Error::Memory(dmabuf::Error::OutOfBounds { bound: 4096, .. }))
            ),
            "{error}"
        );
        let long = Shared { size: share().size * 2, ..share() };
        let error = attach(&device(), &long).unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::Driver { .. })), "{error}");
        let none = Shared { fd: File::open("/dev/zero").unwrap().into(), ..share() };
        let error = attach(&device(), &none).unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::Driver { .. })), "{error}");
        check(&image, &attach(&device(), &share()).unwrap());
        drop((resident, other));
        assert_eq!(live(), 0);
    });
}

#[test]
fn device_memory_is_exported_as_a_dma_buf() {
    on_a_gpu("sharing::device_memory_is_exported_as_a_dma_buf", || {
        let image = image();
        let resident = image.to(&device()).unwrap();
        let fd = resident.buffers()[0].as_cuda().unwrap().export_dma_buf().unwrap();
        let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        if crate::support::is_real() {
            let info = dmabuf::describe(fd.as_fd()).unwrap();
            assert!(matches!(info.kind, dmabuf::FdKind::DmaBuf { .. }), "{info:?}");
            assert_eq!(info.len, image.superblock().total_size.next_multiple_of(dmabuf::page_size()));
        }
    });
}
