"""Chunks, recipes and changesets on their way to the library: only what is missing, retried with jitter.

State: the digests that are known to be there. Rules: an object counts as present only with the right size; one chunk
is uploaded once however many files have it; a request that failed is made again after a random pause (full jitter)
until the time for it is up; the time that the bandwidth takes does not count.

Source of the pauses: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cache.bandwidth import Throttle
from manifest.errors import Unavailable
from manifest.layout import chunk_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from manifest.digest import Digest
    from manifest.library import Library
    from tools.publish.mirror import Mirror

REQUEST_TIMEOUT_S = 120.0
RETRY_DEADLINE_S = 300.0
_PAUSE_S = 0.2
_PAUSE_S_MAX = 10.0
_FLUSH_BYTES = 256 * 1024 * 1024

T = TypeVar("T")


@dataclass(slots=True)
class UploadCounts:
    """What was sent and what was there already."""

    chunks: int = 0
    size_bytes: int = 0
    present_chunks: int = 0
    present_bytes: int = 0


class Uploader:
    """Puts objects of one show. Thread-safe."""

    def __init__(
        self,
        library: Library,
        show: str,
        known: set[bytes] | None = None,
        *,
        deadline_s: float = RETRY_DEADLINE_S,
        mirror: Mirror | None = None,
        rate: int | None = None,
    ) -> None:
        """``known`` are digests of chunks that the show's published recipes name; it is added to.

        ``mirror`` is given everything that the library has then. ``rate``: so many bytes may be sent to the library in
        a second, those of requests that fail too; None: no limit.
        """
        self._throttle = Throttle(rate)
        self.counts = UploadCounts()
        self._library = library
        self._show = show
        self._present = set() if known is None else known
        self._deadline_s = deadline_s
        self._mirror = mirror
        self._underway: dict[bytes, threading.Event] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._flushing = threading.Lock()
        self._unflushed_bytes = 0

    def stop(self) -> None:
        """End every pause; what fails from now on is not tried again."""
        self._stopped.set()

    def chunk(self, digest: Digest, data: memoryview, *, failed: Callable[[], None]) -> None:
        """Make sure that the library has this chunk.

        ``failed`` is called after each request that failed, when the transport may go on reading ``data``.
        Raises Unavailable, AccessDenied.
        """
        while True:
            with self._lock:
                if digest in self._present:
                    self._count(len(data), sent=False)
                    return
                other = self._underway.get(digest)
                if other is None:
                    mine = self._underway[digest] = threading.Event()
                    break
            other.wait()
            if self._stopped.is_set():
                raise Unavailable("given up: another part of the publish failed")
        try:
            sent = self.object(chunk_key(self._show, digest), data, failed=failed)
            with self._lock:
                self._present.add(digest)
                self._count(len(data), sent=sent)
        finally:
            with self._lock:
                del self._underway[digest]
            mine.set()
        if sent:
            self._flush_early(len(data))

    def object(self, key: str, data: bytes | memoryview, *, failed: Callable[[], None] = lambda: None) -> bool:
        """Put an object named by its content, unless it is there with this size; whether it was sent."""
        waited_s = 0.0

        def attempt() -> bool:
            nonlocal waited_s
            if self._library.size(key, timeout_s=REQUEST_TIMEOUT_S) == len(data):
                return False
            begun = time.monotonic()
            if not self._throttle.pay(len(data), self._stopped):
                raise Unavailable("given up: another part of the publish failed")
            waited_s += time.monotonic() - begun
            self._library.put(key, data, timeout_s=REQUEST_TIMEOUT_S)
            return True

        sent = self._retried(attempt, failed, lambda: waited_s)
        if self._mirror is not None:
            self._mirror.put(key, data, failed=failed)
        return sent

    def _retried(self, attempt: Callable[[], T], failed: Callable[[], None], waited_s: Callable[[], float]) -> T:
        """``waited_s``: for so long the attempts only waited, which does not count."""
        deadline = time.monotonic() + self._deadline_s
        pause_s = _PAUSE_S
        while True:
            try:
                return attempt()
            except Unavailable:
                failed()
                wait_s = random.uniform(0, pause_s)  # noqa: S311 - jitter, no secret
                if time.monotonic() + wait_s >= deadline + waited_s() or self._stopped.wait(wait_s):
                    raise
                pause_s = min(2 * pause_s, _PAUSE_S_MAX)
            except BaseException:
                failed()
                raise

    def _count(self, size_bytes: int, *, sent: bool) -> None:
        if sent:
            self.counts.chunks += 1
            self.counts.size_bytes += size_bytes
        else:
            self.counts.present_chunks += 1
            self.counts.present_bytes += size_bytes

    def _flush_early(self, size_bytes: int) -> None:
        """Let a local disk write while the next chunks are hashed, not only at the end."""
        with self._lock:
            self._unflushed_bytes += size_bytes
            if self._unflushed_bytes < _FLUSH_BYTES or not self._flushing.acquire(blocking=False):
                return
            self._unflushed_bytes = 0
        try:
            self._library.sync()
        finally:
            self._flushing.release()
