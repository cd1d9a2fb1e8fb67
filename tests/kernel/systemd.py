#!/usr/bin/env python3
"""The units in deploy/systemd under a real systemd with control groups: `make test-systemd`.

    systemd.py [--note FILE] [TEST...]     all tests of systemd_guest.py, or those of these names
    systemd.py --available                 only say whether they could run here, making the Debian tree if need be

Boots a guest (vm.py) whose root is a small Debian 13, with systemd as its first process. debootstrap makes the tree as
root, once, in $XDG_CACHE_HOME/daxfs/debian, by default ~/.cache/daxfs/debian (about 280 MB), under the hash of what is
wanted in it. The kernel is that of the other tests. A guest that dies is replaced once, and FILE is told.

Exit status: 0 passed, 1 failed, 77 the tests could not be run on this machine (the reason is printed).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packages import Apt, UnavailableError, release, run
from vm import Guest, GuestDiedError, check_requirements, twice

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import cache  # noqa: E402

FAILED, NOT_RUN = 1, 77
# The first Debian whose systemd keeps stored descriptors of a unit that is stopped (254).
SUITE = "trixie"
PACKAGES = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,python3"
VARIANT = "minbase"
# systemd itself starts a few services; with a machine that does other things, too, that takes its time.
GUEST_TIMEOUT = 1500
PARAMETERS = (
    "systemd.unit=multi-user.target systemd.firstboot=off systemd.show_status=false "
    "systemd.mask=getty@tty1.service systemd.mask=serial-getty@ttyS0.service"
)
# The project is seen where it is here; the tests are a service like any other.
LATE = """
mkdir -p "/root$PROJECT"
mount --bind "/scratch/host$PROJECT" "/root$PROJECT"
echo 0123456789abcdef0123456789abcdef >/root/etc/machine-id
cat >/root/etc/systemd/system/daxfs-test.service <<END
[Unit]
After=basic.target dbus.socket systemd-logind.service
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/run/daxfs-vm/busybox sh /run/daxfs-vm/stage2
END
mkdir -p /root/etc/systemd/system/multi-user.target.wants
ln -s ../daxfs-test.service /root/etc/systemd/system/multi-user.target.wants/daxfs-test.service
"""


def tree() -> Path:
    """The Debian tree, made if it is not there: whole or not at all, by one process, one for each list of packages."""
    parts = [part.encode() for part in (SUITE, PACKAGES, VARIANT)]
    return cache.made("debian", "systemd", parts, make_tree)


def make_tree(folder: Path) -> None:
    if not shutil.which("debootstrap"):
        raise UnavailableError("no debootstrap: install the package debootstrap")
    if os.geteuid() != 0:
        raise UnavailableError(f"making a Debian tree in {folder.parent} with debootstrap takes root, once")
    print(f"systemd.py: making a Debian tree (about 280 MB) in {folder.parent}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="daxfs-apt-") as lists:
        # Where this machine's own release comes from, others do, too.
        mirror = Apt(Path(lists)).mirror(release().get("VERSION_CODENAME", "of Debian"))
        run("debootstrap", f"--variant={VARIANT}", f"--include={PACKAGES}", SUITE, str(folder), mirror)
    shutil.rmtree(folder / "var/cache/apt", ignore_errors=True)
    folder.chmod(0o755)


def build() -> Path:
    """The command, optimised: emulation is slow enough."""
    command = ["cargo", "build", "--locked", "--release", "--message-format=json-render-diagnostics"]
    done = subprocess.run(
        [*command, "-p", "daxfs-cli", "--bin", "daxfs"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(FAILED)
    messages = map(json.loads, done.stdout.splitlines())
    (program,) = [m["executable"] for m in messages if m.get("executable")]
    return Path(program)


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--available", action="store_true", help="build and run nothing")
    parser.add_argument("--note", type=Path, metavar="FILE", help="where to write what a summary should tell")
    parser.add_argument("tests", nargs="*", metavar="TEST")
    a = parser.parse_args()
    try:
        check_requirements()
        debian = tree()
    except UnavailableError as why:
        print(f"not run: {why}")
        return NOT_RUN
    if a.available:
        return 0
    program = build()
    os.chdir(ROOT)
    guest = Guest(
        memory="2G",
        append=PARAMETERS,
        tree=debian,
        late=f"PROJECT={ROOT}\n{LATE}",
        first="/lib/systemd/systemd",
        timeout=GUEST_TIMEOUT,
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
    )
    command = ["/usr/bin/python3", "-B", "-u", str(ROOT / "tests/kernel/systemd_guest.py"), str(program), *a.tests]
    try:
        return FAILED if twice(lambda: guest.run(command), a.note.write_text if a.note else print) else 0
    except GuestDiedError:
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
