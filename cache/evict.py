"""Eviction: what the policy names goes, in small steps, in the background.

State: ``evicting``, the contents whose rows and files are being removed at this moment.

Rules:
- A step is at most STEP objects; between two steps everybody else has a turn. The policy (``policies/``) says in which
  order; recipes that no object needs go when there is nothing else.
- What is open is never evicted; what is being evicted is opened as if it were not there.
- Rows first, files after: a file without a row is swept, a row without a file would be a false promise.
"""

from __future__ import annotations

import logging
import sqlite3
from typing import TYPE_CHECKING, NamedTuple, TypeVar, TypeVarTuple

import trio

from cache import policies
from cache.shares import EVERYTHING
from cache.small import small_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from cache.files import ObjectFiles
    from cache.index import Candidate, Index
    from cache.metrics import Counters
    from cache.policies.protocol import Policy
    from cache.shares import Scope
    from cache.small import SmallStore

logger = logging.getLogger(__name__)

STEP = 64
_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")


class Evicted(NamedTuple):
    """What became of contents that were to go. ``bytes`` are those of the disk that are free now."""

    objects: int = 0
    bytes: int = 0
    in_use: int = 0
    pinned: int = 0

    def plus(self, other: Evicted) -> Evicted:
        """Both together."""
        return Evicted(*map(sum, zip(self, other, strict=True)))


class Evictor:
    """See the module's rules. One eviction at a time.

    ``policy`` is a name of ``policies.POLICIES``. ``is_open`` tells of a content whether it is; ``let_go`` has closed
    what only waits to be claimed, and tells whether there was such a thing.
    """

    def __init__(
        self,
        index: Index,
        files: ObjectFiles,
        small: SmallStore,
        counters: Counters,
        is_open: Callable[[tuple[str, bytes]], bool],
        let_go: Callable[[], Awaitable[bool]],
        policy: str,
    ) -> None:
        self.evicting: set[tuple[str, bytes]] = set()
        self._index = index
        self._files = files
        self._small = small
        self._counters = counters
        self._is_open = is_open
        self._let_go = let_go
        self._policy_name = policy
        self._policy: Policy | None = None
        self._limiter = trio.CapacityLimiter(1)

    async def evict(
        self, surplus: Callable[[], int], evicted: Callable[[int, int], None], scope: Scope = EVERYTHING
    ) -> bool:
        """Evict until ``surplus()`` bytes are no more than 0; False when nothing of ``scope`` is left that can go.

        ``evicted`` is told, step by step, the bytes that became free and the number of objects that went. Ends when
        cancelled, between two steps.
        """
        self._index.scope = scope
        try:
            if self._policy is None:
                self._policy = await self._in_thread(policies.make, self._policy_name, self._index)
            policy = self._policy
            await self._in_thread(policy.begin)
            while surplus() > 0:
                found = await self._in_thread(policy.victims, STEP, surplus())
                if found:
                    await self._step(found, surplus(), evicted)
                    continue
                found = await self._in_thread(self._index.oldest_recipes, STEP)
                if not await self._step(found, surplus(), evicted):
                    if not await self._let_go():  # what was just written, in a cache too small for it
                        return False
                    await self._in_thread(policy.begin)
        except sqlite3.Error as error:
            self._index.failed(error)
            return False
        return True

    async def _in_thread(self, work: Callable[[*_Arguments], _Result], *arguments: *_Arguments) -> _Result:
        return await trio.to_thread.run_sync(work, *arguments, limiter=self._limiter)

    async def evict_named(self, tenant: str, contents: Sequence[bytes], evicted: Callable[[int, int], None]) -> Evicted:
        """Evict these contents, whatever the policy. Raises sqlite3.Error."""
        freed = [0]

        def count(freed_bytes: int, objects: int) -> None:
            freed[0] += freed_bytes
            evicted(freed_bytes, objects)

        find = self._index.evictable
        found, pinned = await trio.to_thread.run_sync(find, tenant, contents, limiter=self._limiter)
        gone = 0
        for begin in range(0, len(found), STEP):
            step = found[begin : begin + STEP]
            gone += await self._step(step, sum(candidate.charge for candidate in step) + 1, count)
        return Evicted(gone, freed[0], len(found) - gone, pinned)

    async def _step(self, found: list[Candidate], surplus: int, evicted: Callable[[int, int], None]) -> int:
        """Evict what is not open, as much as needed, and return how many."""
        chosen: list[Candidate] = []
        for candidate in found:
            key = (candidate.tenant, candidate.content)
            if surplus > 0 and not self._is_open(key) and key not in self.evicting:
                surplus -= candidate.charge
                self.evicting.add(key)
                chosen.append(candidate)
        if not chosen:
            return 0
        try:
            with trio.CancelScope(shield=True):
                freed, objects = await self._in_thread(self._remove, chosen)
        finally:
            self.evicting.difference_update((c.tenant, c.content) for c in chosen)
        self._counters.evicted_bytes += freed
        self._counters.evicted_objects += len(chosen)
        evicted(freed, objects)
        return len(chosen)

    def _remove(self, chosen: list[Candidate]) -> tuple[int, int]:
        objects = [candidate for candidate in chosen if not candidate.is_recipe]
        freed, count, stay = self._index.evict([c.id for c in objects], [c.id for c in chosen if c.is_recipe])
        for candidate in objects:
            if candidate.id in stay:
                continue
            if candidate.file:
                try:
                    self._files.unlink(candidate.file)
                except OSError as error:
                    logger.warning("an evicted file stays on the disk until the next start: %s", error)
            else:
                self._small.delete(small_key(candidate.tenant, candidate.content))
        return freed, count
