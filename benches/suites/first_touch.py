"""First touch of every page of an image, by kind of page, against a mapping of the file."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from harness.command import CommandError, run
from harness.image import held, pages
from harness.machine import cool_file, cool_files, map_file, readahead, warm_file
from harness.result import Comparison, Row, Timing, size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from suites import Context

FASTER = 3.0
KINDS = {"4 KiB pages": "no", "2 MiB pages": "thp", "2 MiB hugetlb pages": "2M"}

# Linux' own (VM_READAHEAD_PAGES); some machines are set up with another.
READAHEAD = 128
# What curl writes at a time (CURL_MAX_WRITE_SIZE).
DOWNLOADED = 16 << 10


def suite(context: Context) -> Iterator[Row]:
    """Pack one model into memfds of each kind of page; open and touch each of them, and the file."""
    count = context.pick(2 << 30, 64 << 20)
    source = context.store.weights(count)
    files = _files(context, source)
    goal_against = next(iter(files))
    command = [context.programs.bench, "first-touch"]
    for name, path in files.items():
        command += ["--file", f"{name}={path}"]
    limits = ["--seconds", context.pick(40, 1), "--rounds", context.pick(60, 3)]
    with ExitStack() as stack:
        fds = []
        for name, kind in KINDS.items():
            try:
                image = stack.enter_context(held(context.programs, source, "--hugepages", kind))
            except CommandError as error:
                # Pages of this kind have to be reserved by the administrator.
                context.say(f"{name}: not measured: {str(error).strip().splitlines()[-1]}")
                continue
            context.say(f"{name}: {pages(image.summary)}")
            command += ["--image", f"{name}=fd:{image.fd}"]
            fds.append(image.fd)
        context.say(f"{size(count)}, opened and touched; the files warm in the page cache")
        done = run([*command, *limits], fds=fds)
    times = {name: Timing(seconds) for name, seconds in json.loads(done.stdout)["seconds"].items()}
    peers = {name: times.pop(name) for name in files}
    for name, ours in sorted(times.items()):
        for peer, theirs in peers.items():
            goal = FASTER if name.startswith("2 MiB") and peer == goal_against else None
            yield Comparison(name, ours, f"mmap of {peer}", theirs, goal)


def _files(context: Context, source: Path) -> dict[str, Path]:
    """Have the model in the page cache three times, in the pieces that different ways of filling it leave.

    Of late, file systems keep a file in pieces of up to 2 MiB and map each with one fault, so what touching costs
    depends on how the file got there. The first way is the peers' own: they map it and touch what they need.
    """
    model = source / "model.safetensors"
    read, written = (context.scratch / name for name in ("read.safetensors", "written.safetensors"))
    _copy(model, read, 4 << 20)
    _copy(model, written, DOWNLOADED)
    os.sync()
    cool_files(source)
    with readahead(model, READAHEAD) as kib:
        files = {f"the file (read by mmap, readahead {kib} KiB)": model}
        map_file(model)
    cool_file(read)
    with readahead(read) as kib:
        files[f"the file (read by read, readahead {kib} KiB)"] = read
        warm_file(read)
    files[f"the file (written {size(DOWNLOADED)} at a time)"] = written
    return files


def _copy(source: Path, target: Path, step: int) -> None:
    with source.open("rb", buffering=0) as original, target.open("wb", buffering=0) as copy:
        while piece := original.read(step):
            copy.write(piece)
