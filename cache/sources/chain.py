"""The way through the sources: from the nearest to the library's own store, the last one, and when to go on.

State: the stacks, one a source; since when none answers.

Rules:
- A source that is known to be down, does not have it, refuses it, fails quickly or gives a wrong answer: the next one,
  at once. A wrong answer counts against its source if another one has a right one.
- **A source that is merely slow is left within a budget only** (``relief``, a share of the bytes that it is asked for):
  the central store is there for a workstation whose site cache is broken, not for a thousand whose site cache is busy.
  With the budget's leave the next source is asked beside the slow one, and whichever is right first counts; without it
  the slow one is waited for, and asked again when it gives up, until the deadline.
- The last source decides what kind of error it is: only it knows what is missing. Its wrong answer is asked for once
  more.
- When all are known to be down, a fetch waits for the first that comes back, until its deadline or until that has
  lasted for ``outage_s``; from then on it fails at once, or after GLANCE_S, in which they are looked at: what has just
  come back is no error.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import trio

from cache.sources.breaker import ATTEMPT_S_MIN
from cache.sources.hedged import PART
from cache.sources.race import race
from manifest.errors import DamfsError, DigestMismatch, KnownDown, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cache.sources.policy import Policy
    from cache.sources.protocol import ObjectRef, SourceStatus
    from cache.sources.stack import Stack

logger = logging.getLogger(__name__)

UNKNOWN_BYTES = 64 * 1024
"""What an object of unknown length counts for in the budget."""
AGAIN_S = 0.25
"""The pause before a source is asked again that was slow and gave up, or whose next one is down."""
AGAIN_S_MAX = 5.0
GLANCE_S = 1.0
"""The longest that a reader waits for a look at sources that are known to be down."""


class Chain:
    """All sources as one. See the module's rules."""

    def __init__(self, stacks: Sequence[Stack], policy: Policy) -> None:
        assert stacks, "a cache without a source can fill nothing"
        *self._nearer, self._last = stacks
        self._stacks = list(stacks)
        self._policy = policy
        self._changed = trio.Event()
        self._forbidden: str | None = None
        for stack in stacks:
            stack.breaker.on_change = self._change

    @property
    def name(self) -> str:
        return "sources"

    def available(self) -> str | None:
        """None when a source may be asked now; else why none may, for people."""
        if self._forbidden is not None:
            return self._forbidden
        if any(stack.breaker.reason is None for stack in self._stacks):
            return None
        return "; ".join(stack.breaker.why() for stack in self._stacks)

    def forbid(self, reason: str | None) -> None:
        """Ask nobody any more, and fail what waits, for this reason; None: ask again."""
        self._forbidden = reason
        for stack in self._stacks:
            stack.breaker.hold(reason)
            if reason is None:
                stack.breaker.hurry()
        self._change()

    async def fetch(
        self, ref: ObjectRef, deadline: float, park: Callable[[bool], None] = lambda _: None
    ) -> memoryview | bytes:
        """See ``Source.fetch``. Raises KnownDown at once when none may be asked, and that is not new.

        ``park`` is called with True when it begins to wait for a source to come back, and with False when it is asked.
        """
        pause_s = AGAIN_S
        while True:
            self._require_leave(ref)
            try:
                return await self._fetch(ref, deadline)
            except KnownDown as error:
                reason = self.available() or str(error)
            is_all = self.available() is not None  # else another one did not have it, or failed: it is asked again
            until = min(deadline, self._gone_since() + self._policy.outage_s)
            park(True)
            with trio.move_on_at(until if is_all else min(until, trio.current_time() + pause_s)):
                await self._changed.wait()
            park(False)
            pause_s = min(2 * pause_s, AGAIN_S_MAX)
            if trio.current_time() < until:
                continue
            if is_all:
                await self._glance(deadline)
            if not is_all or self.available() is not None or trio.current_time() >= deadline:
                raise KnownDown(f"{ref}: {reason}")

    def hurry(self, ref: ObjectRef | None = None) -> None:
        """See ``Impatient``: without ``ref``, the library's own store answers again, which is the last source."""
        if ref is None:
            self._last.breaker.close()
        for stack in self._stacks:
            stack.hurry(ref)

    def silent(self, reason: str, *, known_before: bool = False) -> None:
        """The library's own store does not answer; ``known_before``: nor did it when all this began."""
        if known_before:
            self._last.breaker.trip(reason, -1e9)
        else:
            self._last.breaker.suspect(reason)

    def status(self) -> list[SourceStatus]:
        """Of each source; see docs/STATUS.md."""
        return [stack.status() for stack in self._stacks]

    async def run(self) -> None:
        """What keeps looking at sources that are down. For ever; started by who owns the chain."""
        async with trio.open_nursery() as nursery:
            for stack in self._stacks:
                nursery.start_soon(stack.breaker.run)

    async def _fetch(self, ref: ObjectRef, deadline: float) -> memoryview | bytes:
        """Once through all sources."""
        wrong: list[tuple[Stack, DigestMismatch]] = []
        for stack in self._nearer:
            if stack.breaker.reason is not None:
                continue
            try:
                return await self._ask(stack, ref, deadline)
            except _Kept as kept:
                raise Unavailable(*kept.args) from None
            except DamfsError as error:
                self._log(stack, ref, error)
                if isinstance(error, DigestMismatch):
                    wrong.append((stack, error))
        data = await self._ask_last(ref, deadline)
        for stack, mismatch in wrong:
            stack.breaker.blame(str(mismatch))
        return data

    async def _ask_last(self, ref: ObjectRef, deadline: float) -> memoryview | bytes:
        try:
            try:
                return await self._last.fetch(ref, deadline)
            except DigestMismatch as error:
                self._log(self._last, ref, error)
                return await self._last.fetch(ref, deadline)
        except DamfsError as error:
            self._log(self._last, ref, error)
            raise

    async def _ask(self, stack: Stack, ref: ObjectRef, deadline: float) -> memoryview | bytes:
        """Ask one that is not the last. What it raises is a reason to go on to the next, but for _Kept."""
        amount, numbers, relief = ref.length or UNKNOWN_BYTES, stack.numbers, stack.relief
        relief.earn(amount)
        is_kept = False

        async def when(failed: trio.Event) -> bool:
            nonlocal is_kept
            usual_s = numbers.latencies.quantile(ref.length, 0.95) or 0.0
            late_s = (deadline - trio.current_time()) * PART
            with trio.move_on_after(min(max(self._policy.slow_s, usual_s), late_s)):
                await failed.wait()
                return False
            while not relief.take(amount):
                if not is_kept:
                    numbers.not_relieved += 1
                is_kept = True
                with trio.move_on_after(AGAIN_S):
                    await failed.wait()
                    return False
            numbers.relieved += 1
            return True

        async def ask_it() -> memoryview | bytes:
            return await stack.fetch(ref, part)

        async def ask_last() -> memoryview | bytes:
            return await self._ask_last(ref, deadline)

        while True:
            begun = trio.current_time()
            part = begun + (deadline - begun) * PART if deadline - begun > 2 * self._policy.slow_s else deadline
            try:
                return (await race(ask_it, ask_last, when)).data
            except KnownDown:
                raise
            except Unavailable:
                if trio.current_time() < min(begun + self._policy.slow_s, part - ATTEMPT_S_MIN):
                    raise
            if relief.take(amount):
                numbers.relieved += 1
                raise Unavailable(f"{ref}: {stack.name} is slow")
            pause_s = random.uniform(AGAIN_S / 2, AGAIN_S)  # noqa: S311  jitter, no secret
            if trio.current_time() + pause_s >= deadline:
                raise _Kept(f"{ref}: {stack.name} is slow, and what may be asked elsewhere for that is used up")
            await trio.sleep(pause_s)

    async def _glance(self, deadline: float) -> None:
        """Have a look whether any source is back."""
        within_s = max(0.0, min(GLANCE_S, deadline - trio.current_time()))
        async with trio.open_nursery() as nursery:
            for stack in self._stacks:
                nursery.start_soon(stack.breaker.glance, within_s)

    def _require_leave(self, ref: ObjectRef) -> None:
        if self._forbidden is not None:
            raise KnownDown(f"{ref}: {self._forbidden}")

    def _gone_since(self) -> float:
        """When the last of those that are down began not to answer; now, if none is down any more."""
        return max((since for stack in self._stacks if (since := stack.breaker.down_since) is not None),
                   default=trio.current_time())  # fmt: skip

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _log(self, stack: Stack, ref: ObjectRef, error: DamfsError) -> None:
        level = logging.DEBUG if isinstance(error, KnownDown) else logging.WARNING
        logger.log(
            level, "fetch failed: show %s, path %s, %s %s, source %s: %s: %s",
            ref.tenant, ref.hint or "?", ref.kind, ref.digest, stack.name, type(error).__name__, error,
        )  # fmt: skip


class _Kept(Unavailable):
    """The deadline came at a slow source, and there was no budget for another one."""
