"""Listings as the kernel wants them: a batch of entries is packed once, and each reply is a slice of it.

State: ``Listings``, the open folders lately read, least recently used first; one that was dropped is made again from
its handle's number, also in another process.

The number of an open folder is ``count << 32 | revision``: it needs no table, and a listing keeps the revision of its
OPENDIR however far the head goes, and whoever serves it. Together with the inode it says everything; two handles of
one folder with the same number, of a daemon and its successor, only share a batch.

Invariant: entries of a listing that is older than the head carry nodeid 0: the kernel then remembers nothing of them.
Otherwise a name that was replaced meanwhile would stay stale for ever (reproduced).
"""

from __future__ import annotations

import functools
import itertools
import stat
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from struct import Struct
from typing import Final

from vfs.attributes import BLOCK_BYTES, INFINITE_S
from vfs.handles import DirEntry, FolderHandle, RootHandle
from vfs.kernel import wire

LISTINGS_MAX: Final = 256
_REVISION_BITS: Final = 32
_ENTRY_BYTES: Final = wire.DIRENT.size
_PLUS_BYTES: Final = wire.DIRENTPLUS.size
_FOREVER: Final = int(INFINITE_S)
_DOTS: Final = (b".", b"..")


def number(count: int, revision: int) -> int:
    """The number of an open folder."""
    return count << _REVISION_BITS | revision


def revision_of(handle: int) -> int:
    """The revision that an open folder lists."""
    return handle & (1 << _REVISION_BITS) - 1


@functools.cache
def _plus(padded_bytes: int) -> Struct:
    return Struct(f"{wire.DIRENTPLUS.format}{padded_bytes}s")


@functools.cache
def _plain(padded_bytes: int) -> Struct:
    return Struct(f"{wire.DIRENT.format}{padded_bytes}s")


class Listing:
    """One open folder: the batch of its entries that is being read, packed."""

    __slots__ = ("_bounds", "_entries", "_handle", "_kept", "_owner", "_packed", "_plus")

    def __init__(self, handle: FolderHandle | RootHandle, owner: tuple[int, int]) -> None:
        self._handle = handle
        self._owner = owner
        self._entries: Sequence[DirEntry] | None = None
        self._kept = False
        self._plus = False
        self._packed = memoryview(b"")
        self._bounds: list[int] = [0]

    def read(self, offset: int, size: int, *, plus: bool) -> memoryview:
        """The entries behind ``offset`` that fit into ``size`` bytes, as READDIR(PLUS) wants them; empty: the end."""
        entries, start, timeout_s = self._handle.batch(offset)
        if start >= len(entries):  # the batch is at its end: the next one, or none
            if not entries:
                return memoryview(b"")
            entries, start, timeout_s = self._handle.batch(entries[-1][5])
            if start >= len(entries):
                return memoryview(b"")
        kept = timeout_s > 0
        if entries is not self._entries or kept is not self._kept or plus is not self._plus:
            self._pack(entries, kept=kept, plus=plus)
        begin = self._bounds[start]
        end = self._bounds[bisect_right(self._bounds, begin + size) - 1]
        return self._packed[begin:end]

    def _pack(self, entries: Sequence[DirEntry], *, kept: bool, plus: bool) -> None:
        pieces = list(map(self._packed_plus if plus else _packed_plain, entries, itertools.repeat(kept)))
        self._packed = memoryview(b"".join(pieces))
        self._bounds = list(itertools.accumulate(map(len, pieces), initial=0))
        self._entries, self._kept, self._plus = entries, kept, plus

    def _packed_plus(self, entry: DirEntry, kept: bool) -> bytes:
        name, ino, mode, size, mtime_ns, following = entry
        seconds, ns = divmod(mtime_ns, 1_000_000_000)
        uid, gid = self._owner
        known = kept and name not in _DOTS
        timeout_s = _FOREVER if known else 0
        return _plus(len(name) + 7 & ~7).pack(
            ino if known else 0, 0, timeout_s, timeout_s, 0, 0,
            ino, size, (size + BLOCK_BYTES - 1) // BLOCK_BYTES, seconds, seconds, seconds, ns, ns, ns,
            mode, 1, uid, gid, 0, 0, 0,
            ino, following, len(name), stat.S_IFMT(mode) >> 12, name,
        )  # fmt: skip


def _packed_plain(entry: DirEntry, kept: bool) -> bytes:  # noqa: ARG001  a READDIR plants nothing
    name, ino, mode, _, _, following = entry
    return _plain(len(name) + 7 & ~7).pack(ino, following, len(name), stat.S_IFMT(mode) >> 12, name)


class Listings:
    """The listings that are being read, by the inode and the number of their handle."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int], Listing] = OrderedDict()

    def get(self, handle: tuple[int, int]) -> Listing | None:
        found = self._known.get(handle)
        if found is not None:
            self._known.move_to_end(handle)
        return found

    def put(self, handle: tuple[int, int], listing: Listing) -> None:
        """Remember one, and forget the oldest."""
        self._known[handle] = listing
        if len(self._known) > LISTINGS_MAX:
            self._known.popitem(last=False)

    def drop(self, handle: tuple[int, int]) -> None:
        """The folder was closed."""
        self._known.pop(handle, None)
