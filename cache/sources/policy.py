"""The numbers of the policy of sources, in one place. docs/CONFIGURATION.md describes each of them. State: none."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cache.sources.breaker import BreakerLimits

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Policy:
    """How sources are asked. Times are in seconds, sizes in bytes, shares are parts of what is asked anyway.

    ``outage_s``: once no source has answered for so long, reads fail at once; infinite: they wait for their deadline.
    Without tokens (``…_max``) there are no retries, hedges or relief at all.
    """

    outage_s: float = math.inf
    breaker: BreakerLimits = field(default_factory=BreakerLimits)
    retry_share: float = 0.1
    retry_rate: float = 2.0
    retries_max: float = 50.0
    hedge_share: float = 0.05
    hedges_max: float = 10.0
    relief_share: float = 0.05
    relief_bytes_max: int = 64 * MIB
    download_rate: int | None = None
    """Bytes a second over all sources and priorities; None: no limit."""
    prompt_s: float = 1.0
    """With answers that take no longer there are up to ``requests_max`` requests under way; see ``cache/window.py``."""
    requests_max: int = 16
    slow_s: float = 2.0
    """After this, or after its own p95, a source that has not answered is slow for the fetch."""


ASKED_ONCE = Policy(
    prompt_s=math.inf,
    requests_max=10**6,
    breaker=BreakerLimits(failures_max=10**9, silence_s=math.inf),
    retries_max=0.0,
    hedges_max=0.0,
    relief_bytes_max=1 << 60,
)
"""No source is asked again, nor twice at once, nor left alone; and a slow one is left for the next at once."""
