"""A player, as a process of its own: ``python -m tests.bench.play FPS FRAME …``.

Reads the frames one after the other, whole, each when its time has come or when the one before it is done. The clock
starts when the second frame is there, as players fill their first buffers; a frame is late that is not there a frame's
time after that of the frame before it. Prints one line of JSON: which frames were late (from 0 on), and by how many
seconds the latest.
"""

from __future__ import annotations

import json
import os
import sys
import time

READ_BYTES = 1024 * 1024


def read(path: str) -> int:
    """Read a frame as a host does, from its first byte to its last."""
    total = 0
    buffer = bytearray(READ_BYTES)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while count := os.readv(descriptor, [buffer]):
            total += count
    finally:
        os.close(descriptor)
    return total


def main() -> None:
    """See the module."""
    frame_s = 1 / float(sys.argv[1])
    frames = sys.argv[2:]
    late: list[int] = []
    latest_s = started = 0.0
    size_bytes = 0
    for number, frame in enumerate(frames):
        if number >= 2:
            time.sleep(max(0.0, started + (number - 2) * frame_s - time.monotonic()))
        size_bytes += read(frame)
        now = time.monotonic()
        if number == 1:
            started = now
        elif number >= 2 and now > (due := started + (number - 1) * frame_s):
            late.append(number)
            latest_s = max(latest_s, now - due)
    print(json.dumps({"late": late, "latest_s": latest_s, "bytes": size_bytes}))


if __name__ == "__main__":
    main()
