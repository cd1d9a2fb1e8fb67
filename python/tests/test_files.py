"""Files of images as files of the file system: Image.path and Image.materialize."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import daxfs
from daxfs import _files

from support import Spec, write_safetensors


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for a new directory of this process, which goes with the test."""
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setattr(_files, "_runtime", None)
    yield folder
    if _files._runtime is not None:
        _files._runtime.remove()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with what lies beside weights, in an image."""
    top = tmp_path / "model"
    (top / "text").mkdir(parents=True)
    (top / "config.json").write_text("{}")
    (top / "text/tokenizer.json").write_text('{"version": "1.0"}')
    (top / "text/same.json").write_text("{}")
    (top / "pytorch_model.bin").write_bytes(b"weights")
    write_safetensors(top / "model.safetensors", {"odd": Spec.filled("U8", (3,)), "w": Spec.filled("F32", (5,))})
    daxfs.pack(top, tmp_path / "model.daxfs")
    return top


def files_below(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def test_a_file_has_one_path(model: Path, runtime: Path) -> None:
    with daxfs.open(f"{model}.daxfs") as image:
        path = Path(image.path("text/tokenizer.json"))
        assert path.name == "tokenizer.json"
        assert path.is_relative_to(runtime)
        assert path.read_bytes() == (model / "text/tokenizer.json").read_bytes()
        inode = path.stat().st_ino
        assert image.path(b"text/tokenizer.json") == image.path("/text//./tokenizer.json") == str(path)
    with daxfs.open(f"{model}.daxfs") as other:
        assert other.path("text/tokenizer.json") == str(path)
        assert path.stat().st_ino == inode
    # It stays for as long as the process.
    assert path.exists()
    assert path.stat().st_mode & 0o777 == 0o400


def test_weights_are_as_before_packing(model: Path, runtime: Path) -> None:
    with daxfs.open(f"{model}.daxfs") as image:
        assert image["model.safetensors"].original().differs
        assert Path(image.path("model.safetensors")).read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_directory_has_all_but_weights(model: Path, runtime: Path) -> None:
    with daxfs.open(f"{model}.daxfs") as image:
        path = Path(image.path())
        assert image.path("") == str(path)
        small = {"config.json", "text/tokenizer.json", "text/same.json"}
        assert files_below(path) == {name: (model / name).read_bytes() for name in small}
        assert files_below(Path(image.path("text"))).keys() == {"tokenizer.json", "same.json"}
        assert Path(image.path("text")).name == "text"
        # Memory is taken once.
        assert (path / "config.json").stat().st_ino == Path(image.path("config.json")).stat().st_ino
    with pytest.raises(ValueError, match="closed"):
        image.path()


def test_directories_behind_links(tmp_path: Path, runtime: Path) -> None:
    from daxfs import _stand_in
    from daxfs._locate import Location

    (tmp_path / "m/text").mkdir(parents=True)
    (tmp_path / "m/text/config.json").write_text("{}")
    (tmp_path / "m/link").symlink_to("text")
    daxfs.pack(tmp_path / "m", tmp_path / "m.daxfs")
    with daxfs.open(tmp_path / "m.daxfs") as image:
        for name in ("link", "text/../text", "text"):
            assert files_below(Path(image.path(name))) == {"config.json": b"{}"}
            folder = Path(_stand_in.folder(Location(str(tmp_path / "m.daxfs"), name)))
            assert files_below(folder).keys() == {"config.json", ".daxfs"}


def test_contents_are_told_apart_as_they_were_before_packing(tmp_path: Path, runtime: Path) -> None:
    header = b'{"w":{"dtype":"U8","shape":[300],"data_offsets":[0,300]}}'
    files = [struct.pack("<Q", len(header)) + header + bytes(300)]
    files.append(struct.pack("<Q", len(header) + 8) + header + b" " * 8 + bytes(300))
    images = []
    for number, contents in enumerate(files):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/m.safetensors").write_bytes(contents)
        daxfs.pack(tmp_path / f"{number}", tmp_path / f"{number}.daxfs")
        images.append(daxfs.open(tmp_path / f"{number}.daxfs"))
    assert images[0]["m.safetensors"].read_bytes() == images[1]["m.safetensors"].read_bytes()
    assert [Path(image.path("m.safetensors")).read_bytes() for image in images] == files


def test_what_is_not_there(model: Path, runtime: Path) -> None:
    with daxfs.open(f"{model}.daxfs") as image, pytest.raises(daxfs.NotFoundError):
        image.path("nothing")
    assert not list(runtime.glob("*/*/*"))


PROGRAM = """
    import os, signal, sys
    import daxfs
    path = daxfs.open(sys.argv[1]).path("config.json")
    if sys.argv[2] == "fork":
        child = os.fork()
        if child == 0:
            # Its end removes nothing of its parent's.
            assert open(path).read() == "{}"
            assert daxfs.open(sys.argv[1]).path("config.json") != path
            sys.exit()
        os.waitpid(child, 0)
        assert open(path).read() == "{}"
    print(path, flush=True)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def run(image: str, how: str, runtime: Path) -> Path:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM), image, how]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=how != "kill")
    return Path(done.stdout.strip())


def test_nothing_is_left(model: Path, tmp_path: Path) -> None:
    runtime = tmp_path / "other"
    runtime.mkdir()
    (runtime / "daxfs-files-of-others").write_text("no directory")
    run(f"{model}.daxfs", "end", runtime)
    run(f"{model}.daxfs", "fork", runtime)
    left = run(f"{model}.daxfs", "kill", runtime)
    assert left.read_text() == "{}"
    # The next process removes what that one left, and not what is in use.
    run(f"{model}.daxfs", "end", runtime)
    assert [path.name for path in runtime.iterdir()] == ["daxfs-files-of-others"]


def test_a_directory_that_was_taken_away_at_once_is_made_again(
    model: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = _files._locked, []

    def locked(folder: Path, flags: int = 0) -> int | None:
        seen.append(folder)
        if len(seen) > 1:
            return real(folder, flags)
        # As a process that begins does between the two calls of the real one.
        other = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(other, fcntl.LOCK_EX)
        found = real(folder, flags)
        shutil.rmtree(folder)
        os.close(other)
        return found

    monkeypatch.setattr(_files, "_locked", locked)
    with daxfs.open(f"{model}.daxfs") as image:
        assert Path(image.path("config.json")).read_text() == "{}"
    assert len(seen) == 2


def test_directories_in_use_stay(model: Path, runtime: Path) -> None:
    with daxfs.open(f"{model}.daxfs") as image:
        path = Path(image.path("config.json"))
        run(f"{model}.daxfs", "end", runtime)
        assert path.exists()


def test_materialize(model: Path, tree: Path, path: Path, tmp_path: Path) -> None:
    with daxfs.open(f"{model}.daxfs") as image:
        written = image.materialize(tmp_path / "all")
        assert files_below(tmp_path / "all") == files_below(model)
        assert written == list(image)
        written = image.materialize(str(tmp_path / "small"), exclude_weights=True)
        assert sorted(written) == ["config.json", "text/same.json", "text/tokenizer.json"]
        assert files_below(tmp_path / "small").keys() == set(written)
        with pytest.raises(FileExistsError):
            image.materialize(tmp_path / "all")
    with daxfs.open(path) as image:
        # Links are the files that they lead to; names need not be UTF-8.
        written = image.materialize(os.fsencode(tmp_path / "tree"))
        assert "link.json" in written
        for name in written:
            assert (tmp_path / "tree" / name).read_bytes() == (tree / name).read_bytes()
        assert (tmp_path / "tree/config.json").stat().st_mode & 0o777 == 0o640


def test_what_only_looks_like_weights(tmp_path: Path, runtime: Path) -> None:
    (tmp_path / "x.safetensors").write_text("a note")
    daxfs.pack(tmp_path / "x.safetensors", tmp_path / "x.daxfs")
    with daxfs.open(tmp_path / "x.daxfs") as image:
        assert Path(image.path("x.safetensors")).read_text() == "a note"


def test_names_of_weights() -> None:
    assert all(_files.is_weights(name) for name in ("a.safetensors", "b/pytorch_model.bin", "X.GGUF", "m.onnx_data"))
    assert not any(_files.is_weights(name) for name in ("tokenizer.model", "vocab.txt", "config.json", "x.bin.json"))
