"""What meets at a bad moment: stores of one chunk, an index that fails a thread, questions that are given up."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from manifest.errors import Unavailable
from tests.cache.contents import KIB, SHOW, open_sample, opened, put, quiet, read_sample, sample, until

if TYPE_CHECKING:
    from pathlib import Path

    from cache.index import Index
    from manifest.library import Library
    from tests.cache.contents import FaultySource


@pytest.mark.usefixtures("expects_log")
async def test_a_store_that_fails_takes_nothing_from_one_of_the_same_chunk_that_did_not(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put(file_library, sample(1, 400 * KIB, 200 * KIB))
    length = made.recipe[0].length
    async with opened(folder, [source]) as cache:
        handle = await open_sample(cache, made)
        content, reader = handle._content, cache.shelves[0].reader
        is_stored, pwrite, calls = threading.Event(), os.pwrite, [0]

        def fail_second(fd: int, data: memoryview, offset: int) -> int:
            calls[0] += 1
            if calls[0] == 1:
                return pwrite(fd, data, offset)
            is_stored.wait(5)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fail_second)
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(reader._keeper.store_chunk, content, 0, made.data[:length])
                await until(lambda: content.has(0))
                is_stored.set()
        assert content.has(0)
        assert await handle.read(0, length, trio.current_time() + 5) == made.data[:length]
        handle.release()
        await quiet(cache)


@pytest.mark.usefixtures("expects_log")
async def test_an_index_that_cannot_be_read_is_said_to_be_so_by_the_questions_about_it(
    folder: Path, file_library: Library, source: FaultySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put(file_library, sample(2, 100 * KIB))

    def fails(_self: Index, _tenant: str, _contents: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    async with opened(folder, [source]) as cache:
        assert await read_sample(cache, made) == made.data
        monkeypatch.setattr("cache.index.Index.present", fails)
        with pytest.raises(Unavailable, match="cannot be asked now"):
            await cache.admin.present_bytes(SHOW, [(made.content, made.size)])
        monkeypatch.undo()
        await quiet(cache)


@pytest.mark.usefixtures("expects_log")
async def test_an_eviction_that_is_given_up_loses_nothing_that_is_to_be_deleted(
    folder: Path, file_library: Library, source: FaultySource
) -> None:
    made = put(file_library, sample(3, 100 * KIB))
    async with opened(folder, [source]) as cache:
        assert await read_sample(cache, made) == made.data
        await quiet(cache)
        shelf = cache.shelves[0]
        row = shelf.index.find(SHOW, made.content)
        assert row is not None
        async with trio.open_nursery() as nursery, shelf.flusher._index_limiter:  # last uses are being noted
            nursery.start_soon(cache.admin.evict, SHOW, [made.content])
            shelf.flusher.forget(row)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
        await shelf.flusher.flush()
        assert shelf.index.find(SHOW, made.content) is None
