"""How many requests are under way at a time: as many as the line carries without each of them becoming slow.

State: the limit, the quickest answers by size with few requests under way, and when the limit was last lowered.

Rules:
- While answers come within ``prompt_s``, each good one raises the limit by one, up to ``limit_max``.
- The first that takes longer has the limit go down to LIMIT_MIN, to find out how long answers take when requests are
  not in each other's way. An answer is late when it takes more than LATE times that; a source whose every answer takes
  long, however few are asked for, is not late.
- Good answers raise the limit by one each until the first late one, which halves it; from then on by one a round, and a
  late one lowers it by a fifth, once for all that were under way then (slow start and AIMD, as in TCP).
- Every AFRESH_S all of that is forgotten but the limit: lines change.

So on a thin line a few chunks come after each other, each in time, and not sixteen at once, each too late; and what is
urgent does not queue behind what has begun.

Sources: D.-M. Chiu, R. Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance", 1989;
N. Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016 (the minimum is measured anew).
"""

from __future__ import annotations

import math

import trio

LIMIT_FIRST = 4
LIMIT_MIN = 2
HALVED = 0.5
LOWERED = 0.8
LATE = 2.0
AFRESH_S = 60.0


class Window:
    """See the module's rules. ``prompt_s`` infinite: the limit is ``limit_max``, always."""

    def __init__(self, limit_max: int, prompt_s: float) -> None:
        self._limit_max = limit_max
        self._prompt_s = prompt_s
        self._limit = float(limit_max) if math.isinf(prompt_s) else float(min(LIMIT_FIRST, limit_max))
        self._lowered_at: float | None = None
        self._alone_from: float | None = None
        self._quickest: dict[int, float] = {}
        self._since: float | None = None

    @property
    def limit(self) -> int:
        """How many requests there may be under way."""
        return int(self._limit)

    def answered(self, length: int | None, seconds: float, *, is_good: bool) -> None:
        """A request for ``length`` bytes (None: unknown) has ended just now, after so many seconds."""
        if math.isinf(self._prompt_s):
            return
        now, size = trio.current_time(), (length or 0).bit_length()
        begun, is_long = now - seconds, seconds > self._prompt_s
        self._look_afresh(now)
        if self._alone_from is None:
            if is_long:
                self._alone_from, self._lowered_at = now, None
                self._set(LIMIT_MIN)
            elif is_good:
                self._set(self._limit + 1)
            return
        if begun < self._alone_from:
            return
        if is_good:
            self._quickest[size] = min(seconds, self._quickest.get(size, math.inf))
        if is_long and (not is_good or seconds > LATE * self._quickest[size]):
            if self._lowered_at is None or begun >= self._lowered_at:
                self._set(self._limit * (HALVED if self._lowered_at is None else LOWERED))
                self._lowered_at = now
        elif is_good:
            self._set(self._limit + (1 if self._lowered_at is None else 1 / self._limit))

    def _look_afresh(self, now: float) -> None:
        if self._since is None or now - self._since >= AFRESH_S:
            self._since, self._alone_from = now, None
            self._quickest.clear()

    def _set(self, limit: float) -> None:
        self._limit = min(float(self._limit_max), max(float(min(LIMIT_MIN, self._limit_max)), limit))
