"""One show of a mount: its replica, kept up with its log, and what readers see of it.

State: the replica that is followed (a ``manifest.show.Show``, one writer), the readers that the mount looks through,
the revision that is *served* (the kernel was told everything about it), how the last attempts went. One task (``run``)
does all the work; others ask for it and wait.

A replica that is found damaged, deleted or replaced is given up, and a new one is built from the log in its place. The
readers go on with the old file, whatever is left of it, until the new one has what is served; then they are replaced in
one step. Ids are in log order, so what the kernel knows stays true.

Invariant: ``served`` never goes back. It is at most the head of the replica that the readers belong to. A show is
attached to the file system only when its log was followed to the end once, or when it has a replica of an earlier
mount: never half-loaded. ``run`` ends by cancellation only, whatever an attempt met.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Protocol

import trio

from daemon.contact import back_off
from daemon.replica import Readers, close_all
from daemon.status import ShowStatus, Stalled
from manifest import schema
from manifest.errors import DamfsError, IntegrityError, Offline, ReplicaDamaged, Unavailable
from manifest.names import Revision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from daemon.contact import Contact
    from manifest.digest import Digest
    from manifest.follow import Progress
    from manifest.replica import ReplicaReader, RevisionInfo
    from manifest.show import Show

log = logging.getLogger(__name__)

SLICE_S_MIN = 5.0
SLICE_S_MAX = 120.0
"""An attempt gets so long; more each time it fails while the library answers, for a large changeset on a slow line."""
SETTLE_S = 30.0
CLOSE_S = 0.5
CLOCK_S = 3600.0
"""A revision that is dated so far ahead of this machine's clock is warned of."""
OFFLINE_PAUSE_S = 60.0
"""While the library does not answer a show waits to be woken, and looks for itself as seldom as this."""


class Served(Protocol):
    """What a show is shown through: the file system, and its notices to the kernel."""

    async def attach(self, show: str, reader: ReplicaReader, head: Revision, *, planner: ReplicaReader) -> None: ...

    async def replace(self, show: str, reader: ReplicaReader, *, planner: ReplicaReader) -> Sequence[ReplicaReader]: ...

    async def advance(self, show: str, head: Revision) -> int: ...

    async def settle(self, timeout_s: float) -> None: ...


class FollowedShow:
    """One show. ``open_show`` opens its replica (blocking, called in a thread)."""

    def __init__(
        self,
        name: str,
        *,
        open_show: Callable[[], Show],
        served_by: Served,
        contact: Contact,
        interval_s: float,
        threads: trio.CapacityLimiter,
    ) -> None:
        self.name = name
        self.served = Revision(0)
        self._told = Revision(0)
        """Nothing older is seen any more: behind ``served`` while the kernel is told what a predecessor left untold."""
        self.loaded = False
        self.error: str | None = None
        self._open_show = open_show
        self._served_by = served_by
        self._contact = contact
        self._interval_s = interval_s
        self._threads = threads
        self._show: Show | None = None
        self._damage: ReplicaDamaged | None = None
        self._readers: Readers | None = None
        self._served_digest: Digest | None = None
        self._warned_of_ns = 0
        self._working = threading.Lock()
        self._stalled: Stalled | None = None
        self._synced_at: float | None = None
        self._wanted = 0
        self._done = 0
        self._failures = 0
        self._failed_attempts = 0
        self._attempts = 0
        self._wake = trio.Event()
        self._news = trio.Event()

    # -- what others ask

    def wake(self) -> None:
        """Look for new revisions now."""
        self._wanted += 1
        self._wake.set()

    async def load(self, timeout_s: float) -> None:
        """Wait until the show is attached. Raises Unavailable when it cannot be loaded now or not in time."""
        attempts = self._attempts
        with trio.move_on_after(timeout_s):
            while not self.loaded:
                if self._attempts > attempts and self.error:
                    raise Unavailable(f"show {self.name} cannot be loaded: {self.error}")
                if self._failures:
                    self._wake.set()
                await self._news.wait()
        if not self.loaded:
            raise Unavailable(f"show {self.name} was not loaded within {timeout_s:g} s; it goes on loading")

    async def sync(self, at_least: int | None, timeout_s: float) -> Revision:
        """Have the log read now; the revision that is served then.

        Raises Unavailable when the log cannot be read, or ``at_least`` is not served within ``timeout_s``; without
        ``at_least`` also what a stall is (``Stalled.as_error``): an entry that is there and is not served.
        """
        if at_least is not None and self._told >= at_least and self.loaded:
            return self.served
        self.wake()
        wanted, failures = self._wanted, 0
        with trio.move_on_after(timeout_s):
            while True:
                if self._done >= wanted:
                    if at_least is None and self._stalled is not None:
                        raise self._stalled.as_error(f"show {self.name} stays at revision {self.served}")
                    if self.loaded and self._failures == 0 and (at_least is None or self._told >= at_least):
                        return self.served
                    if at_least is None:
                        raise Unavailable(f"show {self.name} stays at revision {self.served}: {self.error}")
                    if self._contact.shut_because is not None:
                        raise Offline(f"show {self.name} stays at revision {self.served}: {self.error}")
                    failures += 1
                    await self._pause_before_asking_again(failures)
                    self.wake()
                    wanted = self._wanted
                await self._news.wait()
        wish = "was not synced" if at_least is None else f"is at revision {self.served}, not {at_least},"
        if at_least is not None and self.served >= at_least:
            wish = f"is at revision {self.served}, and the kernel has not taken all notices of it"
        why = f": {self.error}" if self.error else ""
        raise Unavailable(f"show {self.name} {wish} after {round(timeout_s, 1):g} s{why}")

    def status(self, slot: int | None) -> ShowStatus:
        """For ``GET /v1/status``; from memory."""
        age = None if self._synced_at is None else time.monotonic() - self._synced_at
        return ShowStatus(
            revision=self.served if self.loaded else None,
            slot=slot,
            loaded=self.loaded,
            stalled=self._stalled,
            last_sync_age_s=None if age is None else round(age, 3),
            error=self.error,
            failed_attempts=self._failed_attempts,
        )

    # -- the work

    async def run(self) -> None:
        """Open the replica and follow the log for ever. Cancellation leaves a thread to end by its own time-outs."""
        while True:
            wanted, self._wake = self._wanted, trio.Event()
            again = False
            try:
                again = await self._attempt()
            except Offline as error:
                self._paused(str(error))
            except (DamfsError, sqlite3.Error, OSError) as error:
                self._failed(str(error))
            except MemoryError:
                self._failed("there is no memory for it")
            except Exception as error:  # noqa: BLE001  told as the bug that it is; nobody else would go on
                self._met_bug(error)
            self._attempts += 1
            if not again:
                self._done = wanted
            self._tell()
            if not again:
                with trio.move_on_after(self._pause_s()):
                    await self._wake.wait()

    def close(self) -> None:
        """Close the replica, once nobody reads any more. Blocking.

        A thread that an abandoned attempt has left behind keeps it: SQLite is safe when the process ends.
        """
        if not self._working.acquire(timeout=CLOSE_S):
            log.info("show %s: its replica is left open, a request to the library still runs", self.name)
            return
        if self._readers is not None:
            self._readers.close()
            self._readers = None
        if self._show is not None:
            self._show.close()
            self._show = None

    async def _attempt(self) -> bool:
        """One look at the log; whether there is more to be read at once."""
        try:
            if self._damage is not None:
                await self._give_up_replica(self._damage)
            return await self._look()
        except ReplicaDamaged as error:
            self._damage = error
            raise
        except sqlite3.Error as error:
            meant = schema.failure(error, self._show.path) if self._show else error
            if isinstance(meant, ReplicaDamaged):
                self._damage = meant
            raise meant from error

    async def _look(self) -> bool:
        if self._show is None:
            self._show = await trio.to_thread.run_sync(self._open_show, limiter=self._threads, abandon_on_cancel=True)
            if self._show.writer.head > 0 and not self.loaded:
                await self._serve(self._show.writer.head)  # what an earlier mount knew: no network before it is shown
        show = self._show
        if self._readers is not None and self._readers.show is show:
            self._readers.reader.revision(self.served)  # raises when the file does not even begin as it should
        if self._contact.shut_because is not None:
            raise Offline(f"the library is not asked: {self._contact.shut_because}")
        progress = await self._advance(show)
        is_behind = False
        if self._readers is not None and self._readers.show is not show:
            is_behind = not await self._look_into(show, progress)
        self._take(progress)
        if not is_behind and (self.loaded or progress.complete or (progress.stalled and progress.head > 0)):
            await self._serve(progress.head)
        return progress.reachable and not progress.complete and progress.applied > 0 and progress.stalled is None

    def _damaged(self, error: ReplicaDamaged) -> None:
        """A look-up in the mount has found the replica damaged."""
        if self._damage is None and self._readers is not None and self._readers.show is self._show:
            self._damage = error
            self._wake.set()

    async def _give_up_replica(self, error: ReplicaDamaged) -> None:
        """Close the replica that is followed, for a new one. The readers keep the old file."""

        def give_up(show: Show) -> None:
            with self._working:
                show.drop(error, time.monotonic() + SLICE_S_MIN)
                show.close()

        show = self._show
        if show is not None:
            await trio.to_thread.run_sync(give_up, show, limiter=self._threads)
        self._show = self._damage = None
        log.warning("show %s: its replica is built anew, revision %d is served on: %s", self.name, self.served, error)

    async def _advance(self, show: Show) -> Progress:
        patience_s = min(SLICE_S_MAX, SLICE_S_MIN * 2 ** min(self._failures, 8))
        thorough = self._wanted > self._done  # somebody asks: a missing number is looked behind

        def advance() -> Progress:
            with self._working:
                return show.follower.advance(deadline=time.monotonic() + patience_s, thorough=thorough)

        return await trio.to_thread.run_sync(advance, limiter=self._threads, abandon_on_cancel=True)

    def _take(self, progress: Progress) -> None:
        stall = progress.stalled
        self._stalled = Stalled(stall.seq, stall.reason, stall.kind) if stall else None
        if not progress.reachable and self._contact.shut_because is not None:
            self._paused(f"the library is not asked: {self._contact.shut_because}")
            return
        if not progress.reachable:
            self._failed("the library cannot be reached")
            return
        if not (progress.complete or progress.applied or stall):
            self._failed("the library has not answered in time")
            return
        if progress.complete or progress.applied:
            self._contact.answered()
        self._failures = 0
        if progress.complete or stall:
            self._synced_at = time.monotonic()
        reason = stall.reason if stall else None
        if reason and reason != self.error:
            log.warning("show %s: %s", self.name, reason)
        self.error = reason

    def _failed(self, reason: str) -> None:
        if reason != self.error:
            log.warning("show %s: %s", self.name, reason)
        self.error = reason
        self._failures += 1
        self._failed_attempts += 1
        self._contact.nudge()

    def _paused(self, reason: str) -> None:
        """Nothing is to be asked now: it is as after a failure, but for the complaint."""
        self.error = reason
        self._failures = max(1, self._failures)

    def _met_bug(self, error: Exception) -> None:
        reason = f"a bug of damfs: {error!r}; the log has the traceback"
        if reason != self.error:
            log.error("show %s cannot be followed", self.name, exc_info=error)
        self._failed(reason)

    async def _serve(self, head: Revision) -> None:
        """Let readers see ``head``, and return when the kernel was told."""
        assert self._show is not None
        if not self.loaded:
            await self._attach(self._show, head)
        elif head > self.served:
            notices = await self._served_by.advance(self.name, head)
            await self._served_by.settle(SETTLE_S)
            self._told = head
            log.info("show %s: serving revision %d (%d notices)", self.name, head, notices)
        if head > self.served or self._served_digest is None:
            assert self._readers is not None
            info = self._readers.reader.revision(head)
            self._served_digest = info.entry_digest if info else None
            if info is not None:
                self._look_at_time(info)
        self.served = head
        self._tell()
        if self._told < head:  # not sooner: a look-up that waits for the show may be what the notices wait for
            await self._served_by.settle(SETTLE_S)
            self._told = head

    def _look_at_time(self, info: RevisionInfo) -> None:
        """Warn of a publisher whose clock is fast (or of ours, which is slow); it is not corrected, see SEMANTICS."""
        ahead_s = (info.time_ns - time.time_ns()) / 1e9
        if ahead_s > CLOCK_S and info.time_ns > self._warned_of_ns:
            self._warned_of_ns = info.time_ns
            log.warning(
                "show %s: revision %d (by %s), or one before it, is dated %.1f hours ahead of this machine's clock; "
                "%s@<time> stays behind it until then, use %s@<revision>",
                self.name, info.seq, info.author, ahead_s / 3600, self.name, self.name,
            )  # fmt: skip

    async def _attach(self, show: Show, head: Revision) -> None:
        readers = await trio.to_thread.run_sync(Readers.open, show, self._damaged, limiter=self._threads)
        try:
            await self._served_by.attach(self.name, readers.reader, head, planner=readers.planner)
        except Exception:
            readers.close()
            raise
        self._readers = readers
        self.loaded = True
        log.info("show %s: serving revision %d", self.name, head)

    async def _look_into(self, show: Show, progress: Progress) -> bool:
        """Have readers look into a replica that was built anew, once it has what is served; whether it has.

        Raises IntegrityError when it is of another log than the one that is served.
        """
        served, digest = self.served, self._served_digest
        if progress.head < served and not progress.complete:
            return False

        def open_readers() -> Readers:
            readers = Readers.open(show, self._damaged)
            try:
                readers.agree_that(served, digest)
            except BaseException:
                readers.close()
                raise
            return readers

        try:
            readers = await trio.to_thread.run_sync(open_readers, limiter=self._threads)
        except IntegrityError as error:
            self._stalled = Stalled(served, str(error), "rewritten")
            raise
        with trio.CancelScope(shield=True):  # the readers that are in use are ours to close, whichever they are
            before = await self._served_by.replace(self.name, readers.reader, planner=readers.planner)
            self._readers = readers
            await trio.to_thread.run_sync(close_all, before, limiter=self._threads)
        log.warning("show %s: revision %d is served from the replica that was built anew", self.name, served)
        return True

    def _pause_s(self) -> float:
        if not self._failures:
            return self._interval_s
        return OFFLINE_PAUSE_S if self._contact.offline else back_off(self._failures)

    async def _pause_before_asking_again(self, failures: int) -> None:
        news = self._news
        with trio.move_on_after(
            min(self._interval_s, 0.1 * 2 ** min(failures, 4)) if not self._failures else back_off(1)
        ):
            await news.wait()

    def _tell(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()
