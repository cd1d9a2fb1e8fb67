"""``python -m daxfs`` is the command ``daxfs``."""

from daxfs._command import daxfs

daxfs()
