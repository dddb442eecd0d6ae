"""Service: a folder of the cache is in use for as long as its disk works, and is again when it works again.

State: the folder's present shelf, why it is out of service, and the mountpoint below which it lies.

Rules:
- A shelf that was taken out of service is never used again: the folder gets a new one, opened as at a start, which
  trusts nothing that was not committed. What is open on the old one is served from the sources (see ``shelf.py``).
- The folder's state is looked at every WATCH_S, and at once after an error; its disk is tried out after an error. One
  that does not answer within ANSWER_S has failed.
- Out of service everything is let go of, the lock too: the disk can be unmounted, mended, replaced. It is tried again
  after RETRY_S, then less and less often. A folder that was deleted is made anew, but not in place of a disk that is
  not mounted: that would fill another one.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from cache.folder import open_parts
from cache.health import is_fault, look
from cache.metrics import FolderStats
from cache.shelf import Shelf
from manifest.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cache.fetch import Fetcher
    from cache.folder import Parts
    from cache.limits import Limits
    from cache.metrics import Counters
    from cache.owner import Owner
    from cache.pace import Pace

logger = logging.getLogger(__name__)

WATCH_S = 5.0
ANSWER_S = 30.0
TRIED_S = 1.0
"""The disk is tried out no more often."""
RETRY_S, RETRY_S_MAX = 5.0, 60.0
PROVED_S = 600.0
"""After so long a time in service the next failure is a new one: it is retried after RETRY_S again."""


class DiskUnusable(ConfigurationError):
    """A folder cannot be used because of its disk."""


class CacheFolder:
    """See the module. ``shelf`` is what the folder is used through, or was; ``out_because`` None: it is in service.

    ``retired`` are the shelves that it had before, as long as something is open on them, and the last one as long as
    there is no other.
    """

    def __init__(
        self, folder: Path, configured: Limits, policy: str, scrub: Pace, holder: str, owner: Owner, counters: Counters
    ) -> None:
        self.folder = folder
        self.shelf: Shelf | None = None
        self.out_because: str | None = "it was not opened yet"
        self.retired: list[Shelf] = []
        self.on_change: Callable[[], None] = _nothing
        """Called whenever the folder goes out of service or comes back, and when a retired shelf is needed no more."""
        self._home: Path | None = None
        self._configured = configured
        self._policy = policy
        self._scrub = scrub
        self._holder = holder
        self._owner = owner
        self._counters = counters
        self._limiter = trio.CapacityLimiter(1)

    async def open(self, locks: list[int]) -> None:
        """Take it into service for the first time; ``locks`` as for ``open_parts``. Raises ConfigurationError."""
        self._set_up(await trio.to_thread.run_sync(self._open, locks, limiter=self._limiter))

    def unusable(self, error: DiskUnusable) -> None:
        """It could not be opened: it is tried again when ``run`` runs."""
        self._out(str(error))

    async def run(
        self, nursery: trio.Nursery, fetcher: Fetcher, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep it in service, and bring it back. Shelves run in ``nursery``."""
        pause_s = RETRY_S
        if self.shelf is not None:
            await self._begin(self.shelf, nursery, fetcher)
        task_status.started()
        while True:
            if self.shelf is not None and self.out_because is None:
                began = trio.current_time()
                self._retire(self.shelf, await self._watch(self.shelf))
                if trio.current_time() - began > PROVED_S:
                    pause_s = RETRY_S
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_S_MAX)
            await self._return(nursery, fetcher)

    async def close(self) -> None:
        """Let the folder go; ``run`` has ended. Not to be cancelled."""
        for shelf in self.retired:
            await shelf.close()
        if self.shelf is not None and self.shelf not in self.retired:
            await self.shelf.close()

    def stats(self) -> FolderStats:
        """Numbers for people and scrapes; from memory."""
        if self.shelf is not None and self.out_because is None:
            return self.shelf.stats()
        return FolderStats(
            folder=str(self.folder), in_service=False, reason=self.out_because, used_bytes=0,
            size_bytes=self._configured.size_bytes, bound_bytes=0, objects=0, disk_bytes=None, free_bytes=None,
            free_inodes=None, limits=self._configured.to_json(), set=[],
        )  # fmt: skip

    async def _begin(self, shelf: Shelf, nursery: trio.Nursery, fetcher: Fetcher) -> None:
        await nursery.start(self._run_shelf, shelf, fetcher)
        self.out_because = None  # not before: nobody may use a shelf that does not run
        self.on_change()

    async def _run_shelf(
        self, shelf: Shelf, fetcher: Fetcher, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await shelf.run(fetcher, task_status=task_status)
        self.retired.remove(shelf)
        self.on_change()

    async def _watch(self, shelf: Shelf) -> str:
        """Returns when the folder is not to be used any more: why."""
        faults = shelf.faults
        while True:
            with trio.move_on_after(WATCH_S):
                await faults.noted.wait()
            thoroughly = faults.noted.is_set()
            faults.clear()
            why: str | None = f"its disk does not answer within {ANSWER_S:g} s"
            with trio.move_on_after(ANSWER_S):
                why = await trio.to_thread.run_sync(
                    partial(look, self.folder, shelf.lock.fd, thoroughly=thoroughly), abandon_on_cancel=True
                )
            why = why or faults.verdict()
            if why:
                return why
            if thoroughly:
                await trio.sleep(TRIED_S)

    def _retire(self, shelf: Shelf, why: str) -> None:
        shelf.retire()
        self.retired.append(shelf)
        self._out(why)
        self.on_change()

    def _out(self, why: str) -> None:
        self.out_because = why
        logger.error(
            "the cache folder %s is out of service: %s. What it has is read from the sources; look after its disk: "
            "once that works the folder is used again, without a new mount", self.folder, why,
        )  # fmt: skip

    async def _return(self, nursery: trio.Nursery, fetcher: Fetcher) -> None:
        """Try to take it into service again."""
        former = self.shelf
        if former is not None:
            await former.let_go.wait()
        try:
            parts = await trio.to_thread.run_sync(partial(self._open, [], again=True), limiter=self._limiter)
        except ConfigurationError as error:
            self.out_because = str(error)
            return
        await self._begin(self._set_up(parts), nursery, fetcher)
        if former is not None:
            former.replaced.set()
        logger.info("the cache folder %s is in service again", self.folder)

    def _set_up(self, parts: Parts) -> Shelf:
        self.shelf = Shelf(self.folder, parts, self._configured, self._policy, self._scrub, self._counters)
        return self.shelf

    def _open(self, locks: list[int], *, again: bool = False) -> Parts:
        """In a thread: the folder's parts. Raises ConfigurationError, DiskUnusable when its disk is at fault."""
        if self._home is not None and not self._home.is_mount():
            raise ConfigurationError(
                f"nothing is mounted at {self._home}, where the disk of the cache folder {self.folder} was: mount it"
            )
        try:
            parts = open_parts(self.folder, self._holder, self._owner, locks, try_disk=again)
        except ConfigurationError as error:
            if is_fault(error.__cause__):
                raise DiskUnusable(str(error)) from error
            raise
        self._home = next(path for path in (self.folder, *self.folder.parents) if path.is_mount())
        return parts


def _nothing() -> None:
    pass
