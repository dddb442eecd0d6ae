"""A disk that neither takes nor gives anything, and reports no error: what goes on without it."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

import pytest
import trio

from cache import fetch, health, opening, service, shelf
from cache.explain import Explained, Explainer
from cache.fetch import Ring
from cache.files import write_chunk
from cache.index import Index, ObjectRow
from cache.queue import Queue
from cache.small import SmallStore
from cache.sources.protocol import ObjectRef
from tests.cache.contents import MIB, SHOW, opened, put, quiet, read_sample, sample, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cache.chunks import Place
    from manifest.library import Library
    from tests.cache.contents import FaultySource

pytestmark = pytest.mark.usefixtures("expects_log")


@pytest.fixture
def answers() -> Iterator[threading.Event]:
    """Set when the disk goes on."""
    event = threading.Event()
    yield event
    event.set()


async def test_what_the_disk_does_not_take_holds_up_nobody_once_it_is_out_of_service(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch, answers: threading.Event
) -> None:
    monkeypatch.setattr(service, "RETRY_S", 60)
    made = [put(file_library, sample(i, MIB, MIB // 4)) for i in range(8)]

    def hang(fd: int, data: memoryview, offset: int, file_bytes: int) -> None:
        answers.wait(60)
        write_chunk(fd, data, offset, file_bytes)

    monkeypatch.setattr("cache.keep.write_chunk", hang)
    async with opened(folder, [source]) as cache:
        cache._fetcher.queue = Queue(2 * MIB)
        cache._fetcher._ring = Ring(MIB)
        async with trio.open_nursery() as nursery:
            for one in made:
                nursery.start_soon(read_sample, cache, one)
            await until(lambda: cache._fetcher.queue.free_bytes < MIB // 2)
            monkeypatch.setattr(health, "try_out", fail)
            cache.shelves[0].faults.note(OSError(errno.EIO, "as if"))
        await until(lambda: not cache.shelves)
        for one in made:
            with trio.fail_after(5):
                assert await read_sample(cache, one) == one.data
        answers.set()


def fail(_folder: Path) -> None:
    raise OSError(errno.EIO, "as if it were dead")


async def test_a_disk_that_does_not_say_what_it_has_keeps_nobody_from_fetching(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch, answers: threading.Event
) -> None:
    monkeypatch.setattr(fetch, "NEARBY_S", 0.2)
    made = [put(file_library, sample(i, MIB, MIB // 4)) for i in range(3)]

    def hang(_index: Index, _tenant: str, _digest: bytes) -> list[Place]:
        answers.wait(60)
        return []

    monkeypatch.setattr(Index, "places", hang)
    async with opened(folder, [source]) as cache:
        for one in made:
            with trio.fail_after(3):
                assert await read_sample(cache, one) == one.data
        answers.set()
        await until(lambda: cache.stats().inflight == 0)


async def test_a_disk_that_does_not_say_what_it_has_of_a_file_keeps_nobody_from_opening_it(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch, answers: threading.Event
) -> None:
    monkeypatch.setattr(opening, "LOOK_UP_S", 0.2)
    made = put(file_library, sample(1, MIB, MIB // 4))
    async with opened(folder, [source]) as cache:
        assert await read_sample(cache, made) == made.data
        await quiet(cache)
        files = cache.shelves[0].files
        await until(lambda: files.open_count == 0)
        find = Index.find

        def hang(index: Index, tenant: str, content: bytes) -> ObjectRow | None:
            answers.wait(60)
            return find(index, tenant, content)

        monkeypatch.setattr(Index, "find", hang)
        with trio.fail_after(10):
            assert await read_sample(cache, made) == made.data
        answers.set()
        await quiet(cache)
        await until(lambda: files.open_count == 0)
        assert await read_sample(cache, made) == made.data
        await quiet(cache)
        assert len([name for name in files.folder.rglob("*") if name.is_file()]) == 1, "the file before it is gone"


async def test_a_disk_that_does_not_give_a_recipe_keeps_nobody_from_fetching_that(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch, answers: threading.Event
) -> None:
    monkeypatch.setattr("cache.read.LOOK_UP_S", 0.1)
    made = [put(file_library, sample(i, MIB, MIB // 4), recipe_object=True) for i in range(4)]

    def hang(_index: Index, _tenant: str, _content: bytes) -> bytes | None:
        answers.wait(60)
        return None

    monkeypatch.setattr(Index, "recipe", hang)
    async with opened(folder, [source]) as cache:
        for one in made:
            with trio.fail_after(10):
                assert await read_sample(cache, one, with_recipe=False) == one.data
        answers.set()
        await quiet(cache)


async def test_a_disk_that_does_not_give_a_small_content_keeps_nobody_from_fetching_that(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch, answers: threading.Event
) -> None:
    monkeypatch.setattr("cache.read.LOOK_UP_S", 0.1)
    made = [put(file_library, sample(i, 1000)) for i in range(6)]

    def hang(_store: SmallStore, _key: bytes) -> bytes | None:
        answers.wait(60)
        return None

    monkeypatch.setattr(SmallStore, "get", hang)
    async with opened(folder, [source]) as cache:
        for one in made:
            with trio.fail_after(10):
                assert await read_sample(cache, one) == one.data
        answers.set()
        await quiet(cache)


async def test_a_disk_that_hangs_is_told_of_and_not_waited_for(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch, answers: threading.Event
) -> None:
    monkeypatch.setattr("cache.explain.LOOK_UP_S", 0.1)
    made = put(file_library, sample(1, MIB, MIB // 4))

    def hang(_index: Index, _tenant: str, _content: bytes) -> ObjectRow | None:
        answers.wait(60)
        return None

    async with opened(folder, [source]) as cache:
        assert await read_sample(cache, made) == made.data
        await quiet(cache)
        explainer = Explainer(cache)

        async def told() -> Explained:
            return await explainer.explain(SHOW, made.content, made.size, made.digest, made.recipe)

        assert (await told()).here_bytes == made.size
        monkeypatch.setattr(Index, "find", hang)
        monkeypatch.setattr(Index, "present", hang)
        for _ in range(4):
            with trio.move_on_after(0.1) as patience:
                await cache.admin.present_bytes(SHOW, [(made.content, made.size)])
            assert patience.cancelled_caught
            with trio.fail_after(10):
                found = await told()
            assert found.chunks is not None
            assert "its disk fails, or hangs" in (found.why_not_lent or "")
        answers.set()
        await until(lambda: explainer._looking.borrowed_tokens == 0)


async def test_what_is_found_on_a_disk_that_fails_then_is_closed_when_it_is_let_go_of(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "RETRY_S", 0.05)
    monkeypatch.setattr(shelf, "RETIRED_PAUSE_S", 0.05)
    made = put(file_library, sample(1, MIB, MIB // 4))
    async with opened(folder, [source]) as cache:
        assert await read_sample(cache, made) == made.data
        await quiet(cache)
        before = cache.shelves[0]
        found = await before.neighbours.find(ObjectRef(SHOW, "chunk", *made.recipe[0]))
        assert found is not None
        with monkeypatch.context() as patch:
            patch.setattr(health, "try_out", fail)
            before.faults.note(OSError(errno.EIO, "as if"))
            await until(lambda: not cache.shelves)
        await until(lambda: bool(cache.shelves))
        await trio.sleep(0.2)
        found.file.done()
        await until(lambda: not cache._retired, within_s=5)
        assert before.files.open_count == 0
