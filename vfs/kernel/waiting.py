"""Requests that must be waited for: a task answers each, and one whose process was killed is ended.

A process that waits for an answer cannot end before it has it, not even by SIGKILL. The kernel tells of the first
signal that such a process gets (INTERRUPT), and of that alone; of one that reads around the page cache it tells of none
(ASYNC_DIO). So it is also looked for, in /proc: SIGKILL stays pending for a thread that cannot end. One that only had a
signal waits on, for EINTR would be an error to programs that restart nothing.

State: the requests that wait, by their number; in a task, or for their turn (turns.py).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from vfs.kernel import wire

LOOK_S: Final = 0.5
"""How often the processes that wait are looked at."""
_LOOKS_MAX: Final = 500
"""The most threads that are looked at each time, which takes about ten milliseconds; more of them take turns."""
_LOOKS_AT_ONCE: Final = 50
_SIGKILL_BIT: Final = 1 << 8
_STATUS_BYTES_MAX: Final = 16384
_PENDING: Final = re.compile(rb"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)", re.MULTILINE)


class Waiting:
    """A request that a task answers, or will when it is its turn; ``pid`` is the thread that asked.

    ``withdraw`` takes it out of the queue for a turn; False when its turn has come.
    """

    __slots__ = ("pid", "scope", "unique", "withdraw")

    def __init__(self, unique: int, pid: int, withdraw: Callable[[], bool] | None = None) -> None:
        self.unique = unique
        self.pid = pid
        self.scope = trio.CancelScope()
        self.withdraw = withdraw


class Waiters:
    """See the module. ``write`` sends a reply. Belongs to the event loop's thread."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._known: dict[int, Waiting] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    def queue(self, waiting: Waiting) -> None:
        """It waits for its turn; ``run`` then starts it."""
        self._known[waiting.unique] = waiting

    async def run(self, waiting: Waiting, call: Callable[..., Any], *arguments: object) -> None:
        """Answer a request by a call, which an INTERRUPT for a killed process cancels."""
        try:
            with waiting.scope:
                await call(*arguments)
            if waiting.scope.cancelled_caught:  # by ``_abandon`` alone
                self._write(wire.error(waiting.unique, errno.EINTR))
        finally:
            if self._known.get(waiting.unique) is waiting:
                del self._known[waiting.unique]

    def start(self, nursery: trio.Nursery, waiting: Waiting, call: Callable[..., Any], *arguments: object) -> None:
        """``run`` it as a task of its own."""
        self._known[waiting.unique] = waiting
        nursery.start_soon(self.run, waiting, call, *arguments)

    def interrupt(self, target: int) -> None:
        """INTERRUPT: the process that waits for request ``target`` had a signal."""
        waiting = self._known.get(target)
        if waiting is not None and is_killed(waiting.pid):
            self._abandon(waiting)

    async def watch(self) -> None:
        """Look for killed processes, for ever."""
        first = 0
        while True:
            await trio.sleep(LOOK_S)
            by_thread: dict[int, list[Waiting]] = {}
            for waiting in self._known.values():
                by_thread.setdefault(waiting.pid, []).append(waiting)
            threads = list(by_thread)
            if len(threads) > _LOOKS_MAX:
                first = (first + _LOOKS_MAX) % len(threads)
                threads = [*threads[first:], *threads[:first]][:_LOOKS_MAX]
            for count, pid in enumerate(threads, 1):
                if is_killed(pid):
                    for waiting in by_thread[pid]:
                        self._abandon(waiting)
                if count % _LOOKS_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()

    def _abandon(self, waiting: Waiting) -> None:
        """End a request that nobody waits for any more, if it was not answered meanwhile."""
        if self._known.get(waiting.unique) is not waiting:
            return
        if waiting.withdraw is not None and waiting.withdraw():
            del self._known[waiting.unique]
            self._write(wire.error(waiting.unique, errno.EINTR))
        else:
            waiting.scope.cancel()


def is_killed(pid: int) -> bool:
    """Whether SIGKILL is pending for a thread. Source: proc(5), /proc/pid/status; a fatal signal becomes SIGKILL.

    Not of one that is gone (what it began may be another's to wait for) or that cannot be seen from here.
    """
    try:
        with Path(f"/proc/{pid}/status").open("rb", buffering=0) as file:
            status = file.read(_STATUS_BYTES_MAX) or b""
    except OSError:
        return False
    return any(int(signals, 16) & _SIGKILL_BIT for signals in _PENDING.findall(status))
