"""Which bytes of a file are read, while somebody records it: ranges, merged, within a limit.

State: the ranges of one file. A file that is recorded is read through damfs, and not by the kernel itself: else nobody
would know what is read of it (vfs/kernel/passthrough.py has the exception).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Protocol

from manifest.replica import Row
from vfs.views import ShowView

RANGES_PER_FILE_MAX = 4096


class Budget:
    """How many more ranges may be noted, of all files together; each file may have one."""

    def __init__(self, left: int) -> None:
        self.left = left


class Touched:
    """The ranges that were read of a file of ``size`` bytes.

    Invariant: ``starts[i] < stops[i] < starts[i + 1]``.
    """

    __slots__ = ("_budget", "size", "starts", "stops")

    def __init__(self, size: int, budget: Budget) -> None:
        self.size = size
        self.starts: list[int] = []
        self.stops: list[int] = []
        self._budget = budget

    def note(self, offset: int, size: int) -> None:
        """These bytes are read; what lies behind the end is not counted."""
        start, stop = offset, min(offset + size, self.size)
        if start >= stop:
            return
        first, last = bisect_left(self.stops, start), bisect_right(self.starts, stop)
        if first < last:  # it touches these, and becomes one with them
            start, stop = min(start, self.starts[first]), max(stop, self.stops[last - 1])
        self._budget.left += last - first - 1
        self.starts[first:last] = [start]
        self.stops[first:last] = [stop]
        count = len(self.starts)
        if count > 1 and (self._budget.left < 0 or count > RANGES_PER_FILE_MAX):
            self.note(self.starts[0], self.stops[-1] - self.starts[0])

    def note_all(self) -> None:
        """Nobody knows what is read: the kernel reads the file by itself."""
        self.note(0, self.size)


class Recorder(Protocol):
    """Who is told of opens."""

    def opened(self, pid: int, view: ShowView, row: Row) -> Touched | None:
        """A thread of a process opens a file: what is to note its reads; None: nobody wants to know."""
        ...
