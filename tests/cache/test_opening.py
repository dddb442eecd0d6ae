"""Opening: at once where nothing has to be waited for, and of two sizes of one content the true one counts."""

from __future__ import annotations

import os
import sqlite3
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cache import files, openat2
from cache.claim import ClaimChecker
from cache.index import Index, ObjectRow
from manifest.errors import IntegrityError, Unavailable
from manifest.recipe import Recipe
from tests.cache.contents import (
    KIB,
    MIB,
    SHOW,
    FaultySource,
    Sample,
    accounts_agree,
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

    from blake3 import blake3

    from cache.handle import CachedObject
    from cache.store import CacheStore
    from manifest.library import Library


def now(cache: CacheStore, made: Sample, *, with_recipe: bool = True) -> CachedObject | None:
    """``open_now`` of a sample, with a recipe of the caller's own, as a binding has it."""
    recipe = Recipe(made.recipe.packed) if with_recipe else None
    return cache.open_now(SHOW, made.content, made.size, made.digest, recipe, path_hint="plate/a.exr")


async def cached(cache: CacheStore, made: Sample) -> None:
    """Have it all in the cache, and not open."""
    assert await read_sample(cache, made) == made.data
    await quiet(cache)
    assert cache.stats().open_objects == 0


@pytest.fixture
def _cached_names() -> None:
    """Skips where the kernel opens nothing from memory alone."""
    folder = os.open("/", os.O_RDONLY)
    try:
        os.close(os.open("dev/null", os.O_RDWR, dir_fd=folder))
        fd = openat2.open_cached(folder, "dev/null")
        if fd is None:
            pytest.skip("openat2 with RESOLVE_CACHED does not work here")
        os.close(fd)
    finally:
        os.close(folder)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is read to be hashed, from where to where."""
    found: list[tuple[int, int]] = []
    update = ClaimChecker._update

    def noting(self: ClaimChecker, hasher: blake3, fd: int, begin: int, end: int) -> bool:
        found.append((begin, end))
        return update(self, hasher, fd, begin, end)

    monkeypatch.setattr(ClaimChecker, "_update", noting)
    return found


async def test_what_is_here_of_a_file_is_told_while_it_is_being_looked_up(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put(file_library, sample(1, MIB, MIB // 4))
    async with opened(folder, [source]) as cache:
        assert await read_sample(cache, made) == made.data
        await quiet(cache)
        go, find = threading.Event(), Index.find

        def slow(index: Index, tenant: str, content: bytes) -> ObjectRow | None:
            go.wait(10)
            return find(index, tenant, content)

        monkeypatch.setattr(Index, "find", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_sample, cache, made)
            await until(lambda: (SHOW, made.content) in cache.shelves[0].contents)
            assert cache.percent(SHOW, made.content) == 100
            go.set()


@pytest.mark.usefixtures("_cached_names")
@pytest.mark.parametrize("with_recipe", [True, False])
async def test_a_cached_file_is_opened_without_waiting(
    with_recipe: bool, folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put(file_library, sample(1, MIB))
    async with opened(folder, [source]) as cache:
        await cached(cache, made)
        await trio.testing.wait_all_tasks_blocked(0.05)
        with monkeypatch.context() as patch:
            patch.setattr(trio.to_thread, "run_sync", None)
            handle = now(cache, made, with_recipe=with_recipe)
            assert handle is not None
            assert handle.complete
            fd = handle.backing()
            assert fd is not None
            assert os.pread(fd, made.size + 1, 0) == made.data
            assert not os.get_inheritable(fd)
        assert await read_all(handle) == made.data
        handle.release()
        await quiet(cache)
        assert cache.stats().open_objects == 0
        await until(lambda: cache.shelves[0].files._open_count == 0)


@pytest.mark.parametrize("size", [0, 1, 64 * KIB, 64 * KIB + 1, MIB])
async def test_what_is_not_cached_is_opened_without_waiting(
    size: int, folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, size))
    async with opened(folder, [source]) as cache:
        handle = now(cache, made)
        assert handle is not None
        again = now(cache, made)
        assert again is not None
        assert again._content is handle._content
        assert await read_all(handle) == made.data
        for one in (handle, again):
            one.release()


@pytest.mark.usefixtures("_cached_names")
async def test_no_writer_of_the_index_is_waited_for(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = put(file_library, sample(1, MIB))
    async with opened(folder, [source]) as cache:
        await cached(cache, made)
        writer = sqlite3.connect(folder / "index.db", isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE objects SET used = 0")
        begun = trio.current_time()
        handle = now(cache, made)
        assert trio.current_time() - begun < 1
        writer.close()
        assert handle is not None
        handle.release()


@pytest.mark.usefixtures("_cached_names")
@pytest.mark.parametrize(
    "obstacle", ["not in memory", "no descriptor", "index fails", "file is gone", "file was cut", "row is of another",
                 "being evicted", "closed", "another size", "wrong recipe"],
)  # fmt: skip
async def test_whatever_is_in_the_way_is_left_to_open_object(
    obstacle: str, folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put(file_library, sample(1, MIB))
    async with opened(folder, [source]) as cache:
        await cached(cache, made)
        (path,) = (folder / "objects").rglob(f"{made.content.hex()}.*")
        match obstacle:
            case "not in memory":
                monkeypatch.setattr(files, "open_cached", lambda *_: None)
            case "no descriptor":
                monkeypatch.setattr(cache.shelves[0].files, "_open_max", 0)
            case "index fails":
                cache.shelves[0].index._loop_reader.close()
            case "file is gone":
                path.unlink()
            case "file was cut":
                os.truncate(path, 10)
            case "row is of another":
                row = cache.shelves[0].index.find(SHOW, made.content)
                assert row is not None
                cache.shelves[0].index.commit([replace(row, chunks=row.chunks + 8, present=b"xx")], 1)
            case "being evicted":
                cache.shelves[0].capacity.evicting.add((SHOW, made.content))
            case "closed":
                await cache.close()
            case "another size":
                handle = await open_sample(cache, made)
                assert cache.open_now(SHOW, made.content, made.size + 1, made.digest, None) is None
                handle.release()
                return
            case "wrong recipe":
                assert cache.open_now(SHOW, made.content, made.size + 1, made.digest, made.recipe) is None
                return
        assert now(cache, made) is None
        assert cache.stats().open_objects == 0
        monkeypatch.undo()
        if obstacle == "closed":
            with pytest.raises(Unavailable):
                await open_sample(cache, made)
            return
        assert await read_sample(cache, made) == made.data
        cache.shelves[0].capacity.evicting.clear()


async def test_what_is_being_looked_up_is_not_opened_past_it(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, MIB))
    async with opened(folder, [source]) as cache:
        await cached(cache, made)
        async with trio.open_nursery() as nursery:
            handles: list[CachedObject] = []

            async def open_it() -> None:
                handles.append(await open_sample(cache, made))

            nursery.start_soon(open_it)
            while not cache.stats().open_objects:
                await trio.lowlevel.checkpoint()
            assert now(cache, made) is None
        handles[0].release()


async def test_the_true_size_takes_the_place_of_a_lie_that_was_opened_first(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, MIB, 64 * KIB), recipe_object=True)
    async with opened(folder, [source]) as cache:
        lie = await cache.open_object(SHOW, made.content, made.size + 1, made.digest, None)
        honest = await open_sample(cache, made)
        assert await read_all(honest) == made.data
        with pytest.raises(IntegrityError):
            await lie.read(0, 10, trio.current_time() + 5)
        await until(lambda: honest.backing() is not None)
        assert lie.backing() is None
        lie.release()
        assert (SHOW, made.content) in cache.shelves[0].contents
        honest.release()
        await quiet(cache)
        assert cache.stats().open_objects == 0
        assert cache.percent(SHOW, made.content) == 100
        await accounts_agree(cache)


async def test_the_true_size_is_known_by_its_recipe_where_that_is_an_object(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, MIB, 64 * KIB), recipe_object=True)
    async with opened(folder, [source]) as cache:
        await cached(cache, made)
    async with opened(folder, [source]) as cache:
        lie = await cache.open_object(SHOW, made.content, made.size + 1, made.digest, None)
        honest = [await open_sample(cache, made, with_recipe=False) for _ in range(2)]
        assert honest[0].backing() is None, "nobody knows yet"
        asked = len(source.asked)
        assert await read_all(honest[0]) == made.data
        assert len(source.asked) == asked, "chunks and recipe were in the cache"
        assert honest[0].backing() is not None
        assert await read_all(honest[1]) == made.data
        for one in (lie, *honest):
            one.release()
        await quiet(cache)
        assert cache.stats().open_objects == 0
        await accounts_agree(cache)


async def test_a_lie_that_is_opened_second_gets_errors_and_changes_nothing(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, MIB, 64 * KIB), recipe_object=True)
    async with opened(folder, [source]) as cache:
        honest = await open_sample(cache, made)
        assert await read_all(honest) == made.data
        await until(lambda: honest.backing() is not None)
        fd = honest.backing()
        lie = await cache.open_object(SHOW, made.content, made.size - 1, made.digest, None)
        with pytest.raises(IntegrityError):
            await lie.read(0, 10, trio.current_time() + 5)
        assert lie.backing() is None
        assert honest.backing() == fd
        lie.release()
        assert (SHOW, made.content) in cache.shelves[0].contents
        honest.release()


async def test_a_start_does_not_hash_what_was_complete(
    folder: Path, file_library: Library, source: FaultySource, spans: list[tuple[int, int]]
) -> None:
    made = put(file_library, sample(1, 3 * MIB))
    async with opened(folder, [source]) as cache:
        await cached(cache, made)
    spans.clear()
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        assert handle.complete
        assert handle.backing() is not None
        assert await read_all(handle) == made.data
        await quiet(cache)
        assert not spans
        handle.release()


async def test_a_file_that_is_filled_in_order_is_hashed_behind_the_fill(
    folder: Path, file_library: Library, source: FaultySource, spans: list[tuple[int, int]]
) -> None:
    made = put(file_library, sample(1, 40 * MIB, 4 * MIB))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        for offset in range(0, made.size, MIB):
            await handle.read(offset, MIB, trio.current_time() + 20)
            if offset == 30 * MIB:
                await trio.sleep(0.2)
                assert spans[-1][1] >= 20 * MIB, "most of it is hashed before the end has come"
        await until(lambda: handle.complete)
        assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])], "every byte once"
        handle.release()


async def test_a_file_that_is_filled_in_any_order_becomes_complete(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 20 * MIB, MIB))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        for offset in sorted(range(0, made.size, MIB), key=lambda offset: offset * 7919 % 104729):
            await handle.read(offset, MIB, trio.current_time() + 20)
        await until(lambda: handle.backing() is not None)
        handle.release()


async def test_a_part_of_a_former_start_is_not_hashed_before_the_rest_is_there(
    folder: Path, file_library: Library, source: FaultySource, spans: list[tuple[int, int]]
) -> None:
    made = put(file_library, sample(1, 20 * MIB, MIB))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        for offset in range(0, 15 * MIB, MIB):
            await handle.read(offset, MIB, trio.current_time() + 20)
        handle.release()
        await quiet(cache)
    spans.clear()
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        await handle.read(17 * MIB, 1, trio.current_time() + 20)
        await quiet(cache)
        assert not spans
        assert await read_all(handle, step=MIB) == made.data
        await until(lambda: handle.backing() is not None)
        handle.release()
