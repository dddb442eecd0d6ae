"""How quickly the cache is scrubbed by itself. State: none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """So many bytes a second (0: never), and each object once an interval."""

    bandwidth: int = 20_000_000
    interval_s: float = 30 * 86400.0


PACE = Pace()
