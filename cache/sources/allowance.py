"""A token bucket for what is done beyond the ordinary: a share of the ordinary, and a small rate besides.

Retries, hedges, and fetches that leave a slow source are such. State: the tokens, up to ``tokens_max``.

Invariant: over any time, what was taken is at most ``share`` of what was earned, ``rate`` for each second, and
``tokens_max``.

Source: "Retry budgets", Finagle's documentation; B. Beyer et al., "Site Reliability Engineering", 2016, chapter 21.
"""

from __future__ import annotations

import math

import trio


class Allowance:
    """See the module's rules. ``tokens_max`` is also what there is at the start. Belongs to the event loop."""

    def __init__(self, share: float, rate: float, tokens_max: float) -> None:
        self._share = share
        self._rate = rate
        self._tokens_max = tokens_max
        self._tokens = tokens_max
        self._at: float | None = None

    def earn(self, amount: float) -> None:
        """So much of the ordinary was done."""
        self._refill()
        self._tokens = min(self._tokens_max, self._tokens + self._share * amount)

    def take(self, amount: float) -> bool:
        """Whether so much may be done beyond it; more than the bucket holds counts as all of it."""
        self._refill()
        amount = min(amount, self._tokens_max)
        if amount <= 0 or self._tokens < amount:
            return False
        self._tokens -= amount
        return True

    def wait_s(self, amount: float) -> float:
        """How long until ``take`` would say yes, if nothing is earned in the meantime; infinite: never."""
        self._refill()
        missing = min(amount, self._tokens_max) - self._tokens
        if missing <= 0:
            return 0.0 if self._tokens_max > 0 else math.inf
        return missing / self._rate if self._rate > 0 else math.inf

    def _refill(self) -> None:
        now = trio.current_time()
        if self._at is not None:
            self._tokens = min(self._tokens_max, self._tokens + self._rate * (now - self._at))
        self._at = now
