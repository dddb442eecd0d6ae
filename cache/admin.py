"""What those who look after a cache ask of it: what it has of files, that it lets go of some, other limits.

State: the limits of shows as last set, and a lock, for changes of the limits come one after the other.

Rules:
- Limits are changed in all folders or in none: checked first, kept on the disks then, in force at last.
- A show's limits are for the whole cache, whatever a folder says that was not there when they were set. Of a quota each
  folder enforces the part that its size is of all sizes.
- What is open, lent to the kernel or pinned is not let go of, and counted.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from cache.evict import Evicted
from cache.limits import Overrides, check_size
from cache.space import look
from manifest.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from cache.limits import Limits, ShowLimits, Values
    from cache.shelf import Shelf
    from manifest.digest import Digest


class CacheAdmin:
    """See the module's rules. Belongs to the event loop."""

    def __init__(self, shelves: Callable[[], Sequence[Shelf]]) -> None:
        """``shelves`` tells those that are in service; when they change, ``divide_quotas``."""
        self._tell_shelves = shelves
        self._changing = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._shows: Mapping[str, ShowLimits] | None = None

    @property
    def shows(self) -> Mapping[str, ShowLimits]:
        """The limits of shows, not divided."""
        if self._shows is None:
            return self._shelves[0].overrides.shows if self._shelves else {}
        return self._shows

    @property
    def _shelves(self) -> Sequence[Shelf]:
        return self._tell_shelves()

    @property
    def folders(self) -> list[Path]:
        """The cache's folders."""
        return [shelf.folder for shelf in self._shelves]

    def limits(self, folder: Path) -> tuple[Limits, Overrides]:
        """The limits in force in a folder, and what of them was set while mounted. Not divided."""
        shelf = self._shelf(folder)
        overrides = self._overrides(shelf)
        return overrides.over(shelf.configured), overrides

    async def set_limits(self, values: Mapping[Path, Values], shows: Mapping[str, ShowLimits]) -> None:
        """Set values of folders, and the limits of shows, for now and for later mounts. Raises ConfigurationError."""
        async with self._changing:
            await self._change(
                [(shelf, self._overrides(shelf).merged(values.get(shelf.folder, {}), shows)) for shelf in self._shelves]
            )

    async def unset_limits(self, folders: Collection[Path]) -> None:
        """Let the configuration of these folders count again. Raises ConfigurationError."""
        async with self._changing:
            await self._change(
                [(shelf, Overrides({}, self.shows)) for shelf in self._shelves if shelf.folder in folders]
            )

    async def present_bytes(self, tenant: str, contents: Sequence[tuple[Digest, int]]) -> list[int]:
        """How much of each content, given with its size, is cached. Raises Unavailable when the index cannot say.

        Cancellation leaves the thread to itself: a disk that hangs holds nobody.
        """
        wanted = list({content for content, _ in contents})
        found: dict[bytes, int] = {}
        for shelf in self._shelves:
            try:
                found |= await trio.to_thread.run_sync(
                    shelf.index.present, tenant, wanted, abandon_on_cancel=True, limiter=self._limiter
                )
            except sqlite3.Error as error:
                raise _index_fails(shelf, error) from error
        for content in wanted:
            for shelf in self._shelves:
                state = shelf.contents.get((tenant, content))
                if state is not None and not state.is_small:
                    found[content] = state.present_bytes
        return [min(size, found.get(content, 0)) for content, size in contents]

    async def evict(self, tenant: str, contents: Collection[Digest]) -> Evicted:
        """Let go of these contents now. Raises Unavailable when the index fails."""
        result = Evicted()
        for shelf in self._shelves:
            await shelf.flusher.flush()  # what is only waiting to be claimed is open until then
            try:
                result = result.plus(await shelf.capacity.evict(tenant, list(contents)))
            except sqlite3.Error as error:
                raise _index_fails(shelf, error) from error
        return result

    async def _change(self, changes: list[tuple[Shelf, Overrides]]) -> None:
        await trio.to_thread.run_sync(_keep, changes)
        for shelf, overrides in changes:
            shelf.overrides = overrides
            self._shows = overrides.shows
        self.divide_quotas()

    def divide_quotas(self) -> None:
        """Have each folder enforce its part of the quotas."""
        in_force = [self._overrides(shelf).over(shelf.configured) for shelf in self._shelves]
        all_bytes = sum(limits.size_bytes for limits in in_force)
        for shelf, limits in zip(self._shelves, in_force, strict=True):
            shelf.capacity.set_limits(limits.for_part(limits.size_bytes / all_bytes))

    def _overrides(self, shelf: Shelf) -> Overrides:
        return Overrides(shelf.overrides.values, self.shows)

    def _shelf(self, folder: Path) -> Shelf:
        return next(shelf for shelf in self._shelves if shelf.folder == folder)


def _keep(changes: list[tuple[Shelf, Overrides]]) -> None:
    """Check all of it, then write all of it; what was written before an error is taken back. Blocking."""
    try:
        for shelf, overrides in changes:
            check_size(overrides.over(shelf.configured).size_bytes, look(shelf.folder).bytes, shelf.folder)
        for shelf, overrides in changes:
            overrides.save(shelf.folder)
    except OSError as error:
        for shelf, _ in changes:
            with suppress(OSError):
                shelf.overrides.save(shelf.folder)
        raise ConfigurationError(f"the limits are as before: they cannot be kept in {shelf.folder}: {error}") from error


def _index_fails(shelf: Shelf, error: sqlite3.Error) -> Unavailable:
    """On the event loop, as all that is reported of a disk."""
    shelf.index.failed(error)
    return Unavailable(f"the index of the cache in {shelf.folder} cannot be asked now ({error}): try again")
