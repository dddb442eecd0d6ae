"""Blocking requests in threads, so many at a time.

State: the limiters. A thread cannot be stopped: one whose caller was cancelled (a hedge that lost) goes on until its
request's own time-out, and counts against the limit until then. One that has no time-out, or does not heed it (a file
system that hangs), is given up OVERTIME_S behind the deadline, and counts for as long as it hangs.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

OVERTIME_S = 3.0
"""No request to a store has a shorter time-out than 2 s (``manifest/library.py``), however near its deadline is."""
BESIDE_MAX = 4

_unlimited = trio.CapacityLimiter(math.inf)  # what counts is the limiter of each Threads


class Threads:
    """Room for ``limit`` blocking calls at a time."""

    def __init__(self, limit: int) -> None:
        self._limiter = trio.CapacityLimiter(limit)
        self._beside = trio.CapacityLimiter(BESIDE_MAX)

    @property
    def limit(self) -> int:
        """How many there may be."""
        return int(self._limiter.total_tokens)

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limiter.total_tokens = limit

    async def run(self, call: Callable[[], T], deadline: float) -> T | None:
        """What ``call`` returns, from a thread; None when there was no room until the deadline, or it did not end.

        Raises what ``call`` raises. Once it is in a thread the deadline is the call's own business, for OVERTIME_S.
        Cancellation leaves the thread to itself.
        """
        borrower, token = object(), trio.lowlevel.current_trio_token()
        is_begun = False

        def work() -> T:
            nonlocal is_begun
            is_begun = True
            try:
                return call()
            finally:
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(self._limiter.release_on_behalf_of, borrower)

        with trio.CancelScope(deadline=deadline) as scope:
            await self._limiter.acquire_on_behalf_of(borrower)
        if scope.cancelled_caught:
            return None
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            self._limiter.release_on_behalf_of(borrower)
            raise
        try:
            with trio.move_on_at(deadline + OVERTIME_S):
                return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=_unlimited)
        except RuntimeError:
            if not is_begun:  # the machine has no thread to give: what is never begun releases nothing
                self._limiter.release_on_behalf_of(borrower)
            raise
        return None

    async def run_beside(self, call: Callable[[], T]) -> T:
        """As ``run``, outside of the limit: for a single small request, when all others may be stuck.

        Of such there are BESIDE_MAX at most: with as many that hang it waits for one of them, or until it is cancelled.
        """
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._beside)
