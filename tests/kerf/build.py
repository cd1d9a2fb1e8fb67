"""Build a DAXFS image of a directory with kerf's builder.

Usage: build.py SOURCE IMAGE POOL_BYTES, or build.py --available, which only says whether the builder is there

kerf's own command writes into a dma-heap and mounts the result; its builder class writes into any mapping, here
one of an ordinary file. Device trees, for which the package imports libfdt, have no part in it: that library has no
wheels, and is left out of the locked packages.
"""

import mmap
import sys
import types

sys.modules.setdefault("libfdt", types.ModuleType("libfdt"))

from kerf.daxfs.mkdaxfs import DaxfsBuilder  # noqa: E402


def main(source: str, image: str, pool: int) -> None:
    builder = DaxfsBuilder(source, overlay_pool_size=pool)
    builder.scan()
    builder.build_tree()
    builder.calculate_offsets()
    size = builder.calculate_total_size()
    with open(image, "w+b") as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size) as memory:
            builder.write_image(memory, size)


if __name__ == "__main__":
    if sys.argv[1:] != ["--available"]:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
