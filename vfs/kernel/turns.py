"""Who may wait for bytes now: limits on the reads that are under way, in all and for each user, fairly.

A read counts for what it may take in memory, which is more than it asks for: the cache fetches whole chunks, and has
as much memory for them as two users may take here (cache/fetch.py).

State: the reads that wait for their turn, per user, in the order they came; users take turns. What waits here is a
number of bytes and a callback: the request itself is in the kernel's hands, which bounds how many there are.

Invariant: the bytes of all reads that were started and have not ended are at most ``bytes_max``; no user has more than
``user_reads_max`` of them, nor more than ``user_bytes_max``: one user's stalled reads leave turns for others.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

from manifest.errors import Unavailable

INFLIGHT_BYTES_MAX: Final = 512 * 1024 * 1024
USER_BYTES_MAX: Final = 128 * 1024 * 1024
USER_READS_MAX: Final = 256
QUEUE_MAX: Final = 65536


class Turns:
    """See the module. Belongs to the event loop's thread."""

    def __init__(
        self,
        *,
        bytes_max: int = INFLIGHT_BYTES_MAX,
        user_bytes_max: int = USER_BYTES_MAX,
        user_reads_max: int = USER_READS_MAX,
        queue_max: int = QUEUE_MAX,
    ) -> None:
        self._bytes_max = bytes_max
        self._user_bytes_max = user_bytes_max
        self._user_reads_max = user_reads_max
        self._queue_max = queue_max
        self._bytes = 0
        self._queued = 0
        self._reads: Counter[int] = Counter()
        self._user_bytes: Counter[int] = Counter()
        self._numbers = itertools.count(1)
        self._queues: OrderedDict[int, dict[int, tuple[int, Callable[[], None]]]] = OrderedDict()
        """By user and number, each in order."""

    @property
    def running(self) -> int:
        """Reads that were started and have not ended."""
        return self._reads.total()

    @property
    def queued(self) -> int:
        """Reads that wait for their turn."""
        return self._queued

    def take(self, user: int, size: int, start: Callable[[], None]) -> int:
        """Call ``start`` when it is this read's turn: now, if it is (0); else the number by which it waits.

        Raises Unavailable when too many wait.
        """
        if user not in self._queues and self._may(user, size):
            self._begin(user, size, start)
            return 0
        if self._queued >= self._queue_max:
            raise Unavailable(f"{self._queued} reads wait already")
        number = next(self._numbers)
        self._queues.setdefault(user, {})[number] = size, start
        self._queued += 1
        return number

    def withdraw(self, user: int, number: int) -> bool:
        """Have a read wait no longer; False when its turn has come before."""
        if self._queues.get(user, {}).pop(number, None) is None:
            return False
        self._queued -= 1
        if not self._queues[user]:
            del self._queues[user]
        return True

    def ended(self, user: int, size: int) -> None:
        """A read that was started has ended: it is the next ones' turn."""
        self._bytes -= size
        self._user_bytes[user] -= size
        self._reads[user] -= 1
        if not self._reads[user]:
            del self._reads[user], self._user_bytes[user]
        self._next()

    def _may(self, user: int, size: int) -> bool:
        return (
            self._reads[user] < self._user_reads_max
            and self._user_bytes[user] + size <= self._user_bytes_max
            and self._bytes + size <= self._bytes_max
        )

    def _begin(self, user: int, size: int, start: Callable[[], None]) -> None:
        self._bytes += size
        self._user_bytes[user] += size
        self._reads[user] += 1
        start()

    def _next(self) -> None:
        """Start what may be started, one read of each user in turn."""
        passed = 0
        while passed < len(self._queues):
            user, queue = next(iter(self._queues.items()))
            self._queues.move_to_end(user)
            number, (size, start) = next(iter(queue.items()))
            if not self._may(user, size):
                passed += 1
                continue
            passed = 0
            del queue[number]
            self._queued -= 1
            if not queue:
                del self._queues[user]
            self._begin(user, size, start)
