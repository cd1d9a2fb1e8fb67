"""Python runs this when it starts in a process below ``python -m daxfs.run``, which put its folder on PYTHONPATH."""

import os
import sys
from importlib.machinery import PathFinder

# The machine's own one, which this one hides.
_here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - runs before all else
_spec = PathFinder.find_spec("sitecustomize", [path for path in sys.path if os.path.abspath(path) != _here])  # noqa: PTH100
if _spec is not None and _spec.loader is not None:
    from importlib.util import module_from_spec

    _spec.loader.exec_module(module_from_spec(_spec))

if os.environ.get("DAXFS_INSTALL") == "1":
    try:
        from daxfs import _install
    except ImportError:
        # Of another interpreter, which has no daxfs.
        pass
    else:
        _install.install(is_child=True)
