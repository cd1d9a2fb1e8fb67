"""daxfs.install() and the libraries on top of transformers: diffusers and sentence-transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import daxfs

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_install import run  # noqa: E402

# The parameters that are views of an image, and all of them.
VIEWS = """
    def views(model):
        spans = [line.split()[0].split("-") for line in open("/proc/self/maps") if ".daxfs" in line]
        spans = [[int(end, 16) for end in span] for span in spans]
        pointers = [p.data_ptr() for p in model.parameters()]
        return sum(any(a <= p < b for a, b in spans) for p in pointers), len(pointers)
"""

DIFFUSERS = (
    """
    import sys
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
"""
    + VIEWS
    + """
    for model in (
        UNet2DModel.from_pretrained(sys.argv[1], subfolder="unet"),
        UNet2DModel.from_pretrained(sys.argv[1] + "!/unet"),
        DDPMPipeline.from_pretrained(sys.argv[1]).unet,
    ):
        found, count = views(model)
        assert found == count > 20, (found, count)
        with torch.no_grad():
            print(model(torch.ones(1, 3, 8, 8), 1).sample.sum().item())
    print(DDPMScheduler.from_pretrained(sys.argv[1], subfolder="scheduler").config.num_train_timesteps)
"""
)


def test_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
    model = diffusers.UNet2DModel(**kinds, **sizes).eval()
    diffusers.DDPMPipeline(model, diffusers.DDPMScheduler(num_train_timesteps=77)).save_pretrained(tmp_path / "unet")
    daxfs.pack(tmp_path / "unet", tmp_path / "net.daxfs")
    with torch.no_grad():
        wanted = model(torch.ones(1, 3, 8, 8), 1).sample.sum().item()
    done = run(tmp_path, "-m", "daxfs.run", "SCRIPT", "net.daxfs", code=DIFFUSERS)
    assert done.returncode == 0, done.stderr
    *sums, steps = done.stdout.split()
    assert [float(value) for value in sums] == pytest.approx([wanted] * 3, rel=1e-4)
    assert steps == "77"
    assert f"served in place from {tmp_path}/net.daxfs" in done.stderr


SENTENCES = (
    """
    import sys
    from sentence_transformers import SentenceTransformer
"""
    + VIEWS
    + """
    model = SentenceTransformer(sys.argv[1], device="cpu")
    named = SentenceTransformer(model_name_or_path=sys.argv[1], device="cpu")
    found, count = views(model[0])
    assert found == count > 20, (found, count)
    assert views(model) == views(named)
    for own in (model, named):
        print(own.encode(["hello world"]).tolist())
"""
)

MAKE = """
    import sys
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    config = BertConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    BertModel(config).save_pretrained("bert")
    with open("vocab.txt", "w") as file:
        file.write("\\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "!"]))
    BertTokenizerFast("vocab.txt").save_pretrained("bert")
    model = SentenceTransformer(modules=[Transformer("bert"), Pooling(16), Dense(16, 4)], device="cpu")
    model.save("model")
    print(model.encode(["hello world"]).tolist())
"""


def test_sentence_transformers(tmp_path: Path) -> None:
    # Not imported here: it imports much, with warnings.
    if subprocess.run([sys.executable, "-c", "import sentence_transformers"], check=False).returncode:
        pytest.skip("no sentence_transformers")
    made = run(tmp_path, "SCRIPT", code=MAKE)
    assert made.returncode == 0, made.stderr
    daxfs.pack(tmp_path / "model", tmp_path / "st.daxfs")
    done = run(tmp_path, "-m", "daxfs.run", "SCRIPT", "st.daxfs", code=SENTENCES)
    assert done.returncode == 0, done.stderr
    assert done.stdout == made.stdout * 2
    assert f"2 files of weights, 0.1 MB, served in place from {tmp_path}/st.daxfs" in done.stderr


def test_versions_on_top_are_refused_when_they_are_imported(tmp_path: Path) -> None:
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers/__init__.py").touch()
    (tmp_path / "diffusers/configuration_utils.py").write_text("class ConfigMixin: pass\n")
    (tmp_path / "diffusers-0.20.0.dist-info").mkdir()
    (tmp_path / "diffusers-0.20.0.dist-info/METADATA").write_text("Name: diffusers\nVersion: 0.20.0\n")
    code = """
        import daxfs
        daxfs.install()
        import diffusers
        try:
            import diffusers.configuration_utils
        except RuntimeError as error:
            print(error)
    """
    done = run(tmp_path, "SCRIPT", code=code, PYTHONPATH=f"{tmp_path}:" + ":".join(sys.path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("daxfs.install() knows diffusers from 0.42, below 1.0, and 0.20.0 is installed")
