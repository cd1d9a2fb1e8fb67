"""What can be opened, what cannot, and what an image says of itself."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import daxfs


class HasFileno:
    """An object that only has fileno()."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd


def check(image: daxfs.Image) -> None:
    with image:
        assert image["config.json"].read_bytes() == b'{"hidden_size": 8}'


def test_paths(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(daxfs.open(path))
    check(daxfs.open(str(path)))
    check(daxfs.open(os.fsencode(path)))
    check(daxfs.open(source=path))
    monkeypatch.chdir(path.parent)
    check(daxfs.open(path.name))


def test_descriptors_stay_the_callers(path: Path) -> None:
    with path.open("rb") as file:
        check(daxfs.open(file.fileno()))
        check(daxfs.open(file))
        check(daxfs.open(HasFileno(file.fileno())))
        check(daxfs.open(f"fd:{file.fileno()}"))
        assert file.read(4) == b"5xad"


def test_the_descriptor_is_not_needed_afterwards(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    image = daxfs.open(fd)
    os.close(fd)
    check(image)


def test_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAXFS_IMAGE", str(path))
    check(daxfs.open())
    with path.open("rb") as file:
        monkeypatch.setenv("DAXFS_IMAGE", f"fd:{file.fileno()}")
        check(daxfs.open(None))
    for missing in ("", None):
        if missing is None:
            monkeypatch.delenv("DAXFS_IMAGE")
        else:
            monkeypatch.setenv("DAXFS_IMAGE", missing)
        with pytest.raises(ValueError, match="DAXFS_IMAGE"):
            daxfs.open()


def test_a_child_gets_the_descriptor(path: Path) -> None:
    code = "import daxfs, sys; print(daxfs.open(int(sys.argv[1]))['config.json'].read_bytes().decode())"
    with daxfs.open(path) as image:
        fd = image.fileno()
        run = subprocess.run(
            [sys.executable, "-c", code, str(fd)], pass_fds=[fd], check=True, capture_output=True, text=True
        )
    assert run.stdout == '{"hidden_size": 8}\n'


def test_a_forked_child_reads_on(path: Path) -> None:
    # In a process of its own: one that has threads, as JAX starts them, must not fork.
    code = """
        import daxfs, os, sys
        image = daxfs.open(sys.argv[1])
        view = memoryview(image["sub/large.bin"])
        if os.fork() == 0:
            os._exit(0 if view[255] == 255 and image["config.json"].size == 18 else 1)
        sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), path], check=True)


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        daxfs.open(tmp_path / "none")
    assert caught.value.filename == str(tmp_path / "none")
    assert not isinstance(caught.value, daxfs.DaxfsError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_not_allowed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(mode=0)
    with pytest.raises(PermissionError):
        daxfs.open(secret)


def test_closed_descriptor() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        daxfs.open(fd)
    assert caught.value.errno == 9


@pytest.mark.parametrize("source", [True, 1.5, [], object()])
def test_wrong_types(source: object) -> None:
    with pytest.raises(TypeError, match="fileno"):
        daxfs.open(source)  # type: ignore[arg-type]


def test_negative_descriptor() -> None:
    with pytest.raises(ValueError, match="-1"):
        daxfs.open(-1)


def test_what_cannot_be_shared(tmp_path: Path) -> None:
    read, write = os.pipe()
    with open(read, "rb"), open(write, "wb"), pytest.raises(daxfs.SourceError, match="pipe"):
        daxfs.open(read)
    with pytest.raises(daxfs.SourceError, match="directory"):
        daxfs.open(tmp_path)
    with socket.socket() as end, pytest.raises(daxfs.SourceError, match="socket"):
        daxfs.open(end)
    with (tmp_path / "file").open("wb") as file, pytest.raises(daxfs.SourceError, match="writing only"):
        daxfs.open(file)


def test_not_an_image(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"\x7fELF" + bytes(8192))
    with pytest.raises(daxfs.FormatError, match="magic"):
        daxfs.open(other)
    other.write_bytes(b"")
    with pytest.raises(daxfs.FormatError, match="superblock"):
        daxfs.open(other)


def test_truncated(path: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(daxfs.FormatError, match="outside"):
        daxfs.open(short)


def test_metadata_limit(path: Path) -> None:
    with pytest.raises(daxfs.FormatError, match="limit"):
        daxfs.open(path, max_metadata=4096)


def test_strict(path: Path) -> None:
    check(daxfs.open(path, strict=True))


def test_expect_binds_the_index(path: Path, tmp_path: Path) -> None:
    """Files are honest, the index swaps the offsets of two tensors."""
    with daxfs.open(path) as image:
        content, index = image.content_hash, image[".daxfs/index"]
        assert content is not None
        assert index.extent is not None
        start = index.extent[0]
    data = bytearray(path.read_bytes())
    # The second section of the table has the tensors; an offset is 16 bytes into its record of 48.
    (tensors,) = struct.unpack_from("<Q", data, start + 128 + 64 + 8)
    first, second = start + tensors + 16, start + tensors + 48 + 16
    data[first : first + 8], data[second : second + 8] = data[second : second + 8], data[first : first + 8]
    forged = tmp_path / "forged.daxfs"
    forged.write_bytes(data)
    daxfs.open(path, expect=content).close()
    with daxfs.open(forged) as image:
        assert image.content_hash == content, "it says so of itself"
    for sealed_copy in (False, True):
        with pytest.raises(daxfs.DaxfsError, match="tensor records"):
            daxfs.open(forged, expect=content, sealed_copy=sealed_copy)


@pytest.fixture
def forged(path: Path, tmp_path: Path) -> tuple[Path, str]:
    """An image whose index is honest, with another byte at the end of model.safetensors; its content hash."""
    with daxfs.open(path) as image:
        content, extent = image.content_hash, image["model.safetensors"].extent
        assert content is not None
        assert extent is not None
    data = bytearray(path.read_bytes())
    data[sum(extent) - 1] ^= 1
    changed = tmp_path / "changed.daxfs"
    changed.write_bytes(data)
    return changed, content


def test_expect_reads_the_files(forged: tuple[Path, str]) -> None:
    path, content = forged
    with daxfs.open(path) as image:
        assert image.content_hash == content, "it says so of itself"
    for sealed_copy in (False, True):
        for verify in (None, "full"):
            with pytest.raises(daxfs.FormatError, match=r"/model\.safetensors: BLAKE3 is"):
                daxfs.open(path, expect=content, verify=verify, sealed_copy=sealed_copy)  # type: ignore[arg-type]
    with pytest.raises(daxfs.FormatError, match="BLAKE3"):
        daxfs.open(path, verify="full")
    daxfs.open(path, expect=content, verify="stored").close()
    with pytest.raises(ValueError, match="none of full, lazy and stored"):
        daxfs.open(path, verify="some")  # type: ignore[arg-type]


def test_lazy_compares_what_is_used(path: Path, forged: tuple[Path, str]) -> None:
    check(daxfs.open(path, verify="lazy"))
    path, content = forged
    with daxfs.open(path, expect=content, verify="lazy") as image:
        assert image["config.json"].read_bytes()
        file = image["model.safetensors"]
        tensor = next(iter(file.tensors().values()))
        uses: list[Callable[[], object]] = [
            lambda: memoryview(file),
            lambda: file[0:1],
            lambda: file.read_bytes(),
            lambda: file.open().read(1),
            lambda: file.readinto_at(0, bytearray(1)),
            lambda: file.original().read_bytes(),
            lambda: memoryview(tensor),
            lambda: tensor.numpy(),
            lambda: bytes(tensor.raw),
            lambda: tensor.__dlpack__(),
        ]
        for use in uses:
            with pytest.raises(daxfs.FormatError, match=r"/model\.safetensors: BLAKE3 is"):
                use()


def test_signed(tree: Path, tmp_path: Path) -> None:
    keys = Path(__file__).parents[2] / "crates" / "daxfs" / "tests" / "minisign"
    key, image, other = keys / "minisign.pub", tmp_path / "m.daxfs", tmp_path / "other.daxfs"
    tool = Path(sys.executable).with_name("daxfs-pack")
    subprocess.run([tool, "-q", tree, "-o", image, "--sign", keys / "minisign.key"], check=True)
    signature = image.with_name("m.daxfs.minisig")
    check(daxfs.open(image, key=key))
    check(daxfs.open(os.fsencode(image), key=str(key)))
    check(daxfs.open(image, key=key, signature=signature))
    check(pickle.loads(pickle.dumps(daxfs.open(image, key=key))))  # noqa: S301
    with image.open("rb") as file:
        check(daxfs.open(file, key=key, signature=signature))
        with pytest.raises(daxfs.FormatError, match="has no signature"):
            daxfs.open(file, key=key)
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "config.json").write_text("{}")
    daxfs.pack(tmp_path / "w", other)
    with pytest.raises(daxfs.FormatError, match="has no signature"):
        daxfs.open(other, key=key)
    with pytest.raises(daxfs.FormatError, match="not valid for the content"):
        daxfs.open(other, key=key, signature=signature)
    with pytest.raises(daxfs.FormatError, match="no public key"):
        daxfs.open(image, key=signature)
    with pytest.raises(FileNotFoundError):
        daxfs.open(image, key=tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        daxfs.open(image, key=key, signature=tmp_path / "none")
    with pytest.raises(ValueError, match="give key"):
        daxfs.open(image, signature=signature)
    # A refreshed image has its own signature, which is read again.
    old = daxfs.open(image, key=key)
    (tmp_path / "w" / "new").write_text("new")
    subprocess.run([tool, "-q", tmp_path / "w", "-o", image, "--sign", keys / "minisign.key"], check=True)
    new = old.refresh()
    assert new is not None
    assert new["new"].read_bytes() == b"new"


def test_signed_as_cosign_does(tree: Path, tmp_path: Path) -> None:
    keys = Path(__file__).parents[2] / "crates" / "daxfs" / "tests" / "cosign"
    key, image, other = keys / "key.pub", tmp_path / "m.daxfs", tmp_path / "other.daxfs"
    tool = Path(sys.executable).with_name("daxfs-pack")
    subprocess.run([tool, "-q", tree, "-o", image, "--sign", keys / "key.pem"], check=True)
    signature = image.with_name("m.daxfs.cosign")
    check(daxfs.open(image, key=key))
    with image.open("rb") as file:
        check(daxfs.open(file, key=key, signature=signature))
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "config.json").write_text("{}")
    daxfs.pack(tmp_path / "w", other)
    with pytest.raises(daxfs.FormatError, match="not valid for the content"):
        daxfs.open(other, key=key, signature=signature)
    minisign = keys.with_name("minisign") / "minisign.pub"
    with pytest.raises(daxfs.FormatError, match="one of cosign"):
        daxfs.open(image, key=minisign)
    (signature / "index.json").unlink()
    with pytest.raises(daxfs.FormatError, match="OCI image layout"):
        daxfs.open(image, key=key, signature=signature)


def test_expect_of_a_file_without_fs_verity(path: Path) -> None:
    digest = "fsverity:sha256:" + "0" * 64
    with pytest.raises(daxfs.FormatError, match=f"no fs-verity.*{digest}"):
        daxfs.open(path, expect=digest)
    with pytest.raises(ValueError, match="no digest of fs-verity"):
        daxfs.open(path, expect="fsverity:sha256:00")


def test_expect(path: Path, tree: Path) -> None:
    with daxfs.open(path) as image:
        content = image.content_hash
    assert content is not None
    check(daxfs.open(path, expect=content))
    check(daxfs.open(path, expect=content.upper()))
    check(daxfs.open(path, expect=f"blake3:{content}"))
    with pytest.raises(daxfs.FormatError, match=content):
        daxfs.open(path, expect="0" * 64)
    with daxfs.pack(tree, plain=True) as plain, pytest.raises(daxfs.FormatError, match="not stored"):
        daxfs.open(plain, expect=content)
    for text in ("", "0" * 63, "0" * 65, "g" * 64, "é" * 32):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            daxfs.open(path, expect=text)


def test_no_holder(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="daxfs serve"):
        daxfs.open(f"daxfs+unix://{tmp_path}/none.sock/llama")
    with pytest.raises(daxfs.SourceError):
        daxfs.open("daxfs://")


def test_a_path_object_is_always_a_path(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fd:0", "-"):
        (tmp_path / name).symlink_to(path)
        check(daxfs.open(Path(name)))
        check(daxfs.open(os.fsencode(name)))


def test_sealed_copy(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(path.read_bytes())
    with daxfs.open(victim, sealed_copy=True) as image:
        os.truncate(victim, 0)
        assert image.provenance == "sealed"
        assert image.kind == "memfd"
        check(image)
    with pytest.raises(ValueError, match="choose one"):
        daxfs.open(path, sealed_copy=True, private=True)


def test_attributes(image: daxfs.Image, path: Path) -> None:
    assert (image.version, image.block_size) == (8, 4096)
    assert image.size == path.stat().st_size
    assert (image.kind, image.provenance, image.exporter, image.view) == ("file", "shared", None, "base")
    assert image.content_hash is not None
    assert len(bytes.fromhex(image.content_hash)) == 32
    assert os.path.sameopenfile(image.fileno(), os.open(path, os.O_RDONLY))
    assert repr(image).startswith(f"<daxfs.Image '{path}': version 8, ")


def test_pages(tree: Path) -> None:
    with daxfs.pack(tree) as image:
        assert image.populate()
        pages = image.pages
        assert pages["resident"] == pages["mapped"] >= image.size
        assert pages["page_size"] == os.sysconf("SC_PAGESIZE")
        assert isinstance(image.collapse(), bool)


def test_close(path: Path) -> None:
    image = daxfs.open(path)
    assert not image.closed
    file = image["config.json"]
    tensor = image.tensors()["all.F32"]
    image.close()
    image.close()
    assert image.closed
    assert repr(image) == "<daxfs.Image, closed>"
    for use in (
        lambda: image["config.json"],
        lambda: image.get("config.json"),
        lambda: "config.json" in image,
        lambda: len(image),
        lambda: list(image),
        lambda: list(image.items()),
        lambda: image.directory(),
        lambda: image.walk(),
        lambda: image.tensors(),
        lambda: image.stat("/"),
        lambda: image.readlink("link.json"),
        lambda: image.fileno(),
        lambda: image.populate(),
        lambda: image.collapse(),
        lambda: image.pages,
        lambda: image.version,
        lambda: image.provenance,
        lambda: image.content_hash,
        image.__enter__,
    ):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert file.read_bytes() == b'{"hidden_size": 8}'
    assert tensor.numpy().shape == (3, 8)


def test_with_closes_after_an_error(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), daxfs.open(path) as image:
        _ = 1 / 0
    assert image.closed


def test_the_backing_file_of_a_split_image_is_named(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        daxfs.open(path, backing="/nonexistent")
