#!/usr/bin/env python3
"""Run the tests that need a real udmabuf and dma-heap: `make test-kernel`.

    run.py [--vm | --direct] [--no-python] [--note FILE] [FILTER]
    run.py --available      only say whether they could run here, fetching kernel and Vulkan driver if need be

Builds the test programs on this machine, then runs all of them in one boot of a guest (vm.py), or directly
where this machine has both devices and a card of the kernel's vgem. FILTER is passed to each program as the name
of the tests to run. A test that finds no device fails here, since DAXFS_REQUIRE_DEVICES=1 is set; elsewhere it says
that it did not run. Where no Vulkan driver can be had, the program `vulkan` is left out, with the reason.

DAXFS_MODULE=/path/daxfs.ko loads the kernel's own DAXFS into the guest (README.md says how to build it); then the tests
that mount images run, too. Without it they are not asked for.

A guest that dies is no failed test: the tests are run once more in another one, and FILE is told. Two that die are a
failure.

Exit status: 0 passed, 1 failed, 77 the tests could not be run on this machine (the reason is printed).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import module
import vulkan
from kernel import fetch
from packages import UnavailableError
from vm import Guest, GuestDiedError, check_requirements, twice

ROOT = Path(__file__).resolve().parents[2]
DEVICES = ("/dev/udmabuf", "/dev/dma_heap/system")
RUST_TESTS = (
    "devices",
    "kernel",
    "kernel_holder",
    "kernel_memory",
    "kernel_module",
    "kernel_pci",
    "kernel_verity",
    "vulkan",
)
# A graphics driver without hardware, whose dma-bufs the Vulkan tests import; disks; a file system with fs-verity.
MODULES = ["vgem", "virtio_blk", "crc32c_generic", "ext4", "loop"]
# A disk of zeros, two NUMA nodes, and a PCI device with memory, whose place on the bus is chosen here so that its name
# is known.
MEMORY = "4G"
PCI_DEVICE = "0000:00:10.0"
EQUIPMENT = [
    *("-blockdev", "driver=null-co,node-name=disk,size=1048576,read-zeroes=on"),
    *("-device", "virtio-blk-pci,bus=pcie.0,drive=disk"),
    *("-object", "memory-backend-ram,id=near,size=1G", "-numa", "node,nodeid=0,cpus=0,memdev=near"),
    *("-object", "memory-backend-ram,id=far,size=3G", "-numa", "node,nodeid=1,cpus=1,memdev=far"),
    *("-object", "memory-backend-ram,id=bar,size=16M,share=on"),
    *("-device", "ivshmem-plain,bus=pcie.0,addr=0x10,memdev=bar"),
]
# A range that the kernel leaves alone, to mount images from.
RANGE = "0x8000000+16M"
# For memory in huge pages, half of those of 2 MiB on each node. The second node has room for one of 1 GiB.
PARAMETERS = "hugepagesz=1G hugepages=1:1 hugepagesz=2M hugepages=8 memmap=16M$0x8000000"
PYTHON_TESTS = "python/tests/kernel"
GUEST_TIMEOUT = 900
FAILED, NOT_RUN = 1, 77

# Runs every program even when an earlier one fails, and says at the end which did.
RUNNER = """
for device in %s; do [ -r $device ] || { echo "no $device"; exit 1; }; done
failed=
program() { name=$1; shift; echo "--- $name"; "$@" || failed="$failed $name"; }
%s
[ -z "$failed" ] || { echo "kernel tests failed in:$failed"; exit 1; }
"""


def vgem_card() -> bool:
    """Whether this machine has a card of vgem, and its node may be used (tests/src/vgem.rs looks for the same)."""
    for card in Path("/sys/class/drm").glob("card*"):
        digits = card.name.removeprefix("card")
        if digits.isdecimal() and (card / "device").resolve().name == "vgem":
            return os.access(f"/dev/dri/{card.name}", os.R_OK | os.W_OK)
    return False


def build(names: list[str]) -> dict[str, str]:
    """Path of each Rust test program by name; the commands that they start are built beside them."""
    command = ["cargo", "build", "--locked", "--message-format=json-render-diagnostics", "--bins"]
    for name in names:
        command += ["--test", name]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(FAILED)
    programs = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and "test" in message["target"]["kind"]:
            programs[message["target"]["name"]] = message["executable"]
    return {name: programs[name] for name in names}


def python_with_daxfs() -> str:
    """The interpreter that has the wheel. Importing here also leaves compiled .pyc files for the guest."""
    python = ROOT / ".venv/bin/python"
    probe = "import daxfs, numpy, pytest"
    done = python.exists() and subprocess.run([python, "-c", probe], cwd=ROOT, check=False)
    if not done or done.returncode != 0:
        sys.exit(f"run.py: {python} cannot run `{probe}`: run `make wheel` first, or give --no-python")
    return str(python)


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--vm", action="store_true", help="boot the guest even where the devices are here")
    where.add_argument("--direct", action="store_true", help="never boot the guest")
    parser.add_argument("--no-python", action="store_true", help="Rust tests only")
    parser.add_argument("--available", action="store_true", help="build and run nothing")
    parser.add_argument("--note", type=Path, metavar="FILE", help="where to write what a summary should tell")
    parser.add_argument("filter", nargs="?", help="run only tests whose name contains this")
    a = parser.parse_args()
    all_here = vgem_card() and all(os.access(device, os.R_OK) for device in DEVICES)
    on_this_machine = a.direct or (not a.vm and all_here)
    try:
        if not on_this_machine:
            check_requirements()
    except UnavailableError as why:
        print(f"not run: {why}")
        return NOT_RUN
    env = {"DAXFS_REQUIRE_DEVICES": "1", "RUST_BACKTRACE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    # One test at a time: starting a process copies, for a moment, descriptors of the test beside it.
    env["RUST_TEST_THREADS"] = "1"
    names = list(RUST_TESTS)
    try:
        env |= vulkan.environment() | {"DAXFS_REQUIRE_VULKAN": "1"}
    except UnavailableError as why:
        names.remove("vulkan")
        print(f"vulkan not run: {why}", flush=True)
    if a.available:
        return 0

    lines = []
    for name, program in build(names).items():
        lines.append(["program", name, program, *([a.filter] if a.filter else [])])
    if not a.no_python:
        pytest = [python_with_daxfs(), "-m", "pytest", "-q", "-p", "no:cacheprovider", PYTHON_TESTS]
        lines.append(["program", "python", *pytest, *(["-k", a.filter] if a.filter else [])])
    script = ["sh", "-c", RUNNER % (" ".join(DEVICES), "\n".join(map(shlex.join, lines)))]

    os.chdir(ROOT)
    if on_this_machine:
        print("run.py: on this machine's own devices", flush=True)
        return subprocess.run(script, env={**os.environ, **env}, check=False).returncode
    print("run.py: in a guest, on a Debian kernel under emulation", flush=True)
    # The tests find in this guest what few machines have, and fail if they do not.
    env |= {"DAXFS_REQUIRE_GUEST": "1", "DAXFS_TEST_PCI": PCI_DEVICE, "DAXFS_TEST_RANGE": RANGE}
    guest = Guest(memory=MEMORY, modules=MODULES, devices=EQUIPMENT, append=PARAMETERS, env=env, timeout=GUEST_TIMEOUT)
    try:
        file = module.named(fetch())
    except module.UnfitError as why:
        print(f"run.py: {why}", file=sys.stderr)
        return FAILED
    if file:
        guest.module_files.append(file)
        env["DAXFS_REQUIRE_MODULE"] = "1"
    else:
        print(f"run.py: images are not mounted: {module.VARIABLE} names no module (tests/kernel/README.md)", flush=True)
    try:
        return twice(lambda: guest.run(script), a.note.write_text if a.note else print)
    except GuestDiedError:
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
