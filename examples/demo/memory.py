"""What a process's memory is made of, by the kernel's own account: /proc/self/smaps and smaps_rollup.

PSS ("proportional set size") divides every shared page by the number of processes that map it, so the PSS of
several processes may be added up. Anonymous memory belongs to one process alone: a copy of the weights, read
into a buffer or made by copy-on-write, would show there. Pages of a library's file that no other process maps at
the moment are no such memory: they come and go with other processes, so they are not counted as private.
"""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path

SEALS = {0x1: "further seals", 0x2: "shrink", 0x4: "grow", 0x8: "write", 0x10: "future-write", 0x20: "exec"}


@dataclass(frozen=True)
class Usage:
    """Bytes; of a whole process, or of the mappings of one file."""

    rss: int = 0
    pss: int = 0
    anonymous: int = 0
    huge: int = 0  # mapped by page table entries of 2 MiB

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Mapping:
    """An entry of /proc/self/smaps: addresses `start` up to `end`, permissions such as "r--s", its usage."""

    start: int
    end: int
    permissions: str
    usage: Usage

    def holds(self, address: int, size: int) -> bool:
        """Whether all the bytes lie inside."""
        return self.start <= address and address + size <= self.end


def usage_from(fields: dict[str, int]) -> Usage:
    """From the `Name: n kB` lines of smaps."""
    return Usage(
        rss=fields["Rss"],
        pss=fields["Pss"],
        anonymous=fields["Anonymous"],
        huge=fields["AnonHugePages"] + fields["ShmemPmdMapped"] + fields["FilePmdMapped"],
    )


def read_fields(lines: list[str]) -> dict[str, int]:
    """`Name: n kB` lines to bytes by name."""
    rows = (line.split() for line in lines)
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3 and row[2] == "kB"}


def of_process() -> Usage:
    """The memory of this process."""
    return usage_from(read_fields(Path("/proc/self/smaps_rollup").read_text().splitlines()))


def mappings_of(fd: int) -> list[Mapping]:
    """The mappings of this process that show the file behind `fd`, found by its name in /proc."""
    target = str(Path(f"/proc/self/fd/{fd}").readlink())
    lines = Path("/proc/self/smaps").read_text().splitlines()
    heads = [at for at, line in enumerate(lines) if "-" in line.split(maxsplit=1)[0]]
    found = []
    for at, after in zip(heads, [*heads[1:], len(lines)]):
        addresses, permissions, _offset, _device, _inode, *name = lines[at].split(maxsplit=5)
        if name == [target]:
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.append(Mapping(start, end, permissions, usage_from(read_fields(lines[at + 1 : after]))))
    return found


def describe(fd: int) -> str:
    """What kind of memory a descriptor stands for, and what it is sealed against."""
    target = str(Path(f"/proc/self/fd/{fd}").readlink())
    if not target.startswith("/memfd:"):
        return f"file {target}"
    bits = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    names = ", ".join(name for bit, name in SEALS.items() if bits & bit)
    name = target.removeprefix("/").removesuffix(" (deleted)")
    return f"{name}, sealed against {names or 'nothing'}"
