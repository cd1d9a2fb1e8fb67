"""daxfs.install() and daxfs.run: programs that know nothing of images get their models from them."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import daxfs
from daxfs import _install, _locate

from support import Spec, write_safetensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
theirs = pytest.importorskip("safetensors")

from test_transformers import IDS, MAKE, folders, is_view, make_tokenizer  # noqa: E402, F401 - a fixture


@pytest.fixture(scope="module")
def packed(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A sharded model with its tokenizer."""
    image = tmp_path_factory.mktemp("packed") / "llama.daxfs"
    daxfs.pack(folders["llama"], image)
    return image


PROGRAM = """
    import sys
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = sys.argv[1]
    model = AutoModelForCausalLM.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    ids = tokenizer("hello world !", return_tensors="pt").input_ids
    print(type(model).__name__, ids.tolist(), model.generate(ids, max_new_tokens=3, do_sample=False).tolist())
    shown = {line.rsplit("/", 1)[-1].strip() for line in open("/proc/self/maps")}
    pointers = [p.data_ptr() for p in model.parameters()]
    spans = [line.split() for line in open("/proc/self/maps") if sys.argv[2] in line]
    spans = [[int(end, 16) for end in words[0].split("-")] for words in spans]
    print(sum(any(a <= p < b for a, b in spans) for p in pointers), len(pointers))
"""


def run(tmp_path: Path, *words: str, code: str = PROGRAM, **variables: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(code))
    command = [sys.executable, *(str(script) if word == "SCRIPT" else word for word in words)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)


def test_a_program_gets_its_model_from_an_image(packed: Path, folders: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    expected = run(tmp_path, "SCRIPT", str(folders["llama"]), "model-0")
    assert expected.returncode == 0, expected.stderr
    done = run(tmp_path, "-m", "daxfs.run", "SCRIPT", str(packed), "llama.daxfs")
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected.stdout
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(rf"daxfs: 2 files of weights, \d\.\d MB, served in place from {re.escape(str(packed))}", last)
    # Without it the same program takes the name for one of a hub.
    assert run(tmp_path, "SCRIPT", str(packed), "x").returncode == 1


def test_modules_arguments_and_children(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import sys\nprint(sys.argv[1:], __name__)\n")
    done = run(tmp_path, "-m", "daxfs.run", "-m", "own", "--model", "x")
    assert done.stdout == "['--model', 'x'] __main__\n"
    assert done.stderr == "daxfs: no image was asked for\n"
    child = """
        import subprocess, sys
        code = "import sys; from safetensors import safe_open; print(len(safe_open(sys.argv[1], 'np').keys()) > 3)"
        subprocess.run([sys.executable, "-c", code, sys.argv[1]], check=True)
    """
    done = run(tmp_path, "-m", "daxfs.run", "SCRIPT", str(packed), code=child)
    assert done.stdout == "True\n", done.stderr
    assert "sitecustomize" not in done.stderr
    done = run(tmp_path, "-m", "daxfs.run", "--nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m daxfs.run")
    assert run(tmp_path, "-m", "daxfs.run", "--help").stdout.startswith("usage: python -m daxfs.run")


def test_children_say_what_they_served_and_nothing_else(packed: Path, tmp_path: Path) -> None:
    child = """
        import subprocess, sys
        served = "import sys; from safetensors import safe_open; safe_open(sys.argv[1], 'np')"
        for code in ("import safetensors", served):
            subprocess.run([sys.executable, "-c", code, sys.argv[1]], check=True)
    """
    done = run(tmp_path, "-m", "daxfs.run", "SCRIPT", str(packed), code=child)
    served, own = done.stderr.splitlines()
    assert served.startswith("daxfs: 1 file of weights")
    assert own == "daxfs: no image was asked for"


def test_interpreters_without_daxfs_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("print('own')\n")
    # Outside of the environment that has it; -E would leave out the variables.
    child = "import subprocess, sys; subprocess.run([sys._base_executable, '-s', '-c', ''], check=True)"
    done = run(tmp_path, "-m", "daxfs.run", "SCRIPT", code=child, PYTHONPATH=str(tmp_path / "site"))
    assert done.stdout == "own\nown\n"
    assert done.stderr == "daxfs: no image was asked for\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="-P is of Python 3.11")
def test_safe_paths_stay_safe(tmp_path: Path) -> None:
    code = "import sys; print(sys.path[0])"
    assert run(tmp_path, "-m", "daxfs.run", "SCRIPT", code=code).stdout == f"{tmp_path}\n"
    assert run(tmp_path, "-P", "-m", "daxfs.run", "SCRIPT", code=code).stdout != f"{tmp_path}\n"


def test_a_machines_own_sitecustomize_runs(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("print('own')\n")
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
    done = run(tmp_path, "-m", "daxfs.run", "SCRIPT", code=child, PYTHONPATH=str(tmp_path / "site"))
    assert done.stdout == "own\nown\n", done.stderr


@pytest.fixture
def installed() -> Any:
    daxfs.install()
    yield _install._state
    daxfs.uninstall()


def test_entry_points(installed: Any, packed: Path, folders: dict[str, Path]) -> None:  # noqa: F811
    name = str(packed)
    model = transformers.LlamaForCausalLM.from_pretrained(name)
    assert all(is_view(parameter, packed) for parameter in model.parameters())
    assert torch.equal(model(IDS).logits, transformers.LlamaForCausalLM.from_pretrained(folders["llama"])(IDS).logits)
    assert transformers.AutoConfig.from_pretrained(name).hidden_size == 32
    assert transformers.LlamaConfig.from_pretrained(Path(name)).hidden_size == 32
    assert transformers.GenerationConfig.from_pretrained(name).max_new_tokens == 5
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path=name)
    assert tokenizer("world")["input_ids"] == [2]
    made = transformers.pipeline("text-generation", model=name, device="cpu")("hello", max_new_tokens=2)
    assert "generated_text" in made[0]
    assert len(installed.files) == 2


def test_downloads(installed: Any, packed: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    name = str(packed)
    top = Path(huggingface_hub.snapshot_download(name))
    assert sorted(path.name for path in top.iterdir() if path.suffix == ".json") == sorted(
        path for path in daxfs.open(packed) if path.endswith(".json")
    )
    assert (
        Path(huggingface_hub.hf_hub_download(name, "config.json")).read_bytes()
        == daxfs.open(packed)["config.json"].read_bytes()
    )
    with pytest.raises(FileNotFoundError, match=re.escape(f"No such file or directory: {name}!/sub/nothing")):
        huggingface_hub.hf_hub_download(repo_id=name, filename="nothing", subfolder="sub")
    shard = huggingface_hub.hf_hub_download(name, "model-00001-of-00002.safetensors")
    with theirs.safe_open(shard, "pt") as file:
        assert is_view(file.get_tensor(file.keys()[0]), packed)
    daxfs.uninstall()
    # What stands for the weights is nothing that could be taken for them.
    with pytest.raises(theirs.SafetensorError, match="invalid|incomplete|not fully covered"):
        theirs.safe_open(shard, "pt")


def test_subfolders_and_what_is_not_there(installed: Any, folders: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/bert").symlink_to(folders["bert"])
    daxfs.pack(tmp_path / "tree", tmp_path / "m.daxfs", links="follow")
    model = transformers.AutoModel.from_pretrained(f"{tmp_path}/m.daxfs!/bert")
    assert is_view(model.embeddings.word_embeddings.weight, tmp_path / "m.daxfs")
    model = transformers.AutoModel.from_pretrained(f"{tmp_path}/m.daxfs", subfolder="bert")
    assert is_view(model.embeddings.word_embeddings.weight, tmp_path / "m.daxfs")
    with pytest.raises(FileNotFoundError, match="No such directory"):
        transformers.AutoModel.from_pretrained(f"{tmp_path}/m.daxfs!/nothing")


def test_other_weights_are_copied_where_there_are_no_safetensors(installed: Any, tmp_path: Path) -> None:
    from daxfs import _stand_in

    for name in ("a/model.safetensors", "a/pytorch_model.bin", "b/pytorch_model.bin"):
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_bytes(b"weights")
    write_safetensors(tmp_path / "m/a/model.safetensors", {"w": Spec.filled("U8", (3,))})
    daxfs.pack(tmp_path / "m", tmp_path / "m.daxfs")
    for name, there in (("a", False), ("b", True)):
        location = _locate.locate(f"{tmp_path}/m.daxfs!/{name}")
        assert location is not None
        assert (Path(_stand_in.folder(location)) / "pytorch_model.bin").exists() == there


def test_what_stands_for_an_image_knows_it_by_any_name(installed: Any, tmp_path: Path) -> None:
    from daxfs import _stand_in

    for folder in ("a!", 'b "c"\n'):
        top = tmp_path / folder
        (top / "m").mkdir(parents=True)
        write_safetensors(top / "m/model.safetensors", {"w": Spec.filled("U8", (3,))})
        daxfs.pack(top / "m", top / "m.daxfs")
        location = _locate.locate(f"{top}/m.daxfs")
        assert location is not None
        with theirs.safe_open(f"{_stand_in.folder(location)}/model.safetensors", "np") as file:
            assert file.keys() == ["w"]
    assert str(tmp_path / "a!/m.daxfs") in installed.report()


def test_ordinary_names_go_to_the_originals(installed: Any, folders: dict[str, Path]) -> None:  # noqa: F811
    model = transformers.AutoModelForMaskedLM.from_pretrained(folders["bert"])
    assert is_view(model.bert.embeddings.word_embeddings.weight, folders["bert"])
    with pytest.raises(FileNotFoundError, match="No such file or directory: notafile"):
        theirs.safe_open("notafile", "pt")
    assert not installed.files


def test_uninstall_restores() -> None:
    import safetensors.torch
    import transformers.modeling_utils

    def seen() -> list[Any]:
        return [
            theirs.safe_open,
            safetensors.torch.safe_open,
            transformers.modeling_utils.safe_open,
            vars(transformers.PreTrainedModel)["from_pretrained"],
            transformers.pipeline,
        ]

    before = seen()
    daxfs.install()
    daxfs.install()
    changed = seen()
    assert all(a is not b for a, b in zip(before, changed))
    assert changed[0] is changed[1] is changed[2]
    daxfs.uninstall()
    daxfs.uninstall()
    assert all(a is b for a, b in zip(before, seen()))


@pytest.mark.parametrize(("package", "version"), [("safetensors", "0.9.0"), ("transformers", "4.57.1")])
def test_versions_that_are_not_known_are_refused(package: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == package else real(name))
    before = theirs.safe_open
    with pytest.raises(RuntimeError, match=rf"knows {package} from .* and {version} is installed"):
        daxfs.install()
    assert theirs.safe_open is before


def test_what_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.modeling_utils

    before = theirs.safe_open
    monkeypatch.delattr(transformers.modeling_utils, "PreTrainedModel")
    with pytest.raises(RuntimeError, match=r"transformers.modeling_utils has no PreTrainedModel.from_pretrained"):
        daxfs.install()
    assert theirs.safe_open is before
