"""The gate in front of all sources: while it is shut nothing is asked, and who wants bytes is told why, at once.

State: why it is shut (None: it is open), the requests that are behind it, and what was said of refusals.

Rules:
- Shutting it ends the requests under way: nobody waits for a network that is not to be used.
- What the cache has itself needs no gate: it is asked before (``fetch.py``).
- A refusal is an Offline. It is never remembered, nor counted against a source: none was asked. The log has one line
  for all refusals within TOLD_S.
"""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from manifest.errors import Offline

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

TOLD_S = 60.0


class Gate:
    """See the module's rules. Belongs to the event loop."""

    def __init__(self) -> None:
        self.shut_because: str | None = None
        self._untold = 0
        self._told_at = -math.inf
        self._passing: set[trio.CancelScope] = set()

    def shut(self, reason: str) -> None:
        """Let nobody through any more, and end what is under way. ``reason`` goes on with "nothing is fetched: "."""
        self.shut_because = reason
        self._told_at = -math.inf
        for scope in self._passing:
            scope.cancel()

    def open(self) -> None:
        """Let everybody through again. Idempotent."""
        self.shut_because = None

    @contextmanager
    def passing(self, what: object, hint: str) -> Iterator[None]:
        """Around a request for ``what``, which is of the file ``hint``.

        Raises Offline at once while the gate is shut, and in the middle of the request when it is shut then.
        """
        if self.shut_because is None:
            with trio.CancelScope() as scope:
                self._passing.add(scope)
                try:
                    yield
                finally:
                    self._passing.discard(scope)
            if not scope.cancelled_caught:
                return
        raise self._refusal(what, hint)

    def _refusal(self, what: object, hint: str) -> Offline:
        why = self.shut_because or "it was switched off for a moment"
        self._untold += 1
        now = trio.current_time()
        if now - self._told_at >= TOLD_S:
            more = f" ({self._untold - 1} more were refused before)" if self._untold > 1 else ""
            logger.warning("%s is not in the cache, and nothing is fetched: %s%s", hint or what, why, more)
            self._told_at, self._untold = now, 0
        return Offline(f"{hint or what}: not in the cache, and nothing is fetched: {why}")
