"""A cache of many objects in a process of its own: how long it takes to open, and how much memory it grows by.

python -m tests.bench.many_objects FOLDER COUNT, which prints JSON. Rows are all that memory could be needed for, so
there is nothing but rows: of small contents, whose eviction needs no file.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import trio

from cache.index import Index, ObjectRow
from manifest.digest import Digest
from manifest.library import Library
from tests.cache.contents import central, opened, until

SHOW = "apollo"
CHARGE = 4096
BATCH = 10_000
LOOK_UPS = 10_000


def main() -> None:
    """Make the rows, then open a cache on them, look some up, and have a tenth of them evicted."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    print(json.dumps(trio.run(_measure, folder, count)))


async def _measure(folder: Path, count: int) -> dict[str, Any]:
    library = Library.open("memory://")
    async with opened(folder, [central(library)]):
        pass  # the folder has an owner now
    index = Index(folder / "index.db")
    for first in range(0, count, BATCH):
        index.commit([_row(number) for number in range(first, min(count, first + BATCH))], first, durable=False)
    index.close()
    before = _resident_bytes()
    began = time.monotonic()
    async with opened(folder, [central(library)], size_bytes=2 * count * CHARGE) as cache:
        open_s = time.monotonic() - began
        assert cache.stats().objects == count
        dice = random.Random(1)
        for _ in range(LOOK_UPS):
            assert cache.percent(SHOW, _content(dice.randrange(count))) == 100
    began = time.monotonic()
    async with opened(folder, [central(library)], size_bytes=count * CHARGE) as cache:
        await until(lambda: cache.stats().objects <= count * 0.92, within_s=300)
        evict_s = time.monotonic() - began
        grown_bytes = _resident_bytes() - before
        evicted = count - cache.stats().objects
    return {"open_s": open_s, "evict_s": evict_s, "evicted": evicted, "grown_bytes": grown_bytes}


def _content(number: int) -> Digest:
    return Digest.of(b"%d" % number)


def _row(number: int) -> ObjectRow:
    return ObjectRow(0, SHOW, _content(number), 3000, 0, b"", "", 3000, CHARGE, b"")


def _resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
