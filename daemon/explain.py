"""Why reading something is slow: what ``damfs explain`` shows of a file, a folder, or a sequence of frames.

State: none beside limiters. Rules:

- No source is asked and nothing is waited for but this machine's disk: it works offline, and of a show that nobody has
  used yet there is nothing to tell.
- It is told on the view socket, to any user, what the kernel would let that user read (daemon/rights.py). Files of one
  content share what is remembered of its reads: what an error says of another file is not told.
- What is told is bounded, however many files a folder or chunks a file has.
"""

from __future__ import annotations

import re
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import trio

from cache.explain import Explainer, queued
from cache.opening import LOOK_UP_S
from daemon.advice import advise
from daemon.frames import Sequences, pattern_of
from daemon.rights import READ, SEARCH
from manifest import names
from manifest.digest import Digest
from manifest.errors import NotFound, Unavailable
from manifest.replica import Kind
from vfs.inodes import row_ino

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cache.store import CacheStore
    from daemon.frames import Pattern
    from daemon.places import Place, Places
    from daemon.rights import Rights
    from daemon.sync import Sync
    from manifest.replica import Row
    from vfs.binding import Binding, Way
    from vfs.inodes import Slots

FILES_MAX = 50_000
"""So many names of a folder are looked at."""
AT_ONCE = 4
_OF_AN_OBJECT = re.compile(r"(chunk|recipe) b3:[0-9a-f]{64} |shows/[a-z0-9_-]+/(chunks|recipes)/[0-9a-f/]+ ")
STAYS = (
    "a program opened it before all of it was here, and the way of reading stays until everybody has closed it: close "
    "it in all programs and open it again"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """How the kernel is spoken to: the binding's name, and whether the kernel can read files of the cache itself.

    ``way_of`` tells who reads an inode that is open.
    """

    binding: str
    has_passthrough: bool
    way_of: Callable[[int], Way | None] = lambda ino: None  # noqa: ARG005


class Explain:
    """See the module's rules. Belongs to the event loop."""

    def __init__(
        self, cache: CacheStore, places: Places, sync: Sync, slots: Slots, reading: Callable[[], Reading]
    ) -> None:
        """``places`` loads no show. ``reading`` tells how files are read, once there is a mount."""
        self._cache = cache
        self._places = places
        self._sync = sync
        self._slots = slots
        self._reading = reading
        self._explainer = Explainer(cache)
        self._room = trio.CapacityLimiter(AT_ONCE)

    async def explain(self, show: str, at: str | None, path: str, rights: Rights) -> dict[str, Any]:
        """See docs/STATUS.md. Raises NotFound, AccessDenied, UsageError, Unavailable."""
        async with self._room:
            folder, name = names.split(path)
            pattern = pattern_of(name)
            try:
                async with self._places.at(show, at, path, rights.enter) as place:
                    return await self._of(place, path, rights, None)
            except NotFound:
                if pattern is None:
                    raise
            async with self._places.at(show, at, folder, rights.enter) as place:
                if place.row.kind != Kind.FOLDER:
                    raise NotFound(f"{path}: {place.path} is not a folder")
                return await self._of(place, path, rights, pattern)

    async def _of(self, place: Place, asked: str, rights: Rights, pattern: Pattern | None) -> dict[str, Any]:
        contact, row = self._sync.contact, place.row
        head = {
            "show": place.show,
            "revision": place.revision,
            "path": place.path if pattern is None else asked,
            "asked": asked,
            "kind": "sequence" if pattern else "file" if row.kind == Kind.FILE else "folder",
            "offline": contact.offline,
            "offline_reason": contact.reason,
            "offline_switched": contact.shut_because is not None,
            "sources": self._told_sources(),
            "sources_why_not": self._cache.fetcher.available(),
            "queue": queued(self._cache),
        }
        if row.kind == Kind.FILE and pattern is None:
            rights.require(place.path, row, READ)
            found = {**head, "file": await self._file(place, rights)}
        else:
            rights.require(place.path, row, READ | SEARCH)
            found = {**head, "folder": await self._folder(place, rights, pattern)}
        return {**found, "advice": advise(found)}

    def _told_sources(self) -> list[dict[str, Any]]:
        timings = self._cache.counters.timings
        return [{**asdict(one), "bytes_per_s": timings.bytes_per_s(one.name)} for one in self._cache.sources.status()]

    async def _file(self, place: Place, rights: Rights) -> dict[str, Any]:
        row, info = place.row, await place.about(place.row.since)
        assert row.content is not None
        assert row.digest is not None
        content, digest = Digest(row.content), Digest(row.digest)
        recipe = await place.recipe(content)
        known = await self._explainer.explain(place.show, content, row.size, digest, recipe)
        reading, slot = self._reading(), self._slots.get(place.show)
        way = None if slot is None else reading.way_of(row_ino(slot, row.id))
        why_not = STAYS if way == "daemon" and known.may_lend else known.why_not_lent
        why = why_daemon(why_not, reading)
        told = asdict(known)
        if rights.peer is not None:
            for one in (told["last_read"], told["slowest_read"], *told["fetched"]):
                if one is not None:
                    one["error"] = without_names(one["error"], place.path)
        return {
            **told,
            "digest": str(digest),
            "content": str(content),
            "version": row.since,
            "publisher": None if info is None else info.author,
            "published_ns": None if info is None else info.time_ns,
            "percent": known.here_bytes * 100 // known.size_bytes if known.size_bytes else 100,
            "read_by": way or ("kernel" if known.lent else "daemon" if known.handles else None),
            "next_open_by": "kernel" if why is None else "daemon",
            "why_daemon": why,
        }

    async def _folder(self, place: Place, rights: Rights, pattern: Pattern | None) -> dict[str, Any]:
        found = Sequences(pattern)
        looked_at = folders = files = unreadable = size_bytes = here_bytes = 0
        is_complete = True
        before = "" if pattern is None else pattern[0]
        async with aclosing(place.names(before)) as batches:
            async for batch in batches:
                looked_at += len(batch)
                folders += sum(row.kind == Kind.FOLDER for row in batch)
                mine = [row for row in batch if row.kind == Kind.FILE and found.takes(row.name)]
                told = [row for row in mine if rights.may(row, READ)]
                unreadable += len(mine) - len(told)
                for row, present_bytes in zip(told, await self._present(place, told), strict=True):
                    found.add(row.name, row.size, present_bytes)
                    files += 1
                    size_bytes += row.size
                    here_bytes += present_bytes
                if not batch[-1].name.startswith(before):
                    break
                if looked_at >= FILES_MAX:
                    is_complete = False
                    break
        if pattern is not None and not files:
            raise NotFound(f"{place.show}:{place.path} has no frames of {'#'.join(pattern)} that you may read")
        return {
            "files": files, "folders": folders, "unreadable": unreadable, "complete": is_complete,
            "size_bytes": size_bytes, "here_bytes": here_bytes,
            "percent": here_bytes * 100 // size_bytes if size_bytes else 100, **found.to_json(),
        }  # fmt: skip

    async def _present(self, place: Place, rows: Sequence[Row]) -> list[int]:
        contents = [(Digest(row.content or b""), row.size) for row in rows]
        try:
            with trio.move_on_after(LOOK_UP_S):
                return await self._cache.admin.present_bytes(place.show, contents)
        except Unavailable:
            return [0] * len(contents)
        raise Unavailable("the cache does not say what it has of these files: its disk hangs")


def without_names(error: str, path: str) -> str:
    """An error for somebody who may read ``path`` and perhaps no other file of the same content, which it may name."""
    if not error or error.startswith(f"{path}: ") or _OF_AN_OBJECT.match(error):
        return error
    return "it failed; who may administer the mount is told why"


def why_daemon(why_not_lent: str | None, reading: Reading) -> str | None:
    """Why the next open is read through the daemon; None: it is not."""
    if why_not_lent is not None:
        return why_not_lent
    if reading.has_passthrough:
        return None
    if reading.binding != "kernel":
        return f"the binding {reading.binding} reads everything through the daemon"
    return "this kernel reads no files of the cache by itself"


def as_reading(binding: Binding) -> Reading:
    """From what a binding says of itself."""
    return Reading(binding.name, bool(binding.limits.get("passthrough")), binding.way_of)
