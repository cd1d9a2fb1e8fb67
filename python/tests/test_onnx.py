"""daxfs.onnx: sessions whose external data lies in an image."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import daxfs

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - after onnx

from daxfs import onnx as for_onnx  # noqa: E402

N = 64


def external(name: str, kind: int, shape: tuple[int, ...], **entries: Any) -> Any:
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def write(folder: Path, model: Any, data: bytes | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    if data is not None:
        (folder / "model.onnx_data").write_bytes(data)


def multiply(n: int = N, weight: Any = None, kind: int = TensorProto.FLOAT) -> Any:
    """One MatMul whose weight is all of the data."""
    if weight is None:
        weight = external("w", kind, (n, n), location="model.onnx_data")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [value("x", [None, n])], [value("y", [None, n])], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def random(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.fixture
def rich(tmp_path: Path) -> Path:
    """Has a weight, one of bfloat16, one of 4 bits, a shape, and tensors in a branch and in an attribute."""
    parts: list[tuple[Any, bytes]] = []
    at = 0

    def stored(name: str, kind: int, shape: tuple[int, ...], data: bytes) -> Any:
        nonlocal at
        tensor = external(name, kind, shape, location="model.onnx_data", offset=at, length=len(data))
        parts.append((tensor, data))
        at += len(data)
        return tensor

    float32, bf16, int4, int64 = TensorProto.FLOAT, TensorProto.BFLOAT16, TensorProto.INT4, TensorProto.INT64
    weight = stored("w", float32, (N, N), random(N, N).tobytes())
    half = stored("h", bf16, (N,), (random(N).view("<u4") >> 16).astype("<u2").tobytes())
    shape = stored("s", int64, (2,), np.array([1, -1], "<i8").tobytes())
    four = stored("f", int4, (2, N), bytes(range(N)))
    branch = stored("b", float32, (N,), random(N).tobytes())
    constant = stored("k", float32, (N,), random(N).tobytes())
    then = helper.make_graph([helper.make_node("Add", ["x", "b"], ["t"])], "then", [], [value("t", [1, N])], [branch])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["e"])], "else", [], [value("e", [1, N])])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Cast", ["h"], ["half"], to=float32),
        helper.make_node("Cast", ["f"], ["four"], to=float32),
        helper.make_node("If", ["c"], ["i"], then_branch=then, else_branch=other),
        helper.make_node("Constant", [], ["k"], value=constant),
        helper.make_node("Add", ["m", "k"], ["a"]),
        helper.make_node("Reshape", ["a", "s"], ["r"]),
    ]
    inputs = [value("x", [1, N]), value("c", [], TensorProto.BOOL)]
    outputs = [value("r", [1, N]), value("half", [N]), value("four", [2, N]), value("i", [1, N])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight, half, shape, four])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    write(tmp_path / "rich/sub", model, b"".join(data for _, data in parts))
    return tmp_path / "rich"


def test_values_are_those_of_the_directory(rich: Path, tmp_path: Path) -> None:
    daxfs.pack(rich, tmp_path / "r.daxfs")
    # onnxruntime refuses shapes in other files; onnx puts all of them into the model.
    whole = onnx.load(rich / "sub/model.onnx").SerializeToString()
    expected = onnxruntime.InferenceSession(whole, providers=["CPUExecutionProvider"])
    inputs = {"x": random(1, N), "c": np.array(True)}
    sources: list[tuple[Any, str]] = [
        (tmp_path / "r.daxfs", "sub/model.onnx"),
        (f"{tmp_path}/r.daxfs!/sub/model.onnx", ""),
        (f"{tmp_path}/r.daxfs!/sub", ""),
        (daxfs.open(tmp_path / "r.daxfs"), "sub"),
    ]
    wanted = expected.run(None, inputs)
    for source, path in sources:
        for got, want in zip(for_onnx.session(source, path).run(None, inputs), wanted):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_plain_model_is_as_from_its_file(tmp_path: Path) -> None:
    write(tmp_path / "m", multiply(), random(N, N).tobytes())
    expected = onnxruntime.InferenceSession(str(tmp_path / "m/model.onnx"), providers=["CPUExecutionProvider"])
    x = {"x": random(3, N)}
    np.testing.assert_array_equal(
        for_onnx.session(daxfs.pack(tmp_path / "m")).run(None, x)[0], expected.run(None, x)[0]
    )


def test_a_session_outlives_the_image_and_its_options(tmp_path: Path) -> None:
    weight = random(N, N)
    write(tmp_path / "m", multiply(), weight.tobytes())
    with daxfs.pack(tmp_path / "m") as image:
        session = for_onnx.session(image)
    del image
    gc.collect()
    binding = session.io_binding()
    x = random(2, N)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight, rtol=1e-4, atol=1e-4)
    del session
    gc.collect()
    assert binding is not None


SCRIPT = """
import sys
import numpy, onnx, onnxruntime, daxfs, daxfs.onnx
def anonymous():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("RssAnon"))
image, prepack, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
if prepack == "optimized":
    options = onnxruntime.SessionOptions()
elif prepack == "none":
    options = None
elif prepack != "default":
    options.add_session_config_entry("session.disable_prepacking", prepack)
before = anonymous()
session = daxfs.onnx.session(image, sess_options=options)
session.run(None, {"x": numpy.ones((1, n), numpy.float32)})
spans = [line.split() for line in open("/proc/self/maps") if image in line]
assert spans and all(span[1] == "r--s" for span in spans), spans
print(anonymous() - before)
"""


@pytest.mark.parametrize(
    ("prepacking", "copies"), [("none", False), ("default", False), ("1", False), ("0", True), ("optimized", True)]
)
def test_private_memory(tmp_path: Path, prepacking: str, copies: bool) -> None:
    """The table of docs/ml.md: a weight is there twice with prepacking or optimizations only."""
    n = 4096
    write(tmp_path / "m", multiply(n), random(n, n).tobytes())
    daxfs.pack(tmp_path / "m", tmp_path / "m.daxfs")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "m.daxfs"), prepacking, str(n)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    size = n * n * 4
    assert (grown > size * 3 // 4) if copies else (grown < size // 4), grown


def test_onnxruntime_has_the_memory_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "m", multiply(), random(N, N).tobytes())
    image = daxfs.pack(tmp_path / "m")
    pointers = []
    made = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type

    def watched(array: Any, kind: int) -> Any:
        value = made(array, kind)
        pointers.append(value.data_ptr())
        assert not array.flags.writeable
        return value

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy_with_onnx_type", watched)
    for_onnx.session(image)
    assert pointers == [np.frombuffer(memoryview(image["model.onnx_data"]), np.uint8).ctypes.data]


def test_what_lies_on_no_multiple_is_copied_with_a_warning(tmp_path: Path) -> None:
    weight = random(N, N)
    tensor = external("w", TensorProto.FLOAT, (N, N), location="model.onnx_data", offset=1)
    write(tmp_path / "m", multiply(weight=tensor), b"\0" + weight.tobytes())
    with pytest.warns(daxfs.CopyWarning, match=r"'w' lies at 1 of model.onnx_data"):
        session = for_onnx.session(daxfs.pack(tmp_path / "m"))
    x = random(1, N)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight, rtol=1e-4, atol=1e-4)


HERE = {"location": "model.onnx_data"}
SIZE = N * N * 4


@pytest.mark.parametrize(
    ("entries", "error", "text"),
    [
        ({"location": "../secret"}, daxfs.FormatError, "'../secret' is no path below"),
        ({"location": "a/../../secret"}, daxfs.FormatError, "is no path below"),
        ({"location": "/etc/passwd"}, daxfs.FormatError, "'/etc/passwd' is no path below"),
        ({"location": ""}, daxfs.FormatError, "'' is no path below"),
        ({}, daxfs.FormatError, "'' is no path below"),
        ({"location": "missing"}, daxfs.NotFoundError, "no 'sub/missing' in the image"),
        ({"location": "folder"}, daxfs.FormatError, "'folder' is a directory"),
        ({**HERE, "offset": 4}, daxfs.FormatError, f"4..{SIZE + 4} is outside sub/model.onnx_data [(]{SIZE} bytes"),
        ({**HERE, "offset": 1 << 64}, daxfs.FormatError, "is outside sub/model.onnx_data"),
        ({**HERE, "offset": -1}, daxfs.FormatError, "offset '-1' is no number"),
        ({**HERE, "offset": "9" * 5000}, daxfs.FormatError, "is no number"),
        ({**HERE, "length": SIZE - 4}, daxfs.FormatError, f"length {SIZE - 4}, and its shape takes {SIZE} bytes"),
        ({**HERE, "length": "1e3"}, daxfs.FormatError, "length '1e3' is no number"),
    ],
)
def test_hostile_external_data(tmp_path: Path, entries: dict[str, Any], error: type[Exception], text: str) -> None:
    write(tmp_path / "m/sub", multiply(weight=external("w", TensorProto.FLOAT, (N, N), **entries)), bytes(SIZE))
    (tmp_path / "m/secret").write_bytes(bytes(SIZE))
    (tmp_path / "m/sub/folder").mkdir()
    with pytest.raises(error, match=text):
        for_onnx.session(daxfs.pack(tmp_path / "m"), "sub/model.onnx")


def test_hostile_tensors(tmp_path: Path) -> None:
    for number, (tensor, text) in enumerate(
        [
            (external("w", TensorProto.FLOAT, (-1, N), **HERE), "is below 0"),
            (external("w", TensorProto.FLOAT, (1 << 62,) * 100, **HERE), "more bytes than any file"),
            (external("w", TensorProto.STRING, (N, N), **HERE), "data type 8"),
            (external("w", 99, (N, N), **HERE), "data type 99"),
        ]
    ):
        write(tmp_path / str(number), multiply(weight=tensor), bytes(SIZE))
        with pytest.raises(daxfs.FormatError, match=text):
            for_onnx.session(daxfs.pack(tmp_path / str(number)))
    twice = external("w", TensorProto.FLOAT, (N, N), **HERE)
    twice.external_data.add(key="location", value="other")
    write(tmp_path / "twice", multiply(weight=twice), bytes(SIZE))
    with pytest.raises(daxfs.FormatError, match="'location' is said twice"):
        for_onnx.session(daxfs.pack(tmp_path / "twice"))
    same = multiply()
    same.graph.initializer.append(same.graph.initializer[0])
    write(tmp_path / "same", same, bytes(SIZE))
    with pytest.raises(daxfs.FormatError, match="two initializers"):
        for_onnx.session(daxfs.pack(tmp_path / "same"))


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/a.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(daxfs.FormatError, match="a.onnx: no model of ONNX"):
        for_onnx.session(daxfs.pack(tmp_path / "m"))
    (tmp_path / "m/b.onnx").write_bytes(b"")
    with pytest.raises(daxfs.NotFoundError, match="has 2 files"):
        for_onnx.session(daxfs.pack(tmp_path / "m"))


def test_a_model_without_external_data(tmp_path: Path) -> None:
    weight = random(N, N)
    write(tmp_path / "m", multiply(weight=numpy_helper.from_array(weight, "w")), None)
    x = random(1, N)
    session = for_onnx.session(daxfs.pack(tmp_path / "m"))
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight, rtol=1e-4, atol=1e-4)


def turned() -> Any:
    """Two transpositions, which onnxruntime takes away by turning the square weight between them."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[1, 0]),
        helper.make_node("Add", ["a", "w"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Transpose", ["c"], ["y"], perm=[1, 0]),
    ]
    weight = external("w", TensorProto.FLOAT, (N, N), location="model.onnx_data")
    graph = helper.make_graph(nodes, "g", [value("x", [N, N])], [value("y", [N, N])], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_optimizations_have_copies(tmp_path: Path) -> None:
    weight, x = random(N, N), np.ones((N, N), np.float32)
    write(tmp_path / "m", turned(), weight.tobytes())
    image = daxfs.pack(tmp_path / "m")
    wanted = np.maximum(x + weight.T, 0)
    np.testing.assert_array_equal(for_onnx.session(image).run(None, {"x": x})[0], wanted)
    with pytest.warns(daxfs.CopyWarning, match="ORT_DISABLE_ALL"):
        session = for_onnx.session(image, sess_options=onnxruntime.SessionOptions())
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], wanted)
