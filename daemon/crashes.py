"""Whether another daemon is worth a try: whether the mount is served between one crash and the next.

State: when the last daemons were to start, were ready, and ended. A daemon was to start when the one before it ended.
Rules: the last ``daemons`` of them are looked at. When together they served for less than SERVED_SHARE of that time,
going on is of no use: nobody can work with the mount, and whatever ends them goes on doing so. One that is killed
every now and then, and is back in moments, is succeeded for ever.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CRASHES_MAX = 5
"""So many daemons are looked at."""
SERVED_SHARE = 0.25
MOMENT_S = 0.05
"""Who was ready for less has served nobody: what ends it was there before."""
AGAIN_S = (0.0, 0.0, 0.2, 0.5, 4.0)
"""How long nothing is started after so many daemons in a row that were never ready: an upgrade may be under way."""


class Crashes:
    """The lives of one mount's daemons, the first of which is to start now."""

    def __init__(self, daemons: int = CRASHES_MAX, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due = clock()
        self._ready: float | None = None
        self._unready = 0
        self._lives: deque[tuple[float, float]] = deque(maxlen=daemons)
        """When each was to start, and for how many seconds it served."""

    def ready(self) -> None:
        """The daemon serves the mount."""
        if self._ready is None:
            self._ready = self._clock()

    def ended(self) -> None:
        """It has ended; the next one is to start now."""
        now = self._clock()
        served_s = 0.0 if self._ready is None else now - self._ready
        self._lives.append((self._due, served_s if served_s >= MOMENT_S else 0.0))
        self._unready = self._unready + 1 if self._ready is None else 0
        self._due, self._ready = now, None

    def hopeless(self) -> str:
        """Why no other one is worth a try; "" when one is."""
        if len(self._lives) < (self._lives.maxlen or 0):
            return ""
        served_s = sum(served for _, served in self._lives)
        passed_s = self._due - self._lives[0][0]
        if served_s > 0 and served_s >= SERVED_SHARE * passed_s:
            return ""
        return f"the last {len(self._lives)} daemons served it for {served_s:.1f} s of {passed_s:.1f} s"

    @property
    def pause_s(self) -> float:
        """How long to wait before the next one is started."""
        return AGAIN_S[min(self._unready, len(AGAIN_S) - 1)]
