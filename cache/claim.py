"""The publisher's claim about the whole file: checked as soon as every chunk is here, in the background.

State: a bounded queue of contents, and which wrong claims were reported. Chunks are verified one by one when they
come; which digest the whole file has is known only after all of it has been read once (``Content.whole``). A handle is
*complete* when that is the digest that it was opened with.

What is hashed is what the file gives back, in steps, the contents taking turns. A file that is filled from its
beginning on is hashed behind the fill, out of the page cache, so that little is left to do when its last chunk has
come; one that a former process filled in part is hashed when it has all chunks, for it might never get them.

A publisher that claimed another digest than its recipe makes is at fault, not the reader: its file is never complete,
and chunk-verified reads go on. A cache disk that gives back other bytes than were written is told apart from that, and
its file not believed any more.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from typing import TYPE_CHECKING

import trio

from cache.content import Prefix
from cache.files import pread
from cache.flush import WHOLE_INTERVAL_S
from manifest.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from blake3 import blake3

    from cache.content import Content, Key
    from cache.files import OpenFile
    from cache.flush import Flusher
    from cache.metrics import Counters
    from manifest.recipe import Recipe

logger = logging.getLogger(__name__)

QUEUE_MAX = 256
REPORTED_MAX = 1024
STEP_BYTES = 32 * 1024 * 1024
BEHIND_BYTES = 8 * 1024 * 1024
"""How much of a file that is being filled waits to be hashed before the hash goes on."""
_PIECE_BYTES = 1024 * 1024


class ClaimChecker:
    """See the module. One content at a time, one thread."""

    def __init__(
        self,
        flusher: Flusher,
        counters: Counters,
        retain: Callable[[Content], None],
        release: Callable[[Content], None],
    ) -> None:
        self._flusher = flusher
        self._counters = counters
        self._retain = retain
        self._release = release
        self._queue: OrderedDict[Key, Content] = OrderedDict()
        self._reported: OrderedDict[tuple[str, Digest, Digest], None] = OrderedDict()
        self._wake = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        self._buffer = memoryview(bytearray(_PIECE_BYTES))

    def consider(self, content: Content) -> None:
        """See to it that ``content``'s claims are judged, now or when there is more of it.

        What does not fit in the queue is so at a later open.
        """
        prefix, recipe = content.prefix, content.recipe
        if not content.all_present:
            if prefix is None or recipe is None or content.file is None:
                return
            while content.has(prefix.chunks):
                prefix.chunks += 1
            if recipe.offset(prefix.chunks) - prefix.size_bytes >= BEHIND_BYTES:
                self._enqueue(content)
            return
        if content.whole is None and recipe is not None and len(recipe) == 1:
            self._found(content, recipe[0].digest)
        elif content.whole is not None:
            self._judge(content)
        else:
            self._enqueue(content)

    async def run(self) -> None:
        """Check what is queued. Ends when cancelled, in the middle of a file."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._queue:
                _, content = self._queue.popitem(last=False)
                try:
                    await self._step(content)
                finally:
                    self._release(content)

    def close(self) -> None:
        """Let go of what is queued."""
        while self._queue:
            self._release(self._queue.popitem()[1])

    def _enqueue(self, content: Content) -> None:
        if content.key not in self._queue and len(self._queue) < QUEUE_MAX:
            self._retain(content)
            self._queue[content.key] = content
            self._wake.set()

    async def _step(self, content: Content) -> None:
        """Hash some more of a content; at its end, judge it."""
        file, epoch = content.file, content.epoch
        if file is None or content.whole is not None:
            return
        prefix = content.prefix
        if prefix is None:
            content.prefix = prefix = Prefix()
        if content.all_present:
            end = content.size
        else:
            assert content.recipe is not None
            end = content.recipe.offset(prefix.chunks)
        begin, end = prefix.size_bytes, min(end, prefix.size_bytes + STEP_BYTES)
        file.use()
        try:
            read = await trio.to_thread.run_sync(
                self._update, prefix.hasher, file.fd, begin, end, limiter=self._limiter
            )
            if content.epoch != epoch:
                return
            if not read:
                self._flusher.distrust(content, "the cache disk did not give its bytes back")
                return
            prefix.size_bytes = end
            if end < content.size:
                self.consider(content)
                return
            await self._judge_whole(content, file, Digest(prefix.hasher.digest()))
        finally:
            file.done()

    async def _judge_whole(self, content: Content, file: OpenFile, whole: Digest) -> None:
        """``whole`` is what the file gave: what was claimed, what the recipe makes, or neither."""
        recipe, epoch, expected = content.recipe, content.epoch, whole in content.claims
        if not expected and recipe is None:
            return  # nobody can say whose fault it is: after the next read's recipe
        damaged = recipe is not None and not expected and await self._is_damaged(file, recipe)
        if content.epoch != epoch:
            return
        if damaged:
            self._counters.verification_failures["disk"] += 1
            self._flusher.distrust(content, "the cache disk gave back other bytes than were written")
        else:
            self._found(content, whole)

    def _found(self, content: Content, whole: Digest) -> None:
        content.whole = whole
        content.prefix = None
        self._flusher.mark(content, 0, within_s=WHOLE_INTERVAL_S)
        self._judge(content)

    def _judge(self, content: Content) -> None:
        """Report, once, every claim that is wrong."""
        assert content.whole is not None
        for claim in content.claims - {content.whole}:
            dispute = (content.tenant, content.whole, claim)
            if dispute in self._reported:
                continue
            self._reported[dispute] = None
            if len(self._reported) > REPORTED_MAX:
                self._reported.popitem(last=False)
            self._counters.disputed += 1
            logger.error(
                "show %s, path %s: published as %s, but its chunks, each of them right, make %s: the publisher's "
                "claim is wrong; the file is readable and never complete",
                content.tenant, content.hint or "?", claim, content.whole,
            )  # fmt: skip

    async def _is_damaged(self, file: OpenFile, recipe: Recipe) -> bool:
        """Whether a chunk in the file is not the recipe's."""
        offset = 0
        for i in range(len(recipe)):
            chunk = recipe[i]
            if not await trio.to_thread.run_sync(_is_right, file.fd, offset, *chunk, limiter=self._limiter):
                return True
            offset += chunk.length
        return False

    def _update(self, hasher: blake3, fd: int, begin: int, end: int) -> bool:
        """In the one thread: ``hasher`` reads bytes ``begin`` to ``end``; False when the file does not give them."""
        for offset in range(begin, end, _PIECE_BYTES):
            piece = self._buffer[: min(_PIECE_BYTES, end - offset)]
            try:
                count = os.preadv(fd, [piece], offset)
            except OSError:
                return False
            if count != len(piece):
                return False
            hasher.update(piece)
        return True


def _is_right(fd: int, offset: int, digest: Digest, length: int) -> bool:
    try:
        return Digest.of(pread(fd, length, offset)) == digest
    except OSError:
        return False
