#!/usr/bin/env python3
"""Uses an installed daxfs as its README says: packs a model with the command, and runs the Python examples.

    try_release.py README [FOLDER]

FOLDER has the commands `daxfs` and `daxfs-pack`; without it they lie beside the interpreter. Where `daxfs-remote` lies
there too, the image is fetched from a web server. Only the standard library is needed, and what the examples import.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def pack(folder: Path, programs: Path) -> None:
    """Make `llama.daxfs` in a folder, and compare it with its source."""
    weights = folder / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    entry = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}
    header = json.dumps({"lm_head.weight": entry}).encode()
    (weights / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(8)))
    # The same interpreter: with another processor's, its own is not the system's.
    run = [sys.executable] if (programs / "daxfs").read_bytes().startswith(b"#!") else []
    subprocess.run([*run, programs / "daxfs-pack", weights, "-o", "llama.daxfs"], cwd=folder, check=True)  # noqa: S603
    subprocess.run([*run, programs / "daxfs", "verify", "llama.daxfs", weights], cwd=folder, check=True)  # noqa: S603


def fetch(image: Path, run: list[str | Path]) -> None:
    """Serve an image by ranges, and open it by its address."""
    import daxfs  # noqa: PLC0415

    content = image.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        """One file, by ranges."""

        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            """Say how long it is."""
            self.do_GET()

        def do_GET(self) -> None:
            """Answer with a range."""
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start, end = (int(match[1]), int(match[2] or len(content) - 1)) if match else (0, len(content) - 1)
            part = content[start : end + 1]
            self.send_response(206 if match else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("ETag", '"1"')
            self.send_header("Accept-Ranges", "bytes")
            if match:
                self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/llama.daxfs"
        with daxfs.open(address) as remote:
            assert bytes(remote["config.json"]) == b"{}"  # noqa: S101
        subprocess.run([*run, "ls", address], check=True)  # noqa: S603
        server.shutdown()


def main() -> int:
    """Return 0 when all of it worked."""
    readme = Path(sys.argv[1]).read_text(encoding="utf-8")
    programs = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(sys.executable).parent
    examples = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    if not examples:
        print("the README has no Python example", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pack(folder, programs)
        os.chdir(folder)
        for example in examples:
            names: dict[str, object] = {}
            exec(compile(example, "<README>", "exec"), names)  # noqa: S102
            if "array" in names and getattr(names["array"], "shape", None) != (2, 2):
                print(f"the tensor has the wrong shape: {names['array']!r}", file=sys.stderr)
                return 1
        if (programs / "daxfs-remote").exists():
            command = programs / "daxfs"
            fetch(folder / "llama.daxfs", [sys.executable, command] if command.read_bytes()[:2] == b"#!" else [command])
        os.chdir("/")
    print(f"{len(examples)} Python example(s) of the README ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
