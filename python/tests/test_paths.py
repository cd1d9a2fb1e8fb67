"""Paths that are put together, patterns, what mappings are asked for, and notebooks."""

from __future__ import annotations

import fnmatch
from pathlib import Path, PurePosixPath

import pytest

import daxfs


def test_slashes(image: daxfs.Image) -> None:
    notes = image / "sub" / "deep" / "notes.txt"
    assert isinstance(notes, daxfs.File)
    assert notes.read_text() == "grüße\n"
    assert (image / "sub/deep/notes.txt").path == (image / PurePosixPath("sub") / b"deep/notes.txt").path == notes.path
    assert isinstance(image / "sub", daxfs.Directory)
    assert (image / "into" / "notes.txt").read_text() == "grüße\n"
    assert (image / "sub" / ".." / "config.json").path == "config.json"
    for missing in ("nothing", "sub/nothing", "config.json/x"):
        with pytest.raises(daxfs.NotFoundError, match=r"nothing|config"):
            image / missing
    with pytest.raises(daxfs.NotFoundError, match="nothing"):
        image / "sub" / "nothing"
    with pytest.raises(TypeError):
        image / 3  # type: ignore[operator]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.json", ["config.json", "hard.json", "link.json"]),
        ("*.safetensors", ["model.safetensors"]),
        ("**/*.safetensors", ["model.safetensors"]),
        ("**/notes.*", ["sub/deep/notes.txt"]),
        ("sub/*", ["sub/large.bin", "sub/up"]),
        ("sub/**", ["sub/deep/notes.txt", "sub/large.bin", "sub/up"]),
        ("sub/**/*.txt", ["sub/deep/notes.txt"]),
        ("**/deep/**/*.txt", ["sub/deep/notes.txt"]),
        ("*/*/notes.txt", ["sub/deep/notes.txt"]),
        ("[cl]*.json", ["config.json", "link.json"]),
        ("[!cl]*.json", ["hard.json"]),
        ("conf?g.json", ["config.json"]),
        ("./config.json", ["config.json"]),
        ("nothing*", []),
        ("*notes.txt", []),
    ],
)
def test_patterns(image: daxfs.Image, pattern: str, wanted: list[str]) -> None:
    assert sorted(file.name for file in image.glob(pattern)) == sorted(image[path].name for path in wanted)
    assert len(image.glob(pattern)) == len(wanted)


def test_patterns_below_a_directory(image: daxfs.Image) -> None:
    sub = image.directory("sub")
    assert [file.path for file in sub.glob("**/*.txt")] == ["sub/deep/notes.txt"]
    assert [file.path for file in sub.glob("*.bin")] == ["sub/large.bin"]
    assert sub.glob("*.json") == []
    every = [file.path for file in image.glob("**")]
    assert len(every) == len(image)
    assert "caf\udce9.txt" in every
    for wrong in ("", "/", ".", "../x", "a/../b"):
        with pytest.raises(ValueError, match="pattern"):
            image.glob(wrong)


def test_a_long_pattern_takes_no_long_time(tmp_path: Path) -> None:
    (tmp_path / "/".join(["a"] * 30)).mkdir(parents=True)
    (tmp_path / "/".join(["a"] * 30) / "b").touch()
    image = daxfs.pack(tmp_path)
    assert image.glob("**/a/" * 20 + "c") == []
    assert len(image.glob("**/a/" * 20 + "b")) == 1
    assert fnmatch.fnmatchcase("b", "b")


def test_what_is_no_name_is_not_in_it(image: daxfs.Image) -> None:
    tensors = image.tensors()
    for key in (None, 3, 3.5, (), b"all.F32", object(), "\udce9", float("nan")):
        assert key not in tensors
    for key in (None, 3, (), object()):
        assert key not in image
        assert key not in image.directory()
    assert b"config.json" in image
    with pytest.raises(TypeError):
        tensors[3]  # type: ignore[index]


def test_unions(image: daxfs.Image) -> None:
    tensors = image.tensors()
    both = tensors | {"new": 1, "all.U8": 2}
    assert type(both) is dict
    assert (both["new"], both["all.U8"], len(both)) == (1, 2, len(tensors) + 1)
    other = {"new": 1, "all.U8": 2} | tensors
    assert isinstance(other["all.U8"], daxfs.Tensor)
    assert list(tensors | {}) == list(dict(tensors)) == list({**tensors}) == list(tensors)
    assert list(tensors | tensors) == list(tensors)
    for wrong in ([], 3, None):
        with pytest.raises(TypeError, match="unsupported"):
            tensors | wrong  # type: ignore[operator]


def test_notebooks(image: daxfs.Image, tmp_path: Path) -> None:
    tensors = image.tensors()
    table = tensors._repr_html_()  # type: ignore[attr-defined]
    assert "<td>all.BF16</td><td>BF16</td><td>(3, 8)</td><td>48</td>" in table
    assert table.count("<tr>") == len(tensors) + 1
    assert image["model.safetensors"]._repr_html_().count("<tr>") == len(tensors) + 1  # type: ignore[attr-defined]
    assert image["config.json"]._repr_html_() is None  # type: ignore[attr-defined]
    files = image._repr_html_()  # type: ignore[attr-defined]
    assert "<td>sub/deep/notes.txt</td><td>8</td>" in files
    assert "<td>deep/</td><td></td>" in image.directory("sub")._repr_html_()  # type: ignore[attr-defined]
    assert image._ipython_key_completions_() == list(image)  # type: ignore[attr-defined]
    assert tensors._ipython_key_completions_() == list(tensors)  # type: ignore[attr-defined]
    weights = image["model.safetensors"]
    assert weights._ipython_key_completions_() == list(tensors)  # type: ignore[attr-defined]
    assert image["config.json"]._ipython_key_completions_() == []  # type: ignore[attr-defined]
    assert image.directory("sub")._ipython_key_completions_() == list(image.directory("sub"))  # type: ignore[attr-defined]
    image.close()
    assert image._repr_html_() is None  # type: ignore[attr-defined]

    (tmp_path / "<script>alert(1)</script>".replace("/", "|")).touch()
    for i in range(300):
        (tmp_path / f"{i:03}").touch()
    table = daxfs.pack(tmp_path)._repr_html_()  # type: ignore[attr-defined]
    assert "<script>" not in table
    assert "101 more" in table
    assert table.count("<tr>") == 201
