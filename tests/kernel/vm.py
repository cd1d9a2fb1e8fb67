#!/usr/bin/env python3
"""Run one command in a QEMU guest whose kernel has udmabuf and dma-heap.

The guest sees this machine's root directory copy-on-write: what the command writes stays in the guest's
memory and is lost, except below each --rw DIR. Environment, working directory, output and exit status are
passed on; standard input is empty and there is no network. Exit status 125 means that the guest itself died
(its console is then printed), 124 that time ran out. No root needed. Software emulation runs user code about
twelve times slower; DAXFS_VM_ACCEL=kvm uses KVM where that works.

How it works: an initramfs made here holds busybox, a handful of kernel modules and the two scripts below. It
mounts the host's / over 9p, puts an overlay on top, switches root and runs the command. Output leaves through
a virtio serial port, the exit status through the console.
"""

from __future__ import annotations

import argparse
import lzma
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import emulator
from kernel import boot_image, fetch
from packages import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GUEST_FAILED, TIMED_OUT = 125, 124
BASE_MODULES = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"]
STATUS_MARK = "daxfs-vm: exit status "
# What the kernel's console has when it dies, the telling part first.
CRASHES = re.compile(r"Kernel panic - not syncing: .*|double fault.*|Oops: .*|BUG: .*|general protection fault.*")
GIVEN_UP = re.compile(r"daxfs-vm: (?!exit status).*")


class GuestDiedError(Exception):
    """The guest ended before its command did: nothing is known of that. The message says how it ended."""


def twice(run: Callable[[], int], say: Callable[[str], None]) -> int:
    """Run something in a guest, and once more when the guest died; `say` gets what a summary should tell then.

    A kernel that dies under emulation says nothing of what is tested, unless it does so each time.
    """
    try:
        return run()
    except GuestDiedError as first:
        print(f"{Path(sys.argv[0]).name}: the guest died, once more: {first}", file=sys.stderr, flush=True)
        try:
            status = run()
        except GuestDiedError as second:
            say(f"the guest died twice: {first}; {second}")
            raise
        say(f"the guest died once: {first}")
        return status


# QEMU 7.2 sometimes leaves rubbish in the flags behind cmpxchg16b when it is interrupted there, and the kernel dies of
# a double fault, most often on busy machines: a kernel that is told to ignore cx16 does not use the instruction. The
# processor has it all the same, since numpy's wheels start on nothing less (x86-64-v2). Page tables of four levels are
# faster to walk than those of five.
CPU = "max,la57=off"
NO_CX16 = "clearcpuid=141"  # 4 * 32 + 13 in the kernel's cpufeatures.h
# What follows it where nothing else does.
FIRST = "/run/daxfs-vm/busybox sh /run/daxfs-vm/stage2"

# The first process of the guest.
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
fail() { echo "daxfs-vm: $*" >/dev/ttyS0; poweroff -f; }
for module in $(cat /modules/order); do insmod /modules/$module.ko || fail "cannot load module $module"; done
. /setup

p9=trans=virtio,version=9p2000.L,msize=512000
mount -t tmpfs scratch /scratch; mkdir /scratch/upper /scratch/work /scratch/host
mount -t 9p -o ro,cache=loose,$p9 root /scratch/host || fail "cannot mount the host's root"
layers=lowerdir=/scratch/host$(cat /tree),upperdir=/scratch/upper,workdir=/scratch/work
mount -t overlay -o $layers overlay /root || fail "cannot mount the overlay"
for dir in dev proc sys; do mount --move /$dir /root/$dir; done
mount -t tmpfs run /root/run
mkdir -p /root/dev/shm /root/dev/pts
mount -t devpts pts /root/dev/pts; mount -t tmpfs -o mode=1777 shm /root/dev/shm
mount -t debugfs debug /root/sys/kernel/debug
while read tag dir; do
    mkdir -p "/root$dir"
    mount -t 9p -o cache=mmap,$p9 $tag "/root$dir" || fail "cannot mount $dir"
done </writable

# Nobody runs udev here, so the device nodes would be for root alone.
chmod 666 /root/dev/udmabuf /root/dev/dma_heap/* /root/dev/dri/* /root/dev/fuse 2>/dev/null
ip link set lo up; hostname daxfs-vm
mkdir /root/run/daxfs-vm; cp /bin/busybox /stage2 /command /input /root/run/daxfs-vm/
. /late
# Not chroot: the kernel forbids new user namespaces in a chroot.
exec switch_root /root $(cat /first)
"""

STAGE2 = f"""
# Its number depends on what else is on the bus. A port can be opened only once.
exec 3<>"$(echo /dev/vport*p1)"
if [ -s /run/daxfs-vm/input ]; then exec 4<&3; else exec 4</dev/null; fi
/bin/sh /run/daxfs-vm/command <&4 >&3 2>&1 3>&- 4<&-
echo "{STATUS_MARK}$?" >/dev/ttyS0
exec /run/daxfs-vm/busybox poweroff -f
"""


def busybox() -> Path:
    """A busybox that runs where no dynamic linker is."""
    program = shutil.which("busybox")
    if not program or b"/ld-linux" in Path(program).read_bytes()[:4096]:
        raise UnavailableError("no static busybox: install the package busybox-static")
    return Path(program)


def check_requirements() -> None:
    """Raises UnavailableError where no guest can be booted; fetches the kernel if it is not there."""
    emulator.installed()
    busybox()
    fetch()


@dataclass
class Guest:
    """What one boot looks like."""

    memory: str = "2G"
    cpus: int = 2
    machine: str = "q35,hpet=off"
    cpu: str = CPU
    # Command line of the QEMU to use; the installed one if not said.
    qemu: list[str] = field(default_factory=list)
    # More of QEMU's arguments.
    devices: list[str] = field(default_factory=list)
    # Shell commands that prepare devices before the command runs, with busybox only; `fail WHY` gives up.
    setup: str = ""
    # The folder of this machine that is the guest's root, of which the guest sees nothing else then.
    tree: Path | None = None
    # Shell commands that prepare that root, at /root, beside this machine's, at /scratch/host.
    late: str = ""
    # The program that the guest's first process becomes; it has to start /run/daxfs-vm/stage2.
    first: str = FIRST
    # Whether the command reads what is written to the input of Running.
    interactive: bool = False
    # Kernel modules, besides those that the root file system needs.
    modules: list[str] = field(default_factory=list)
    # Files of modules that are no part of the kernel's package, loaded after the others.
    module_files: list[Path] = field(default_factory=list)
    # Folders of the host in which writes are kept.
    writable: list[str] = field(default_factory=list)
    # Who runs the command; root if not said.
    user: str | None = None
    # Added to the caller's environment.
    env: dict[str, str] = field(default_factory=dict)
    # More kernel parameters.
    append: str = ""
    timeout: float = 600
    # Print the console at the end.
    debug: bool = False

    def run(self, command: list[str]) -> int:
        """Boot, run the command, power off; its exit status. GuestDiedError when there is none."""
        with self.start(command) as running:
            return running.wait()

    @contextmanager
    def start(self, command: list[str]) -> Iterator[Running]:
        """Boot and run the command meanwhile; on leaving, a guest that still runs is switched off."""
        with tempfile.TemporaryDirectory(prefix="daxfs-vm-") as scratch:
            initramfs, console = Path(scratch, "initramfs"), Path(scratch, "console")
            kernel = fetch()
            initramfs.write_bytes(b"".join(cpio(self.initramfs(kernel, command))))
            line = self.command_line(kernel, initramfs, console)
            # QEMU drops the guest's output port when its own standard input ends: a pipe that stays open.
            output = subprocess.PIPE if self.interactive else None
            process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=output, text=True, bufsize=1)
            try:
                yield Running(self, process, console)
            finally:
                process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe:
                        # What a guest that died did not read cannot be written any more.
                        with suppress(OSError):
                            pipe.close()

    def initramfs(self, kernel: Path, command: list[str]) -> Iterator[tuple[str, int, bytes]]:
        """Entries of the initial file system."""
        for folder in ("bin", "dev", "proc", "sys", "scratch", "root", "modules"):
            yield folder, 0o40755, b""
        yield "bin/busybox", 0o100755, busybox().read_bytes()
        yield "init", 0o100755, INIT.encode()
        yield "stage2", 0o100644, STAGE2.encode()
        yield "setup", 0o100644, self.setup.encode()
        yield "tree", 0o100644, str(self.tree.resolve() if self.tree else "").encode()
        yield "late", 0o100644, self.late.encode()
        yield "first", 0o100644, self.first.encode()
        yield "command", 0o100644, self.script(command).encode()
        yield "input", 0o100644, b"port" if self.interactive else b""
        yield "writable", 0o100644, "".join(f"rw{i} {d}\n" for i, d in enumerate(self.shares())).encode()
        loaded = modules(kernel, BASE_MODULES + self.modules)
        loaded |= {path.name.split(".ko")[0]: read_module(path) for path in self.module_files}
        yield "modules/order", 0o100644, "\n".join(loaded).encode()
        for name, binary in loaded.items():
            yield f"modules/{name}.ko", 0o100644, binary

    def script(self, command: list[str]) -> str:
        """The shell script that stands for the command."""
        words = list(command)
        if self.user:
            group = pwd.getpwnam(self.user).pw_gid
            words = ["setpriv", f"--reuid={self.user}", f"--regid={group}", "--init-groups", "--", *words]
        env = {**os.environ, **self.env}
        named = [name for name in env if re.fullmatch(r"[A-Za-z_]\w*", name)]
        lines = [f"export {name}={shlex.quote(env[name])}" for name in named]
        lines.append(f"cd {shlex.quote(str(Path.cwd()))} || exit {GUEST_FAILED}")
        lines.append(f"exec {shlex.join(words)}\n")
        return "\n".join(lines)

    def shares(self) -> list[str]:
        return [os.path.realpath(d) for d in self.writable]

    def command_line(self, kernel: Path, initramfs: Path, console: Path) -> list[str]:
        """QEMU's command line."""
        # no_timer_check: on a busy machine the emulated timer may be late, which the kernel takes for broken hardware.
        parameters = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check cryptomgr.notests"
        parameters += f" {NO_CX16} {self.append}"
        line = [*(self.qemu or emulator.installed()), "-nodefaults", "-no-user-config", "-no-reboot"]
        # A machine that can have one processor only is emulated without atomic instructions, which other guests and
        # this machine would notice in shared memory.
        line += ["-smp", f"{self.cpus},maxcpus={max(self.cpus, 2)}", "-display", "none"]
        line += ["-machine", self.machine, "-cpu", self.cpu, "-m", self.memory]
        line += ["-accel", os.environ.get("DAXFS_VM_ACCEL", "tcg")]
        line += ["-kernel", str(boot_image(kernel)), "-initrd", str(initramfs), "-append", parameters]
        line += ["-serial", f"file:{console}", *self.devices]
        # The bus is named because with CXL there are several.
        line += ["-chardev", "stdio,id=output,signal=on", "-device", "virtio-serial-pci,bus=pcie.0"]
        line += ["-device", "virtserialport,chardev=output,nr=1", "-device", "virtio-rng-pci,bus=pcie.0"]
        shares = [("root", "/", ",readonly=on"), *((f"rw{i}", d, "") for i, d in enumerate(self.shares()))]
        for tag, folder, mode in shares:
            path = folder.replace(",", ",,")
            line += ["-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap{mode}"]
            line += ["-device", f"virtio-9p-pci,bus=pcie.0,fsdev={tag},mount_tag={tag}"]
        return line


class Running:
    """A guest that was started."""

    def __init__(self, guest: Guest, process: subprocess.Popen[str], console: Path) -> None:
        self.guest = guest
        self.process = process
        self.console = console

    @property
    def input(self) -> IO[str]:
        """What is written here, the command of an interactive guest reads. It never ends: agree on a last line."""
        assert self.process.stdin
        return self.process.stdin

    @property
    def output(self) -> IO[str]:
        """What the command of an interactive guest prints."""
        assert self.process.stdout
        return self.process.stdout

    def log(self) -> str:
        """What the guest's console has shown so far."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def death(self) -> str:
        """How it ended, if it has ended without its command; empty otherwise."""
        status = self.process.poll()
        log = self.log()
        if status is None or STATUS_MARK in log:
            return ""
        found = GIVEN_UP.search(log) or CRASHES.search(log)
        return found[0].strip() if found else f"the emulator ended with status {status}"

    def wait(self) -> int:
        """Wait for the end; the command's exit status. GuestDiedError when the guest ended before."""
        late = False
        try:
            self.process.wait(self.guest.timeout)
        except subprocess.TimeoutExpired:
            late = True
        log = self.log()
        status = re.search(re.escape(STATUS_MARK) + r"(\d+)", log)
        if self.guest.debug or not status:
            sys.stderr.write(log)
        if late:
            print(f"vm.py: the command did not end within {self.guest.timeout:.0f} s", file=sys.stderr)
            return TIMED_OUT
        if not status:
            raise GuestDiedError(self.death())
        if status[1] != "0" and (crash := CRASHES.search(log)):
            # The kernel went on without the process that it was working for.
            sys.stderr.write(log)
            raise GuestDiedError(crash[0].strip())
        return int(status[1])


def read_module(path: Path) -> bytes:
    """The binary of a module, whose file may be compressed."""
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def modules(kernel: Path, wanted: list[str]) -> dict[str, bytes]:
    """Module binaries by name, each after those that it depends on; what has no file is built in."""
    files = {path.name.split(".ko")[0].replace("-", "_"): path for path in kernel.glob("**/kernel/**/*.ko*")}
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        name = name.replace("-", "_")
        path = files.get(name)
        if name in loaded or path is None:
            return
        binary = read_module(path)
        depends = re.search(rb"\0depends=([^\0]*)\0", binary)
        for other in depends[1].decode().split(",") if depends else ():
            load(other)
        loaded[name] = binary

    for name in wanted:
        load(name)
    return loaded


def cpio(entries: Iterator[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """An archive in cpio's "newc" format, which the kernel unpacks at boot; every entry belongs to root."""

    def record(number: int, name: str, mode: int, data: bytes) -> bytes:
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % value for value in fields) + path
        return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)

    number = 0
    for number, entry in enumerate(entries, 1):
        yield record(number, *entry)
    yield record(number + 1, "TRAILER!!!", 0, b"")


def assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: not NAME=VALUE")
    return name, value


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--mem", default="2G", help="the guest's memory (2G)")
    add("--cpus", type=int, default=2, help="virtual processors (2)")
    add("--mod", action="append", default=[], metavar="NAME", help="load a module, for example vgem")
    add("--rw", action="append", default=[], metavar="DIR", help="keep what is written below DIR")
    add("--user", metavar="NAME", help="run the command as this user instead of root")
    add("--env", action="append", default=[], type=assignment, metavar="NAME=VALUE")
    add("--append", default="", metavar="TEXT", help="parameters, for example udmabuf.size_limit_mb=256")
    add("--timeout", type=float, default=600, metavar="SECONDS")
    add("--debug", action="store_true", help="print the guest's console at the end")
    add("command", nargs="+", help="the command, after --")
    a = parser.parse_args()
    guest = Guest(
        memory=a.mem,
        cpus=a.cpus,
        modules=a.mod,
        writable=a.rw,
        user=a.user,
        env=dict(a.env),
        append=a.append,
        timeout=a.timeout,
        debug=a.debug,
    )
    try:
        return guest.run(a.command)
    except GuestDiedError as why:
        print(f"vm.py: the guest died: {why}", file=sys.stderr)
        return GUEST_FAILED
    except UnavailableError as why:
        print(f"vm.py: {why}", file=sys.stderr)
        return GUEST_FAILED


if __name__ == "__main__":
    sys.exit(main())
