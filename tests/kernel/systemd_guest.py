"""What the units in deploy/systemd do under systemd: runs in the guest of systemd.py, with nothing but Python.

    systemd_guest.py DAXFS [TEST...]

Every test begins without images and without drop-ins. Each waits for what it expects and never for a time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "deploy/systemd"
DOCS = ROOT / "docs/systemd.md"
BINARY = Path("/usr/local/bin/daxfs")
DROP_INS = Path("/run/systemd/system/daxfs.service.d")
WEIGHTS = Path("/srv/weights")
MIB = 1 << 20
PATIENCE = 300
USER, UID = "somebody", 1234
TESTS = []


def test(function):
    TESTS.append(function)
    return function


def run(*command: str | Path, status: int | None = 0, **more) -> str:
    """Output of a command, which must end with this status; None: with any."""
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more
    )
    line = " ".join(map(str, command))
    assert status is None or done.returncode == status, f"`{line}`: status {done.returncode}\n{done.stdout}"
    return done.stdout


def systemctl(*words: str, **more) -> str:
    return run("systemctl", *words, **more)


def show(name: str, unit: str = "daxfs.service") -> str:
    return systemctl("show", "--property", name, "--value", unit).strip()


def wait_for(what: str, condition) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"{what}\n{run('journalctl', '-b', '-u', 'daxfs*', '--no-pager', status=None)}"
        time.sleep(0.2)


def images() -> dict[str, int]:
    """Generations by name."""
    listed = json.loads(run("daxfs", "ps", "--json"))
    return {image["name"]: image["generation"] for image in listed["images"]}


def load(name: str, size: int = 100_000, status: int = 0) -> str:
    """Load a folder with one file of so many bytes."""
    folder = WEIGHTS / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_bytes(name.encode() * (size // len(name)))
    return run("daxfs", "load", name, folder, status=status)


def assert_holds(*names: str) -> None:
    """Everything is there, under any process."""
    assert sorted(images()) == sorted(names), (images(), names)
    for name in names:
        found = subprocess.run(["daxfs", "cat", f"daxfs://{name}", "/file"], stdout=subprocess.PIPE, check=True).stdout
        assert found == (WEIGHTS / name / "file").read_bytes(), name


def stored() -> int:
    return int(show("NFileDescriptorStore"))


def drop_in(text: str) -> None:
    """Settings of the service for this test."""
    DROP_INS.mkdir(parents=True, exist_ok=True)
    (DROP_INS / "test.conf").write_text(f"[Service]\n{text}\n")
    systemctl("daemon-reload")


def fresh() -> None:
    """Units as they are shipped, a socket that listens, and no image anywhere."""
    systemctl("stop", "daxfs.socket", "daxfs.service", status=None)
    systemctl("clean", "--what=fdstore", "daxfs.service", status=None)
    systemctl("reset-failed", status=None)
    shutil.rmtree(DROP_INS, ignore_errors=True)
    systemctl("daemon-reload")
    systemctl("start", "daxfs.socket")


@test
def units_are_good() -> None:
    said = run("systemd-analyze", "verify", "--man=no", *(f"/etc/systemd/system/daxfs.{kind}" for kind in KINDS))
    assert not said.strip(), said


@test
def first_client_starts_the_holder() -> None:
    assert systemctl("is-active", "daxfs.service", status=None).strip() == "inactive"
    assert images() == {}
    assert systemctl("is-active", "daxfs.service").strip() == "active"
    # Its own user, and nothing of root.
    pid = show("MainPID")
    assert int(show("UID")) > 0
    assert int(re.search(r"^CapEff:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1], 16) == 0
    load("a")
    assert_holds("a")
    assert stored() == 1


@test
def restart_keeps_images_and_generations() -> None:
    load("a")
    load("b")
    before = images()
    pid = show("MainPID")
    systemctl("restart", "daxfs.service")
    assert show("MainPID") != pid
    assert images() == before
    assert_holds("a", "b")


@test
def killed_holder_comes_back_with_its_images() -> None:
    load("a")
    for round_ in range(3):
        pid = show("MainPID")
        systemctl("kill", "--signal=KILL", "daxfs.service")
        wait_for("another holder", lambda pid=pid: show("MainPID") not in (pid, "0"))
        assert_holds("a")
        assert int(show("NRestarts")) == round_ + 1


@test
def stopped_holder_has_its_images_kept() -> None:
    load("a")
    systemctl("stop", "daxfs.service")
    assert show("MainPID") == "0"
    assert stored() == 1
    # The next client starts it again.
    assert_holds("a")
    # Given back on purpose.
    systemctl("stop", "daxfs.service")
    systemctl("clean", "--what=fdstore", "daxfs.service")
    assert stored() == 0
    assert images() == {}


@test
def upgrade_is_a_restart() -> None:
    load("a")

    def running() -> int:
        return Path(f"/proc/{show('MainPID')}/exe").stat().st_ino

    old = running()
    new = BINARY.with_suffix(".new")
    shutil.copy(BINARY, new)
    new.replace(BINARY)
    systemctl("restart", "daxfs.service")
    assert running() == BINARY.stat().st_ino != old
    assert_holds("a")


@test
def full_store_refuses_loads() -> None:
    drop_in("FileDescriptorStoreMax=2")
    load("a")
    load("b")
    said = load("c", status=2)
    assert "FileDescriptorStoreMax" in said, said
    systemctl("restart", "daxfs.service")
    assert_holds("a", "b")
    run("daxfs", "drop", "b")
    load("c")
    systemctl("restart", "daxfs.service")
    assert_holds("a", "c")


@test
def memory_limit_refuses_loads() -> None:
    drop_in("MemoryMax=64M\nMemorySwapMax=0")
    load("a", 8 * MIB)
    pid = show("MainPID")
    said = load("b", 100 * MIB, status=2)
    assert "memory.max" in said, said
    group = Path("/sys/fs/cgroup" + show("ControlGroup"))
    events = dict(line.split() for line in (group / "memory.events").read_text().splitlines())
    assert events["oom_kill"] == "0", events
    assert int((group / "memory.max").read_text()) == 64 * MIB
    # What is held counts there.
    assert int((group / "memory.current").read_text()) > 8 * MIB
    assert show("MainPID") == pid
    assert_holds("a")


@test
def sandbox_is_as_documented() -> None:
    said = run("systemd-analyze", "security", "--no-pager", "daxfs.service")
    score = re.search(r"Overall exposure level for daxfs.service: ([\d.]+)", said)[1]
    documented = re.search(r"exposure level of ([\d.]+)", DOCS.read_text())
    assert documented, f"{DOCS} does not say that the unit has an exposure level of {score}"
    assert documented[1] == score, f"{DOCS} says {documented[1]}, systemd-analyze {score}\n{said}"
    load("a")
    pid = show("MainPID")
    # Nothing can be written but memory.
    writable = run("nsenter", "-t", pid, "-m", "sh", "-c", "touch /usr/x /etc/x /srv/x 2>&1; true")
    assert writable.count("Read-only file system") == 3, writable


@test
def user_has_a_holder_of_their_own() -> None:
    if run("id", USER, status=None).startswith("id:"):
        run("useradd", "--uid", str(UID), "--create-home", USER)
    run("loginctl", "enable-linger", USER)
    runtime = Path(f"/run/user/{UID}")
    wait_for("a user manager", (runtime / "systemd/private").exists)
    variables = [f"XDG_RUNTIME_DIR={runtime}", f"HOME=/home/{USER}"]

    def as_user(*command: str | Path, status: int | None = 0) -> str:
        return run(
            "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", *variables, *command, status=status
        )

    as_user("systemctl", "--user", "daemon-reload")
    as_user("systemctl", "--user", "start", "daxfs.socket")
    own = Path(f"/home/{USER}/weights")
    own.mkdir(exist_ok=True)
    (own / "file").write_bytes(b"own" * 1000)
    own.chmod(0o700)
    for path in (own, own / "file"):
        os.chown(path, UID, UID)
    as_user("daxfs", "load", "own", own)

    def pid() -> str:
        return as_user("systemctl", "--user", "show", "--property", "MainPID", "--value", "daxfs.service").strip()

    first = pid()
    assert Path(f"/proc/{first}").stat().st_uid == UID
    as_user("systemctl", "--user", "restart", "daxfs.service")
    assert as_user("daxfs", "cat", "daxfs://own", "/file") == "own" * 1000
    second = pid()
    assert second != first
    as_user("systemctl", "--user", "kill", "--signal=KILL", "daxfs.service")
    wait_for("another holder", lambda: pid() not in (second, "0"))
    assert as_user("daxfs", "cat", "daxfs://own", "/file") == "own" * 1000
    as_user("systemctl", "--user", "stop", "daxfs.service")
    assert as_user("daxfs", "cat", "daxfs://own", "/file") == "own" * 1000
    # Nobody else gets in.
    run(
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "daxfs",
        "ps",
        "--socket",
        runtime / "daxfs.sock",
        status=2,
    )


KINDS = ("socket", "service")


def main(program: str, wanted: list[str]) -> int:
    if unknown := set(wanted) - {function.__name__ for function in TESTS}:
        print(f"no tests {' '.join(sorted(unknown))}")
        return 2
    print(run("systemctl", "--version").splitlines()[0], flush=True)
    shutil.copy(program, BINARY)
    BINARY.chmod(0o755)
    for kind in KINDS:
        shutil.copy(UNITS / f"daxfs.{kind}", "/etc/systemd/system")
        shutil.copy(UNITS / f"user/daxfs.{kind}", "/etc/systemd/user")
    failed = []
    for function in TESTS:
        if wanted and function.__name__ not in wanted:
            continue
        start = time.monotonic()
        try:
            fresh()
            function()
            word = "ok"
        except Exception:
            traceback.print_exc(file=sys.stdout)
            print(run("journalctl", "-b", "--no-pager", "--lines=40", status=None))
            failed.append(function.__name__)
            word = "FAILED"
        print(f"{function.__name__}: {word} after {time.monotonic() - start:.0f} s", flush=True)
    print(f"{'failed: ' + ' '.join(failed) if failed else 'all passed'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
