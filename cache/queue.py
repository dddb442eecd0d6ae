"""Which fetch begins next: one that a reader waits for before read-ahead, that before prefetch, and pins last.

State: what the fetches under way take, by priority; those that wait, each priority in the order they came.

Rules:
- Fetches begin in the order of their priority. One whose bytes do not fit yet is not overtaken, but by what is more
  urgent.
- What no reader waits for has only a part of everything (SHARES), together with all that is less urgent still: a reader
  that comes finds room, and sources that are not busy with others' wishes.
- No more are under way than the window says (``window.py``), whatever their priority.
- The bandwidth counts them all: one begins when nothing is owed for those before, whatever its priority, and then its
  bytes are owed. So the most urgent goes first, and waits for about one chunk's worth at most.
- A fetch that is wanted more urgently than before is ``promoted``: it changes its place, or no longer counts against
  the part that it was begun in.

Invariant: the bytes of all fetches under way are at most ``bytes_max``; those of a priority and of all less urgent ones
are within its share, but for one that would not fit by itself.
"""

from __future__ import annotations

import math
from collections import deque
from enum import IntEnum
from typing import Final, NamedTuple

import trio

from cache.bandwidth import Bandwidth
from cache.window import Window

UNLIMITED = 10**6


class Priority(IntEnum):
    """How urgently bytes are wanted; the smaller, the more."""

    DEMAND = 0
    READ_AHEAD = 1
    PREFETCH = 2
    PIN = 3


class Share(NamedTuple):
    """What a priority may have under way: so many fetches, and this part of all bytes."""

    fetches: int
    bytes: float


SHARES: Final = {
    Priority.READ_AHEAD: Share(12, 0.75),
    Priority.PREFETCH: Share(8, 0.5),
    Priority.PIN: Share(4, 0.25),
}
"""Of each priority together with those below it. The fetches are of FETCHES; of a smaller window as large a part."""
FETCHES: Final = 16


class Turn:
    """One fetch in the queue: what it takes, of that more than the queue has counts as all; whether it has begun."""

    __slots__ = ("amount", "begun", "is_parked", "priority", "size_bytes")

    def __init__(self, size_bytes: int, amount: int, priority: Priority) -> None:
        self.size_bytes = size_bytes
        self.amount = amount
        self.priority = priority
        self.begun = trio.Event()
        self.is_parked = False


class Queue:
    """See the module's rules. Belongs to the event loop. With a limited bandwidth, ``run`` must run."""

    def __init__(self, bytes_max: int, bandwidth: Bandwidth | None = None, window: Window | None = None) -> None:
        self._bytes_max = bytes_max
        self._window = window or Window(UNLIMITED, math.inf)
        self._bandwidth = bandwidth or Bandwidth()
        self._parked = 0
        self._owing = trio.Event()  # something waits for nothing but the bandwidth
        self._rate_set = trio.Event()
        self._waiting: dict[Priority, deque[Turn]] = {priority: deque() for priority in Priority}
        self._bytes = dict.fromkeys(Priority, 0)
        self._fetches = dict.fromkeys(Priority, 0)

    @property
    def free_bytes(self) -> int:
        """What one that a reader waits for could take now."""
        return self._bytes_max - sum(self._bytes.values())

    def waiting(self, priority: Priority) -> int:
        """How many have not begun."""
        return len(self._waiting[priority])

    def under_way(self, priority: Priority) -> int:
        """How many have begun and not ended."""
        return self._fetches[priority]

    @property
    def fetches_max(self) -> int:
        """How many may be under way now."""
        return self._window.limit

    def answered(self, length: int | None, seconds: float, *, is_good: bool) -> None:
        """See ``Window.answered``."""
        self._window.answered(length, seconds, is_good=is_good)
        self._next()

    def numbers(self) -> dict[tuple[str, str], int]:
        """How many are waiting and under way, by priority."""
        counts = {"waiting": self.waiting, "under_way": self.under_way}
        return {(one.name.lower(), state): count(one) for one in Priority for state, count in counts.items()}

    def ahead(self, turn: Turn) -> int:
        """How many of those that wait come before this one; 0 when it has begun. Looks at all that wait beside it."""
        if turn.begun.is_set():
            return 0
        before = sum(len(waiting) for priority, waiting in self._waiting.items() if priority < turn.priority)
        return before + self._waiting[turn.priority].index(turn)

    def enter(self, amount: int, priority: Priority) -> Turn:
        """A place in the queue for so many bytes; more than the whole counts as the whole."""
        turn = Turn(amount, min(amount, self._bytes_max), priority)
        self._waiting[priority].append(turn)
        self._next()
        return turn

    def leave(self, turn: Turn) -> None:
        """It has ended, or will not begin any more."""
        if turn.begun.is_set():
            self._parked -= turn.is_parked
            self._bytes[turn.priority] -= turn.amount
            self._fetches[turn.priority] -= 1
        else:
            self._waiting[turn.priority].remove(turn)
        self._next()

    def park(self, turn: Turn, *, is_parked: bool) -> None:
        """It has begun, and needs no request now: there is nobody to ask, or its bytes are here. Or it does again."""
        if turn.is_parked != is_parked:
            turn.is_parked = is_parked
            self._parked += 1 if is_parked else -1
            self._next()

    def took(self, turn: Turn, size_bytes: int) -> None:
        """It has begun, and so many bytes came over the network for it, which may be others than were paid for."""
        if self._bandwidth.rate is not None and size_bytes != turn.size_bytes:
            self._bandwidth.pay(size_bytes - turn.size_bytes, trio.current_time())
            self._next()

    @property
    def rate(self) -> int | None:
        """The bandwidth, in bytes a second; None: no limit."""
        return self._bandwidth.rate

    def set_rate(self, rate: int | None) -> None:
        """Another bandwidth from now on."""
        self._bandwidth.set_rate(rate)
        self._rate_set.set()
        self._rate_set = trio.Event()
        self._next()

    async def run(self) -> None:
        """Let fetches begin as the bandwidth allows, for ever."""
        while True:
            await self._owing.wait()
            self._owing = trio.Event()
            with trio.move_on_after(self._bandwidth.wait_s(trio.current_time())):
                await self._rate_set.wait()
            self._next()

    def promote(self, turn: Turn, priority: Priority) -> None:
        """It is wanted as urgently as this, if it was not before."""
        if priority >= turn.priority:
            return
        if turn.begun.is_set():
            for count, step in ((self._bytes, turn.amount), (self._fetches, 1)):
                count[turn.priority] -= step
                count[priority] += step
        else:
            self._waiting[turn.priority].remove(turn)
            self._waiting[priority].append(turn)
        turn.priority = priority
        self._next()

    def _next(self) -> None:
        for priority, waiting in self._waiting.items():
            while waiting and self._fits(waiting[0]):
                if self._is_owing():
                    return
                turn = waiting.popleft()
                self._bytes[priority] += turn.amount
                self._fetches[priority] += 1
                self._pay(turn)
                turn.begun.set()
            if waiting and (waiting[0].amount > self.free_bytes or self._is_full()):
                return

    def _is_full(self) -> bool:
        return sum(self._fetches.values()) - self._parked >= self._window.limit

    def _is_owing(self) -> bool:
        if self._bandwidth.rate is None or self._bandwidth.wait_s(trio.current_time()) == 0:
            return False
        self._owing.set()
        return True

    def _pay(self, turn: Turn) -> None:
        if self._bandwidth.rate is not None:
            self._bandwidth.pay(turn.size_bytes, trio.current_time())

    def _fits(self, turn: Turn) -> bool:
        if turn.amount > self.free_bytes or self._is_full():
            return False
        for priority, share in SHARES.items():
            if priority > turn.priority:
                break
            lower = [below for below in Priority if below >= priority]
            fetches, taken = sum(map(self._fetches.__getitem__, lower)), sum(map(self._bytes.__getitem__, lower))
            fetches_max = min(share.fetches, self._window.limit * share.fetches // FETCHES)
            if fetches and (fetches >= fetches_max or taken + turn.amount > share.bytes * self._bytes_max):
                return False
        return True
