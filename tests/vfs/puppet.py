"""A process that opens, reads, maps and closes files as it is told, and says what came of it.

    python -m tests.vfs.puppet

One JSON command a line, one JSON answer a line: {} when all is well. A process of its own, for a mapping that cannot be
read ends it (SIGBUS).
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
from typing import Any

from tests.vfs.clients import HEAD, content


class Puppet:
    """State: what is open, and what is mapped, by the numbers that it was told, each with the bytes that it has."""

    def __init__(self) -> None:
        self.files: dict[int, tuple[int, bytes]] = {}
        self.maps: dict[int, tuple[mmap.mmap, bytes]] = {}

    def open(self, file: int, path: str, direct: bool) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if direct else 0))
        buffer = mmap.mmap(-1, 4096)
        assert os.preadv(fd, [buffer], 0) > 0
        number, size = HEAD.unpack(buffer[: HEAD.size])
        assert os.fstat(fd).st_size == size, "another size than its bytes say"
        self.files[file] = fd, content(number, size)

    def read(self, file: int, offset: int, size: int) -> None:
        fd, expected = self.files[file]
        buffer = mmap.mmap(-1, size)
        offset = offset % len(expected) & ~4095
        count = os.preadv(fd, [buffer], offset)
        assert buffer[:count] == expected[offset : offset + size], "wrong bytes"

    def advise(self, file: int, advice: int) -> None:
        os.posix_fadvise(self.files[file][0], 0, 0, advice)

    def map(self, file: int, into: int, shared: bool) -> None:
        fd, expected = self.files[file]
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        self.maps[into] = mmap.mmap(fd, 0, flags, mmap.PROT_READ), expected

    def look(self, at: int, offset: int, size: int) -> None:
        mapped, expected = self.maps[at]
        offset %= len(expected)
        assert mapped[offset : offset + size] == expected[offset : offset + size], "wrong bytes are mapped"

    def forget(self, at: int) -> None:
        """The pages of a mapping are read anew."""
        self.maps[at][0].madvise(mmap.MADV_DONTNEED)

    def close(self, file: int) -> None:
        os.close(self.files.pop(file)[0])

    def unmap(self, at: int) -> None:
        self.maps.pop(at)[0].close()


def main() -> None:
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: with whoever started it
    puppet = Puppet()
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        answer = {}
        try:
            getattr(puppet, command.pop("do"))(**command)
        except (OSError, AssertionError) as error:
            answer["error"] = repr(error)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
