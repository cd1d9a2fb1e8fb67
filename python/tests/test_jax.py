"""JAX: what a freshly packed model becomes, and the warning where a tensor cannot be viewed."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import daxfs

from support import Spec, write_safetensors

pytest.importorskip("jax")

PARTS = {"input_layernorm": (48,), "mlp.down_proj": (48, 20), "self_attn.q_proj": (48, 48)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as people have them: names of layers, a scalar in between, and a header of an odd length."""
    folder = tmp_path_factory.mktemp("model")
    tensors = {
        f"model.layers.{layer}.{part}.weight": Spec.filled("BF16", shape, layer)
        for layer in range(16)
        for part, shape in PARTS.items()
    }
    tensors["model.layers.7.position"] = Spec.filled("I32", ())
    tensors["model.norm.scale"] = Spec.filled("F8_E4M3", (3,))
    tensors["lm_head.weight"] = Spec.filled("F32", (31, 7))
    path = folder / "model.safetensors"
    write_safetensors(path, dict(sorted(tensors.items())), {"format": "pt"}, pad=1)
    if path.read_bytes()[0] % 2 == 0:
        write_safetensors(path, dict(sorted(tensors.items())), {"format": "pt!"}, pad=1)
    assert path.read_bytes()[0] % 2 == 1
    return folder


def run(folder: Path, image: Path, options: dict[str, object], code: str) -> list[str]:
    """Pack the folder, and run code on `tensors` in a process of its own, whose one warning is not given yet."""
    daxfs.pack(folder, image, **options)  # type: ignore[arg-type, call-overload, unused-ignore]
    head = """
        import sys, warnings
        import jax, jax.dlpack, jax.numpy as jnp, numpy as np
        import daxfs
        tensors = daxfs.open(sys.argv[1]).tensors()
        def is_view(array, tensor):
            return array.unsafe_buffer_pointer() == np.frombuffer(tensor, np.uint8).ctypes.data
    """
    script = textwrap.dedent(head) + textwrap.dedent(code)
    command = [sys.executable, "-W", "always", "-c", script, str(image)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


ALL = """
    import torch
    copies = {"numpy": 0, "from_dlpack": 0, "asarray": 0, "jax": 0, "torch": 0}
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        for tensor in tensors.values():
            place = np.frombuffer(tensor, np.uint8).ctypes.data
            copies["numpy"] += np.asarray(tensor).ctypes.data != place
            copies["from_dlpack"] += not is_view(jax.dlpack.from_dlpack(tensor), tensor)
            copies["asarray"] += not is_view(jnp.asarray(tensor), tensor)
            copies["jax"] += not is_view(tensor.jax(), tensor)
            copies["torch"] += torch.from_dlpack(tensor).data_ptr() != place
    import json
    warned = [str(w.message) for w in given if w.category is daxfs.CopyWarning]
    print(json.dumps([len(tensors), copies, warned]))
"""


def test_a_model_is_taken_without_a_copy(model: Path, tmp_path: Path) -> None:
    [line] = run(model, tmp_path / "aligned.daxfs", {}, ALL)
    count, copies, warned = json.loads(line)
    assert count == 51
    assert copies == {"numpy": 0, "from_dlpack": 0, "asarray": 0, "jax": 0, "torch": 0}
    assert warned == []


def test_an_exact_one_is_copied_with_one_warning(model: Path, tmp_path: Path) -> None:
    [line] = run(model, tmp_path / "exact.daxfs", {"exact": True}, ALL)
    count, copies, warned = json.loads(line)
    assert copies["numpy"] == copies["torch"] == 0
    assert 0 < copies["from_dlpack"] == copies["asarray"] == copies["jax"] <= count
    assert len(warned) == 1
    assert "'lm_head.weight'" in warned[0]
    assert "'model.safetensors'" in warned[0]
    assert "its alignment is 1," in warned[0]
    assert "--exact" in warned[0]


@pytest.mark.parametrize(
    "use", ["jax.dlpack.from_dlpack(tensor)", "jnp.asarray(tensor)", "tensor.jax()", "1 + jnp.ones(()) * tensor"]
)
def test_the_warning_is_of_the_line_that_asks(model: Path, tmp_path: Path, use: str) -> None:
    code = f"""
        tensor = tensors["lm_head.weight"]
        np.from_dlpack(tensor), tensor.__dlpack__(), np.asarray(tensor)  # others do not copy
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            {use}
        [warning] = [warning for warning in given if warning.category is daxfs.CopyWarning]
        print(warning.filename)
        with warnings.catch_warnings():
            warnings.simplefilter("error", daxfs.CopyWarning)
            {use}  # the second time nothing is said
    """
    assert run(model, tmp_path / "exact.daxfs", {"exact": True}, code) == ["<string>"]


def test_a_copy_that_was_asked_for_is_not_warned_of(model: Path, tmp_path: Path) -> None:
    code = """
        tensor = tensors["lm_head.weight"]
        with warnings.catch_warnings():
            warnings.simplefilter("error", daxfs.CopyWarning)
            copies = [jax.dlpack.from_dlpack(tensor, copy=True), jnp.from_dlpack(tensor, copy=True)]
            copies += [jnp.array(tensor), jnp.array(tensor, copy=True), jnp.asarray(tensor, copy=True)]
            print(all(bool((copy == tensor.numpy()).all()) for copy in copies))
            try:
                jax.dlpack.from_dlpack(tensor, copy=False)
            except Exception as error:
                print(type(error).__name__)
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            jnp.array(tensor, copy=False)  # may copy
        print([warning.category.__name__ for warning in given])
    """
    lines = run(model, tmp_path / "exact.daxfs", {"exact": True}, code)
    assert lines[0] == "True"
    assert lines[1] != "CopyWarning"
    assert lines[2:] == ["['CopyWarning']"]


def test_a_warning_that_is_an_error_stays_one(model: Path, tmp_path: Path) -> None:
    code = """
        warnings.simplefilter("error", daxfs.CopyWarning)
        for _ in range(2):
            try:
                jnp.asarray(tensors["lm_head.weight"])
            except daxfs.CopyWarning as error:
                print(type(error).__name__)
    """
    assert run(model, tmp_path / "exact.daxfs", {"exact": True}, code) == ["CopyWarning"] * 2


def test_a_copy_that_alignment_would_not_save_is_not_warned_of(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    kinds = ["F64", "I64", "U64", "F4", "F6_E2M3", "F32"]
    path, tensors = folder / "model.safetensors", {kind: Spec.filled(kind, (4, 8)) for kind in kinds}
    write_safetensors(path, tensors, {"format": "pt"}, pad=1)
    if path.read_bytes()[0] % 2 == 0:
        write_safetensors(path, tensors, {"format": "pt!"}, pad=1)
    code = """
        def warned(use):
            with warnings.catch_warnings(record=True) as given:
                warnings.simplefilter("always")
                try:
                    use()
                except Exception as error:
                    assert not isinstance(error, daxfs.CopyWarning)
            return [warning.category.__name__ for warning in given if warning.category is daxfs.CopyWarning]
        print(max(tensor.alignment for tensor in tensors.values()) < 64)
        for name in "F64", "I64", "U64", "F4", "F6_E2M3":
            for use in jnp.asarray, jax.dlpack.from_dlpack:
                assert warned(lambda: use(tensors[name])) == [], name
        jax.config.update("jax_enable_x64", True)
        print(warned(lambda: jnp.asarray(tensors["F64"])))
    """
    assert run(folder, tmp_path / "exact.daxfs", {"exact": True}, code) == ["True", "['CopyWarning']"]


def test_what_jax_has_no_type_for(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_safetensors(
        folder / "model.safetensors", {"f4": Spec.filled("F4", (4, 8)), "f6": Spec.filled("F6_E2M3", (4,))}
    )
    code = """
        for tensor in tensors.values():
            array = jnp.asarray(tensor)
            print(array.dtype, array.shape, np.asarray(array).tobytes() == tensor.raw.tobytes())
    """
    assert run(folder, tmp_path / "packed.daxfs", {}, code) == ["uint8 (4, 4) True", "uint8 (3,) True"]


def test_arrays_that_may_be_spread_over_devices_are_not_bound_to_one(model: Path, tmp_path: Path) -> None:
    code = """
        jax.config.update("jax_num_cpu_devices", 2)
        array = jnp.asarray(tensors["lm_head.weight"])
        print(len(jax.devices()), array.committed, is_view(tensors["lm_head.weight"].jax(), tensors["lm_head.weight"]))
    """
    assert run(model, tmp_path / "aligned.daxfs", {}, code) == ["2 False True"]


def test_operators_take_tensors(model: Path, tmp_path: Path) -> None:
    code = """
        tensor = tensors["lm_head.weight"]
        same = jnp.ones(()) * tensor, jnp.ones(()) * np.asarray(tensor)
        print(np.asarray(same[0]).tobytes() == np.asarray(same[1]).tobytes())
        print(jnp.stack([tensor, tensor]).shape)
    """
    assert run(model, tmp_path / "aligned.daxfs", {}, code) == ["True", "(2, 31, 7)"]


def test_functions_of_jax_refuse_tensors(model: Path, tmp_path: Path) -> None:
    """The documentation says which do: should JAX take them one day, it has to change."""
    code = """
        tensor = tensors["lm_head.weight"]
        for use in jnp.sin, jnp.sum, jax.jit(lambda x: x), lambda x: jnp.dot(x, tensor.numpy().T):
            try:
                use(tensor)
                print("taken")
            except ValueError as error:
                print("__jax_array__" in str(error))
            use(jnp.asarray(tensor))
    """
    assert run(model, tmp_path / "aligned.daxfs", {}, code) == ["True"] * 4


def test_arrays_do_not_change_with_private_memory(model: Path, tmp_path: Path) -> None:
    code = """
        tensor = daxfs.open(sys.argv[1], private=True).tensors()["lm_head.weight"]
        written, array = np.asarray(tensor), jnp.asarray(tensor)
        before = np.array(array)
        written[0, 0] = 99
        print(is_view(array, tensor), before[0, 0] != 99, np.array_equal(array, before))
        print(is_view(tensor.jax(), tensor))
    """
    assert run(model, tmp_path / "aligned.daxfs", {}, code) == ["False True True", "True"]


def test_without_jax(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daxfs.pack(model, tmp_path / "aligned.daxfs")
    monkeypatch.setitem(sys.modules, "jax.dlpack", None)
    with daxfs.open(tmp_path / "aligned.daxfs") as image, pytest.raises(ImportError, match="pip install jax"):
        image.tensors()["lm_head.weight"].jax()


def test_the_source_is_what_it_was(model: Path, tmp_path: Path) -> None:
    source = model / "model.safetensors"
    with daxfs.pack(model, hash=True) as image:
        original = image["model.safetensors"].original()
        assert original.differs
        assert original.read_bytes() == source.read_bytes()
        assert min(tensor.alignment for tensor in image.tensors().values()) >= 256
        assert np.asarray(image.tensors()["model.layers.7.position"]).shape == ()
