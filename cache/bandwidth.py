"""How much goes over the network in a second: a token bucket that may be in debt.

State: the rate, and what is left of it now; less than nothing while what has begun is more than was allowed yet.

Rules: whoever begins pays for all of it at once, when nothing is owed; so one that is urgent waits for at most what was
begun last, and the average is the rate whatever the sizes are. The times are the caller's, so it runs on any clock.

Invariant: in any ``t`` seconds at most rate x (``t`` + BURST_S) bytes begin, and one more.
"""

from __future__ import annotations

import threading
import time

BURST_S = 0.5
"""So many seconds' worth may be saved up."""


class Bandwidth:
    """See the module's rules. ``rate`` is in bytes a second; None: no limit. Not thread-safe."""

    def __init__(self, rate: int | None = None) -> None:
        self._rate = rate
        self._left = 0.0 if rate is None else rate * BURST_S
        self._at: float | None = None

    @property
    def rate(self) -> int | None:
        """Bytes a second; None: no limit."""
        return self._rate

    def set_rate(self, rate: int | None) -> None:
        """Another limit from now on. What is owed is forgotten."""
        self._rate = rate
        self._left = 0.0

    def pay(self, amount: int, now: float) -> None:
        """So many bytes begin (a negative number: they did not come over the network after all)."""
        if self._rate is not None:
            self._refill(self._rate, now)
            self._left -= amount

    def wait_s(self, now: float) -> float:
        """The seconds until more may begin; 0: now."""
        if self._rate is None:
            return 0.0
        self._refill(self._rate, now)
        return -self._left / self._rate if self._left <= -1 else 0.0  # less than a byte is what rounding leaves

    def _refill(self, rate: int, now: float) -> None:
        if self._at is not None:
            self._left = min(rate * BURST_S, self._left + rate * (now - self._at))
        self._at = now


class Throttle:
    """A Bandwidth for threads, which wait in turn."""

    def __init__(self, rate: int | None = None) -> None:
        self._bandwidth = Bandwidth(rate)
        self._lock = threading.Lock()

    def pay(self, amount: int, stopped: threading.Event) -> bool:
        """Wait until ``amount`` bytes may be sent; False when ``stopped`` was set meanwhile, and they may not."""
        while not stopped.is_set():
            with self._lock:
                now = time.monotonic()
                wait_s = self._bandwidth.wait_s(now)
                if wait_s == 0:
                    self._bandwidth.pay(amount, now)
                    return True
            stopped.wait(wait_s)
        return False
