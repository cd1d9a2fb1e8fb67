"""OCI image layouts as registries give them: made anew by each run, the same bytes every time."""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
import shutil
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TAG = "bench"
MEDIA = "application/vnd.oci.image"


def _blob(layout: Path, made: Path) -> tuple[str, int]:
    """Move a file to its place among the blobs, and give its digest and its length."""
    with made.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    place = layout / "blobs/sha256" / digest
    made.rename(place)
    return f"sha256:{digest}", place.stat().st_size


def _document(layout: Path, content: dict[str, Any]) -> tuple[str, int]:
    made = layout / "document"
    made.write_text(json.dumps(content))
    return _blob(layout, made)


def _layer(layout: Path, source: Path, folders: Sequence[str], *, compressed: bool) -> tuple[dict[str, Any], str]:
    """Archive some folders of the source; gives the descriptor, and the digest of what is not compressed."""
    made = layout / "layer"
    with tarfile.open(made, "w", format=tarfile.PAX_FORMAT) as archive:
        for folder in folders:
            archive.add(source / folder, folder)
    with made.open("rb") as file:
        plain = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    kind = "tar"
    if compressed:
        packed = layout / "packed"
        with (
            made.open("rb") as file,
            packed.open("wb") as out,
            gzip.GzipFile("", "wb", 1, out, mtime=0) as target,
        ):
            shutil.copyfileobj(file, target, 1 << 20)
        packed.replace(made)
        kind = "tar+gzip"
    digest, length = _blob(layout, made)
    return {"mediaType": f"{MEDIA}.layer.v1.{kind}", "digest": digest, "size": length}, plain


def make_layout(layout: Path, source: Path, layers: int, *, compressed: bool) -> Path:
    """Make an image of the folders of a tree, shared out among `layers` layers."""
    (layout / "blobs/sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    folders = sorted(path.name for path in source.iterdir())
    cuts = [number * len(folders) // layers for number in range(layers + 1)]
    parts = [folders[start:end] for start, end in zip(cuts, cuts[1:])]
    made = [_layer(layout, source, part, compressed=compressed) for part in parts]
    config, length = _document(
        layout,
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [plain for _, plain in made]},
        },
    )
    manifest, manifest_length = _document(
        layout,
        {
            "schemaVersion": 2,
            "mediaType": f"{MEDIA}.manifest.v1+json",
            "config": {"mediaType": f"{MEDIA}.config.v1+json", "digest": config, "size": length},
            "layers": [descriptor for descriptor, _ in made],
        },
    )
    entry = {
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "digest": manifest,
        "size": manifest_length,
        "annotations": {"org.opencontainers.image.ref.name": TAG},
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return layout
