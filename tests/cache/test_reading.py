"""What a reader gets, and when."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cache.sources.retry import Retrying
from manifest.digest import EMPTY_DIGEST, Digest
from manifest.errors import FormatError, IntegrityError, Unavailable
from manifest.layout import recipe_key
from manifest.recipe import Recipe
from tests.cache.contents import (
    KIB,
    MIB,
    SHOW,
    FaultySource,
    Sample,
    central,
    open_sample,
    opened,
    put,
    read_all,
    read_sample,
    sample,
    settle,
)

if TYPE_CHECKING:
    from pathlib import Path

    from manifest.library import Library


@pytest.mark.parametrize("size", [1, 4095, 64 * KIB, 64 * KIB + 1, 3 * MIB + 17])
async def test_a_cold_read_gives_the_published_bytes_and_a_warm_one_needs_no_source(
    size: int, folder: Path, library: Library
) -> None:
    source = central(library)
    made = put(library, sample(size, size))
    async with opened(folder, [source]) as cache:
        assert await read_sample(cache, made) == made.data
        await settle(cache)
        source.fault = lambda ref: Unavailable(f"{ref}: offline")
        assert await read_sample(cache, made) == made.data
        assert cache.percent(SHOW, made.content) == 100
    async with opened(folder, [source]) as cache:
        assert cache.percent(SHOW, made.content) == 100
        assert await read_sample(cache, made) == made.data


async def test_a_read_is_exactly_as_long_as_asked_within_the_size(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 2 * MIB + 3, 100 * KIB))
    rng = random.Random(2)
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        for _ in range(200):
            offset, size = rng.randrange(made.size + 100), rng.randrange(400 * KIB)
            assert bytes(await handle.read(offset, size, trio.current_time() + 10)) == made.data[offset : offset + size]
        handle.release()


async def test_an_empty_file_has_no_chunk_and_is_complete(folder: Path, source: FaultySource) -> None:
    async with opened(folder, [source]) as cache:
        handle = await cache.open_object(SHOW, Recipe(b"").content, 0, EMPTY_DIGEST, Recipe(b""))
        assert await handle.read(0, 4096, trio.current_time() + 1) == b""
        assert handle.read_nowait(0, 4096) == b""
        assert handle.complete
        assert cache.percent(SHOW, Recipe(b"").content) == 100
        handle.release()


async def test_readers_of_one_chunk_share_one_fetch(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = put(file_library, sample(3, 200 * KIB, 4 * MIB))
    source.gate = trio.Event()
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        got: list[bytes] = []

        async def read(offset: int) -> None:
            got.append(bytes(await handle.read(offset, 1000, trio.current_time() + 10)))

        async with trio.open_nursery() as nursery:
            for i in range(50):
                nursery.start_soon(read, i)
            await trio.testing.wait_all_tasks_blocked()
            source.gate.set()
        assert sorted(got) == sorted(made.data[i : i + 1000] for i in range(50))
        assert len(source.asked) == 1
        handle.release()


async def test_the_deadline_of_one_reader_leaves_the_fetch_to_the_others(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(4, 200 * KIB, 4 * MIB))
    source.gate = trio.Event()
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        begun = trio.current_time()
        with pytest.raises(Unavailable, match=r"plate/a\.exr"):
            await handle.read(0, 1000, begun + 0.2)
        assert 0.2 <= trio.current_time() - begun < 0.4
        handle.release()
        source.gate.set()
        await trio.sleep(0.2)
        handle = await open_sample(cache, made)
        assert await read_all(handle) == made.data
        assert len(source.asked) == 1
        handle.release()


async def test_a_patient_reader_outlives_the_fetch_of_a_hasty_one(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch,
    expects_log: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("cache.fetch.FLIGHT_S_MIN", 0.1)
    made = put(file_library, sample(5, 200 * KIB, 4 * MIB))
    source.gate = gate = trio.Event()
    async with opened(folder, [source]) as cache, trio.open_nursery() as nursery:
        handle = await open_sample(cache, made)

        async def hasty() -> None:
            with pytest.raises(Unavailable):
                await handle.read(0, 10, trio.current_time() + 0.3)

        async def patient() -> None:
            assert bytes(await handle.read(0, 10, trio.current_time() + 10)) == made.data[:10]

        nursery.start_soon(hasty)
        await trio.sleep(0.05)
        nursery.start_soon(patient)
        await trio.sleep(0.6)
        gate.set()
    assert any("plate/a.exr" in r.getMessage() for r in expects_log.records)


async def test_who_joins_a_fetch_that_waits_to_try_again_has_it_tried_soon(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(7, 100 * KIB, 4 * MIB))
    source.fault = lambda ref: Unavailable(f"{ref}: offline")
    retrying = Retrying(source, base_s=20, uniform=lambda _, high: high)
    async with opened(folder, [retrying]) as cache:
        handle = await open_sample(cache, made)
        with pytest.raises(Unavailable):
            await handle.read(0, 10, trio.current_time() + 0.1)
        source.fault = lambda _: None
        assert bytes(await handle.read(0, 10, trio.current_time() + 2)) == made.data[:10]
        handle.release()
    assert len(source.asked) == 2


async def test_two_hundred_readers_of_a_dead_source_do_not_hold_up_a_cached_read(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    cached = put(file_library, sample(6, MIB))
    small = put(file_library, sample(7, 1000))
    dead = [sample(100 + i, 70 * KIB, 4 * MIB) for i in range(200)]
    async with opened(folder, [source]) as cache:
        assert await read_sample(cache, cached) == cached.data
        assert await read_sample(cache, small) == small.data
        source.gate = trio.Event()

        async def stall(made: Sample) -> None:
            handle = await open_sample(cache, made)
            with pytest.raises(Unavailable):
                await handle.read(0, 4096, trio.current_time() + 2)
            handle.release()

        async with trio.open_nursery() as nursery:
            for made in dead:
                nursery.start_soon(stall, made)
            await trio.testing.wait_all_tasks_blocked()
            begun = trio.current_time()
            for _ in range(5):
                assert await read_sample(cache, cached) == cached.data
                assert await read_sample(cache, small) == small.data
            assert trio.current_time() - begun < 1
        assert cache.stats().inflight <= 200


async def test_what_is_in_the_page_cache_is_read_without_waiting(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(8, 3 * MIB))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        assert handle.read_nowait(0, 1000) is None
        await read_all(handle)
        await settle(cache)
        found = handle.read_nowait(MIB + 5, MIB)
        if found is None:
            pytest.skip("this file system does not support RWF_NOWAIT")
        assert bytes(found) == made.data[MIB + 5 : 2 * MIB + 5]
        assert bytes(handle.read_nowait(3 * MIB - 10, 4096) or b"") == made.data[-10:]
        handle.release()


async def test_a_recipe_that_is_an_object_is_fetched_at_the_first_read_and_kept(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(9, 2 * MIB, 16 * KIB), recipe_object=True)
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made, with_recipe=False)
        assert source.asked == []
        assert await read_all(handle) == made.data
        assert source.asked[0].kind == "recipe"
        handle.release()
    source.fault = lambda ref: Unavailable(f"{ref}: offline")
    async with opened(folder, [source]) as cache:
        assert await read_sample(cache, made, with_recipe=False) == made.data


async def test_a_recipe_for_another_size_is_refused(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = put(file_library, sample(10, 2 * MIB, 16 * KIB), recipe_object=True)
    async with opened(folder, [source]) as cache:
        handle = await cache.open_object(SHOW, made.content, made.size + 1, made.digest, None)
        with pytest.raises(IntegrityError, match="recipe describes 2097152 bytes, the manifest says 2097153"):
            await handle.read(0, 10, trio.current_time() + 5)
        handle.release()


async def test_a_recipe_at_hand_for_another_size_is_refused_and_the_honest_file_is_read(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(12, 100))
    async with opened(folder, [source]) as cache:
        with pytest.raises(IntegrityError, match="recipe describes 100 bytes, the manifest says 1000"):
            await cache.open_object(SHOW, made.content, 1000, made.digest, made.recipe)
        assert await read_sample(cache, made) == made.data


async def test_a_recipe_object_that_is_no_recipe_is_refused(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    junk = b"damfs.recipe/1\n" + b"x" * 35
    content = Digest.of(junk)
    file_library.put(recipe_key(SHOW, content), junk)
    async with opened(folder, [source]) as cache:
        handle = await cache.open_object(SHOW, content, MIB, EMPTY_DIGEST, None)
        with pytest.raises(FormatError):
            await handle.read(0, 10, trio.current_time() + 5)
        handle.release()


async def test_two_shows_share_nothing(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = put(file_library, sample(11, 200 * KIB), "apollo")
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made, show="apollo")
        assert await read_all(handle) == made.data
        handle.release()
        assert cache.percent("gemini", made.content) == 0
        put(file_library, made, "gemini")
        asked = len(source.asked)
        handle = await open_sample(cache, made, show="gemini")
        assert await read_all(handle) == made.data
        assert {ref.tenant for ref in source.asked[asked:]} == {"gemini"}
        handle.release()


async def test_percent_follows_what_is_present(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = put(file_library, sample(12, MIB, 128 * KIB))
    async with opened(folder, [source]) as cache:
        assert cache.percent(SHOW, made.content) == 0
        handle = await open_sample(cache, made)
        await handle.read(0, 1, trio.current_time() + 5)
        await settle(cache)
        part = cache.percent(SHOW, made.content)
        assert 5 < part < 30
        handle.release()
        await settle(cache)
        assert cache.percent(SHOW, made.content) == part


async def test_nothing_stays_in_memory_for_what_is_not_open(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    async with opened(folder, [source]) as cache:
        for i in range(20):
            await read_sample(cache, put(file_library, sample(300 + i, 100 * KIB)))
        await settle(cache)
        assert cache.stats().open_objects == 0
        assert cache.stats().objects == 20
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert cache.shelves[0].files.open_count == 0
