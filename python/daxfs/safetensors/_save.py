"""What saving to an image comes to."""

from __future__ import annotations

import errno
import os

from daxfs import _locate


def refuse_images(filename: object) -> None:
    """Raise for a name in an image: it is a file system that is read-only."""
    location = _locate.locate(filename)
    if location is not None and (location.path or location.source.startswith(_locate.SCHEMES)):
        why = f"{os.strerror(errno.EROFS)}: images are packed (daxfs.pack, daxfs.torch.save_model)"
        raise OSError(errno.EROFS, why, str(location))
