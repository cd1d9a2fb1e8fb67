"""Virtual machines of the tests that die: told from tests that fail, and replaced once.

The emulator is a shell script that writes what a guest's console would have; everything around it is the harness.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/kernel"))

import peer  # noqa: E402
import two  # noqa: E402
import vm  # noqa: E402

PASSED = f"{vm.STATUS_MARK}0"
FAILED = f"{vm.STATUS_MARK}3"
PANIC = "[  12.3] Kernel panic - not syncing: Fatal exception in interrupt"
OOPS = f"[  12.3] double fault: 0000 [#1] PREEMPT SMP\n{vm.STATUS_MARK}137"


class Scripted(vm.Guest):
    """A guest whose emulator is a shell script, another one with each boot."""

    consoles: list[str]

    def initramfs(self, kernel: Path, command: list[str]):
        return iter(())

    def command_line(self, kernel: Path, initramfs: Path, console: Path) -> list[str]:
        text = self.consoles.pop(0)
        return ["sh", "-c", f"printf '%s\\n' {shlex.quote(text)} >{shlex.quote(str(console))}"]


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(vm, "fetch", lambda: tmp_path)

    def make(*consoles: str) -> Scripted:
        made = Scripted()
        made.consoles = list(consoles)
        return made

    return make


@pytest.mark.parametrize(
    ("consoles", "status", "note"),
    [
        ([PASSED], 0, None),
        ([FAILED], 3, None),
        ([PANIC, PASSED], 0, "died once: Kernel panic - not syncing: Fatal exception in interrupt"),
        ([PANIC, FAILED], 3, "died once"),
        ([OOPS, PASSED], 0, "died once: double fault"),
        (["", PASSED], 0, "the emulator ended with status 0"),
        (["daxfs-vm: cannot mount the host's root", PASSED], 0, "cannot mount the host's root"),
    ],
)
def test_a_guest_that_dies_is_replaced_once(guest, consoles: list[str], status: int, note: str | None) -> None:
    notes: list[str] = []
    made = guest(*consoles)
    assert vm.twice(lambda: made.run(["true"]), notes.append) == status
    assert not made.consoles
    assert [note in found for found in notes] == ([] if note is None else [True])


def test_two_in_a_row_are_a_failure(guest) -> None:
    notes: list[str] = []
    made = guest(PANIC, OOPS, PASSED)
    with pytest.raises(vm.GuestDiedError):
        vm.twice(lambda: made.run(["true"]), notes.append)
    assert made.consoles == [PASSED]
    (note,) = notes
    assert "died twice" in note
    assert "panic" in note
    assert "double fault" in note


def test_the_other_end_of_a_dead_guest_says_so(guest) -> None:
    made = guest(PANIC)
    with (
        pytest.raises(vm.GuestDiedError, match="guest A: Kernel panic"),
        peer.in_guest("guest A", made, Path("p"), 9) as a,
    ):
        a.ask("report")


def test_shapes_of_one_boot_do_not_overlap() -> None:
    names = [shape.name for shape in two.SHAPES]
    assert sorted(names) == ["cxl", "ivshmem", "physical", "soft-reserved"]
    for pair in two.PAIRS:
        assert len({shape.source for shape in pair.shapes}) == len(pair.shapes)
        assert len({shape.backend for shape in pair.shapes}) == len(pair.shapes)


DIES = vm.GuestDiedError("guest A: Kernel panic")
WRONG = two.FailedError("the image has other bytes")


@pytest.mark.parametrize(
    ("boots", "expected"),
    [
        # What the tests of both shapes come to, boot by boot.
        ([[None, None]], ["passed", "passed"]),
        ([[WRONG, None]], ["FAILED after", "passed"]),
        ([[WRONG, DIES], [None, None]], ["FAILED after", "passed"]),
        ([[None, DIES], [WRONG, None]], ["FAILED after", "passed"]),
        ([[None, DIES], [None, None]], ["passed", "passed"]),
        ([[WRONG, DIES], [None, DIES]], ["FAILED after", "FAILED: its guests ended"]),
        ([[DIES], [DIES]], ["FAILED: its guests ended"] * 2),
    ],
)
def test_what_failed_is_not_forgotten_when_guests_die(
    monkeypatch: pytest.MonkeyPatch, boots: list[list[Exception | None]], expected: list[str]
) -> None:
    def run() -> None:
        if outcome := boots[0].pop(0):
            raise outcome

    @contextlib.contextmanager
    def booted(name: str, *_: object):
        try:
            yield None
        finally:
            # The next boot begins when the host's end of this one has ended.
            if name == "host":
                boots.pop(0)

    monkeypatch.setattr(two, "Images", lambda *_: None)
    monkeypatch.setattr(two, "Test", lambda *_: SimpleNamespace(run=run))
    monkeypatch.setattr(two, "in_guest", booted)
    monkeypatch.setattr(two, "on_this_machine", lambda *_: booted("host"))
    shapes = [SimpleNamespace(name=name, size=4096, rows=1) for name in ("one", "two")]
    pair = SimpleNamespace(shapes=shapes, make_guest=lambda *_, **__: None)
    notes: list[str] = []
    deaths = sum(DIES in boot for boot in boots)
    results = two.run_pair(pair, shapes, two.Programs(Path("p"), Path("d")), notes.append)
    assert list(results) == ["one", "two"]
    for result, beginning in zip(results.values(), expected):
        assert result.startswith(beginning)
    assert (len(notes), boots) == (int(deaths > 0), [])


def test_the_tree_of_systemd_is_made_once_for_each_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("systemd_tests", ROOT / "tests/kernel/systemd.py")
    assert spec is not None
    assert spec.loader is not None
    systemd = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(systemd)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(systemd.shutil, "which", lambda _name: "there")
    monkeypatch.setattr(systemd.os, "geteuid", lambda: 0)
    monkeypatch.setattr(systemd, "Apt", lambda _lists: SimpleNamespace(mirror=lambda _release: "mirror"))
    made: list[str] = []
    fails = [True]

    def debootstrap(*command: str) -> None:
        (Path(command[-2]) / "half").touch()
        if fails:
            fails.pop()
            raise systemd.UnavailableError("no network")
        time.sleep(0.2)
        made.append(command[2])

    monkeypatch.setattr(systemd, "run", debootstrap)
    with pytest.raises(systemd.UnavailableError, match="no network"):
        systemd.tree()
    assert [path for path in (tmp_path / "daxfs/debian").iterdir() if path.is_dir()] == []
    # Two first runs at a time.
    with ThreadPoolExecutor() as pool:
        one, other = (future.result() for future in [pool.submit(systemd.tree) for _ in range(2)])
    assert (one, len(made), one.stat().st_mode & 0o777) == (other, 1, 0o755)
    for name, value in (("PACKAGES", "systemd,python3"), ("SUITE", "forky")):
        monkeypatch.setattr(systemd, name, value)
        assert systemd.tree() != one
    assert len(made) == 3
