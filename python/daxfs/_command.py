"""The commands ``daxfs`` and ``daxfs-pack``: the Rust programs, run inside this interpreter."""

import signal
import sys
from typing import NoReturn

from daxfs import _daxfs


def daxfs() -> NoReturn:
    """Run ``daxfs`` with the arguments of this process."""
    _take_signals_back()
    sys.exit(_daxfs.daxfs_main(sys.argv))


def pack() -> NoReturn:
    """Run ``daxfs-pack`` with the arguments of this process."""
    _take_signals_back()
    sys.exit(_daxfs.pack_main(sys.argv))


def _take_signals_back() -> None:
    """Let Ctrl-C end the process at once, as it ends a Rust program: no Python code runs that could act on it.

    SIGPIPE stays ignored, as Python sets it and Rust programs expect it: they end quietly when a pipe closes.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
