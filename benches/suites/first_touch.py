"""First touch of every page of an image, by kind of page, against a mapping of the file."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

from harness.command import CommandError, run
from harness.image import held, pages
from harness.machine import cool_files, warm_files
from harness.result import Comparison, Row, Timing, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from suites import Context

FASTER = 3.0
KINDS = {"4 KiB pages": "no", "2 MiB pages": "thp", "2 MiB hugetlb pages": "2M"}


def suite(context: Context) -> Iterator[Row]:
    """Pack one model into memfds of each kind of page; open and touch each of them, and the file."""
    count = context.pick(2 << 30, 64 << 20)
    source = context.store.weights(count)
    # The page cache as reading fills it: what a file system keeps of a file just written is in larger pieces.
    cool_files(source)
    warm_files(source)
    command = [context.programs.bench, "first-touch", "--model", source / "model.safetensors"]
    limits = ["--seconds", context.pick(20, 1), "--rounds", context.pick(100, 3)]
    with ExitStack() as stack:
        fds = []
        for name, kind in KINDS.items():
            try:
                image = stack.enter_context(held(context.programs, source, "--no-hash", "--hugepages", kind))
            except CommandError as error:
                # Pages of this kind have to be reserved by the administrator.
                context.say(f"{name}: not measured: {str(error).strip().splitlines()[-1]}")
                continue
            context.say(f"{name}: {pages(image.summary)}")
            command += ["--image", f"{name}=fd:{image.fd}"]
            fds.append(image.fd)
        context.say(f"{size(count)}, opened and touched; the file warm in the page cache")
        done = run([*command, *limits], fds=fds)
    times = {name: Timing(seconds) for name, seconds in json.loads(done.stdout)["seconds"].items()}
    peer = times.pop("mmap")
    for name, ours in sorted(times.items()):
        goal = FASTER if name.startswith("2 MiB") else None
        yield Comparison(name, ours, "mmap of the file", peer, goal)
