"""daxfs.safetensors beside safetensors: the same calls of both, on a file and on the image of it."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import daxfs
from daxfs import safetensors as ours

from support import BITS, Spec, mappings, write_safetensors

np = pytest.importorskip("numpy")
pytest.importorskip("ml_dtypes")
theirs = pytest.importorskip("safetensors")
torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")

ROOT = Path(__file__).parents[2]
TENSORS = {
    "z": Spec.filled("F32", (10, 5)),
    "bf": Spec.filled("BF16", (2, 3, 4), 1),
    "scalar": Spec.filled("F32", (), 2),
    "empty": Spec.filled("F32", (0, 4)),
    "a": Spec.filled("I16", (7,), 3),
    "bool": Spec.filled("BOOL", (5,), 4),
}


class Index:
    """Shows what is between the brackets."""

    def __getitem__(self, index: Any) -> Any:
        return index


I = Index()  # noqa: E741
INDICES: list[Any] = [
    *(I[:], I[...], (), 0, 2, -1, -11, 10, True, np.int64(3), I[2:4], I[::2], I[0:0], I[3:3], I[:0]),
    *(I[20:30], I[5:200], I[10:], I[9:10], I[10:10], I[1:3, 2:4], I[1:3, ::2], I[::2, 1], I[2:8:3, -1], I[:, 5]),
    *(I[:, -6], I[..., 0], I[0, ...], I[..., 0:2], I[0, ..., 0], I[0, 0, ...], I[0, 0, 0, ...], I[..., ...]),
    *(I[1, 2, 3, 4], (slice(None),) * 5, I[::0], 2**31, 2**31 - 1, 2**63, 2**70, -(2**31), I[: 2**31], I[0:5:100]),
    *([], [1, 2], I[[0, 1], 0], None, I[1, None], 1.5, "a", I["a":3], I[1.0:3], I[: 2**70], I[None:3:True]),
]
# For torch safetensors leaves these to torch; for the others it refuses them.
SIGNED = [I[-3:], I[:-2], I[-30:5], I[::-1], I[1:2:-1]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "model.safetensors"
    write_safetensors(path, TENSORS, {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def name(file: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    image = tmp_path_factory.mktemp("packed") / "model.daxfs"
    daxfs.pack(file, image)
    return f"{image}!/{file.name}"


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, in words, or what it raises."""
    try:
        value = call()
    except Exception as error:
        return type(error).__name__, str(error)
    if hasattr(value, "shape"):
        # Bits, since some values are no numbers.
        if isinstance(value, torch.Tensor):
            flat = value.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
            bits = np.array(flat.tolist(), "u1")
        else:
            bits = np.asarray(value)
        return tuple(value.shape), str(value.dtype), bits.tobytes()
    return value


def same(theirs_call: Callable[[], Any], ours_call: Callable[[], Any]) -> None:
    expected = outcome(theirs_call)
    assert outcome(ours_call) == expected, expected


def both(file: Path, name: str, framework: str) -> tuple[Any, Any]:
    return theirs.safe_open(file, framework), ours.safe_open(name, framework)


@pytest.mark.parametrize("framework", ["pt", "torch", "np", "numpy", "jax", "flax"])
def test_names_and_tensors(file: Path, name: str, framework: str) -> None:
    import ml_dtypes  # noqa: F401 - lets safetensors make arrays of bfloat16

    expected, found = both(file, name, framework)
    with expected as e, found as f:
        assert f is found
        assert f.keys() == e.keys() == sorted(TENSORS)
        assert f.offset_keys() == e.offset_keys()
        assert f.metadata() == e.metadata() == {"format": "pt"}
        for tensor in TENSORS:
            if not (framework in {"np", "numpy"} and tensor == "bf"):
                same(lambda t=tensor: e.get_tensor(t), lambda t=tensor: f.get_tensor(t))
            assert f.get_slice(tensor).get_shape() == e.get_slice(tensor).get_shape()
            assert f.get_slice(tensor).get_dtype() == e.get_slice(tensor).get_dtype()
        if framework not in {"np", "numpy"}:
            assert list(f.get_tensors()) == list(e.get_tensors())
        for method in ("get_tensor", "get_slice"):
            for wrong in ("missing", 3, None):
                same(lambda w=wrong, m=method: getattr(e, m)(w), lambda w=wrong, m=method: getattr(f, m)(w))
    for method in ("keys", "offset_keys", "metadata", "get_tensors"):
        same(getattr(e, method), getattr(f, method))
    same(lambda: e.get_tensor("a"), lambda: f.get_tensor("a"))
    same(lambda: e.get_slice("a"), lambda: f.get_slice("a"))


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("tensor", ["z", "bf", "scalar", "a", "empty"])
@pytest.mark.parametrize("framework", ["pt", "np", "jax"])
def test_slices(file: Path, name: str, framework: str, tensor: str) -> None:
    if framework == "np" and tensor == "bf":
        tensor = "bool"
    expected, found = both(file, name, framework)
    e, f = expected.get_slice(tensor), found.get_slice(tensor)
    if framework != "pt" and tensor == "empty":
        indices = [index for index in INDICES if outcome(lambda i=index: f[i])[0] == "SafetensorError"]
        assert len(indices) > 30
    else:
        indices = INDICES + SIGNED
    for index in indices:
        assert outcome(lambda i=index: f[i]) == outcome(lambda i=index: e[i]), (tensor, index)


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("framework", ["pt", "jax"])
def test_every_dtype_that_both_have(tmp_path: Path, framework: str, dtype: str) -> None:
    write_safetensors(tmp_path / "t.safetensors", {"t": Spec.filled(dtype, (3, 8))})
    daxfs.pack(tmp_path / "t.safetensors", tmp_path / "t.daxfs")
    expected, found = both(tmp_path / "t.safetensors", f"{tmp_path}/t.daxfs!/t.safetensors", framework)
    value = outcome(lambda: expected.get_tensor("t"))
    if len(value) == 3:
        assert outcome(lambda: found.get_tensor("t")) == value


ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (("xx",), {}),
    (("PT",), {}),
    (("pt", "xx"), {}),
    (("pt", "cpu:0"), {}),
    (("pt", "meta"), {}),
    (("pt", torch.device("cpu")), {}),
    (("np", "cuda:0"), {}),
    (("np", "xx"), {}),
    (("pt",), {"backend": "xx"}),
    (("pt", "cpu", "mmap"), {}),
    ((), {}),
    (("pt",), {"device": "cpu", "what": 1}),
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_wrong_arguments(file: Path, name: str, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    words, options = arguments
    expected = outcome(lambda: theirs.safe_open(file, *words, **options))
    assert expected[0] in {"SafetensorError", "TypeError"}
    found = outcome(lambda: ours.safe_open(name, *words, **options))
    # Python counts the class, and has other words for names.
    if "what" in options or len(words) == 3:
        expected, found = expected[:1], found[:1]
    assert found == expected


def test_what_is_not_there(file: Path, name: str, tmp_path: Path) -> None:
    image = name.partition("!")[0]
    for missing in (f"{image}!/nothing", f"{image}!/model.safetensors/below"):
        with pytest.raises(FileNotFoundError, match=re.escape(f"No such file or directory: {missing}")):
            ours.safe_open(missing, "pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no tensors")
    daxfs.pack([tmp_path / "empty", tmp_path / "notes.txt"], tmp_path / "x.daxfs")
    with pytest.raises(FileNotFoundError, match="No safetensors files"):
        ours.safe_open(f"{tmp_path}/x.daxfs!/empty", "pt")
    with pytest.raises(theirs.SafetensorError, match="Error while deserializing header"):
        ours.safe_open(f"{tmp_path}/x.daxfs!/notes.txt", "pt")
    (tmp_path / "no.daxfs").write_text("no image")
    with pytest.raises(daxfs.FormatError):
        ours.safe_open(f"{tmp_path}/no.daxfs", "pt")


def test_ordinary_files_are_for_safetensors(file: Path) -> None:
    assert type(ours.safe_open(file, "pt")) is theirs.safe_open
    same(lambda: theirs.safe_open("notafile", "pt"), lambda: ours.safe_open("notafile", "pt"))
    same(lambda: theirs.safe_open(str(file.parent), "pt"), lambda: ours.safe_open(str(file.parent), "pt"))


def test_a_file_with_a_mark_in_its_name_is_that_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "t.safetensors", {"image": Spec.filled("U8", (1,))})
    daxfs.pack(tmp_path / "t.safetensors", tmp_path / "x.daxfs")
    folder = tmp_path / "x.daxfs!"
    folder.mkdir()
    write_safetensors(folder / "t.safetensors", {"file": Spec.filled("U8", (1,))})
    assert ours.safe_open(folder / "t.safetensors", "np").keys() == ["file"]
    (folder / "t.safetensors").unlink()
    assert ours.safe_open(folder / "t.safetensors", "np").keys() == ["image"]


def test_ways_to_name_a_file(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/sub").symlink_to(checkpoint)
    image = tmp_path / "c.daxfs"
    daxfs.pack(tmp_path / "tree", image, links="follow")
    names = ["embed.weight", "layers.0.norm", "layers.0.scale", "lm_head.weight"]
    shard = f"{image}!/sub/model-00002-of-00002.safetensors"
    assert ours.safe_open(shard, "pt").keys() == names[2:]
    assert ours.safe_open(f"{image}!/sub", "pt").offset_keys() == names
    with daxfs.open(image) as opened:
        assert ours.safe_open(opened.tensors("sub"), "np").keys() == names
        assert ours.safe_open(opened["sub/model-00001-of-00002.safetensors"], "np").keys() == names[:2]
    daxfs.pack(checkpoint, tmp_path / "d.daxfs")
    assert ours.safe_open(tmp_path / "d.daxfs", "np").keys() == names
    with daxfs.open(tmp_path / "d.daxfs") as opened:
        assert ours.safe_open(opened.fileno(), "np").keys() == names
        assert ours.safe_open(f"fd:{opened.fileno()}!/{Path(shard).name}", "np").keys() == names[2:]


def test_views_are_writable_and_writes_stay_in_the_process(name: str) -> None:
    from daxfs.safetensors.numpy import load_file as load_numpy
    from daxfs.safetensors.torch import load_file

    image = Path(name.partition("!")[0])
    before = image.read_bytes()
    mapped = [load_file(name)["z"], torch.from_numpy(load_numpy(name)["z"])]
    for tensor in mapped:
        assert any(
            int(start, 16) <= tensor.data_ptr() < int(end, 16)
            for start, end in (line.split()[0].split("-") for line in mappings(image.name))
        )
        tensor.add_(1)
    assert torch.equal(mapped[0], mapped[1])
    assert image.read_bytes() == before
    copied = ours.safe_open(name, "pt", backend="pread").get_tensor("z")
    assert not torch.equal(copied, mapped[0])
    assert torch.equal(copied, load_file(name)["z"])


def test_a_file_of_an_image_is_as_that_was_opened(name: str) -> None:
    image, _, path = name.partition("!/")
    array = ours.safe_open(daxfs.open(image)[path], "np").get_tensor("z")
    assert not array.flags.writeable
    assert ours.safe_open(daxfs.open(image, private=True)[path], "np").get_tensor("z").flags.writeable


def test_saving_goes_to_files_and_not_into_images(name: str, tmp_path: Path) -> None:
    from daxfs.safetensors import flax, numpy
    from daxfs.safetensors import torch as for_torch

    made: list[tuple[Any, Any]] = [
        (for_torch, torch.arange(3)),
        (numpy, np.arange(3)),
        (flax, jax.numpy.arange(3)),
    ]
    for module, value in made:
        module.save_file({"t": value}, tmp_path / "t.safetensors", {"k": "v"})
        assert list(module.load_file(tmp_path / "t.safetensors")["t"]) == [0, 1, 2]
        assert list(module.load(module.save({"t": value}))["t"]) == [0, 1, 2]
        with pytest.raises(OSError, match=r"Read-only file system.*daxfs.pack") as caught:
            module.save_file({"t": value}, name)
        assert caught.value.filename == name


def test_load_model_names_what_is_missing_as_safetensors_does(tmp_path: Path) -> None:
    from safetensors.torch import load_model, save_model

    from daxfs.safetensors import torch as for_torch

    class Tied(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, size: int = 4, extra: bool = False) -> None:
            super().__init__()
            self.a = torch.nn.Linear(size, size)
            self.b = torch.nn.Linear(size, size)
            self.b.weight = self.a.weight
            if extra:
                self.extra = torch.nn.Linear(1, 1)

    path = tmp_path / "t.safetensors"
    save_model(Tied(extra=True), str(path))
    daxfs.pack(path, tmp_path / "t.daxfs")
    for make in (lambda: Tied(extra=True), Tied, lambda: torch.nn.Sequential(Tied())):
        for strict in (True, False):
            first, second = make(), make()
            expected = outcome(lambda m=first, s=strict: [set(names) for names in load_model(m, path, s)])
            found = outcome(
                lambda m=second, s=strict: [
                    set(names) for names in for_torch.load_model(m, f"{tmp_path}/t.daxfs!/t.safetensors", s)
                ]
            )
            assert found == expected
            if not strict:
                continue
            for key, value in first.state_dict().items():
                assert expected[0] == "RuntimeError" or torch.equal(value, second.state_dict()[key])


def empty_slice(file: Path, name: str) -> None:
    expected, found = both(file, name, "np")
    assert outcome(lambda: expected.get_slice("empty")[:])[0] == "SafetensorError"
    assert found.get_slice("empty")[:].shape == (0, 4)


def end_before_start(file: Path, name: str) -> None:
    expected, found = both(file, name, "np")
    assert outcome(lambda: expected.get_slice("z")[5:2])[0] == "SystemError"
    assert found.get_slice("z")[5:2].shape == (0, 5)


def small_floats(file: Path, name: str) -> None:
    write_safetensors(file.with_name("f8.safetensors"), {"t": Spec.filled("F8_E8M0", (3, 8))})
    daxfs.pack(file.with_name("f8.safetensors"), file.with_name("f8.daxfs"))
    expected, found = both(file.with_name("f8.safetensors"), str(file.with_name("f8.daxfs")), "np")
    assert outcome(lambda: expected.get_tensor("t"))[0] == "AttributeError"
    assert found.get_tensor("t").dtype.name == "float8_e8m0fnu"


def numpy_parts(file: Path, name: str) -> None:
    expected, found = both(file, name, "np")
    assert expected.get_slice("z")[:, 1:3].flags.c_contiguous
    part = found.get_slice("z")[:, 1:3]
    assert not part.flags.c_contiguous
    assert np.shares_memory(part, found.get_slice("z")[:, 1:3])


def empty_metadata(file: Path, name: str) -> None:
    write_safetensors(file.with_name("m.safetensors"), {"t": Spec.filled("U8", (1,))}, {})
    daxfs.pack(file.with_name("m.safetensors"), file.with_name("m.daxfs"))
    expected, found = both(file.with_name("m.safetensors"), str(file.with_name("m.daxfs")), "np")
    assert (expected.metadata(), found.metadata()) == ({}, None)


def other_frameworks(file: Path, name: str) -> None:
    assert theirs.safe_open(file, "tf").keys()
    assert theirs.safe_open(file, "mlx").keys()
    for framework in ("tf", "tensorflow", "mlx"):
        with pytest.raises(theirs.SafetensorError, match=f"framework {framework} does not take tensors of images"):
            ours.safe_open(name, framework)


def whole_images(file: Path, name: str) -> None:
    assert outcome(lambda: theirs.safe_open(file.parent, "np"))[0] == "OSError"
    assert ours.safe_open(name.partition("!")[0], "np").keys() == sorted(TENSORS)


# By the first column of the table in docs/ml.md.
DIFFERENCES: dict[str, Callable[[Path, str], None]] = {
    "`s[:]` of an empty tensor, numpy and JAX": empty_slice,
    "`s[5:2]`, numpy and JAX": end_before_start,
    "8-bit floats, fp4 and fp6, numpy": small_floats,
    "`s[:, 1:3]`, numpy": numpy_parts,
    "`metadata()` of an empty table": empty_metadata,
    "TensorFlow, MLX, Paddle": other_frameworks,
    "an image, a directory of it, a descriptor": whole_images,
}


def test_differences_are_those_of_the_table(file: Path, name: str, tmp_path: Path) -> None:
    own = tmp_path / file.name
    own.write_bytes(file.read_bytes())
    text = (ROOT / "docs/ml.md").read_text()
    table = text.partition("| call | safetensors | daxfs |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()]
    assert rows == list(DIFFERENCES)
    for check in DIFFERENCES.values():
        check(own, name)


def without_safetensors(code: str, *words: str) -> str:
    program = 'import sys\nsys.modules["safetensors"] = None\n' + textwrap.dedent(code)
    command = [sys.executable, "-W", "error", "-c", program, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_images_need_neither_safetensors_nor_other_frameworks(name: str, file: Path) -> None:
    out = without_safetensors(
        """
        from daxfs.safetensors import SafetensorError, safe_open
        with safe_open(sys.argv[1], "np") as f:
            print(f.keys(), f.get_slice("z")[1:3, 0].tolist())
        try:
            safe_open(sys.argv[1], "np").get_tensor("nothing")
        except SafetensorError as error:
            print(error)
        try:
            safe_open(sys.argv[1], "tf")
        except SafetensorError as error:
            print(error)
        try:
            safe_open(sys.argv[2], "np")
        except ImportError as error:
            print(error)
        print([name for name in ("torch", "jax", "transformers") if name in sys.modules])
        """,
        name,
        str(file),
    )
    values = np.frombuffer(TENSORS["z"].data, "<f4").reshape(10, 5)[1:3, 0].tolist()
    assert out.splitlines() == [
        f"{sorted(TENSORS)} {values}",
        "File does not contain tensor nothing",
        "framework tf does not take tensors of images: take them as numpy's",
        "ordinary files need the safetensors package (pip install safetensors); images do not",
        "[]",
    ]


@pytest.fixture
def held(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The file in an image of a holder."""
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    holder = subprocess.Popen([scripts / "daxfs", "serve", f"held={file.parent}"], stderr=subprocess.DEVNULL)
    try:
        subprocess.run([scripts / "daxfs", "health", "--wait", "60"], check=True, stdout=subprocess.DEVNULL)
        yield "daxfs://held"
    finally:
        subprocess.run([scripts / "daxfs", "stop"], check=True, stdout=subprocess.DEVNULL)
        holder.wait(60)


def test_images_of_a_holder(held: str, file: Path) -> None:
    from safetensors.torch import load_file as expected

    from daxfs.safetensors.torch import load_file, save_file

    for name in (f"{held}!/model.safetensors", held, Path(f"{held}!/model.safetensors")):
        found = load_file(name)
        for key, value in expected(file).items():
            assert outcome(lambda v=found[key]: v) == outcome(lambda v=value: v)
    with pytest.raises(OSError, match="Read-only"):
        save_file({}, f"{held}!/x.safetensors")


def test_images_of_a_holder_by_its_socket(file: Path) -> None:
    from daxfs.safetensors.numpy import load_file, save_file

    with daxfs.serve(m=file.parent) as holder:
        address = holder.address("m")
        for name in (address, f"{address}!/model.safetensors", Path(f"{address}!/model.safetensors")):
            assert load_file(name).keys() == TENSORS.keys()
        with pytest.raises(OSError, match="Read-only"):
            save_file({}, f"{address}!/x.safetensors")
