"""A circuit breaker: a source that does not answer is left alone, and looked at until it does.

State: closed (requests pass), open (none does), half-open (one probe is under way); the failures in a row.

Rules:
- **Slow is a signal, not death.** What fails quickly counts as a failure; ``failures_max`` in a row open the breaker.
  What failed only after ``slow_s``, and a source that has given nothing for ``silence_s`` though it was asked, are a
  doubt: a probe, which asks for something small, decides. (A source that cannot be probed has no doubts but failures.)
- NotFound and AccessDenied are answers. A wrong answer is neither; another source's right one shows who is to blame
  (``blame``), and more than one such in about ten open the breaker too.
- While it is open, requests end at once with KnownDown, which says since when and why. Readers never probe; one that
  is to be told so may have it ``glance``d at first, if the last probe is not quite new.
- One probe at a time, after a pause that doubles from ``pause_s`` to ``pause_s_max``, or at once when there is a reason
  to hope (``hurry``). An answer to any request closes the breaker.
- Whoever waits for a source waits for ``on_change``.

Invariant: closed if and only if ``reason`` is None.

Source: M. Nygard, "Release It!", 2nd edition, 2018, chapter 5.
"""

from __future__ import annotations

import logging
import math
import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

from cache.sources.protocol import Probeable
from manifest.errors import AccessDenied, DamfsError, KnownDown, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from cache.sources.measured import Numbers
    from cache.sources.protocol import ObjectRef, Source, SourceStatus

logger = logging.getLogger(__name__)

ATTEMPT_S_MIN = 0.05
"""With less time left nothing is asked, and what fails so close to its deadline was late."""
PROBE_S = 4.0
"""A probe that takes longer has failed."""
FRESH_S = 0.1
"""So long the outcome of a probe is news."""
WRONG_FORGIVEN = 0.1
"""A right answer makes up for so much of a wrong one."""


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When a breaker opens, and how it closes again; times in seconds."""

    failures_max: int = 5
    slow_s: float = 2.0
    silence_s: float = 10.0
    pause_s: float = 0.5
    pause_s_max: float = 5.0


class Breaker:
    """See the module's rules. ``run`` must run, or an open breaker stays so until ``close``."""

    def __init__(
        self,
        source: Source,
        numbers: Numbers,
        limits: BreakerLimits,
        *,
        raw: Source | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """``raw``: the source that is probed, if it can be; else ``source`` is asked for what was wanted last."""
        self._source = source
        self._numbers = numbers
        self._limits = limits
        self._probe = raw.probe if isinstance(raw, Probeable) else None
        self.on_change: Callable[[], None] = lambda: None
        self._uniform = uniform
        self._failures = 0
        self._wrong = 0.0
        self._failing_since: float | None = None
        self._opened_time = 0.0
        self._pause_s = limits.pause_s
        self._wanted: ObjectRef | None = None
        self._under_way: dict[trio.CancelScope, float] = {}
        self._good_at = -math.inf
        self._is_doubted = False
        self._hurried = False
        self._probed = trio.Event()
        self._probed_at = -math.inf
        self._event = trio.Event()
        self.reason: str | None = None
        self.held: str | None = None

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def down_since(self) -> float | None:
        """While it is not closed: when the first of the failures came that opened it, on trio's clock."""
        return None if self.reason is None else self._failing_since

    async def fetch(self, ref: ObjectRef, deadline: float) -> memoryview | bytes:
        """See ``Source.fetch``. Raises KnownDown at once while it is open, and when it opens."""
        self._wanted = ref
        if self.reason is not None or self.held is not None:
            raise self._known_down()
        begun = trio.current_time()
        if deadline - begun < ATTEMPT_S_MIN:
            raise Unavailable(f"{ref}: no time is left to ask {self.name}")
        with trio.CancelScope() as scope:
            self._under_way[scope] = begun
            if len(self._under_way) == 1:
                self._event.set()
            try:
                data = await self._source.fetch(ref, deadline)
            except Unavailable as error:
                self._failed(str(error), begun, deadline)
                raise
            except (NotFound, AccessDenied):
                self._answered()
                raise
            else:
                self._answered()
                return data
            finally:
                del self._under_way[scope]
        raise self._known_down()

    def blame(self, reason: str) -> None:
        """It gave a wrong answer, and another source a right one."""
        self._wrong += 1
        self._failing_since = self._failing_since or trio.current_time()
        if self._wrong >= self._limits.failures_max:
            self._wrong -= 1  # should it go on like this when it is asked again, it is left alone again at once
            self._pause_s = min(2 * self._pause_s, self._limits.pause_s_max)
            self.trip(f"more than one answer in ten is wrong, the last one: {reason}")

    def suspect(self, reason: str) -> None:
        """Somebody else had no answer from it: a probe decides while requests are under way, else that is enough."""
        if self._under_way and self.reason is None and self._probe is not None:
            self._is_doubted = True
            self._event.set()
        else:
            self.trip(reason)

    def trip(self, reason: str, since: float | None = None) -> None:
        """It is known not to answer, ``since`` this moment on trio's clock (None: since its first failure, or now)."""
        if since is not None:
            self._failing_since = since
        elif self._failing_since is None:
            self._failing_since = trio.current_time()
        if self.reason is None:
            logger.warning("source %s is down: %s", self.name, reason)
            self._opened_time = time.time()
            self._numbers.opened += 1
            self._numbers.breaker = "open"
            self._event.set()
        self.reason = reason
        self._failures = 0
        self.on_change()

    def close(self) -> None:
        """It answers."""
        self._failures, self._failing_since = 0, None
        self._good_at = trio.current_time()
        if self.reason is not None:
            logger.info("source %s answers again", self.name)
            self.reason = None
            self._numbers.breaker = "closed"
            self._event.set()
            self.on_change()

    def hold(self, reason: str | None) -> None:
        """Let nothing pass, not even probes, for this reason; None: as before."""
        self.held = reason
        self._event.set()

    def hurry(self, ref: ObjectRef | None = None) -> None:
        """See ``Impatient``: without ``ref`` an open breaker probes now."""
        if ref is None and self.reason is not None:
            self._hurried = True
            self._event.set()

    async def glance(self, within_s: float) -> None:
        """Have it probed, if it is open and was not probed just now, and wait so long for the outcome."""
        if self.reason is None or self.held is not None or trio.current_time() < self._probed_at + FRESH_S:
            return
        self.hurry()
        with trio.move_on_after(within_s):
            await self._probed.wait()

    def status(self) -> SourceStatus:
        """See ``Source.status``."""
        return replace(
            self._source.status(),
            breaker=self._numbers.breaker,  # type: ignore[arg-type]  # one of the three words
            down_because=None if self.reason is None else self.why(),
        )

    async def run(self) -> None:
        """Doubt and probe, for ever. Cancellation abandons a probe."""
        while True:
            self._event = trio.Event()
            if self.held is not None:
                await self._event.wait()
            elif self.reason is not None:
                with trio.move_on_after(0 if self._hurried else self._uniform(self._pause_s / 2, self._pause_s)):
                    await self._event.wait()
                    continue
                await self._try_again()
            elif self._is_doubted:
                self._is_doubted = False
                await self._settle_doubt()
            else:
                with trio.move_on_at(self._silent_at()):
                    await self._event.wait()
                self._is_doubted = self._is_doubted or trio.current_time() >= self._silent_at()

    def _silent_at(self) -> float:
        """When it will have given nothing for too long, as things are."""
        if self._probe is None or not self._under_way:
            return math.inf
        first = next(iter(self._under_way.values()))
        return max(first, self._good_at) + self._limits.silence_s

    async def _settle_doubt(self) -> None:
        why = await self._ask()
        if why is None:
            self._good_at = trio.current_time()  # it is slow, and lives
            return
        self.trip(f"it has given nothing for a while, nor does it answer a probe: {why}")
        for scope in list(self._under_way):
            scope.cancel()

    async def _try_again(self) -> None:
        self._hurried = False
        self._numbers.breaker = "half-open"
        why = await self._ask()
        self._probed_at = trio.current_time()
        self._probed.set()
        self._probed = trio.Event()
        if self.reason is None:
            return
        if why is None:
            self.close()
            return
        self._numbers.breaker = "open"
        self.reason = why
        self._pause_s = min(2 * self._pause_s, self._limits.pause_s_max)

    async def _ask(self) -> str | None:
        """One probe: None when the source answers, else why not."""
        deadline = trio.current_time() + PROBE_S
        try:
            with trio.move_on_at(deadline + 1):  # a source that heeds its deadline has ended before
                if self._probe is not None:
                    await self._probe(deadline)
                elif self._wanted is not None:
                    await self._source.fetch(self._wanted, deadline)
                else:
                    return self.reason or "nothing was asked of it yet"
                return None
        except (NotFound, AccessDenied):
            return None
        except DamfsError as error:
            return str(error)
        except Exception as error:  # whatever it is, the source is looked at again: it must not end the daemon
            logger.exception("source %s: a probe ended with an error that is a bug, or of this machine", self.name)
            return f"it cannot be probed: {error!r}"
        return f"no answer within {PROBE_S:g} s"

    def _failed(self, reason: str, begun: float, deadline: float) -> None:
        now = trio.current_time()
        self._failing_since = self._failing_since or begun
        is_slow = now - begun >= self._limits.slow_s or now >= deadline - ATTEMPT_S_MIN
        if is_slow and self._probe is not None:
            self._is_doubted = True
            if self.reason is None:
                self._event.set()
            return
        self._failures += 1
        if self._failures >= self._limits.failures_max and self.reason is None:
            self.trip(reason)

    def _answered(self) -> None:
        self._wrong = max(0.0, self._wrong - WRONG_FORGIVEN)
        if self._wrong < 1:
            self._pause_s = self._limits.pause_s
        self.close()

    def why(self) -> str:
        """Since when it is down, and why; while it is."""
        return (
            f"{self.name} is down since {time.strftime('%H:%M:%S', time.localtime(self._opened_time))}: {self.reason}"
        )

    def _known_down(self) -> KnownDown:
        return KnownDown(self.held or f"source {self.why()}")
