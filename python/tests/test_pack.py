"""daxfs.pack: into files, into memory, its options and its refusals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import daxfs

from support import BITS, Spec, is_writing_into, write_safetensors


def contents(image: daxfs.Image) -> dict[str, bytes]:
    return {path: file.read_bytes() for path, file in image.items()}


def test_into_memory(tree: Path, path: Path) -> None:
    with daxfs.pack(tree, hash=True) as image, daxfs.open(path) as file:
        assert (image.kind, image.provenance) == ("memfd", "sealed")
        assert contents(image) == contents(file)
        assert image.content_hash == file.content_hash
        assert os.pread(image.fileno(), 1 << 30, 0) == path.read_bytes()
        with pytest.raises(PermissionError):
            os.pwrite(image.fileno(), b"x", 0)


def test_into_a_file(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "tree.daxfs"
    summary = daxfs.pack(tree, path)
    assert (summary["target"], summary["format"], summary["block_size"]) == (str(path), 8, 4096)
    assert summary["image_bytes"] == path.stat().st_size
    assert (summary["files"], summary["symlinks"], summary["hard_links"]) == (6, 4, 1)
    assert summary["tensors"] == len(BITS) + 7
    with daxfs.open(path) as image:
        assert summary["content_hash"] == image.content_hash
    assert os.listdir(tmp_path) == ["tree.daxfs"]


def test_paths_of_all_kinds(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.daxfs"
    daxfs.pack(os.fsencode(tree), os.fsencode(path))
    one = path.read_bytes()
    daxfs.pack(str(tree), output=str(path))
    assert path.read_bytes() == one
    daxfs.pack([tree], path)
    assert path.read_bytes() == one


def test_several_sources(tree: Path) -> None:
    with daxfs.pack([tree / "config.json", str(tree / "sub")]) as image:
        assert sorted(image) == ["config.json", "sub/deep/notes.txt", "sub/large.bin", "sub/up"]
    with daxfs.pack(tree / "config.json") as image:
        assert list(image) == ["config.json"]
    with daxfs.pack(iter([tree / "config.json"])) as image:
        assert list(image) == ["config.json"]


def test_options(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "twin").mkdir()
    for name in ("a", "b"):
        (tmp_path / "twin" / name).write_bytes(b"same" * 5000)
    with daxfs.pack(tmp_path / "twin", dedupe=True) as image:
        assert image["a"].extent == image["b"].extent
    with daxfs.pack(tmp_path / "twin") as image:
        assert image["a"].extent != image["b"].extent
    with daxfs.pack(tree, plain=True) as image:
        assert image.content_hash is None
        assert ".daxfs/index" not in image
        assert not image.tensors().indexed
    with daxfs.pack(tree) as image:
        assert image.content_hash is None, "new memory is not hashed unless asked for"
        assert image.tensors().indexed
    daxfs.pack(tree, tmp_path / "bare.daxfs", hash=False)
    with daxfs.open(tmp_path / "bare.daxfs") as image:
        assert image.content_hash is None
        assert image.tensors().indexed
    with daxfs.pack(tree, format=5) as image:
        assert image.version == 5
    with daxfs.pack(tree, block_size=65536) as image:
        assert image.block_size == 65536
        assert [f.extent[0] % 65536 for f in image.values() if f.size and f.extent] == [0] * 8
    page = os.sysconf("SC_PAGE_SIZE")
    assert daxfs.pack(tree, tmp_path / "page.daxfs", block_size="page")["block_size"] == page
    with daxfs.pack(tree, align=4096, threads=1, huge_pages="no", sync=False, verify=True) as image:
        assert image["sub/large.bin"].extent is not None


def test_the_erofs_view(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "tree.daxfs"
    view = daxfs.pack(tree, path)
    assert view["erofs_bytes"] is not None
    assert view["no_erofs"] is None
    assert path.read_bytes()[1024:1028] == (0xE0F5E1E2).to_bytes(4, "little")
    names = sorted(daxfs.open(path))
    none = daxfs.pack(tree, path, erofs=False)
    assert (none["erofs_bytes"], none["no_erofs"]) == (None, None)
    assert path.read_bytes()[1024:1028] == bytes(4)
    assert none["content_hash"] == view["content_hash"]
    assert sorted(daxfs.open(path)) == names
    plain = daxfs.pack(tree, path, plain=True)
    assert plain["erofs_bytes"] is None
    assert plain["no_erofs"] is not None
    assert "--plain" in plain["no_erofs"]
    with pytest.raises(ValueError, match="--erofs.*--plain"):
        daxfs.pack(tree, path, plain=True, erofs=True)
    assert daxfs.pack(tree, path, mtimes=True)["content_hash"] == view["content_hash"]
    with pytest.raises(ValueError, match="--mtimes"):
        daxfs.pack(tree, path, erofs=False, mtimes=True)


@pytest.mark.parametrize(("align", "bound"), [(None, 256), (True, 256), (64, 64), (4096, 4096), (False, None)])
def test_align_tensors(tmp_path: Path, align: bool | int | None, bound: int | None) -> None:
    specs = {f"{i}": Spec.filled(dtype, (8, i + 1), i) for i, dtype in enumerate(BITS)}
    write_safetensors(tmp_path / "m.safetensors", specs)
    with daxfs.pack(tmp_path, align_tensors=align) as image:
        tensors = image.tensors()
        assert tensors.keys() == specs.keys()
        assert {name: tensor.raw.tobytes() for name, tensor in tensors.items()} == {
            name: spec.data for name, spec in specs.items()
        }
        lowest = min(tensor.alignment for tensor in tensors.values())
        assert lowest >= bound if bound else lowest < 64


def test_exact(tmp_path: Path) -> None:
    source = tmp_path / "m.safetensors"
    write_safetensors(source, {f"{i}": Spec.filled(dtype, (8, i + 1), i) for i, dtype in enumerate(BITS)}, pad=1)
    data = source.read_bytes()
    for options in ({"exact": True}, {"plain": True}, {"align_tensors": False}):
        with daxfs.pack(source, **options) as image:  # type: ignore[arg-type, call-overload, unused-ignore]
            assert image["m.safetensors"].read_bytes() == data
            assert not image["m.safetensors"].original().differs
    with daxfs.pack(source) as image:
        assert image["m.safetensors"].read_bytes() != data
        assert image["m.safetensors"].original().read_bytes() == data
    for options in ({"exact": True, "align_tensors": 256}, {"plain": True, "align_tensors": "page"}):
        (other, *_) = options
        with pytest.raises(ValueError, match=rf"--align-tensors.*--{other}"):
            daxfs.pack(source, **options)  # type: ignore[arg-type, call-overload, unused-ignore]
    summary = daxfs.pack(source, tmp_path / "aligned.daxfs")
    assert (summary["moved_files"], summary["cloned_bytes"]) == (1, 0)
    assert summary["moved_bytes"] > len(data)
    assert daxfs.pack(source, tmp_path / "exact.daxfs", exact=True)["moved_files"] == 0


def test_the_source_comes_back_exactly(tmp_path: Path) -> None:
    source = tmp_path / "m.safetensors"
    write_safetensors(source, {f"{i}": Spec.filled(dtype, (8, i + 1), i) for i, dtype in enumerate(BITS)})
    data = source.read_bytes()
    with daxfs.pack(source, align_tensors="page", hash=True) as image:
        file, original = image["m.safetensors"], image["m.safetensors"].original()
        assert min(tensor.alignment for tensor in image.tensors().values()) >= os.sysconf("SC_PAGE_SIZE")
        assert len(file) > len(data)
    assert (original.differs, original.size, len(original), original.path) == (True, len(data), len(data), file.path)
    assert original.alignment == os.sysconf("SC_PAGE_SIZE")
    assert original.read_bytes() == data
    assert original.read_at(5, 100) == data[5:105]
    assert original.read_at(len(data) - 3, 10) == data[-3:]
    assert original.read_at(len(data) + 1) == b""
    target = bytearray(len(data) + 7)
    assert original.readinto_at(1, target) == len(data) - 1
    assert target == data[1:] + bytes(8)
    with original.open() as stream:
        stream.seek(-9, os.SEEK_END)
        assert stream.read() == data[-9:]
    with original.open(descriptor=True) as stream:
        assert stream.read() == data
    out = tmp_path / "out"
    with out.open("wb") as stream:
        assert original.write_to(stream) == len(data)
    assert out.read_bytes() == data
    assert "aligned to" in repr(original)
    with daxfs.pack(source, exact=True) as image:
        same = image["m.safetensors"].original()
        assert (same.differs, same.alignment, same.hash()) == (False, None, original.hash())
        assert same.read_bytes() == data


def test_room_for_changes(tree: Path, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.daxfs"
    summary = daxfs.pack(tree, out, overlay=1 << 20)
    assert (summary["overlay_bytes"], summary["backing_bytes"]) == (1 << 20, None)
    with daxfs.open(out, strict=True) as image, daxfs.open(path) as file:
        assert contents(image) == contents(file)
    daxfs.pack(tree, out, overlay=(1 << 20, 64))
    # 64 buckets of 16 bytes take one block, the 1024 of before four.
    assert out.stat().st_size == summary["image_bytes"] - 3 * 4096
    summary = daxfs.pack(None, out, overlay=1 << 20, empty=True)
    assert (summary["files"], summary["directories"]) == (0, 1)
    with daxfs.open(out, strict=True) as image:
        assert len(image) == 0
    with pytest.raises(ValueError, match="power of two"):
        daxfs.pack(tree, out, overlay=(1 << 20, 3))
    with pytest.raises(ValueError, match="stays writable"):
        daxfs.pack(tree, overlay=1 << 20)
    with pytest.raises(ValueError, match="empty=True"):
        daxfs.pack(None, out)


def test_contents_in_a_backing_file(tree: Path, path: Path, tmp_path: Path) -> None:
    out, backing = tmp_path / "out.daxfs", tmp_path / "backing"
    summary = daxfs.pack(tree, out, split=backing, verify=True)
    assert summary["backing_bytes"] == backing.stat().st_size
    with daxfs.open(path) as file:
        with daxfs.open(out, backing=backing) as image:
            assert contents(image) == contents(file)
            assert sorted(image.tensors()) == sorted(file.tensors())
        with daxfs.pack(tree, split=backing, hash=True) as image:
            assert contents(image) == contents(file)
            assert image.content_hash == file.content_hash
            with pytest.raises(daxfs.DaxfsError, match="neither a dma-buf"):
                image.mount(tmp_path, backing=backing)


def test_special_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    with pytest.raises(daxfs.DaxfsError, match="pipe"):
        daxfs.pack(tmp_path)
    with daxfs.pack(tmp_path, skip_special=True) as image:
        assert list(image) == ["file"]


def test_refusals(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        daxfs.pack(tmp_path / "none")
    assert str(tmp_path / "none") in str(caught.value)
    with pytest.raises(FileNotFoundError):
        daxfs.pack(tree, tmp_path / "none" / "x.daxfs")
    with pytest.raises(ValueError, match="not both"):
        daxfs.pack(tree, tmp_path / "x", into="memfd")  # type: ignore[call-overload]
    for options in ({"format": 7}, {"block_size": 1000}, {"align": 3}, {"huge_pages": "3M"}, {"align_tensors": "x"}):
        with pytest.raises(ValueError, match=r"format|block|align|huge_pages"):
            daxfs.pack(tree, **options)
    with pytest.raises(ValueError, match='^block_size is 4096, 16384, 65536 or "page", not "4096"$'):
        daxfs.pack(tree, block_size="4096")  # type: ignore[call-overload]
    for source in (5, [5], [None]):
        with pytest.raises(TypeError):
            daxfs.pack(source)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="input"):
        daxfs.pack([])
    with pytest.raises(TypeError):
        daxfs.pack(tree, None, "memfd")  # type: ignore[call-overload]
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(Path("/dev/udmabuf").exists(), reason="this machine has udmabuf")
def test_a_device_that_is_not_there(tree: Path) -> None:
    with pytest.raises(daxfs.SourceError, match="udmabuf"):
        daxfs.pack(tree, into="udmabuf")
    with pytest.raises(daxfs.SourceError, match="heap"):
        daxfs.pack(tree, into="heap:nothing")


@pytest.mark.skipif(not os.access("/dev/udmabuf", os.R_OK | os.W_OK), reason="needs /dev/udmabuf")
def test_udmabuf(tree: Path) -> None:
    with daxfs.pack(tree, into="udmabuf") as image, daxfs.pack(tree) as memfd:
        assert (image.kind, image.exporter) == ("dma-buf", "udmabuf")
        assert contents(image) == contents(memfd)


@pytest.mark.skipif(not os.access("/dev/dma_heap/system", os.R_OK), reason="needs /dev/dma_heap/system")
def test_dma_heap(tree: Path) -> None:
    with daxfs.pack(tree, into="heap:system") as image, daxfs.pack(tree) as memfd:
        assert (image.kind, image.exporter) == ("dma-buf", "system")
        assert contents(image) == contents(memfd)


def test_into_a_file_that_stands_for_a_device(tree: Path, path: Path, tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.write_bytes(bytes(path.stat().st_size + 4096))
    with daxfs.pack(tree, into=device) as image, daxfs.open(path) as other:
        assert contents(image) == contents(other)
    with pytest.raises(daxfs.DaxfsError, match="image already"):
        daxfs.pack(tree, into=device)
    daxfs.pack(tree, into=device, replace=True).close()
    device.write_bytes(bytes(8192))
    with pytest.raises(daxfs.DaxfsError, match="8192 bytes"):
        daxfs.pack(tree, into=device)


def test_ctrl_c_stops_a_pack(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    # Sparse, so nothing is written for it; but it takes long enough to copy to be interrupted.
    with (source / "huge").open("wb") as file:
        file.truncate(4 << 30)
    (tmp_path / "target").mkdir()
    code = """
        import daxfs, signal, sys
        # Where the tests run in the background, they are started with the signal ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("ready", flush=True)
        try:
            daxfs.pack(sys.argv[1], sys.argv[2])
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), source, tmp_path / "target" / "x.daxfs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        # The image grows in a file that has no name yet, or a temporary one; once it is open, the copy is under way.
        while not is_writing_into(child.pid, tmp_path / "target"):
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        assert child.communicate()[0] == "interrupted\n"
    assert child.returncode == 0
    assert os.listdir(tmp_path / "target") == []


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A snapshot of a Hugging Face cache: links to blobs."""
    blobs, snapshot = tmp_path / "models--o--n" / "blobs", tmp_path / "models--o--n" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    write_safetensors(blobs / "0a", {"w": Spec.filled("F32", (3,))})
    (blobs / "0b").write_text("{}")
    (blobs / "0c").write_bytes(b"a twin")
    for name, blob in [("model.safetensors", "0a"), ("config.json", "0b"), ("pytorch_model.bin", "0c")]:
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_links_that_leave_are_followed(snapshot: Path, tmp_path: Path) -> None:
    summary = daxfs.pack(snapshot, tmp_path / "image")
    assert (summary["followed_links"], summary["symlinks"], summary["files"]) == (3, 0, 3)
    with daxfs.open(tmp_path / "image") as image:
        assert list(image.tensors()) == ["w"]
    summary = daxfs.pack(snapshot, tmp_path / "image", links="keep")
    assert (summary["followed_links"], summary["symlinks"], summary["files"]) == (0, 3, 0)
    with pytest.raises(daxfs.DaxfsError, match="links are refused"):
        daxfs.pack(snapshot, links="refuse")
    with pytest.raises(ValueError, match="none of auto, keep, follow, refuse"):
        daxfs.pack(snapshot, links="all")  # type: ignore[call-overload]
    with daxfs.pack(snapshot.parent.parent) as image:
        assert list(image.tensors()) == ["w"]


def test_what_is_left_out(snapshot: Path, tmp_path: Path) -> None:
    for chosen in ({"exclude": "*.bin"}, {"exclude": ["/pytorch*"]}, {"weights_only": True}):
        summary = daxfs.pack(snapshot, tmp_path / "image", **chosen)  # type: ignore[call-overload]
        assert (summary["left_out"], summary["files"]) == (["pytorch_model.bin"], 2)
    with daxfs.pack(snapshot, include=["*.json"]) as image:
        assert list(image) == ["config.json"]
    with pytest.raises(ValueError, match="--exclude"):
        daxfs.pack(snapshot, exclude="[")


def test_who_may_read_it(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "config.json").write_text("{}")
    (tree / "config.json").chmod(0o600)
    assert daxfs.pack(tree, tmp_path / "image")["mode"] == "0600"
    assert (tmp_path / "image").stat().st_mode & 0o777 == 0o600
    assert daxfs.pack(tree, tmp_path / "image", mode=0o644)["mode"] == "0644"
    assert (tmp_path / "image").stat().st_mode & 0o777 == 0o644
    with pytest.raises(ValueError, match="mode is for files"):
        daxfs.pack(tree, mode=0o644)  # type: ignore[call-overload]
