"""Rows of results: what was measured, the peer in the same run, and the goal beside it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MET, MISSED = "met", "missed"
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def duration(seconds: float) -> str:
    """Seconds for people."""
    scale, unit = next(((scale, unit) for scale, unit in UNITS if abs(seconds) >= scale), UNITS[-1])
    value = seconds / scale
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


@dataclass(frozen=True)
class Timing:
    """Seconds of several runs."""

    seconds: Sequence[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    def at(self, part: float) -> float:
        """Give the time that this part of the runs did not exceed: 0.99 for the 99th percentile."""
        ordered = sorted(self.seconds)
        return ordered[min(int(len(ordered) * part), len(ordered) - 1)]

    def __str__(self) -> str:
        """Show the median, and how far the runs lie apart."""
        if len(self.seconds) < 2:
            return duration(self.median)
        ordered = sorted(self.seconds)
        # Of many runs the outer twentieths are noise of the machine.
        cut = len(ordered) // 20
        return f"{duration(self.median)} ({duration(ordered[cut])} to {duration(ordered[-1 - cut])})"


@dataclass(frozen=True)
class Comparison:
    """Ours against a peer. Speed 2 is half the time of the peer; `at_least` is the goal for it."""

    what: str
    ours: Timing
    peer: str
    theirs: Timing
    at_least: float | None = None

    @property
    def speed(self) -> float:
        """How many times as fast as the peer: the ratio of the medians."""
        return self.theirs.median / self.ours.median

    @property
    def verdict(self) -> str | None:
        """Whether the goal was reached; None without a goal."""
        if self.at_least is None:
            return None
        return MET if self.speed >= self.at_least else MISSED

    def cells(self) -> list[str]:
        """Give the row of the table."""
        goal = "" if self.at_least is None else f">= {self.at_least:.3g}x {self.verdict}"
        return [self.what, str(self.ours), self.peer, str(self.theirs), f"{self.speed:.3g}x", goal]

    def record(self) -> dict[str, object]:
        """Give the row for programs."""
        return {
            "what": self.what,
            "seconds": self.ours.median,
            "runs": len(self.ours.seconds),
            "peer": self.peer,
            "peer_seconds": self.theirs.median,
            "speed": self.speed,
            "at_least": self.at_least,
            "goal": self.verdict,
        }


@dataclass(frozen=True)
class Value:
    """A number with an upper bound for a goal; `peer` says what it is compared with, if anything."""

    what: str
    value: float
    shown: str
    below: float | None = None
    bound: str = ""  # the goal as shown
    peer: str = ""
    theirs: str = ""

    @property
    def verdict(self) -> str | None:
        """Whether the goal was reached; None without a goal."""
        if self.below is None:
            return None
        return MET if self.value < self.below else MISSED

    def cells(self) -> list[str]:
        """Give the row of the table."""
        goal = "" if self.below is None else f"< {self.bound} {self.verdict}"
        return [self.what, self.shown, self.peer, self.theirs, "", goal]

    def record(self) -> dict[str, object]:
        """Give the row for programs."""
        return {"what": self.what, "value": self.value, "below": self.below, "goal": self.verdict}


Row = Comparison | Value

HEAD = ["what", "daxfs", "peer", "time of the peer", "speed", "goal"]


def table(rows: Sequence[Row]) -> str:
    """Align the rows."""
    cells = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
