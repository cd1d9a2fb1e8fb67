"""Files of an image as streams, and the libraries that take them."""

from __future__ import annotations

import array
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LARGE

import daxfs

CONTENTS = bytes(range(256)) * (LARGE // 256)


@pytest.fixture
def large(image: daxfs.Image) -> daxfs.File:
    return image["sub/large.bin"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in formats that libraries read from streams."""
    root = tmp_path_factory.mktemp("formats")
    np.save(root / "a.npy", np.arange(100_000, dtype=np.float32).reshape(100, 1000))
    np.savez(root / "a.npz", x=np.arange(5), y=np.ones((3, 3)))
    (root / "a.pkl").write_bytes(pickle.dumps({"a": [1, 2, 3], "b": b"x" * 100_000}))
    (root / "a.csv").write_text("name,value\nx,1\ny,2\n")
    with zipfile.ZipFile(root / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside.txt", "grüße" * 1000)
    with tarfile.open(root / "a.tar.gz", "w:gz") as tar:
        tar.add(root / "a.csv", "b.csv")
    (root / "lines.txt").write_bytes("eins\r\nzwei\ndrei: grüße".encode())
    return root


@pytest.fixture
def formats(folder: Path) -> daxfs.Image:
    return daxfs.pack(folder)


def test_reading_and_seeking(large: daxfs.File) -> None:
    # Beside a real file, step by step.
    ours, theirs = large.open(), io.BufferedReader(io.BytesIO(CONTENTS))  # type: ignore[arg-type]
    assert isinstance(ours, io.BufferedReader)
    assert (ours.readable(), ours.seekable(), ours.writable(), ours.isatty()) == (True, True, False, False)
    assert (ours.mode, ours.name) == ("rb", "sub/large.bin")
    steps: list[Any] = [
        lambda f: f.read(10),
        lambda f: f.tell(),
        lambda f: f.read(3),
        lambda f: f.seek(-5, 2),
        lambda f: f.read(10),
        lambda f: f.read(1),
        lambda f: f.seek(LARGE + 100),
        lambda f: f.read(5),
        lambda f: f.seek(1_000_000),
        lambda f: f.read(200_000),
        lambda f: f.seek(-7, 1),
        lambda f: f.peek(1)[:1],
        lambda f: f.read1(3),
        lambda f: f.readline(),
        lambda f: f.tell(),
        lambda f: f.read(),
        lambda f: f.read(-1),
        lambda f: f.read(0),
    ]
    for number, step in enumerate(steps):
        assert step(ours) == step(theirs), number
    for wrong in (lambda: ours.seek(-1), lambda: ours.seek(0, 7)):
        with pytest.raises(ValueError, match=r"negative|whence|invalid"):
            wrong()
    buffer = bytearray(100)
    ours.seek(LARGE - 40)
    assert ours.readinto(buffer) == 40
    assert buffer == CONTENTS[-40:] + bytes(60)


def test_raw_streams(large: daxfs.File) -> None:
    raw = large.open(buffering=0)
    assert isinstance(raw, io.RawIOBase)
    words = array.array("I", [0] * 4)
    assert raw.readinto(words) == 16
    assert words.tobytes() == CONTENTS[:16]
    assert raw.read(5) == CONTENTS[16:21]
    assert raw.seek(10, io.SEEK_END) == LARGE + 10
    assert (raw.read(3), raw.readall(), raw.tell()) == (b"", b"", LARGE + 10)
    raw.seek(-3, io.SEEK_END)
    assert (raw.readall(), raw.tell()) == (CONTENTS[-3:], LARGE)
    with pytest.raises(ValueError, match="negative"):
        raw.seek(-1)
    with pytest.raises(ValueError, match="whence"):
        raw.seek(0, 9)
    with pytest.raises(io.UnsupportedOperation):
        raw.fileno()
    with pytest.raises(io.UnsupportedOperation):
        raw.write(b"x")
    raw.close()
    for use in (raw.tell, raw.readall, raw.seekable, raw.readable, lambda: raw.read(1), lambda: raw.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_streams_are_apart_and_keep_the_memory(path: Path) -> None:
    with daxfs.open(path) as image:
        one, two = image["sub/large.bin"].open(), image["sub/large.bin"].open()
    one.seek(5)
    assert (two.read(2), one.read(2)) == (CONTENTS[:2], CONTENTS[5:7])
    with one:
        pass
    assert one.closed
    assert two.read(2) == CONTENTS[2:4]


def test_text(formats: daxfs.Image, folder: Path) -> None:
    lines = formats["lines.txt"]
    assert lines.read_text() == (folder / "lines.txt").read_text(encoding="utf-8")
    assert lines.open("r").readlines() == ["eins\n", "zwei\n", "drei: grüße"]
    assert lines.open("rt", newline="").readline() == "eins\r\n"
    assert lines.open("r", encoding="latin-1").read().endswith("Ã¼Ã\x9fe")
    assert lines.read_text("ascii", "replace").count("�") == 4
    with pytest.raises(UnicodeDecodeError):
        lines.read_text("ascii")
    for mode in ("w", "a", "r+", "rb+", "x", "", "U"):
        with pytest.raises(ValueError, match="read-only"):
            lines.open(mode)
    with pytest.raises(ValueError, match="text"):
        lines.open("rb", encoding="utf-8")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="buffered"):
        lines.open("r", buffering=0)


def test_json(image: daxfs.Image) -> None:
    config = image["config.json"]
    wanted = {"hidden_size": 8}
    assert json.load(config.open()) == json.load(config.open("r")) == json.loads(config.read_text()) == wanted
    assert json.loads(config[:]) == json.loads(config.read_bytes()) == wanted


def test_a_file_is_not_taken_for_its_stream(large: daxfs.File) -> None:
    # Whoever calls read(n) of something that is no stream would get wrong bytes in silence.
    for name in ("read", "readinto", "seek", "tell", "readline"):
        assert not hasattr(large, name)
        with pytest.raises(AttributeError, match=rf"no attribute '{name}': file\.open\(\) is a stream"):
            getattr(large, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'$"):
        large.nonsense  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(TypeError):
        np.load(large)  # type: ignore[arg-type]


def test_numpy_load(formats: daxfs.Image) -> None:
    wanted = np.arange(100_000, dtype=np.float32).reshape(100, 1000)
    assert (np.load(formats["a.npy"].open()) == wanted).all()
    assert (np.load(formats["a.npy"].open(buffering=0)) == wanted).all()
    arrays = np.load(formats["a.npz"].open())
    assert arrays["x"].tolist() == [0, 1, 2, 3, 4]
    assert arrays["y"].shape == (3, 3)
    mapped = np.load(io.BytesIO(formats["a.npy"]))
    assert (mapped == wanted).all()


def test_pickles_zips_and_tars(formats: daxfs.Image) -> None:
    assert pickle.load(formats["a.pkl"].open()) == {"a": [1, 2, 3], "b": b"x" * 100_000}  # noqa: S301
    with zipfile.ZipFile(formats["a.zip"].open()) as archive:
        assert archive.read("inside.txt").decode() == "grüße" * 1000
        assert archive.testzip() is None
    with tarfile.open(fileobj=formats["a.tar.gz"].open()) as tar:
        inside = tar.extractfile("b.csv")
        assert inside is not None
        assert inside.read() == b"name,value\nx,1\ny,2\n"


def test_torch_load(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.arange(1000)}, tmp_path / "new.pt")
    torch.save({"w": torch.arange(1000)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    image = daxfs.pack(tmp_path)
    for name in ("new.pt", "old.pt"):
        assert torch.load(image[name].open())["w"].tolist() == list(range(1000))


def test_pandas(formats: daxfs.Image) -> None:
    pandas = pytest.importorskip("pandas")
    assert pandas.read_csv(formats["a.csv"].open()).value.tolist() == [1, 2]
    assert pandas.read_csv(formats["a.csv"].open("r")).name.tolist() == ["x", "y"]


def test_pillow(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    pil.new("RGB", (3, 2), (1, 2, 3)).save(tmp_path / "a.png")
    with daxfs.pack(tmp_path) as image, pil.open(image["a.png"].open()) as picture:
        assert (picture.size, picture.getpixel((0, 0))) == ((3, 2), (1, 2, 3))


def test_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("w", np.arange(64, dtype=np.float32).reshape(8, 8))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with daxfs.pack(tmp_path) as image:
        stream = image["a.gguf"].open(descriptor=True)
        (tensor,) = gguf.GGUFReader(stream).tensors
        assert tensor.name == "w"
        assert tensor.data.reshape(-1).tolist() == list(range(64))
        stream.close()


def test_a_descriptor_of_a_copy(large: daxfs.File) -> None:
    import mmap
    import os

    with large.open(descriptor=True) as stream:
        assert isinstance(stream, io.BufferedReader)
        fd = stream.fileno()
        assert (os.fstat(fd).st_size, os.pread(fd, 5, 100)) == (LARGE, CONTENTS[100:105])
        with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as mapped:
            assert mapped[:] == CONTENTS
        with pytest.raises(OSError, match="not permitted"):
            os.pwrite(fd, b"x", 0)
        assert stream.read() == CONTENTS
    with large.open("r", descriptor=True, encoding="latin-1") as text:
        assert text.read(3) == "\0\1\2"


def open_copies() -> int:
    """Descriptors of copies that this process has."""
    import os

    def target(fd: str) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            return ""

    return sum(target(fd).startswith("/memfd:daxfs:large.bin") for fd in os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "rb", "encoding": "utf-8"},
        {"mode": "rb", "newline": ""},
        {"mode": "r", "buffering": 0},
        {"mode": "r", "newline": "x"},
        {"mode": "r", "encoding": "no such encoding"},
        {"mode": "rb", "buffering": 1 << 62},
    ],
)
def test_a_refused_copy_leaves_no_descriptor(large: daxfs.File, arguments: dict[str, Any]) -> None:
    before = open_copies()
    with pytest.raises((ValueError, LookupError, MemoryError)):
        large.open(descriptor=True, **arguments)
    assert open_copies() == before
    with large.open(descriptor=True):
        assert open_copies() == before + 1


def test_text_of_a_copy_is_utf_8_in_any_locale(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    (tmp_path / "a.txt").write_bytes("grüße\n".encode())
    code = (
        "import daxfs, sys; file = daxfs.pack(sys.argv[1])['a.txt']\n"
        "for stream in (file.open('r'), file.open('r', descriptor=True)):\n"
        "    print(ascii(stream.read()), stream.encoding, stream.mode)"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout == "'gr\\xfc\\xdfe\\n' utf-8 r\n" * 2


@pytest.mark.parametrize("name", ["ü" * 127, "x" + "ü" * 127, "n" * 255, "日" * 85])
def test_a_copy_of_a_file_with_a_long_name(tmp_path: Path, name: str) -> None:
    import os

    (tmp_path / name).write_bytes(b"contents")
    with daxfs.pack(tmp_path)[name].open(descriptor=True) as stream:
        assert stream.read() == b"contents"
        shown = os.readlink(f"/proc/self/fd/{stream.fileno()}")
    assert shown.startswith(f"/memfd:daxfs:{name[:50]}")


def test_of_an_empty_file(image: daxfs.Image) -> None:
    empty = image["empty"]
    with empty.open() as stream, empty.open(descriptor=True) as of_a_copy:
        assert stream.read() == of_a_copy.read() == b""
    assert (empty.read_text(), empty.open("r").readlines()) == ("", [])


def test_reading_into_the_image_itself(path: Path) -> None:
    # Private memory is writable, so it can be the target, too.
    with daxfs.open(path, private=True) as image:
        file = image["sub/large.bin"]
        assert file.readinto_at(256 * 10, memoryview(file)[:512]) == 512
        assert file.readinto_at(5, memoryview(file)[1000:3000]) == 2000
        assert file[:512] == CONTENTS[:512]
        assert file[1000:1100] == CONTENTS[5:105]
