"""Where the header for kernels is."""

from pathlib import Path


def get_include() -> str:
    """Return the folder of daxfs_device.h, for -I of compilers of CUDA C++, HIP, C and C++."""
    return str(Path(__file__).parent / "include")
