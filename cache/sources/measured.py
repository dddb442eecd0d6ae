"""What a source does, counted: requests, errors by kind, how long answers take.

State: ``Numbers``, which metrics and status show, and the latencies, which others hedge by. Only the innermost requests
are counted here; the wrappers around add to the same numbers what they did.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import trio

from cache.sources.latency import Latencies
from manifest.errors import DamfsError

if TYPE_CHECKING:
    from cache.sources.protocol import ObjectRef, Source, SourceStatus


@dataclass(slots=True)
class Numbers:
    """The counts of one source. ``breaker`` and ``in_flight`` are as of now."""

    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """By the name of the DamfsError."""
    in_flight: int = 0
    newest: float = -math.inf
    """When the request was begun that was begun last of those with a good answer, on trio's clock."""
    breaker: str = "closed"
    opened: int = 0
    """How often the breaker opened."""
    retries: int = 0
    retries_delayed: int = 0
    """Retries that had to wait for the budget."""
    hedges_sent: int = 0
    hedges_won: int = 0
    relieved: int = 0
    """Fetches that went on to the next source because this one was slow."""
    not_relieved: int = 0
    """Fetches that the budget kept here although it was."""
    latencies: Latencies = field(default_factory=Latencies)


class Observe(Protocol):
    """Is told of each request to a source, when it has ended or was given up."""

    def __call__(self, name: str, length: int | None, seconds: float, *, is_good: bool) -> None:
        """To the source ``name``, for so many bytes (None: unknown), after so many seconds."""


class Measured:
    """Passes requests on and counts them."""

    def __init__(self, source: Source, numbers: Numbers, observe: Observe) -> None:
        self._source = source
        self._numbers = numbers
        self._observe = observe

    @property
    def name(self) -> str:
        return self._source.name

    async def fetch(self, ref: ObjectRef, deadline: float) -> memoryview | bytes:
        """See ``Source.fetch``. One that is cancelled counts as an answer that took at least so long."""
        numbers, begun = self._numbers, trio.current_time()
        numbers.requests += 1
        numbers.in_flight += 1
        is_good = False
        try:
            data = await self._source.fetch(ref, deadline)
        except DamfsError as error:
            numbers.errors[type(error).__name__] += 1
            raise
        except trio.Cancelled:
            numbers.latencies.add(ref.length, trio.current_time() - begun)
            raise
        else:
            is_good = True
        finally:
            numbers.in_flight -= 1
            self._observe(self.name, ref.length, trio.current_time() - begun, is_good=is_good)
        numbers.newest = max(numbers.newest, begun)
        numbers.latencies.add(ref.length, trio.current_time() - begun)
        return data

    def status(self) -> SourceStatus:
        """See ``Source.status``, with what was counted."""
        numbers = self._numbers
        return replace(
            self._source.status(),
            in_flight=numbers.in_flight,
            latency_p50_s=numbers.latencies.overall(0.5),
            latency_p95_s=numbers.latencies.overall(0.95),
            retries=numbers.retries,
            retries_delayed=numbers.retries_delayed,
            hedges_sent=numbers.hedges_sent,
            hedges_won=numbers.hedges_won,
            relieved=numbers.relieved,
            not_relieved=numbers.not_relieved,
        )
