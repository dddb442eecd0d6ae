"""Bringing what a job wants: which files these are, what is missing of them, and having it fetched.

State: none beside what is under way. Rules:
- Files are looked up in batches, so that a job of a whole show costs no more memory than one of a plate.
- What is here costs one look at the index, and nothing of a source.
- PARALLEL files are brought at a time, each in steps of STEP_BYTES; a reader that waits for a chunk that is on its way
  promotes it (cache/queue.py). One file that cannot be had stops no other, but after FAULTS_MAX in a row that a source
  did not answer for the rest is left for another time.
- What is brought belongs to no sequence until it is read. As its last frames, just used, it would be what the policy
  of eviction takes first (docs/decisions/0027).
"""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from typing import TYPE_CHECKING

import trio

from cache.queue import Priority
from daemon import recorded
from daemon.recorded import TRACE_BYTES_MAX, TRACE_NAME
from daemon.wants import RANGES_MAX, WANTS_MAX, Missing, files
from manifest.digest import Digest
from manifest.errors import (
    DamfsError,
    FormatError,
    NotFound,
    TransportError,
    Unavailable,
    UsageError,
    UserError,
)
from manifest.links import follow
from manifest.names import join
from manifest.replica import Kind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from cache.handle import CachedObject
    from cache.store import CacheStore
    from daemon.places import Places, Snapshot
    from daemon.wants import Want, Wanted
    from manifest.recipe import Recipe
    from manifest.replica import Row

log = logging.getLogger(__name__)

BATCH = 512
PARALLEL = 4
CHUNK_S = 120.0
"""How long one chunk may take."""
STEP_BYTES = 64 * 1024 * 1024
FAULTS_MAX = 8


@dataclass(slots=True)
class Progress:
    """How far it has come. ``cached_bytes`` of ``bytes`` are here; ``brought_bytes`` were fetched for it."""

    files: int = 0
    bytes: int = 0
    cached_bytes: int = 0
    brought_bytes: int = 0
    missing: Missing = field(default_factory=Missing)


@dataclass(slots=True)
class Round:
    """One pass over all files: how many were not here whole, and what was the matter with some."""

    incomplete: int = 0
    faults: int = 0
    first: Exception | None = None
    in_a_row: int = 0

    def note(self, error: Exception | None) -> None:
        """A file was brought (None), or was not."""
        self.in_a_row = self.in_a_row + 1 if isinstance(error, TransportError) else 0
        if error is not None:
            self.faults += 1
            self.first = self.first or error

    @property
    def is_hopeless(self) -> bool:
        """Whether to leave the rest for another time."""
        return self.in_a_row >= FAULTS_MAX


class Bringer:
    """See the module's rules. ``on_brought`` is told of bytes that were fetched."""

    def __init__(self, cache: CacheStore, places: Places, on_brought: Callable[[int], None]) -> None:
        self._cache = cache
        self._places = places
        self._on_brought = on_brought

    async def resolve(self, wants: Sequence[Want]) -> list[Want]:
        """The same wants as of revisions, and in the place of a folder's trace what that names.

        Raises NotFound, UsageError, Unavailable, and FormatError for a trace that is none. A show that is not there is
        left as it is, unless it is the only one.
        """
        revisions: dict[tuple[str, str | None], str | None] = {}
        for want in wants:
            if (want.show, want.at) not in revisions:
                try:
                    async with self._places.snapshot(want.show, want.at) as snapshot:
                        revisions[want.show, want.at] = str(snapshot.revision)
                except UserError:
                    if len(wants) == 1:
                        raise
                    revisions[want.show, want.at] = want.at
        as_of = await trio.to_thread.run_sync(
            lambda: [replace(want, at=revisions[want.show, want.at]) for want in wants]
        )
        found: list[Want] = []
        for want in as_of:
            found += await self._traced(want) if want.traced else [want]
        if len(found) > WANTS_MAX or sum(len(want.ranges or ()) for want in found) > RANGES_MAX:
            raise UsageError(f"these are more than {WANTS_MAX:,} files, or {RANGES_MAX:,} ranges: name fewer traces")
        return found

    async def _traced(self, want: Want) -> list[Want]:
        """What the trace that a folder was published with names. Of other shows it has nothing to say."""
        async with self._places.snapshot(want.show, want.at) as snapshot:

            def find() -> tuple[Row, Recipe | None]:
                path, _ = follow(snapshot.reader, want.path, snapshot.revision, last=True)
                row = snapshot.reader.resolve(join(path, TRACE_NAME), snapshot.revision)
                if row is None or row.kind != Kind.FILE or row.content is None:
                    raise NotFound(f"{want} was published without a trace (damfs publish --with-trace): it has no "
                                   f"file {TRACE_NAME}")  # fmt: skip
                return row, snapshot.reader.recipe(row.content)

            row, recipe = await snapshot.ask(find)
        if row.size > TRACE_BYTES_MAX:
            raise FormatError(f"the trace of {want} has {row.size:,} bytes, at most {TRACE_BYTES_MAX:,}")
        opened = await self._cache.open_object(
            want.show, Digest(row.content or b""), row.size, Digest(row.digest or b""), recipe, path_hint=TRACE_NAME
        )
        try:
            data = bytes(await opened.read(0, row.size, trio.current_time() + CHUNK_S))
        finally:
            opened.release()
        try:
            trace = await trio.to_thread.run_sync(recorded.parse, data)
        except FormatError as error:
            raise FormatError(f"the trace of {want} cannot be used: {error}") from error
        own = [file.want(want.at) for file in trace.files if file.show == want.show]
        if len(own) < len(trace.files):
            log.warning("the trace of %s names %d files of other shows: they are left out", want,
                        len(trace.files) - len(own))  # fmt: skip
        return own

    async def count(self, wants: Sequence[Want], progress: Progress) -> None:
        """See what is wanted, and how much of it is here; of parts of a file only whether the whole of it is."""
        found = Progress(brought_bytes=progress.brought_bytes)

        async def add(_snapshot: Snapshot, batch: list[Wanted], present: list[int]) -> None:
            for wanted, have in zip(batch, present, strict=True):
                found.files += 1
                found.bytes += wanted.bytes
                found.cached_bytes += have if wanted.ranges is None or have == wanted.row.size else 0

        await self._each(wants, found.missing, add)
        progress.files, progress.bytes, progress.missing = found.files, found.bytes, found.missing
        progress.cached_bytes = min(found.cached_bytes, found.bytes)

    async def bring(self, wants: Sequence[Want], progress: Progress) -> Round:
        """Bring what is missing. Cancellation leaves fetches that have begun to go on."""
        done = Round()
        progress.missing = Missing()

        async def bring_batch(snapshot: Snapshot, batch: list[Wanted], present: list[int]) -> None:
            left = [(one, have) for one, have in zip(batch, present, strict=True) if have < one.row.size]
            work = iter(left)

            async def worker() -> None:
                for wanted, have in work:
                    if done.is_hopeless:
                        return
                    try:
                        await self._bring_file(snapshot, wanted, have, progress, done)
                    except (DamfsError, sqlite3.Error, OSError) as error:
                        done.incomplete += 1
                        done.note(error)
                    else:
                        done.note(None)

            async with trio.open_nursery() as nursery:
                for _ in range(min(PARALLEL, len(left))):
                    nursery.start_soon(worker)

        await self._each(wants, progress.missing, bring_batch, lambda: done.is_hopeless)
        return done

    async def _each(
        self,
        wants: Sequence[Want],
        missing: Missing,
        visit: Callable[[Snapshot, list[Wanted], list[int]], Awaitable[None]],
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Visit the files of all wants in order, a batch at a time, with how many bytes of each are here."""
        for (show, at), group in groupby(wants, key=lambda want: (want.show, want.at)):
            some = list(group)
            try:
                async with self._places.snapshot(show, at) as snapshot:
                    found = files(snapshot.reader, snapshot.revision, some, missing)
                    while not enough() and (batch := await snapshot.ask(lambda f=found: list(islice(f, BATCH)))):  # type: ignore[misc]
                        contents = [(Digest(one.row.content or b""), one.row.size) for one in batch]
                        await visit(snapshot, batch, await self._cache.admin.present_bytes(show, contents))
            except UserError as error:  # the show, or its revision, is not there
                missing.note(f"{some[0]}: {error}", len(some))

    async def _bring_file(self, snapshot: Snapshot, wanted: Wanted, have: int, progress: Progress, done: Round) -> None:
        row = wanted.row
        content = Digest(row.content or b"")
        recipe = await snapshot.ask(lambda: snapshot.reader.recipe(content))
        opened = await self._cache.open_object(
            snapshot.show, content, row.size, Digest(row.digest or b""), recipe,
            path_hint=wanted.path, is_read=False,
        )  # fmt: skip
        try:
            ranges = wanted.ranges or ((0, row.size),)
            if wanted.ranges is None:
                progress.cached_bytes -= min(have, progress.cached_bytes)  # counted again, step by step
            if opened.missing_bytes(ranges[0][0], 1) is None:  # its recipe is an object: see it before what is missing
                await opened.fill(CHUNK_S, (0, 0), Priority.PREFETCH)
            for span in _steps(ranges):
                await self._bring_span(opened, span, progress, done)
        finally:
            opened.release()

    async def _bring_span(self, opened: CachedObject, span: tuple[int, int], progress: Progress, done: Round) -> None:
        start, stop = span
        if not opened.has(start, stop - start):
            done.incomplete += 1
            brought = opened.missing_bytes(start, stop - start) or 0
            if not await opened.fill(CHUNK_S, span, Priority.PREFETCH):
                raise Unavailable("the cache did not keep all of it: it has no room, or its disk fails")
            progress.brought_bytes += brought
            self._on_brought(brought)
        progress.cached_bytes = min(progress.bytes, progress.cached_bytes + stop - start)


def _steps(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges in pieces of at most STEP_BYTES, so that somebody who looks sees it go on."""
    return [(at, min(stop, at + STEP_BYTES)) for start, stop in ranges for at in range(start, stop, STEP_BYTES)]
