"""A nearer way to what the library has: a cache that is asked first, and the central store where that does not do.

State: until when the cache is not asked, how it went. Thread-safe. Rules:

- The cache is never trusted: what it says is verified by whoever asks (a changeset here, an entry in ``follow``), and
  whatever is wrong with it, its bytes or its answer, the central store is asked within the same time-out.
- A cache that failed is left alone for a while, doubled each time up to OFF_S_MAX and jittered: a dead one costs one
  attempt now and then, not one a request. While it is left alone, everything goes to the central store.
- The cache stands in front of the store: that an entry is absent counts, though it may be some seconds late. That an
  object is absent which somebody has named is for the central store to say.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from manifest.errors import IntegrityError, NotFound, Offline, TransportError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

NEAR_S_MAX = 10.0
NEAR_SHARE = 0.5
"""The cache gets so much of a request's time: the rest is for the central store."""
OFF_S_MIN = 1.0
OFF_S_MAX = 30.0

_log = logging.getLogger(__name__)


class Near(Protocol):
    """A cache of a library: as ``Library``, with its errors. Blocking, thread-safe."""

    @property
    def url(self) -> str: ...

    def get(self, key: str, *, timeout_s: float = ..., bytes_max: int | None = ...) -> bytes: ...

    def list(self, prefix: str, *, after: str | None = None, timeout_s: float = ...) -> Iterator[tuple[str, int]]: ...

    def folders(self, prefix: str, *, timeout_s: float = ...) -> list[str]: ...  # type: ignore[valid-type]


@dataclass(frozen=True, slots=True)
class WayStatus:
    """How often the cache was asked, how often it failed, how often the central store was asked; the last error."""

    url: str
    near_requests: int
    near_failures: int
    central_requests: int
    last_error: str | None


class Way:
    """See the module's rules. ``near`` None: there is only the central store."""

    def __init__(self, near: Near | None = None) -> None:
        self._near = near
        self._lock = threading.Lock()
        self._off_until = 0.0
        self._failures_in_a_row = 0
        self._near_requests = self._near_failures = self._central_requests = 0
        self._last_error: str | None = None

    def status(self) -> WayStatus | None:
        """What happened so far; None when there is no cache."""
        if self._near is None:
            return None
        return WayStatus(
            self._near.url, self._near_requests, self._near_failures, self._central_requests, self._last_error
        )

    def object(self, near: Callable[[Near, float], T], central: Callable[[float], T], timeout_s: float) -> T:
        """Something that never changes, named by its digest. The calls are given a time-out, and verify it."""
        return self._ask(near, central, timeout_s, may_be_absent=False)

    def news(self, near: Callable[[Near, float], T], central: Callable[[float], T], timeout_s: float) -> T:
        """What may have become more: an entry, a listing."""
        return self._ask(near, central, timeout_s, may_be_absent=True)

    def fresh(self, near: Callable[[Near, float], T], central: Callable[[float], T], timeout_s: float) -> T:
        """News as of now, for who wants to know: the central store's, and the cache's only while that is not reachable.

        A workstation that reaches nothing but its site cache is not offline. Raises what the central store did.
        """
        with self._lock:
            self._central_requests += 1
        if self._near is None:
            return central(timeout_s)
        until = time.monotonic() + timeout_s
        try:
            return central(timeout_s * (1 - NEAR_SHARE))
        except Unavailable as error:
            if time.monotonic() < self._off_until or isinstance(error, Offline):
                raise
            try:
                answer = near(self._near, max(0.1, until - time.monotonic()))
            except NotFound:
                self._answered()
                raise
            except (TransportError, IntegrityError) as failure:
                self._failed(self._near, failure)
                raise error from failure
            self._answered()
            return answer

    def _ask(
        self,
        near: Callable[[Near, float], T],
        central: Callable[[float], T],
        timeout_s: float,
        *,
        may_be_absent: bool,
    ) -> T:
        until = time.monotonic() + timeout_s
        cache = self._near
        if cache is not None and time.monotonic() >= self._off_until:
            try:
                answer = near(cache, min(NEAR_S_MAX, timeout_s * NEAR_SHARE))
            except NotFound:
                self._answered()
                if may_be_absent:
                    raise
            except Offline:
                raise
            except (TransportError, IntegrityError) as error:
                self._failed(cache, error)
            else:
                self._answered()
                return answer
        with self._lock:
            self._central_requests += 1
        return central(max(until - time.monotonic(), timeout_s * (1 - NEAR_SHARE) / 2))

    def _answered(self) -> None:
        with self._lock:
            was_off, self._failures_in_a_row = self._failures_in_a_row > 0, 0
            self._near_requests += 1
            self._off_until = 0.0
        if was_off and self._near is not None:
            _log.info("the site cache %s answers again", self._near.url)

    def _failed(self, cache: Near, error: Exception) -> None:
        with self._lock:
            is_first = self._failures_in_a_row == 0
            self._failures_in_a_row += 1
            self._near_requests += 1
            self._near_failures += 1
            self._last_error = str(error)
            longest = min(OFF_S_MAX, OFF_S_MIN * 2 ** min(self._failures_in_a_row - 1, 10))
            self._off_until = time.monotonic() + random.uniform(longest / 2, longest)  # noqa: S311  jitter, no secret
        if is_first:
            _log.warning("metadata comes from the central store, not by way of the site cache %s: %s", cache.url, error)


CENTRAL = Way()
"""No cache: every request goes to the central store."""
