"""What can go wrong with a request, and who decides what does.

A ``Fault`` says what happens to one request, a ``Plan`` which fault that is. Plans are deterministic but for time: what
is drawn is drawn from the seed and the request's number.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

KINDS = ("chunks", "recipes", "changes", "log", "snapshots")
"""Of an object by its folder below ``shows/<show>/`` (docs/FORMAT.md); whatever else is asked for is ``other``."""
S3_CODES = {
    400: "InvalidRequest",
    403: "AccessDenied",
    404: "NoSuchKey",
    412: "PreconditionFailed",
    416: "InvalidRange",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
}
DRIP_BYTES_PER_S = 2000


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked, as far as a plan may want to know. ``number`` counts the proxy's requests from 0 on."""

    number: int
    method: str
    path: str
    kind: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a request and its answer; several things may. Nothing is set: it is passed on as it is.

    What is given as a part (0 … 1) is a part of the body: 0 is before the first byte of the answer's head, anything
    above 0 is behind the head.
    """

    latency_s: float = 0.0
    """Before the answer begins."""
    jitter_s: float = 0.0
    """Up to so much more than that, drawn for each request."""
    bytes_per_s: float | None = None
    """No faster than this, each connection by itself."""
    status: int | None = None
    """Answered so by the proxy: the target is not asked."""
    page: Literal["xml", "html"] = "xml"
    """What such an answer looks like: a store's, or that of something on the way."""
    reset_at: float | None = None
    """The connection is reset (RST) there."""
    stall_at: float | None = None
    """Nothing more comes from there on; the connection stays open."""
    cut_at: float | None = None
    """The connection ends there in good order; Content-Length has promised more."""
    shorten_to: float | None = None
    """So much of the body, and Content-Length agrees."""
    lengthen_by: int = 0
    """So many bytes too much, and Content-Length agrees."""
    flip: bool = False
    """One byte in the middle of the body is another one."""

    @property
    def ends_at(self) -> float | None:
        """Behind which part of the body the connection is of no use any more."""
        ends = [at for at in (self.reset_at, self.stall_at, self.cut_at) if at is not None]
        return min(ends) if ends else None


NONE = Fault()
Plan = Callable[[Request, random.Random], Fault]
FAULTS: Mapping[str, Fault] = {
    "latency": Fault(latency_s=0.2),
    "jitter": Fault(jitter_s=0.4),
    "thin": Fault(bytes_per_s=400_000),
    "reset before": Fault(reset_at=0),
    "reset in the middle": Fault(reset_at=0.5),
    "silence": Fault(stall_at=0),
    "stall in the middle": Fault(stall_at=0.5),
    "slow drip": Fault(bytes_per_s=DRIP_BYTES_PER_S),
    "403": Fault(status=403),
    "403 page": Fault(status=403, page="html"),
    "404": Fault(status=404),
    "404 page": Fault(status=404, page="html"),
    "416": Fault(status=416),
    "429": Fault(status=429),
    "500": Fault(status=500),
    "500 page": Fault(status=500, page="html"),
    "503": Fault(status=503),
    "503 page": Fault(status=503, page="html"),
    "200 page": Fault(status=200, page="html"),
    "truncated": Fault(cut_at=0.5),
    "truncated, length agrees": Fault(shorten_to=0.5),
    "too long": Fault(lengthen_by=7),
    "flipped": Fault(flip=True),
}
"""Each by itself, by name."""


def kind_of(path: str) -> str:
    """The kind of object that a path names: one of KINDS, or ``other``."""
    _, found, rest = path.partition("/shows/")
    parts = rest.partition("?")[0].split("/") if found else []
    return parts[1] if len(parts) > 2 and parts[1] in KINDS else "other"


def always(fault: Fault, *kinds: str) -> Plan:
    """The same for every request; with ``kinds`` only for those."""
    return lambda request, _: fault if not kinds or request.kind in kinds else NONE


def in_turn(faults: Sequence[Fault], *kinds: str) -> Plan:
    """One after the other, and round and round, over the requests (of these kinds)."""
    asked = iter(range(1 << 62))
    return lambda request, _: faults[next(asked) % len(faults)] if not kinds or request.kind in kinds else NONE


def drawn(share: float, faults: Sequence[Fault], *kinds: str) -> Plan:
    """For this share of the requests one of the faults, drawn."""

    def plan(request: Request, rng: random.Random) -> Fault:
        hit = rng.random() < share and (not kinds or request.kind in kinds)
        return rng.choice(faults) if hit else NONE

    return plan


def timed(steps: Sequence[tuple[float, Fault]], *kinds: str) -> Plan:
    """Each fault for so many seconds, from now on; nothing after the last one."""
    started = time.monotonic()

    def plan(request: Request, _: random.Random) -> Fault:
        left = time.monotonic() - started
        for seconds, fault in steps:
            left -= seconds
            if left < 0:
                return fault if not kinds or request.kind in kinds else NONE
        return NONE

    return plan
