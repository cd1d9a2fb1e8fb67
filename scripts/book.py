#!/usr/bin/env python3
"""Makes the book of docs/ in target/book/html, with mdBook, and checks its links: `make docs`.

The pages are those of docs/SUMMARY.md. They are readable as they lie there. A comment `<!-- book: NAME -->` in a page
stands for what is made of the sources: the help of the commands, the reference of the Python package, the structures of
the formats. It takes the commands and the package that are installed in .venv.
"""

# ruff: noqa: S603
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import book_links
import environment
from environment import ROOT

DOCS = ROOT / "docs"
BOOK = ROOT / "target/book"
PAGES = BOOK / "src"
VENV = Path(os.environ.get("DAXFS_VENV", ROOT / ".venv"))
MARK = re.compile(r"^<!-- book: (\w+) -->$", re.MULTILINE)
FORMAT = ROOT / "crates/daxfs/src/format"
PROTOCOL = ROOT / "crates/protocol/src"


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a command that must succeed, and return what it prints."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, env=env, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"book: `{' '.join(words[:4])} ...` ended with status {done.returncode}")
    return done.stdout


def commands() -> str:
    """Return the help of both commands and of every verb."""
    daxfs, pack = VENV / "bin/daxfs", VENV / "bin/daxfs-pack"
    with tempfile.TemporaryDirectory() as folder:
        run(daxfs, "man", folder)
        pages = sorted(path.name.removesuffix(".1") for path in Path(folder).glob("daxfs-*.1"))
    verbs = [page.removeprefix("daxfs-") for page in pages if page != "daxfs-pack"]
    # The width of the text is that of the terminal, if there is one.
    env = {**os.environ, "COLUMNS": "100"}
    lines = ["## daxfs", "", "```text", run(daxfs, "--help", env=env).rstrip(), "```", ""]
    for verb in verbs:
        lines += [f"### daxfs {verb}", "", "```text", run(daxfs, verb, "--help", env=env).rstrip(), "```", ""]
    return "\n".join([*lines, "## daxfs-pack", "", "```text", run(pack, "--help", env=env).rstrip(), "```", ""])


def python() -> str:
    """Return the reference of the package."""
    layer = environment.packages_of(environment.made("book"))
    env = {**os.environ, "PYTHONPATH": str(layer)}
    return run(VENV / "bin/python", ROOT / "scripts/book_api.py", env=env)


def plain(text: str) -> str:
    """Return documentation of Rust without its links."""
    text = re.sub(r"\[(`[^`\]]+`)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\[(`[^`\]]+`)\]", r"\1", text)


def module(path: Path) -> str:
    """Return the documentation of a module of Rust."""
    lines = [line[3:].removeprefix(" ") for line in path.read_text().splitlines() if line.startswith("//!")]
    return plain("\n".join(lines))


def structures(path: Path) -> Iterator[str]:
    """Yield a table for each structure of a format; its fields say at which offset they lie."""
    docs: list[str] = []
    name = ""
    for line in path.read_text().splitlines():
        text = line.strip()
        if text.startswith("///"):
            docs.append(text[3:].strip())
            continue
        struct = re.match(r"pub struct (\w+) \{", text)
        field = re.match(r"pub (\w+): ([^,]+),", text)
        if struct:
            name = struct[1]
            yield from (f"### {name}", "", plain(" ".join(docs)), "", "| offset | field | type | meaning |")
            yield "|---|---|---|---|"
        elif name and field:
            at, _, meaning = plain(" ".join(docs)).partition(": ")
            kind = field[2].lower().replace("[u8; ", "bytes [").replace("u8]", "bytes]")
            yield f"| {at} | `{field[1]}` | `{kind}` | {meaning.replace('|', '&#124;')} |"
        elif text == "}" and name:
            name = ""
            yield ""
        if not text.startswith("#["):
            docs = []


def format_() -> str:
    """Return the structures of the image and of the index."""
    lines = [module(FORMAT / "mod.rs"), ""]
    for title, file in (("Version 8", "v8.rs"), ("Version 5", "v5.rs"), ("What both have", "mod.rs")):
        lines += [f"## {title}", "", *structures(FORMAT / file)]
    for title, file in (("The index", "index.rs"), ("The EROFS view", "erofs.rs")):
        lines += [f"## {title}", "", module(FORMAT / file), "", *structures(FORMAT / file)]
    return "\n".join(lines)


def protocol() -> str:
    """Return how messages are framed."""
    return module(PROTOCOL / "wire.rs")


MADE: dict[str, Callable[[], str]] = {
    "commands": commands,
    "format": format_,
    "protocol": protocol,
    "python": python,
}


def listed() -> list[Path]:
    """Return the pages of the summary, in order."""
    targets = [target for _, target in book_links.links(DOCS / "SUMMARY.md")]
    pages = [Path(os.path.relpath((DOCS / target).resolve(), ROOT)) for target in targets]
    missing = {path.relative_to(ROOT) for path in DOCS.glob("*.md")} - {Path("docs/SUMMARY.md"), *pages}
    if missing:
        raise SystemExit(f"book: docs/SUMMARY.md does not list {', '.join(map(str, sorted(missing)))}")
    return pages


def with_files(page: Path, text: str, pages: set[Path]) -> str:
    """Return the text of a page; files that it leads to are copied, and folders are named without a link."""

    def target(found: re.Match[str]) -> str:
        words, place = found[1], found[2]
        name = place.partition("#")[0]
        if not name or book_links.is_elsewhere(place):
            return found[0]
        path = Path(os.path.relpath((ROOT / page.parent / name).resolve(), ROOT))
        if (ROOT / path).is_dir() or (path.suffix == ".md" and path not in pages):
            return words
        if path == Path("README.md"):
            # As mdBook names the page of a README.
            return f"[{words}]({place.replace('README.md', 'index.md')})"
        if path not in pages:
            bring(path)
        return found[0]

    for picture in re.findall(r'<img src="([^"]+)"', text):
        bring(Path(os.path.normpath(page.parent / picture)))
    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", target, text)


def bring(path: Path) -> None:
    """Copy a file that a page leads to, which the book shows as it is."""
    (PAGES / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / path, PAGES / path)


def assemble() -> None:
    """Put the pages together."""
    shutil.rmtree(BOOK, ignore_errors=True)
    pages = listed()
    for page in pages:
        text = (ROOT / page).read_text()
        unknown = set(MARK.findall(text)) - MADE.keys()
        if unknown:
            raise SystemExit(f"book: {page}: nothing is called {', '.join(unknown)}")
        text = with_files(page, text, set(pages))
        text = MARK.sub(lambda found: MADE[found[1]](), text)
        (PAGES / page).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / page).write_text(text)
    summary = (DOCS / "SUMMARY.md").read_text()
    summary = re.sub(r"\]\(([^)]+)\)", lambda m: f"]({os.path.normpath(f'docs/{m[1]}')})", summary)
    (PAGES / "SUMMARY.md").write_text(summary)


def main() -> int:
    """Make the book, and check it."""
    wrong = list(book_links.broken_in_markdown())
    if not wrong:
        assemble()
        run(environment.made("book") / "bin/mdbook", "build", ROOT)
        wrong = list(book_links.broken_in_html(BOOK / "html"))
    for line in wrong:
        print(f"book: {line}")
    if not wrong:
        print(f"book: {(BOOK / 'html/index.html').relative_to(ROOT)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
