"""Which fetch begins next: one that a reader waits for before read-ahead, that before prefetch, and pins last.

State: what the fetches under way take, by priority; those that wait, each priority in the order they came.

Rules:
- Fetches begin in the order of their priority. One whose bytes do not fit yet is not overtaken, but by what is more
  urgent.
- What no reader waits for has only a part of everything (SHARES), together with all that is less urgent still: a reader
  that comes finds room, and sources that are not busy with others' wishes.
- A fetch that is wanted more urgently than before is ``promoted``: it changes its place, or no longer counts against
  the part that it was begun in.

Invariant: the bytes of all fetches under way are at most ``bytes_max``; those of a priority and of all less urgent ones
are within its share, but for one that would not fit by itself.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Final, NamedTuple

import trio


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
"""Of each priority together with those below it. Sources have 16 threads (``sources/central.py``)."""


class Turn:
    """One fetch in the queue: what it takes, and whether it has begun."""

    __slots__ = ("amount", "begun", "priority")

    def __init__(self, amount: int, priority: Priority) -> None:
        self.amount = amount
        self.priority = priority
        self.begun = trio.Event()


class Queue:
    """See the module's rules. Belongs to the event loop."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
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
        turn = Turn(min(amount, self._bytes_max), priority)
        self._waiting[priority].append(turn)
        self._next()
        return turn

    def leave(self, turn: Turn) -> None:
        """It has ended, or will not begin any more."""
        if turn.begun.is_set():
            self._bytes[turn.priority] -= turn.amount
            self._fetches[turn.priority] -= 1
        else:
            self._waiting[turn.priority].remove(turn)
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
                turn = waiting.popleft()
                self._bytes[priority] += turn.amount
                self._fetches[priority] += 1
                turn.begun.set()
            if waiting and waiting[0].amount > self.free_bytes:
                return

    def _fits(self, turn: Turn) -> bool:
        if turn.amount > self.free_bytes:
            return False
        for priority, share in SHARES.items():
            if priority > turn.priority:
                break
            lower = [below for below in Priority if below >= priority]
            fetches, taken = sum(map(self._fetches.__getitem__, lower)), sum(map(self._bytes.__getitem__, lower))
            if fetches and (fetches >= share.fetches or taken + turn.amount > share.bytes * self._bytes_max):
                return False
        return True
