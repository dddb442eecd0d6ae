"""A process that uses a mount as applications do, and does not take one error or one wrong byte.

    python tests/vfs/clients.py FOLDER SEED

FOLDER has folders of files that ``content`` made. It keeps files open, and mappings of files that are closed. When its
stdin ends it does, and prints as JSON how often it did what.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import mmap
import os
import random
import select
import struct
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

PERIOD = 4093
HEAD = struct.Struct("<QQ")
OPEN_MAX = 8
KEEP_MAX = 5


@functools.lru_cache(64)
def content(number: int, size: int) -> bytes:
    """The bytes of a file: they say which they are, and are others at each place."""
    pattern = hashlib.shake_256(b"%d" % number).digest(PERIOD)
    return HEAD.pack(number, size) + (pattern * (size // PERIOD + 1))[: size - HEAD.size]


class Client:
    """State: files that are open and mappings that are live, each with the bytes that it has."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.open: list[tuple[int, bytes]] = []
        self.mapped: list[tuple[mmap.mmap, bytes]] = []

    def step(self) -> None:
        names = ["look", "list", "walk", "read", "keep", "again", "again", "map", "mapped", "mapped", "close", "unmap"]
        name = self.chance.choice(names)
        getattr(self, f"do_{name}")()
        self.done[name] += 1

    def names(self) -> list[Path]:
        folder = self.folder / self.chance.choice(os.listdir(self.folder))
        return [folder / name for name in os.listdir(folder)]

    def pick(self) -> Path:
        return self.chance.choice(self.names())

    def do_look(self) -> None:
        for path in self.names():
            with contextlib.suppress(FileNotFoundError):
                assert path.stat().st_size > HEAD.size, path

    def do_list(self) -> None:
        assert self.names()

    def do_walk(self) -> None:
        """A listing that takes its time."""
        with os.scandir(self.pick().parent) as listing:
            seen = []
            for entry in listing:
                seen.append(entry.name)
                if self.chance.random() < 0.02:
                    time.sleep(self.chance.random() * 0.05)
        assert len(set(seen)) == len(seen), "a name is listed twice"

    def opened(self) -> tuple[int, bytes] | None:
        """A file that was just opened; None when its name is gone meanwhile."""
        try:
            fd = os.open(self.pick(), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        number, size = HEAD.unpack(os.pread(fd, HEAD.size, 0))
        assert os.fstat(fd).st_size == size
        return fd, content(number, size)

    def do_read(self) -> None:
        found = self.opened()
        if found is not None:
            fd, expected = found
            with open(fd, "rb", buffering=0) as file:
                assert file.readall() == expected, "wrong bytes"

    def do_keep(self) -> None:
        if len(self.open) < OPEN_MAX and (found := self.opened()):
            self.open.append(found)

    def do_again(self) -> None:
        if self.open:
            fd, expected = self.chance.choice(self.open)
            offset = self.chance.randrange(len(expected))
            size = self.chance.choice([1, 4096, 65536, 1 << 20])
            if self.chance.random() < 0.2:
                os.posix_fadvise(fd, 0, 0, self.chance.choice([os.POSIX_FADV_DONTNEED, os.POSIX_FADV_WILLNEED]))
            assert os.pread(fd, size, offset) == expected[offset : offset + size], "wrong bytes"

    def do_close(self) -> None:
        if self.open:
            os.close(self.open.pop(self.chance.randrange(len(self.open)))[0])

    def do_map(self) -> None:
        if len(self.mapped) < KEEP_MAX and (found := self.opened()):
            fd, expected = found
            flags = self.chance.choice([mmap.MAP_SHARED, mmap.MAP_PRIVATE])
            self.mapped.append((mmap.mmap(fd, 0, flags, mmap.PROT_READ), expected))
            os.close(fd)

    def do_mapped(self) -> None:
        if self.mapped:
            mapped, expected = self.chance.choice(self.mapped)
            offset = self.chance.randrange(len(expected))
            assert mapped[offset : offset + 100_000] == expected[offset : offset + 100_000], "wrong bytes are mapped"

    def do_unmap(self) -> None:
        if self.mapped:
            self.mapped.pop(self.chance.randrange(len(self.mapped)))[0].close()

    def end(self) -> None:
        for fd, expected in self.open:
            assert os.pread(fd, len(expected), 0) == expected
            os.close(fd)
        for mapped, expected in self.mapped:
            assert mapped[:] == expected
            mapped.close()


def main(folder: Path, seed: int) -> None:
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: with whoever started it
    client = Client(folder, seed)
    print("begun", flush=True)
    try:
        while not select.select([0], [], [], 0)[0]:
            client.step()
        client.end()
    except BaseException as error:
        print(json.dumps({"error": repr(error), "trace": traceback.format_exc(), "done": client.done}), flush=True)
        raise
    print(json.dumps(client.done), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
