"""What lies at a place of a mounted show, for the control API: the files there, in batches, as the mount shows them.

State: none beside a limiter. Each question opens a reader of its own on the show's replica, in a thread, so that
neither the mount's look-ups nor its turns wait for it.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import trio

from manifest.errors import NotFound
from manifest.links import follow
from manifest.names import At, Revision, check_path, join, parse_at
from manifest.replica import Kind, Replica

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

    from daemon.sync import Sync
    from manifest.recipe import Recipe
    from manifest.replica import RevisionInfo, Row

T = TypeVar("T")

THREADS = 2
BATCH = 512


@dataclass(frozen=True, slots=True)
class Place:
    """A path without links in a show as of a revision, and what lies there."""

    show: str
    revision: Revision
    path: str
    row: Row
    _reader: Replica
    _walk: Iterator[tuple[str, Row]]
    _limiter: trio.CapacityLimiter

    async def batches(self) -> AsyncIterator[list[tuple[str, Row]]]:
        """(path relative to this one, row) of everything below, or of the file itself by its own name; at most BATCH.

        Sorted, folders before what is in them.
        """
        while batch := await trio.to_thread.run_sync(list, islice(self._walk, BATCH), limiter=self._limiter):
            yield batch

    async def names(self, after: str = "") -> AsyncGenerator[list[Row], None]:
        """What lies in this folder behind ``after``, sorted by name, at most BATCH at a time; nothing that lies below.

        To be closed when it is left before its end.
        """
        while batch := await trio.to_thread.run_sync(self._list, after, limiter=self._limiter):
            yield batch
            after = batch[-1].name

    def _list(self, after: str) -> list[Row]:
        return self._reader.list(self.row.node, self.revision, after=after, limit=BATCH)

    async def about(self, revision: int) -> RevisionInfo | None:
        """Who published a revision of the show, and when; None for revision 0."""
        return await trio.to_thread.run_sync(self._reader.revision, revision, limiter=self._limiter)

    async def recipe(self, content: bytes) -> Recipe | None:
        """The recipe of a content; None when it is an object of its own."""
        return await trio.to_thread.run_sync(self._reader.recipe, content, limiter=self._limiter)

    async def is_as_of(self, revision: int, path: str) -> bool:
        """Whether the same lay at ``path``, links followed, as of an earlier revision."""
        return path == self.path and await trio.to_thread.run_sync(self._is_as_of, revision, limiter=self._limiter)

    def _is_as_of(self, revision: int) -> bool:
        return next(self._reader.changes(revision, self.revision, self.path), None) is None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A show as of a revision, for questions that take longer than one look-up."""

    show: str
    revision: Revision
    reader: Replica
    _limiter: trio.CapacityLimiter

    async def ask(self, question: Callable[[], T]) -> T:
        """Have a question to ``reader`` answered in a thread; raises what it raises."""
        return await trio.to_thread.run_sync(question, limiter=self._limiter)


class Places:
    """Where the shows of a mount are looked into."""

    def __init__(self, sync: Sync, *, loads: bool = True) -> None:
        """``loads``: a show that nobody has used yet is loaded, which may need the network; else it is Unavailable."""
        self._sync = sync
        self._loads = loads
        self._limiter = trio.CapacityLimiter(THREADS)

    @asynccontextmanager
    async def at(
        self,
        show: str,
        at: str | None,
        path: str,
        enter: Callable[[str, Row], None] = lambda path, folder: None,  # noqa: ARG005
    ) -> AsyncIterator[Place]:
        """What is at ``path`` of a show, links followed; ``at``: a revision or a time, None: what is served now.

        ``enter``: see ``manifest.links.follow``; it is called in a thread.
        Raises NotFound, UsageError for a revision that is none, FormatError for a path that is none, Unavailable.
        """
        file, served = await self._sync.replica(show) if self._loads else self._sync.loaded(show)
        reader = await trio.to_thread.run_sync(Replica.open_reader, file, limiter=self._limiter)
        try:
            yield await trio.to_thread.run_sync(
                self._find, reader, show, at, path, served, enter, limiter=self._limiter
            )
        finally:
            reader.close()

    def _find(
        self,
        reader: Replica,
        show: str,
        at: str | None,
        path: str,
        served: Revision,
        enter: Callable[[str, Row], None],
    ) -> Place:
        revision = _revision(reader, show, at, served)
        found, row = follow(reader, check_path(path) if path else "", revision, last=True, enter=enter)
        return Place(show, revision, found, row, reader, _below(reader, found, row, revision), self._limiter)

    @asynccontextmanager
    async def snapshot(self, show: str, at: str | None) -> AsyncIterator[Snapshot]:
        """A show as of a revision or a time; None: as it is served now. Raises NotFound, UsageError, Unavailable."""
        file, served = await self._sync.replica(show)
        reader = await trio.to_thread.run_sync(Replica.open_reader, file, limiter=self._limiter)
        try:
            revision = await trio.to_thread.run_sync(_revision, reader, show, at, served, limiter=self._limiter)
            yield Snapshot(show, revision, reader, self._limiter)
        finally:
            reader.close()


def _revision(reader: Replica, show: str, at: str | None, served: Revision) -> Revision:
    wanted = served if at is None else parse_at(at)
    revision = reader.at_time(wanted.time_ns) if isinstance(wanted, At) else Revision(wanted)
    if revision > served:
        raise NotFound(f"{show} has no revision {revision}: the newest is {served}")
    return revision


def _below(reader: Replica, path: str, row: Row, revision: Revision) -> Iterator[tuple[str, Row]]:
    if row.kind != Kind.FOLDER:
        yield row.name, row
        return
    start = len(join(path, ""))
    for below, found in reader.walk(path, revision):
        yield below[start:], found
