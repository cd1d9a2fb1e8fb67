#!/usr/bin/env python3
"""The benchmarks of the project, each beside the peer that it is measured against: `make bench`.

    run.py [--quick] [--runs N] [--directory DIR] [--keep] [--json FILE] [--programs DIR] [NAME...]
    run.py --list

Builds the programs, makes the data below DIR (a disk; 16 GiB of it, and as much memory), and measures: both
sides in the same run, in turns, medians of several runs. Goals are printed beside the ratios, met or missed,
and to miss one is no error. What needs programs or rights that are not there is left out and named.

Exit status: 0 measured, 1 something failed.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.command import CommandError
from harness.data import Store
from harness.image import Programs
from harness.machine import NotRunError, describe
from harness.result import MET, MISSED, table
from suites import (
    Context,
    drop_in,
    file_systems,
    first_touch,
    fuse,
    gpu,
    holder,
    layers,
    lookup,
    open_tensors,
    pack_disk,
    pack_memory,
    readers,
    restart,
    small_files,
    views,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.result import Row

ROOT = Path(__file__).resolve().parents[1]
DISK = "/var/tmp"  # noqa: S108 - a name below it is made safely
RUNS, QUICK_RUNS = 5, 1
SUITES = {
    "pack-memory": pack_memory.suite,
    "pack-disk": pack_disk.to_disk,
    "reflink": pack_disk.reflink,
    "small-files": small_files.suite,
    "open": open_tensors.suite,
    "drop-in": drop_in.suite,
    "lookup": lookup.suite,
    "views": views.suite,
    "first-touch": first_touch.suite,
    "readers": readers.suite,
    "holder": holder.suite,
    "restart": restart.suite,
    "fuse": fuse.suite,
    "layers": layers.suite,
    "file-systems": file_systems.suite,
    "gpu": gpu.suite,
}


def build(profile: str) -> Programs:
    """Build the programs."""
    command = ["cargo", "build", "--quiet", "--message-format=json-render-diagnostics", "--profile", profile]
    command += ["--locked", "-p", "mkimage", "-p", "daxfs-cli", "-p", "daxfs-bench", "--bins"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        sys.exit("run.py: the programs could not be built")
    paths = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and message["executable"]:
            paths[message["target"]["name"]] = Path(message["executable"])
    return Programs(pack=paths["daxfs-pack"], daxfs=paths["daxfs"], bench=paths["daxfs-bench"])


def found(folder: Path) -> Programs:
    """Use programs that were built elsewhere."""
    folder = folder.resolve()
    return Programs(pack=folder / "daxfs-pack", daxfs=folder / "daxfs", bench=folder / "daxfs-bench")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run, all by default")
    parser.add_argument("--list", action="store_true", help="only list the names")
    parser.add_argument("--quick", action="store_true", help="little data, one run, programs not optimised")
    parser.add_argument("--runs", type=int, help=f"runs of whole commands ({RUNS})")
    parser.add_argument("--directory", type=Path, default=DISK, help=f"where data is made ({DISK})")
    parser.add_argument("--keep", action="store_true", help="keep the data, in DIR/daxfs-bench, for the next run")
    parser.add_argument("--programs", type=Path, metavar="DIR", help="programs that are there, instead of building")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in SUITES]
    if unknown:
        parser.error(f"no benchmark is named {', '.join(unknown)}; --list names them")
    return options


def measure(name: str, context: Context) -> tuple[list[Row], bool]:
    """Run one benchmark and print its rows. Also says whether nothing failed."""
    print(f"\n=== {name}", flush=True)
    started = time.perf_counter()
    rows: list[Row] = []
    try:
        rows.extend(SUITES[name](context))
    except NotRunError as error:
        print(f"not run: {error}")
    except CommandError as error:
        print(f"failed: {error}")
        return rows, False
    finally:
        if rows:
            print(table(rows))
        print(f"--- {name}: {time.perf_counter() - started:.0f} s", flush=True)
    return rows, True


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other run is going on: two at a time measure each other."""
    with Path(__file__).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another run of the benchmarks to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def workplace(directory: Path, keep: bool) -> Iterator[Path]:
    """Make the directory for the data, and remove it unless it is to be kept."""
    if keep:
        work = directory / "daxfs-bench"
        work.mkdir(exist_ok=True)
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="daxfs-bench-", dir=directory) as name:
        yield Path(name)


def main() -> int:
    """Run what was asked for."""
    options = arguments()
    if options.list:
        for name, suite in SUITES.items():
            print(f"{name:12} {sys.modules[suite.__module__].__doc__}")
        return 0
    # Mounts and data are removed on the way out, whoever ends this.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    programs = found(options.programs) if options.programs else build("dev" if options.quick else "release")
    runs = options.runs or (QUICK_RUNS if options.quick else RUNS)
    results: dict[str, list[Row]] = {}
    failed = []
    with alone(), workplace(options.directory, options.keep) as work:
        machine = describe(work)
        print(f"daxfs benchmarks on {machine}")
        if options.quick:
            print("--quick: this shows that everything runs; its numbers mean nothing")
        store = Store(work)
        for name in options.names or SUITES:
            with tempfile.TemporaryDirectory(prefix="scratch-", dir=work) as scratch:
                context = Context(programs, store, Path(scratch), options.quick, runs)
                results[name], passed = measure(name, context)
            store.cool()
            if not passed:
                failed.append(name)
    if options.json:
        records = {name: [row.record() for row in rows] for name, rows in results.items()}
        options.json.write_text(json.dumps({"machine": machine, "results": records}, indent=1) + "\n")
    verdicts = [row.verdict for rows in results.values() for row in rows]
    print(f"\ngoals: {verdicts.count(MET)} met, {verdicts.count(MISSED)} missed", end="")
    print(f"; failed: {', '.join(failed)}" if failed else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
