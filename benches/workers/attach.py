"""Map a copy in a GPU's memory and print the seconds that it took: attach FD SIZE UUID, the image as $DAXFS_IMAGE."""

from __future__ import annotations

import sys

import daxfs
from harness.rounds import timed
from workers.driver import driver

if __name__ == "__main__":
    fd, size, uuid = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # The driver makes some of its things when it is first asked for memory.
    with driver() as cuda, cuda.memory(1 << 20), daxfs.open() as image:
        print(timed(lambda: image.attach("cuda:0", fd, size=size, uuid=uuid)))
