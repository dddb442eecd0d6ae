"""What a daemon says about itself: the schema of ``GET /v1/status`` and ``damfs status --json``.

docs/STATUS.md describes every field (a test looks). Fields are added, never renamed; readers ignore what they do not
know.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manifest.errors import DamfsError, IntegrityError, NewerFormat, TrustError, Unavailable

if TYPE_CHECKING:
    from cache.metrics import CacheStats
    from cache.sources.protocol import SourceStatus
    from manifest.incoming import StallKind
    from manifest.way import WayStatus
    from vfs.metrics import AheadStats

_STALLS: dict[StallKind, type[DamfsError]] = {
    "unavailable": Unavailable,
    "invalid": IntegrityError,
    "newer": NewerFormat,
    "rewritten": TrustError,
}


@dataclass(frozen=True, slots=True)
class Stalled:
    """Why a show does not go on: the entry, in words, and the kind as ``manifest.follow`` tells them."""

    seq: int
    reason: str
    kind: StallKind

    def as_error(self, before: str) -> DamfsError:
        """What a command that wanted the show to go on ends with; ``before`` says where it stands."""
        return _STALLS[self.kind](f"{before}: {self.reason}")


@dataclass(frozen=True, slots=True)
class ShowStatus:
    """One show. ``revision`` is what readers see; None while the show is not loaded."""

    revision: int | None
    slot: int | None
    loaded: bool
    stalled: Stalled | None
    last_sync_age_s: float | None
    error: str | None
    failed_attempts: int


@dataclass(frozen=True, slots=True)
class Status:
    """One mount and its daemon."""

    pid: int
    version: str
    mountpoint: str
    binding: str
    binding_reason: str
    library: str
    library_id: str
    endpoint: str | None
    region: str | None
    trust: str
    offline: bool
    offline_reason: str | None
    offline_switch: dict[str, int | float] | None
    uptime_s: float
    shows: dict[str, ShowStatus]
    cache: CacheStats
    ahead: AheadStats
    sources: list[SourceStatus]
    site: WayStatus | None
    limits: dict[str, Any]
    handover: dict[str, int | float] | None
    supervisor_pid: int | None
    restarts: int
    metrics: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)
