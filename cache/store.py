"""The cache: verified bytes on shelves, one a folder, and the handles on them.

State: the folders, the shelves that are in service, the fetcher and the counters.

Rules:
- Every owner, tenant and content id is opaque here. Two tenants never share a byte. A folder has one owner.
- The event loop touches neither disk nor network; the exceptions are ``open_now``, ``read_nowait``, ``percent``,
  ``CachedObject.backing``, and with several shelves the search for the one that has a content.
- A content lies on the shelf that ``placement.py`` says, but where another one has some of it, that one is used.
- A folder is 0700 and locked by one process; it may be dropped at any time, and is rebuilt when it is damaged.
- A folder whose disk fails is out of service until that works again (``service.py``); the others go on, and without
  any of them the sources do.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import trio

from cache import accounts, policies
from cache.admin import CacheAdmin
from cache.fetch import INFLIGHT_BYTES_MAX, RING_BYTES_MAX, Fetcher
from cache.handle import CachedObject
from cache.metrics import CacheMetrics, CacheStats, Counters
from cache.pace import PACE
from cache.placement import nearest
from cache.service import CacheFolder, DiskUnusable
from cache.sources.policy import ASKED_ONCE
from cache.trace import TRACE_NAME, Trace
from cache.verify import Verifier
from manifest.errors import Unavailable
from manifest.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client.registry import CollectorRegistry

    from cache.accounts import ShowStats
    from cache.clone import Found
    from cache.content import Content
    from cache.limits import FolderLimits
    from cache.owner import Owner
    from cache.pace import Pace
    from cache.queue import Priority
    from cache.shelf import Shelf
    from cache.sources.chain import Chain
    from cache.sources.policy import Policy
    from cache.sources.protocol import ObjectRef, Source
    from manifest.digest import Digest

logger = logging.getLogger(__name__)

_EMPTY_CONTENT = Recipe(b"").content


class CacheStore:
    """See the module's rules. Made by ``open``; all methods belong to the event loop.

    ``shelves`` are those in service, in the order of the folders.
    """

    def __init__(
        self,
        folders: Sequence[FolderLimits],
        policy: str,
        scrub: Pace,
        holder: str,
        owner: Owner,
        registry: CollectorRegistry | None,
    ) -> None:
        """Use ``open``."""
        self.counters = Counters()
        self.folders = [CacheFolder(*one, policy, scrub, holder, owner, self.counters) for one in folders]
        self.shelves: list[Shelf] = []
        self.changed = trio.Event()
        """Set when a folder has gone out of service or come back; then it is another one."""
        self.admin = CacheAdmin(lambda: self.shelves)
        self.verifier = Verifier(lambda: self.shelves)
        self.trace = Trace()
        self._trace_path = folders[0].folder / TRACE_NAME
        self._retired: list[Shelf] = []
        self._closed = False
        self._fetcher: Fetcher
        self._stopped = trio.Event()
        self._scope = trio.CancelScope()
        self._metrics = CacheMetrics(self.counters, self._gauges, self._shows, self._in_service, self._queue, registry)

    @classmethod
    async def open(
        cls,
        folders: Sequence[FolderLimits],
        *,
        policy: str = policies.DEFAULT,
        scrub: Pace = PACE,
        sources: Sequence[Source],
        asking: Policy = ASKED_ONCE,
        nursery: trio.Nursery,
        holder: str,
        owner: Owner,
        locks: Sequence[int] = (),
        registry: CollectorRegistry | None = None,
        inflight_bytes_max: int = INFLIGHT_BYTES_MAX,
        ring_bytes_max: int = RING_BYTES_MAX,
    ) -> Self:
        """The cache in ``folders``, which are made if need be.

        What was set of their limits while mounted wins over those given here (``limits.py``). ``policy`` says what is
        evicted first, a name of ``policies.POLICIES``. ``sources`` are asked in this order, in the way of ``asking``;
        the last one is the library's own store. ``holder`` is told to whoever finds a folder taken; ``owner`` is whose
        tenants they are.
        ``locks`` are a predecessor's ``lock_fds``, which the cache takes over: one that is of a folder here holds it,
        another one is closed. Work runs in ``nursery`` until ``close``. Nothing is walked before it returns. Raises
        Busy, and ConfigurationError for a folder that cannot be used, that is another owner's or that a newer damfs
        wrote. When a disk is at fault the cache does without that folder, if there is another one.
        """
        self = cls(folders, policy, scrub, holder, owner, registry)
        try:
            await self._open(list(locks))
        except BaseException:
            self._metrics.close()
            raise
        await nursery.start(self._run, sources, asking, inflight_bytes_max, ring_bytes_max)
        return self

    async def _open(self, locks: list[int]) -> None:
        """Open all folders; those that were opened are let go of when another one cannot be."""
        try:
            for i, folder in enumerate(self.folders):
                try:
                    await folder.open(locks)
                except DiskUnusable as error:
                    if not any(other.shelf for other in self.folders[:i]) and folder is self.folders[-1]:
                        raise
                    folder.unusable(error)
        except BaseException:
            with trio.CancelScope(shield=True):
                for folder in self.folders:
                    await folder.close()
            raise
        finally:
            for fd in locks:
                with suppress(OSError):
                    os.close(fd)
        disks = [shelf.folder.stat().st_dev for folder in self.folders if (shelf := folder.shelf)]
        if len(set(disks)) < len(disks):
            logger.warning("two cache folders are on one file system: that makes reads no faster, nor safer")

    @property
    def sources(self) -> Chain:
        """Where missing bytes come from."""
        return self._fetcher.sources

    @property
    def fetcher(self) -> Fetcher:
        """What fetches, to be looked at."""
        return self._fetcher

    def forbid(self, reason: str | None) -> None:
        """See ``Fetcher.forbid``."""
        self._fetcher.forbid(reason)

    def shelf_of(self, tenant: str, content: Digest) -> Shelf | None:
        """Where a content is open or cached, or would be kept; None while no folder can be used."""
        return self._shelf_of(tenant, content) if self.shelves or self._retired else None

    @property
    def lock_fds(self) -> list[int | None]:
        """The open file descriptions that hold the folders, for a successor (``open``'s ``locks``); None: not held.

        A folder stays taken for as long as anybody has a copy of its one open. They are open until ``close``, or until
        the folder is out of service (``changed``): copies must be closed then.
        """
        return [None if one.shelf is None or one.out_because else one.shelf.lock.fd for one in self.folders]

    async def close(self) -> None:
        """Stop, claim what is written, let the folders go. Open objects must not be used any more. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._stopped.wait()

    async def _run(
        self,
        sources: Sequence[Source],
        asking: Policy,
        inflight_bytes_max: int,
        ring_bytes_max: int,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Everything that runs while the cache is open, and the orderly end, whatever ended it."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._fetcher = Fetcher(
                        nursery, sources, self.counters, self._metrics, policy=asking, nearby=self._nearby,
                        inflight_bytes_max=inflight_bytes_max, ring_bytes_max=ring_bytes_max,
                    )  # fmt: skip
                    await trio.to_thread.run_sync(self.trace.load, self._trace_path)
                    for folder in self.folders:
                        folder.on_change = self._recount
                        await nursery.start(folder.run, nursery, self._fetcher)
                    nursery.start_soon(self.trace.run, self._trace_path)
                    task_status.started()
        finally:
            self._closed = True
            self._fetcher.close()
            with trio.CancelScope(shield=True):
                await self.trace.save(self._trace_path)
                for folder in self.folders:
                    await folder.close()
            self._metrics.close()
            self._stopped.set()

    async def _nearby(self, ref: ObjectRef) -> Found | None:
        """A chunk that a cached object has already, on whichever shelf."""
        for shelf in self.shelves:
            found = await shelf.neighbours.find(ref)
            if found is not None:
                return found
        return None

    def _recount(self) -> None:
        """A folder goes out of service, or comes back, or an old shelf of it is needed no more."""
        self.shelves = [one.shelf for one in self.folders if one.shelf is not None and one.out_because is None]
        self._retired = [shelf for one in self.folders for shelf in one.retired]
        self.admin.divide_quotas()
        self.changed.set()
        self.changed = trio.Event()

    async def open_object(
        self,
        tenant: str,
        content: Digest,
        size: int,
        digest: Digest,
        recipe: Recipe | None,
        *,
        path_hint: str = "",
        group: int = 0,
        is_read: bool = True,
    ) -> CachedObject:
        """A handle on a content of ``size`` bytes, claimed to have the whole-file ``digest``. Never the network.

        ``recipe`` None: it is an object of the library, fetched at the first read. ``path_hint`` names the file in
        log lines, ``group`` what it is used together with (a signed 64-bit key; 0: nothing), for the policy of
        eviction; what was opened without one at first gets it later. ``is_read`` False: it is only to be brought, and
        is no read in the sample of reads. Raises
        Unavailable when the cache is closed, and IntegrityError for a recipe of another size: two files of two
        publishers can name one content, and one of them lie about its size. Cancellation leaves nothing open.
        """
        shelf, state = await self.open_state(tenant, content, size, recipe, path_hint, group)
        return self._handle(shelf, state, digest, group, is_read=is_read)

    async def open_state(
        self, tenant: str, content: Digest, size: int, recipe: Recipe | None, path_hint: str, group: int
    ) -> tuple[Shelf, Content]:
        """The shelf for a content, and its state there, retained for the caller: what a handle is on."""
        if self._closed:
            raise Unavailable("the cache is closed")
        shelf = self._shelf_of(tenant, content)
        return shelf, await shelf.contents.open(tenant, content, size, recipe, path_hint, group)

    def open_now(
        self,
        tenant: str,
        content: Digest,
        size: int,
        digest: Digest,
        recipe: Recipe | None,
        *,
        path_hint: str = "",
        group: int = 0,
    ) -> CachedObject | None:
        """As ``open_object``, without waiting: from memory, or by one look-up in the index and opening one file.

        None where anything would have to be waited for, or is not as it should be: the caller awaits ``open_object``
        then, which mends it, or says what is the matter. Raises nothing.
        """
        if self._closed:
            return None
        shelf = self._shelf_of(tenant, content)
        state = shelf.contents.open_now(tenant, content, size, recipe, path_hint, group)
        return None if state is None else self._handle(shelf, state, digest, group)

    def _handle(
        self, shelf: Shelf, state: Content, digest: Digest, group: int, *, is_read: bool = True
    ) -> CachedObject:
        """A handle on a state that was retained for it; the sample learns of it, if it is for a read."""
        if state.size and is_read:
            here_bytes = None if state.is_small else state.present_bytes
            self.trace.note(*state.key, state.size, group, here_bytes=here_bytes, when_ms=shelf.index.clock.now_ms())
        shelf.opened(state, digest, group)
        return CachedObject(self, shelf, state, digest)

    def _shelf_of(self, tenant: str, content: Digest) -> Shelf:
        """Where a content is open or cached, or else is to be kept."""
        if len(self.shelves) == 1 and not self._retired:
            return self.shelves[0]
        key = (tenant, content)
        for shelf in self._retired:
            state = shelf.contents.get(key)
            if state is not None and state.lent:
                return shelf  # the kernel knows one file of a content
        if not self.shelves:
            return self._retired[-1]
        shelves = nearest(self.shelves, tenant, content)
        is_open = (shelf for shelf in shelves if key in shelf.contents)
        has_some = (shelf for shelf in shelves if len(shelves) > 1 and shelf.has(tenant, content))
        return next(is_open, None) or next(has_some, shelves[0])

    def percent(self, tenant: str, content: Digest) -> int:
        """How much of a content is cached, 0 … 100. From memory, or by one look-up in the index."""
        return 100 if content == _EMPTY_CONTENT else self._shelf_of(tenant, content).percent(tenant, content)

    @property
    def bound_bytes(self) -> int:
        """What may be held now, on all shelves in service."""
        return sum(shelf.capacity.bound_bytes for shelf in self.shelves)

    def queued(self, priority: Priority) -> int:
        """How many fetches of this priority wait for their turn."""
        return self._fetcher.queue.waiting(priority)

    def stats(self) -> CacheStats:
        """Numbers for people and scrapes; from memory."""
        c, folders = self.counters, [folder.stats() for folder in self.folders]
        return CacheStats(
            folder=folders[0].folder,
            used_bytes=sum(folder.used_bytes for folder in folders),
            size_bytes=sum(folder.size_bytes for folder in folders if folder.in_service),
            objects=sum(folder.objects for folder in folders),
            hits=c.hits,
            misses=c.misses,
            hit_bytes=c.hit_bytes.total(),
            miss_bytes=c.miss_bytes,
            evicted_bytes=c.evicted_bytes,
            verification_failures=c.verification_failures.total(),
            not_stored=c.not_stored.total(),
            disputed=c.disputed,
            open_objects=sum(len(shelf.contents) for shelf in (*self.shelves, *self._retired)),
            inflight=self._fetcher.inflight,
            dedup_download_bytes=c.dedup_bytes["download"],
            dedup_disk_bytes=c.dedup_bytes["disk"],
            scrubbed_bytes=c.scrubbed_bytes,
            scrub_bad=c.scrub_bad,
            passthrough_opens=c.passthrough_opens,
            folders=folders,
            shows=self._shows(),
        )

    def _shows(self) -> dict[str, ShowStats]:
        held = [shelf.capacity.held for shelf in self.shelves]
        return accounts.stats(held, self.counters.by_show, self.admin.shows)

    def _gauges(self) -> dict[str, float]:
        stats = self.stats()
        return {
            "used_bytes": stats.used_bytes,
            "size_bytes": stats.size_bytes,
            "bound_bytes": sum(folder.bound_bytes for folder in stats.folders),
            "objects": stats.objects,
            "open_objects": stats.open_objects,
            "fetches_in_flight": stats.inflight,
        }

    def _queue(self) -> dict[tuple[str, str], int]:
        return self._fetcher.queue.numbers()

    def _in_service(self) -> dict[str, bool]:
        return {str(folder.folder): folder.out_because is None for folder in self.folders}
