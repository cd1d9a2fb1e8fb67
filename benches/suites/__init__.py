"""The benchmarks by name. Each takes a Context and yields rows, or says why it cannot run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.result import Row

if TYPE_CHECKING:
    from pathlib import Path

    from harness.data import Store
    from harness.image import Programs


@dataclass(frozen=True)
class Context:
    """What a benchmark is given."""

    programs: Programs
    store: Store
    scratch: Path  # an empty directory on a disk
    quick: bool
    runs: int

    def say(self, line: str) -> None:
        """Tell the reader something about what is measured."""
        print(line, flush=True)

    def pick(self, full: int, quick: int) -> int:
        """Choose between a real measurement and a short one, which only shows that everything runs."""
        return quick if self.quick else full


Suite = Callable[[Context], Iterator[Row]]
