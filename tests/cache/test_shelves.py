"""Several cache folders: where contents go, and what happens when the disk of one fails."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from cache import health, service
from cache.index import Index
from cache.limits import FolderLimits, Limits
from cache.placement import distance
from manifest.errors import ConfigurationError, Unavailable
from tests.cache.contents import (
    KIB,
    MIB,
    SHOW,
    open_sample,
    opened,
    put,
    quiet,
    read_all,
    read_sample,
    sample,
    until,
)
from tests.cache.disk import loop_disk

if TYPE_CHECKING:
    from pathlib import Path

    from cache.store import CacheStore
    from manifest.library import Library
    from tests.cache.contents import FaultySource, Sample

SIZE_BYTES = 1 << 30
SIZES = [1000, 60 * KIB, 200 * KIB, MIB + 5]


@pytest.fixture
def made(file_library: Library) -> list[Sample]:
    """Contents of all kinds."""
    return [put(file_library, sample(i, SIZES[i % len(SIZES)], 300 * KIB)) for i in range(16)]


@pytest.fixture
def other(tmp_path: Path) -> FolderLimits:
    """A second folder of the same size."""
    return FolderLimits(tmp_path / "other", Limits(SIZE_BYTES))


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is tried again soon."""
    monkeypatch.setattr(service, "WATCH_S", 0.1)
    monkeypatch.setattr(service, "RETRY_S", 0.05)
    monkeypatch.setattr(service, "RETRY_S_MAX", 0.2)


def places(cache: CacheStore, made: list[Sample]) -> list[list[Path]]:
    """The folders that have something of each content."""
    return [[shelf.folder for shelf in cache.shelves if shelf.has(SHOW, one.content)] for one in made]


async def read_every(cache: CacheStore, made: list[Sample]) -> None:
    for one in made:
        assert await read_sample(cache, one) == one.data


async def all_quiet(cache: CacheStore) -> None:
    await until(lambda: cache.stats().inflight == 0)
    for shelf in cache.shelves:
        await shelf.flusher.flush()
    await trio.sleep(0.05)
    for shelf in cache.shelves:
        await shelf.flusher.flush()


def offline(source: FaultySource) -> None:
    """From now on only what is cached can be read."""
    source.fault = lambda ref: Unavailable(f"{ref}: offline")


def test_contents_are_spread_by_the_weights_and_move_no_more_than_they_must() -> None:
    keys = [b"%d" % i for i in range(20_000)]
    weights = {b"a": 1.0, b"b": 1.0, b"c": 2.0}

    def choose(weights: dict[bytes, float]) -> list[bytes]:
        return [min(weights, key=lambda name: distance(name, weights[name], key)) for key in keys]

    before = choose(weights)
    counts = Counter(before)
    assert 0.48 < counts[b"c"] / len(keys) < 0.52
    assert 0.23 < counts[b"a"] / len(keys) < 0.27
    without = choose({b"a": 1.0, b"c": 2.0})
    assert all(was == now for was, now in zip(before, without, strict=True) if was != b"b")
    larger = choose({**weights, b"c": 4.0})
    assert all(now in (was, b"c") for was, now in zip(before, larger, strict=True))


@pytest.mark.usefixtures("expects_log")
async def test_every_content_lies_on_one_shelf_and_is_read_from_there(
    folder: Path, other: FolderLimits, made: list[Sample], source: FaultySource
) -> None:
    async with opened(folder, [source], others=[other]) as cache:
        await read_every(cache, made)
        await all_quiet(cache)
        found = places(cache, made)
        assert all(len(one) == 1 for one in found)
        assert {one[0] for one in found} == {folder, other.folder}
        asked = len(source.asked)
        await read_every(cache, made)
        assert len(source.asked) == asked
        assert cache.stats().size_bytes == 2 * SIZE_BYTES
        assert cache.stats().objects == len(made)
    offline(source)
    async with opened(folder, [source], others=[other]) as cache:
        await read_every(cache, made)
        assert [cache.percent(SHOW, one.content) for one in made] == [100] * len(made)


@pytest.mark.usefixtures("expects_log")
async def test_what_lies_on_another_shelf_than_it_belongs_is_used_there(
    folder: Path, other: FolderLimits, made: list[Sample], source: FaultySource
) -> None:
    async with opened(folder, [source]) as cache:
        await read_every(cache, made)
        await quiet(cache)
    offline(source)
    async with opened(folder, [source], others=[other]) as cache:
        await read_every(cache, made)
        assert places(cache, made) == [[folder]] * len(made)
        for one in made:
            handle = cache.open_now(SHOW, one.content, one.size, one.digest, one.recipe)
            assert handle is not None
            assert await read_all(handle) == one.data
            handle.release()


async def test_two_folders_on_one_file_system_are_used_and_warned_of(
    folder: Path, other: FolderLimits, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    async with opened(folder, [source], others=[other]):
        pass
    assert "one file system" in expects_log.text


async def test_a_folder_that_is_taken_leaves_the_others_free(
    folder: Path, other: FolderLimits, source: FaultySource
) -> None:
    async with opened(other.folder, [source]):
        with pytest.raises(ExceptionGroup) as caught:
            async with opened(folder, [source], others=[other]):
                pass
        assert isinstance(caught.value.exceptions[0], ConfigurationError)
        assert str(other.folder) in str(caught.value.exceptions[0])
        async with opened(folder, [source]):
            pass


@pytest.mark.usefixtures("expects_log")
@pytest.mark.parametrize("several", [False, True])
async def test_a_folder_that_is_deleted_is_made_anew_while_reads_go_on(
    folder: Path, other: FolderLimits, made: list[Sample], source: FaultySource, several: bool
) -> None:
    async with opened(folder, [source], others=[other] if several else []) as cache:
        handles = [await open_sample(cache, one) for one in made]
        for handle, one in zip(handles, made, strict=True):
            assert await read_all(handle) == one.data
        await all_quiet(cache)
        before = cache.shelves[0]
        shutil.rmtree(folder)
        for handle, one in zip(handles, made, strict=True):
            assert await read_all(handle) == one.data
        await read_every(cache, made)
        await until(lambda: before.is_retired and folder in [shelf.folder for shelf in cache.shelves])
        for handle, one in zip(handles, made, strict=True):
            assert await read_all(handle) == one.data
            handle.release()
        await all_quiet(cache)
        assert (folder / "index.db").exists()
        offline(source)
        await read_every(cache, made)
        await until(lambda: not cache._retired)


@pytest.mark.usefixtures("expects_log")
async def test_a_folder_whose_new_index_fails_too_is_tried_again(
    folder: Path, made: list[Sample], source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fails(index: Index) -> tuple[int, int]:
        tried.append(index)
        raise sqlite3.DatabaseError("database disk image is malformed")

    async with opened(folder, [source]) as cache:
        await read_every(cache, made)
        with monkeypatch.context() as patch:
            patch.setattr(Index, "totals", fails)
            shutil.rmtree(folder)
            await until(lambda: len(tried) > 4)
            assert not cache.shelves
            await read_every(cache, made)
        await until(lambda: bool(cache.shelves))
        await read_every(cache, made)


async def test_a_folder_out_of_service_is_told_of_once_and_named(
    folder: Path, other: FolderLimits, made: list[Sample], source: FaultySource, expects_log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(service, "RETRY_S", 60)
    async with opened(folder, [source], others=[other]) as cache:
        changed, locks = cache.changed, cache.lock_fds
        assert None not in locks
        with expects_log.at_level(logging.INFO):
            monkeypatch.setattr(health, "try_out", _fail)
            cache.shelves[0].faults.note(OSError(errno.EIO, "as if"))
            await changed.wait()
        (said,) = [r.getMessage() for r in expects_log.records if "out of service" in r.getMessage()]
        assert str(folder) in said
        assert "as if it were dead" in said
        one, two = cache.stats().folders
        assert (one.in_service, two.in_service) == (False, True)
        assert "as if it were dead" in (one.reason or "")
        assert cache.lock_fds[0] is None
        assert cache.lock_fds[1] == locks[1]
        await read_every(cache, made)
        await all_quiet(cache)
        assert places(cache, made) == [[other.folder]] * len(made)


def _fail(folder: Path) -> None:
    raise OSError(errno.EIO, "as if it were dead")


@pytest.mark.usefixtures("expects_log")
async def test_many_errors_count_though_the_disk_seems_to_work(
    folder: Path, made: list[Sample], source: FaultySource
) -> None:
    async with opened(folder, [source]) as cache:
        before = cache.shelves[0]
        before.faults.note(OSError(errno.EIO, "as if"))
        before.faults.note(OSError(errno.ENOSPC, "full"))
        await trio.sleep(0.3)
        assert cache.shelves == [before]
        for _ in range(health.FAULTS_MAX):
            before.faults.note(OSError(errno.EIO, "as if"))
        await until(lambda: cache.shelves != [before])
        await until(lambda: bool(cache.shelves))
        await read_every(cache, made)


@pytest.mark.usefixtures("expects_log")
async def test_what_was_lent_stays_open_and_is_not_lent_again(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    one = put(file_library, sample(1, 2 * MIB, MIB))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, one)
        await read_all(handle)
        await until(lambda: handle.backing() is not None)
        descriptor = handle.backing()
        assert descriptor is not None
        before = cache.shelves[0]
        shutil.rmtree(folder)
        await until(lambda: before.is_retired and bool(cache.shelves))
        assert os.pread(descriptor, one.size, 0) == one.data
        assert await read_all(handle) == one.data
        again = await open_sample(cache, one)
        assert again.backing() is None
        assert await read_all(again) == one.data
        again.release()
        handle.release()
        await until(lambda: not cache._retired)
        handle = await open_sample(cache, one)
        assert await read_all(handle) == one.data
        await until(lambda: handle.backing() is not None)
        handle.release()


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("expects_log")
async def test_a_disk_that_dies_and_is_mended_comes_back_with_what_it_had(
    folder: Path, made: list[Sample], source: FaultySource
) -> None:
    with loop_disk(64) as disk:
        dying = FolderLimits(disk.path / "cache", Limits(SIZE_BYTES))
        async with opened(folder, [source], others=[dying]) as cache:
            handles = [await open_sample(cache, one) for one in made]
            await read_every(cache, made)
            await all_quiet(cache)
            kept = [one for one, where in zip(made, places(cache, made), strict=True) if where == [dying.folder]]
            assert kept
            await trio.to_thread.run_sync(os.sync)
            disk.cut_power()
            for handle, one in zip(handles, made, strict=True):
                assert await read_all(handle) == one.data
            await until(lambda: [shelf.folder for shelf in cache.shelves] == [folder])
            await until(cache.folders[1].shelf.let_go.is_set)  # type: ignore[union-attr]
            for handle, one in zip(handles, made, strict=True):
                assert await read_all(handle) == one.data
            await trio.to_thread.run_sync(disk.unmount)
            await until(lambda: "nothing is mounted" in (cache.folders[1].out_because or ""))
            assert not dying.folder.exists()
            disk.mount()
            await until(lambda: len(cache.shelves) == 2)
            for handle in handles:
                handle.release()
            await until(lambda: not cache._retired)
            offline(source)
            await read_every(cache, kept)


@pytest.mark.usefixtures("expects_log")
async def test_a_disk_that_is_dead_at_the_start_is_done_without_and_taken_in_later(
    folder: Path, made: list[Sample], source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loop_disk(64) as disk:
        dead = FolderLimits(disk.path / "cache", Limits(SIZE_BYTES))
        disk.remount("ro")
        async with opened(dead.folder, [source], others=[FolderLimits(folder, Limits(SIZE_BYTES))]) as cache:
            assert [shelf.folder for shelf in cache.shelves] == [folder]
            await read_every(cache, made)
            disk.remount("rw")
            await until(lambda: len(cache.shelves) == 2)
            await read_every(cache, made)
        disk.remount("ro")
        with pytest.raises(ExceptionGroup) as caught:
            async with opened(dead.folder, [source]):
                pass
        assert isinstance(caught.value.exceptions[0], ConfigurationError)
