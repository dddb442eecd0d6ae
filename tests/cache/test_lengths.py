"""Two recipes name one chunk with two lengths: one of them lies, and the other one's readers do not notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from cache.queue import Priority
from manifest.digest import Digest
from manifest.errors import DamfsError, IntegrityError
from manifest.recipe import Recipe
from tests.cache.contents import MIB, Sample, open_sample, opened, put, quiet, sample, until

if TYPE_CHECKING:
    from pathlib import Path

    from cache.handle import CachedObject
    from manifest.library import Library
    from tests.cache.contents import FaultySource

pytestmark = pytest.mark.usefixtures("expects_log")

TOO_MUCH = 1000


@pytest.fixture
def honest(file_library: Library) -> Sample:
    return put(file_library, sample(1, MIB, MIB // 4))


@pytest.fixture
def liar(honest: Sample) -> Sample:
    """Its first chunk is the honest one's, and said to be longer than that is."""
    chunks = [(honest.recipe[i].digest, honest.recipe[i].length) for i in range(len(honest.recipe))]
    chunks[0] = (chunks[0][0], chunks[0][1] + TOO_MUCH)
    data = bytes(honest.size + TOO_MUCH)
    return Sample(data, Recipe.of(chunks), Digest.of(data))


async def outcome(handle: CachedObject, size: int) -> bytes | type[DamfsError]:
    try:
        return bytes(await handle.read(0, size, trio.current_time() + 20))
    except DamfsError as error:
        return type(error)


@pytest.mark.parametrize("is_liar_first", [True, False])
@pytest.mark.parametrize("way", ["read", "read_ahead"])
async def test_a_reader_of_the_longer_one_gets_an_error_and_of_the_right_one_its_bytes(
    folder: Path, source: FaultySource, honest: Sample, liar: Sample, way: str, is_liar_first: bool
) -> None:
    async with opened(folder, [source]) as cache:
        true, false = await open_sample(cache, honest), await open_sample(cache, liar)
        size = liar.recipe[0].length
        source.gate = trio.Event()
        found: dict[CachedObject, bytes | type[DamfsError]] = {}

        async def read(handle: CachedObject, length: int) -> None:
            if way == "read_ahead":
                await handle.read_ahead(0, length, trio.current_time() + 20, Priority.READ_AHEAD)
            found[handle] = await outcome(handle, length)

        order = [(true, honest.recipe[0].length), (false, size)]
        async with trio.open_nursery() as nursery:
            for handle, length in reversed(order) if is_liar_first else order:
                nursery.start_soon(read, handle, length)
                await until(lambda: cache.stats().inflight > 0)
            source.gate.set()
        assert found[true] == honest.data[: honest.recipe[0].length]
        assert found[false] in (IntegrityError, *IntegrityError.__subclasses__())
        assert await outcome(false, size) in (IntegrityError, *IntegrityError.__subclasses__())
        assert not false.has(0, size)
        true.release()
        false.release()
        await quiet(cache)
