"""A power cut while the cache is filled, read and evicted: a chunk is present and right, or absent.

Two kinds of it. ``cut_power`` loses what was not flushed: the file system stops, its journal too. A snapshot loses
nothing and comes at any instant: the image of the disk is shared, block by block, while it is being written to.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import trio

from cache.index import Index, ObjectRow
from manifest.digest import Digest
from tests.cache.aftermath import check_everything, claims_are_true, filling, missing_files
from tests.cache.contents import (
    KIB,
    MIB,
    SHOW,
    FaultySource,
    central,
    open_sample,
    opened,
    put,
    quiet,
    read_all,
    read_sample,
    sample,
    until,
)
from tests.cache.disk import XFS_MIB_MIN, FileSystem, loop_disk
from tests.cache.filler import CACHE_BYTES, samples
from tests.harness import drilled

if TYPE_CHECKING:
    from pathlib import Path

    from manifest.library import Library

POWER_CUTS = drilled(2, 50)
ROUNDS, SNAPSHOTS = drilled(1, 40), drilled(2, 3)
OBJECTS = 100_000


def claimed(folder: Path) -> int:
    """How many large contents are said to be whole, by the index of a cache that is in use."""
    with closing(sqlite3.connect(folder / "index.db")) as index:
        return int(index.execute("SELECT count(*) FROM objects WHERE chunks AND present_bytes = size").fetchone()[0])


@pytest.mark.drill
@pytest.mark.timeout(drilled(120, 1200))
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.usefixtures("expects_log")
async def test_what_was_not_flushed_is_lost_and_never_claimed(kind: FileSystem, file_library: Library) -> None:
    for made in samples():
        put(file_library, made)
    source = central(file_library)
    rng = random.Random(2)
    here = 0
    with loop_disk(XFS_MIB_MIN if kind == "xfs" else 96, kind) as disk:
        for seed in range(POWER_CUTS):
            with filling(disk.path / "cache", file_library, seed) as process:
                await until(lambda: claimed(disk.path / "cache") > 3)
                await trio.sleep(rng.uniform(0.1, 1.0))
                disk.cut_power()
                process.kill()
            disk.unmount()
            disk.mount()
            async with opened(disk.path / "cache", [source], size_bytes=CACHE_BYTES) as cache:
                here += await check_everything(cache, source)
                assert cache.stats().verification_failures == 0
    assert here, "nothing survived: the test proves nothing"


@pytest.mark.drill
@pytest.mark.timeout(drilled(120, 1800))
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.usefixtures("expects_log")
async def test_the_disk_as_it_is_at_any_instant_claims_nothing_that_is_not_there(
    kind: FileSystem, file_library: Library
) -> None:
    for made in samples():
        put(file_library, made)
    source = central(file_library)
    rng = random.Random(3)
    here = 0
    with loop_disk(2000, "xfs") as outer, loop_disk(XFS_MIB_MIN, kind, folder=outer.path) as disk:
        for seed in range(ROUNDS):
            images = [outer.path / f"snapshot.{i}" for i in range(SNAPSHOTS)]
            with filling(disk.path / "cache", file_library, seed):
                await until(lambda: claimed(disk.path / "cache") > 3)
                for image in images:
                    await trio.sleep(rng.uniform(0.1, 0.6))
                    disk.snapshot(image)
            disk.unmount()
            for image in images:
                disk.mount(image)
                async with opened(disk.path / "cache", [source], size_bytes=CACHE_BYTES) as cache:
                    here += await check_everything(cache, source)
                    assert cache.stats().verification_failures == 0
                disk.unmount()
            disk.mount()
    assert here, "nothing survived: the test proves nothing"


@pytest.mark.usefixtures("expects_log")
async def test_an_index_that_lost_its_last_transactions_claims_nothing_that_is_not_there(
    folder: Path, file_library: Library, source: FaultySource, tmp_path: Path
) -> None:
    made = [put(file_library, sample(i, MIB + i)) for i in range(12)]
    async with opened(folder, [source], size_bytes=8 * MIB) as cache:
        for one in made[:6]:
            await read_sample(cache, one)
        handle = await open_sample(cache, made[6])
        await handle.read(0, 100, trio.current_time() + 5)
        await quiet(cache)
        for name in ("index.db", "index.db-wal"):
            shutil.copy(folder / name, tmp_path / name)
        await read_all(handle)
        handle.release()
        for one in made[7:]:
            await read_sample(cache, one)
        await quiet(cache)
    (folder / "index.db-shm").unlink(missing_ok=True)
    for name in ("index.db", "index.db-wal"):
        shutil.copy(tmp_path / name, folder / name)
    async with opened(folder, [source], size_bytes=8 * MIB) as cache:
        assert missing_files(cache), "some were evicted since"
        await claims_are_true(cache)
        for one in made:
            assert await read_sample(cache, one) == one.data
        assert cache.stats().verification_failures == 0


def _fill_index(folder: Path) -> None:
    """The index of a cache of OBJECTS objects, as a kill leaves it: with much of it in the write-ahead log."""
    index = Index(folder / "full.db")
    for begin in range(0, OBJECTS, 5000):
        index.commit(
            [
                ObjectRow(0, SHOW, Digest.of(i.to_bytes(8, "big")), 400 * KIB, 4, b"", f"00/{i:064x}.0",
                          300 * KIB, 400 * KIB, b"\x07")
                for i in range(begin, begin + 5000)
            ],
            begin, durable=False,
        )  # fmt: skip
    assert (folder / "full.db-wal").stat().st_size
    for suffix in ("", "-wal"):
        shutil.copy(folder / f"full.db{suffix}", folder / f"index.db{suffix}")
    index.close()
    (folder / "full.db").unlink()


async def test_a_start_after_a_kill_walks_nothing(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = put(file_library, sample(1, MIB))
    async with opened(folder, [source]):
        pass
    for suffix in ("", "-wal", "-shm"):
        (folder / f"index.db{suffix}").unlink(missing_ok=True)
    await trio.to_thread.run_sync(_fill_index, folder)
    begun = time.monotonic()
    async with opened(folder, [source], size_bytes=1 << 50) as cache:
        assert cache.stats().objects == OBJECTS
        assert await read_sample(cache, made) == made.data
        took_s = time.monotonic() - begun
        assert took_s < 2
