"""Limits that change while the cache is in use, what stays free of its disk, and the shares of shows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from cache import accounts, capacity
from cache.limits import FolderLimits, Limits, Overrides, Priority, Reserve, ShowLimits
from cache.pinned import Pinned
from manifest.errors import ConfigurationError
from tests.cache.contents import (
    KIB,
    MIB,
    SHOW,
    FaultySource,
    Sample,
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

OTHER = "gemini"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "LOOK_S", 0.1)


def samples(library: Library, count: int, size: int = MIB, *, first: int = 0, show: str = SHOW) -> list[Sample]:
    """So many contents of a show, each of four chunks."""
    return [put(library, sample(first + i, size, size // 4), show) for i in range(count)]


async def fill(cache: CacheStore, made: list[Sample], *, show: str = SHOW) -> None:
    """Read all of these, one after the other, and have them claimed."""
    for one in made:
        handle = await open_sample(cache, one, show=show)
        assert await read_all(handle) == one.data
        handle.release()
    await settle(cache)


def cached(cache: CacheStore, made: list[Sample], *, show: str = SHOW) -> int:
    """How many of these are wholly in the cache."""
    return sum(cache.percent(show, one.content) == 100 for one in made)


def free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def index_bytes(folder: Path) -> int:
    """What the index and SQLite's log of it take of the disk."""
    files = list(folder.glob("index*"))
    assert files
    return sum(file.stat().st_blocks * 512 for file in files)


async def test_a_smaller_size_is_kept_in_the_background_and_by_later_mounts(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = samples(file_library, 10)
    async with opened(folder, [source], size_bytes=16 * MIB) as cache:
        await fill(cache, made)
        handle = await open_sample(cache, made[0])
        await cache.admin.set_limits({folder: {"size_bytes": 4 * MIB}}, {})
        assert cache.stats().size_bytes == 4 * MIB
        assert await read_all(handle) == made[0].data  # nobody waits for it
        handle.release()
        await until(lambda: cache.stats().used_bytes <= 4 * MIB)
        assert await read_sample(cache, made[5]) == made[5].data
        assert cache.stats().used_bytes <= 4 * MIB
    async with opened(folder, [source], size_bytes=16 * MIB) as cache:
        assert cache.stats().folders[0].set == ["size_bytes"]
        assert cache.stats().size_bytes == 4 * MIB
        await cache.admin.unset_limits([folder])
        assert (cache.stats().folders[0].set, cache.stats().size_bytes) == ([], 16 * MIB)
        await fill(cache, made)
        assert cached(cache, made) == 10


async def test_limits_that_cannot_be_change_nothing(folder: Path, file_library: Library, source: FaultySource) -> None:
    async with opened(folder, [source], size_bytes=16 * MIB) as cache:
        before = cache.admin.limits(folder)
        for values in ({"size_bytes": 5}, {"size_bytes": 1 << 60}, {"size_bytes": 8 * MIB, "low_water": 0.99}):
            with pytest.raises(ConfigurationError):
                await cache.admin.set_limits({folder: values}, {})
        assert cache.admin.limits(folder) == before
        assert Overrides.load(folder) == Overrides()


async def test_the_water_marks_say_when_eviction_begins_and_ends(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = samples(file_library, 6)
    limits = Limits(10 * MIB, high_water=0.6, low_water=0.3)
    async with opened(folder, [source], size_bytes=10 * MIB, limits=limits) as cache:
        await fill(cache, made[:5])
        assert cached(cache, made) == 5
        await fill(cache, made[5:])
        await until(lambda: cache.stats().used_bytes <= 3 * MIB)


@pytest.mark.timeout(120)
async def test_what_is_to_stay_free_stays_free_whoever_fills_the_disk(
    file_library: Library, source: FaultySource
) -> None:
    made = samples(file_library, 24)
    reserve = 12 * MIB
    with loop_disk(40) as disk:
        limits = Limits(1 << 30, free_reserve=Reserve(count=reserve))
        async with opened(disk.path / "cache", [source], limits=limits) as cache:
            await until(lambda: cache.stats().folders[0].free_bytes is not None)
            for one in made:
                assert await read_sample(cache, one) == one.data
                free = free_bytes(disk.path)
                assert free >= reserve - index_bytes(disk.path / "cache")  # which grows between two looks
            await quiet(cache)
            await until(lambda: free_bytes(disk.path) >= reserve)
            assert cached(cache, made) >= 5
            free = free_bytes(disk.path)
            with (disk.path / "others").open("wb") as others:
                os.posix_fallocate(others.fileno(), 0, free - reserve + 4 * MIB)
            assert free_bytes(disk.path) < reserve
            await until(lambda: free_bytes(disk.path) >= reserve)
            stats = cache.stats().folders[0]
            assert stats.bound_bytes < stats.size_bytes
            for one in made:
                assert await read_sample(cache, one) == one.data
            await until(lambda: free_bytes(disk.path) >= reserve)
            (disk.path / "others").unlink()
            await until(lambda: cache.stats().folders[0].bound_bytes > stats.bound_bytes + MIB)
            assert cache.counters.not_stored["no_space"] == 0


@pytest.mark.timeout(120)
async def test_inodes_stay_free_too(file_library: Library, source: FaultySource) -> None:
    made = samples(file_library, 30, 128 * KIB)
    with loop_disk(40) as disk:
        (disk.path / "cache/objects").mkdir(parents=True, mode=0o700)
        for one in made:  # the folders that objects lie in take an inode each
            (disk.path / "cache/objects" / one.content.hex()[:2]).mkdir(mode=0o700, exist_ok=True)
        keep = os.statvfs(disk.path).f_favail - 20
        limits = Limits(1 << 30, free_inodes=Reserve(count=keep))
        async with opened(disk.path / "cache", [source], limits=limits) as cache:
            await until(lambda: cache.stats().folders[0].free_inodes is not None)
            for one in made:
                assert await read_sample(cache, one) == one.data
                await settle(cache)
            assert os.statvfs(disk.path).f_favail >= keep
            assert 0 < cached(cache, made) < 20
            for i in range(30):  # more than the cache has to give
                (disk.path / f"other{i}").touch()
            await until(lambda: cached(cache, made) == 0)
            assert await read_sample(cache, made[0]) == made[0].data
            await settle(cache)
            assert cached(cache, made) == 0


async def test_a_show_over_its_quota_loses_its_own(folder: Path, file_library: Library, source: FaultySource) -> None:
    mine, others = samples(file_library, 6), samples(file_library, 4, first=100, show=OTHER)
    async with opened(folder, [source], size_bytes=64 * MIB) as cache:
        await fill(cache, others, show=OTHER)
        await cache.admin.set_limits({}, {SHOW: ShowLimits(quota_bytes=3 * MIB)})
        await fill(cache, mine)
        await until(lambda: cached(cache, mine) <= 2)
        await until(lambda: 0 < cache.stats().shows[SHOW].used_bytes <= 3 * MIB)
        assert cached(cache, others, show=OTHER) == 4
        assert cached(cache, mine) > 0
        assert cache.stats().shows[SHOW].quota_bytes == 3 * MIB
    async with opened(folder, [source], size_bytes=64 * MIB) as cache:
        assert cache.admin.limits(folder)[0].show(SHOW).quota_bytes == 3 * MIB


async def test_a_show_whose_files_are_all_open_loses_them_when_they_are_closed(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = samples(file_library, 4)
    async with opened(folder, [source], size_bytes=64 * MIB) as cache:
        handles = [await open_sample(cache, one) for one in made]
        for handle in handles:
            await read_all(handle)
        await settle(cache)
        await cache.admin.set_limits({}, {SHOW: ShowLimits(quota_bytes=MIB)})
        await trio.sleep(5 * capacity.LOOK_S)
        assert cached(cache, made) == 4
        for handle in handles:
            handle.release()
        await until(lambda: cached(cache, made) == 0)


async def test_shows_of_low_priority_go_first_and_those_of_high_last(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    high, low = samples(file_library, 4), samples(file_library, 4, first=100, show=OTHER)
    plain = samples(file_library, 8, first=200, show="odyssey")
    async with opened(folder, [source], size_bytes=13 * MIB) as cache:
        await cache.admin.set_limits(
            {}, {SHOW: ShowLimits(priority=Priority.HIGH), OTHER: ShowLimits(priority=Priority.LOW)}
        )
        await fill(cache, high)
        await fill(cache, plain[:4], show="odyssey")
        await fill(cache, low, show=OTHER)
        await fill(cache, plain[4:6], show="odyssey")
        await until(lambda: cached(cache, low, show=OTHER) < 4)
        assert cached(cache, plain[:6], show="odyssey") == 6
        assert cached(cache, high) == 4
        await fill(cache, plain[6:], show="odyssey")
        await cache.admin.set_limits({folder: {"size_bytes": 5 * MIB}}, {})
        await until(lambda: cache.stats().used_bytes <= 5 * MIB)
        assert cached(cache, low, show=OTHER) == 0
        assert cached(cache, high) == 4


async def test_named_contents_are_evicted_but_those_that_are_open_or_pinned(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = samples(file_library, 4)
    small = put(file_library, sample(99, 1000))
    async with opened(folder, [source]) as cache:
        await fill(cache, [*made, small])
        (index,) = [shelf.index for shelf in cache.shelves]
        await trio.to_thread.run_sync(Pinned(index).add, 1, 1, SHOW, [(made[3].content, made[3].size)])
        handle = await open_sample(cache, made[0])
        before = cache.stats().used_bytes
        done = await cache.admin.evict(SHOW, {one.content for one in [*made, small]})
        assert (done.objects, done.in_use, done.pinned) == (3, 1, 1)
        assert cache.stats().used_bytes == before - done.bytes
        assert done.bytes >= 2 * MIB
        handle.release()
        contents = [(one.content, one.size) for one in [*made, small]]
        assert await cache.admin.present_bytes(SHOW, contents) == [MIB, 0, 0, MIB, 0]
        assert (await cache.admin.evict(OTHER, {made[0].content})).objects == 0
        assert await read_sample(cache, made[1]) == made[1].data


async def test_what_each_show_has_is_what_the_rows_say_after_any_change(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    mine = [put(file_library, sample(i, 256 * KIB, KIB), recipe_object=True) for i in range(12)]
    others = samples(file_library, 6, first=100, show=OTHER)
    async with opened(folder, [source], size_bytes=4 * MIB) as cache:
        for one in mine:
            await read_sample(cache, one, with_recipe=False)
        await fill(cache, others, show=OTHER)
        await cache.admin.evict(SHOW, {mine[-1].content})
        await quiet(cache)
        (shelf,) = cache.shelves
        rows = shelf.index._reader.execute(
            "SELECT tenant, sum(charge), sum(n) FROM (SELECT tenant, charge, 1 AS n FROM objects UNION ALL "
            "SELECT tenant, charge, 0 FROM recipes) GROUP BY tenant"
        ).fetchall()
        assert shelf.index.held() == {tenant: accounts.Held(charge, count) for tenant, charge, count in rows}
        assert sum(show.bytes for show in shelf.index.held().values()) == cache.stats().used_bytes


async def test_reads_are_counted_by_show_and_source(folder: Path, file_library: Library, source: FaultySource) -> None:
    made, other = samples(file_library, 1), samples(file_library, 1, first=9, show=OTHER)
    async with opened(folder, [source]) as cache:
        await fill(cache, made)
        await fill(cache, other, show=OTHER)
        await fill(cache, made)
        await until(lambda: cache.stats().shows[SHOW].used_bytes > 0)
        shows, stats = cache.stats().shows, cache.stats()
        assert shows[SHOW].fetched_bytes == shows[OTHER].fetched_bytes == {"central": MIB}
        assert sum(show.hits for show in shows.values()) == stats.hits
        assert sum(show.misses for show in shows.values()) == stats.misses
        assert shows[SHOW].hit_bytes + shows[SHOW].miss_bytes == 2 * MIB
        assert shows[SHOW].hits > shows[OTHER].hits
        assert shows[SHOW].objects == 1


def test_the_reads_of_no_more_than_so_many_shows_are_told_apart() -> None:
    reads = accounts.ReadAccounts()
    for i in range(accounts.SHOWS_MAX + 10):
        reads.of(f"show{i}").hits += 1
    told = dict(reads.items())
    assert len(told) == accounts.SHOWS_MAX + 1
    assert told[accounts.OTHER].hits == 10


async def test_an_index_that_never_counted_shows_is_counted_through_once(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = samples(file_library, 2)
    async with opened(folder, [source]) as cache:
        await fill(cache, made)
        writer = cache.shelves[0].index._writer
        for (name,) in writer.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'shows_%'"):
            writer.execute(f"DROP TRIGGER {name}")
        writer.execute("DROP TABLE shows")
    async with opened(folder, [source]) as cache:
        assert cache.shelves[0].index.held() == {SHOW: accounts.Held(cache.stats().used_bytes, 2)}
        await cache.admin.evict(SHOW, {made[0].content})
        assert cache.shelves[0].index.held() == {SHOW: accounts.Held(cache.stats().used_bytes, 1)}


@pytest.mark.usefixtures("expects_log")  # of two folders on one file system
async def test_a_quota_is_divided_among_folders_and_one_that_was_away_learns_of_it(
    folder: Path, tmp_path: Path, source: FaultySource
) -> None:
    other = FolderLimits(tmp_path / "other", Limits(30 * MIB))

    def quotas(cache: CacheStore) -> list[int | None]:
        return [shelf.capacity.limits.show(SHOW).quota_bytes for shelf in cache.shelves]

    async with opened(folder, [source], size_bytes=10 * MIB, others=[other]) as cache:
        await cache.admin.set_limits({}, {SHOW: ShowLimits(8 * MIB)})
        assert quotas(cache) == [2 * MIB, 6 * MIB]
        await cache.admin.set_limits({folder: {"size_bytes": 30 * MIB}}, {})
        assert quotas(cache) == [4 * MIB, 4 * MIB]
    Overrides().save(other.folder)
    async with opened(folder, [source], size_bytes=10 * MIB, others=[other]) as cache:
        assert cache.stats().shows[SHOW].quota_bytes == 8 * MIB
        assert quotas(cache) == [4 * MIB, 4 * MIB]
        await cache.admin.unset_limits([folder])
        assert quotas(cache) == [2 * MIB, 6 * MIB]
