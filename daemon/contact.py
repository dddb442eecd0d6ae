"""Whether the library answers, and which shows it has.

State: ``Contact`` knows whether the library is "offline": the last attempt to list the shows failed, and nothing else
was had from it since (a log that was read, a chunk). It asks at a slow pace while all is well, soon after somebody's
request failed, and, while the library does not answer, again and again with a back-off that stays below RETRY_S_MAX:
the way back is noticed within seconds, however long it was gone, and at once when somebody else finds it.

While it is ``shut`` (daemon/offline.py) it asks nothing, whoever wants to know.
"""

from __future__ import annotations

import logging
import math
import random
from typing import TYPE_CHECKING

import trio

from manifest.errors import DamfsError, Unavailable
from manifest.identity import list_shows
from manifest.way import CENTRAL, Way

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from manifest.library import Library

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 4.0
PACE_S = 5.0
"""The shows are listed so often while the library answers, in seconds; new shows appear within it."""
GLANCE_S = 1.0
RETRY_S_MIN = 0.25
RETRY_S_MAX = 5.0


def back_off(failures: int) -> float:
    """Seconds to wait after so many failures in a row (≥ 1): doubled each time, jittered, at most RETRY_S_MAX."""
    longest = min(RETRY_S_MAX, RETRY_S_MIN * 2 ** min(failures, 10))
    return random.uniform(longest / 2, longest)  # noqa: S311  jitter, no secret


class Contact:
    """Asks the library for its shows, for as long as ``run`` runs.

    ``on_shows`` is given each listing that succeeded; ``on_return`` is called when the library answers again,
    ``on_silence`` with the reason each time that it does not.
    """

    def __init__(
        self,
        library: Library,
        *,
        pace_s: float,
        threads: trio.CapacityLimiter,
        on_shows: Callable[[list[str]], Awaitable[None]],
        on_return: Callable[[], None],
        on_silence: Callable[[str], None] = lambda _: None,
        way: Way = CENTRAL,
    ) -> None:
        """``way``: how the shows are listed as a matter of routine; who wants to know has the central store asked."""
        self._library = library
        self._way = way
        self._pace_s = max(PACE_S, pace_s)
        self._threads = threads
        self._on_shows = on_shows
        self._on_return = on_return
        self._on_silence = on_silence
        self._nudged = trio.Event()
        self._asked = trio.Event()
        self._asked_at = self._answered_at = -math.inf
        self._is_silent = True
        self._silence: str | None = None
        self.shut_because: str | None = None
        self._opened = trio.Event()

    @property
    def reason(self) -> str | None:
        """Why it is offline, in words; None: it is not."""
        return self.shut_because or self._silence

    @property
    def offline(self) -> bool:
        """Whether the library did not answer when it was asked last, or is not to be asked."""
        return self.reason is not None

    def shut(self, reason: str) -> None:
        """Ask nothing any more."""
        self.shut_because = reason

    def open(self) -> None:
        """Ask again, now. It stays offline until there is an answer."""
        self.shut_because = None
        self._silence, self._is_silent = "it was not asked yet since it may be asked again", True
        self._opened.set()
        self._opened = trio.Event()
        self.nudge()

    def begin(self, *, offline_because: str | None) -> None:
        """What the start-up found out, before ``run``."""
        self._silence = offline_because

    def answered(self) -> None:
        """Somebody had an answer: the library is back, if it did not answer before; its shows are listed soon.

        It is not back if it did answer, and forbade to list its shows.
        """
        self._answered_at = trio.current_time()
        if self._silence is not None and self._is_silent and self.shut_because is None:
            self._up()
            self.glance()

    def nudge(self) -> None:
        """Ask again at once: somebody's request failed, or somebody wants to know."""
        self._nudged.set()

    def glance(self) -> None:
        """Ask again soon, but not for each of many: somebody looked up a name that may be a new show."""
        if trio.current_time() - self._asked_at > GLANCE_S:
            self._nudged.set()

    async def ask(self, timeout_s: float) -> None:
        """Wait until the library was asked once more; it may have answered or not. At most ``timeout_s``."""
        with trio.move_on_after(timeout_s):
            for _ in range(2):  # the listing that is under way may have begun before we were asked
                asked = self._asked
                self.nudge()
                await asked.wait()

    async def run(self) -> None:
        """Ask for ever. Cancellation abandons a request that is under way."""
        failures = 0
        fresh = False
        while True:
            while self.shut_because is not None:
                failures = 0
                await self._opened.wait()
            self._nudged = trio.Event()
            self._asked_at = trio.current_time()
            try:
                is_answered = await self._ask(fresh=fresh)
            except Exception as error:  # whatever it is, the library is asked again
                log.error("a bug of damfs: the shows of the library cannot be listed", exc_info=error)
                is_answered = False
            failures = 0 if is_answered else failures + 1
            asked, self._asked = self._asked, trio.Event()
            asked.set()
            with trio.move_on_after(back_off(failures) if failures else self._pace_s):
                await self._nudged.wait()
            fresh = failures > 0 or self._nudged.is_set()
            await trio.sleep(RETRY_S_MIN / 5)  # nudges come in swarms

    async def _ask(self, *, fresh: bool) -> bool:
        try:
            shows = await trio.to_thread.run_sync(
                lambda: list_shows(self._library, timeout_s=ASK_TIMEOUT_S, way=self._way, fresh=fresh),
                limiter=self._threads,
                abandon_on_cancel=True,
            )
        except DamfsError as error:
            if self.shut_because is None:
                self._down(error)
            return False
        if self.shut_because is not None:
            return False
        self._up()
        await self._on_shows(shows)
        return True

    def _down(self, error: DamfsError) -> None:
        self._is_silent = isinstance(error, Unavailable)
        if self._is_silent and self._answered_at > self._asked_at:
            log.debug("the shows were not listed, and yet the library answers: %s", error)
            return
        if self._silence is None:
            log.warning("offline: %s", error)
        self._silence = str(error)
        if self._is_silent:
            self._on_silence(self._silence)

    def _up(self) -> None:
        was_offline, self._silence = self._silence is not None, None
        if was_offline:
            log.info("online: %s answers again", self._library.url)
            self._on_return()
