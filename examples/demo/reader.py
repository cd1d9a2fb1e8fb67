"""One reader: a process that gets nothing but a descriptor of an image, and computes with the model in it.

It speaks in lines with the process that started it (see readers.py), so that several readers measure their
memory at the same moments: when all are ready, hold every tensor, and have computed. Ready means that what a
process does once lies behind it: every module is imported, and one array of each dtype has been made. What is
measured afterwards is the image's doing, however large the libraries are.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

import daxfs
import memory
from encoder import Encoder
from tokenizer import WordPiece


def wait(message: str) -> None:
    """Tell the parent how far we are, and wait until it lets us go on."""
    print(message, flush=True)
    if not sys.stdin.readline():
        sys.exit("the parent process is gone")


def prove_views(arrays: Mapping[str, np.ndarray], again: Mapping[str, Any], fd: int) -> dict[str, Any]:
    """Evidence, tensor by tensor, that the arrays are the image's own bytes."""
    mappings = memory.mappings_of(fd)
    in_mapping = [any(m.holds(a.ctypes.data, a.nbytes) for m in mappings) for a in arrays.values()]
    return {
        "tensors": len(arrays),
        "nbytes": sum(a.nbytes for a in arrays.values()),
        "dtypes": sorted({a.dtype.name for a in arrays.values()}),
        "in_mapping": sum(in_mapping),
        "permissions": sorted({m.permissions for m in mappings}),
        "same_memory_twice": sum(np.shares_memory(a, np.asarray(again[name])) for name, a in arrays.items()),
        "own_their_data": sum(a.flags.owndata for a in arrays.values()),
        "writeable": sum(a.flags.writeable for a in arrays.values()),
        "aligned_256": sum(a.ctypes.data % 256 == 0 for a in arrays.values()),
    }


def checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """CRC-32 over all tensors in the order of their names: reads every byte."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name].reshape(-1).view(np.uint8), crc)
    return crc


def warm_up() -> None:
    """Make one array of each dtype, and drop it: libraries that come with a dtype are imported now."""
    with daxfs.open() as image:
        tensors = image.tensors()
        names = {str(tensor.dtype): name for name, tensor in tensors.items()}
        checksum({name: np.asarray(tensors[name]) for name in names.values()})


def measure(fd: int) -> dict[str, dict[str, int]]:
    """The memory of this process now: all of it, and the part that shows the image."""
    image = sum((mapping.usage for mapping in memory.mappings_of(fd)), memory.Usage())
    return {"process": asdict(memory.of_process()), "image": asdict(image)}


def main() -> None:
    """Open, look at every tensor, embed the sentences, report; the image is known only by its descriptor."""
    fd = int(os.environ["DAXFS_IMAGE"].removeprefix("fd:"))
    sentences = json.loads(sys.stdin.readline())
    warm_up()
    wait("ready")
    ready = measure(fd)

    started = time.perf_counter()
    with daxfs.open() as image:  # no argument: the descriptor that $DAXFS_IMAGE names
        tensors = image.tensors()  # one file or a sharded checkpoint: the same mapping of names to tensors
        arrays = {name: np.asarray(tensors[name]) for name in tensors}
        opened = time.perf_counter() - started
        crc = checksum(arrays)
        provenance = image.provenance
        wait("holding")
        holding = measure(fd)

        config = json.loads(image["config.json"].read_bytes())
        limit = json.loads(image["sentence_bert_config.json"].read_bytes())["max_seq_length"]
        tokenizer = WordPiece(image["vocab.txt"].read_bytes().decode(), limit)
    # The image is closed. Its tensors, and the arrays made of them, keep the memory alive.
    token_ids = [tokenizer.encode(sentence) for sentence in sentences]
    started = time.perf_counter()
    embeddings = Encoder(config, tensors).embed(token_ids)
    computed = time.perf_counter() - started

    wait("computed")
    report = {
        "pid": os.getpid(),
        "memory": memory.describe(fd),
        "provenance": provenance,
        "image_size": os.lseek(fd, 0, os.SEEK_END),
        "open_seconds": opened,
        "compute_seconds": computed,
        "crc": crc,
        "views": prove_views(arrays, tensors, fd),
        "usage": {"ready": ready, "holding": holding, "computed": measure(fd)},
        "token_ids": token_ids,
        "embeddings": embeddings.tolist(),
    }
    wait(json.dumps(report))


if __name__ == "__main__":
    main()
