"""Corruption, wherever it comes from: an error or the right bytes, never wrong ones, and a repair heals."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from cache.fetch import NEGATIVE_S
from cache.small import small_key
from manifest.digest import Digest
from manifest.errors import AccessDenied, DamfsError, DigestMismatch, NotFound, Unavailable
from manifest.layout import chunk_key
from tests.cache.contents import (
    KIB,
    MIB,
    SHOW,
    FaultySource,
    Sample,
    accounts_agree,
    central,
    flip,
    missing,
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

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from manifest.library import Library

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "flipped bit": flip,
    "truncated": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "empty": lambda _: b"",
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("size", [1000, 300 * KIB])
@pytest.mark.parametrize("kind", DAMAGE)
async def test_a_damaged_chunk_in_the_store_is_an_error_that_names_it_and_a_repair_heals(
    kind: str, size: int, folder: Path, file_library: Library, source: FaultySource,
    expects_log: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    made = put(file_library, sample(1, size))
    digest, length = made.recipe[0]
    file_library.put(chunk_key(SHOW, digest), DAMAGE[kind](made.data[:length]))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        with pytest.raises(DigestMismatch):
            await handle.read(0, 1000, trio.current_time() + 10)
        (line, *_) = [r.getMessage() for r in expects_log.records if r.name == "cache.sources.chain"]
        for part in (SHOW, "plate/a.exr", str(digest), "central"):
            assert part in line
        assert len(source.asked) == 2, "the last source is asked once more"
        assert source.blames
        assert cache.stats().verification_failures == 2
        put(file_library, made)
        await trio.sleep(NEGATIVE_S + 0.05)
        assert await read_all(handle) == made.data
        handle.release()


@pytest.mark.usefixtures("expects_log")
async def test_a_missing_chunk_is_an_error_and_a_repair_heals(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = sample(1, 300 * KIB)
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        with pytest.raises(NotFound):
            await handle.read(0, 1000, trio.current_time() + 10)
        put(file_library, made)
        await trio.sleep(NEGATIVE_S + 0.05)
        assert await read_all(handle) == made.data
        handle.release()


@pytest.mark.usefixtures("expects_log")
async def test_a_storm_of_readers_of_a_damaged_chunk_costs_one_fetch(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 300 * KIB))
    source.fault = missing
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        for _ in range(20):
            with pytest.raises(NotFound):
                await handle.read(0, 1000, trio.current_time() + 10)
        assert len(source.asked) <= 2
        handle.release()


@pytest.mark.parametrize("fault", [Unavailable("down"), NotFound("gone"), AccessDenied("no"), b"wrong bytes"])
@pytest.mark.usefixtures("expects_log")
async def test_the_next_source_is_asked_when_one_fails(
    fault: DamfsError | bytes, folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, MIB))
    site = FaultySource(central(file_library), name="site")
    site.fault = lambda _: fault
    async with opened(folder, [site, source]) as cache:
        assert await read_sample(cache, made) == made.data
        assert site.asked
        assert bool(site.blames) == isinstance(fault, bytes)
        assert cache.counters.verification_failures.keys() <= {"site"}
    async with opened(folder / "other", [site, source]) as cache:
        site.fault = lambda _: None
        asked = len(source.asked)
        assert await read_sample(cache, made) == made.data
        assert len(source.asked) == asked


@pytest.mark.usefixtures("expects_log")
async def test_a_silent_source_leaves_time_for_the_next_one(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.fetch.FLIGHT_S_MIN", 0.1)
    made = put(file_library, sample(1, 300 * KIB))
    site = FaultySource(central(file_library), name="site")
    site.gate = trio.Event()
    async with opened(folder, [site, source]) as cache:
        handle = await open_sample(cache, made)
        assert bytes(await handle.read(0, 100, trio.current_time() + 2)) == made.data[:100]
        handle.release()


@pytest.mark.usefixtures("expects_log")
async def test_a_bug_in_a_source_is_an_error_of_its_reader_and_of_nobody_else(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 300 * KIB))

    def bug(_: object) -> bytes:
        raise ZeroDivisionError

    async with opened(folder, [source]) as cache:
        source.fault = bug
        handle = await open_sample(cache, made)
        with pytest.raises(Unavailable, match="ZeroDivisionError"):
            await handle.read(0, 100, trio.current_time() + 0.4)
        source.fault = lambda _: None
        await trio.sleep(NEGATIVE_S)
        assert await read_all(handle) == made.data
        handle.release()


async def test_a_whole_file_with_the_claimed_digest_becomes_complete(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(1, 40 * MIB, 4 * MIB))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        await handle.read(0, 1, trio.current_time() + 10)
        assert not handle.complete
        await read_all(handle, step=MIB)
        await until(lambda: handle.complete)
        handle.release()
        await settle(cache)
        await until(lambda: cache.stats().open_objects == 0)
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        assert handle.complete
        handle.release()


@pytest.mark.parametrize("size", [300 * KIB, 3 * MIB])
async def test_a_file_that_is_not_what_its_publisher_claims_is_readable_and_never_complete(
    size: int, folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    honest = put(file_library, sample(1, size, MIB))
    made = Sample(honest.data, honest.recipe, Digest.of(b"something else"))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        assert await read_all(handle) == made.data
        await until(lambda: cache.stats().disputed == 1)
        await settle(cache)
        assert not handle.complete
        assert await read_all(handle) == made.data
        handle.release()
        errors = [r for r in expects_log.records if r.levelname == "ERROR"]
        assert len(errors) == 1
        assert str(made.digest) in errors[0].getMessage()
        assert "plate/a.exr" in errors[0].getMessage()
    async with opened(folder, [source]) as cache:
        assert await read_sample(cache, made) == made.data
        await settle(cache)
        handle = await open_sample(cache, made)
        assert not handle.complete
        assert cache.stats().disputed == 1, "known without reading the file again"
        honestly = await open_sample(cache, honest)
        assert honestly.complete, "the claim is a file's, not the content's"
        assert not handle.complete
        honestly.release()
        handle.release()


async def test_a_cache_disk_that_gives_back_other_bytes_is_told_from_a_lying_publisher(
    folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    made = put(file_library, sample(1, 3 * MIB))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        cache.shelves[0].claims._limiter.total_tokens = 1
        await cache.shelves[0].claims._limiter.acquire()
        await read_all(handle)
        (path,) = [p for p in (folder / "objects").rglob("*") if p.is_file()]
        with path.open("r+b") as file:
            file.seek(MIB)
            file.write(b"a flipped page")
        cache.shelves[0].claims._limiter.release()
        await until(lambda: "gave back other bytes" in expects_log.text)
        assert cache.stats().disputed == 0
        assert await read_all(handle) == made.data
        await until(lambda: handle.complete)
        handle.release()


async def test_a_small_content_that_is_damaged_on_disk_is_fetched_again(
    folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    made = put(file_library, sample(1, 5000))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, made)
        await settle(cache)
    with sqlite3.connect(folder / "small" / "cache.db") as database:
        assert database.execute("UPDATE Cache SET value = ?", (flip(made.data),)).rowcount == 1
    database.close()
    async with opened(folder, [source]) as cache:
        asked = len(source.asked)
        assert await read_sample(cache, made) == made.data
        assert len(source.asked) == asked + 1
        await until(lambda: cache.shelves[0].small.get(small_key(SHOW, made.content)) == made.data)
    assert "damaged" in expects_log.text


async def test_a_cached_file_that_shrinks_under_its_reader_is_fetched_again(
    folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    made = put(file_library, sample(1, 2 * MIB))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        await read_all(handle)
        await quiet(cache)
        (path,) = [p for p in (folder / "objects").rglob("*") if p.is_file()]
        with path.open("r+b") as file:
            file.truncate(MIB)
        assert handle.read_nowait(MIB - 10, 100) is None
        assert await read_all(handle) == made.data
        handle.release()
        await settle(cache)
        await accounts_agree(cache)
    assert "is dropped and fetched again" in expects_log.text


async def test_a_cached_file_that_was_cut_is_not_filled_any_further(
    folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    made = put(file_library, sample(1, 2 * MIB))
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        await handle.read(0, MIB, trio.current_time() + 10)
        await quiet(cache)
        (path,) = [p for p in (folder / "objects").rglob("*") if p.is_file()]
        with path.open("r+b") as file:
            file.truncate(100 * KIB)
        await handle.read(made.size - 10, 10, trio.current_time() + 10)
        await quiet(cache)
        assert await read_all(handle) == made.data
        handle.release()
    assert "is dropped and fetched again" in expects_log.text


@pytest.mark.usefixtures("expects_log")
async def test_a_recipe_that_is_damaged_counts_once(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = put(file_library, sample(9, 200 * KIB, 100 * KIB), recipe_object=True)
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made, with_recipe=False)
        assert await handle.read(0, KIB, trio.current_time() + 20) == made.data[:KIB]
        handle.release()
        await quiet(cache)
        index = cache.shelves[0].index
        index.arrange([("UPDATE recipes SET packed = ?", (b"damaged",))])
        assert await read_sample(cache, made, with_recipe=False) == made.data
        await quiet(cache)
        assert index.recipe(SHOW, made.content) == made.recipe.packed
        await accounts_agree(cache)


async def test_a_small_content_that_the_store_does_not_take_is_not_said_to_be_cached(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put(file_library, sample(9, KIB))
    async with opened(folder, [source]) as cache:
        with monkeypatch.context() as patch:
            patch.setattr("cache.small.SmallStore.put", lambda *_: False)
            assert await read_sample(cache, made) == made.data
            await quiet(cache)
        assert cache.percent(SHOW, made.content) == 0
        await accounts_agree(cache)
        assert cache.stats().objects == 0
