"""Several cases, timed in turns: whatever disturbs the machine for a while disturbs all of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from harness.machine import warm_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Samples = dict[str, list[float]]


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` takes; letting go of its result is not counted."""
    started = time.perf_counter()
    result = action()
    elapsed = time.perf_counter() - started
    del result
    return elapsed


def interleave(
    cases: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    seconds: float | None = None,
    warm_up: bool = False,
    memory: int = 0,
) -> Samples:
    """Call every case once per round and collect the seconds that it returns.

    Each round begins with another case. No round is begun after `seconds`, but there is one at least. With
    `warm_up` a first round is thrown away. Before each case `memory` bytes are made warm.
    """
    names = list(cases)
    samples: Samples = {name: [] for name in names}
    if warm_up:
        for name in names:
            cases[name]()
    started = time.perf_counter()
    for number in range(max(rounds, 1)):
        if number and seconds is not None and time.perf_counter() - started > seconds:
            break
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if memory:
                warm_memory(memory)
            samples[name].append(cases[name]())
    return samples
