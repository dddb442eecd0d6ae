"""Which files the kernel reads by itself: one way of reading for an inode while it is open, and the backing ids.

State: the inodes that are open, each with its way of reading and its handles; the backing ids that are lent, by
content, each with the cached object that keeps the file where it is.

Rules, from fs/fuse/iomode.c and passthrough.c, measured in FUSE-NOTES:
- While an inode is open all its handles are read in one way: passthrough, with one backing id, or through us. A mix
  is EIO for the application. So the way is chosen when the open count leaves 0, and stays.
- One id may serve several inodes. It is given back at the last RELEASE of the last of them, never before.
- The backing file has exactly the size that the attributes say.

Invariant: a backing id that is lent has its ``CachedObject`` held, which keeps the file from being evicted, changed
or replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Final, Literal

from cache.handle import CachedObject

log = logging.getLogger(__name__)


def _adopted(backing_id: int) -> Hashable:
    """What a predecessor lent is known by its id: which content it is comes out when its show is loaded."""
    return "adopted", backing_id


NONE: Final = 0
"""No backing id: the kernel's are positive."""


class Lent:
    """A file that the kernel may read. ``object`` None: lent by a predecessor, which held it; not held yet by us."""

    __slots__ = ("backing_id", "inodes", "key", "object")

    def __init__(self, key: Hashable, backing_id: int, cached: CachedObject | None) -> None:
        self.key = key
        self.backing_id = backing_id
        self.object = cached
        self.inodes: set[int] = set()


class OpenInode:
    """An inode that is open. ``lent`` None: it is read through us."""

    __slots__ = ("handles", "lent")

    def __init__(self, lent: Lent | None) -> None:
        self.lent = lent
        self.handles: set[int] = set()


class Passthrough:
    """See the module. ``lend`` and ``take_back`` are the device's. Belongs to the event loop's thread."""

    def __init__(self, lend: Callable[[int], int], take_back: Callable[[int], None]) -> None:
        self._lend = lend
        self._take_back = take_back
        self._inodes: dict[int, OpenInode] = {}
        self._lent: dict[Hashable, Lent] = {}
        self._refused = False

    @property
    def lent(self) -> int:
        """How many files are lent to the kernel."""
        return len(self._lent)

    def is_open(self, ino: int) -> bool:
        """Whether the way of reading this inode is settled."""
        return ino in self._inodes

    def way_of(self, ino: int) -> Literal["kernel", "daemon"] | None:
        """Who reads an inode that is open; None: it is not."""
        state = self._inodes.get(ino)
        if state is None:
            return None
        return "daemon" if state.lent is None else "kernel"

    def choose(self, ino: int, key: Hashable, cached: CachedObject | None) -> int:
        """The backing id for one more handle of an inode, or NONE: read it through us.

        ``cached`` is the content behind it, if it is known; it stays the caller's. To be followed by ``opened``, or,
        when the handle does not come to be, by ``settle``.
        """
        state = self._inodes.get(ino)
        if state is not None:
            return NONE if state.lent is None else state.lent.backing_id
        lent = None if cached is None else self._lend_file(key, cached)
        self._inodes[ino] = OpenInode(lent)
        if lent is None:
            return NONE
        lent.inodes.add(ino)
        return lent.backing_id

    def opened(self, ino: int, handle: int) -> None:
        """A handle came to be."""
        self._inodes[ino].handles.add(handle)

    def adopt(self, ino: int, handle: int, backing_id: int) -> None:
        """A handle that a predecessor opened, as its journal says."""
        state = self._inodes.get(ino)
        if state is None:
            lent = None
            if backing_id != NONE:
                key = _adopted(backing_id)
                lent = self._lent.setdefault(key, Lent(key, backing_id, None))
                lent.inodes.add(ino)
            state = self._inodes[ino] = OpenInode(lent)
        state.handles.add(handle)

    def not_held(self) -> list[tuple[int, int]]:
        """(backing id, one of its inodes) of what a predecessor lent and nobody holds in the cache yet."""
        return [(lent.backing_id, min(lent.inodes)) for lent in self._lent.values() if lent.object is None]

    def hold(self, backing_id: int, cached: CachedObject) -> None:
        """Hold the object behind a predecessor's backing id; released at once if it is not needed (any more)."""
        lent = self._lent.get(_adopted(backing_id))
        if lent is None or lent.object is not None:
            cached.release()
        else:
            cached.was_lent()
            lent.object = cached

    def released(self, ino: int, handle: int) -> None:
        """A handle is no more, and struck out of the journal. An unknown one is ignored."""
        state = self._inodes.get(ino)
        if state is not None:
            state.handles.discard(handle)
            self.settle(ino)

    def settle(self, ino: int) -> None:
        """Forget an inode that no handle is left of, and give its backing id back if it was the last one."""
        state = self._inodes.get(ino)
        if state is None or state.handles:
            return
        del self._inodes[ino]
        lent = state.lent
        if lent is None:
            return
        lent.inodes.discard(ino)
        if not lent.inodes:
            del self._lent[lent.key]
            self._end(lent)

    def release_all(self) -> None:
        """The mount is gone, and with it the kernel's side of everything."""
        for lent in self._lent.values():
            if lent.object is not None:
                lent.object.release()
        self._lent.clear()
        self._inodes.clear()

    def _lend_file(self, key: Hashable, cached: CachedObject) -> Lent | None:
        fd = cached.backing()
        if fd is None:
            return None
        known = self._lent.get(key)
        if known is not None:
            return known
        try:
            backing_id = self._lend(fd)
        except OSError as error:
            if not self._refused:
                self._refused = True
                log.warning("the kernel takes no file of the cache to read by itself: %s; they are read through damfs",
                            error.strerror)  # fmt: skip
            return None
        lent = self._lent[key] = Lent(key, backing_id, cached.hold())
        return lent

    def _end(self, lent: Lent) -> None:
        try:
            self._take_back(lent.backing_id)
        except OSError as error:
            log.warning("backing id %d was not taken back: %s", lent.backing_id, error)
        if lent.object is not None:
            lent.object.release()
