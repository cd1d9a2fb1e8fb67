"""An image as a mapping from paths to files, and its directories."""

from __future__ import annotations

import os
import stat
from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from pathlib import Path, PurePosixPath

import pytest

import daxfs

FILES = [
    "caf\udce9.txt",
    "config.json",
    "empty",
    "hard.json",
    "link.json",
    "model.safetensors",
    "sub/deep/notes.txt",
    "sub/large.bin",
    "sub/up",
]


def test_mapping(image: daxfs.Image) -> None:
    assert isinstance(image, Mapping)
    assert sorted(image) == FILES
    assert len(image) == len(FILES)
    assert isinstance(image.keys(), KeysView)
    assert isinstance(image.values(), ValuesView)
    assert isinstance(image.items(), ItemsView)
    assert image.keys() & {"config.json", "nothing"} == {"config.json"}
    assert {path: file.size for path, file in image.items()} == {
        path: file.size for path, file in zip(image, image.values())
    }
    assert dict(image).keys() == image.keys()


@pytest.mark.parametrize(
    "where",
    [
        "sub/deep/notes.txt",
        "/sub/deep/notes.txt",
        "sub//deep/./notes.txt",
        b"sub/deep/notes.txt",
        PurePosixPath("sub/deep/notes.txt"),
        "into/notes.txt",
    ],
)
def test_paths(image: daxfs.Image, where: str | bytes | PurePosixPath) -> None:
    assert where in image
    assert image[where].read_bytes() == "grüße\n".encode()
    assert image[where].path == "sub/deep/notes.txt"
    assert image[where].name == "notes.txt"


@pytest.mark.parametrize("where", ["nothing", "sub/nothing", "config.json/x", "dangling", "../config.json.x"])
def test_missing(image: daxfs.Image, where: str) -> None:
    assert where not in image
    assert image.get(where) is None
    assert image.get(where, 5) == 5
    with pytest.raises(daxfs.NotFoundError, match=where.rsplit("/", 1)[-1]):
        image[where]
    with pytest.raises(KeyError):
        image[where]


def test_directories_are_no_files(image: daxfs.Image) -> None:
    for path in ("sub", "void", "into", "", "/"):
        assert path not in image
        with pytest.raises(daxfs.NotFoundError, match="is a directory"):
            image[path]
    with pytest.raises(daxfs.NotFoundError, match="not a directory"):
        image.directory("config.json")
    with pytest.raises(daxfs.NotFoundError):
        image.directory("nothing")


@pytest.mark.parametrize("where", [5, None, 1.0, ["config.json"]])
def test_wrong_types(image: daxfs.Image, where: object) -> None:
    with pytest.raises(TypeError, match="os.PathLike"):
        image[where]  # type: ignore[index]


def test_names_that_are_not_utf8(image: daxfs.Image) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    assert name in list(image)
    assert image[name].read_bytes() == b"latin"
    assert image[b"caf\xe9.txt"].read_bytes() == b"latin"
    assert image[name].name == name
    assert repr(image[name]) == "<daxfs.File 'caf\\udce9.txt': 5 bytes>"


def test_the_packers_index_is_not_part_of_the_tree(image: daxfs.Image) -> None:
    assert not [path for path in image if ".daxfs" in path]
    assert ".daxfs" not in image.directory()
    assert not [top for top, *_ in image.walk() if ".daxfs" in top]
    assert image[".daxfs/index"].size > 0


def test_hard_links(image: daxfs.Image) -> None:
    assert image["config.json"].ino == image["hard.json"].ino != image["empty"].ino
    assert image["config.json"].extent == image["hard.json"].extent


def test_directory(image: daxfs.Image) -> None:
    root = image.directory()
    assert isinstance(root, Mapping)
    assert (root.name, root.path) == ("", "")
    assert set(root) == {
        "caf\udce9.txt",
        "config.json",
        "empty",
        "hard.json",
        "into",
        "link.json",
        "model.safetensors",
        "sub",
        "void",
    }
    assert len(root) == 9
    assert root.keys() == set(root)
    sub = root["sub"]
    assert isinstance(sub, daxfs.Directory)
    assert (sub.name, sub.path) == ("sub", "sub")
    assert sorted(sub) == ["deep", "large.bin", "up"]
    file = sub["up"]
    assert isinstance(file, daxfs.File)
    assert file.path == "config.json"
    into = root["into"]
    assert isinstance(into, daxfs.Directory)
    assert into.path == "sub/deep"
    assert dict(root["void"]) == {}  # type: ignore[call-overload]
    assert repr(sub) == "<daxfs.Directory '/sub': 3 entries>"


def test_directory_missing(image: daxfs.Image) -> None:
    root = image.directory("/")
    for name in ("nothing", "dangling", "sub/deep", ".daxfs", "..", ""):
        assert name not in root
        assert root.get(name) is None
        assert root.get(name, 1) == 1
        with pytest.raises(daxfs.NotFoundError):
            root[name]


def test_directories_outlive_the_image(path: Path) -> None:
    image = daxfs.open(path)
    root = image.directory()
    image.close()
    del image
    assert "config.json" in root


def test_walk_is_that_of_os(image: daxfs.Image, tree: Path) -> None:
    expected = {}
    for top, directories, others in os.walk(tree):
        # os.walk takes links to directories for directories; an image names them as what they are.
        links = {name for name in directories if (Path(top) / name).is_symlink()}
        here = os.path.relpath(top, tree)
        expected["" if here == "." else here] = (set(directories) - links, set(others) | links)
    walked = {top: (set(directories), set(others)) for top, directories, others in image.walk()}
    assert walked == expected
    tops = [top for top, *_ in image.walk()]
    assert tops == sorted(tops)
    assert [top for top, *_ in image.walk("sub")] == ["sub", "sub/deep"]


def test_stat_is_that_of_os(image: daxfs.Image, tree: Path) -> None:
    for name in ("config.json", "empty", "sub/deep/notes.txt", "link.json", "dangling", "void"):
        theirs = (tree / name).lstat()
        ours = image.stat(name, follow_symlinks=False)
        assert isinstance(ours, os.stat_result)
        assert (ours.st_mode, ours.st_uid, ours.st_gid) == (theirs.st_mode, theirs.st_uid, theirs.st_gid)
        if not stat.S_ISDIR(ours.st_mode):
            assert (ours.st_size, ours.st_nlink) == (theirs.st_size, theirs.st_nlink)
    assert image.stat("link.json") == image.stat("config.json")
    assert image["config.json"].mode == image.stat("config.json").st_mode
    assert stat.S_ISDIR(image.stat("").st_mode)
    with pytest.raises(daxfs.NotFoundError):
        image.stat("dangling")


def test_readlink(image: daxfs.Image) -> None:
    assert image.readlink("sub/up") == "../config.json"
    assert image.readlink(b"dangling") == "nowhere"
    with pytest.raises(daxfs.NotFoundError, match="symbolic link"):
        image.readlink("config.json")
