"""The one protocol between the cache and whatever hands out bytes.

Retry, breaker, hedge, budget and fault injection are wrappers around it (``stack.py``). What a source answers is never
trusted: ``cache/fetch.py`` verifies it in the innermost wrapper, so that all others see right bytes or an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from manifest.digest import Digest

Kind = Literal["chunk", "recipe"]


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """What to fetch: an object of ``tenant`` (opaque here) named by the digest of its bytes.

    ``length`` is in bytes; None when it is not known before (recipes). ``hint`` names the file in log lines.
    """

    tenant: str
    kind: Kind
    digest: Digest
    length: int | None
    hint: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.digest} of {self.tenant}"


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """A source as ``damfs status`` shows it; docs/STATUS.md describes each field.

    ``healthy`` is about the last answer; times are seconds since the epoch, None for what was never. What stands
    below ``errors`` is filled in by the wrappers.
    """

    name: str
    url: str
    healthy: bool
    last_error: str | None
    last_error_time: float | None
    fetched_bytes: int
    fetches: int
    errors: int
    breaker: Literal["closed", "open", "half-open"] = "closed"
    down_because: str | None = None
    in_flight: int = 0
    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    retries: int = 0
    retries_delayed: int = 0
    hedges_sent: int = 0
    hedges_won: int = 0
    relieved: int = 0
    not_relieved: int = 0
    limits: dict[str, float] = field(default_factory=dict)


class Source(Protocol):
    """Hands out objects by digest. All methods are called on the event loop."""

    @property
    def name(self) -> str:
        """A short word for logs and metrics: ``central``, ``site``."""

    async def fetch(self, ref: ObjectRef, deadline: float) -> memoryview | bytes:
        """The bytes of ``ref``, not yet verified.

        ``deadline`` is on trio's clock. Raises Unavailable, NotFound, AccessDenied. Cancellation abandons a
        request that a thread is in; nothing is left half done.
        """

    def status(self) -> SourceStatus:
        """What happened so far; from memory."""


@runtime_checkable
class Accountable(Protocol):
    """A source that wants to be told when an answer of its turned out to be wrong."""

    def rejected(self, reason: str) -> None:
        """The bytes that were handed out were not what was asked for."""


@runtime_checkable
class Impatient(Protocol):
    """A source that waits between attempts, and can be told that waiting no longer pays."""

    def hurry(self, ref: ObjectRef | None = None) -> None:
        """Somebody new wants ``ref``; without it: the store answers again. Costs nothing where nothing waits."""


@runtime_checkable
class Probeable(Protocol):
    """A source that can be asked for something small, to see whether it answers at all."""

    async def probe(self, deadline: float) -> None:
        """Returns when it answers, whatever it says. Raises Unavailable. Waits for no other request's end."""
