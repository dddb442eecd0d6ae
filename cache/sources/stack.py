"""The wrappers around each source, in their order, and the chain of all of them: the one place where they are put
together.

From the inside: the source itself, ``verified`` (``cache/fetch.py``), counted, behind its breaker, hedged; the last
source, which there is no way around, is also asked again until the deadline. State: none of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cache.sources.allowance import Allowance
from cache.sources.breaker import Breaker
from cache.sources.chain import Chain
from cache.sources.hedged import Hedged
from cache.sources.measured import Measured, Numbers
from cache.sources.protocol import Impatient
from cache.sources.retry import Retrying

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cache.sources.policy import Policy
    from cache.sources.protocol import ObjectRef, Source, SourceStatus


class Stack:
    """One source with everything around it."""

    def __init__(self, outer: Source, raw: Source, breaker: Breaker, numbers: Numbers, relief: Allowance) -> None:
        self._outer = outer
        self._impatient = [one for one in (outer, raw, breaker) if isinstance(one, Impatient)]
        self.breaker = breaker
        self.numbers = numbers
        self.relief = relief

    @property
    def name(self) -> str:
        return self._outer.name

    async def fetch(self, ref: ObjectRef, deadline: float) -> memoryview | bytes:
        """See ``Source.fetch``; the bytes are right."""
        return await self._outer.fetch(ref, deadline)

    def hurry(self, ref: ObjectRef | None = None) -> None:
        """See ``Impatient``."""
        for one in self._impatient:
            one.hurry(ref)

    def status(self) -> SourceStatus:
        """See ``Source.status``."""
        return self._outer.status()


def chain(
    sources: Sequence[Source],
    policy: Policy,
    *,
    verified: Callable[[Source], Source],
    numbers: dict[str, Numbers],
    observe: Callable[[str, float], object],
) -> Chain:
    """The chain of these sources; the last one is the library's own store.

    ``verified`` makes a source whose answers are right; ``numbers`` is filled with what is counted, by the names of the
    sources; ``observe`` is given a source's name and the seconds of each request.
    """
    stacks = []
    for source in sources:
        counted = numbers.setdefault(source.name, Numbers())

        def note(seconds: float, name: str = source.name) -> None:
            observe(name, seconds)

        measured = Measured(verified(source), counted, note)
        breaker = Breaker(measured, counted, policy.breaker, raw=source)
        outer: Source = breaker
        if policy.hedges_max:
            outer = Hedged(outer, counted, Allowance(policy.hedge_share, 0, policy.hedges_max))
        if source is sources[-1] and policy.retries_max:
            budget = Allowance(policy.retry_share, policy.retry_rate, policy.retries_max)
            outer = Retrying(outer, budget=budget, numbers=counted)
        relief = Allowance(policy.relief_share, 0, policy.relief_bytes_max)
        stacks.append(Stack(outer, source, breaker, counted, relief))
    return Chain(stacks, policy)
