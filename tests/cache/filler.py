"""Fills a cache and pins some of it, until it is killed: ``python -m tests.cache.filler CACHE LIBRARY SEED``."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

import trio

from cache.pinned import Pinned
from manifest.library import Library
from tests.cache.contents import KIB, MIB, SHOW, Sample, central, opened, read_sample, sample

SIZES = [300, 20 * KIB, 64 * KIB, 70 * KIB, 300 * KIB, MIB + 1, 2 * MIB, 3 * MIB + 5, 5 * MIB]
CACHE_BYTES = 24 * MIB
PIN = 1


def samples() -> list[Sample]:
    """The contents that are read, some 50 MB: twice what the cache holds."""
    return [sample(i, SIZES[i % len(SIZES)], 200 * KIB) for i in range(36)]


async def fill(folder: Path, library: Library, seed: int) -> None:
    """Read at random, eight at a time, for ever."""
    rng = random.Random(seed)
    made = samples()
    async with opened(folder, [central(library)], size_bytes=CACHE_BYTES) as cache:
        print("ready", flush=True)

        async def reader() -> None:
            while True:
                one = rng.choice(made)
                assert await read_sample(cache, one) == one.data, "wrong bytes"

        async def pinner() -> None:
            """One content after the other is what the one pin keeps."""
            pinned = Pinned(cache.shelves[0].index)
            for round_number in itertools.count(1 + await trio.to_thread.run_sync(pinned.last_round, PIN)):
                one = rng.choice(made)
                await trio.to_thread.run_sync(pinned.add, PIN, round_number, SHOW, [(one.content, one.size)])
                await trio.to_thread.run_sync(pinned.finish, PIN, round_number)
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pinner)
            for _ in range(8):
                nursery.start_soon(reader)


if __name__ == "__main__":
    trio.run(fill, Path(sys.argv[1]), Library.open(sys.argv[2]), int(sys.argv[3]))
