"""``python -m daxfs`` is the command ``daxfs``."""

from daxfs._command import daxfs

if __name__ == "__main__":
    daxfs()
