"""Images as file systems of fsspec, and libraries that read small files of an image."""

from __future__ import annotations

import base64
import importlib
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import daxfs

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies beside weights, in a folder."""
    top = tmp_path_factory.mktemp("files") / "data"
    (top / "sub/deep").mkdir(parents=True)
    (top / "labels.csv").write_text("id,name\n1,one\n2,two\n")
    (top / "sub/config.json").write_text('{"a": 1}')
    (top / "sub/deep/x.txt").write_text("grüße\n")
    (top / "link.csv").symlink_to("labels.csv")
    return top


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    daxfs.pack(folder, folder.with_name("data.daxfs"))
    return folder.with_name("data.daxfs")


@pytest.fixture
def url(packed: Path) -> str:
    return f"daxfs://{packed}!/"


def test_the_entry_point_is_found(url: str) -> None:
    fs, path = fsspec.core.url_to_fs(f"{url}sub/config.json")
    assert type(fs).__module__ == "daxfs._fsspec"
    assert path == f"{url}sub/config.json".removeprefix("daxfs://")
    assert fs.unstrip_protocol(path) == f"{url}sub/config.json"


def test_reading(url: str, packed: Path) -> None:
    for name in (
        f"{url}sub/deep/x.txt",
        f"daxfs://sub/deep/x.txt::{packed}",
        f"daxfs://sub/deep/x.txt::file://{packed}",
    ):
        with fsspec.open(name) as file:
            assert file.read() == "grüße\n".encode()
        with fsspec.open(name, "rt", encoding="utf-8") as file:
            assert file.read() == "grüße\n"
    fs, path = fsspec.core.url_to_fs(f"{url}labels.csv")
    assert fs.cat(path) == b"id,name\n1,one\n2,two\n"
    assert fs.cat_file(path, 3, 7) == b"name"
    assert fs.cat_file(path, -4) == b"two\n"
    assert fs.head(path, 2) == b"id"
    assert fs.read_text(path).startswith("id")
    assert json.loads(fs.cat(f"{url}sub/config.json")) == {"a": 1}


def test_listing(url: str, folder: Path) -> None:
    fs, top = fsspec.core.url_to_fs(url)
    base = top.removeprefix("daxfs://")
    assert sorted(fs.ls(top, detail=False)) == [f"{base}{name}" for name in ("labels.csv", "link.csv", "sub")]
    assert fs.ls(f"{top}sub", detail=False) == [f"{base}sub/config.json", f"{base}sub/deep"]
    assert {entry["name"]: entry["type"] for entry in fs.ls(f"{top}sub")} == {
        f"{base}sub/config.json": "file",
        f"{base}sub/deep": "directory",
    }
    expected = [f"{base}{path.relative_to(folder)}" for path in sorted(folder.rglob("*")) if path.is_file()]
    assert sorted(fs.find(top)) == expected
    assert fs.glob(f"{top}sub/**/*.txt") == [f"{base}sub/deep/x.txt"]
    assert [len(files) for _, _, files in fs.walk(top)] == [2, 1, 1]
    assert (fs.isfile(f"{top}labels.csv"), fs.isdir(f"{top}sub"), fs.exists(f"{top}nothing")) == (True, True, False)
    assert fs.size(f"{top}link.csv") == 20
    assert fs.du(top) == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert fs.ukey(f"{top}labels.csv") == fs.ukey(f"{top}link.csv")


def test_copying_out(url: str, folder: Path, tmp_path: Path) -> None:
    fs, top = fsspec.core.url_to_fs(url)
    fs.get(f"{top}sub", str(tmp_path / "out"), recursive=True)
    assert (tmp_path / "out/deep/x.txt").read_bytes() == (folder / "sub/deep/x.txt").read_bytes()


def test_what_is_refused(url: str) -> None:
    fs, top = fsspec.core.url_to_fs(url)
    with pytest.raises(FileNotFoundError):
        fs.open(f"{top}nothing")
    with pytest.raises(IsADirectoryError):
        fs.open(f"{top}sub")
    with pytest.raises(ValueError, match="read-only"):
        fs.open(f"{top}labels.csv", "wb")
    with pytest.raises(NotImplementedError, match="images keep no times"):
        fs.modified(f"{top}labels.csv")
    with pytest.raises(ValueError, match="the image lies on memory"):
        fsspec.open("daxfs://x::memory://image").open()


def test_file_systems_are_pickled(url: str) -> None:
    fs, top = fsspec.core.url_to_fs(url)
    fs.ls(top)
    again = pickle.loads(pickle.dumps(fs))  # noqa: S301
    assert again.cat(f"{top}sub/config.json") == b'{"a": 1}'
    opened = fsspec.open(f"{url}labels.csv")
    with pickle.loads(pickle.dumps(opened)) as file:  # noqa: S301
        assert file.readline() == b"id,name\n"


def test_an_image_that_was_replaced_is_opened_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_text("old")
    daxfs.pack(tmp_path / "a", tmp_path / "a.daxfs")
    fs, path = fsspec.core.url_to_fs(f"daxfs://{tmp_path}/a.daxfs!/x")
    assert fs.cat(path) == b"old"
    (tmp_path / "a/x").write_text("new")
    daxfs.pack(tmp_path / "a", tmp_path / "a.daxfs")
    assert fs.cat(path) == b"new"


def test_pandas(url: str) -> None:
    pandas = pytest.importorskip("pandas")
    assert pandas.read_csv(f"{url}labels.csv").name.tolist() == ["one", "two"]
    assert pandas.read_json(f"{url}sub/config.json", typ="series").tolist() == [1]


def test_pyarrow(folder: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    for module in ("dataset", "parquet"):
        importlib.import_module(f"pyarrow.{module}")

    (tmp_path / "t").mkdir()
    table = pyarrow.table({"id": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "t/part.parquet")
    daxfs.pack(tmp_path / "t", tmp_path / "t.daxfs")
    fs, path = fsspec.core.url_to_fs(f"daxfs://{tmp_path}/t.daxfs!/part.parquet")
    assert pyarrow.parquet.read_table(path, filesystem=fs).equals(table)
    assert pyarrow.dataset.dataset(path, filesystem=fs).to_table().equals(table)
    with daxfs.open(tmp_path / "t.daxfs") as image:
        # Without a copy.
        assert pyarrow.parquet.read_table(pyarrow.BufferReader(image["part.parquet"])).equals(table)
        assert pyarrow.parquet.read_table(image.path("part.parquet")).equals(table)


def test_tokenizers(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"hello": 0, "world": 1}, unk_token="hello"))  # noqa: S106
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    daxfs.pack(tmp_path / "tokenizer.json", tmp_path / "t.daxfs")
    with daxfs.open(tmp_path / "t.daxfs") as image:
        file = image["tokenizer.json"]
        for found in (
            tokenizers.Tokenizer.from_file(image.path("tokenizer.json")),
            tokenizers.Tokenizer.from_buffer(file.read_bytes()),
            tokenizers.Tokenizer.from_str(file.read_text()),
        ):
            assert found.encode("hello world").ids == [0, 1]


def test_sentencepiece(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world", "the world is here", "hello here"]),
        model_writer=model,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=5,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    daxfs.pack(tmp_path / "tokenizer.model", tmp_path / "t.daxfs")
    with daxfs.open(tmp_path / "t.daxfs") as image:
        by_path = sentencepiece.SentencePieceProcessor(model_file=image.path("tokenizer.model"))
        by_bytes = sentencepiece.SentencePieceProcessor(model_proto=image["tokenizer.model"].read_bytes())
    assert by_path.decode(by_path.encode("hello world")) == "hello world"
    assert by_bytes.encode("hello world") == by_path.encode("hello world")


def test_tiktoken(tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    importlib.import_module("tiktoken.load")

    ranks = {bytes([byte]): byte for byte in range(256)} | {b"he": 256}
    lines = (f"{base64.b64encode(word).decode()} {rank}\n" for word, rank in ranks.items())
    (tmp_path / "t.tiktoken").write_text("".join(lines))
    daxfs.pack(tmp_path / "t.tiktoken", tmp_path / "t.daxfs")
    with daxfs.open(tmp_path / "t.daxfs") as image:
        found = tiktoken.load.load_tiktoken_bpe(image.path("t.tiktoken"))
    assert found == ranks
    encoding = tiktoken.Encoding("ours", pat_str=r"\w+|.", mergeable_ranks=found, special_tokens={})
    assert encoding.encode("he!") == [256, 33]


@pytest.fixture
def held(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    holder: Any = subprocess.Popen([scripts / "daxfs", "serve", f"held={folder}"], stderr=subprocess.DEVNULL)
    try:
        subprocess.run([scripts / "daxfs", "health", "--wait", "60"], check=True, stdout=subprocess.DEVNULL)
        yield "daxfs://held!/"
    finally:
        subprocess.run([scripts / "daxfs", "stop"], check=True, stdout=subprocess.DEVNULL)
        holder.wait(60)


def test_images_of_a_holder(held: str) -> None:
    pandas = pytest.importorskip("pandas")
    assert pandas.read_csv(f"{held}labels.csv").id.tolist() == [1, 2]
    fs, top = fsspec.core.url_to_fs(held)
    assert fs.ls(top, detail=False) == ["held!/labels.csv", "held!/link.csv", "held!/sub"]


def test_an_image_outlives_its_holder(folder: Path) -> None:
    with daxfs.serve(m=folder) as holder:
        fs = fsspec.filesystem("daxfs", fo=holder.address("m"))
        assert fs.cat("labels.csv") == (folder / "labels.csv").read_bytes()
    assert fs.cat("labels.csv") == (folder / "labels.csv").read_bytes()
