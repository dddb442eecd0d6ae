"""The limits: admission before a chunk is stored, eviction behind it.

State: ``limits``; ``used_bytes``, what every content in the cache and every store under way is charged; what the last
look at the disk found.

Rules:
- ``used_bytes`` is at most ``bound_bytes``: a chunk is admitted before it is written, and one that is not admitted
  is served and not kept. No reader waits for an eviction.
- The bound is the size, or less where others fill the disk: what stays free of it (``limits``) is kept by evicting.
  The disk is looked at in a thread, every LOOK_S; what was admitted since counts.
- Eviction (``evict.py``) runs in the background, from the high water mark down to the low one: first what shows have
  above their quotas, then shows of low priority, of normal, of high.
- When everything left is open, the cache is *exhausted*: nothing is admitted, without waiting, until something is
  released.
"""

from __future__ import annotations

import logging
import sqlite3
import sys
from typing import TYPE_CHECKING

import trio

from cache.evict import Evictor
from cache.shares import in_turn, over_quota
from cache.space import look

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from cache.accounts import Held
    from cache.evict import Evicted
    from cache.files import ObjectFiles
    from cache.index import Index
    from cache.limits import Limits
    from cache.metrics import Counters
    from cache.small import SmallStore
    from cache.space import Space

logger = logging.getLogger(__name__)
ROOM_S = 2.0
"""How long a store waits for an eviction to make room. Its readers have their bytes already."""
BLOCK_BYTES = 4096
FULL_DISK_STEP_BYTES = 64 * 1024 * 1024
"""How much is evicted when the disk is full before the cache is: others fill it too."""
FULL_INODES_STEP = 64
"""So many contents more than needed go when inodes run out."""
LOOK_S = 1.0
RETRY_S = 1.0
UNBOUND = sys.maxsize
_LOG_EVERY_S = 60.0


def span_charge(offset: int, length: int) -> int:
    """The bytes of disk that a chunk can take: its blocks, counted from the file's beginning. An upper bound."""
    return -(-(offset + length) // BLOCK_BYTES) * BLOCK_BYTES - offset // BLOCK_BYTES * BLOCK_BYTES


class Capacity:
    """See the module's rules.

    Invariant: ``_under_way`` is what was admitted for stores that have not ``landed``; it is part of ``used_bytes``.
    """

    def __init__(
        self,
        limits: Limits,
        folder: Path,
        index: Index,
        files: ObjectFiles,
        small: SmallStore,
        counters: Counters,
        is_open: Callable[[tuple[str, bytes]], bool],
        totals: tuple[int, int],
        let_go: Callable[[], Awaitable[bool]],
        policy: str,
    ) -> None:
        self.limits = limits
        self.used_bytes, self.objects = totals
        self.held: dict[str, Held] = {}
        """What each show had at the last look."""
        self.space: Space | None = None
        self._folder = folder
        self._index = index
        self._evictor = Evictor(index, files, small, counters, is_open, let_go, policy)
        self.is_shut = False
        self._exhausted = False
        self._no_store_until = 0.0
        self._failure_logged = -_LOG_EVERY_S
        self._under_way = 0
        self._ceiling = UNBOUND
        self._inodes_left = UNBOUND
        self._target = UNBOUND
        """What is used is to come down to this, whatever the water marks."""
        self._quotas_wait = False
        """Shows are over their quotas, and everything that could go is open."""
        self._wake = trio.Event()
        self._changed = trio.Event()
        self._look_now = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        if self.used_bytes > self._high:
            self._wake.set()

    @property
    def evicting(self) -> set[tuple[str, bytes]]:
        """What is being evicted now: to be opened as if it were not there."""
        return self._evictor.evicting

    @property
    def size_bytes(self) -> int:
        """What may be held where nobody else fills the disk."""
        return self.limits.size_bytes

    @property
    def bound_bytes(self) -> int:
        """What may be held now."""
        return min(self.limits.size_bytes, self._ceiling)

    @property
    def _high(self) -> int:
        return int(self.bound_bytes * self.limits.high_water)

    @property
    def _low(self) -> int:
        return int(self.bound_bytes * self.limits.low_water)

    def set_limits(self, limits: Limits) -> None:
        """Have other limits from now on. What is too much is evicted in the background."""
        self.limits = limits
        self._ceiling = self._inodes_left = UNBOUND
        self._exhausted = self._quotas_wait = False
        self._look_now.set()
        self._kick()
        self._notify()

    async def admit(self, charge: int, *, is_new_file: bool = False) -> bool:
        """Count ``charge`` bytes in, for a store that says when it has ``landed``; False when there is no room.

        May wait ROOM_S for an eviction.
        """
        if charge > self.bound_bytes or self.is_shut or trio.current_time() < self._no_store_until:
            return False
        if is_new_file and self._inodes_left <= 0:
            return False
        if self.used_bytes + charge > self.bound_bytes and not self._exhausted:
            self._target = min(self._target, self.bound_bytes - charge)
            self._wake.set()
            with trio.move_on_after(ROOM_S):
                while self.used_bytes + charge > self.bound_bytes and not self._exhausted:
                    await self._changed.wait()
        if self.used_bytes + charge > self.bound_bytes:
            return False
        self.used_bytes += charge
        self._under_way += charge
        self._inodes_left -= is_new_file
        if self.used_bytes > self._high:
            self._kick()
        return True

    def landed(self, charge: int) -> None:
        """A store that was admitted is over: its bytes are in the file system's accounts, or are given back."""
        self._under_way -= charge
        assert self._under_way >= 0

    def give_back(self, charge: int) -> None:
        """Count bytes out again."""
        self.used_bytes -= charge
        self._notify()

    def released(self) -> None:
        """Something was closed: what could not be evicted perhaps can be now."""
        self._quotas_wait = False
        if self._exhausted:
            self._exhausted = False
            self._kick()

    def shut(self) -> None:
        """The disk has failed: nothing is admitted any more."""
        self.is_shut = self._exhausted = True
        self._notify()

    def write_failed(self, error: OSError, *, full: bool) -> None:
        """The disk did not take bytes that the limit allows: say so once, stop storing for a moment.

        ``full``: for want of room; then some is made, for others may have taken it.
        """
        now = trio.current_time()
        if now - self._failure_logged >= _LOG_EVERY_S:
            self._failure_logged = now
            logger.warning(
                "the cache disk cannot take more (%s) at %.1f of %.1f MB: bytes are served and not kept; "
                "look after the disk, or lower the cache size", error, self.used_bytes / 1e6, self.size_bytes / 1e6,
            )  # fmt: skip
        self._no_store_until = now + RETRY_S
        if full:
            self._target = min(self._target, max(0, self.used_bytes - FULL_DISK_STEP_BYTES))
            self._exhausted = False
            self._wake.set()

    async def evict(self, tenant: str, contents: Sequence[bytes]) -> Evicted:
        """Let go of these contents now. Raises sqlite3.Error."""
        return await self._evictor.evict_named(tenant, contents, self._evicted)

    async def run(self) -> None:
        """The evictor. Ends when cancelled, between two steps."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            if self.limits.shows:
                await self._count_shows()
                await self._evict_over_quota()
            if self.used_bytes > min(self._high, self._target):
                await self._evict()
                self._target = UNBOUND
                self._notify()

    async def watch(self) -> None:
        """Look at the disk and at the shows, again and again. Ends when cancelled; a thread is left to a dead disk."""
        while True:
            await self._look()
            with trio.move_on_after(LOOK_S):
                await self._look_now.wait()
            self._look_now = trio.Event()

    async def _evict(self) -> None:
        """Down to the low water mark, or lower when a chunk or a full disk needs it."""
        self._target = min(self._target, self._low)
        for scope in in_turn(self.held, self.limits):
            if await self._evictor.evict(lambda: self.used_bytes - self._target, self._evicted, scope):
                return
        self._exhausted = True

    async def _evict_over_quota(self) -> None:
        """What shows have above their quotas."""
        for scope, surplus_bytes in over_quota(self.held, self.limits):
            left = [surplus_bytes]

            def evicted(freed_bytes: int, objects: int, left: list[int] = left) -> None:
                left[0] -= freed_bytes
                self._evicted(freed_bytes, objects)

            if not await self._evictor.evict(lambda left=left: left[0], evicted, scope):  # type: ignore[misc]
                self._quotas_wait = True

    async def _look(self) -> None:
        """What of the disk and of the cache has changed since the last time, and what is to be evicted for it."""
        await self._count_shows()
        if self.limits.free_reserve or self.limits.free_inodes:
            landed = self.used_bytes - self._under_way
            try:
                space = await trio.to_thread.run_sync(look, self._folder, abandon_on_cancel=True)
            except OSError:
                return  # a disk that does not answer is the business of who writes to it; what was known goes on
            self.space = space
            self._bound_by(space, min(landed, self.used_bytes - self._under_way))
        is_over_quota = not self._quotas_wait and any(over_quota(self.held, self.limits))
        if self.used_bytes > self._high or is_over_quota:
            self._kick()

    async def _count_shows(self) -> None:
        try:
            self.held = await trio.to_thread.run_sync(self._index.held, limiter=self._limiter)
        except sqlite3.Error as error:
            self._index.failed(error)

    def _bound_by(self, space: Space, landed_bytes: int) -> None:
        """Hold no more than leaves the reserves free; ``landed_bytes`` are what the file system counts of ours."""
        limits = self.limits
        if limits.free_reserve:
            self._ceiling = max(0, landed_bytes + space.free_bytes - limits.free_reserve.of(space.bytes))
        if limits.free_inodes and space.inodes:
            self._inodes_left = space.free_inodes - limits.free_inodes.of(space.inodes)
            if self._inodes_left < 0 and self.objects:
                each = self.used_bytes // self.objects
                self._target = self.used_bytes - (FULL_INODES_STEP - self._inodes_left) * each
                self._kick()

    def _evicted(self, freed_bytes: int, objects: int) -> None:
        self.objects -= objects
        self.give_back(freed_bytes)

    def _kick(self) -> None:
        if not self._exhausted:
            self._wake.set()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
