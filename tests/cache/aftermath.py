"""A cache that is being filled when its process or its disk ends, and what must hold of it afterwards."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from cache.fetch import NEGATIVE_S
from manifest.errors import NotFound
from tests.cache.contents import SHOW, FaultySource, Sample, accounts_agree, missing, read_sample, until
from tests.cache.filler import samples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cache.index import ObjectRow
    from cache.store import CacheStore
    from manifest.library import Library

PINS_OUT_OF_STEP = (
    "SELECT count(*) FROM objects o WHERE pins <> "
    "EXISTS(SELECT 1 FROM pinned p WHERE p.tenant = o.tenant AND p.content = o.content)"
)


@contextmanager
def filling(folder: Path, library: Library, seed: int) -> Iterator[subprocess.Popen[str]]:
    """A process that is filling the cache; it is dead at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cache.filler", str(folder), library.url, str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.stderr and process.stderr.read()
        yield process
    finally:
        process.kill()
        _, said = process.communicate(timeout=30)
        assert "wrong bytes" not in said


async def claims_are_true(cache: CacheStore) -> None:
    """Once the sweep is through, every row has its file, and every chunk that a row claims is right, and pins hold."""
    await until(lambda: not any(missing_files(cache)))
    assert cache.shelves[0].index.ask(PINS_OUT_OF_STEP) == (0,)
    report = cache.shelves[0].scrubber.begin()
    await until(lambda: not report.running)
    assert report.bad == []
    await accounts_agree(cache)


def missing_files(cache: CacheStore) -> list[ObjectRow]:
    """Rows whose files are not there."""
    shelf = cache.shelves[0]
    rows = [row for _, row in shelf.index.behind(0, shelf.index.last_id(), 10_000)]
    return [row for row in rows if row is not None and row.file and not (shelf.files.folder / row.file).exists()]


async def check_everything(cache: CacheStore, source: FaultySource) -> int:
    """Compare all claims; read what is claimed to be here without a source, then everything. Returns complete ones."""
    here = 0
    await claims_are_true(cache)
    source.fault = missing
    for made in samples():
        if cache.percent(SHOW, made.content) == 100:
            handle_bytes = await read_sample_or_nothing(cache, made)
            assert handle_bytes in (made.data, b"")
            here += handle_bytes == made.data
    source.fault = lambda _: None
    await trio.sleep(NEGATIVE_S + 0.1)
    for made in samples():
        assert await read_sample(cache, made) == made.data
    return here


async def read_sample_or_nothing(cache: CacheStore, made: Sample) -> bytes:
    """The bytes without a source; nothing when they were not there (a small value may be lost, never wrong)."""
    try:
        return await read_sample(cache, made)
    except NotFound:
        return b""
