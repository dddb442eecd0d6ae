"""The time of last uses: it goes on, and never back, whatever the machine's clock does.

State: the time that was told last. Without it a clock that was years ahead for a while (a battery that died, a wrong
time server) would leave uses in the future, and what is used from then on would be the oldest, and evicted first.
"""

from __future__ import annotations

import threading
import time


class UseClock:
    """Unix milliseconds, as long as the clock goes on from ``newest``: the last use that is known. Thread-safe."""

    def __init__(self, newest: int = 0) -> None:
        self._last = newest
        self._told_at = _elapsed_ms()
        self._lock = threading.Lock()

    def now_ms(self) -> int:
        """The time now: the machine's, or where that was set back, what has passed since the newest use."""
        with self._lock:
            elapsed = _elapsed_ms()
            self._last = max(time.time_ns() // 1_000_000, self._last + elapsed - self._told_at)
            self._told_at = elapsed
            return self._last


def _elapsed_ms() -> int:
    return time.monotonic_ns() // 1_000_000
