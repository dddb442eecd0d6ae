"""Mending: right bytes over wrong ones, in a file that the kernel reads itself.

The kernel cannot be told to stop: programs have the file open, or mapped, past the daemon. When the daemon finds that
the disk holds other bytes than were written (or may: an fdatasync that failed), the least that can be done is also the
best: the chunks are fetched again, in order, verified, and written to where they belong. What was right stays right
under its readers, and what was wrong becomes right.

State: which contents are being mended. A content is no more than MENDS_MAX times mended while it is held: a disk that
goes on turning bytes is not to be written to for ever. It is tried again for as long as a handle is held that got the
file; after that it is an ordinary file of which little is present.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from manifest.errors import DamfsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cache.content import Content
    from cache.metrics import Counters

logger = logging.getLogger(__name__)

MENDS_MAX = 3
CHUNK_S = 60.0
"""How long one chunk may take."""
PAUSE_S, PAUSE_S_MAX = 1.0, 60.0


class Mender:
    """See the module. ``refill`` brings every chunk that is not present, each within so many seconds, or raises."""

    def __init__(
        self,
        nursery: trio.Nursery,
        refill: Callable[[Content, float], Awaitable[None]],
        counters: Counters,
        retain: Callable[[Content], None],
        release: Callable[[Content], None],
    ) -> None:
        self._nursery = nursery
        self._refill = refill
        self._counters = counters
        self._retain = retain
        self._release = release
        self._mending: set[Content] = set()

    def mend(self, content: Content) -> None:
        """Begin to mend a content that is doubted, if that is not under way."""
        if content not in self._mending:
            self._mending.add(content)
            self._retain(content)
            self._nursery.start_soon(self._run, content)

    async def _run(self, content: Content) -> None:
        try:
            pause_s = PAUSE_S
            while content.lent and not content.all_present:
                if content.mends >= MENDS_MAX:
                    logger.error(
                        "cached file of show %s, path %s was mended %d times and is wrong again: close it in every "
                        "program, and replace the cache disk", content.tenant, content.hint or "?", MENDS_MAX,
                    )  # fmt: skip
                    return
                try:
                    await self._refill(content, CHUNK_S)
                except DamfsError as error:
                    logger.warning("a cached file cannot be mended yet: %s", error)
                if content.all_present:
                    break
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
            if content.lent:
                content.mends += 1
                self._counters.mended += 1
                logger.warning(
                    "cached file of show %s, path %s is mended: what reads it from now on gets the right bytes",
                    content.tenant, content.hint or "?",
                )  # fmt: skip
        finally:
            self._mending.discard(content)
            self._release(content)
