"""Pins: what stays in the cache, and is brought into it.

State: the pins (daemon/pin_list.py); what each keeps, in the cache's index (cache/pinned.py); how far each has come, in
memory.

Rules:
- A pin is of a place: a file, the files of a folder, or all below it; live, as of a revision, or of a moment. A live
  one follows the show: files that come are brought, those that go may be evicted.
- All pins together keep at most ``share`` of the cache's size. One that would keep more is refused, and one that has
  grown beyond keeps what it kept before.
- Each pin has one task. It brings PARALLEL files at a time, tries again what failed, and looks again at everything
  every CHECK_S: the scrub may have dropped something.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from cache.pinned import Pinned
from daemon.pin_list import Pin, check, load, save
from manifest.digest import Digest
from manifest.errors import ConfigurationError, DamfsError, NotFound, Offline, Unavailable
from manifest.replica import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cache.store import CacheStore
    from daemon.places import Place, Places
    from manifest.replica import Row

log = logging.getLogger(__name__)

T = TypeVar("T")

PINS_MAX = 1024
PARALLEL = 4
CHUNK_S = 120.0
"""How long one chunk may take."""
CHECK_S = 600.0
LOOK_S = 1.0
RETRY_S, RETRY_S_MAX = 5.0, 300.0


@dataclass(slots=True)
class Progress:
    """How far a pin has come. ``state``: counting, downloading, complete, or incomplete for the reason in ``error``."""

    state: str = "counting"
    revision: int | None = None
    files: int = 0
    bytes: int = 0
    cached_bytes: int = 0
    error: str | None = None


@dataclass(slots=True)
class _Kept:
    """A pin and its task.

    ``counted``: the revision and the path, links followed, that it was last counted at; ``folders``: among which.
    """

    pin: Pin
    progress: Progress = field(default_factory=Progress)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    round: int = 0
    counted: tuple[int, str] | None = None
    folders: int = 0
    is_due: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self.pin), **asdict(self.progress)}


class Pins:
    """See the module's rules. Belongs to the event loop."""

    def __init__(self, file: Path, cache: CacheStore, places: Places, served: Callable[[str], int | None],
                 share: float) -> None:  # fmt: skip
        """``served`` tells the revision of a show that the mount shows now, None while it does not know."""
        self._file = file
        self._cache = cache
        self._places = places
        self._served = served
        self._share = share
        self._kept: dict[int, _Kept] = {}
        self._next_id = 1
        self._folders = 0
        """Another number whenever the cache has other folders: a new one knows of no pins."""
        self._changing = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._nursery: trio.Nursery

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep all pins until cancelled."""
        for pin in await trio.to_thread.run_sync(load, self._file):
            self._kept[pin.id] = _Kept(pin)
            self._next_id = max(self._next_id, pin.id + 1)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            changed = self._cache.changed
            async with self._changing:
                task_status.started()
                await self._begin()
                for kept in self._kept.values():
                    nursery.start_soon(self._keep, kept)
            while True:
                await changed.wait()
                changed = self._cache.changed
                self._folders += 1
                async with self._changing:
                    await self._begin()
                for kept in self._kept.values():
                    kept.is_due = True

    async def _begin(self) -> None:
        """Have the index let go of what pins kept that are no more. What cannot be done now does no harm.

        Nobody may be making a pin, which is counted before it is one.
        """
        with suppress(Unavailable):
            pins = list(self._kept)
            await self._ask_index(lambda pinned: pinned.keep_only(pins))

    def all(self) -> list[dict[str, Any]]:
        """All pins with their progress, the oldest first."""
        return [kept.to_json() for _, kept in sorted(self._kept.items())]

    async def measure(self, show: str, at: str | None, path: str, *, recursive: bool) -> dict[str, Any]:
        """How large a pin would be, and how much of that is cached; ``why_not``: why it would be refused, or None.

        Raises NotFound, UsageError, Unavailable.
        """
        async with self._changing:
            probe = _Kept(self._new(show, at, path, recursive=recursive))
            try:
                await self._count(probe)
                why_not = None
            except ConfigurationError as error:
                why_not = str(error)
            finally:
                with trio.CancelScope(shield=True):
                    await self._ask_index(lambda pinned: pinned.drop(probe.pin.id))
            sizes = {name: getattr(probe.progress, name) for name in ("revision", "files", "bytes", "cached_bytes")}
            return {**sizes, "why_not": why_not}

    async def add(self, show: str, at: str | None, path: str, *, recursive: bool) -> dict[str, Any]:
        """Make a pin, which then downloads; one of the same that is there already is that one.

        Raises NotFound, UsageError, Unavailable, and ConfigurationError when all pins would keep more than they may.
        """
        async with self._changing:
            pin = self._new(show, at, path, recursive=recursive)
            for kept in self._kept.values():
                if kept.pin.what == pin.what:
                    return kept.to_json()
            if len(self._kept) >= PINS_MAX:
                raise ConfigurationError(f"there are {PINS_MAX} pins, which is the most: unpin some, or pin a folder")
            kept = _Kept(pin)
            try:
                await self._count(kept)
                self._kept[pin.id] = kept
                await self._save()
            except BaseException:
                self._kept.pop(pin.id, None)
                with trio.CancelScope(shield=True):
                    await self._ask_index(lambda pinned: pinned.drop(pin.id))
                raise
            self._next_id += 1
            self._nursery.start_soon(self._keep, kept)
            return kept.to_json()

    async def remove(self, pins: Sequence[int]) -> list[dict[str, Any]]:
        """Unpin: what they kept stays until it is evicted like anything else. Raises NotFound.

        An index that cannot note it now is told when its folder comes back, or at the next start.
        """
        async with self._changing:
            unknown = [number for number in pins if number not in self._kept]
            if unknown:
                raise NotFound(f"no pin has the number {unknown[0]}: `damfs pins` lists them")
            removed = [self._kept.pop(number) for number in dict.fromkeys(pins)]
            try:
                await self._save()
            except BaseException:
                self._kept |= {kept.pin.id: kept for kept in removed}
                raise
            for kept in removed:
                kept.scope.cancel()
            for kept in removed:
                await kept.ended.wait()
                with suppress(Unavailable):
                    await self._ask_index(lambda pinned, number=kept.pin.id: pinned.drop(number))  # type: ignore[misc]
            return [kept.to_json() for kept in removed]

    def hurry(self) -> None:
        """What could not be had may be had now: every pin is tried again."""
        for kept in self._kept.values():
            kept.is_due = True

    # -- one pin

    async def _keep(self, kept: _Kept) -> None:
        pause_s = RETRY_S
        try:
            with kept.scope:
                while True:
                    served = self._served(kept.pin.show)
                    if await self._attempt(kept):
                        pause_s = RETRY_S
                        await self._until_due(kept, served, CHECK_S)
                    else:
                        hurried = await self._until_due(kept, served, pause_s)
                        pause_s = RETRY_S if hurried else min(2 * pause_s, RETRY_S_MAX)
        finally:
            kept.ended.set()

    async def _attempt(self, kept: _Kept) -> bool:
        """Count what the pin is of, if that may have changed, and bring what is missing; whether all of it is here."""
        try:
            async with self._places.at(kept.pin.show, kept.pin.at, kept.pin.path) as place:
                known = kept.counted if kept.folders == self._folders else None
                if known is None or not await place.is_as_of(*known):
                    kept.progress.state = "counting"
                    await self._count_at(kept, place)
            if await self._bring(kept):
                kept.progress.state, kept.progress.error = "complete", None
                return True
            if kept.progress.error is None:
                self._say(kept, "the cache did not keep all of it: it has no room, or its disk fails")
        except Offline as error:
            kept.progress.error = str(error)  # no fault: it goes on by itself
        except (DamfsError, sqlite3.Error, OSError) as error:
            self._say(kept, str(error))
        except Exception as error:  # a pin is no reason to end the mount
            log.exception("pin %d of %s met a bug, and is tried again", kept.pin.id, kept.pin)
            self._say(kept, f"a bug of damfs: {error!r}; the log has the traceback")
        kept.progress.state = "incomplete"
        return False

    async def _until_due(self, kept: _Kept, before: int | None, pause_s: float) -> bool:
        """Wait so long, or until a live pin's show has another revision than ``before``; whether somebody hurries."""
        with trio.move_on_after(pause_s):
            while not kept.is_due and (kept.pin.at is not None or self._served(kept.pin.show) == before):  # noqa: ASYNC110
                await trio.sleep(LOOK_S)
        hurried, kept.is_due = kept.is_due, False
        return hurried

    async def _count(self, kept: _Kept) -> None:
        pin = kept.pin
        async with self._places.at(pin.show, pin.at, pin.path) as place:
            await self._count_at(kept, place)

    async def _count_at(self, kept: _Kept, place: Place) -> None:
        """See what the pin is of now, and have the index keep it. Raises ConfigurationError when that is too much."""
        pin, counted = kept.pin, Progress(state="downloading", revision=place.revision)
        folders = self._folders
        round_ = kept.round = max(kept.round, *await self._ask_index(lambda p: p.last_round(pin.id))) + 1
        async for batch in place.batches():
            files = _files(batch, recursive=pin.recursive)
            contents = [(Digest(row.content or b""), row.size) for row in files]
            present = await self._cache.admin.present_bytes(pin.show, contents)
            counted.files += len(files)
            counted.bytes += sum(row.size for row in files)
            counted.cached_bytes += sum(present)
            await self._ask_index(lambda p, c=contents: p.add(pin.id, round_, pin.show, c))  # type: ignore[misc]
        total_bytes, limit_bytes = max(await self._ask_index(Pinned.total_bytes)), self.limit_bytes
        if total_bytes > limit_bytes:
            await self._ask_index(lambda p: p.take_back(pin.id, round_))
            kept.progress.files, kept.progress.bytes = counted.files, counted.bytes
            kept.progress.revision, kept.progress.cached_bytes = counted.revision, counted.cached_bytes
            raise ConfigurationError(
                f"with {pin} the pins would keep {total_bytes:,} bytes, and may keep {limit_bytes:,}, "
                f"{self._share * 100:g} % of the cache: unpin something, enlarge the cache, or raise cache.pin_share"
            )
        await self._ask_index(lambda p: p.finish(pin.id, round_))
        kept.progress, kept.counted, kept.folders = counted, (place.revision, place.path), folders

    @property
    def limit_bytes(self) -> int:
        """What all pins together may keep."""
        return int(self._cache.stats().size_bytes * self._share)

    async def _bring(self, kept: _Kept) -> bool:
        """Bring every file that is not here whole, and see what became of it; whether all are here now."""
        if await self._bring_missing(kept) == 0:
            return True
        await trio.sleep(LOOK_S)  # what is small is kept a moment later
        return await self._bring_missing(kept) == 0

    async def _bring_missing(self, kept: _Kept) -> int:
        """Bring every file that is not here whole; how many these were."""
        pin, progress = kept.pin, kept.progress
        progress.state = "downloading"
        assert kept.counted is not None
        revision, path = kept.counted
        faults: list[str] = []
        refusals: list[Offline] = []
        cached_bytes = count = 0
        async with self._places.at(pin.show, str(revision), path) as place:
            async for batch in place.batches():
                files = _files(batch, recursive=pin.recursive)
                present = await self._cache.admin.present_bytes(
                    pin.show, [(Digest(row.content or b""), row.size) for row in files]
                )
                cached_bytes += sum(present)
                progress.cached_bytes = max(progress.cached_bytes, cached_bytes)
                missing = [(row, have) for row, have in zip(files, present, strict=True) if have < row.size]
                count += len(missing)
                work = iter(missing)

                async def bring(work: Any = work, place: Place = place) -> None:
                    for row, have in work:
                        try:
                            await self._bring_file(place, row)
                        except Offline as error:
                            refusals.append(error)
                            return
                        except (DamfsError, sqlite3.Error, OSError) as error:
                            faults.append(str(error))
                        else:
                            progress.cached_bytes = min(progress.bytes, progress.cached_bytes + row.size - have)

                async with trio.open_nursery() as nursery:
                    for _ in range(PARALLEL):
                        nursery.start_soon(bring)
                if refusals:
                    raise refusals[0]
        if faults:
            more = "" if len(faults) == 1 else f" (and {len(faults) - 1} more)"
            self._say(kept, faults[0] + more)
        elif not count:
            progress.cached_bytes = cached_bytes
        return count

    async def _bring_file(self, place: Place, row: Row) -> None:
        assert row.content is not None
        assert row.digest is not None
        recipe = await place.recipe(row.content)
        opened = await self._cache.open_object(
            place.show, Digest(row.content), row.size, Digest(row.digest), recipe, path_hint=row.name
        )
        try:
            if not await opened.fill(CHUNK_S):
                raise Unavailable(f"{place.show}: {row.name}: the cache has no room for it, or its disk fails")
        finally:
            opened.release()

    def _say(self, kept: _Kept, error: str) -> None:
        if kept.progress.error != error:
            log.warning("pin %d of %s is not complete: %s", kept.pin.id, kept.pin, error)
        kept.progress.error = error

    # -- what is kept on disk

    def _new(self, show: str, at: str | None, path: str, *, recursive: bool) -> Pin:
        return check(Pin(self._next_id, show, at, path, recursive, time.time_ns()))

    async def _ask_index(self, ask: Callable[[Pinned], T]) -> list[T]:
        """Tell every folder's index the same, for a content may lie in any; what they return, at least one.

        Raises Unavailable when one fails, or none is in service.
        """
        shelves = list(self._cache.shelves)
        if not shelves:
            raise Unavailable("no cache folder is in service: nothing can be pinned")
        try:
            return await trio.to_thread.run_sync(
                lambda: [ask(Pinned(shelf.index)) for shelf in shelves], limiter=self._limiter
            )
        except sqlite3.Error as error:
            raise Unavailable(f"the cache's index cannot note what is pinned: {error}") from error

    async def _save(self) -> None:
        pins = [kept.pin for _, kept in sorted(self._kept.items())]
        await trio.to_thread.run_sync(save, self._file, pins, limiter=self._limiter)


def _files(batch: Sequence[tuple[str, Row]], *, recursive: bool) -> list[Row]:
    return [
        row for path, row in batch
        if row.kind == Kind.FILE and row.content is not None and row.size and (recursive or "/" not in path)
    ]  # fmt: skip
