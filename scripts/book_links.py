#!/usr/bin/env python3
"""Links of documents: those between the Markdown files of this repository, and those of a folder of HTML.

    scripts/book_links.py            the Markdown files, as a forge shows them
    scripts/book_links.py HTML       the pages below a folder

A link leads to a file that is there, and its fragment to a heading or an id. Links to other sites are not followed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("*.md", "docs/*.md", "examples/**/*.md", "crates/*/*.md", "tests/**/*.md", "deploy/**/*.md")
# [text](target) and ![text](target), also in the middle of a line; a title may follow the target.
LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not code, without what is code in them, with their numbers."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
        elif not fence:
            yield number, line


def slug(heading: str) -> str:
    """Return the fragment that a forge, and mdBook, give a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """Return the fragments of a Markdown file."""
    found: set[str] = set()
    for _, line in prose(path.read_text()):
        heading = re.match(r"#+ (.*)", line)
        if heading:
            base = name = slug(heading[1])
            count = 0
            while name in found:
                count += 1
                name = f"{base}-{count}"
            found.add(name)
        found.update(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", line))
    return found


def links(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the links of a Markdown file, with the numbers of their lines."""
    for number, line in prose(path.read_text()):
        for target in LINK.findall(re.sub(r"`[^`]*`", "``", line)):
            yield number, target
        yield from ((number, target) for target in re.findall(r"<(?:img|source)[^>]* src(?:set)?=\"([^\"]+)\"", line))


def is_elsewhere(target: str) -> bool:
    """Tell whether a link leads to another site."""
    return bool(urlsplit(target).scheme or urlsplit(target).netloc)


def broken_in_markdown(root: Path = ROOT) -> Iterator[str]:
    """Yield what is wrong with the links of the repository's documents."""
    for pattern in DOCUMENTS:
        for path in sorted(root.glob(pattern)):
            for number, target in links(path):
                if is_elsewhere(target):
                    continue
                place = f"{path.relative_to(root)}:{number}: {target}"
                name, _, fragment = target.partition("#")
                file = path.parent / unquote(name) if name else path
                if not file.exists():
                    yield f"{place}: no such file"
                elif fragment and (file.suffix != ".md" or fragment not in anchors(file)):
                    yield f"{place}: no such heading"


class Page(HTMLParser):
    """Links and ids of a page."""

    def __init__(self, text: str) -> None:
        """Read the page."""
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag refers to, and its id."""
        for key, value in attrs:
            if value is None:
                continue
            if key == "id" or (tag == "a" and key == "name"):
                self.ids.add(value)
            elif (tag in ("a", "link") and key == "href") or (tag in ("img", "script") and key == "src"):
                self.links.append(value)


def broken_in_html(folder: Path) -> Iterator[str]:
    """Yield what is wrong with the links of the pages below a folder."""
    pages = {path.resolve(): Page(path.read_text()) for path in sorted(folder.rglob("*.html"))}
    for path, page in pages.items():
        # It is shown at any depth, so its links begin at the root of a site.
        if path.name == "404.html":
            continue
        for target in page.links:
            if is_elsewhere(target):
                continue
            name, _, fragment = target.partition("#")
            file = (path.parent / unquote(name.partition("?")[0])).resolve() if name else path
            place = f"{path.relative_to(folder.resolve())}: {target}"
            if not file.is_file():
                yield f"{place}: no such file"
            elif fragment and file in pages and unquote(fragment) not in pages[file].ids:
                yield f"{place}: no such id"


def main() -> int:
    """Check, and say what is broken."""
    wrong = list(broken_in_html(Path(sys.argv[1])) if len(sys.argv) > 1 else broken_in_markdown())
    for line in wrong:
        print(f"links: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
