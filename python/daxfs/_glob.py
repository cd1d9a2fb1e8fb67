"""Patterns over the paths of an image, as ``pathlib.Path.glob`` has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def matching(pattern: str, paths: Iterable[str]) -> list[str]:
    """Return the paths that a pattern means, in their order.

    ``*`` and ``?`` stand for characters of one name, ``[seq]`` and ``[!seq]`` for one of a set; ``**`` stands for any
    number of directories.
    """
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        msg = f"a pattern names files below, such as '*.json' or '**/*.safetensors', not {pattern!r}"
        raise ValueError(msg)
    return [path for path in paths if _matches(path.split("/"), parts)]


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Tell whether the names of a path are those of a pattern: all ways to read it are followed at once."""
    reached = _behind({0}, parts)
    for name in names:
        after = set()
        for at in reached:
            if at < len(parts) and parts[at] == "**":
                after.add(at)
            elif at < len(parts) and fnmatchcase(name, parts[at]):
                after.add(at + 1)
        reached = _behind(after, parts)
    return len(parts) in reached


def _behind(reached: set[int], parts: Sequence[str]) -> set[int]:
    """Add the places that are reached because ``**`` may stand for nothing."""
    for at in sorted(reached):
        end = at
        while end < len(parts) and parts[end] == "**":
            end += 1
            reached.add(end)
    return reached
