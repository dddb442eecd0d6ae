"""A shelf: one cache folder on one disk, with everything of it.

State: the parts: index, files, small, contents, capacity, flusher, claims, and the reader while it runs. The contents
that are open on a shelf are its own; fetches and counters are the cache's.

A shelf whose disk has failed is *retired*, for good: nothing is believed of it, found on it or stored on it any more,
and it lets go of its folder. What is open on it is served from the sources, until it is opened elsewhere; only files
that were lent stay, for the kernel reads them itself.
"""

from __future__ import annotations

import os
import sqlite3
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

import trio

from cache import sweep
from cache.capacity import Capacity
from cache.claim import ClaimChecker
from cache.clone import Neighbours
from cache.flush import Flusher
from cache.health import Faults
from cache.keep import Keeper
from cache.mend import Mender
from cache.metrics import FolderStats
from cache.opening import OpenContents
from cache.queue import Priority
from cache.read import Reader
from cache.scrub import Scrubber

if TYPE_CHECKING:
    from pathlib import Path

    from cache.content import Content
    from cache.fetch import Fetcher
    from cache.folder import Parts
    from cache.limits import Limits
    from cache.metrics import Counters
    from cache.pace import Pace
    from manifest.digest import Digest

CLOSE_PAUSE_S = 0.05
RETIRED_PAUSE_S = 1.0


class Shelf:
    """See the module. Belongs to the event loop: ``run`` until it is cancelled, then ``close``.

    ``let_go`` is set when one that was retired has let go of its folder, ``replaced`` by whoever has put another shelf
    in its place.
    """

    def __init__(
        self, folder: Path, parts: Parts, configured: Limits, policy: str, scrub: Pace, counters: Counters
    ) -> None:
        self.folder = folder
        self.configured = configured
        self.overrides = parts.overrides.unless_refuted(configured)
        """What of the limits was set while mounted; see ``admin.py``."""
        self.name = blake2b(os.fsencode(folder), digest_size=16).digest()
        self.faults = Faults()
        self.let_go = trio.Event()
        self.replaced = trio.Event()
        self.lock = parts.lock
        self.index = index = parts.index
        self.files = files = parts.files
        self.small = small = parts.small
        self.contents = contents = OpenContents(
            index, files,
            is_dropped=lambda row: self.flusher.is_dropped(row),  # noqa: PLW0108 - these two are made next
            forget=lambda row: self.flusher.forget(row),  # noqa: PLW0108
            on_closed=lambda: self.capacity.released(),  # noqa: PLW0108
        )  # fmt: skip
        self.capacity = Capacity(
            self.overrides.over(configured), folder, index, files, small, counters, contents.__contains__,
            parts.totals, lambda: self.flusher.let_go(), policy,  # noqa: PLW0108
        )  # fmt: skip
        contents.evicting = self.capacity.evicting
        self.flusher = Flusher(index, files, self.capacity, counters, contents.retain, contents.release)
        self.claims = ClaimChecker(self.flusher, counters, contents.retain, contents.release)
        self.neighbours = Neighbours(
            index, files, counters,
            suspect=lambda file: self.scrubber.suspect(file),  # noqa: PLW0108 - made next
        )  # fmt: skip
        self.scrubber = Scrubber(
            folder, index, files, small, self.flusher, contents, counters,
            refill=lambda content, within_s: self.reader.refill(content, within_s),  # noqa: PLW0108 - made by run
            busy=lambda: counters.hits + counters.misses, pace=scrub,
        )  # fmt: skip
        index.on_failed = files.on_failed = self.faults.note
        self.reader: Reader
        self._keeper: Keeper
        self._parts = parts
        self._counters = counters
        self._disposed = trio.Event()
        self._chores = trio.CancelScope()
        self._retired = False

    async def run(self, fetcher: Fetcher, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Everything that goes on while the shelf is in use. Nothing is walked before it has started.

        Returns when it was retired and replaced and nothing is open on it; then it is closed, too.
        """
        retain, release = self.contents.retain, self.contents.release
        async with trio.open_nursery() as nursery:
            self._keeper = keeper = Keeper(
                nursery, self.files, self.small, self.index, self.capacity, self.flusher, self.claims, self._counters,
                retain, release,
            )  # fmt: skip
            self.reader = reader = Reader(
                nursery, fetcher, keeper, self.small, self.index, self.flusher, self.claims, self.contents,
                self._counters,
            )  # fmt: skip
            refill = partial(reader.refill, priority=Priority.DEMAND)
            self.flusher.mend = Mender(nursery, refill, self._counters, retain, release).mend
            nursery.start_soon(self.claims.run)
            nursery.start_soon(self._close_files)
            self.files.on_disposed = self._close_soon
            task_status.started()
            with self._chores:
                await self._do_chores()
            self.flusher.retire()
            await trio.to_thread.run_sync(self._parts.close, abandon_on_cancel=True)
            self.let_go.set()
            await self.replaced.wait()
            while len(self.contents) or self.files.open_count:  # noqa: ASYNC110 - nothing hurries
                await trio.sleep(RETIRED_PAUSE_S)
            nursery.cancel_scope.cancel()

    async def _do_chores(self) -> None:
        """What needs a disk that works."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, self.files.make_room)
            nursery.start_soon(self.flusher.run)
            nursery.start_soon(self.flusher.run_touches)
            nursery.start_soon(self.capacity.run)
            nursery.start_soon(self.scrubber.run)
            nursery.start_soon(self.capacity.watch)
            nursery.start_soon(sweep.sweep, self.folder, self.index, self.files, self.small, self.flusher.forget)

    def retire(self) -> None:
        """The disk has failed: see the module."""
        self._retired = True
        self.capacity.shut()
        self._keeper.retire()
        self.contents.retire()
        self._chores.cancel()

    async def close(self) -> None:
        """Claim what is written, let the folder go. No fetch may be under way. Not to be cancelled."""
        self.claims.close()
        if not self._retired:
            await self.flusher.flush()
            await self.flusher.flush_touches()
        self.contents.clear()
        if not self._retired:
            await trio.to_thread.run_sync(self._parts.close)

    @property
    def is_retired(self) -> bool:
        """Whether its disk has failed."""
        return self._retired

    def opened(self, state: Content, digest: Digest, group: int = 0) -> None:
        """A state was opened once more, as a file of ``digest`` and of ``group``."""
        state.group = state.group or group
        if digest not in state.claims:
            state.claims.add(digest)
            self.claims.consider(state)
        if state.size:
            self.flusher.touch(state.key, group)

    def has(self, tenant: str, content: Digest) -> bool:
        """Whether something of a content is cached here, by one look-up in the index; False when that fails."""
        try:
            return self.index.has_now(tenant, content)
        except sqlite3.Error as error:
            self.index.failed(error)
            return False

    def percent(self, tenant: str, content: Digest) -> int:
        """How much of a content is cached, 0 … 100. From memory, or by one look-up in the index."""
        state = self.contents.get((tenant, content))
        if state is not None and not state.is_small and state.ready is None:  # else it is being looked up itself
            return 100 if state.all_present else state.present_bytes * 100 // state.size
        if self._retired:
            return 0
        try:
            return self.index.percent(tenant, content)
        except sqlite3.Error as error:
            self.index.failed(error)
            return 0

    def stats(self) -> FolderStats:
        """Numbers for people; from memory."""
        capacity, space = self.capacity, self.capacity.space
        return FolderStats(
            folder=str(self.folder),
            in_service=True,
            reason=None,
            used_bytes=capacity.used_bytes,
            size_bytes=capacity.size_bytes,
            bound_bytes=capacity.bound_bytes,
            objects=capacity.objects,
            disk_bytes=space.bytes if space else None,
            free_bytes=space.free_bytes if space else None,
            free_inodes=space.free_inodes if space else None,
            limits=capacity.limits.to_json(),
            set=sorted(self.overrides.values),
        )

    def _close_soon(self) -> None:
        self._disposed.set()

    async def _close_files(self) -> None:
        """Close descriptors in a thread: many at a time, for a thread costs more than a close. Ends when cancelled."""
        while True:
            await self._disposed.wait()
            self._disposed = trio.Event()
            await trio.sleep(CLOSE_PAUSE_S)
            await trio.to_thread.run_sync(self.files.close_disposed, limiter=self.contents.limiter)
