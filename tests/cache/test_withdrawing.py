"""Fetches that nobody wants any more: what has not begun is withdrawn, and everything else goes on."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trio.testing

from cache.queue import SHARES, Priority
from cache.trace import unpack
from tests.cache.contents import KIB, MIB, central, open_sample, opened, put, read_all, sample, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cache.handle import CachedObject
    from cache.store import CacheStore
    from manifest.library import Library
    from tests.cache.contents import FaultySource, Sample

AHEAD = Priority.READ_AHEAD


@asynccontextmanager
async def waiting(folder: Path, library: Library) -> AsyncIterator[tuple[CacheStore, FaultySource, Sample]]:
    """A cache all of whose places for read-ahead are taken by one content, and another content that has to wait."""
    source = central(library)
    source.gate = trio.Event()
    first = put(library, sample(1, SHARES[AHEAD].fetches * 256 * KIB, 256 * KIB))
    second = put(library, sample(2, 2 * MIB, 256 * KIB))
    async with opened(folder, [source]) as cache, trio.open_nursery() as nursery:
        taking = await open_sample(cache, first)
        for i in range(len(first.recipe)):  # fill brings a few at a time
            span = first.recipe.offset(i), first.recipe.offset(i + 1)
            nursery.start_soon(taking.fill, 20.0, span, AHEAD)
        await until(lambda: len(source.asked) >= SHARES[AHEAD].fetches)
        source.asked.clear()
        yield cache, source, second
        source.gate.set()
        await until(lambda: cache.stats().inflight == 0)
        taking.release()


def asked(source: FaultySource, made: Sample) -> int:
    """How often the source was asked for chunks of a content."""
    chunks = {made.recipe[i].digest for i in range(len(made.recipe))}
    return sum(ref.digest in chunks for ref in source.asked)


async def begin_to_fill(nursery: trio.Nursery, cache: CacheStore, handle: CachedObject) -> trio.CancelScope:
    """Begin to fetch all of it ahead, as far as that waits for its turn; returns what gives it up."""
    scope = trio.CancelScope()

    async def fill() -> None:
        with scope:
            await handle.fill(20.0, None, AHEAD)

    before = cache.queued(AHEAD)
    nursery.start_soon(fill)
    await until(lambda: cache.queued(AHEAD) > before)
    return scope


async def test_what_has_not_begun_is_never_asked_for_when_it_is_given_up(folder: Path, file_library: Library) -> None:
    async with waiting(folder, file_library) as (cache, source, second), trio.open_nursery() as nursery:
        handle = await open_sample(cache, second)
        queued = cache.queued(AHEAD)
        scope = await begin_to_fill(nursery, cache, handle)
        scope.cancel()
        await until(lambda: cache.queued(AHEAD) == queued)
        assert source.gate is not None
        source.gate.set()
        await until(lambda: cache.stats().inflight == 0)
        assert asked(source, second) == 0
        handle.release()


async def test_what_has_begun_goes_on_and_is_kept(folder: Path, file_library: Library) -> None:
    source = central(file_library)
    source.gate = trio.Event()
    made = put(file_library, sample(3, 1 * MIB, 256 * KIB))
    async with opened(folder, [source]) as cache, trio.open_nursery() as nursery:
        handle = await open_sample(cache, made)
        scope = trio.CancelScope()

        async def fill() -> None:
            with scope:
                await handle.fill(20.0, None, AHEAD)

        nursery.start_soon(fill)
        await until(lambda: len(source.asked) == 4)
        scope.cancel()
        source.gate.set()
        await until(lambda: handle.has(0, made.recipe.offset(4)))
        handle.release()


async def test_a_reader_who_wants_what_is_given_up_gets_it(folder: Path, file_library: Library) -> None:
    async with waiting(folder, file_library) as (cache, source, second), trio.open_nursery() as nursery:
        handle = await open_sample(cache, second)
        scope = await begin_to_fill(nursery, cache, handle)
        read: list[bytes] = []

        async def read_it() -> None:
            read.append(await read_all(handle))

        scope.cancel()  # and in the same moment
        nursery.start_soon(read_it)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert source.gate is not None
        source.gate.set()
        await until(lambda: bool(read))
        assert read == [second.data]
        handle.release()


async def test_one_of_two_who_gives_up_leaves_it_to_the_other(folder: Path, file_library: Library) -> None:
    async with waiting(folder, file_library) as (cache, source, second), trio.open_nursery() as nursery:
        handle = await open_sample(cache, second)
        scope = await begin_to_fill(nursery, cache, handle)
        nursery.start_soon(handle.fill, 20.0, None, AHEAD)
        await trio.testing.wait_all_tasks_blocked(0.05)
        scope.cancel()
        assert source.gate is not None
        source.gate.set()
        await until(lambda: handle.is_here)
        assert asked(source, second) == len(second.recipe)
        handle.release()


async def test_opening_ahead_is_no_read_in_the_sample_of_reads(folder: Path, file_library: Library) -> None:
    made = put(file_library, sample(4, 1 * MIB))
    async with opened(folder, [central(file_library)]) as cache:
        ahead = await cache.open_object("apollo", made.content, made.size, made.digest, made.recipe, is_read=False)
        await ahead.fill(20.0, None, AHEAD)
        assert unpack(cache.trace.packed()).references == []
        handle = await open_sample(cache, made)
        assert len(unpack(cache.trace.packed()).references) == 1
        handle.release()
        ahead.release()


async def test_chunks_around_a_place_are_told_as_a_whole(folder: Path, file_library: Library) -> None:
    made = put(file_library, sample(5, 1 * MIB, 100 * KIB))
    async with opened(folder, [central(file_library)]) as cache:
        handle = await open_sample(cache, made)
        second = made.recipe.offset(1), made.recipe.offset(2)
        assert handle.chunks(second[0] + 5, 1) == second
        assert handle.chunks(0, made.size) == (0, made.size)
        assert handle.chunk_bytes == made.size // len(made.recipe)
        blind = await open_sample(cache, put(file_library, sample(6, 1 * MIB), recipe_object=True), with_recipe=False)
        assert (blind.chunks(0, 1), blind.chunk_bytes) == (None, 0)
        handle.release()
        blind.release()
