"""A cache disk in trouble: right bytes all the time, from the sources where need be, and recovery without a restart.

Full in the middle of a chunk: ``test_capacity``. Cut and flipped files: ``test_damage``, ``test_scrub``. A folder that
is deleted under the cache, and a disk that fails as a whole and comes back: ``test_shelves``.
"""

from __future__ import annotations

import itertools
import logging
import os
from typing import TYPE_CHECKING

import pytest
import trio

from manifest.errors import Unavailable
from tests.cache.contents import (
    KIB,
    MIB,
    SHOW,
    FaultySource,
    Sample,
    accounts_agree,
    central,
    open_sample,
    opened,
    put,
    quiet,
    read_all,
    read_sample,
    sample,
    settle,
    until,
)
from tests.cache.disk import loop_disk

if TYPE_CHECKING:
    from pathlib import Path

    from cache.store import CacheStore
    from manifest.library import Library


async def comes_back(cache: CacheStore, made: Sample, *, within_s: float = 20) -> None:
    """Wait until a content that is read is kept again."""
    with trio.fail_after(within_s):
        while cache.percent(SHOW, made.content) < 100:
            assert await read_sample(cache, made) == made.data
            await settle(cache)
            await trio.sleep(0.2)


def complaints(log: pytest.LogCaptureFixture) -> list[str]:
    """What the cache said of its disk."""
    of_disks = ("cache.capacity", "cache.flush", "cache.index", "cache.service")
    return [r.getMessage() for r in log.records if r.name in of_disks and r.levelno >= logging.WARNING]


@pytest.mark.timeout(120)
async def test_a_disk_without_inodes_costs_no_reader_anything(
    file_library: Library, expects_log: pytest.LogCaptureFixture
) -> None:
    source = central(file_library)
    made = [put(file_library, sample(i, 70 * KIB)) for i in range(60)]
    with loop_disk(64, "ext4", "-N", "64") as disk:
        async with opened(disk.path / "cache", [source]) as cache:
            handles = [await open_sample(cache, one) for one in made]
            for handle, one in zip(handles, made, strict=True):
                assert await read_all(handle) == one.data
            await settle(cache)
            assert os.statvfs(disk.path).f_ffree == 0
            assert cache.counters.not_stored["no_space"] > 0
            assert len([line for line in complaints(expects_log) if "cannot take more" in line]) == 1
            for handle in handles:
                handle.release()
            await comes_back(cache, made[-1])
            await quiet(cache)
            await accounts_agree(cache)


@pytest.mark.timeout(120)
async def test_a_disk_that_turns_read_only_costs_no_reader_anything(
    file_library: Library, expects_log: pytest.LogCaptureFixture
) -> None:
    source = central(file_library)
    before, after = (put(file_library, sample(i, 3 * MIB)) for i in range(2))
    with loop_disk(64) as disk:
        async with opened(disk.path / "cache", [source]) as cache:
            await read_sample(cache, before)
            await quiet(cache)
            disk.meet_an_error()
            for one in (before, after, before, after):
                assert await read_sample(cache, one) == one.data
            await until(lambda: bool(complaints(expects_log)))
        disk.unmount()
        disk.mount()
        async with opened(disk.path / "cache", [source]) as cache:
            await comes_back(cache, after)
            source.fault = lambda ref: Unavailable(f"{ref}: offline")
            for one in (before, after):
                assert await read_sample(cache, one) == one.data


@pytest.mark.timeout(120)
@pytest.mark.parametrize("finder", ["reader", "scrub"])
async def test_sectors_that_cannot_be_read_are_fetched_again(
    finder: str, file_library: Library, expects_log: pytest.LogCaptureFixture
) -> None:
    source = central(file_library)
    made = put(file_library, sample(1, 24 * MIB, 2 * MIB))
    with loop_disk(128) as disk:  # with room before the sectors that are lost
        async with opened(disk.path / "cache", [source]) as cache:
            handle = await open_sample(cache, made)
            await read_all(handle, step=MIB)
            await until(lambda: handle.complete)
            await quiet(cache)
            (path,) = [p for p in (disk.path / "cache/objects").rglob("*") if p.is_file()]
            disk.lose_sectors(path)
            if finder == "scrub":
                report = cache.shelves[0].scrubber.begin()
                await until(lambda: not report.running)
                assert [bad.reason for bad in report.bad] == [
                    "the disk does not give its bytes back: Input/output error"
                ]
            for _ in range(2):
                assert await read_all(handle, step=MIB) == made.data
            await until(lambda: handle.complete)
            assert len([line for line in complaints(expects_log) if "its bytes back" in line]) == 1
            handle.release()
            await quiet(cache)
            assert not path.exists()
            await comes_back(cache, made)
            await accounts_agree(cache)


async def test_a_clock_that_was_years_ahead_leaves_the_order_of_uses_right(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [put(file_library, sample(i, MIB)) for i in range(9)]
    hour = 3600 * 10**9

    async def read(those: list[Sample], time_ns: int) -> None:
        """At that time, one after the other, in a process of its own."""
        times = itertools.count(time_ns, 10 * 10**9)
        with monkeypatch.context() as patch:
            patch.setattr("cache.clock.time.time_ns", lambda: next(times))
            async with opened(folder, [source], size_bytes=5 * MIB) as cache:
                for one in those:
                    assert await read_sample(cache, one) == one.data
                    await quiet(cache)
                await cache.shelves[0].flusher.flush_touches()

    await read(made[:2], 80 * 365 * 24 * hour)
    await read(made[2:4], hour)
    await read(made[4:], 50 * 365 * 24 * hour)
    async with opened(folder, [source], size_bytes=5 * MIB) as cache:
        assert cache.percent(SHOW, made[-1].content) == 100, "the last one was not the first to go"
        assert [cache.percent(SHOW, one.content) for one in made[:4]] == [0] * 4
        await accounts_agree(cache)
