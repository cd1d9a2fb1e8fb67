#!/usr/bin/env python3
"""Write the inputs that the fuzzers start from.

    seeds.py DAXFS_PACK CORPUS

DAXFS_PACK is the packer's command; it packs small trees in every format, with and without the tensor index.
Golden images are added where they are found: the project's own, and the set that lies beside the project in
continuous integration. CORPUS gets one folder for each target. Nothing in there is removed.
"""

# The programs started here are the project's own and zstd.
# ruff: noqa: S603, S607

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 192 << 10  # larger images make the fuzzer slow and teach it nothing new
GOLDEN = (ROOT / "tests/golden", ROOT.parent / "shared/golden/images")

PACKINGS = {
    "v8": [],
    "v8-plain": ["--plain"],
    "v8-exact": ["--exact"],
    "v8-dedupe": ["--dedupe"],
    "v8-block16k": ["--block-size", "16384"],
    "v5": ["--format", "5"],
    "v5-plain": ["--format", "5", "--plain"],
}

Header = dict[str, object]

# Headers, and how many bytes of tensor data follow them.
HEADERS: dict[str, tuple[Header, int]] = {
    "empty": ({}, 0),
    "one": ({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}, 24),
    "scalar": ({"s": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}}, 8),
    "no-elements": ({"z": {"dtype": "F16", "shape": [0, 5], "data_offsets": [0, 0]}}, 0),
    "metadata": (
        {"__metadata__": {"format": "pt"}, "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}},
        4,
    ),
    "sub-byte": (
        {
            "f4": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]},
            "f6": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [2, 5]},
            "f8": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [5, 8]},
        },
        8,
    ),
    "filler": (
        {
            "__daxfs_pad_0": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
            "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [3, 11]},
        },
        11,
    ),
}


def safetensors(header: Header, data: int) -> bytes:
    """Return a file with this header and that many bytes of tensor data."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + bytes(range(data))


def write_headers(folder: Path) -> None:
    """Write whole files, and JSON alone behind the length of its data: both forms of the input."""
    for name, (header, data) in HEADERS.items():
        (folder / f"file-{name}").write_bytes(safetensors(header, data))
        (folder / f"json-{name}").write_bytes(struct.pack("<H", data) + json.dumps(header).encode())
    member = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    repeated = b"{" + member + b"," + member + b"}"
    (folder / "json-repeated").write_bytes(struct.pack("<H", 1) + repeated)


def gguf(pairs: list[bytes], tensors: list[tuple[str, int, tuple[int, ...], int]], alignment: int = 32) -> bytes:
    """Return a GGUF file: pairs of key and value, and tensors with number of type, dimensions and bytes of data."""
    file = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs)
    data = b""
    for name, kind, dimensions, size in tensors:
        file += struct.pack("<Q", len(name)) + name.encode()
        file += struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, len(data))
        data += bytes(i % 251 for i in range(size))
        data += bytes(-len(data) % alignment)
    return file + bytes(-len(file) % alignment) + data


def write_gguf(folder: Path) -> None:
    """Write GGUF files with values of every type and tensors of many."""

    def text(data: bytes) -> bytes:
        return struct.pack("<Q", len(data)) + data

    def pair(key: str, kind: int, value: bytes) -> bytes:
        return text(key.encode()) + struct.pack("<I", kind) + value

    numbers = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    values = [pair(f"n{kind}", kind, struct.pack("<" + code, 1)) for kind, code in numbers.items()]
    values += [pair(f"l{kind}", 9, struct.pack(f"<IQ2{code}", kind, 2, 1, 0)) for kind, code in numbers.items()]
    values += [
        pair("general.architecture", 8, text(b"llama")),
        pair("tokens", 9, struct.pack("<IQ", 8, 3) + text(b"a") + text(b"") + text("é".encode())),
        pair("nested", 9, struct.pack("<IQIQ", 9, 1, 4, 1) + struct.pack("<I", 7)),
    ]
    blocks = {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 20: 18, 39: 17}
    super_blocks = {10: 84, 11: 110, 12: 144, 13: 176, 14: 210, 16: 66, 23: 136, 34: 54, 35: 66}
    tensors = [(f"q{kind}", kind, (32, 2), 2 * size) for kind, size in blocks.items()]
    tensors += [(f"k{kind}", kind, (256,), size) for kind, size in super_blocks.items()]
    tensors += [("norm", 0, (3,), 12), ("half", 1, (2, 2), 8), ("bf", 30, (5,), 10), ("scalar", 27, (), 8)]
    split = [pair("split.no", 2, bytes(2)), pair("split.count", 2, b"\2\0")]
    alignment = pair("general.alignment", 4, struct.pack("<I", 64))
    files = {
        "values": gguf(values, []),
        "tensors": gguf([], tensors),
        "both": gguf(values, tensors),
        "split": gguf(split, tensors[:1]),
        "aligned": gguf([alignment], tensors[:3], 64),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
        (folder / f"{name}-body").write_bytes(data[8:])


def write_checkpoints(folder: Path) -> None:
    """Write pickles as torch.save makes them, with each form that tensors have."""

    def text(data: str) -> bytes:
        return b"X" + struct.pack("<I", len(data)) + data.encode()

    def arguments(kind: str, more: bytes = b"") -> bytes:
        storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("0") + text("cpu") + b"K\x10tQ"
        return b"(" + storage + b"K\x01K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)R" + more + b"t"

    def tensor(kind: str) -> bytes:
        return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments(kind) + b"R"

    third = b"ctorch._utils\n_rebuild_tensor_v3\n" + arguments("UntypedStorage", b"ctorch\nfloat8_e4m3fn\n") + b"R"
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + tensor("HalfStorage") + b"\x88}tR"
    subclass = b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\ncm\nS\n"
    subclass += arguments("LongStorage") + b"}tR"
    items = {"a": tensor("FloatStorage"), "b": third, "c": parameter, "d": subclass, "e": b"G\x3f\xe0" + bytes(6)}
    whole = b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"
    nested = b"ccollections\nOrderedDict\n)Rq\x00(" + text("m") + whole + text("n") + b"](K\x07\x8a\x02\xff\x00Neu}b"
    for name, top in {"tensor": third, "whole": whole, "nested": nested}.items():
        (folder / name).write_bytes(b"\x80\x02" + top + b".")


def write_messages(corpus: Path) -> None:
    """Write messages of the holder's protocol: alone, and for a real holder and a real client.

    Alone each is behind the number of its descriptors. The others have records as in fuzz_targets/records.rs: requests
    behind each other for the holder, replies for the client.
    """

    def string(data: bytes) -> bytes:
        return struct.pack("<I", len(data)) + data

    numbers = struct.pack("<QQ", 3, 1 << 30), struct.pack("<Q", 2 << 20), struct.pack("<QQ", 1_800_000_000, 5)
    info = string(b"llama") + numbers[0] + b"\x01" + numbers[1] + b"\x01" + bytes(32) + bytes(16)
    info += numbers[2] + b"\x01\x01"
    messages = {
        "attach": (0x01, 0, string(b"llama") + b"\x01" + bytes(32)),
        "current": (0x02, 0, string(b"llama")),
        "list": (0x03, 0, string(b"")),
        "load": (0x04, 1, string(b"llama") + b"\x01\x02" + string(b"into=memfd") + string(b"shared=1")),
        "drop": (0x05, 0, string(b"llama")),
        "stop": (0x06, 0, b""),
        "takeover": (0x08, 0, b""),
        "access": (0x0C, 0, string(b"llama") + b"\x01" + struct.pack("<III", 1, 1000, 0)),
        "error": (0x81, 0, struct.pack("<I", 4) + string(b"no")),
        "attached": (0x82, 1, info),
        "generation": (0x83, 0, struct.pack("<QQ", 3, 1024)),
        "page": (0x84, 0, b"\x00" + struct.pack("<I", 2) + info + info),
        "progress": (0x85, 0, struct.pack("<QQ", 1, 2)),
        "health": (0x87, 0, struct.pack("<IQQQ", 1, 2, 3, 4)),
        "socket": (0x88, 1, struct.pack("<Q", 4)),
        "handover": (0x89, 1, info + struct.pack("<III", 1, 1000, 0)),
    }
    records = {}
    for name, (verb, descriptors, body) in messages.items():
        header = b"dxh1" + struct.pack("<HHII", 1, verb, len(body), descriptors)
        (corpus / "holder" / name).write_bytes(bytes([descriptors]) + header + body)
        records[name] = bytes([descriptors]) + struct.pack("<H", len(header + body)) + header + body
    requests = [name for name, (verb, _, _) in messages.items() if verb < 0x80]
    replies = [name for name, (verb, _, _) in messages.items() if verb >= 0x80]
    for target, names in (("holder_server", requests), ("holder_client", replies)):
        for name in names:
            (corpus / target / name).write_bytes(records[name])
    session = [records[name] for name in ("load", "attach", "current", "access", "list", "drop")]
    (corpus / "holder_server/session").write_bytes(b"".join(session))
    session = [records[name] for name in ("attached", "generation", "page")]
    (corpus / "holder_client/session").write_bytes(b"".join(session))


def write_changes(corpus: Path) -> None:
    """Write changes of images: steps as in fuzz_targets/changes.rs."""

    def steps(*changes: tuple[int, int, int, bytes]) -> bytes:
        return b"".join(bytes([kind, one, two, len(data)]) + data for kind, one, two, data in changes)

    # A file with a page is made, a directory with another one, a name is removed, and a page replaced.
    overlay = steps(
        (1, 7, 0, bytes(10)),
        (2, 7, 0, b"0123456789"),
        (4, 1, 7, b"new"),
        (8, 8, 0, b""),
        (12, 1, 8, b"directory"),
        (1, 9, 0, b"x"),
        (4, 8, 9, b"below"),
        (6, 1, 0, b"l"),
        (2, 3, 0, b"changed"),
    )
    log = steps(
        (2, 1, 7, b"new"),
        (0, 7, 0, b"0123456789"),
        (1, 7, 4, b"through a mapping"),
        (5, 7, 20, b""),
        (18, 1, 8, b"directory"),
        (2, 8, 9, b"below"),
        (7, 9, 8, b"belowabove"),
        (10, 1, 10, b"linkf..."),
        (4, 1, 0, b"l"),
        (8, 3, 5, b""),
    )
    for target, data in (("overlay", overlay), ("log", log)):
        (corpus / target / "steps").write_bytes(data)
        (corpus / target / "overwritten").write_bytes(data + bytes([255, 2, 0, 1, 0, 4, 15, 10, 4, 5]))


def write_plans(folder: Path) -> None:
    """Write plans that split, gather and leave out."""
    rules: dict[str, list[dict[str, object]]] = {
        "split": [{"tensors": "*.q.weight", "split": 0}, {"files": "*.json", "on": "all"}],
        "gather": [{"tensors": "*.q.weight", "split": 1, "gather": True, "on": [1, 0]}],
        "uneven": [{"tensors": "*bias", "split": 0, "uneven": True}, {"tensors": "*", "on": "none"}],
        "on": [{"tensors": "scale", "on": 1}, {"files": "/d/*", "on": [0]}],
    }
    for name, rule in rules.items():
        (folder / name).write_text(json.dumps({"ranks": 2, "rules": rule}))


def archive(members: list[tuple[str, bytes, str, int]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Make a tar archive of members: name, kind, link, bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, kind, link, size in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, size
            member.mode, member.uid, member.gid, member.mtime = 0o755, 1000, 2**31, 1.5
            if form == tarfile.PAX_FORMAT and size:
                member.pax_headers = {"SCHILY.xattr.user.a": "b"}
            tar.addfile(member, io.BytesIO(bytes(size)))
    return out.getvalue()


def write_layers(folder: Path) -> None:
    """Write layers: the length of the first in two bytes, in blocks, then one behind the other."""
    file, directory, link, hard = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
    lower = [
        ("d", directory, "", 0),
        ("d/a", file, "", 5),
        ("d/s/b", file, "", 600),
        ("l", link, "/d/s", 0),
        ("h", hard, "d/a", 0),
        ("n" * 120, file, "", 1),
        ("f", tarfile.FIFOTYPE, "", 0),
    ]
    uppers = {
        "whiteout": [("d/.wh.a", file, "", 0), (".wh.l", file, "", 0)],
        "opaque": [("d", directory, "", 0), ("d/.wh..wh..opq", file, "", 0), ("d/new", file, "", 2)],
        "replaced": [("d", file, "", 1), ("h", directory, "", 0), ("l/through", file, "", 1)],
        "odd": [("../../e", file, "", 1), ("/r", hard, "/h", 0), ("d/../x//.", link, "../..", 0)],
    }
    for form, name in ((tarfile.PAX_FORMAT, "pax"), (tarfile.GNU_FORMAT, "gnu")):
        below = archive(lower, form)
        for kind, members in uppers.items():
            above = archive(members, form)
            (folder / f"{name}-{kind}").write_bytes(struct.pack("<H", len(below) // 512) + below + above)
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9000", "GNU.sparse.name": "s"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("GNUSparseFile.0/s")
        data = b"2\n0\n5\n8000\n4\n".ljust(512, b"\0") + b"12345abcd"
        member.size, member.pax_headers = len(data), sparse
        tar.addfile(member, io.BytesIO(data))
    (folder / "sparse").write_bytes(struct.pack("<H", 0) + out.getvalue())


def make_tree(root: Path) -> None:
    """Write a little of everything, few bytes."""
    (root / "d/deep").mkdir(parents=True)
    (root / "empty-dir").mkdir()
    (root / "f").write_bytes(b"0123456789")
    (root / "d/g").write_bytes(bytes(i % 251 for i in range(5000)))
    (root / "d/deep/empty").touch()
    os.link(root / "f", root / "d/again")
    (root / "same").write_bytes(b"0123456789")
    (root / "link").symlink_to("d/g")
    (root / "dangling").symlink_to("/d/../nowhere")
    (root / ("n" * 255)).write_bytes(b"n")
    (root / "model-1.safetensors").write_bytes(safetensors(*HEADERS["one"]))
    (root / "model-2.safetensors").write_bytes(safetensors(*HEADERS["sub-byte"]))
    parts = {"w": "model-1.safetensors", "f4": "model-2.safetensors", "f8": "model-2.safetensors"}
    (root / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))


def make_small_tree(root: Path) -> None:
    """Write one file of tensors and a link: the shortest image that has an index."""
    (root / "m.safetensors").write_bytes(safetensors(*HEADERS["metadata"]))
    (root / "l").symlink_to("m.safetensors")


def pack_trees(packer: str, folder: Path) -> None:
    """Pack both trees in every way."""
    for tree, make in (("tree", make_tree), ("small", make_small_tree)):
        with tempfile.TemporaryDirectory() as scratch:
            make(Path(scratch))
            for name, options in PACKINGS.items():
                image = folder / f"{tree}-{name}"
                subprocess.run([packer, scratch, "--quiet", *options, "-o", image], check=True)


def copy_golden(folder: Path) -> int:
    """Copy golden images that are short enough, compressed with zstd or not; return how many."""
    copied = 0
    for place in GOLDEN:
        for path in sorted(place.rglob("*")) if place.is_dir() else ():
            compressed = path.suffix == ".zst"
            name = path.stem if compressed else path.name
            if not name.endswith((".img", ".daxfs")) or (compressed and not shutil.which("zstd")):
                continue
            image = subprocess.check_output(["zstd", "-dqc", path]) if compressed else path.read_bytes()
            if len(image) <= LONGEST:
                (folder / f"golden-{name}").write_bytes(image)
                copied += 1
    return copied


def main(packer: str, corpus: Path) -> None:
    """Write the seeds of every target."""
    targets = ["image", "overlay", "log", "safetensors", "gguf", "torch", "layers", "plan", "holder"]
    targets += ["holder_server", "holder_client"]
    for target in targets:
        (corpus / target).mkdir(parents=True, exist_ok=True)
    write_headers(corpus / "safetensors")
    write_gguf(corpus / "gguf")
    write_checkpoints(corpus / "torch")
    write_messages(corpus)
    write_changes(corpus)
    write_plans(corpus / "plan")
    write_layers(corpus / "layers")
    pack_trees(packer, corpus / "image")
    golden = copy_golden(corpus / "image")
    if not golden:
        print("seeds.py: no golden images found; only our own packer's images")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
