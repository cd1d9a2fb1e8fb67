"""Attaching to an image of a holder: latency against the bare cost, and 1,000 clients at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from harness.command import run
from harness.holder import serving
from harness.result import Comparison, Row, Timing, Value, duration, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from suites import Context

WITHIN = 1 / 3  # of the speed of the bare cost
BELOW = 1 << 20


def suite(context: Context) -> Iterator[Row]:
    """Serve one image of weights; first one client again and again, then many small processes at once."""
    count, clients = context.pick(4 << 30, 64 << 20), context.pick(1000, 50)
    source = context.store.weights(count)
    with serving(context.programs) as holder:
        info = holder.load("weights", source)
        address = holder.address("weights")
        context.say(f"{size(info['size'])} in {info['memory']}, pages of {size(info['page_size'])}")

        command = [context.programs.bench, "attach", address, "--socket", holder.socket.parent / "bare"]
        limits = ["--seconds", context.pick(20, 1), "--rounds", context.pick(10_000, 50)]
        done = run([*command, *limits])
        times = {name: Timing(seconds) for name, seconds in json.loads(done.stdout)["seconds"].items()}
        peer = "SCM_RIGHTS + mmap, bare server"
        names = {"attach": "attach: descriptor and mapping", "open": "attach and open the image"}
        for case, name in names.items():
            ours, theirs = times[case], times["bare"]
            # Opening is more than the bare server's client does.
            goal = WITHIN if case == "attach" else None
            yield Comparison(f"{name}, p50", ours, peer, theirs, goal)
            yield Comparison(f"{name}, p99", Timing([ours.at(0.99)]), peer, Timing([theirs.at(0.99)]))

        command = [context.programs.bench, "crowd", address, "--clients", clients, "--holder", holder.pid]
        crowd = json.loads(run([*command, "--model", source / "model.safetensors"]).stdout)
        held = min(crowd["image_pss"], info["size"])
        beyond = (crowd["pss"] + crowd["holder_growth"] - held) / clients
        opened, checked = Timing(crowd["open"]), Timing(crowd["checked"])
        context.say(
            f"{clients} processes attach at once and check a tensor each: PSS {size(crowd['pss'])}, "
            f"{size(crowd['image_pss'])} of it the image; the holder grew by {size(crowd['holder_growth'])}"
        )
        context.say(
            f"attach and open, all at once: p50 {duration(opened.at(0.5))}, p99 {duration(opened.at(0.99))}; "
            f"until the tensor is checked: p50 {duration(checked.at(0.5))}, p99 {duration(checked.at(0.99))}"
        )
        yield Value(f"memory of each of {clients} clients, beyond the image", beyond, size(beyond), BELOW, size(BELOW))
