"""A client of a mount, run as a process of its own: uses it as applications do, and compares every byte.

``python player.py MOUNTED REFERENCE SEED``: two folders with the same files, one in the mount, one not. Goes on until
its standard input ends; then prints one line of JSON: what it did how often, what was wrong, and its longest call.
"""

from __future__ import annotations

import collections
import json
import mmap
import os
import random
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

FAULTS_MAX = 20


class Player:
    """See the module. Each method that does something to a file is one kind of application."""

    def __init__(self, mounted: Path, reference: Path, seed: int) -> None:
        self.mounted = mounted
        self.reference = reference
        self.random = random.Random(seed)
        self.names = sorted(str(path.relative_to(reference)) for path in reference.rglob("*") if path.is_file())
        self.folders = sorted({str(Path(name).parent) for name in self.names})
        self.done: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self.longest_s = 0.0
        self.longest = ""

    def play(self, until: Callable[[], bool]) -> None:
        """Do one thing after the other."""
        kinds = (self.stat, self.list, self.read, self.read_at_random, self.map, self.sequence, self.attributes)
        while not until():
            kind = self.random.choice(kinds)
            started = time.monotonic()
            try:
                kind()
            except OSError as error:
                self._fault(f"{kind.__name__}: {error}")
            took_s = time.monotonic() - started
            if took_s > self.longest_s:
                self.longest_s, self.longest = took_s, kind.__name__
            self.done[kind.__name__] += 1

    def stat(self) -> None:
        for name in self.random.sample(self.names, min(20, len(self.names))):
            mounted, reference = os.stat(self.mounted / name), os.stat(self.reference / name)
            if (mounted.st_size, mounted.st_mode) != (reference.st_size, reference.st_mode):
                self._fault(f"stat of {name}: {mounted}")
        name = f"{self.random.choice(self.folders)}/none{self.random.random()}"
        if (self.mounted / name).exists():
            self._fault(f"{name} is there")

    def list(self) -> None:
        folder = self.random.choice(self.folders)
        found = sorted(os.listdir(self.mounted / folder))
        if found != sorted(os.listdir(self.reference / folder)):
            self._fault(f"list of {folder}: {found}")

    def read(self) -> None:
        name = self.random.choice(self.names)
        self._compare(name, (self.mounted / name).read_bytes(), 0)

    def read_at_random(self) -> None:
        name = self.random.choice(self.names)
        size = os.stat(self.reference / name).st_size
        descriptor = os.open(self.mounted / name, os.O_RDONLY)
        try:
            for _ in range(20):
                offset = self.random.randrange(size)
                self._compare(name, os.pread(descriptor, self.random.choice((4096, 65536, 300_000)), offset), offset)
        finally:
            os.close(descriptor)

    def map(self) -> None:
        name = self.random.choice(self.names)
        with (self.mounted / name).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        with mapped:  # it lives on behind the close
            for _ in range(20):
                offset = self.random.randrange(len(mapped))
                self._compare(name, mapped[offset : offset + 4096], offset)

    def sequence(self) -> None:
        folder = self.random.choice(self.folders)
        for name in [name for name in self.names if str(Path(name).parent) == folder][:8]:
            with (self.mounted / name).open("rb") as file:
                offset = 0
                while data := file.read(1 << 20):
                    self._compare(name, data, offset)
                    offset += len(data)
            if offset != os.stat(self.reference / name).st_size:
                self._fault(f"{name} ended at {offset}")

    def attributes(self) -> None:
        name = self.random.choice(self.names)
        if not os.getxattr(self.mounted / name, "user.damfs.digest").startswith(b"b3:"):
            self._fault(f"{name} has no digest")
        os.statvfs(self.mounted)

    def _compare(self, name: str, data: bytes, offset: int) -> None:
        with (self.reference / name).open("rb") as file:
            file.seek(offset)
            if not data or file.read(len(data)) != data:
                self._fault(f"{name}: {len(data)} wrong bytes at {offset}")

    def _fault(self, what: str) -> None:
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(what)


def main() -> None:
    mounted, reference, seed = sys.argv[1:]
    player = Player(Path(mounted), Path(reference), int(seed))

    def is_over() -> bool:
        return bool(select.select([0], [], [], 0)[0])

    player.play(is_over)
    print(json.dumps({"done": player.done, "faults": player.faults, "longest_s": player.longest_s,
                      "longest": player.longest}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
