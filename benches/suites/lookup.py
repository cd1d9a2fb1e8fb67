"""Looking files up by their full paths in an opened image, against access(2) on the tree."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from harness.command import run
from harness.image import held
from harness.result import Comparison, Row, Timing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from suites import Context

FASTER = 10.0


def suite(context: Context) -> Iterator[Row]:
    """All paths of the tree, in random order."""
    files, count = context.pick(60_000, 2_000), context.pick(1536 << 20, 16 << 20)
    tree = context.store.tree(files, count)
    context.say(f"{files} files, each looked up three times per run, in random order; time of one path")
    with held(context.programs, tree) as image:
        command = [context.programs.bench, "lookup", "--tree", tree]
        limits = ["--seconds", context.pick(10, 1), "--rounds", context.pick(200, 3)]
        done = run([*command, *limits], env=image.env, fds=[image.fd])
    times = {name: Timing(seconds) for name, seconds in json.loads(done.stdout)["seconds"].items()}
    entry = times["entry"]
    yield Comparison("Image::entry", entry, "access(2)", times["access"], FASTER)
    yield Comparison("Image::contains", times["contains"], "access(2)", times["access"])
    yield Comparison("Image::file", times["file"], "access(2)", times["access"])
