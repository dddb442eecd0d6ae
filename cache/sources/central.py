"""The central object store as a source.

State: counters. The library blocks, so it is called in threads under a limiter of its own: a dead store holds its
own threads and nobody else's, and the cache disk goes on serving. ``on_answer`` is called after each good answer.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Protocol

import trio

from cache.sources.protocol import ObjectRef, SourceStatus
from cache.sources.threads import Threads
from manifest.errors import DamfsError, Unavailable
from manifest.layout import IDENTITY, chunk_key, recipe_key
from manifest.recipe import CHUNK_BYTES_MAX, OBJECT_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS = 16
ATTEMPT_S_MAX = 30.0
"""One request takes no longer, whatever the reader's patience: a connection that died silently is given up."""
_ATTEMPT_S_MIN = 0.05


class ObjectLibrary(Protocol):
    """The part of ``manifest.library.Library`` that a source needs; blocking, thread-safe."""

    @property
    def url(self) -> str: ...

    def get(self, key: str, *, timeout_s: float = ..., bytes_max: int | None = ...) -> bytes: ...

    def get_buffer(self, key: str, *, timeout_s: float = ..., bytes_max: int | None = ...) -> memoryview: ...


class CentralSource:
    """Objects straight from the library's store."""

    def __init__(self, library: ObjectLibrary, *, limiter_threads: int = THREADS, name: str = "central") -> None:
        self._library = library
        self._threads = Threads(limiter_threads)
        self._name = name
        self.on_answer: Callable[[], None] = lambda: None
        self._healthy = True
        self._last_error: str | None = None
        self._last_error_time: float | None = None
        self._fetched_bytes = 0
        self._fetches = 0
        self._errors = 0

    @property
    def name(self) -> str:
        return self._name

    async def fetch(self, ref: ObjectRef, deadline: float) -> memoryview | bytes:
        """See ``Source.fetch``. Waits for a thread until the deadline; the thread gets a time-out below it."""

        def call() -> memoryview | bytes:
            return self._get(ref, end - time.monotonic())

        try:
            end = time.monotonic() + min(deadline - trio.current_time(), 1e6)
            data = await self._threads.run(call, deadline)
            if data is None:
                raise Unavailable(f"{ref}: {self._library.url} is busy with slow requests, none ended in time")
        except DamfsError as error:
            self._failed(str(error))
            raise
        self._healthy = True
        self._fetches += 1
        self._fetched_bytes += len(data)
        self.on_answer()
        return data

    async def probe(self, deadline: float) -> None:
        """See ``Probeable``: asks for the library's identity, in a thread beside those of the fetches."""
        remaining_s = deadline - trio.current_time()
        try:
            await self._threads.run_beside(partial(self._library.get, IDENTITY, timeout_s=remaining_s))
        except Unavailable:
            raise
        except DamfsError:
            pass  # an answer, whatever it says
        self.on_answer()

    def rejected(self, reason: str) -> None:
        """See ``Accountable``."""
        self._failed(reason)

    def status(self) -> SourceStatus:
        """See ``Source.status``."""
        return SourceStatus(
            name=self._name,
            url=self._library.url,
            healthy=self._healthy,
            last_error=self._last_error,
            last_error_time=self._last_error_time,
            fetched_bytes=self._fetched_bytes,
            fetches=self._fetches,
            errors=self._errors,
        )

    def _get(self, ref: ObjectRef, remaining_s: float) -> memoryview | bytes:
        if remaining_s < _ATTEMPT_S_MIN:
            raise Unavailable(f"{ref}: no time left to ask {self._library.url}")
        timeout_s = min(remaining_s, ATTEMPT_S_MAX)
        if ref.kind == "chunk":
            bytes_max = CHUNK_BYTES_MAX if ref.length is None else ref.length
            key = chunk_key(ref.tenant, ref.digest)
            return self._library.get_buffer(key, timeout_s=timeout_s, bytes_max=bytes_max)
        return self._library.get(recipe_key(ref.tenant, ref.digest), timeout_s=timeout_s, bytes_max=OBJECT_BYTES_MAX)

    def _failed(self, reason: str) -> None:
        self._healthy = False
        self._errors += 1
        self._last_error = reason
        self._last_error_time = time.time()
