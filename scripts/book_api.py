#!/usr/bin/env python3
"""Writes the reference of the Python package as Markdown: signatures from the stubs, texts from the docstrings.

Run by scripts/book.py with the interpreter that has the package, and griffe on its path.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

import griffe

import daxfs

# `name: text`, as the docstrings describe arguments.
ARGUMENT = re.compile(r"^(\w+(?:, \w+)*): ", re.MULTILINE)


def text(docs: str | None) -> Iterator[str]:
    """Yield the docstring as Markdown: the arguments are a list, indented examples are code."""
    for block in (docs or "").split("\n\n"):
        lines = block.splitlines()
        if lines and all(line.startswith("    ") for line in lines):
            yield from ("```python", *(line[4:] for line in lines), "```", "")
            continue
        for line in lines:
            found = ARGUMENT.match(line)
            if found:
                yield f"* **{found[1]}**: {escape(line[found.end() :])}"
            else:
                yield f"  {escape(line.strip())}" if line.startswith("    ") else escape(line)
        yield ""


def escape(line: str) -> str:
    """Keep names with underscores, globs and brackets as they are."""
    return re.sub(r"(?<!`)([*<_\[])(?!`)", r"\\\1", line) if "`" not in line else line.replace("<", "&lt;")


def signature(function: griffe.Function, name: str) -> str:
    """Return a call of a function with the types of its arguments and of what it returns."""
    words = []
    marked = False
    seen_positional = False
    for parameter in function.parameters:
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is griffe.ParameterKind.positional_only:
            seen_positional = True
        elif seen_positional:
            words.append("/")
            seen_positional = False
        if parameter.kind is griffe.ParameterKind.var_positional:
            marked = True
        elif parameter.kind is griffe.ParameterKind.keyword_only and not marked:
            words.append("*")
            marked = True
        star = {"variadic positional": "*", "variadic keyword": "**"}.get(parameter.kind.value, "")
        annotation = f": {parameter.annotation}" if parameter.annotation is not None else ""
        default = f" = {parameter.default}" if parameter.default is not None and not star else ""
        words.append(f"{star}{parameter.name}{annotation}{default}")
    if seen_positional:
        words.append("/")
    result = f" -> {function.returns}" if function.returns is not None else ""
    line = f"{name}({', '.join(words)}){result}"
    if len(line) > 100:
        line = f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){result}"
    return line


def found(scope: griffe.Module | griffe.Class, name: str) -> list[Any]:
    """Return what a name means in a module or class: a function that has overloads alone is several."""
    if scope.overloads.get(name):
        return list(scope.overloads[name])
    member = scope.members.get(name)
    if member is not None and member.is_alias:
        home, _, name = member.target_path.rpartition(".")
        package, _, inner = home.partition(".")
        if package != scope.package.name:
            return []
        return found(scope.package[inner] if inner else scope.package, name)
    return [] if member is None else [member]


def members(cls: griffe.Class) -> Iterator[tuple[str, list[Any]]]:
    """Yield what users of a class call."""
    for name in dict.fromkeys([*cls.members, *cls.overloads]):
        if not name.startswith("_") or name == "__init__":
            yield name, found(cls, name)


def describe_class(name: str, cls: griffe.Class, value: type) -> Iterator[str]:
    """Yield the section of a class."""
    yield from (f"### {name}", "")
    if issubclass(value, BaseException):
        bases = ", ".join(f"`{base.__name__}`" for base in value.__bases__)
        yield from (f"Is a {bases}.", "")
    yield from text(inspect.getdoc(value))
    for key, meanings in members(cls):
        member = meanings[0]
        own = inspect.getattr_static(value, key, None)
        docs = inspect.getdoc(own) if own is not None and not isinstance(own, (int, str, tuple)) else None
        if member.is_function:
            call = name if key == "__init__" else f"{name}.{key}"
            if member.has_labels("property"):
                calls = [f"{call}: {member.returns}"]
            else:
                calls = [signature(function, call) for function in meanings]
        elif member.is_attribute:
            calls = [f"{name}.{key}: {member.annotation}" if member.annotation is not None else f"{name}.{key}"]
            docs = member.docstring.value if member.docstring else docs if inspect.isdatadescriptor(own) else None
        else:
            continue
        yield from ("```python", *calls, "```", "")
        yield from text(docs)


def describe(module: griffe.Module, loaded: Any, names: list[str]) -> Iterator[str]:
    """Yield the functions, then the classes of a module."""
    later = []
    for name in names:
        meanings = [] if name.startswith("__") else found(module, name)
        if not meanings:
            continue
        member, value = meanings[0], getattr(loaded, name)
        if member.is_class:
            later.append((name, member, value))
        elif member.is_function:
            yield from (f"### {name}", "", "```python")
            yield from (signature(function, f"{loaded.__name__}.{name}") for function in meanings)
            yield from ("```", "", *text(inspect.getdoc(value)))
    for name, member, value in sorted(later, key=lambda found: issubclass(found[2], BaseException)):
        yield from describe_class(name, member, value)


def main() -> None:
    """Write the reference to standard output."""
    package = griffe.load("daxfs", allow_inspection=False, resolve_aliases=True)
    lines = ["## daxfs", "", *text(inspect.getdoc(daxfs)), *describe(package, daxfs, daxfs.__all__)]
    for name, module in sorted(package.members.items()):
        if name.startswith("_") or name in daxfs.__all__ or not module.is_module:
            continue
        try:
            loaded = importlib.import_module(f"daxfs.{name}")
        except ImportError as error:
            # Of a library that this environment does not have.
            lines += [f"## daxfs.{name}", "", f"Not described here: {error}.", ""]
            continue
        names = getattr(loaded, "__all__", [key for key in module.members if not key.startswith("_")])
        lines += [f"## daxfs.{name}", "", *text(inspect.getdoc(loaded)), *describe(module, loaded, names)]
    sys.stdout.write("\n".join(lines))


if __name__ == "__main__":
    main()
