"""daxfs.Holder and daxfs.serve, with holders that really run."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, TypeVar

import pytest

import daxfs

from support import Spec, write_safetensors

T = TypeVar("T")


def weights(root: Path, seed: int, columns: int = 8) -> Path:
    """A directory with one tensor, other bytes for each seed."""
    root.mkdir()
    write_safetensors(root / "model.safetensors", {"w": Spec.filled("F32", (8, columns), seed)})
    return root


@pytest.fixture
def holder() -> Iterator[daxfs.Served]:
    with daxfs.serve() as holder:
        yield holder


def until(ask: Callable[[], T]) -> T:
    """Ask again until there is an answer in time: a busy machine may need several tries."""
    while True:
        with contextlib.suppress(TimeoutError):
            return ask()


def test_load_list_swap_drop(holder: daxfs.Served, tmp_path: Path) -> None:
    one = holder.load("llama", weights(tmp_path / "one", 1))
    assert (one.name, one.memory, one.attaches, one.copies) == ("llama", "sealed memfd", 0, ())
    assert one.size > 0
    assert abs(one.loaded - time.time()) < 3600
    with holder.open("llama") as image:
        assert (image.content_hash, image.holder_generation) == (one.content_hash, one.generation)
        assert daxfs.open(holder.address("llama")).tensors().keys() == {"w"}
        again = holder.load("by-descriptor", image)
        assert again.content_hash == one.content_hash
        two = holder.swap("llama", os.fspath(weights(tmp_path / "two", 2)))
        assert two.generation > one.generation
        assert not image.is_current()
    assert [held.name for held in holder.list()] == ["by-descriptor", "llama"]
    assert holder.list()[0].attaches == 0
    assert pickle.loads(pickle.dumps(two)) == two  # noqa: S301
    health = holder.health()
    assert (health.pid, health.images) == (holder.pid, 2)
    assert health.bytes >= one.size + two.size
    holder.drop("llama")
    with pytest.raises(daxfs.NotFoundError):
        holder.drop("llama")
    with pytest.raises(daxfs.NotFoundError):
        holder.open("llama")
    assert holder.uploads("by-descriptor") == ()
    with pytest.raises(daxfs.NotFoundError):
        holder.uploads("llama")


def test_options_of_a_load(holder: daxfs.Served, tmp_path: Path) -> None:
    tree = weights(tmp_path / "tree", 1)
    (tree / "notes.txt").write_text("not packed")
    one = holder.load("one", tree, exclude="*.txt", into="memfd:4K", align_tensors="page")
    assert one.page_size == os.sysconf("SC_PAGE_SIZE")
    with holder.open("one") as image:
        assert list(image) == ["model.safetensors"]
        assert image.tensors()["w"].alignment >= os.sysconf("SC_PAGE_SIZE")
    exact = holder.load("two", tree, exact=True, exclude=["*.txt"])
    assert exact.content_hash not in (None, one.content_hash)
    assert exact.content_hash == holder.load("three", tree, align_tensors=False, exclude=["*.txt"]).content_hash
    assert holder.load("four", tree, shared=True).memory == "shared memfd"
    expect = f"blake3:{exact.content_hash}"
    assert holder.swap("one", tree, exact=True, exclude="*.txt", expect=expect).content_hash == exact.content_hash
    with pytest.raises(daxfs.FormatError):
        holder.swap("one", tree, expect=expect)
    wrong = {"into": "floppy", "links": "some", "align_tensors": "line", "expect": "abc", "no_copy": True}
    for key, value in wrong.items():
        with pytest.raises(ValueError, match=key.replace("expect", "hash")):
            holder.load("five", tree, **{key: value})  # type: ignore[arg-type]
    daxfs.pack(tree, tmp_path / "image.daxfs")
    with pytest.raises(ValueError, match="weights_only is for directories"):
        holder.load("five", tmp_path / "image.daxfs", weights_only=True)
    assert [held.name for held in holder.list()] == ["four", "one", "three", "two"]


def test_warnings_of_the_packer(holder: daxfs.Served, tmp_path: Path) -> None:
    tree = weights(tmp_path / "tree", 1)
    (tree / "link").symlink_to("nowhere")
    with pytest.warns(UserWarning, match="nowhere"):
        holder.load("m", tree)


def test_exceptions(holder: daxfs.Served, tmp_path: Path) -> None:
    tree = weights(tmp_path / "tree", 1)
    with pytest.raises(FileNotFoundError):
        holder.load("m", tmp_path / "missing")
    (tmp_path / "text").write_text("no image")
    with pytest.raises(daxfs.SourceError, match="text"):
        holder.load("m", tmp_path / "text")
    holder.load("m", tree)
    with pytest.raises(FileExistsError):
        holder.load("m", tree)
    for wrong in ("", ".hidden", "a/b"):
        with pytest.raises(ValueError, match="a name has"):
            holder.load(wrong, tree)
        with pytest.raises(ValueError, match="a name has"):
            holder.drop(wrong)
    nobody = daxfs.Holder(tmp_path / "no.sock")
    for ask in (nobody.list, nobody.health, nobody.stop, lambda: nobody.load("m", tree), lambda: nobody.wait(0.05)):
        with pytest.raises(ConnectionError):
            ask()
    for time_out in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a time is"):
            daxfs.Holder(holder.socket, timeout=time_out).list()
    if os.geteuid() == 0:
        holder.socket.parent.chmod(0o711)
        holder.socket.chmod(0o666)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                holder.drop("m")
        finally:
            os.seteuid(0)


def test_a_stopped_holder_keeps_nobody(holder: daxfs.Served, tmp_path: Path) -> None:
    tree = weights(tmp_path / "tree", 1)
    holder.load("m", tree)
    hasty = daxfs.Holder(holder.socket, timeout=0.02)
    image = until(lambda: hasty.open("m"))
    os.kill(holder.pid, signal.SIGSTOP)
    # The signal alone leaves it time to answer once more.
    while ") T " not in Path(f"/proc/{holder.pid}/stat").read_text():
        time.sleep(0.001)
    try:
        for ask in (hasty.list, image.is_current, lambda: hasty.open("m"), lambda: hasty.load("n", tree)):
            with pytest.raises(TimeoutError, match="0.02 s"):
                ask()

        def tell(*_: int) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, tell)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            holder.load("n", tree)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.kill(holder.pid, signal.SIGCONT)
    assert until(image.is_current)


def test_progress(holder: daxfs.Served, tmp_path: Path) -> None:
    big = weights(tmp_path / "big", 1)
    with (big / "zeros.bin").open("wb") as file:
        file.truncate(256 << 20)
    steps: list[tuple[int, int]] = []
    held = holder.load("big", big, progress=lambda done, total: steps.append((done, total)))
    assert held.size > 256 << 20
    assert all(done <= total for done, total in steps)
    assert steps == sorted(steps)
    # A holder reports a few times a second: a load that is quicker is told of by nobody, and goes on.
    for answer, exception in ((lambda: False, daxfs.DaxfsError), (lambda: 1 // 0, ZeroDivisionError)):
        asked = []

        def tell(*_: int, answer: Callable[[], object] = answer, asked: list[int] = asked) -> object:
            asked.append(1)
            return answer()

        try:
            holder.swap("big", big, progress=tell)
        except exception:
            assert asked
        else:
            assert not asked
    assert [image.name for image in holder.list()] == ["big"]


def test_access(holder: daxfs.Served, tmp_path: Path) -> None:
    tree = weights(tmp_path / "tree", 1)
    holder.load("m", tree, allow_uids=[1000], allow_gids=(100,))
    assert holder.access("m") == daxfs.Access((1000,), (100,))
    assert holder.access("m", uids=[7]).uids == (7,)
    assert holder.access("m", everybody=True) == daxfs.Access()
    with pytest.raises(ValueError, match="everybody"):
        holder.access("m", uids=[])
    with pytest.raises(ValueError, match="everybody"):
        holder.access("m", uids=[7], everybody=True)
    with pytest.raises(daxfs.NotFoundError):
        holder.access("n")


def test_watch(holder: daxfs.Served, tmp_path: Path) -> None:
    one, two = weights(tmp_path / "one", 1), weights(tmp_path / "two", 2)
    hash_of_one = holder.load("m", one).content_hash
    image = holder.open("m", expect=hash_of_one)
    with image.watch() as watch:
        assert not watch.wait(0)
        assert select.select([watch], [], [], 0)[0] == []
        new = holder.swap("m", two)
        assert select.select([watch], [], [], 30)[0] == [watch]
        assert watch.wait()
    with pytest.raises(ValueError, match="closed"):
        watch.wait(0)
    with pytest.raises(daxfs.FormatError):
        image.refresh()
    current = image.refresh(expect=new.content_hash)
    assert current is not None
    assert current.holder_generation == new.generation
    watch = current.watch()
    holder.stop()
    with pytest.raises(ConnectionError):
        watch.wait(30)
    with pytest.raises(ValueError, match="ended"):
        watch.fileno()
    daxfs.pack(one, tmp_path / "image.daxfs")
    with daxfs.open(tmp_path / "image.daxfs") as image, pytest.raises(ValueError, match="no holder"):
        image.watch()
    assert image.closed


def test_a_watch_is_closed_while_another_thread_waits(holder: daxfs.Served, tmp_path: Path) -> None:
    holder.load("m", weights(tmp_path / "one", 1))
    watch = holder.open("m").watch()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(watch.wait) for _ in range(2)]
        assert watch.fileno() > 2
        assert not watch.wait(0)
        watch.close()
        for wait in waiting:
            with pytest.raises(ValueError, match="the watch is closed"):
                wait.result(60)


def test_serve_ends_with_its_block(tmp_path: Path) -> None:
    with daxfs.serve({"a-b": weights(tmp_path / "one", 1)}, "--max-bytes", "1G", m=tmp_path / "one") as holder:
        assert [held.name for held in holder.list()] == ["a-b", "m"]
        image = holder.open("m")
        folder, pid = holder.socket.parent, holder.pid
        assert '"serving"' in holder.log() or "serving" in holder.log()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert repr(holder) == f"Served({str(holder.socket)!r})"
    assert image.tensors()["w"].nbytes == 256
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    holder.close()


def test_serve_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        daxfs.serve(m=tmp_path / "missing")
    with pytest.raises(ConnectionError, match="--nonsense"):
        daxfs.serve({}, "--nonsense")
    assert list(tmp_path.iterdir()) == []


def test_serve_ends_with_python(tmp_path: Path) -> None:
    code = "import daxfs, json; h = daxfs.serve(m='tree'); print(json.dumps([h.pid, str(h.socket)]))"
    weights(tmp_path / "tree", 1)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True)
    pid, socket = json.loads(done.stdout)
    assert not Path(socket).parent.exists()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        pytest.fail("the holder runs on")


def test_the_default_socket(holder: daxfs.Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAXFS_SOCKET", str(holder.socket))
    assert daxfs.Holder().socket == holder.socket
    with daxfs.Holder() as same:
        assert same.wait(5).pid == holder.pid


def test_upload(tmp_path: Path, fake_cuda: Path) -> None:
    weights(tmp_path / "tree", 1)
    code = """
import daxfs
with daxfs.serve(m="tree") as holder:
    steps = []
    assert holder.upload("m", "cuda:0", verify=True, progress=lambda *step: steps.append(step))
    assert steps and steps[-1][0] == steps[-1][1]
    assert not holder.upload("m"), "it is there"
    assert holder.upload("m", "cuda-host:0")
    copies = holder.uploads("m")
    assert sorted(copy.device is None for copy in copies) == [False, True], copies
    with holder.open("m") as image, image.to("cuda:0") as gpu:
        assert gpu.tensors()["w"].read() == bytes(image.tensors()["w"].raw)
    for name, device in (("n", "cuda:0"), ("m", "opencl:0")):
        try:
            holder.upload(name, device)
        except (daxfs.NotFoundError, ValueError):
            continue
        raise AssertionError(name)
"""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(fake_cuda)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
