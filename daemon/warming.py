"""Warming: the first open in a version folder that was published with a trace begins the prefetch of it.

State: which folders were looked at, and the few that wait to be. Only with ``cache.prefetch_traces``.

Rules: an open waits for nothing here. A folder is looked at once, for as long as it is remembered; when too many come
at a time some are looked at later, at their next open. What cannot be had is told in the log and does no harm.
"""

from __future__ import annotations

import logging
import sqlite3
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from daemon.recorded import TRACE_NAME
from daemon.wants import Want
from manifest.errors import DamfsError
from manifest.names import join, split, version_folders
from manifest.replica import Kind

if TYPE_CHECKING:
    from daemon.places import Places
    from daemon.prefetch import Prefetch
    from manifest.replica import Row
    from vfs.views import ShowView

log = logging.getLogger(__name__)

KeyT = TypeVar("KeyT")

WAITING_MAX = 64
REMEMBERED_MAX = 10_000


class Warming:
    """See the module. Belongs to the event loop."""

    def __init__(self, prefetch: Prefetch, places: Places) -> None:
        self._prefetch = prefetch
        self._places = places
        self._seen: _Lately[tuple[str, int]] = _Lately()
        self._begun: _Lately[tuple[str, str]] = _Lately()
        self._send, self._receive = trio.open_memory_channel["tuple[str, Row]"](WAITING_MAX)

    def opened(self, view: ShowView, row: Row) -> None:
        """A file is opened."""
        key = view.show, row.parent
        if key in self._seen:
            return
        try:
            self._send.send_nowait((view.show, row))
        except trio.WouldBlock:
            return
        self._seen.add(key)

    async def run(self) -> None:
        """Look at folders until cancelled."""
        async for show, row in self._receive:
            try:
                await self._look(show, row)
            except (DamfsError, sqlite3.Error, OSError) as error:
                log.warning("%s: what %s was published with is not prefetched: %s", show, row.name, error)
            except Exception:  # warming is no reason to end the mount
                log.exception("%s: what %s was published with is not prefetched, for a bug", show, row.name)

    async def _look(self, show: str, row: Row) -> None:
        revision = str(row.since)
        async with self._places.snapshot(show, revision) as snapshot:

            def find() -> list[str]:
                folder = split(snapshot.reader.path_of(row, row.since))[0]
                versions = version_folders(folder) if folder else []
                traces = ((one, snapshot.reader.resolve(join(one, TRACE_NAME), row.since)) for one in versions)
                return [one for one, trace in traces if trace is not None and trace.kind == Kind.FILE]

            found = await snapshot.ask(find)
        for folder in found:
            if (show, folder) not in self._begun:
                self._begun.add((show, folder))
                job = await self._prefetch.add([Want(show, revision, folder, traced=True)], f"trace of {show}:{folder}")
                log.info("%s:%s is opened, and was published with a trace: job %d", show, folder, job["id"])


class _Lately(Generic[KeyT]):
    """What was met lately; the oldest is forgotten."""

    def __init__(self) -> None:
        self._known: dict[KeyT, None] = {}

    def __contains__(self, key: KeyT) -> bool:
        return key in self._known

    def add(self, key: KeyT) -> None:
        if len(self._known) >= REMEMBERED_MAX:
            del self._known[next(iter(self._known))]
        self._known[key] = None
