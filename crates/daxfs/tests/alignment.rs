//! What a tensor's alignment promises, against the address that it has, for every kind of region.

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use daxfs::{Image, OpenOptions, Part, Region, Tensor};
use dmabuf::{HugePages, Mapping, Memfd, Seals};
use mkimage::Packer;

const HUGE: usize = 2 << 20;

/// An image of two tensors on multiples of `align`, with `len` bytes each.
fn pack(align: u64, len: usize, path: &Path) {
    let source = path.with_extension("safetensors");
    let tensors = [("a", 0, len), ("b", len, 2 * len)].map(|(name, begin, end)| {
        format!(r#""{name}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{begin},{end}]}}"#)
    });
    let header = format!("{{{}}}", tensors.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    bytes.resize(bytes.len() + 2 * len, 7);
    fs::write(&source, bytes).unwrap();
    Packer::new().input(source).tensor_alignment(Some(align)).plan().unwrap().write_file(path).unwrap();
}

/// A memfd with `image` at `offset`.
fn memfd(image: &[u8], offset: usize, seals: Seals) -> OwnedFd {
    let len = offset + image.len();
    let memfd = Memfd::create("test", len as u64, HugePages::No).unwrap();
    let mut mapping = Mapping::read_write(memfd.as_fd(), 0, len).unwrap();
    mapping.view_mut().unwrap().copy_from(offset as u64, image).unwrap();
    drop(mapping);
    memfd.seal(seals).unwrap();
    memfd.as_fd().try_clone_to_owned().unwrap()
}

/// `least` is what every mapping of the source keeps.
fn check(source: &str, tensor: &Tensor, least: u64) {
    let said = tensor.alignment();
    let address = tensor.bytes().unwrap().as_ptr().addr() as u64;
    assert!(said.is_power_of_two() && said <= Tensor::MAX_ALIGNMENT, "{source}: {said}");
    assert!(address.is_multiple_of(said), "{source}: {address:#x} is no multiple of {said}");
    assert!(said >= least, "{source}: {said}, but {least} is certain");
    let place = tensor.file().extent().unwrap().offset + tensor.offset();
    let start = address - place;
    let more =
        said == Tensor::MAX_ALIGNMENT || !place.is_multiple_of(2 * said) || !start.is_multiple_of(2 * said);
    assert!(more, "{source}: {said} is less than {start:#x} and {place:#x} allow");
}

#[test]
fn the_address_keeps_what_is_promised() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    for (align, len) in [(8, 100), (256, 5000), (4096, 5000), (2 << 20, 5000), (2 << 20, 3 << 20)] {
        pack(align, len, &path);
        let bytes = fs::read(&path).unwrap();
        let file = || OwnedFd::from(fs::File::open(&path).unwrap());
        let whole = || Part { offset: 0, len: Some(bytes.len() as u64) };
        // Vectors that begin at other distances from a page.
        let owned = |spare: usize| {
            let mut vector = Vec::with_capacity(bytes.len() + spare);
            vector.extend_from_slice(&bytes);
            Region::from_bytes(vector)
        };
        let mut regions = vec![
            ("file", 4096, Region::open(&path).unwrap()),
            ("descriptor of a file", 4096, Region::from_fd(file()).unwrap()),
            ("part of a file", 4096, Region::from_fd_part(file(), whole()).unwrap()),
            ("private", 4096, Region::from_fd_private(file()).unwrap()),
            ("sealed copy", 4096, Region::open(&path).unwrap().sealed_copy().unwrap()),
            ("memfd", 4096, Region::from_fd(memfd(&bytes, 0, Seals::empty())).unwrap()),
            ("sealed memfd", 4096, Region::from_fd(memfd(&bytes, 0, Seals::IMMUTABLE)).unwrap()),
            ("private memfd", 4096, Region::from_fd_private(memfd(&bytes, 0, Seals::empty())).unwrap()),
        ];
        for spare in [0, 1, 64, 4000, HUGE] {
            regions.push(("bytes", 4096, owned(spare)));
            regions.push(("sealed copy of bytes", 4096, owned(spare).sealed_copy().unwrap()));
        }
        for offset in [1, 48, 4096, 3 * 4096, HUGE, HUGE + 4096] {
            let part = Part { offset: offset as u64, len: None };
            let fd = memfd(&bytes, offset, Seals::empty());
            regions.push((
                "part",
                4096.min(1 << offset.trailing_zeros()),
                Region::from_fd_part(fd, part).unwrap(),
            ));
        }
        for (source, least, region) in regions {
            let image = Image::from_region(region).unwrap();
            for tensor in image.tensors().unwrap().iter() {
                check(source, &tensor.unwrap(), least.min(align));
            }
        }
        let private = OpenOptions::new().private(true).open(&path).unwrap();
        check("opened private", &private.tensors().unwrap().get("a").unwrap(), align.min(4096));
    }
}
