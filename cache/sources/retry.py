"""Retry within the deadline, with full jitter; a pause ends early when there is a reason to think that it pays.

State: the pauses under way, each an open cancel scope that belongs to one ``fetch``; how often the store came back.

Rules:
- Only Unavailable is tried again: it says nothing about what is stored. NotFound and AccessDenied are answers, and what
  is known to be down (KnownDown) is not worth asking.
- Retries have a budget: a share of the requests, and a small rate besides. One that finds it empty waits for it, within
  the deadline. Retries for the sake of a new reader, or because the store answers again, need no budget.
- ``hurry(ref)``: somebody new wants ``ref``, perhaps with little patience. Its pause ends HURRY_S after the attempt
  that failed, or now: a new reader waits hardly longer than one who asked alone, and many cost no more than one.
- ``hurry()``: the store answers again. Every pause ends now and is short after that; the sources' own limits on
  requests under way keep that from being a stampede.

Source of the jitter: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 (full jitter).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

import trio

from cache.sources.protocol import Accountable, ObjectRef, Source, SourceStatus
from manifest.errors import KnownDown, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from cache.sources.allowance import Allowance
    from cache.sources.measured import Numbers

BASE_S = 0.1
PAUSE_S_MAX = 5.0
HURRY_S = 0.2
"""Two attempts of one fetch that are made for the sake of new readers lie at least so far apart."""


class _Pause(NamedTuple):
    """One pause: when the attempt before it failed, when it ends by itself, and the scope that is slept in."""

    begun: float
    until: float
    scope: trio.CancelScope

    @property
    def is_hurried(self) -> bool:
        """Whether it was to end earlier than by itself."""
        return self.scope.deadline < self.until

    def end_by(self, moment: float) -> None:
        self.scope.deadline = min(self.scope.deadline, moment)


class Retrying:
    """A source that asks another one again until the deadline."""

    def __init__(
        self,
        source: Source,
        *,
        base_s: float = BASE_S,
        pause_s_max: float = PAUSE_S_MAX,
        budget: Allowance | None = None,
        numbers: Numbers | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._source = source
        self._base_s = base_s
        self._pause_s_max = pause_s_max
        self._budget = budget
        self._numbers = numbers
        self._uniform = uniform
        self._pauses: dict[ObjectRef, list[_Pause]] = {}
        self._returns = 0

    @property
    def name(self) -> str:
        return self._source.name

    async def fetch(self, ref: ObjectRef, deadline: float) -> memoryview | bytes:
        """See ``Source.fetch``. The last Unavailable is raised once no further pause fits before the deadline."""
        ceiling_s, returns = self._base_s, self._returns
        if self._budget is not None:
            self._budget.earn(1)
        while True:
            try:
                return await self._source.fetch(ref, deadline)
            except KnownDown:
                raise
            except Unavailable:
                if returns != self._returns:  # it answers again since this attempt or the pause before it began
                    ceiling_s, returns = self._base_s, self._returns
                pause_s = self._uniform(0, ceiling_s)
                if trio.current_time() + pause_s >= deadline or not await self._pause(ref, pause_s, deadline):
                    raise
            ceiling_s = min(ceiling_s * 2, self._pause_s_max)
            if self._numbers is not None:
                self._numbers.retries += 1

    def hurry(self, ref: ObjectRef | None = None) -> None:
        """See ``Impatient``."""
        now = trio.current_time()
        if ref is not None:
            for pause in self._pauses.get(ref, ()):
                pause.end_by(max(now, pause.begun + HURRY_S))
            return
        self._returns += 1
        for pauses in self._pauses.values():
            for pause in pauses:
                pause.end_by(now)

    def rejected(self, reason: str) -> None:
        """See ``Accountable``: passed on."""
        if isinstance(self._source, Accountable):
            self._source.rejected(reason)

    def status(self) -> SourceStatus:
        """See ``Source.status``: the wrapped source's."""
        return self._source.status()

    async def _pause(self, ref: ObjectRef, pause_s: float, deadline: float) -> bool:
        """Wait until the next attempt; False when its turn in the budget does not come before the deadline."""
        is_delayed = False
        while not await self._sleep(ref, pause_s) and self._budget is not None and not self._budget.take(1):
            if not is_delayed and self._numbers is not None:
                self._numbers.retries_delayed += 1
            is_delayed = True
            wait_s = self._budget.wait_s(1)
            left_s = deadline - trio.current_time()
            if left_s <= 0:
                return False
            pause_s = min(wait_s + self._uniform(0, wait_s), left_s)  # the token is for one of many who wait
        return True

    async def _sleep(self, ref: ObjectRef, pause_s: float) -> bool:
        """Whether it ended early, since waiting longer no longer pays."""
        now = trio.current_time()
        pause = _Pause(now, now + pause_s, trio.CancelScope(deadline=now + pause_s))
        self._pauses.setdefault(ref, []).append(pause)
        try:
            with pause.scope:
                await trio.sleep_forever()
        finally:
            self._pauses[ref].remove(pause)
            if not self._pauses[ref]:
                del self._pauses[ref]
        return pause.is_hurried
