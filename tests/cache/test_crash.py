"""After a kill or a power cut a chunk is present and right, or absent."""

from __future__ import annotations

import errno
import os
import random
from typing import TYPE_CHECKING

import pytest
import trio

from tests.cache.aftermath import check_everything, filling
from tests.cache.contents import (
    MIB,
    SHOW,
    FaultySource,
    accounts_agree,
    central,
    opened,
    put,
    read_sample,
    sample,
    settle,
    until,
)
from tests.cache.filler import CACHE_BYTES, samples
from tests.harness import drilled

if TYPE_CHECKING:
    from pathlib import Path

    from manifest.library import Library

ROUNDS = drilled(6, 300)


@pytest.mark.drill
@pytest.mark.timeout(drilled(180, 3600))
@pytest.mark.usefixtures("expects_log")
async def test_a_process_that_is_killed_while_filling_leaves_right_bytes(folder: Path, file_library: Library) -> None:
    for made in samples():
        put(file_library, made)
    source = central(file_library)
    rng = random.Random(1)
    here = 0
    for seed in range(ROUNDS):
        with filling(folder, file_library, seed) as process:
            await trio.sleep(rng.uniform(0.05, 1.0))
            process.kill()
        async with opened(folder, [source], size_bytes=CACHE_BYTES) as cache:
            here += await check_everything(cache, source)
            assert cache.stats().verification_failures == 0
            assert cache.stats().used_bytes <= CACHE_BYTES
    assert here > ROUNDS, "nothing survived: the test proves nothing"


async def test_nothing_is_claimed_before_it_is_durable(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch,
    expects_log: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    made = put(file_library, sample(1, 2 * MIB))

    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with opened(folder, [source]) as cache:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", failing)
            assert await read_sample(cache, made) == made.data
            await settle(cache)
        assert cache.percent(SHOW, made.content) == 0
        assert cache.shelves[0].index.find(SHOW, made.content) is None
        assert await read_sample(cache, made) == made.data
        await settle(cache)
        assert cache.percent(SHOW, made.content) == 100
        await accounts_agree(cache)
    assert "fdatasync" in expects_log.text


async def test_files_that_no_row_names_are_swept(folder: Path, file_library: Library, source: FaultySource) -> None:
    made = put(file_library, sample(1, 2 * MIB))
    async with opened(folder, [source]) as cache:
        await read_sample(cache, made)
        await settle(cache)
    (kept,) = [path for path in (folder / "objects").rglob("*") if path.is_file()]
    stranger = kept.with_name(made.content.hex() + ".0123456789abcdef01234567")
    stranger.write_bytes(b"left by a kill")
    async with opened(folder, [source]) as cache:
        await until(lambda: not stranger.exists())
        assert kept.exists()
        assert await read_sample(cache, made) == made.data


async def test_a_row_whose_file_is_gone_or_cut_is_fetched_again(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    gone, cut = put(file_library, sample(1, MIB)), put(file_library, sample(2, MIB))
    async with opened(folder, [source]) as cache:
        for made in (gone, cut):
            await read_sample(cache, made)
        await settle(cache)
    for path in (folder / "objects").rglob("*"):
        if path.name.startswith(gone.content.hex()):
            path.unlink()
        elif path.is_file():
            os.truncate(path, 1000)
    async with opened(folder, [source]) as cache:
        for made in (gone, cut):
            assert await read_sample(cache, made) == made.data
        await settle(cache)
        await accounts_agree(cache)
        assert cache.stats().objects == 2
