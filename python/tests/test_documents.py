"""Pastes the shell blocks of the README and of docs/*.md into a shell, line by line and in order, in an empty home.

A word behind `sh` says what a block needs. Programs (`PROGRAMS`) are used where they are installed. Blocks that need
more (`ELSEWHERE`) are not run here, and `LEFT_OUT` counts them, so that none is left out by accident.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import Spec, write_safetensors

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = Path(sysconfig.get_path("scripts"))

PROGRAMS = {"jq", "minisign", "openssl", "umoci"}
ELSEWHERE = {
    "bench": "an idle machine: make bench is run by hand",
    "checkout": "the source tree; the steps of scripts/test.sh run these",
    "engine": "an inference engine",
    "gpu": "a GPU",
    "model_signing": "a Python package that the tests do not install",
    "mount": "rights to mount, or a virtual machine; tests/tests/fuse, run and vm_args.rs have such commands",
    "registry": "a registry of containers",
    "release": "the files of a release; scripts/test-dist.sh does the same",
    "store": "an object store or a web server; crates/remote/tests has a server of its own",
    "root": "root, and the kernel's DAXFS or EROFS",
    "systemd": "systemd; a virtual machine of tests/kernel has the same units",
}
LEFT_OUT = {
    "README.md": {"checkout": 1, "release": 1, "root": 1},
    "benchmarks.md": {"bench": 1},
    "cuda.md": {"gpu": 1},
    "content.md": {"model_signing": 1, "registry": 2},
    "holder.md": {"gpu": 1},
    "ml.md": {"engine": 1},
    "mounting.md": {"mount": 4, "root": 1},
    "plans.md": {"gpu": 1},
    "remote.md": {"store": 2},
    "rootfs.md": {"mount": 3},
    "sources.md": {"root": 2},
    "systemd.md": {"systemd": 2},
}
# More than all blocks of a document take on a busy machine; only a command that does not end waits so long.
PATIENCE = 300


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    language: str
    needs: tuple[str, ...]
    lines: tuple[tuple[int, str], ...]


def blocks(document: Path) -> list[Block]:
    """All fenced blocks; lines have their numbers in the document."""
    found: list[Block] = []
    inside: list[tuple[int, str]] | None = None
    info: list[str] = []
    for number, line in enumerate(document.read_text().splitlines(), 1):
        if not line.startswith("```"):
            if inside is not None:
                inside.append((number, line))
        elif inside is None:
            inside, info = [], line[3:].split() or [""]
        else:
            found.append(Block(info[0], tuple(info[1:]), tuple(inside)))
            inside = None
    assert inside is None, f"{document}: a block does not end"
    return found


def shell_blocks(document: Path) -> list[Block]:
    """The blocks that are for a shell."""
    return [block for block in blocks(document) if block.language == "sh"]


def script(document: Path) -> str:
    """The commands that can be run here; what fails is noted in the file $FAILED, with its line of the document."""
    lines = ["set -o pipefail", "jobs="]
    for block in shell_blocks(document):
        if ELSEWHERE.keys() & set(block.needs):
            continue
        missing = [name for name in block.needs if not shutil.which(name)]
        assert not missing or os.environ.get("CI") != "true", f"{document.name}: the step setup installs {missing}"
        if missing:
            print(f"{document.name}:{block.lines[0][0]}: left out, as {missing} is not installed")
            continue
        for number, line in block.lines:
            if re.match(r"\s*(#.*)?$", line):
                continue
            place = f"{document.name}:{number}"
            note = f'echo "{place}: exit status $status" >>"$FAILED"'
            lines += [f"echo '+ {place}'", line, f"status=$?; [ $status = 0 ] || {note}"]
            if re.search(r"&\s*(#.*)?$", line):
                lines.append(f'jobs="$jobs $!:{place}"')
    # What still runs in the background is ended by the test.
    lines += [
        "for job in $jobs; do",
        '    kill -0 "${job%%:*}" 2>/dev/null || wait "${job%%:*}" || echo "${job#*:}: exit status $?" >>"$FAILED"',
        "done",
        # Nothing ended the script before, as a line that no shell understands does.
        ': >"$DONE"',
    ]
    return "\n".join(lines) + "\n"


@pytest.fixture
def home() -> Iterator[Path]:
    """A home with the models that the documents name, and nothing else; its path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="daxfs-") as name:
        home = Path(name)
        for seed, folder in enumerate(("weights", "new-weights", "adapters")):
            (home / folder).mkdir()
            (home / folder / "config.json").write_text("{}")
            tensors = {
                "lm_head.weight": Spec.filled("BF16", (16, 8), seed),
                "model.layers.0.self_attn.q_proj.weight": Spec.filled("BF16", (8, 8), seed),
            }
            write_safetensors(home / folder / "model.safetensors", tensors)
        (home / "infer.py").write_text("import daxfs\n\nassert daxfs.open().tensors()\n")
        (home / "run").mkdir(mode=0o700)
        yield home


@pytest.mark.skipif(not (SCRIPTS / "daxfs").exists(), reason="the package's scripts are not installed")
@pytest.mark.parametrize("document", [path for path in DOCUMENTS if shell_blocks(path)], ids=lambda path: path.name)
def test_shell_blocks(document: Path, home: Path) -> None:
    plans = [block for block in blocks(document) if block.language == "json"]
    if plans:
        text = "\n".join(line for _, line in plans[0].lines)
        (home / "plan.json").write_text(json.dumps(json.loads(text)))
    environment = {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "XDG_RUNTIME_DIR": str(home / "run"),
        "DONE": str(home / "done"),
        "FAILED": str(home / "failed"),
    }
    with tempfile.TemporaryFile("w+") as output:
        # A file and not a pipe: what is left in the background would keep a pipe open.
        shell = subprocess.Popen(
            ["bash", "-c", script(document)],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            shell.wait(PATIENCE)
        finally:
            # The session that was just begun, with all that still runs in it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
            output.seek(0)
            print(output.read())
    failed = home / "failed"
    assert not failed.exists(), failed.read_text()
    assert (home / "done").exists(), "a line ended the shell: the last one named above"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_say_what_they_need(document: Path) -> None:
    left_out: Counter[str] = Counter()
    for block in blocks(document):
        assert block.language not in ("", "bash", "console", "shell"), f"{block.lines[0]}: its language is `sh`"
        if block.language == "sh":
            assert set(block.needs) <= PROGRAMS | ELSEWHERE.keys(), block
            left_out.update(ELSEWHERE.keys() & set(block.needs))
    assert left_out == LEFT_OUT.get(document.name, {})


def test_links_lead_somewhere() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/book_links.py"], check=False, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, done.stdout


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.html").write_text('<p id="there">')
    page = tmp_path / "index.html"
    page.write_text('<a href="other.html#there"></a><a href="https://example.org/x"></a>')
    check = [sys.executable, ROOT / "scripts/book_links.py", tmp_path]
    assert subprocess.run(check, check=False).returncode == 0
    page.write_text('<a href="other.html#gone"></a><img src="gone.svg"><a href="#gone"></a>')
    done = subprocess.run(check, check=False, stdout=subprocess.PIPE, text=True)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 3)


def test_every_document_that_leaves_blocks_out_is_there() -> None:
    assert LEFT_OUT.keys() <= {path.name for path in DOCUMENTS}
