"""Hedging: a second request to the same source when the first is slower than nearly all that it answers.

State: none of its own; the latencies and the budget are its stack's.

Rules:
- The second request begins at the source's own p95 for such a size, if the budget has a token: a few percent more
  requests at most, however slow everything is.
- One that is still out after its part of the time (PART) has the second request without a token, if a later one was
  answered meanwhile, or it is alone: a slow drip, or a connection that died silently, does not cost the whole deadline.
  (On a thin line, where all are slow, a second request would make it worse.)

Source: J. Dean, L. A. Barroso, "The Tail at Scale", CACM 56(2), 2013.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from cache.sources.race import race

if TYPE_CHECKING:
    from cache.sources.allowance import Allowance
    from cache.sources.measured import Numbers
    from cache.sources.protocol import ObjectRef, Source, SourceStatus

PART = 0.5
AFTER_S_MIN = 0.05
"""No request is late before that: what is quicker is not worth a second one."""
LATE_S_MAX = 15.0
"""However long the deadline, that is late."""


class Hedged:
    """A source that is asked twice when it is late."""

    def __init__(self, source: Source, numbers: Numbers, budget: Allowance) -> None:
        self._source = source
        self._numbers = numbers
        self._budget = budget

    @property
    def name(self) -> str:
        return self._source.name

    async def fetch(self, ref: ObjectRef, deadline: float) -> memoryview | bytes:
        """See ``Source.fetch``."""
        begun = trio.current_time()
        usual_s = self._numbers.latencies.quantile(ref.length, 0.95)
        late_s = min((deadline - begun) * PART, LATE_S_MAX)
        self._budget.earn(1)

        async def when(failed: trio.Event) -> bool:
            if usual_s is not None and usual_s < late_s:
                with trio.move_on_at(begun + max(usual_s, AFTER_S_MIN)):
                    await failed.wait()
                    return False
                if self._budget.take(1):
                    self._numbers.hedges_sent += 1
                    return True
            with trio.move_on_at(begun + late_s):
                await failed.wait()
                return False
            is_outlier = self._numbers.newest > begun or self._numbers.in_flight == 1
            self._numbers.hedges_sent += is_outlier
            return is_outlier

        async def ask() -> memoryview | bytes:
            return await self._source.fetch(ref, deadline)

        result = await race(ask, ask, when)
        self._numbers.hedges_won += result.by_second
        return result.data

    def status(self) -> SourceStatus:
        """See ``Source.status``: the wrapped source's."""
        return self._source.status()
