"""What works without numpy and without ml_dtypes, and what the errors say."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path


def run(path: Path, code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_importing_and_opening_imports_neither(path: Path) -> None:
    out = run(
        path,
        """
        import sys
        import daxfs
        image = daxfs.open(sys.argv[1])
        tensor = image.tensors()["all.BF16"]
        memoryview(image["config.json"]), tensor.raw, tensor.__dlpack__(), repr(tensor)
        print([name for name in ("numpy", "ml_dtypes", "torch", "jax") if name in sys.modules])
        """,
    )
    assert out == "[]\n"


def test_without_numpy(path: Path) -> None:
    out = run(
        path,
        """
        import sys
        sys.modules["numpy"] = None
        import daxfs
        tensors = daxfs.open(sys.argv[1]).tensors()
        for name in ("all.F32", "all.BF16"):
            for use in (lambda t: t.numpy(), lambda t: t[0], lambda t: t.__array__()):
                try:
                    use(tensors[name])
                except ImportError as error:
                    assert "pip install numpy" in str(error), error
                    assert isinstance(error.__cause__, ImportError)
                else:
                    raise AssertionError(name)
        print(memoryview(tensors["all.F32"]).shape, len(tensors["all.BF16"].raw))
        import pickle
        for name in ("all.F32", "all.BF16", "all.F4"):
            dtype = tensors[name].dtype
            assert pickle.loads(pickle.dumps(dtype)) == dtype
            print(dtype, dtype.name, dtype.itemsize)
        """,
    )
    assert out == "(3, 8) 48\nfloat32 float32 4\nbfloat16 bfloat16 2\nuint8 uint8 1\n"


def test_without_ml_dtypes(path: Path) -> None:
    out = run(
        path,
        """
        import sys
        sys.modules["ml_dtypes"] = None
        import numpy as np
        import daxfs
        tensors = daxfs.open(sys.argv[1]).tensors()
        for use in (lambda t: t.numpy(), np.asarray):
            try:
                use(tensors["all.BF16"])
            except ImportError as error:
                assert "BF16 need ml_dtypes (pip install ml_dtypes)" in str(error), error
                assert "memoryview(tensor.raw)" in str(error)
            else:
                raise AssertionError
        print(tensors["all.F32"].numpy().dtype, tensors["all.F4"].numpy().shape)
        print(tensors["all.BF16"].dtype, [type(tensors[name].dtype).__name__ for name in ("all.BF16", "all.F32")][0])
        """,
    )
    assert out == "float32 (3, 4)\nbfloat16 DtypeName\n"


def test_an_old_ml_dtypes(path: Path) -> None:
    out = run(
        path,
        """
        import sys, types
        sys.modules["ml_dtypes"] = types.ModuleType("ml_dtypes")
        import daxfs
        try:
            daxfs.open(sys.argv[1]).tensors()["all.F8_E8M0"].numpy()
        except ImportError as error:
            print(error)
        """,
    )
    assert out == "numpy arrays of F8_E8M0 need a newer ml_dtypes, one that has float8_e8m0fnu\n"
