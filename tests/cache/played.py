"""A source that plays what a test wants, in virtual time, and a chain of such."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from cache.sources import stack
from cache.sources.policy import Policy
from cache.sources.protocol import ObjectRef, SourceStatus
from manifest.digest import Digest
from manifest.errors import DamfsError, Unavailable
from tests.cache.contents import MIB, SHOW

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cache.sources.chain import Chain
    from cache.sources.measured import Numbers

DATA = b"right bytes"
FOREVER = math.inf


def ref(number: int = 0, length: int = MIB) -> ObjectRef:
    """One of many objects."""
    return ObjectRef(SHOW, "chunk", Digest.of(b"%d" % number), length)


class Unprobed:
    """Answers DATA after ``delay_s``, or raises ``fault`` then; Unavailable at the deadline, as real sources do."""

    def __init__(self, name: str = "central", *, delay_s: float = 0.1, fault: DamfsError | None = None) -> None:
        self.name = name
        self.delay_s = delay_s
        self.fault = fault
        self.asked: list[float] = []
        self.given_up = 0
        self.delay_of: Callable[[ObjectRef], float] = lambda _: self.delay_s

    async def fetch(self, ref: ObjectRef, deadline: float) -> bytes:
        self.asked.append(trio.current_time())
        fault = self.fault
        try:
            with trio.CancelScope(deadline=deadline):
                await trio.sleep(self.delay_of(ref))
                if fault is not None:
                    raise fault
                return DATA
        except trio.Cancelled:
            self.given_up += 1
            raise
        raise Unavailable(f"{self.name}: no answer in time")

    def status(self) -> SourceStatus:
        return SourceStatus(self.name, "https://played", True, None, None, 0, 0, 0)


class Played(Unprobed):
    """One that can be probed: ``probe_fault`` is raised, ``probe_delay_s`` taken."""

    probe_fault: DamfsError | None = None
    probe_delay_s = 0.01

    def __init__(self, name: str = "central", *, delay_s: float = 0.1, fault: DamfsError | None = None) -> None:
        super().__init__(name, delay_s=delay_s, fault=fault)
        self.probed: list[float] = []
        self.probes_at_once = 0
        self._probing = 0

    async def probe(self, deadline: float) -> None:
        self.probed.append(trio.current_time())
        self._probing += 1
        self.probes_at_once = max(self.probes_at_once, self._probing)
        try:
            with trio.CancelScope(deadline=deadline):
                await trio.sleep(self.probe_delay_s)
                if self.probe_fault is not None:
                    raise self.probe_fault
                return
            raise Unavailable("no answer to the probe")
        finally:
            self._probing -= 1

    def down(self, reason: str = "connection refused") -> None:
        """Fail at once, probes too."""
        self.fault, self.probe_fault, self.delay_s = Unavailable(reason), Unavailable(reason), 0.01

    def up(self) -> None:
        """Answer again."""
        self.fault, self.probe_fault, self.delay_s = None, None, 0.1

    def mute(self) -> None:
        """Take requests and say nothing."""
        self.fault, self.delay_s, self.probe_delay_s = None, FOREVER, FOREVER


def unobserved(name: str, length: int | None, seconds: float, *, is_good: bool) -> None:
    """Nobody looks."""


ARTIST = Policy(outage_s=5)
FARM = Policy()


@asynccontextmanager
async def chained(
    *sources: Unprobed, policy: Policy = ARTIST, numbers: dict[str, Numbers] | None = None, **changes: float
) -> AsyncIterator[Chain]:
    """A running chain of them, without verification: what is wrong they raise themselves."""
    made = stack.chain(
        sources,
        replace(policy, **changes),  # type: ignore[arg-type]  # fields of Policy
        verified=lambda source: source,
        numbers={} if numbers is None else numbers,
        observe=unobserved,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()
