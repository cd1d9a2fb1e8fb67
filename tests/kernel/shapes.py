"""The ways in which two guests get one memory: what QEMU is told, and what the guest's kernel has to do.

Every shape's memory is one file of this machine, mapped shared by the emulators of both guests. So it is the same
physical memory for three kernels: both guests' and this one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import emulator
from vm import CPU, Guest

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
SIZE = 64 * MIB
# Where the memory lies in the guest's physical address space, for the shapes in which it is a part of RAM.
SOFT_BASE = 128 * MIB
PHYSICAL_BASE = SOFT_BASE + SIZE

DEVDAX = """
n=0
until [ -e /sys/bus/dax/devices/dax0.0 ]; do
    [ $n -lt 200 ] || fail "no dax0.0"
    usleep 50000; n=$((n + 1))
done
# The kernel would give it to kmem, as ordinary memory.
[ -e /sys/bus/dax/devices/dax0.0/driver ] || echo dax0.0 >/sys/bus/dax/drivers/device_dax/new_id
[ -e /sys/bus/dax/devices/dax0.0/driver ] || fail "dax0.0 has no driver"
"""

# What `cxl create-region -m -t ram -d decoder0.0 -w 1 mem0` does.
CXL_REGION = """
cxl=/sys/bus/cxl/devices
n=0
until ls -d $cxl/endpoint* >/dev/null 2>&1; do
    [ $n -lt 200 ] || fail "no CXL endpoint"
    usleep 50000; n=$((n + 1))
done
decoder=$(basename $cxl/endpoint*/decoder*.0)
region=$(cat $cxl/decoder0.0/create_ram_region)
echo $region >$cxl/decoder0.0/create_ram_region
echo 256 >$cxl/$region/interleave_granularity
echo 1 >$cxl/$region/interleave_ways
echo SIZE >$cxl/$region/size
echo ram >$cxl/$decoder/mode
echo SIZE >$cxl/$decoder/dpa_size
echo $decoder >$cxl/$region/target0
echo 1 >$cxl/$region/commit || fail "the CXL region cannot be committed"
echo $region >/sys/bus/cxl/drivers/cxl_region/bind
"""


@dataclass
class Shape:
    """One way to have a common memory."""

    name: str
    # Bytes of it.
    size: int
    # What the guests open, and which class of memory the library finds there.
    source: str
    memory_class: str
    # What QEMU's arguments call the memory.
    backend: str
    # Size of the models that are packed; see make_model.
    rows: int = 600
    # Shell commands that `daxfs` has to refuse in a guest, with a part of what it says then.
    refused: dict[str, str] = field(default_factory=dict)
    # Takes the memory away from a guest that has it open, and tries to open it.
    unbind: str = ""

    def part(self, offset: int, length: int) -> str:
        """Name of a part of the memory, as the guests open it."""
        if (offset, length) == (0, self.size):
            return self.source
        if self.source.startswith("phys:"):
            return f"phys:{PHYSICAL_BASE + offset:#x}+{length:#x}"
        return f"{self.source}@{offset:#x}+{length:#x}"


@dataclass
class Pair:
    """A pair of guests, and the shapes that they have: as many as go together, since booting takes longest."""

    shapes: list[Shape]
    # How the guests are described to Guest.
    guest: dict[str, object]
    # QEMU's arguments that make the memories part of the machine.
    devices: list[str]
    # Whether a QEMU with CXL is needed.
    cxl: bool = False

    def make_guest(self, memories: dict[str, Path], *, read_only: bool, **more: object) -> Guest:
        """A guest over files by the names of shapes. With `read_only` the emulator itself cannot write there."""
        devices = []
        for shape in self.shapes:
            backend = f"memory-backend-file,id={shape.backend},share=on,mem-path={memories[shape.name]}"
            devices += ["-object", f"{backend},size={shape.size}" + (",readonly=on" if read_only else "")]
        qemu = emulator.with_cxl() if self.cxl else emulator.installed()
        return Guest(**{"cpus": 1, "qemu": qemu, "devices": devices + self.devices, **self.guest, **more})


def middle_of_ram(*memories: str) -> list[str]:
    """Common memories as NUMA nodes between two others: firmware and kernel put things at both ends of RAM."""
    line = []
    for name in ("low", "high"):
        line += ["-object", f"memory-backend-ram,id={name},size={SOFT_BASE}"]
    for node, name in enumerate(("low", *memories, "high")):
        line += ["-numa", f"node,nodeid={node},memdev={name}"]
    return line


CXL_SIZE = 256 * MIB

SOFT = Shape(
    "soft-reserved",
    SIZE,
    "/dev/dax0.0",
    "device pages",
    "soft",
    refused={
        f"daxfs ls /dev/dax0.0@{SIZE}+2M": "outside",
    },
    unbind="echo dax0.0 >/sys/bus/dax/drivers/device_dax/unbind; daxfs ls /dev/dax0.0",
)
PHYSICAL = Shape(
    "physical",
    SIZE,
    f"phys:{PHYSICAL_BASE:#x}+{SIZE >> 20}M",
    "page frames",
    "physical",
    refused={
        # Ordinary memory of the guest.
        f"daxfs ls phys:{SOFT_BASE // 2:#x}+4M": "CONFIG_STRICT_DEVMEM",
        f"setpriv --bounding-set -sys_rawio daxfs ls phys:{PHYSICAL_BASE:#x}+4M": "CAP_SYS_RAWIO",
    },
)
IVSHMEM = Shape(
    "ivshmem",
    SIZE,
    # It needs no driver. Its place on the bus is chosen here, so that its name is known.
    "/sys/bus/pci/devices/0000:00:10.0/resource2",
    "write-combining",
    "ivshmem",
    # The first resource holds registers.
    refused={"daxfs ls /sys/bus/pci/devices/0000:00:10.0/resource0": "a superblock takes"},
)
# QEMU 10 emulates each access to it on its own.
CXL = Shape("cxl", CXL_SIZE, "/dev/dax0.0", "device pages", "pool", rows=200)

PAIRS = [
    Pair(
        [SOFT, PHYSICAL, IVSHMEM],
        # Soft-reserved is what firmware says of CXL and high-bandwidth memory on real machines. The command line has
        # `nokaslr`: a kernel that chooses its own place does not heed this form of memmap.
        {
            "memory": f"{2 * SOFT_BASE + 2 * SIZE >> 20}M",
            "append": f"memmap={SIZE >> 20}M%{SOFT_BASE:#x}-0x1+0xefffffff memmap={SIZE >> 20}M${PHYSICAL_BASE:#x}",
            "modules": ["dax_hmem", "device_dax", "fuse"],
            "setup": DEVDAX,
        },
        [*middle_of_ram("soft", "physical"), "-device", "ivshmem-plain,bus=pcie.0,addr=0x10,memdev=ivshmem"],
    ),
    Pair(
        [CXL],
        {
            "memory": "384M,slots=4,maxmem=4G",
            "machine": "q35,hpet=off,cxl=on,cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=1G",
            # With a hypervisor in sight the kernel refuses to commit a region, since it could not flush caches.
            "cpu": f"{CPU},hypervisor=off",
            "modules": ["cxl_acpi", "cxl_pci", "cxl_mem", "dax_cxl", "device_dax", "fuse"],
            "setup": CXL_REGION.replace("SIZE", hex(CXL_SIZE)) + DEVDAX,
        },
        [
            "-device",
            "pxb-cxl,bus_nr=12,bus=pcie.0,id=cxl.1",
            "-device",
            "cxl-rp,port=0,bus=cxl.1,id=cxl.port,chassis=0,slot=2",
            "-device",
            "cxl-type3,bus=cxl.port,volatile-memdev=pool,id=cxl.memory,sn=1",
        ],
        cxl=True,
    ),
]
SHAPES = [shape for pair in PAIRS for shape in pair.shapes]
