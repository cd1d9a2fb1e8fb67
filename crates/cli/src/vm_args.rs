//! `daxfs vm-args`: the options that give an image to virtual machines as memory, of which all have one copy.

use crate::args::{Device, VmArgs, Vmm};
use crate::output::{Outcome, Output};
use crate::source::name;
use anyhow::{Context, bail};
use daxfs::{FdKind, Image, Region, Source};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// What kernels map persistent memory in.
const PMEM_UNIT: u64 = 2 << 20;

/// Prints the options, one word on each line, or runs the command with them.
pub fn run(image: &Image, args: &VmArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    let region = image.region();
    if image.backing().is_some() || image.superblock().data_is_external() {
        bail!("{}: a split image is two memories, and a device has one", name(&args.image));
    }
    check(region, args).with_context(|| name(&args.image))?;
    let Some((program, own)) = args.command.split_first() else {
        let path = path(region).with_context(|| name(&args.image))?;
        for word in words(args, path.as_os_str(), region.len())? {
            out.write_all(word.as_bytes())?;
            out.write_all(b"\n")?;
        }
        return Ok(Outcome::Clean);
    };
    // The command inherits the descriptor, and its own name for it is the same.
    let fd = region.fd().context("the image lies in no memory with a descriptor")?.try_clone_to_owned()?;
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    let path = OsString::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let words = words(args, &path, region.len())?;
    out.finish()?;
    let error = Command::new(program).args(own).args(words).exec();
    Err(error).with_context(|| program.to_string_lossy().into_owned())
}

/// Whether the device can have this memory.
fn check(region: &Region, args: &VmArgs) -> anyhow::Result<()> {
    match region.info().map(|info| &info.kind) {
        Some(FdKind::File | FdKind::Memfd { .. } | FdKind::DevDax { .. }) if region.offset() == 0 => {}
        Some(FdKind::File | FdKind::Memfd { .. } | FdKind::DevDax { .. }) => {
            bail!(
                "a virtual machine has all of a file or device, and the image begins at {:#x}",
                region.offset()
            );
        }
        _ => bail!("a virtual machine has files, memfds and devdax devices; this is other memory"),
    }
    let len = region.len();
    let (is_right, rule, round) = match args.device {
        Device::VirtioPmem | Device::Nvdimm => {
            (len.is_multiple_of(PMEM_UNIT), "a multiple of 2 MiB", len.next_multiple_of(PMEM_UNIT))
        }
        Device::Ivshmem => (len.is_power_of_two(), "a power of two", len.next_power_of_two()),
    };
    if !is_right {
        bail!(
            "the memory of such a device has {rule} bytes, and this has {len}; what follows an image does not count: \
             `truncate -s {round} FILE` before it is used"
        );
    }
    Ok(())
}

/// The path of the memory, for a command that is started later.
fn path(region: &Region) -> anyhow::Result<PathBuf> {
    match region.source() {
        Some(Source::Path { path, .. }) => Ok(path.canonicalize()?),
        Some(Source::Descriptor { fd, .. }) => Ok(PathBuf::from(format!("/proc/self/fd/{fd}"))),
        _ => bail!("this memory has no path; run the command here, behind --, and it inherits the memory"),
    }
}

/// The options, word by word.
fn words(args: &VmArgs, path: &OsStr, len: u64) -> anyhow::Result<Vec<OsString>> {
    let joined = |before: &str, path: Vec<u8>, behind: String| {
        OsString::from_vec([before.as_bytes(), &path, behind.as_bytes()].concat())
    };
    match args.vmm {
        Vmm::Qemu => {
            // A comma in a value is two.
            let path = path.as_bytes().split_inclusive(|&byte| byte == b',');
            let path: Vec<u8> =
                path.flat_map(|part| [part, &b","[..usize::from(part.ends_with(b","))]].concat()).collect();
            let backend = joined(
                "memory-backend-file,id=daxfs,share=on,readonly=on,mem-path=",
                path,
                format!(",size={len}"),
            );
            let device = match args.device {
                Device::VirtioPmem => "virtio-pmem-pci,memdev=daxfs,id=daxfs-pmem",
                // Without persistence that nobody needs of what is only read.
                Device::Nvdimm => "nvdimm,memdev=daxfs,id=daxfs-nvdimm,unarmed=on",
                Device::Ivshmem => "ivshmem-plain,memdev=daxfs,id=daxfs-ivshmem",
            };
            let mut words = vec!["-object".into(), backend, "-device".into(), device.into()];
            if args.device == Device::Nvdimm {
                words.extend(["-machine", "nvdimm=on"].map(OsString::from));
            }
            Ok(words)
        }
        Vmm::CloudHypervisor => {
            if args.device != Device::VirtioPmem {
                bail!("Cloud Hypervisor has virtio-pmem alone");
            }
            if path.as_bytes().contains(&b',') {
                bail!("Cloud Hypervisor takes no path with a comma");
            }
            let pmem = joined("file=", path.as_bytes().to_vec(), format!(",size={len},discard_writes=on"));
            Ok(vec!["--pmem".into(), pmem])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(device: Device, vmm: Vmm, path: &str) -> anyhow::Result<String> {
        let args = VmArgs { image: "x".into(), device, vmm, command: Vec::new() };
        let words = words(&args, path.as_ref(), 1 << 21)?;
        Ok(words.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn commas_are_doubled_where_that_is_possible() {
        let line = said(Device::VirtioPmem, Vmm::Qemu, "/a,b,").unwrap();
        assert!(line.contains("mem-path=/a,,b,,,size=2097152 -device virtio-pmem-pci"), "{line}");
        assert!(said(Device::VirtioPmem, Vmm::CloudHypervisor, "/a,b").is_err());
        let line = said(Device::VirtioPmem, Vmm::CloudHypervisor, "/a").unwrap();
        assert_eq!(line, "--pmem file=/a,size=2097152,discard_writes=on");
        assert!(said(Device::Ivshmem, Vmm::CloudHypervisor, "/a").is_err());
    }
}
