"""Dedup in the cache: what another cached object of the show has is not downloaded, and never believed."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
import trio

from manifest.digest import Digest
from manifest.recipe import Recipe
from tests.cache.contents import (
    KIB,
    MIB,
    SHOW,
    FaultySource,
    Sample,
    accounts_agree,
    central,
    missing,
    open_sample,
    opened,
    put,
    quiet,
    read_all,
    read_sample,
    sample,
    until,
)
from tests.cache.disk import FileSystem, loop_disk
from tests.harness import drilled

if TYPE_CHECKING:
    from pathlib import Path

    from manifest.library import Library

SIZE = drilled(64, 2048) * MIB


def changed(made: Sample, part: float, *, seed: int = 9, shift: int = 0) -> Sample:
    """``made`` with that part of its chunks replaced; ``shift`` bytes more at the beginning, as a chunk of its own."""
    rng = random.Random(seed)
    pieces = [rng.randbytes(shift)] if shift else []
    for i in range(len(made.recipe)):
        begin, length = made.recipe.offset(i), made.recipe[i].length
        pieces.append(rng.randbytes(length) if rng.random() < part else made.data[begin : begin + length])
    data = b"".join(pieces)
    return Sample(data, Recipe.of((Digest.of(piece), len(piece)) for piece in pieces), Digest.of(data))


def downloaded(source: FaultySource) -> int:
    """Bytes of chunks that were asked of the source."""
    return sum(ref.length or 0 for ref in source.asked)


@pytest.mark.timeout(drilled(60, 600))
@pytest.mark.parametrize("kind", ["xfs", "ext4"])
async def test_a_change_of_a_tenth_downloads_a_tenth(kind: FileSystem, file_library: Library) -> None:
    source = central(file_library)
    before = put(file_library, sample(1, SIZE, MIB))
    after = put(file_library, changed(before, 0.1))
    with loop_disk(max(SIZE * 9 // MIB // 4, 300), kind) as disk:
        async with opened(disk.path / "cache", [source], size_bytes=8 * SIZE) as cache:
            await read_sample(cache, before)
            await quiet(cache)
            source.asked.clear()
            taken = os.statvfs(disk.path).f_bfree
            handle = await open_sample(cache, after)
            assert await read_all(handle, step=MIB) == after.data
            await until(lambda: handle.complete)
            handle.release()
            await quiet(cache)
            fresh = downloaded(source)
            assert 0.02 < fresh / after.size < 0.2
            saved = cache.counters.dedup_bytes
            assert saved["download"] == after.size - fresh
            on_disk = (taken - os.statvfs(disk.path).f_bfree) * os.statvfs(disk.path).f_frsize
            if kind == "xfs":
                assert saved["disk"] > 0.9 * saved["download"]
                assert on_disk < fresh + 0.1 * after.size
            else:
                assert saved["disk"] == 0
            await accounts_agree(cache)


async def test_chunks_at_other_offsets_are_copied(folder: Path, file_library: Library, source: FaultySource) -> None:
    before = put(file_library, sample(1, 4 * MIB))
    after = put(file_library, changed(before, 0, shift=1001))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, before)
        await quiet(cache)
        source.asked.clear()
        assert await read_sample(cache, after) == after.data
        assert downloaded(source) == 1001
        assert cache.counters.dedup_bytes == {"download": before.size, "disk": 0}


async def test_another_show_shares_nothing(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = put(file_library, sample(1, 2 * MIB))
    put(file_library, made, "secret")
    async with opened(folder, [source]) as cache:
        await read_sample(cache, made)
        await quiet(cache)
        source.asked.clear()
        handle = await open_sample(cache, made, show="secret")
        assert await read_all(handle) == made.data
        handle.release()
        assert downloaded(source) == made.size


async def test_a_donor_that_was_damaged_is_not_believed_and_is_dropped(
    folder: Path, file_library: Library, source: FaultySource, expects_log: pytest.LogCaptureFixture
) -> None:
    before = put(file_library, sample(1, 2 * MIB))
    after = put(file_library, changed(before, 0, shift=70 * KIB))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, before)
        await quiet(cache)
        source.asked.clear()
        (path,) = [p for p in (folder / "objects").rglob("*") if p.is_file()]
        with path.open("r+b") as file:
            file.seek(MIB)
            file.write(b"a flipped page")
        assert await read_sample(cache, after) == after.data
        assert before.recipe[before.recipe.covering(MIB, 1)[0]].digest in [ref.digest for ref in source.asked]
        await until(lambda: "is dropped and fetched again" in expects_log.text)
        await until(lambda: cache.percent(SHOW, before.content) == 100)
        source.fault = missing
        assert await read_sample(cache, before) == before.data


async def test_a_donor_that_is_gone_costs_a_download(folder: Path, file_library: Library, source: FaultySource) -> None:
    before = put(file_library, sample(1, 2 * MIB))
    after = put(file_library, changed(before, 0, shift=70 * KIB))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, before)
        await quiet(cache)
        (path,) = [p for p in (folder / "objects").rglob("*") if p.is_file()]
        path.unlink()
        assert await read_sample(cache, after) == after.data
        assert cache.counters.dedup_bytes["download"] == 0


async def test_what_is_evicted_is_found_no_more(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = [put(file_library, sample(i, 2 * MIB)) for i in range(6)]
    async with opened(folder, [source], size_bytes=5 * MIB) as cache:
        for one in made:
            await read_sample(cache, one)
            await quiet(cache)
        await accounts_agree(cache)
        rows = cache.shelves[0].index._reader.execute("SELECT count(DISTINCT object) FROM chunks").fetchone()
        assert rows == (cache.stats().objects,)


async def test_donors_are_found_after_a_restart_and_offline(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    before = put(file_library, sample(1, 2 * MIB))
    again = Sample(before.data * 2, Recipe(before.recipe.packed * 2), Digest.of(before.data * 2))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, before)
        await quiet(cache)
    source.gate = trio.Event()
    async with opened(folder, [source]) as cache:
        assert await read_sample(cache, again) == again.data
    assert len(source.asked) == len(before.recipe)
