//! Memory that few machines have and the guest of the kernel tests does: pages of the hugetlb pool, a second NUMA node,
//! and a block device, which is refused.
//!
//! `tests/kernel/run.py` sets `DAXFS_REQUIRE_GUEST=1` in its guest: what is missing is then a failure. Elsewhere each
//! test says that it did not run.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use daxfs::{Error, Image, Provenance};
use dmabuf::{FdKind, HugePages, Mapping, Memfd, nodes_of};
use mkimage::{Memory, Packer};
use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

const HUGE: u64 = 2 << 20;
const GIGANTIC: u64 = 1 << 30;
/// As many as the guest has; half of them are on each node.
const POOL: u64 = 8;

/// Whether a thing is here. Says so if it is not, or fails in the guest.
fn here(what: &str, is_here: bool) -> bool {
    if !is_here {
        assert!(env::var_os("DAXFS_REQUIRE_GUEST").is_none(), "no {what}");
        eprintln!("not run: no {what}");
    }
    is_here
}

/// Free pages of 2 MiB of the whole pool or of one node; 0 without a pool.
fn free_pages(node: Option<u32>) -> u64 {
    free_pages_of(HUGE, node)
}

fn free_pages_of(size: u64, node: Option<u32>) -> u64 {
    let place = node.map_or("/sys/kernel/mm".into(), |node| format!("/sys/devices/system/node/node{node}"));
    let text = fs::read_to_string(format!("{place}/hugepages/hugepages-{}kB/free_hugepages", size >> 10));
    text.map_or(0, |text| text.trim().parse().unwrap())
}

/// Only in the guest, where nobody else takes pages meanwhile, tests beside this one included.
fn pool_is_here() -> bool {
    let is_guest = env::var_os("DAXFS_REQUIRE_GUEST").is_some();
    here("hugetlb pool of 8 pages of 2 MiB for these tests alone", is_guest && free_pages(None) >= POOL)
}

fn second_node_is_here() -> bool {
    here("second NUMA node", Path::new("/sys/devices/system/node/node1").exists())
}

/// A folder with one file of more than two huge pages.
fn source() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("tree");
    fs::create_dir(&folder).unwrap();
    let bytes: Vec<u8> = (0..2 * HUGE + 5).map(|i| (i % 251).to_le_bytes()[0]).collect();
    fs::write(folder.join("large"), &bytes).unwrap();
    (work, folder, bytes)
}

/// A command of the project, which lies one folder above the test programs.
fn command(name: &str) -> PathBuf {
    env::current_exe().unwrap().ancestors().nth(2).unwrap().join(name)
}

#[test]
fn an_image_is_packed_into_hugetlb_pages() {
    if !pool_is_here() {
        return;
    }
    let (_work, folder, bytes) = source();
    let memory = Memory::Memfd(HugePages::Hugetlb2M);
    let (fd, _) = Packer::new().input(&folder).plan().unwrap().write_memory(&memory).unwrap();
    let info = dmabuf::describe(fd.as_fd()).unwrap();
    assert!(matches!(info.kind, FdKind::Memfd { hugetlb: Some(HUGE), .. }), "{:?}", info.kind);
    assert_eq!(info.len % HUGE, 0);
    let image = Image::from_fd(fd).unwrap();
    assert_eq!(image.region().provenance(), Provenance::Sealed);
    assert!(image.file("large").unwrap().to_vec().unwrap() == bytes);
    drop(image);

    // The command does the same, and its child has the pages.
    let script = "cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages && \"$DAXFS\" verify \"$DAXFS_IMAGE\" \
                  && \"$DAXFS\" cat \"$DAXFS_IMAGE\" /large >\"$COPY\"";
    let copy = folder.with_extension("copy");
    let output = Command::new(command("daxfs-pack"))
        .args(["--quiet", "--into", "memfd", "--hugepages", "2M"])
        .arg(&folder)
        .args(["--", "sh", "-c", script])
        .envs([("DAXFS", command("daxfs")), ("COPY", copy.clone())])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let left: u64 = String::from_utf8_lossy(&output.stdout).lines().next().unwrap().parse().unwrap();
    assert!(left + 3 <= free_pages(None), "{left} free pages while the image was there");
    assert!(fs::read(copy).unwrap() == bytes);
}

#[test]
fn an_image_is_packed_into_a_page_of_1_gib_that_processes_share() {
    let is_guest = env::var_os("DAXFS_REQUIRE_GUEST").is_some();
    let free = free_pages_of(GIGANTIC, None);
    if !here("hugetlb page of 1 GiB for these tests alone", is_guest && free >= 1) {
        return;
    }
    let (_work, folder, bytes) = source();
    let memory = Memory::Memfd(HugePages::Hugetlb1G);
    let (fd, summary) = Packer::new().input(&folder).plan().unwrap().write_memory(&memory).unwrap();
    assert_eq!(free_pages_of(GIGANTIC, None), free - 1);
    // What was obtained, as the packer says it.
    let pages = summary.pages.unwrap();
    assert_eq!((pages.page_size, pages.huge_bytes), (GIGANTIC, summary.image_bytes));
    assert!(summary.to_string().contains("(hugetlb pages of 1.0 GiB)"), "{summary}");
    let info = dmabuf::describe(fd.as_fd()).unwrap();
    assert!(matches!(info.kind, FdKind::Memfd { hugetlb: Some(GIGANTIC), .. }), "{:?}", info.kind);
    assert_eq!(info.len, GIGANTIC);

    let image = Image::from_fd(fd).unwrap();
    assert_eq!(image.region().provenance(), Provenance::Sealed);
    assert!(image.file("large").unwrap().to_vec().unwrap() == bytes);
    // The first touch has mapped the page, and with it all of the image.
    let mapped = image.region().pages().unwrap().unwrap();
    assert_eq!((mapped.page_size, mapped.huge, mapped.resident), (GIGANTIC, GIGANTIC, GIGANTIC));
    drop(image);
    assert_eq!(free_pages_of(GIGANTIC, None), free);

    // Another process has the same page, and not one of its own.
    let script = "cat /sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages \
                  && \"$DAXFS\" verify \"$DAXFS_IMAGE\" && \"$DAXFS\" inspect \"$DAXFS_IMAGE\" \
                  && \"$DAXFS\" cat \"$DAXFS_IMAGE\" /large >\"$COPY\"";
    let copy = folder.with_extension("copy");
    let output = Command::new(command("daxfs-pack"))
        .args(["--into", "memfd", "--hugepages", "1G"])
        .arg(&folder)
        .args(["--", "sh", "-c", script])
        .envs([("DAXFS", command("daxfs")), ("COPY", copy.clone())])
        .output()
        .unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{complained}");
    assert!(complained.contains("(hugetlb pages of 1.0 GiB)"), "{complained}");
    assert_eq!(said.lines().next().unwrap(), (free - 1).to_string());
    assert!(said.contains("hugetlb") && said.contains("1.0 GiB mapped in 1G pages"), "{said}");
    assert!(fs::read(copy).unwrap() == bytes);

    // More than there is is refused before anything is copied, with the pool's name.
    let error = Memfd::create("many", (free + 1) * GIGANTIC, HugePages::Hugetlb1G).unwrap_err().to_string();
    assert!(error.contains("hugepages-1048576kB") && error.contains(&format!("there are {free}")), "{error}");
}

#[test]
fn memory_is_on_the_node_that_was_asked_for() {
    if !second_node_is_here() {
        return;
    }
    for node in [1, 0] {
        let memfd = Memfd::create_on("node", HUGE, HugePages::No, Some(node)).unwrap();
        let mut map = Mapping::read_write(memfd.as_fd(), 0, 2 << 20).unwrap();
        map.view_mut().unwrap().fill_zero(0, HUGE).unwrap();
        assert_eq!(nodes_of(map.view(), 4096).unwrap(), BTreeMap::from([(node, HUGE)]));
    }
}

#[test]
fn hugetlb_pages_are_on_the_node_that_was_asked_for() {
    if !pool_is_here() || !second_node_is_here() {
        return;
    }
    let hugetlb = |pages, node| Memfd::create_on("hugetlb", pages * HUGE, HugePages::Hugetlb2M, Some(node));
    for node in [1, 0] {
        let free = free_pages(Some(node));
        let memfd = hugetlb(2, node).unwrap();
        assert_eq!(free_pages(Some(node)), free - 2, "they are allocated now");
        let mut map = Mapping::read_write(memfd.as_fd(), 0, 4 << 20).unwrap();
        map.view_mut().unwrap().fill_zero(0, 2 * HUGE).unwrap();
        assert_eq!(nodes_of(map.view(), 2 << 20).unwrap(), BTreeMap::from([(node, 2 * HUGE)]));
    }
    // The other node's pages do not count.
    let free = free_pages(Some(1));
    let error = hugetlb(free + 1, 1).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, dmabuf::Error::Unavailable { .. }), "{text}");
    assert!(text.contains(&format!("there are {free}")) && text.contains("/node1/hugepages/"), "{text}");
    assert_eq!(free_pages(Some(1)), free, "what there was is given back");
}

#[test]
fn a_block_device_is_refused_as_going_stale() {
    let devices = fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let mut nodes = devices.map(|device| Path::new("/dev").join(device.file_name()));
    let node = nodes.find(|node| File::open(node).is_ok());
    if !here("block device that may be opened", node.is_some()) {
        return;
    }
    let node = node.unwrap();
    match Image::open(&node).unwrap_err() {
        Error::Memory(dmabuf::Error::NotShareable { what, why }) => {
            assert!(what == node.to_str().unwrap() && why.contains("goes stale"), "{what}: {why}");
        }
        other => panic!("{other:?}"),
    }
}
