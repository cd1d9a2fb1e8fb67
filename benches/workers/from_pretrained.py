"""A model of transformers, loaded once by a new process: seconds, and the memory that is its own then.

from_pretrained make DIR BYTES     writes a model of about so many bytes
from_pretrained daxfs IMAGE
from_pretrained transformers DIR
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import torch
import transformers


def anonymous() -> int:
    """Bytes of memory of this process alone."""
    return int(re.findall(r"RssAnon:\s*(\d+)", Path("/proc/self/status").read_text())[0]) << 10


def make(folder: str, count: int) -> None:
    """Write a model in bf16."""
    hidden, layers = (2048, 12) if count > 100 << 20 else (128, 2)
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=max(count // layers // hidden // 6 - hidden, hidden),
        num_hidden_layers=layers,
        num_attention_heads=16,
        vocab_size=1024,
    )
    with torch.device("cpu"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)


def main(what: str, place: str) -> None:
    """Load, and print what it took."""
    from daxfs.transformers import from_pretrained  # noqa: PLC0415 - imported on both sides, and not timed

    # The code of the model as well.
    transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM  # noqa: B018 - imported when they are asked for
    before, started = anonymous(), time.perf_counter()
    model = from_pretrained(place) if what == "daxfs" else transformers.AutoModelForCausalLM.from_pretrained(place)
    seconds = time.perf_counter() - started
    size = sum(parameter.nbytes for parameter in model.parameters())
    print(json.dumps({"seconds": seconds, "private": anonymous() - before, "size": size}))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], int(sys.argv[3]))
    else:
        main(*sys.argv[1:])
