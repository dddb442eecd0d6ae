"""Somebody who looks at a show again and again, as a process of its own, and remembers what was seen in which epoch.

``python observer.py ROOT EPOCHS SEED``: ROOT is the show in the mount; EPOCHS a file of two counters, written by
whoever publishes: the revision that is settled, and the newest that may be seen. Reads ``{"names", "folders", "tags"}``
as JSON from its standard input's first line, goes on until that ends, and prints JSON: each different observation
once, as ``[kind, path, what was seen, settled before, newest after]``, and what went wrong.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import select
import stat
import sys
import time
from pathlib import Path
from typing import Any

ABSENT = "absent"
HEAD_BYTES = 8
FAULTS_MAX = 20
COUNTERS_BYTES = 16


class Epochs:
    """(settled, newest): shared between processes."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), COUNTERS_BYTES)).cast("Q")  # each written by one store

    @property
    def settled(self) -> int:
        return self._words[0]

    @settled.setter
    def settled(self, revision: int) -> None:
        self._words[0] = revision

    @property
    def newest(self) -> int:
        return self._words[1]

    @newest.setter
    def newest(self, revision: int) -> None:
        self._words[1] = revision

    @staticmethod
    def create(path: Path) -> Epochs:
        path.write_bytes(bytes(COUNTERS_BYTES))
        return Epochs(path)


def describe(path: str) -> str:
    """What lstat says of a path: kind, size, time."""
    found = os.lstat(path)
    kind = {stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFREG: "f"}[stat.S_IFMT(found.st_mode)]
    if kind == "d":
        return f"d {found.st_mtime_ns}"
    return f"{kind} {found.st_size} {found.st_mtime_ns}" if kind == "f" else f"l {found.st_size}"


def listed(path: str) -> str:
    """The names of a folder, each with its kind."""
    with os.scandir(path) as entries:
        return " ".join(sorted(
            entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "@" if entry.is_symlink() else "")
            for entry in entries))  # fmt: skip


def opened(path: str) -> str:
    """The size and the beginning of a file, through one descriptor; a link is followed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return "d"
        data = os.read(descriptor, found.st_size + 1)
        return f"{found.st_size} {len(data)} {data[:HEAD_BYTES].decode()}"
    finally:
        os.close(descriptor)


def seen(kind: str, path: str) -> str:
    """One observation; what is not there is ABSENT. Raises OSError for everything else."""
    try:
        match kind:
            case "stat":
                return describe(path)
            case "list":
                return listed(path)
            case "link":
                return os.readlink(path)
            case _:
                return opened(path)
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    except OSError as error:
        if kind == "link" and error.strerror == "Invalid argument":
            return "no link"
        raise


def main() -> None:
    root, epochs_path, seed = sys.argv[1:]
    asked: dict[str, list[str]] = json.loads(sys.stdin.readline())
    dice = random.Random(int(seed))
    epochs = Epochs(Path(epochs_path))
    observations: set[tuple[Any, ...]] = set()
    faults: list[str] = []
    count = 0
    longest_s = 0.0
    names, folders, tags = asked["names"], asked["folders"], asked["tags"]
    while not select.select([0], [], [], 0)[0]:
        for kind, path in (
            *(("stat", dice.choice(names)) for _ in range(20)), *(("stat", dice.choice(folders)) for _ in range(3)),
            ("list", dice.choice(folders)), ("open", dice.choice(names)), ("open", dice.choice(names)),
            *(("link", tag) for tag in tags), *(("through", dice.choice(tags) + "/plate.exr") for _ in range(2)),
        ):  # fmt: skip
            settled = epochs.settled
            started = time.monotonic()
            try:
                found = seen(kind, f"{root}/{path}")
            except OSError as error:
                if len(faults) < FAULTS_MAX:
                    faults.append(f"{kind} {path}: {error} (settled {settled}, newest {epochs.newest})")
                continue
            longest_s = max(longest_s, time.monotonic() - started)
            observations.add((kind, path, found, settled, epochs.newest))
            count += 1
    print(json.dumps({"observations": sorted(observations), "faults": faults, "count": count, "longest_s": longest_s}))


if __name__ == "__main__":
    main()
