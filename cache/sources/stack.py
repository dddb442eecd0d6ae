"""The wrappers around each source, in their order, and the chain of all of them: the one place where they are put
together.

From the inside: the source itself, ``verified`` (``cache/fetch.py``), counted, behind its breaker, hedged; the last
source, which there is no way around, is also asked again until the deadline. State: none of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cache.sources.allowance import Allowance
from cache.sources.breaker import Breaker
from cache.sources.chain import Chain
from cache.sources.hedged import Hedged
from cache.sources.measured import Measured, Numbers
from cache.sources.protocol import Impatient
from cache.sources.retry import Retrying

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cache.sources.measured import Observe
    from cache.sources.policy import Policy
    from cache.sources.protocol import ObjectRef, Source, SourceStatus


class Stack:
    """One source with everything around it."""

    def __init__(
        self,
        outer: Source,
        raw: Source,
        breaker: Breaker,
        numbers: Numbers,
        relief: Allowance,
        limits: Mapping[str, float],
    ) -> None:
        """``limits`` are for people: what is in force for this source."""
        self._outer = outer
        self._limits = limits
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
        return replace(self._outer.status(), limits=dict(self._limits))


def chain(
    sources: Sequence[Source],
    policy: Policy,
    *,
    verified: Callable[[Source], Source],
    numbers: dict[str, Numbers],
    observe: Observe,
) -> Chain:
    """The chain of these sources; the last one is the library's own store.

    ``verified`` makes a source whose answers are right; ``numbers`` is filled with what is counted, by the names of the
    sources; ``observe`` is told of each request.
    """
    stacks = []
    for source in sources:
        counted = numbers.setdefault(source.name, Numbers())

        measured = Measured(verified(source), counted, observe)
        breaker = Breaker(measured, counted, policy.breaker, raw=source)
        outer: Source = breaker
        if policy.hedges_max:
            outer = Hedged(outer, counted, Allowance(policy.hedge_share, 0, policy.hedges_max))
        if source is sources[-1] and policy.retries_max:
            budget = Allowance(policy.retry_share, policy.retry_rate, policy.retries_max)
            outer = Retrying(outer, budget=budget, numbers=counted)
        relief = Allowance(policy.relief_share, 0, policy.relief_bytes_max)
        stacks.append(Stack(outer, source, breaker, counted, relief, _limits(policy, is_last=source is sources[-1])))
    return Chain(stacks, policy)


def _limits(policy: Policy, *, is_last: bool) -> dict[str, float]:
    breaker = policy.breaker
    common = {
        "slow_s": policy.slow_s,
        "silence_s": breaker.silence_s,
        "failures_max": breaker.failures_max,
        "hedge_share": policy.hedge_share,
    }
    own = {"retry_share": policy.retry_share, "retry_rate": policy.retry_rate}
    return common | (own if is_last else {"relief_share": policy.relief_share})
