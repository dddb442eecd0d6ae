"""The cache as its daemon sees it: numbers, closing, many files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry, generate_latest

from cache.limits import FolderLimits, Limits
from cache.store import CacheStore
from manifest.errors import Unavailable
from tests.cache.contents import (
    KIB,
    MIB,
    OWNER,
    FaultySource,
    open_sample,
    opened,
    put,
    quiet,
    read_all,
    read_sample,
    sample,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

    from cache.handle import CachedObject
    from manifest.library import Library


async def test_hits_and_misses_are_counted_and_scraped(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    registry = CollectorRegistry()
    large, small = put(file_library, sample(1, 200 * KIB, 4 * MIB)), put(file_library, sample(2, 1000))
    async with trio.open_nursery() as nursery:
        cache = await CacheStore.open(
            [FolderLimits(folder, Limits(1 << 30))],
            sources=[source],
            nursery=nursery,
            holder="/mnt/test",
            owner=OWNER,
            registry=registry,
        )
        for made in (large, small):
            handle = await open_sample(cache, made)
            await handle.read(0, 100, trio.current_time() + 5)
            await quiet(cache)
            await handle.read(0, 100, trio.current_time() + 5)
            handle.release()
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.hit_bytes, stats.miss_bytes) == (2, 2, 200, 200)
        scraped = generate_latest(registry).decode()
        for line in (
            'damfs_cache_reads_total{result="hit"} 2.0',
            'damfs_cache_reads_total{result="miss"} 2.0',
            'damfs_cache_hit_bytes_total{tier="disk"} 100.0',
            'damfs_cache_hit_bytes_total{tier="small"} 100.0',
            "damfs_cache_miss_bytes_total 200.0",
            'damfs_fetch_seconds_count{source="central"} 2.0',
            f'damfs_fetched_bytes_total{{source="central"}} {float(large.size + small.size)}',
            f"damfs_cache_used_bytes {float(stats.used_bytes)}",
        ):
            assert line in scraped
        await cache.close()
        await cache.close()
        assert b"damfs" not in generate_latest(registry)
        with pytest.raises(Unavailable, match="closed"):
            await open_sample(cache, large)


@pytest.mark.usefixtures("expects_log")
async def test_closing_ends_readers_with_an_error_and_keeps_what_was_written(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, MIB))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, made)
        other = put(file_library, sample(2, MIB))
        handle = await open_sample(cache, other)
        source.gate = trio.Event()

        async def read() -> None:
            with pytest.raises(Unavailable):
                await handle.read(0, 10, trio.current_time() + 50)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked(0.02)
            with trio.fail_after(5):
                await cache.close()
        with pytest.raises(Unavailable):
            await handle.read(0, 10, trio.current_time() + 5)
        handle.release()
    source.fault = lambda ref: Unavailable(f"{ref}: offline")
    async with opened(folder, [source]) as cache:
        assert await read_sample(cache, made) == made.data


@pytest.mark.usefixtures("expects_log")
async def test_without_a_descriptor_left_bytes_still_come(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = [put(file_library, sample(i, 100 * KIB)) for i in range(60)]
    async with opened(folder, [source]) as cache:
        cache.shelves[0].files._open_max = 20
        handles = [await open_sample(cache, one) for one in made]
        for handle, one in zip(handles, made, strict=True):
            assert await read_all(handle) == one.data
        await quiet(cache)
        assert cache.stats().not_stored > 0
        assert cache.shelves[0].files._open_count == 20
        cache.shelves[0].files._open_max = 1000
        for handle, one in zip(handles, made, strict=True):
            assert await read_all(handle) == one.data
            handle.release()
        await quiet(cache)
        await until(lambda: cache.shelves[0].files._open_count == 0)


async def test_a_handle_that_is_released_while_a_read_is_under_way_gives_right_bytes(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 4 * MIB))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, made)
        await quiet(cache)
        got: list[tuple[int, bytes]] = []

        async def read(handle: CachedObject, i: int, task_status: trio.TaskStatus[None]) -> None:
            trio.lowlevel.current_trio_token().run_sync_soon(handle.release)
            task_status.started()
            got.append((i, bytes(await handle.read(i * 1000, MIB, trio.current_time() + 5))))

        async with trio.open_nursery() as nursery:
            for i in range(20):
                await nursery.start(read, await open_sample(cache, made), i)
        assert len(got) == 20
        assert all(data == made.data[i * 1000 : i * 1000 + MIB] for i, data in got)
