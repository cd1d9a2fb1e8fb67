//! The verb for virtual machines.

use clap::{Args, ValueEnum};
use std::ffi::OsString;

/// Arguments of `daxfs vm-args`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qemu-system-x86_64 -enable-kvm -m 1G,slots=1,maxmem=64G $(daxfs vm-args root.daxfs) ...\n  \
    daxfs vm-args daxfs://root -- qemu-system-x86_64 -enable-kvm -m 1G,slots=1,maxmem=64G ...\n  \
    daxfs vm-args --vmm cloud-hypervisor root.daxfs\n  \
    guest# mount -t erofs -o ro,dax=always /dev/pmem0 /mnt"
)]
pub struct VmArgs {
    /// Image: a path, /dev/daxX.Y, fd:N, daxfs://NAME, or - for standard input
    pub image: OsString,
    /// Device by which the guest sees the memory
    #[arg(long, value_name = "DEVICE", value_enum, default_value_t = Device::VirtioPmem)]
    pub device: Device,
    /// Program that reads the options
    #[arg(long, value_name = "VMM", value_enum, default_value_t = Vmm::Qemu)]
    pub vmm: Vmm,
    /// Command to run with the options behind its own, and with the memory, which then needs no path
    #[arg(last = true)]
    pub command: Vec<OsString>,
}

/// How a guest sees memory of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// A disk that is memory, /dev/pmem0 in the guest: its kernel mounts the EROFS view in place
    VirtioPmem,
    /// The same as an NVDIMM, for guests without virtio-pmem
    Nvdimm,
    /// A PCI device, whose resource2 `daxfs` opens in the guest
    Ivshmem,
}

/// Programs that run virtual machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Vmm {
    /// QEMU
    Qemu,
    /// Cloud Hypervisor
    CloudHypervisor,
}
