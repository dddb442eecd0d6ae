"""The shows of a mount: which there are, which are loaded, and the file system's way to ask for them (ShowLoader).

State: the known shows (remembered on disk for a start without the library; each has a slot before anybody can see it)
and a ``FollowedShow`` for each that is loaded or loading. Tasks run in the nursery that is handed in. Work that blocks
runs in threads under one limiter of its own, so that a library that is slow holds up nobody but the sync.
"""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect
from functools import partial
from typing import TYPE_CHECKING

import trio

from daemon.contact import Contact
from daemon.follow import FollowedShow, Served
from daemon.status import ShowStatus
from manifest.errors import DamfsError, NotFound, Offline, Unavailable
from manifest.log import Log
from manifest.show import Show, read_ahead
from manifest.way import CENTRAL, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from daemon.remembered import Remembered
    from manifest.identity import Identity
    from manifest.library import Library
    from manifest.names import Revision
    from manifest.replica import ReplicaReader
    from manifest.trust import Verifier
    from vfs.filesystem import Filesystem
    from vfs.inodes import Slots

log = logging.getLogger(__name__)

THREADS = 8
FIRST_LOAD_S = 30.0
"""The first look-up of a show waits so long for it; it goes on loading behind that."""
EAGER_ENTRIES_MAX = 1000
"""A show that nobody has used yet is loaded in the background when its log has at most so many entries."""
ASK_S = 10.0
CLOSE_S = 5.0
AHEAD = 4
"""Shows loaded at the same time ahead of a scan of the root, and in the background after the start."""
SCAN_S = 5.0
"""Look-ups of shows that are not loaded, one after the other in their order and no further apart, are a scan."""
NOT_LOADED = partial(
    ShowStatus, revision=None, loaded=False, stalled=None, last_sync_age_s=None, error=None, failed_attempts=0
)


class _ServedByFilesystem:
    """Hands a show to the file system; ``settle`` waits for the notices."""

    def __init__(self, filesystem: Filesystem) -> None:
        self._filesystem = filesystem

    async def attach(self, show: str, reader: ReplicaReader, head: Revision, *, planner: ReplicaReader) -> None:
        await self._filesystem.attach(show, reader, head, planner=planner)

    async def replace(self, show: str, reader: ReplicaReader, *, planner: ReplicaReader) -> Sequence[ReplicaReader]:
        return await self._filesystem.replace_readers(show, reader, planner=planner)

    async def advance(self, show: str, head: Revision) -> int:
        return await self._filesystem.advance(show, head)

    async def settle(self, timeout_s: float) -> None:
        if self._filesystem.notifier is not None:
            await self._filesystem.notifier.settle(timeout_s)


class Sync:
    """Implements ``vfs.loading.ShowLoader``. ``serve_through`` must be called before anything is loaded."""

    def __init__(
        self,
        library: Library,
        identity: Identity,
        verifier: Verifier,
        remembered: Remembered,
        slots: Slots,
        *,
        interval_s: float,
        nursery: trio.Nursery,
        on_return: Callable[[], None],
        on_silence: Callable[[str], None] = lambda _: None,
        way: Way = CENTRAL,
    ) -> None:
        """``on_return`` is called when the library answers again, before anybody can see that it does.

        ``on_silence`` is given the reason each time that it does not. ``way``: a cache that is asked first for what is
        followed.
        """
        self._library = library
        self.way = way
        self._identity = identity
        self._verifier = verifier
        self._remembered = remembered
        self._slots = slots
        self._interval_s = interval_s
        self._nursery = nursery
        self._on_return = on_return
        self._threads = trio.CapacityLimiter(THREADS)
        self._filesystem: Filesystem | None = None
        self._served_by: Served | None = None
        self._known: list[str] = []
        self._shows: dict[str, FollowedShow] = {}
        self._scanned = ("", -math.inf)
        self.contact = Contact(
            library,
            pace_s=interval_s,
            threads=trio.CapacityLimiter(1),
            on_shows=self._shows_listed,
            on_return=self._returned,
            on_silence=on_silence,
            way=way,
        )

    def serve_through(self, filesystem: Filesystem) -> None:
        """The file system that shows are attached to."""
        self._filesystem = filesystem
        self._served_by = _ServedByFilesystem(filesystem)

    async def begin(self, shows: list[str], *, offline_because: str | None) -> None:
        """Know these shows, and whether the library was reached. Before the mount."""
        self.contact.begin(offline_because=offline_because)
        await self._know(shows)

    def start(self) -> None:
        """Begin to listen to the library, and to load what is small. After the mount is ready."""
        self._nursery.start_soon(self.contact.run, name="contact")
        self._nursery.start_soon(self._load_eagerly, name="load small shows")

    # -- ShowLoader

    async def load(self, show: str) -> bool:
        """See ``ShowLoader.load``. An unknown name costs no request: the next listing will know it."""
        if show not in self._known:
            self.contact.glance()
            return False
        if self._is_scan(show):
            place = bisect(self._known, show)
            for coming in self._known[place : place + AHEAD]:
                self._follow(coming)
        try:
            await self._follow(show).load(FIRST_LOAD_S)
        finally:
            self._scanned = (show, trio.current_time())
        return True

    def _is_scan(self, show: str) -> bool:
        """Whether somebody looks at one show after the other, as ``ls -l`` of the root does: those behind come next."""
        before, at = self._scanned
        distance = bisect(self._known, show) - bisect(self._known, before)
        return 0 < distance <= AHEAD + 1 and trio.current_time() - at < SCAN_S

    async def reach(self, show: str, revision: Revision, timeout_s: float) -> None:
        followed = self._shows.get(show)
        if followed is None or self.contact.shut_because is not None:
            return
        try:
            await followed.sync(revision, timeout_s)
        except Unavailable as error:
            log.debug("%s", error)

    def known_shows(self) -> list[str]:
        """See ``ShowLoader.known_shows``."""
        return self._known

    # -- the control API

    async def sync(self, show: str, at_least: int | None, timeout_s: float) -> Revision:
        """See ``FollowedShow.sync``. Raises NotFound when the library has no such show, and Offline at once."""
        started = trio.current_time()
        if self.contact.shut_because is not None:
            served = self.served(show)
            if served is not None and at_least is not None and served >= at_least:
                return served
            where = "is not loaded" if served is None else f"stays at revision {served}"
            raise Offline(f"show {show} {where}: {self.contact.shut_because}")
        if show not in self._known:
            await self.contact.ask(min(timeout_s, ASK_S))
        if show not in self._known:
            if self.contact.offline:
                raise Unavailable(f"whether there is a show {show} is not known: {self.contact.reason}")
            raise NotFound(f"{self._library.url} has no show {show}: it has {', '.join(self._known) or 'none yet'}")
        followed = self._follow(show)
        return await followed.sync(at_least, max(0.0, timeout_s - (trio.current_time() - started)))

    @property
    def folder(self) -> Path:
        """Where what is known of this library lies on this machine."""
        return self._remembered.library_folder(self._identity)

    def served(self, show: str) -> Revision | None:
        """The revision of a show that the mount shows; None while it is not loaded."""
        followed = self._shows.get(show)
        return None if followed is None else followed.served

    async def replica(self, show: str) -> tuple[Path, Revision]:
        """Where the replica of a show lies, and the revision that is served. Raises NotFound, Unavailable."""
        if not await self.load(show):
            raise NotFound(f"the mount has no show {show}: it has {', '.join(self._known) or 'none yet'}")
        return self.folder / f"{show}.db", self._shows[show].served

    def loaded(self, show: str) -> tuple[Path, Revision]:
        """As ``replica``, without loading it. Raises NotFound, and Unavailable when the show is not loaded."""
        followed = self._shows.get(show)
        if followed is not None and followed.loaded:
            return self.folder / f"{show}.db", followed.served
        if show not in self._known:
            raise NotFound(f"the mount has no show {show}: it has {', '.join(self._known) or 'none yet'}")
        raise Unavailable(f"the show {show} is not loaded here yet: nobody has used it; look into it, then ask again")

    def status(self) -> dict[str, ShowStatus]:
        """All known shows, those that are not loaded too; from memory."""
        found = {}
        for show in self._known:
            followed, slot = self._shows.get(show), self._slots.get(show)
            found[show] = NOT_LOADED(slot=slot) if followed is None else followed.status(slot)
        return found

    async def close(self) -> None:
        """Close the replicas, once the nursery's tasks are cancelled. A thread that still writes is left to it."""
        with trio.move_on_after(CLOSE_S, shield=True):
            await trio.to_thread.run_sync(self._close, abandon_on_cancel=True)

    # -- inside

    def _close(self) -> None:
        end = time.monotonic() + CLOSE_S
        for followed in self._shows.values():
            if time.monotonic() > end:
                return
            try:
                followed.close()
            except Exception as error:  # noqa: BLE001  a replica is safe however it is left: the rest is closed too
                log.warning("show %s: its replica was not closed: %s", followed.name, error)

    def _follow(self, show: str) -> FollowedShow:
        followed = self._shows.get(show)
        if followed is None:
            assert self._served_by is not None, "serve_through comes first"
            followed = self._shows[show] = FollowedShow(
                show,
                open_show=lambda: self._open(show),
                served_by=self._served_by,
                contact=self.contact,
                interval_s=self._interval_s,
                threads=self._threads,
            )
            self._nursery.start_soon(followed.run, name=f"follow {show}")
        return followed

    def _open(self, show: str) -> Show:
        """Open a replica. What is kept beside it for later mounts is written again, should it be gone too."""
        read_ahead(self._remembered.library_folder(self._identity) / f"{show}.db")
        opened = Show.open(self._library, self._identity, self._verifier, show, self._remembered.folder, way=self.way)
        known = self._known
        self._slots.assign(known)
        self._remembered.remember_identity(self._identity)
        if self._remembered.shows(self._identity) != sorted(known):
            self._remembered.remember_shows(self._identity, known)
        return opened

    def _returned(self) -> None:
        self._on_return()
        self.wake()

    def wake(self) -> None:
        """Have every show look at its log now."""
        for followed in self._shows.values():
            followed.wake()

    async def _shows_listed(self, shows: list[str]) -> None:
        # A show that is gone from the library stays known for as long as it is mounted: its readers go on.
        if not set(shows) <= set(self._known):
            try:
                await self._know(sorted({*shows, *self._known}))
            except DamfsError as error:
                log.error("the shows %s cannot be shown: %s", ", ".join(sorted(set(shows) - set(self._known))), error)
                return
            if self._filesystem is not None:
                await self._filesystem.shows_changed()

    async def _know(self, shows: list[str]) -> None:
        def remember() -> None:
            self._slots.assign(shows)
            self._remembered.remember_shows(self._identity, shows)

        await trio.to_thread.run_sync(remember, limiter=self._threads)
        self._known = shows

    async def _load_eagerly(self) -> None:
        """Load the shows that are cheap to have, a few at a time: with a replica here, or with a short log."""
        room = trio.CapacityLimiter(AHEAD)
        async with trio.open_nursery() as nursery:
            for show in list(self._known):
                nursery.start_soon(self._load_if_cheap, show, room)

    async def _load_if_cheap(self, show: str, room: trio.CapacityLimiter) -> None:
        async with room:
            if show in self._shows:
                return
            try:
                if await trio.to_thread.run_sync(self._is_cheap, show, limiter=self._threads, abandon_on_cancel=True):
                    await self._follow(show).load(FIRST_LOAD_S)
            except (DamfsError, OSError) as error:
                log.debug("show %s is not loaded before its first use: %s", show, error)

    def _is_cheap(self, show: str) -> bool:
        if (self._remembered.library_folder(self._identity) / f"{show}.db").exists():
            return True
        if self.contact.shut_because is not None:
            return False
        return Log(self._library, show, self.way).newest_listed(0, timeout_s=ASK_S) <= EAGER_ENTRIES_MAX
