"""Which bytes of an open file will be read next: streams, recognised from the reads of one handle, and fetched.

State: ``FileAhead``, one for each open file that is not wholly on the local disk, with what was asked for and not read
yet; in it ``Streams``, STREAMS_MAX places that reading goes on from, which has neither I/O nor clock.

Rules:
- A read that goes on where an earlier one ended, or nearly (the kernel reorders; programs skip), is of its stream; any
  other one begins a stream, in place of the one that was not used for longest.
- A stream that has read on by START_BYTES is read ahead by its window. That doubles when a read had to wait for bytes
  that were not asked for in time, once for what was asked for since it doubled last, up to the largest; it is halved
  when what is to be fetched waits already.
- Where chunks are small the file is one that is read at random (textures, volumes), and pieces that happen to lie side
  by side are no stream: it must read on by RANDOM_START_BYTES, with no hole.
- What is behind the window is asked for again when half of it is left: in few large steps.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import trio

from cache.queue import Priority
from manifest.errors import DamfsError
from vfs import formats

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cache.handle import CachedObject
    from manifest.replica import Row
    from vfs.metrics import AheadStats
    from vfs.views import ShowView

log = logging.getLogger(__name__)

MIB: Final = 1024 * 1024
STREAMS_MAX: Final = 8
WINDOW_MIN_BYTES: Final = 2 * MIB
START_BYTES: Final = 128 * 1024
RANDOM_START_BYTES: Final = 2 * MIB
NEAR_BYTES: Final = MIB
"""A read so far before or behind the end of a stream is of it; the kernel's own read-ahead is about as much."""
FETCH_S_MAX: Final = 30.0
"""A chunk that does not come within it is not fetched ahead."""
RANDOM_CHUNK_BYTES: Final = 640 * 1024
"""Files of some megabytes whose chunks are smaller on average were cut to be read at random."""
RANDOM_FILE_BYTES_MIN: Final = 4 * MIB


class Stream:
    """A place in a file that reading goes on from. Offsets in bytes.

    ``position``: behind what was read; ``asked``: behind what was asked for ahead; ``run``: how many bytes it has read
    on since it began; ``grown``: behind what was asked for when its window was doubled.
    """

    __slots__ = ("asked", "grown", "position", "run", "window")

    def __init__(self, position: int, window: int) -> None:
        self.position = self.asked = self.grown = position
        self.run = 0
        self.window = window


class Streams:
    """See the module's rules. ``window_max`` in bytes; ``size`` is that of the file."""

    __slots__ = ("_far", "_near", "_size", "_start", "_streams", "_window_max")

    def __init__(self, size: int, window_max: int, *, is_random: bool) -> None:
        self._size = size
        self._window_max = window_max
        self._start = RANDOM_START_BYTES if is_random else START_BYTES
        self._near = 0 if is_random else NEAR_BYTES
        self._far = 0 if is_random else NEAR_BYTES
        self._streams: list[Stream] = []

    @property
    def windows(self) -> list[int]:
        """The windows of the streams, the one used last first; for tests and people."""
        return [stream.window for stream in self._streams]

    def read(self, offset: int, size: int, *, waited: bool) -> tuple[int, int] | None:
        """Note a read of these bytes; the bytes [start, stop) to be asked for now, if any.

        ``waited``: they are not here, so somebody waits for them.
        """
        end = offset + size
        stream = self._stream_of(offset, end)
        if stream is None:
            return None
        if end > stream.position:
            stream.run += end - max(offset, stream.position)
            stream.position = end
        if stream.run < self._start:
            return None
        if waited and end > stream.grown:
            stream.window = min(2 * stream.window, self._window_max)
            stream.grown = max(stream.asked, stream.position) + stream.window
        start = max(stream.asked, stream.position)
        target = min(stream.position + stream.window, self._size)
        if target - start < min(stream.window // 2, self._size - start) or target <= start:
            return None
        stream.asked = target
        return start, target

    def refused(self, start: int) -> None:
        """What was to be asked for from ``start`` on was not: others wait already. Its window is halved."""
        for stream in self._streams:
            if stream.asked > start >= stream.position:
                stream.window = max(WINDOW_MIN_BYTES, stream.window // 2)
                stream.asked = start

    def asked_to(self, start: int, stop: int) -> None:
        """More was asked for than ``read`` said, from ``start`` to ``stop``: chunks are fetched as a whole."""
        for stream in self._streams:
            if stream.position <= start < stream.asked < stop:
                stream.asked = stop

    def _stream_of(self, offset: int, end: int) -> Stream | None:
        """The stream that a read is of, now the first one; None: it has begun one, or was of bytes read before."""
        for i, stream in enumerate(self._streams):
            if stream.position - self._near <= offset <= stream.position + self._far:
                if i:
                    del self._streams[i]
                    self._streams.insert(0, stream)
                return stream
        window = min(WINDOW_MIN_BYTES, self._window_max)
        self._streams.insert(0, Stream(end, window))
        del self._streams[STREAMS_MAX:]
        return None


class Starter(Protocol):
    """Who runs what is fetched ahead, and says how much is too much (``vfs/ahead.py``)."""

    stats: AheadStats

    @property
    def window_max(self) -> int:
        """The largest window in bytes; 0: nothing is read ahead (any more)."""
        ...

    @property
    def is_pressed(self) -> bool:
        """Whether fetches ahead wait for their turn."""
        ...

    def is_fetching(self, show: str, row: Row) -> bool:
        """Whether all of a file is being fetched as a frame of a sequence."""
        ...

    def start(self, bring: Callable[[], Awaitable[None]]) -> None:
        """Run a task that ends soon after the scopes are cancelled that it has entered."""
        ...

    def note_reads(self, file: FileAhead) -> None:
        """More than the header of a file is read, or the file was closed."""
        ...


class FileAhead:
    """What is read ahead of one open file, and what is seen of how it is read. ``close`` it before the cached object.

    ``has_body``: more than the header was read. ``wants_head``: the first bytes tell what is read next (``head``).
    ``was_glanced_at``: it was closed, nothing but its header was read, and it was not wholly here.
    """

    __slots__ = (
        "_body_start", "_cached", "_habit", "_high", "_marks", "_scopes", "_starter", "_streams", "closed", "has_body",
        "row", "view", "wants_head", "was_glanced_at",
    )  # fmt: skip

    def __init__(self, starter: Starter, view: ShowView, row: Row, cached: CachedObject) -> None:
        self.view = view
        self.row = row
        self.has_body = self.closed = self.was_glanced_at = False
        self._starter = starter
        self._cached = cached
        self._habit = formats.habit(row.name)
        self.wants_head = self._habit.seek is not None
        self._body_start = formats.body_start(row.size)
        self._high = 0
        self._streams: Streams | None = None
        self._scopes: set[trio.CancelScope] = set()
        self._marks: list[tuple[int, int, int]] = []
        """(start, stop, bytes that were missing) of what was asked for and not read yet."""

    @property
    def part(self) -> float:
        """How far the file was read, as a part of it."""
        return self._high / self.row.size

    def read(self, offset: int, size: int, *, waited: bool) -> None:
        """These bytes, at least one and within the size, are read; ``waited``: they are not here. Never waits."""
        end = offset + size
        if end > self._high:
            self._high = end
            if end > self._body_start and not self.has_body:
                self.has_body = True
                self._starter.note_reads(self)
        if self._marks:
            self._use(offset, end)
        window_max = self._starter.window_max
        if self._cached.is_here or not window_max:
            return
        if self._streams is None:
            is_random = self._habit.is_random or is_cut_for_random(self._cached)
            self._streams = Streams(self.row.size, window_max, is_random=is_random)
        span = self._streams.read(offset, size, waited=waited)
        if span is not None:
            self._extend(self._streams, *span)

    def head(self, data: formats.Buffer) -> None:
        """The first bytes of the file were read."""
        self.wants_head = False
        assert self._habit.seek is not None
        span = self._habit.seek(data, self.row.size)
        if span is not None and self._starter.window_max:
            self._fetch(*span)

    def close(self) -> None:
        """Nobody reads it any more: what has not begun is withdrawn."""
        self.closed = True
        self.was_glanced_at = not self.has_body and self._high > 0 and not self._cached.is_here
        for scope in self._scopes:
            scope.cancel()
        for start, stop, count in self._marks:
            missing = self._cached.missing_bytes(start, stop - start)
            self._starter.stats.wasted_bytes += max(0, count - (count if missing is None else missing))
        self._marks.clear()
        self._starter.note_reads(self)

    def _use(self, start: int, stop: int) -> None:
        for mark in self._marks:
            if mark[0] < stop and start < mark[1]:
                self._starter.stats.used_bytes += mark[2]
                self._marks.remove(mark)
                return

    def _extend(self, streams: Streams, start: int, stop: int) -> None:
        """Fetch what a stream reads next, in whole chunks, but for the one that it is reading."""
        if self._starter.is_fetching(self.view.show, self.row):
            return
        if self._starter.is_pressed:
            streams.refused(start)
            return
        first, last = self._cached.chunks(start, 1), self._cached.chunks(stop - 1, 1)
        if first is not None and last is not None:
            if first[0] < start:
                start = first[1]
            stop = last[1]
            streams.asked_to(start, stop)
        if start < stop:
            self._fetch(start, stop)

    def _fetch(self, start: int, stop: int) -> None:
        missing = self._cached.missing_bytes(start, stop - start)
        count = stop - start if missing is None else missing
        if not count:
            return
        self._marks.append((start, stop, count))
        self._starter.stats.file_bytes += count
        scope = trio.CancelScope()
        self._scopes.add(scope)
        self._starter.start(partial(self._bring, self._cached.hold(), scope, start, stop))

    async def _bring(self, held: CachedObject, scope: trio.CancelScope, start: int, stop: int) -> None:
        try:
            with scope:
                await held.fill(FETCH_S_MAX, (start, stop), Priority.READ_AHEAD)
        except DamfsError as error:
            log.debug("%s: bytes %d to %d were not read ahead: %s", self.row.name, start, stop, error)
        finally:
            self._scopes.discard(scope)
            held.release()


def is_cut_for_random(cached: CachedObject) -> bool:
    """Whether a file was cut into small chunks, since it is read at random (docs/FORMAT.md)."""
    return cached.size >= RANDOM_FILE_BYTES_MIN and 0 < cached.chunk_bytes < RANDOM_CHUNK_BYTES
