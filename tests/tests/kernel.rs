//! Images and descriptors on a kernel with udmabuf and dma-heap: within a process, across processes, to the end.
//!
//! `make test-kernel` runs these where the devices are, in a virtual machine if need be, with
//! `DAXFS_REQUIRE_DEVICES=1`: a device that is missing is then a failure. Elsewhere each test says that it did not
//! run.
//!
//! Tests with two processes start this test program again for the second one; [`ROLE`] tells it so.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Image, OpenOptions, Provenance, Region};
use daxfs_tests::devices;
use daxfs_tests::examine::examine_live;
use daxfs_tests::tree::{self, Item, Tree};
use dmabuf::{Access, CpuAccess, FdKind, Mapping};
use mkimage::{Format, Memory, Packer, Summary};
use std::env;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// Set in a second process; the value is the source tree that the image must equal.
const ROLE: &str = "DAXFS_KERNEL_TEST_SOURCE";

/// The kinds of dma-buf, with the exporter's name in the kernel.
fn memories() -> [(Memory, &'static str, &'static str); 2] {
    [(Memory::Udmabuf, "udmabuf", "udmabuf"), (Memory::Heap("system".into()), "heap:system", "system")]
}

/// A tensor that the checkpoint of the source tree holds.
struct Weight {
    name: &'static str,
    dtype: &'static str,
    shape: &'static [u64],
    bytes: Vec<u8>,
}

fn weights() -> [Weight; 4] {
    let byte = |i: usize| u8::try_from(i % 251).unwrap_or(0);
    let bytes = |len: usize, step: usize| (0..len).map(|i| byte(i * step / 7)).collect();
    [
        Weight { name: "embed", dtype: "BF16", shape: &[300, 64], bytes: bytes(300 * 64 * 2, 5) },
        Weight { name: "norm", dtype: "F32", shape: &[64], bytes: bytes(256, 3) },
        Weight { name: "proj", dtype: "F8_E4M3", shape: &[64, 100], bytes: bytes(6400, 11) },
        Weight { name: "scale", dtype: "F32", shape: &[], bytes: bytes(4, 13) },
    ]
}

/// One safetensors file.
fn shard(weights: &[Weight]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for weight in weights {
        let start = data.len();
        data.extend_from_slice(&weight.bytes);
        let (dtype, shape, offsets) = (weight.dtype, weight.shape, [start, data.len()]);
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        header.insert(weight.name.into(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// A model in two shards, and what else a tree can hold. One file is long enough to start on a 2 MiB boundary.
fn source() -> (tempfile::TempDir, PathBuf) {
    let all = weights();
    let (first, second) = all.split_at(2);
    let map: serde_json::Map<String, serde_json::Value> =
        [("model-1.safetensors", first), ("model-2.safetensors", second)]
            .iter()
            .flat_map(|(file, weights)| weights.iter().map(|weight| (weight.name.to_owned(), (*file).into())))
            .collect();
    let index = serde_json::to_vec(&serde_json::json!({ "metadata": {}, "weight_map": map })).unwrap();
    let large = (0..(2 << 20) + 5).map(|i: usize| u8::try_from(i % 253).unwrap_or(0)).collect();
    let tree: Tree = vec![
        (b"config.json".to_vec(), Item::File(0o644, b"{\"layers\": 1}\n".to_vec())),
        (b"model-1.safetensors".to_vec(), Item::File(0o644, shard(first))),
        (b"model-2.safetensors".to_vec(), Item::File(0o600, shard(second))),
        (b"model.safetensors.index.json".to_vec(), Item::File(0o644, index)),
        (b"d".to_vec(), Item::Dir(0o755)),
        (b"d/large".to_vec(), Item::File(0o644, large)),
        (b"d/empty".to_vec(), Item::File(0o644, Vec::new())),
        (b"d/again".to_vec(), Item::HardLink(b"config.json".to_vec())),
        (b"link".to_vec(), Item::Symlink(b"d/large".to_vec())),
    ];
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("tree");
    fs::create_dir(&folder).unwrap();
    tree::write(&tree, &folder);
    (work, folder)
}

fn pack(folder: &Path, memory: &Memory) -> (OwnedFd, Summary) {
    // Byte for byte, so that files are compared with those of the tree.
    Packer::new().input(folder).exact(true).plan().unwrap().write_memory(memory).unwrap()
}

/// Every byte of every file and of every tensor.
fn check(image: &Image, folder: &Path) {
    examine_live(image);
    tree::assert_same(&tree::in_image(image), &tree::on_disk(folder));
    let tensors = image.tensors().unwrap();
    let expected = weights();
    assert!(tensors.names().into_iter().map(Result::unwrap).eq(expected.iter().map(|weight| weight.name)));
    for weight in expected {
        let tensor = tensors.get(weight.name).unwrap();
        assert_eq!((tensor.dtype().name(), tensor.shape()), (weight.dtype, weight.shape), "{}", weight.name);
        let _access = image.region().cpu_access().unwrap().expect("a dma-buf has brackets");
        assert!(tensor.bytes().unwrap().to_vec() == weight.bytes, "bytes of {}", weight.name);
        assert!(matches!(tensor.as_slice(), Err(daxfs::Error::NotImmutable(Provenance::Shared))));
    }
}

/// This program once more, to run the same test in its second role.
fn second_process(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(ROLE, folder);
    command
}

/// The source tree, in the second process of a test.
fn second_role() -> Option<PathBuf> {
    env::var_os(ROLE).map(PathBuf::from)
}

/// A command of the project, which lies one folder above the test programs.
fn command(name: &str) -> PathBuf {
    let path = env::current_exe().unwrap().ancestors().nth(2).unwrap().join(name);
    assert!(path.exists(), "no {}: build the commands first (cargo build --bins)", path.display());
    path
}

fn connected(mut command: Command) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // A test that fails there says so on standard error.
    let child = command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).spawn().unwrap();
    (child, ours)
}

/// The other end of [`connected`], in the second process.
fn other_end() -> UnixStream {
    UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap())
}

fn receive(socket: &UnixStream) -> OwnedFd {
    let mut payload = [0; 8];
    let (len, mut fds) = dmabuf::recv_fds(socket.as_fd(), &mut payload, 1).unwrap();
    assert_eq!(&payload[..len], b"buffer");
    fds.pop().unwrap()
}

fn tell(mut socket: &UnixStream) {
    socket.write_all(b".").unwrap();
}

fn wait_for(mut socket: &UnixStream) {
    socket.read_exact(&mut [0]).unwrap();
}

/// Whether the kernel still has the buffer with this inode number; `None` where its list cannot be read.
fn listed(ino: u64) -> Option<bool> {
    let list = match fs::read_to_string("/sys/kernel/debug/dma_buf/bufinfo") {
        Ok(list) => list,
        Err(error) => {
            assert!(env::var_os("DAXFS_REQUIRE_DEVICES").is_none(), "the kernel's list of buffers: {error}");
            return None;
        }
    };
    // size, flags, mode, count, exporter, inode number, name
    Some(
        list.lines().any(|line| line.split_whitespace().nth(5).is_some_and(|field| field.parse() == Ok(ino))),
    )
}

/// Waits until the kernel has freed the buffer. A test beside this one may just be starting a process, which holds a
/// copy of every descriptor for a moment.
fn wait_until_freed(ino: u64) {
    for _ in 0..200 {
        if listed(ino) != Some(true) {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("the buffer {ino} is still there after 10 s without a user");
}

#[test]
fn an_image_in_a_dma_buf_is_replaced_under_its_readers() {
    if !devices::are_here(&[]) {
        return;
    }
    let (_work, folder) = source();
    let packer = |replace| Packer::new().input(&folder).exact(true).replace(replace).verify(true);
    let one = packer(false).plan().unwrap().total_size().next_multiple_of(2 << 20);
    // A pool that is there already, as another process or a driver would pass it on.
    for slots in [1, 3] {
        let pool = dmabuf::heap_allocate("system", slots * one).unwrap();
        let memory =
            Memory::parse(format!("fd:{}", pool.as_raw_fd()).as_ref(), dmabuf::HugePages::No).unwrap();
        let (region, _) = packer(false).plan().unwrap().write_region(&memory).unwrap();
        let old = Image::from_region(region).unwrap();
        assert_eq!(old.region().class(), dmabuf::MemoryClass::PfnMap);
        let kept = old.file("config.json").unwrap().to_vec().unwrap();
        assert!(old.is_current().unwrap());
        fs::write(folder.join("config.json"), format!("{{\"layers\": {}}}\n", 10 + slots)).unwrap();
        let (_, summary) = packer(true).plan().unwrap().write_region(&memory).unwrap();
        assert_eq!((summary.generation, summary.keeps_previous), (Some(1), slots > 1));
        assert!(!old.is_current().unwrap());
        if slots > 1 {
            assert_eq!(old.file("config.json").unwrap().to_vec().unwrap(), kept);
        }
        let new = old.refresh().unwrap().unwrap();
        let written = fs::read(folder.join("config.json")).unwrap();
        assert_eq!(new.file("config.json").unwrap().to_vec().unwrap(), written);
        let sent = tempfile::tempfile().unwrap();
        assert_eq!(new.file("d/large").unwrap().write_to(&sent).unwrap(), (2 << 20) + 5);
        assert_eq!(sent.metadata().unwrap().len(), (2 << 20) + 5);
    }
}

#[test]
fn an_image_in_a_dma_buf_is_the_source_tree() {
    if !devices::are_here(&[]) {
        return;
    }
    let (_work, folder) = source();
    for (memory, _, exporter) in memories() {
        for format in [Format::V8, Format::V5] {
            let (fd, summary) = Packer::new()
                .input(&folder)
                .exact(true)
                .format(format)
                .plan()
                .unwrap()
                .write_memory(&memory)
                .unwrap();
            let info = dmabuf::describe(fd.as_fd()).unwrap();
            assert!(
                matches!(&info.kind, FdKind::DmaBuf { exporter: name, .. } if name == exporter),
                "{info:?}"
            );
            assert!(
                info.writable
                    && info.len >= summary.image_bytes
                    && info.len.is_multiple_of(dmabuf::page_size()),
                "{info:?}"
            );

            let image = OpenOptions::new().strict(true).open_region(Region::from_fd(fd).unwrap()).unwrap();
            assert_eq!(image.region().len(), info.len);
            assert_eq!(image.superblock().total_size, summary.image_bytes);
            assert_eq!(image.region().provenance(), Provenance::Shared, "a dma-buf is never proven constant");
            assert!(!image.region().is_writable());
            check(&image, &folder);
        }
    }
}

#[test]
fn a_descriptor_sent_over_a_socket_is_the_same_memory_until_its_last_user_goes() {
    const NAME: &str = "a_descriptor_sent_over_a_socket_is_the_same_memory_until_its_last_user_goes";
    if let Some(folder) = second_role() {
        let socket = other_end();
        let image = Image::from_fd(receive(&socket)).unwrap();
        // From here on nobody but this process holds the memory.
        tell(&socket);
        wait_for(&socket);
        check(&image, &folder);
        tell(&socket);
        wait_for(&socket);
        return;
    }
    if !devices::are_here(&[]) {
        return;
    }
    let (_work, folder) = source();
    for (memory, _, exporter) in memories() {
        let (fd, _) = pack(&folder, &memory);
        let ino = dmabuf::describe(fd.as_fd()).unwrap().ino;
        let (mut child, socket) = connected(second_process(NAME, &folder));
        dmabuf::send_fds(socket.as_fd(), b"buffer", &[fd.as_fd()]).unwrap();
        wait_for(&socket);
        drop(fd);
        tell(&socket);
        wait_for(&socket);
        assert_ne!(listed(ino), Some(false), "{exporter}: the other process holds the memory");
        tell(&socket);
        assert!(child.wait().unwrap().success());
        wait_until_freed(ino);
    }
}

#[test]
fn a_tensor_keeps_the_memory_after_image_and_descriptor_are_gone() {
    if !devices::are_here(&[]) {
        return;
    }
    let (_work, folder) = source();
    for (memory, _, exporter) in memories() {
        let (fd, _) = pack(&folder, &memory);
        let ino = dmabuf::describe(fd.as_fd()).unwrap().ino;
        let tensor = Image::from_fd(fd).unwrap().tensors().unwrap().get("norm").unwrap();
        assert_ne!(listed(ino), Some(false), "{exporter}");
        assert!(tensor.bytes().unwrap().to_vec() == weights()[1].bytes);
        drop(tensor);
        wait_until_freed(ino);
    }
}

#[test]
fn a_command_inherits_the_image() {
    const NAME: &str = "a_command_inherits_the_image";
    if let Some(folder) = second_role() {
        let source = env::var_os("DAXFS_IMAGE").unwrap();
        assert_eq!(source.to_str().unwrap(), format!("fd:{}", env::var("DAXFS_FD").unwrap()));
        check(&Image::open(source).unwrap(), &folder);
        return;
    }
    if !devices::are_here(&[]) {
        return;
    }
    let (_work, folder) = source();
    for (_, target, _) in memories() {
        let second = second_process(NAME, &folder);
        let mut packer = Command::new(command("daxfs-pack"));
        packer
            .args(["--quiet", "--exact", "--into", target])
            .arg(&folder)
            .arg("--")
            .arg(second.get_program());
        packer.args(second.get_args()).env(ROLE, &folder);
        let output = packer.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("1 passed"), "the second process ran its part: {text}");
    }
}

#[test]
fn the_commands_read_an_inherited_image() {
    if !devices::are_here(&[]) {
        return;
    }
    let (_work, folder) = source();
    let daxfs = command("daxfs");
    for (_, target, exporter) in memories() {
        let run = |script: &str| {
            let mut packer = Command::new(command("daxfs-pack"));
            packer
                .args(["--quiet", "--into", target])
                .arg(&folder)
                .args(["--", "sh", "-c", script])
                .env("DAXFS", &daxfs);
            let output = packer.output().unwrap();
            assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        };
        let inspected = String::from_utf8(run("\"$DAXFS\" inspect \"fd:$DAXFS_FD\"")).unwrap();
        assert!(inspected.contains(exporter), "inspect names the exporter {exporter}: {inspected}");
        assert!(run("\"$DAXFS\" cat \"$DAXFS_IMAGE\" /d/large") == fs::read(folder.join("d/large")).unwrap());
        run("\"$DAXFS\" verify \"$DAXFS_IMAGE\"");
    }
}

#[test]
fn writes_between_brackets_are_seen_between_brackets() {
    const NAME: &str = "writes_between_brackets_are_seen_between_brackets";
    // Whole pages, whatever they have.
    const LEN: usize = 3 << 16;
    /// One side writes `value` everywhere, the other has to find it.
    fn write(map: &mut Mapping, fd: &OwnedFd, value: u8) {
        let access = CpuAccess::begin(fd.as_fd(), Access::Write).unwrap();
        map.view_mut().unwrap().copy_from(0, &[value; LEN]).unwrap();
        access.finish().unwrap();
    }
    fn expect(map: &Mapping, fd: &OwnedFd, value: u8) {
        let access = CpuAccess::begin(fd.as_fd(), Access::Read).unwrap();
        // A second bracket inside the first, ended by drop, leaves the first open.
        drop(CpuAccess::begin(fd.as_fd(), Access::ReadWrite).unwrap());
        assert!(map.view().to_vec() == [value; LEN]);
        access.finish().unwrap();
    }
    if second_role().is_some() {
        let socket = other_end();
        let fd = receive(&socket);
        let mut map = Mapping::read_write(fd.as_fd(), 0, LEN).unwrap();
        for round in 0..20 {
            wait_for(&socket);
            expect(&map, &fd, round);
            write(&mut map, &fd, round + 100);
            tell(&socket);
        }
        return;
    }
    if !devices::are_here(&[]) {
        return;
    }
    let memfd = dmabuf::Memfd::create("kernel", LEN as u64, dmabuf::HugePages::No).unwrap();
    for fd in [dmabuf::udmabuf_from(&memfd).unwrap(), dmabuf::heap_allocate("system", LEN as u64).unwrap()] {
        let mut map = Mapping::read_write(fd.as_fd(), 0, LEN).unwrap();
        expect(&map, &fd, 0);
        let (mut child, socket) = connected(second_process(NAME, Path::new("/")));
        dmabuf::send_fds(socket.as_fd(), b"buffer", &[fd.as_fd()]).unwrap();
        for round in 0..20 {
            write(&mut map, &fd, round);
            tell(&socket);
            wait_for(&socket);
            expect(&map, &fd, round + 100);
        }
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn a_buffer_may_be_larger_than_its_image_but_not_shorter() {
    if !devices::are_here(&[]) {
        return;
    }
    let (work, folder) = source();
    let file = work.path().join("image");
    Packer::new().input(&folder).exact(true).plan().unwrap().write_file(&file).unwrap();
    let bytes = fs::read(&file).unwrap();
    let buffer_with = |len: u64| {
        let fd = dmabuf::heap_allocate("system", len).unwrap();
        let copied = bytes.len().min(usize::try_from(len).unwrap());
        let mut map = Mapping::read_write(fd.as_fd(), 0, copied).unwrap();
        let access = CpuAccess::begin(fd.as_fd(), Access::Write).unwrap();
        map.view_mut().unwrap().copy_from(0, &bytes[..copied]).unwrap();
        access.finish().unwrap();
        fd
    };
    let size = bytes.len() as u64;
    let image = Image::from_fd(buffer_with(size + (1 << 20))).unwrap();
    assert_eq!((image.superblock().total_size, image.region().len()), (size, size + (1 << 20)));
    check(&image, &folder);

    let short = (size - 1) / dmabuf::page_size() * dmabuf::page_size();
    let error = Image::from_fd(buffer_with(short)).unwrap_err().to_string();
    assert!(error.contains(&format!("{short:#x}")), "the error names the buffer's length: {error}");
}

#[test]
fn what_the_kernel_refuses_is_an_error_that_says_why() {
    if !devices::are_here(&[]) {
        return;
    }
    let (work, folder) = source();
    let (fd, _) = pack(&folder, &Memory::Udmabuf);
    let error = Region::from_fd_private(fd).unwrap_err().to_string();
    assert!(error.contains("mmap"), "a private copy of a udmabuf: {error}");

    // A udmabuf has at most the size of a module parameter: 64 MiB, unless somebody raised it.
    let limit = dmabuf::udmabuf_limit().unwrap();
    let sparse = work.path().join("sparse");
    fs::File::create(&sparse).unwrap().set_len(limit + 4096).unwrap();
    let error =
        Packer::new().input(&sparse).plan().unwrap().write_memory(&Memory::Udmabuf).unwrap_err().to_string();
    assert!(error.contains("size_limit_mb"), "{error}");
    let mut packer = Command::new(command("daxfs-pack"));
    let output = packer.args(["--into", "udmabuf"]).arg(&sparse).args(["--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("size_limit_mb"));
}
