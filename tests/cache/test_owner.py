"""Whose a cache folder is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cache.owner import Owner, owner_of
from manifest.errors import ConfigurationError, Unavailable
from tests.cache.contents import KIB, OWNER, FaultySource, opened, put, quiet, read_sample, sample

if TYPE_CHECKING:
    from pathlib import Path

    from manifest.library import Library

SAMPLES = [sample(1, 200 * KIB), sample(2, 1000)]
OTHER = Owner("1" * 32, "s3://other/library")


async def fill(folder: Path, source: FaultySource, library: Library) -> None:
    """Two contents in the cache, one of either kind; the source then has nothing any more."""
    async with opened(folder, [source]) as cache:
        for made in SAMPLES:
            await read_sample(cache, put(library, made))
        await quiet(cache)
    source.fault = lambda ref: Unavailable(f"{ref}: offline")


async def has_everything(folder: Path, source: FaultySource, owner: Owner) -> bool:
    async with opened(folder, [source], owner=owner) as cache:
        try:
            return [bytes(await read_sample(cache, made)) for made in SAMPLES] == [made.data for made in SAMPLES]
        except Unavailable:
            return False


async def test_a_folder_belongs_to_whoever_used_it_first(folder: Path, source: FaultySource) -> None:
    async with opened(folder, [source]):
        assert owner_of(folder) == OWNER
    assert (folder / "owner").read_text() == f"{OWNER.id}\n{OWNER.name}\n"


async def test_another_owner_is_refused_and_told_what_to_do_and_nothing_is_lost(
    folder: Path, source: FaultySource, file_library: Library
) -> None:
    await fill(folder, source, file_library)
    parts = (str(folder), *OWNER, *OTHER, "--cache", "remove")
    with pytest.RaisesGroup(
        pytest.RaisesExc(ConfigurationError, check=lambda error: all(part in str(error) for part in parts))
    ):
        await has_everything(folder, source, OTHER)
    assert await has_everything(folder, source, OWNER)


async def test_an_owner_is_known_by_its_id_and_may_be_reached_by_another_name(
    folder: Path, source: FaultySource, file_library: Library
) -> None:
    await fill(folder, source, file_library)
    assert await has_everything(folder, source, OWNER._replace(name="s3://mirror/library"))


@pytest.mark.usefixtures("expects_log")
@pytest.mark.parametrize("text", [None, "", "half a li", "\n\n", "a\nb\nc\n"])
async def test_bytes_that_nobody_owns_are_dropped(
    folder: Path, source: FaultySource, file_library: Library, text: str | None
) -> None:
    await fill(folder, source, file_library)
    (folder / "owner").unlink()
    if text is not None:
        (folder / "owner").write_text(text)
    assert not await has_everything(folder, source, OTHER)
    assert owner_of(folder) == OTHER
