"""The size limit holds, whatever is read, and eviction takes what nobody has open."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cache.capacity import span_charge
from manifest.errors import Unavailable
from tests.cache.contents import (
    KIB,
    MIB,
    SHOW,
    FaultySource,
    accounts_agree,
    open_sample,
    opened,
    put,
    read_all,
    read_sample,
    sample,
    settle,
    until,
)
from tests.cache.disk import loop_disk

if TYPE_CHECKING:
    from pathlib import Path

    from manifest.library import Library


def disk_bytes(folder: Path) -> int:
    """What the objects really take."""
    return sum(path.stat().st_blocks * 512 for path in (folder / "objects").rglob("*") if path.is_file())


async def test_the_limit_holds_while_more_is_read_than_fits(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    limit = 8 * MIB
    made = [put(file_library, sample(i, [900 * KIB, 40 * KIB, 300 * KIB][i % 3], 128 * KIB)) for i in range(90)]
    async with opened(folder, [source], size_bytes=limit) as cache:
        for one in made:
            assert await read_sample(cache, one) == one.data
            assert cache.stats().used_bytes <= limit
            assert disk_bytes(folder) <= limit
        await settle(cache)
        await until(lambda: cache.stats().used_bytes <= limit * 0.95)
        await accounts_agree(cache)
        assert cache.stats().evicted_bytes > 10 * MIB
        for one in made[:10]:
            assert await read_sample(cache, one) == one.data


async def test_the_least_recently_used_goes_first(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = [put(file_library, sample(i, MIB, 256 * KIB)) for i in range(9)]
    async with opened(folder, [source], size_bytes=8 * MIB) as cache:
        for one in made[:7]:
            await read_sample(cache, one)
            await settle(cache)
            await trio.sleep(0.005)
        await read_sample(cache, made[0])
        await cache.shelves[0].flusher.flush_touches()
        for one in made[7:]:
            await read_sample(cache, one)
            await settle(cache)
        assert cache.percent(SHOW, made[0].content) == 100
        assert cache.percent(SHOW, made[1].content) == 0


async def test_what_is_open_is_not_evicted_and_the_rest_passes_through_memory(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    large = put(file_library, sample(1, 12 * MIB, MIB))
    other = put(file_library, sample(2, 2 * MIB, MIB))
    async with opened(folder, [source], size_bytes=8 * MIB) as cache:
        handle = await open_sample(cache, large)
        assert await read_all(handle) == large.data
        assert await read_sample(cache, other) == other.data
        stats = cache.stats()
        assert stats.used_bytes <= 8 * MIB
        assert stats.not_stored > 0
        asked = len(source.asked)
        for offset in range(0, MIB, 64 * KIB):  # many READs of one chunk that is not stored: no fetch for each
            at = 11 * MIB + offset
            assert bytes(await handle.read(at, 1000, trio.current_time() + 5)) == large.data[at : at + 1000]
        assert len(source.asked) - asked <= 2
        handle.release()
        await settle(cache)
        await until(lambda: cache.stats().used_bytes == 0)
        assert await read_sample(cache, other) == other.data
        await settle(cache)
        await until(lambda: cache.percent(SHOW, other.content) == 100)


async def test_a_chunk_larger_than_the_cache_is_served(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 3 * MIB, 4 * MIB))
    async with opened(folder, [source], size_bytes=MIB) as cache:
        assert await read_sample(cache, made) == made.data
        assert cache.stats().used_bytes == 0


async def test_the_limit_is_kept_over_a_restart_with_a_smaller_one(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = [put(file_library, sample(i, MIB, 256 * KIB)) for i in range(9)]
    async with opened(folder, [source], size_bytes=16 * MIB) as cache:
        for one in made:
            await read_sample(cache, one)
    async with opened(folder, [source], size_bytes=4 * MIB) as cache:
        await until(lambda: cache.stats().used_bytes <= 4 * MIB)
        assert disk_bytes(folder) <= 4 * MIB


async def test_recipes_count_and_are_evicted_too(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = [put(file_library, sample(i, 256 * KIB, KIB), recipe_object=True) for i in range(16)]
    async with opened(folder, [source], size_bytes=2 * MIB) as cache:
        for one in made:
            handle = await open_sample(cache, one, with_recipe=False)
            await handle.read(0, 10, trio.current_time() + 5)
            handle.release()
        for one in made:
            assert await read_sample(cache, one, with_recipe=False) == one.data
            assert cache.stats().used_bytes <= 2 * MIB
        await settle(cache)
        await trio.sleep(0.1)
        await accounts_agree(cache)


def test_the_charge_is_never_less_than_the_blocks() -> None:
    assert span_charge(0, 1) == 4096
    assert span_charge(4095, 2) == 8192
    assert span_charge(4096, 4096) == 4096
    assert span_charge(1, 4096) == 8192


@pytest.mark.timeout(120)
async def test_a_full_disk_in_the_middle_of_a_chunk_costs_no_reader_anything(
    file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    made = [put(file_library, sample(i, 5 * MIB, MIB)) for i in range(6)]
    with loop_disk(24) as disk:
        async with opened(disk.path / "cache", [source], size_bytes=1 << 30) as cache:
            handles = [await open_sample(cache, one) for one in made]
            for handle, one in zip(handles, made, strict=True):
                assert await read_all(handle) == one.data
            await settle(cache)
            assert cache.counters.not_stored["no_space"] > 0
            assert os.statvfs(disk.path).f_bavail < 2048
            complaints = [r for r in expects_log.records if "cannot take more" in r.getMessage()]
            assert len(complaints) == 1
            for handle, one in zip(handles, made, strict=True):
                assert await read_all(handle) == one.data
                handle.release()
            # What is open no more makes room by itself.
            with trio.fail_after(20):
                while cache.percent(SHOW, made[-1].content) < 100:
                    assert await read_sample(cache, made[-1]) == made[-1].data
                    await settle(cache)
                    await trio.sleep(0.2)
        async with opened(disk.path / "cache", [source], size_bytes=1 << 30) as cache:
            for one in made:
                assert await read_sample(cache, one) == one.data


async def test_an_index_that_cannot_write_costs_no_reader_anything(
    folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    made = [put(file_library, sample(i, MIB)) for i in range(3)] + [put(file_library, sample(9, 1000))]
    async with opened(folder, [source]) as cache:
        await read_sample(cache, made[0])
        await settle(cache)
        cache.shelves[0].index._writer.execute("PRAGMA query_only = ON")
        for one in made:
            assert await read_sample(cache, one) == one.data
        await settle(cache)
        assert cache.counters.not_stored["index"] > 0
        assert len([r for r in expects_log.records if "index fails" in r.getMessage()]) == 1
        cache.shelves[0].index._writer.execute("PRAGMA query_only = OFF")
        for one in made:
            assert await read_sample(cache, one) == one.data
        await settle(cache)
        source.fault = lambda ref: Unavailable(f"{ref}: offline")
        for one in made:
            assert await read_sample(cache, one) == one.data
        await accounts_agree(cache)
