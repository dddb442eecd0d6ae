"""How long a source takes, as it is now: quantiles over its recent answers, by size.

State: the last WINDOW answers of each class of sizes. A chunk of 16 MiB is no outlier among those of 64 KiB, so each
class has quantiles of its own.
"""

from __future__ import annotations

from collections import deque

WINDOW = 64
ANSWERS_MIN = 16
"""Fewer answers say nothing about a tail."""
_CLASSES = (256 * 1024, 1024 * 1024, 4 * 1024 * 1024)
"""The largest size of each class, in bytes; one more is for what is larger."""


class Latencies:
    """See the module's rules."""

    def __init__(self) -> None:
        self._classes: list[deque[float]] = [deque(maxlen=WINDOW) for _ in range(len(_CLASSES) + 1)]

    def add(self, length: int | None, seconds: float) -> None:
        """An answer of ``length`` bytes (None: not known, a small one) took so long, or was given up after it."""
        self._of(length).append(seconds)

    def quantile(self, length: int | None, part: float) -> float | None:
        """Within how many seconds this part of the answers of such a size came; None: there were too few."""
        recent = self._of(length)
        return _quantile(sorted(recent), part) if len(recent) >= ANSWERS_MIN else None

    def overall(self, part: float) -> float | None:
        """The same over all sizes, however few."""
        recent = sorted(seconds for one in self._classes for seconds in one)
        return _quantile(recent, part) if recent else None

    def _of(self, length: int | None) -> deque[float]:
        return self._classes[sum(1 for largest in _CLASSES if (length or 0) > largest)]


def _quantile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
