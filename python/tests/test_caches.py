"""daxfs.caches: what compilers keep lies in an image, and is used out of a copy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import daxfs
from daxfs import _locate, _stand_in

VARIABLES = {
    "triton": "TRITON_CACHE_DIR",
    "inductor": "TORCHINDUCTOR_CACHE_DIR",
    "flashinfer": "FLASHINFER_WORKSPACE_BASE",
    "vllm": "VLLM_CACHE_ROOT",
}


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in VARIABLES.values():
        # Set first, so that what a test sets is removed after it.
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose caches are links to where they were made."""
    for name in VARIABLES:
        (tmp_path / "made" / name / "KEY").mkdir(parents=True)
        (tmp_path / "made" / name / "KEY" / "kernel.so").write_text(name)
    (tmp_path / "made/triton/KEY/kernel.so").chmod(0o755)
    (tmp_path / "model" / "caches").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    for name in VARIABLES:
        (tmp_path / "model" / "caches" / name).symlink_to(tmp_path / "made" / name)
    return tmp_path / "model"


def pack(model: Path, name: str = "model.daxfs") -> Path:
    daxfs.pack(model, model.parent / name)
    return model.parent / name


def test_variables_name_copies(model: Path, tmp_path: Path) -> None:
    image = pack(model)
    found = daxfs.caches(image)
    assert found == {variable: os.environ[variable] for variable in VARIABLES.values()}
    for name, variable in VARIABLES.items():
        folder = Path(found[variable])
        assert folder.parent == tmp_path / "cache/daxfs/caches"
        inner = folder / ".cache/flashinfer" if name == "flashinfer" else folder
        assert (inner / "KEY/kernel.so").read_text() == name
        assert folder.stat().st_mode & 0o777 == 0o700
    mode = (Path(found["TRITON_CACHE_DIR"]) / "KEY/kernel.so").stat().st_mode & 0o777
    assert mode == 0o700
    # What is compiled later stays: equal contents have one copy.
    new = Path(found["TRITON_CACHE_DIR"]) / "later"
    new.write_text("x")
    with daxfs.open(image) as opened:
        assert daxfs.caches(opened) == found
    assert new.read_text() == "x"
    assert not list((tmp_path / "cache/daxfs/caches").glob(".*"))


def test_other_contents_have_another_copy(model: Path, tmp_path: Path) -> None:
    first = daxfs.caches(pack(model), ["triton", "vllm"], directory=tmp_path / "own")
    assert first.keys() == {"TRITON_CACHE_DIR", "VLLM_CACHE_ROOT"}
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    (tmp_path / "made/triton/KEY/kernel.so").write_text("newer")
    second = daxfs.caches(pack(model, "b.daxfs"), directory=tmp_path / "own")
    assert second["VLLM_CACHE_ROOT"] == first["VLLM_CACHE_ROOT"]
    assert second["TRITON_CACHE_DIR"] != first["TRITON_CACHE_DIR"]
    assert Path(first["TRITON_CACHE_DIR"], "KEY/kernel.so").read_text() == "triton"
    assert Path(second["TRITON_CACHE_DIR"]).parent == tmp_path / "own"


def test_groups_of_triton_name_the_copy(model: Path, tmp_path: Path) -> None:
    # As FileCacheManager.put_group of Triton writes them: by absolute paths, and it looks for these alone.
    children = {"kernel.so": str(tmp_path / "made/triton/KEY/kernel.so")}
    (tmp_path / "made/triton/KEY/__grp__kernel.json").write_text(json.dumps({"child_paths": children, "more": 1}))
    (tmp_path / "made/triton/KEY/__grp__odd.json").write_text("[1]")
    copy = Path(daxfs.caches(pack(model), "triton")["TRITON_CACHE_DIR"])
    group = json.loads((copy / "KEY/__grp__kernel.json").read_text())
    assert group == {"child_paths": {"kernel.so": str(copy / "KEY/kernel.so")}, "more": 1}
    assert (copy / "KEY/__grp__odd.json").read_text() == "[1]"


def test_folders_of_processes_have_no_caches(model: Path, tmp_path: Path) -> None:
    (model / "caches/mine").mkdir()
    (model / "caches/mine/notes.txt").touch()
    with daxfs.open(pack(model)) as image:
        folders = [Path(image.path()), Path(_stand_in.folder(_locate.Location(str(tmp_path / "model.daxfs"), "")))]
        for folder in folders:
            assert (folder / "config.json").exists()
            assert [path.name for path in (folder / "caches").iterdir() if path.name != _locate.STAND_IN] == ["mine"]
        image.materialize(tmp_path / "copy", exclude_weights=True)
    assert (tmp_path / "copy/caches/vllm/KEY/kernel.so").exists()


def test_links_within_the_image_and_what_is_asked_for_by_its_path(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "kernels/KEY").mkdir(parents=True)
    (tree / "kernels/KEY/kernel.so").write_text("there")
    (tree / "caches").mkdir()
    (tree / "caches/triton").symlink_to("../kernels")
    (tree / "caches/vllm").mkdir()
    (tree / "caches/inductor").mkdir()
    (tree / "caches/inductor/graph").touch()
    with daxfs.open(pack(tree)) as image:
        copy = Path(daxfs.caches(image, "triton")["TRITON_CACHE_DIR"])
        assert (copy / "KEY/kernel.so").read_text() == "there"
        with pytest.raises(daxfs.NotFoundError, match="caches/vllm of the image has no file"):
            daxfs.caches(image)
        assert (Path(image.path("caches/inductor")) / "graph").exists()
        assert not (Path(image.path()) / "caches/inductor").exists()


def test_refusals(model: Path, tmp_path: Path) -> None:
    (model / "caches/vllm").unlink()
    image = pack(model)
    with pytest.raises(ValueError, match="no cache is known by the name 'cuda': there are triton"):
        daxfs.caches(image, ["triton", "cuda"])
    with pytest.raises(daxfs.NotFoundError, match="the image has no directory caches/vllm; caches has flashinfer"):
        daxfs.caches(image, ["triton", "vllm"])
    assert "TRITON_CACHE_DIR" not in os.environ
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PermissionError, match="others can write there"):
        daxfs.caches(image, directory=tmp_path / "open")
    with pytest.raises(PermissionError, match="others can put something in place of what lies below"):
        daxfs.caches(image, directory=tmp_path / "open" / "own")
    (tmp_path / "open").chmod(0o1777)
    daxfs.caches(image, "triton", directory=tmp_path / "open" / "own")
    copy = Path(daxfs.caches(image, "triton")["TRITON_CACHE_DIR"])
    copy.chmod(0o777)
    with pytest.raises(PermissionError, match="others can write there"):
        daxfs.caches(image, "triton")


def test_directories_that_are_made_are_for_their_owner_alone(model: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        daxfs.caches(pack(model), "vllm", directory=tmp_path / "a/b/c")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b", "a/b/c")] == [0o700] * 3


def test_images_without_caches(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/config.json").write_text("{}")
    assert daxfs.caches(pack(tmp_path / "tree")) == {}
    assert not (tmp_path / "cache").exists()
    with pytest.raises(daxfs.NotFoundError, match="caches has none"):
        daxfs.caches(tmp_path / "model.daxfs", ["vllm"])
    (tmp_path / "tree/caches").write_text("a file")
    assert daxfs.caches(pack(tmp_path / "tree")) == {}


KERNEL = """
    import sys
    import daxfs

    if len(sys.argv) > 1:
        daxfs.caches(sys.argv[1], ["triton"])
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.compiler import ASTSource

    @triton.jit
    def double(x, n, block: tl.constexpr):
        at = tl.program_id(0) * block + tl.arange(0, block)
        tl.store(x + at, tl.load(x + at, mask=at < n) * 2, mask=at < n)

    make = CUDABackend.make_ptx
    compiled = []
    CUDABackend.make_ptx = lambda *a, **k: compiled.append(1) or make(*a, **k)
    signature = {"x": "*fp32", "n": "i32", "block": "constexpr"}
    source = ASTSource(fn=double, signature=signature, constexprs={(2,): 64})
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    print(len(compiled))
"""


def run(program: Path, *arguments: Path, **variables: str) -> str:
    environment = {**os.environ, **variables}
    command = [sys.executable, program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def test_triton_compiles_nothing_again(tmp_path: Path) -> None:
    # It comes with torch for CUDA, and needs no GPU to compile for one.
    pytest.importorskip("triton")
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(KERNEL))
    made = tmp_path / "model/caches/triton"
    assert run(program, TRITON_CACHE_DIR=str(made)) == "1\n"
    image = pack(tmp_path / "model")
    made.rename(tmp_path / "away")
    assert run(program, image) == "0\n"


PROGRAM = """
    import sys
    import daxfs

    if len(sys.argv) > 1:
        daxfs.caches(sys.argv[1], ["inductor"])
    import torch
    from torch._dynamo.utils import counters

    compiled = torch.compile(lambda x: (x.sin() + x.cos()).relu() * 2)
    assert torch.allclose(compiled(torch.zeros(4)), torch.full((4,), 2.0))
    print(dict(counters["inductor"]))
"""


def test_inductor_compiles_nothing_again(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    made = tmp_path / "model/caches/inductor"

    assert "'fxgraph_cache_miss': 1" in run(program, TORCHINDUCTOR_CACHE_DIR=str(made))
    image = pack(tmp_path / "model")
    made.rename(tmp_path / "away")
    found = run(program, image)
    assert "'fxgraph_cache_hit': 1" in found
    assert "miss" not in found
