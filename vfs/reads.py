"""READ: exactly the bytes that were asked for, up to the end of the file, or an error.

Invariant: an answer has min(asked, size - offset) bytes. A shorter one would shrink the file in the kernel, and
the rest of it would read as zeros.

The bytes come without a task switch when they lie in the page cache; else the cache is waited for, up to the
read deadline. The kernel asks once more for what a read-ahead did not bring: a read that waited in vain stays the
answer for RETRY_S, else an application would wait for two deadlines.
"""

from __future__ import annotations

import logging

import trio

from cache.handle import CachedObject
from cache.small import SMALL_BYTES_MAX
from cache.store import CacheStore
from manifest import sequences
from manifest.digest import Digest
from manifest.errors import IntegrityError, Unavailable, UserError
from vfs.ahead import Ahead
from vfs.handles import Failed, FileHandle
from vfs.metrics import Metrics
from vfs.readahead import FileAhead

log = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview

RETRY_S = 1.0
"""How long a read of the same bytes through the same handle gets the error of one that waited until its deadline."""
UNKNOWN_BYTES = 1024 * 1024
"""What a read counts for when nothing is known of the chunks that it needs: about one of them."""
GRACE_S = 5.0
"""How far behind its deadline a read that the cache should have ended is ended here."""


class Reads:
    """Answers reads out of a cache. ``deadline_s`` is the longest that a read waits, in seconds.

    ``ahead`` is told of reads of files that are not wholly here.
    """

    def __init__(self, cache: CacheStore, deadline_s: float, metrics: Metrics, ahead: Ahead) -> None:
        self._cache = cache
        self._ahead = ahead
        self._deadline_s = deadline_s
        self._metrics = metrics

    def open_now(self, handle: FileHandle) -> bool:
        """Open the cached object behind a handle without waiting, if it is worth it and can be done.

        True: done, or there is nothing to be gained; False: ``open`` can do it.
        """
        row, view = handle.row, handle.view
        if handle.object is not None or row.size <= SMALL_BYTES_MAX or row.content is None or row.digest is None:
            return True
        content = Digest(row.content)
        handle.object = self._cache.open_now(
            view.show,
            content,
            row.size,
            Digest(row.digest),
            view.reader.recipe(content),
            path_hint=self._path(handle),
            group=sequences.key(row.parent, row.name),
        )
        if handle.object is None:
            return False
        handle.ahead = self._ahead.of(handle, handle.object)
        return True

    def opened_past(self, handle: FileHandle) -> None:
        """An open is answered so that the kernel reads the cached file itself: its reads will not be seen."""
        self._cache.counters.opened_past(handle.view.show)

    async def open(self, handle: FileHandle) -> None:
        """Open the cached object behind a handle. Never the network. Raises what ``CacheStore.open_object`` raises."""
        if handle.object is None:
            await self._open(handle)

    def is_local(self, handle: FileHandle, offset: int, size: int) -> bool:
        """Whether these bytes are on this machine's disk, as far as that is known without looking."""
        expected = min(size, handle.row.size - offset)
        return handle.object is not None and (expected <= 0 or handle.object.has(offset, expected))

    def cost_bytes(self, handle: FileHandle, offset: int, size: int) -> int:
        """The memory that these bytes may take until they are there: fetched are whole chunks. Without looking."""
        expected = min(size, handle.row.size - offset)
        if expected <= 0:
            return 0
        missing = None if handle.object is None else handle.object.missing_bytes(offset, expected)
        return max(expected, UNKNOWN_BYTES if missing is None else missing)

    def now(self, handle: FileHandle, offset: int, size: int) -> Buffer | None:
        """As ``read``, but only from memory: None when anything must be waited for. Raises nothing."""
        expected = min(size, handle.row.size - offset)
        if expected <= 0:
            return b""
        if handle.touched is not None:
            handle.touched.note(offset, expected)
        cached = handle.object
        data = None if cached is None else cached.read_nowait(offset, expected)
        if data is not None:
            self._metrics.reads_inline.inc()
            self._metrics.read_bytes.inc(expected)
            if handle.ahead is not None:
                _tell(handle.ahead, offset, data)
        return data

    async def read(self, handle: FileHandle, offset: int, size: int) -> Buffer:
        """Exactly min(size, file size - offset) bytes from ``offset`` on.

        Raises Unavailable at the deadline, IntegrityError (logged, once a handle), and what else the cache raises.
        Cancellation leaves the fetches that others may wait for going.
        """
        data = self.now(handle, offset, size)
        if data is not None:
            return data
        try:
            return await self._read(handle, offset, min(size, handle.row.size - offset))
        except IntegrityError as error:
            if not handle.complained:
                handle.complained = True
                log.error("%s cannot be read: %s", self._name(handle), error)
            raise

    async def _read(self, handle: FileHandle, offset: int, expected: int) -> Buffer:
        data = await self._wait_once(handle, offset, expected)
        self._metrics.reads_waited.inc()
        if len(data) != expected:
            raise IntegrityError(f"the cache gave {len(data)} bytes of {expected} at {offset}")
        self._metrics.read_bytes.inc(expected)
        return data

    async def _wait_once(self, handle: FileHandle, offset: int, expected: int) -> bytes | bytearray | memoryview:
        failed = handle.failed
        if failed is not None:
            if trio.current_time() >= failed.until:
                handle.failed = None
            elif offset < failed.stop and failed.start < offset + expected:
                raise Unavailable(*failed.error.args) from failed.error
        started = trio.current_time()
        try:
            return await self._wait(handle, offset, expected)
        except Unavailable as error:
            if trio.current_time() - started >= self._deadline_s / 2:
                handle.failed = Failed(offset, offset + expected, error, trio.current_time() + RETRY_S)
            raise

    async def _wait(self, handle: FileHandle, offset: int, expected: int) -> Buffer:
        deadline = trio.current_time() + self._deadline_s
        try:
            with trio.move_on_at(deadline + GRACE_S):
                cached = handle.object or await self._open(handle)
                ahead = handle.ahead
                if ahead is None:
                    return await cached.read(offset, expected, deadline)
                ahead.read(offset, expected, waited=not cached.has(offset, expected))
                data = await cached.read(offset, expected, deadline)
                if offset == 0 and ahead.wants_head and not ahead.closed:
                    ahead.head(data)
                return data
        except UserError as error:  # NotFound, of a chunk: the file itself is there
            raise IntegrityError(str(error)) from error
        raise Unavailable(f"{self._name(handle)}: no answer within {self._deadline_s} s")

    async def _open(self, handle: FileHandle) -> CachedObject:
        """The cached object behind a handle, opened once however many reads come first at the same time."""
        if handle.opening is None:
            handle.opening = trio.Lock()
        async with handle.opening:
            if handle.object is None:
                row, view = handle.row, handle.view
                assert row.content is not None
                assert row.digest is not None
                content = Digest(row.content)
                handle.object = await self._cache.open_object(
                    view.show,
                    content,
                    row.size,
                    Digest(row.digest),
                    view.reader.recipe(content),
                    path_hint=self._path(handle),
                    group=sequences.key(row.parent, row.name),
                )
                handle.ahead = self._ahead.of(handle, handle.object)
            return handle.object

    def _path(self, handle: FileHandle) -> str:
        return handle.view.reader.path_of(handle.row, handle.row.since)

    def _name(self, handle: FileHandle) -> str:
        return f"{handle.view.show}@{handle.row.since}:{self._path(handle)}"


def _tell(ahead: FileAhead, offset: int, data: Buffer) -> None:
    """Bytes of a file were answered that is not wholly here."""
    ahead.read(offset, len(data), waited=False)
    if offset == 0 and ahead.wants_head:
        ahead.head(data)
